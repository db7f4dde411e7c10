#include <algorithm>

#include "backends/cpu/elementwise.h"
#include "backends/cpu/linear.h"

namespace proa {
namespace {

// Tokens sorted by expert: an expert's weights are read once for all its tokens. A pair is one (token, chosen expert).
// A token's experts are added in ascending order whatever the batch, so its sum does not depend on its neighbours.
struct Plan {
  int32_t* start;  // [n_routed_experts + 1] first pair of each expert
  int32_t* next;   // [n_routed_experts]
  int32_t* token;  // [pairs]
  float* weight;   // [pairs]

  Plan(Arena& arena, const Moe& op)
      : start(arena.take<int32_t>(op.n_routed_experts + 1)),
        next(arena.take<int32_t>(op.n_routed_experts)),
        token(arena.take<int32_t>(pairs(op))),
        weight(arena.take<float>(pairs(op))) {}

  static int64_t pairs(const Moe& op) { return int64_t{op.num_tokens} * op.num_experts_per_tok; }
  static size_t bytes(const Moe& op) {
    return Arena::padded<int32_t>(op.n_routed_experts + 1) + Arena::padded<int32_t>(op.n_routed_experts) +
           Arena::padded<int32_t>(pairs(op)) + Arena::padded<float>(pairs(op));
  }

