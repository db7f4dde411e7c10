// Ops of a few tokens whose products are those of matmul.h. What they need beside their arguments is laid out here.
#include <algorithm>
#include <array>

#include "backends/cuda/cuda_backend.h"
#include "backends/cuda/kernels.h"
#include "backends/cuda/linear.h"

namespace proa {
namespace {

using cuda::Input;
using cuda::Output;

constexpr int kMaxTokens = 1024;  // of one product: bounds the scratch memory

size_t operand_bytes(int64_t vectors, int64_t cols) {
  return Arena::padded<std::byte>(
             static_cast<int64_t>(cuda::fragment_bytes(static_cast<int>(vectors), static_cast<int>(cols), true))) +
         Arena::padded<float>(vectors) + Arena::padded<float>(vectors * ((cols + 31) / 32) * 2);
}
cuda::Operands take_operands(Arena& arena, int64_t vectors, int64_t cols) {
  cuda::Operands operands;
  operands.fragments = reinterpret_cast<uint4*>(arena.take<std::byte>(
      static_cast<int64_t>(cuda::fragment_bytes(static_cast<int>(vectors), static_cast<int>(cols), true))));
  operands.unscale = arena.take<float>(vectors);
  operands.group_sums = arena.take<float>(vectors * ((cols + 31) / 32) * 2);
  return operands;
}

cuda::Prepare prepared_for(Format format, cuda::Prepare input, const cuda::Operands& out) {
  const cuda::OperandForm form = cuda::operand_form(format);
  input.bf16 = form.bf16;
  input.order = form.order;
  input.out = out;
  return input;
}

// Products side by side, as far as they are of one format.
struct MatMuls {
  struct One {
    Format format;
    cuda::MatMul op;
  };
  std::vector<One> all;

