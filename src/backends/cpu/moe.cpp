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
  int32_t* used;   // [num_used] experts that have pairs
  int num_used = 0;

  Plan(Arena& arena, const Moe& op)
      : start(arena.take<int32_t>(op.n_routed_experts + 1)),
        next(arena.take<int32_t>(op.n_routed_experts)),
        token(arena.take<int32_t>(pairs(op))),
        weight(arena.take<float>(pairs(op))),
        used(arena.take<int32_t>(op.n_routed_experts)) {}

  static int64_t pairs(const Moe& op) { return int64_t{op.num_tokens} * op.num_experts_per_tok; }
  static size_t bytes(const Moe& op) {
    return Arena::padded<int32_t>(op.n_routed_experts + 1) + 2 * Arena::padded<int32_t>(op.n_routed_experts) +
           Arena::padded<int32_t>(pairs(op)) + Arena::padded<float>(pairs(op));
  }

  void sort(const Moe& op) {
    const int n = op.n_routed_experts;
    std::fill_n(start, n + 1, 0);
    for (int64_t i = 0; i < pairs(op); ++i) ++start[op.topk_ids[i] + 1];
    for (int e = 0; e < n; ++e) start[e + 1] += start[e];
    std::copy_n(start, n, next);
    num_used = 0;
    for (int e = 0; e < n; ++e) {
      if (start[e + 1] > start[e]) used[num_used++] = e;
    }
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
  const int64_t latent = op.up.cols;  // hidden_size where there is no latent
  const int64_t width = op.up.rows, shared_width = op.shared_up.rows;
  const Weight any_up = any_of(op.up), any_down = any_of(op.down);
  const Tokens each(std::min<int64_t>(1, tokens), tokens);  // that an expert has
  const Forms u_forms = op.latent_in ? forms_of(*this, {op.latent_in, op.shared_up}, tokens)
                                     : forms_of(*this, {any_up, op.shared_up}, each);
  const Forms z_forms = forms_of(*this, {any_up}, each), h_forms = forms_of(*this, {any_down}, each);
  const Forms r_forms = forms_of(*this, {op.latent_out}, tokens),
              shared_forms = forms_of(*this, {op.shared_down}, tokens);
  const int64_t latent_tokens = op.latent_in ? tokens : 0, shared_tokens = op.shared_up ? tokens : 0;
  int64_t room_size = 0;
  for (int64_t cols : {int64_t{op.hidden_size}, latent, width, shared_width}) {
    room_size = std::max(room_size, room_floats(cols, tokens));
  }

  const auto needed = Plan::bytes(op) + Input::bytes(tokens, op.hidden_size, u_forms) +
                      Input::bytes(latent_tokens, latent, z_forms) + Input::bytes(latent_tokens, latent, r_forms) +
                      Input::bytes(pairs, width, h_forms) + Input::bytes(shared_tokens, shared_width, shared_forms) +
                      Arena::padded<float>(num_threads * room_size);
  std::byte* memory = scratch(needed);
  if (counting()) return;
  Arena arena(memory, needed);
  Plan plan(arena, op);
  const Input u(arena, tokens, op.hidden_size, u_forms);
  const Input z(arena, latent_tokens, latent, z_forms);
  const Input r(arena, latent_tokens, latent, r_forms);
  const Input h(arena, pairs, width, h_forms);
  const Input shared(arena, shared_tokens, shared_width, shared_forms);
  float* rooms = arena.take<float>(num_threads * room_size);

  plan.sort(op);
  rms_norm(*this, op.num_tokens, op.hidden_size, op.x, nullptr, op.norm, op.eps, u);
  // Columns [begin, end) of what becomes the input of a next product, `end` behind its last at most.
  const auto finish = [](const Input& input, int64_t token, int64_t begin, int64_t end, int64_t cols) {
    float* row = input.x + token * input.stride;
    std::fill(row + std::max(begin, std::min(end, cols)), row + end, 0.0f);
    input.round(token, begin, end, cols);
  };
  if (op.latent_in) {
    const Linear in = u.read_by({.weight = op.latent_in, .num_tokens = op.num_tokens, .y = z.x, .y_stride = z.stride});
    threads().parallel_for(z.stride, kBlockRows, [&](int64_t begin, int64_t end, int thread) {
      linear_rows(*this, in, begin, std::min(end, latent), rooms + thread * room_size);
      for (int64_t t = 0; t < tokens; ++t) finish(z, t, begin, end, latent);
    });
  }

  // act(Up · z): blocks of rows of all experts in one loop, the shared one last.
  const Input& routed = op.latent_in ? z : u;
  const int64_t blocks = (h.stride + kBlockRows - 1) / kBlockRows;
  const int64_t shared_blocks = (shared.stride + kBlockRows - 1) / kBlockRows;
  const auto up_rows = [&](const Linear& up, const Input& out, int64_t first, int64_t begin, int64_t end, int thread) {
    const int64_t rows = up.weight.rows, last = std::min(end * kBlockRows, rows);
    begin *= kBlockRows;
    linear_rows(*this, up, begin, last, rooms + thread * room_size);
    for (int t = 0; t < up.num_tokens; ++t) {
      activate(target(), op.activation, nullptr, up.y + t * up.y_stride + begin, last - begin);
      finish(out, first + t, begin, std::min(end * kBlockRows, out.stride), rows);
    }
  };
  // Shares of about the same work: a block costs its unpacking, which is worth some tokens, and its tokens.
  constexpr int64_t kUnpacking = 8, kShares = 1024;
  const auto tokens_of = [&](int i) { return plan.start[plan.used[i] + 1] - plan.start[plan.used[i]]; };
  const int64_t work = (pairs + kUnpacking * plan.num_used) * blocks + (tokens + kUnpacking) * shared_blocks;
  const auto block_at = [&](int64_t share) {
    int64_t left = work * share / kShares;
    for (int i = 0; i < plan.num_used; ++i) {
      const int64_t each = tokens_of(i) + kUnpacking;
      if (left < each * blocks) return i * blocks + left / each;
      left -= each * blocks;
    }
    return plan.num_used * blocks + left / (tokens + kUnpacking);
  };
  threads().parallel_for(kShares, 1, [&](int64_t first_share, int64_t last_share, int thread) {
    const int64_t begin = block_at(first_share), end = block_at(last_share);
    for (int i = 0; i < plan.num_used; ++i) {
      const int64_t from = std::max<int64_t>(begin - i * blocks, 0), to = std::min(end - i * blocks, blocks);
      if (from >= to) continue;
      const int e = plan.used[i];
      const int32_t first = plan.start[e];
      const Linear up = routed.read_by({.weight = op.up.expert(e),
                                        .num_tokens = plan.start[e + 1] - first,
                                        .y = h.x + first * h.stride,
                                        .y_stride = h.stride,
                                        .x_rows = plan.token + first});
      up_rows(up, h, first, from, to, thread);
    }
    const int64_t from = std::max<int64_t>(begin - plan.num_used * blocks, 0), to = end - plan.num_used * blocks;
    if (from >= to) return;
    const Linear up =
        u.read_by({.weight = op.shared_up, .num_tokens = op.num_tokens, .y = shared.x, .y_stride = shared.stride});
    up_rows(up, shared, 0, from, to, thread);
  });

  // Rows of all experts' sums, so that no two threads add to the same.
  const auto down_rows = [&](const Linear& down, int64_t begin, int64_t end, int thread) {
    linear_rows(*this, down, begin, std::min(end, down.weight.rows), rooms + thread * room_size);
  };
  const auto routed_down = [&](float* y, int64_t y_stride, int64_t begin, int64_t end, int thread) {
    for (int i = 0; i < plan.num_used; ++i) {
      const int e = plan.used[i];
      const int32_t first = plan.start[e];
      const Linear down = h.read_by({.weight = op.down.expert(e),
                                     .num_tokens = plan.start[e + 1] - first,
                                     .y = y,
                                     .y_stride = y_stride,
                                     .add = true,
                                     .y_rows = plan.token + first,
                                     .scale = plan.weight + first},
                                    first);
      down_rows(down, begin, end, thread);
    }
  };
  const Linear shared_down = shared.read_by(
      {.weight = op.shared_down, .num_tokens = op.num_tokens, .y = op.x, .y_stride = op.hidden_size, .add = true});
  if (!op.latent_in) {
    threads().parallel_for(op.hidden_size, row_grain(*this, any_down, op.num_tokens),
                           [&](int64_t begin, int64_t end, int thread) {
                             routed_down(op.x, op.hidden_size, begin, end, thread);
                             if (op.shared_up) down_rows(shared_down, begin, end, thread);
                           });
    return;
  }
  threads().parallel_for(r.stride, kBlockRows, [&](int64_t begin, int64_t end, int thread) {
    for (int64_t t = 0; t < tokens; ++t) std::fill(r.x + t * r.stride + begin, r.x + t * r.stride + end, 0.0f);
    routed_down(r.x, r.stride, begin, end, thread);
    for (int64_t t = 0; t < tokens; ++t) finish(r, t, begin, end, latent);
  });
  const Linear out = r.read_by(
      {.weight = op.latent_out, .num_tokens = op.num_tokens, .y = op.x, .y_stride = op.hidden_size, .add = true});
  threads().parallel_for(op.hidden_size, row_grain(*this, op.latent_out, op.num_tokens),
                         [&](int64_t begin, int64_t end, int thread) {
                           if (op.shared_up) down_rows(shared_down, begin, end, thread);
                           down_rows(out, begin, end, thread);
                         });
}

}  // namespace proa