  void sort(const Moe& op) {
    const int n = op.n_routed_experts;
    std::fill_n(start, n + 1, 0);
    for (int64_t i = 0; i < pairs(op); ++i) ++start[op.topk_ids[i] + 1];
    for (int e = 0; e < n; ++e) start[e + 1] += start[e];
    std::copy_n(start, n, next);
    for (int64_t i = 0; i < pairs(op); ++i) {
      const int32_t p = next[op.topk_ids[i]]++;
      token[p] = static_cast<int32_t>(i / op.num_experts_per_tok);
      weight[p] = op.topk_weights[i];
    }
  }
};

}  // namespace

void CpuBackend::moe(const Moe& op) {
  const int num_threads = threads().num_threads();
  const int64_t tokens = op.num_tokens;
  const int64_t pairs = Plan::pairs(op);
  const int64_t u_stride = padded_cols(op.hidden_size);
  const int64_t latent = op.up.cols;  // hidden_size where there is no latent
  const int64_t z_stride = padded_cols(latent);
  const int64_t h_stride = padded_cols(op.up.rows);
  const int64_t s_stride = op.shared_up ? padded_cols(op.shared_up.rows) : 0;
  const int64_t latent_size = op.latent_in ? tokens * z_stride : 0;
  int64_t panel_size = 0;
  for (int64_t cols : {int64_t{op.hidden_size}, latent, op.up.rows, op.shared_up.rows}) {
    panel_size = std::max(panel_size, panel_floats(cols));
  }

  const auto needed = Plan::bytes(op) + Arena::padded<float>(tokens * u_stride) +
                      2 * Arena::padded<float>(latent_size) + Arena::padded<float>(pairs * h_stride) +
                      Arena::padded<float>(tokens * s_stride) + Arena::padded<float>(num_threads * panel_size);
  std::byte* memory = scratch(needed);
  if (counting()) return;
  Arena arena(memory, needed);
  Plan plan(arena, op);
  float* u = arena.take<float>(tokens * u_stride);       // [num_tokens, u_stride]
  float* z = arena.take<float>(latent_size);             // [num_tokens, z_stride]
  float* r = arena.take<float>(latent_size);             // [num_tokens, z_stride]
  float* h = arena.take<float>(pairs * h_stride);        // [pairs, h_stride]
  float* shared = arena.take<float>(tokens * s_stride);  // [num_tokens, s_stride]
  float* panels = arena.take<float>(num_threads * panel_size);

  plan.sort(op);
  rms_norm(*this, op.num_tokens, op.hidden_size, op.x, nullptr, op.norm, op.eps, u, u_stride);
  if (op.latent_in) {
    const Linear in{.weight = op.latent_in,
                    .num_tokens = op.num_tokens,
                    .x = u,
                    .x_stride = u_stride,
                    .y = z,
                    .y_stride = z_stride};
    linear(*this, {&in, 1}, panels);
    for (int64_t t = 0; t < tokens; ++t) std::fill(z + t * z_stride + latent, z + (t + 1) * z_stride, 0.0f);
  } else {
    z = u;
  }

  // act(Up · z) of a share of rows, with zeros behind the last row.
  const auto up_rows = [&](const Linear& up, int64_t begin, int64_t end, int thread) {
    const int64_t rows = up.weight.rows;
    const RowRange range = shares_of(rows, begin, end);
    if (range.begin == range.end) return;
    linear_rows(target(), up, range.begin, range.end, panels + thread * panel_size);
    for (int t = 0; t < up.num_tokens; ++t) {
      float* row = up.y + t * up.y_stride;
      activate(target(), op.activation, nullptr, row + range.begin, range.end - range.begin);
      if (range.end == rows) std::fill(row + rows, row + up.y_stride, 0.0f);
    }
  };
  threads().parallel_for(kRowShares, 1, [&](int64_t begin, int64_t end, int thread) {
    for (int e = 0; e < op.n_routed_experts; ++e) {
      const int32_t first = plan.start[e];
      if (plan.start[e + 1] == first) continue;
      up_rows({.weight = op.up.expert(e),
               .num_tokens = plan.start[e + 1] - first,
               .x = z,
               .x_stride = z_stride,
               .y = h + first * h_stride,
               .y_stride = h_stride,
               .x_rows = plan.token + first},
              begin, end, thread);
    }
    if (op.shared_up) {
      up_rows({.weight = op.shared_up,
               .num_tokens = op.num_tokens,
               .x = u,
               .x_stride = u_stride,
               .y = shared,
               .y_stride = s_stride},
              begin, end, thread);
    }
  });

  threads().parallel_for(kRowShares, 1, [&](int64_t begin, int64_t end, int thread) {
    const auto down_rows = [&](const Linear& down) {
      const RowRange range = shares_of(down.weight.rows, begin, end);
      linear_rows(target(), down, range.begin, range.end, panels + thread * panel_size);
    };
    if (op.latent_in) {
      const RowRange range = shares_of(latent, begin, end);
      const int64_t last = range.end == latent ? z_stride : range.end;
      for (int64_t t = 0; t < tokens && range.begin < range.end; ++t)
        std::fill(r + t * z_stride + range.begin, r + t * z_stride + last, 0.0f);
    }
    for (int e = 0; e < op.n_routed_experts; ++e) {
      const int32_t first = plan.start[e];
      if (plan.start[e + 1] == first) continue;
      down_rows({.weight = op.down.expert(e),
                 .num_tokens = plan.start[e + 1] - first,
                 .x = h + first * h_stride,
                 .x_stride = h_stride,
                 .y = op.latent_in ? r : op.x,
                 .y_stride = op.latent_in ? z_stride : op.hidden_size,
                 .add = true,
                 .y_rows = plan.token + first,
                 .scale = plan.weight + first});
    }
    if (op.shared_up) {
      down_rows({.weight = op.shared_down,
                 .num_tokens = op.num_tokens,
                 .x = shared,
                 .x_stride = s_stride,
                 .y = op.x,
                 .y_stride = op.hidden_size,
                 .add = true});
    }
  });

  if (op.latent_out) {
    const Linear out{.weight = op.latent_out,
                     .num_tokens = op.num_tokens,
                     .x = r,
                     .x_stride = z_stride,
                     .y = op.x,
                     .y_stride = op.hidden_size,
                     .add = true};
    linear(*this, {&out, 1}, panels);
  }
}

}  // namespace proa