  void multiply(const cuda::Launch& launch) const {
    for (size_t i = 0; i < all.size();) {
      std::vector<cuda::MatMul> same;
      const Format format = all[i].format;
      for (; i < all.size() && all[i].format == format && same.size() < cuda::kMaxMatMuls; ++i) {
        same.push_back(all[i].op);
      }
      cuda::multiply_matrices(format, same, launch);
    }
  }
};

}  // namespace

void CudaBackend::products_of_few(const cuda::Prepare& input, std::span<const Product> products) {
  const int most = std::min(kMaxTokens, input.slots);
  const size_t bytes = operand_bytes(most, input.cols);
  std::byte* memory = scratch(bytes);
  if (!memory) return;
  Arena arena(memory, bytes);
  const cuda::Operands operands = take_operands(arena, most, input.cols);
  for (int first = 0; first < input.slots; first += kMaxTokens) {
    cuda::Prepare some = input;
    some.slots = std::min(kMaxTokens, input.slots - first);
    if (some.rows) {
      some.rows += first;
    } else {
      some.x += first * some.x_stride;
      if (some.z) some.z += first * some.z_stride;
    }
    std::optional<cuda::OperandForm> prepared;
    MatMuls gathered;
    for (const Product& product : products) {
      const cuda::OperandForm form = cuda::operand_form(product.weight.format);
      const bool other_form = !prepared || prepared->bf16 != form.bf16 || prepared->order != form.order;
      if (other_form || product.gate) {  // the gate may be what was just asked for
        gathered.multiply(launch());
        gathered.all.clear();
      }
      if (other_form) cuda::prepare(std::array{prepared_for(product.weight.format, some, operands)}, launch());
      prepared = form;
      const auto m = matrix(product.weight);
      if (!m) return;
      const int64_t offset = static_cast<int64_t>(first) * m->rows;
      cuda::MatMul op;
      op.matrix = *m;
      op.slots = some.slots;
      op.x = operands;
      op.y = product.y + offset;
      op.y_stride = m->rows;
      op.output = product.output;
      op.relu2 = product.relu2;
      op.gate = product.gate ? product.gate + offset : nullptr;
      gathered.all.push_back({product.weight.format, op});
    }
    gathered.multiply(launch());
  }
}

void CudaBackend::moe_of_few(const Moe& op) {
  const auto up = experts(op.up), down = experts(op.down);
  if (!up || !down) return;
  const bool relu2 = op.activation == Activation::relu2, latent = static_cast<bool>(op.latent_in);
  const int per_token = op.num_experts_per_tok;
  const int64_t in = op.up.cols, width = op.up.rows, out = op.down.rows;
  const int64_t shared_rows = op.shared_up ? op.shared_up.rows : 0;
  if (counting_) residual(op.hidden_size);
  for (int first = 0; first < op.num_tokens; first += kMaxTokens) {
    const int tokens = std::min(kMaxTokens, op.num_tokens - first);
    const int64_t choices = int64_t{tokens} * per_token;
    // Few experts get more tokens than a tile holds, and those read their weights twice.
    const int64_t expected = choices / op.n_routed_experts;
    const int tile = expected <= 4 ? 8 : expected <= 10 ? 16 : 32;
    const int tiles = static_cast<int>(std::min<int64_t>(choices, choices / tile + op.n_routed_experts));
    const int64_t widest = std::max<int64_t>({op.hidden_size, in, out});
    const size_t bytes = 2 * operand_bytes(tokens, widest) + operand_bytes(choices, width) +
                         operand_bytes(tokens, shared_rows) + 2 * Arena::padded<int32_t>(choices) +
                         3 * Arena::padded<int32_t>(tiles) + Arena::padded<float>(choices * width) +
                         Arena::padded<float>(choices * out) + Arena::padded<float>(tokens * in) +
                         Arena::padded<float>(tokens * out) + Arena::padded<float>(tokens * shared_rows);
    std::byte* memory = scratch(bytes);
    if (!memory) return;
    Arena arena(memory, bytes);
    const cuda::Operands x_operands = take_operands(arena, tokens, widest);
    const cuda::Operands z_operands = take_operands(arena, tokens, widest);
    const cuda::Operands h_operands = take_operands(arena, choices, width);
    const cuda::Operands shared_operands = take_operands(arena, tokens, shared_rows);
    cuda::SortedChoices sorted;
    sorted.token = arena.take<int32_t>(choices);
    sorted.slot = arena.take<int32_t>(choices);
    sorted.tile_expert = arena.take<int32_t>(tiles);
    sorted.tile_first = arena.take<int32_t>(tiles);
    sorted.tile_count = arena.take<int32_t>(tiles);
    float* h = arena.take<float>(choices * width);
    float* y = arena.take<float>(choices * out);
    float* z = arena.take<float>(tokens * in);
    float* r = arena.take<float>(tokens * out);
    float* shared_h = arena.take<float>(tokens * shared_rows);

    const auto plain = [](const float* from, int64_t vectors, int64_t cols) {
      return cuda::Prepare{
          .slots = static_cast<int>(vectors), .cols = static_cast<int>(cols), .x = from, .x_stride = cols};
    };
    const auto dense = [&](const Weight& weight, const cuda::Operands& operands, float* to, Output output) {
      MatMuls::One product{weight.format, {}};
      const auto m = matrix(weight);
      if (m) product.op.matrix = *m;  // else failed, and of no rows
      product.op.slots = tokens;
      product.op.x = operands;
      product.op.y = to;
      product.op.y_stride = weight.rows;
      product.op.output = output;
      product.op.relu2 = relu2;
      return product;
    };
    const auto routed = [&](const ExpertWeights& weights, const cuda::Experts& which, const cuda::Operands& operands,
                            const int32_t* rows, float* to, Output output) {
      MatMuls::One product{weights.format, {}};
      product.op.matrix = which.shape;
      product.op.expert_data = which.data;
      product.op.expert_scales = which.scales;
      product.op.expert_scale = which.scale;
      product.op.expert_row_scales = which.row_scales;
      product.op.tile_expert = sorted.tile_expert;
      product.op.tile_first = sorted.tile_first;
      product.op.tile_count = sorted.tile_count;
      product.op.tiles = tiles;
      product.op.token_tile = tile;
      product.op.slots = static_cast<int>(choices);
      product.op.x = operands;
      product.op.rows = rows;
      product.op.y = to;
      product.op.y_stride = weights.rows;
      product.op.output = output;
      product.op.relu2 = relu2;
      return product;
    };

    float* x = op.x + int64_t{first} * op.hidden_size;
    const cuda::Prepare normed = {.slots = tokens,
                                  .cols = op.hidden_size,
                                  .input = Input::normed,
                                  .x = x,
                                  .x_stride = op.hidden_size,
                                  .norm = op.norm,
                                  .eps = op.eps};
    if (latent) {
      cuda::prepare(std::array{prepared_for(op.latent_in.format, normed, x_operands)}, launch());
      MatMuls{{dense(op.latent_in, x_operands, z, Output::store)}}.multiply(launch());
    }
    // Before vectors are put in order: products look experts up while that still runs (matmul_stream.cuh).
    cuda::sort_choices(op.topk_ids + int64_t{first} * per_token, static_cast<int>(choices), per_token,
                       op.n_routed_experts, tile, tiles, sorted, launch());
    std::vector<cuda::Prepare> inputs;
    inputs.push_back(prepared_for(op.up.format, latent ? plain(z, tokens, in) : normed, z_operands));
    MatMuls widen{{routed(op.up, *up, z_operands, sorted.token, h, Output::activate)}};
    if (op.shared_up) {
      const cuda::OperandForm form = cuda::operand_form(op.shared_up.format),
                              experts = cuda::operand_form(op.up.format);
      const bool same = !latent && form.bf16 == experts.bf16 && form.order == experts.order;
      if (!same) inputs.push_back(prepared_for(op.shared_up.format, normed, x_operands));
      widen.all.push_back(dense(op.shared_up, same ? z_operands : x_operands, shared_h, Output::activate));
    }
    cuda::prepare(inputs, launch());
    widen.multiply(launch());

    inputs = {prepared_for(op.down.format, plain(h, choices, width), h_operands)};
    MatMuls narrow{{routed(op.down, *down, h_operands, nullptr, y, Output::store)}};
    if (op.shared_down) {
      inputs.push_back(prepared_for(op.shared_down.format, plain(shared_h, tokens, shared_rows), shared_operands));
      narrow.all.push_back(dense(op.shared_down, shared_operands, x, Output::add));
    }
    cuda::prepare(inputs, launch());
    narrow.multiply(launch());
    cuda::combine_experts(y, sorted.slot, op.topk_weights + int64_t{first} * per_token, tokens, per_token,
                          static_cast<int>(out), !latent, latent ? r : x, launch());
    if (latent) {
      cuda::prepare(std::array{prepared_for(op.latent_out.format, plain(r, tokens, out), x_operands)}, launch());
      MatMuls{{dense(op.latent_out, x_operands, x, Output::add)}}.multiply(launch());
    }
  }
}

}  // namespace proa
