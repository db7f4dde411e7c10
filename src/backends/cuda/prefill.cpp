// Ops of many tokens whose products are those of gemm.h. What they need beside their arguments is laid out here.
#include <algorithm>

#include "backends/cuda/cuda_backend.h"
#include "backends/cuda/gemm.h"
#include "backends/cuda/kernels.h"
#include "backends/cuda/linear.h"

namespace proa {
namespace {

using cuda::Input;
using cuda::Output;

constexpr int kMaxTokens = 8192;  // of one product: bounds the scratch memory

uint8_t order_of(Format format) { return cuda::operand_form(format).order; }

// What vectors become for a matrix.
struct Form {
  cuda::Vectors kind = cuda::Vectors::halves;
  uint8_t order = 0;  // of halves
  float scale = 0;    // of E4M3
  bool operator==(const Form&) const = default;
};
Form form_of(Format format, float input_scale, cuda::Vectors kind) {
  if (kind == cuda::Vectors::halves) return {.order = order_of(format)};
  return {.kind = kind, .scale = kind == cuda::Vectors::e4m3 ? input_scale : 0};
}
cuda::Halves in_form(cuda::Halves vectors, const Form& form) {
  vectors.kind = form.kind;
  vectors.scale = form.scale;
  return vectors;
}

size_t powers_bytes(int64_t rows, int64_t cols) { return Arena::padded<int8_t>(rows * cuda::padded_cols(cols) / 32); }
size_t halves_bytes(int64_t rows, int64_t cols) {
  return Arena::padded<uint16_t>(rows * cuda::padded_cols(cols)) + Arena::padded<float>(rows);
}
cuda::Halves take_halves(Arena& arena, int64_t rows, int64_t cols) {
  cuda::Halves halves;
  halves.stride = cuda::padded_cols(cols);
  halves.x = reinterpret_cast<__half*>(arena.take<uint16_t>(rows * halves.stride));
  halves.unscale = arena.take<float>(rows);
  return halves;
}

}  // namespace

bool CudaBackend::quantises(Format weights, int num_tokens) const {
  const bool e4m3 = activations_ == Activations::fp8 && weights == Format::F8_E4M3;
  const bool bf16 = activations_ != Activations::exact && weights == Format::BF16;
  return (e4m3 || bf16) && num_tokens >= cuda::kManyTokens && cuda::gemm_tokens(weights, launch_) > 0;
}

double CudaBackend::product_rounding(Format weights, int num_tokens) const {
  if (num_tokens < cuda::kManyTokens || cuda::gemm_tokens(weights, launch_) == 0) return 0;
  if (quantises(weights, num_tokens)) return weights == Format::BF16 ? cuda::kBf16Rounding : cuda::kE4m3Rounding;
  return cuda::kGemmRounding;
}

bool CudaBackend::takes_many(int tokens, std::initializer_list<Weight> weights) const {
  return tokens >= cuda::kManyTokens && std::ranges::all_of(weights, [&](const Weight& weight) {
           return !weight || cuda::gemm_tokens(weight.format, launch_) > 0;
         });
}

cuda::Vectors CudaBackend::same_kind(const Weight& weight) const {
  if (activations_ == Activations::exact) return cuda::Vectors::halves;
  cuda::Matrix m;
  m.data = reinterpret_cast<const uint8_t*>(weight.data);
  m.stride = static_cast<int64_t>(weight.row_stride);
  m.cols = static_cast<int>(weight.cols);
  const cuda::Vectors kind = cuda::same_kind(m, weight.format);
  return kind == cuda::Vectors::e4m3 && activations_ != Activations::fp8 ? cuda::Vectors::halves : kind;
}

bool CudaBackend::products_of_many(const cuda::Prepare& input, std::span<const Product> products) {
  for (const Product& product : products) {
    if (!takes_many(input.slots, {product.weight})) return false;
  }
  const int most = std::min(kMaxTokens, input.slots);
  const size_t bytes = halves_bytes(most, input.cols);
  std::byte* memory = scratch(bytes);
  if (!memory) return true;
  Arena arena(memory, bytes);
  const cuda::Halves memory_of = take_halves(arena, most, input.cols);
  for (int first = 0; first < input.slots; first += kMaxTokens) {
    cuda::Prepare some = input;
    some.slots = std::min(kMaxTokens, input.slots - first);
    if (some.rows) {
      some.rows += first;
    } else {
      some.x += first * some.x_stride;
      if (some.z) some.z += first * some.z_stride;
    }
    std::optional<Form> prepared;
    for (const Product& product : products) {
      const Form form = form_of(product.weight.format, product.weight.input_scale, same_kind(product.weight));
      const cuda::Halves vectors = in_form(memory_of, form);
      if (prepared != form) cuda::prepare_halves(some, form.order, vectors, launch());
      prepared = form;
      multiply_many(product, some.slots, vectors, int64_t{first} * product.weight.rows);
    }
  }
  return true;
}

void CudaBackend::multiply_many(const Product& product, int slots, const cuda::Halves& x, int64_t offset,
                                const cuda::HalvesOut* halves) {
  const auto m = matrix(product.weight);
  if (!m) return;
  cuda::Gemm op;
  op.matrix = *m;
  op.slots = slots;
  op.x = x;
  op.y = product.y + offset;
  op.y_stride = m->rows;
  op.output = product.output;
  op.relu2 = product.relu2;
  op.gate = product.gate ? product.gate + offset : nullptr;
  if (halves) op.halves = *halves;
  if (x.kind != cuda::Vectors::halves) return cuda::multiply_same_kind(op, 0, launch());
  cuda::multiply_many(product.weight.format, op, 0, launch());
}

bool CudaBackend::moe_of_many(const Moe& op) {
  Weight up_shape, down_shape;
  up_shape.data = down_shape.data = reinterpret_cast<const std::byte*>(op.up.data);
  up_shape.format = op.up.format, down_shape.format = op.down.format;
  if (!takes_many(op.num_tokens, {up_shape, down_shape, op.latent_in, op.latent_out, op.shared_up, op.shared_down})) {
    return false;
  }
  const auto up = experts(op.up), down = experts(op.down);
  if (!up || !down) return true;
  const bool relu2 = op.activation == Activation::relu2, latent = static_cast<bool>(op.latent_in);
  const int per_token = op.num_experts_per_tok;
  const int64_t in = op.up.cols, width = op.up.rows, out = op.down.rows;
  const int64_t shared_rows = op.shared_up ? op.shared_up.rows : 0;
  const auto form_of_experts = [&](const ExpertWeights& weights) {
    Weight one;
    one.format = weights.format, one.cols = weights.cols, one.row_stride = weights.row_stride;
    return form_of(weights.format, weights.input_scale, same_kind(one));
  };
  const auto form_of_weight = [&](const Weight& weight) {
    return form_of(weight.format, weight.input_scale, same_kind(weight));
  };
  const Form up_form = form_of_experts(op.up), down_form = form_of_experts(op.down);
  const auto tokens_of = [&](Format format, const Form& form) {
    return form.kind == cuda::Vectors::halves ? cuda::gemm_tokens(format, launch_) : cuda::same_kind_tokens();
  };
  const int tile = std::min(tokens_of(op.up.format, up_form), tokens_of(op.down.format, down_form));
  const Form shared_up_form = form_of_weight(op.shared_up), shared_down_form = form_of_weight(op.shared_down);
  // Whether results can be written as the next product wants them: E4M3 where their scale is known beforehand.
  const auto writes = [&](Format format, const Form& from, const Form& to) {
    if (!relu2 || from.kind != to.kind) return false;
    if (to.kind == cuda::Vectors::halves) return cuda::writes_halves(format, launch_);
    return to.kind == cuda::Vectors::bf16 || to.scale > 0;
  };
  const bool direct = writes(op.up.format, up_form, down_form);
  const bool shared_direct = op.shared_up && writes(op.shared_up.format, shared_up_form, shared_down_form);
  for (int first = 0; first < op.num_tokens; first += kMaxTokens) {
    const int tokens = std::min(kMaxTokens, op.num_tokens - first);
    const int64_t choices = int64_t{tokens} * per_token;
    const int tiles = static_cast<int>(std::min<int64_t>(choices, choices / tile + op.n_routed_experts));
    const size_t bytes = halves_bytes(tokens, std::max<int64_t>({op.hidden_size, in, out, shared_rows})) +
                         halves_bytes(choices, width) + halves_bytes(shared_direct ? tokens : 0, shared_rows) +
                         powers_bytes(choices, width) + powers_bytes(tokens, shared_rows) +
                         2 * Arena::padded<int32_t>(choices) + 3 * Arena::padded<int32_t>(tiles) +
                         Arena::padded<float>(direct ? 0 : choices * width) + Arena::padded<float>(choices * out) +
                         Arena::padded<float>(tokens * in) + Arena::padded<float>(tokens * out) +
                         Arena::padded<float>(shared_direct ? 0 : tokens * shared_rows);
    std::byte* memory = scratch(bytes);
    if (!memory) return true;
    Arena arena(memory, bytes);
    const auto of_tokens = [&](int64_t cols) {
      Arena front(memory, bytes);
      return take_halves(front, tokens, cols);
    };
    arena.take<std::byte>(
        static_cast<int64_t>(halves_bytes(tokens, std::max<int64_t>({op.hidden_size, in, out, shared_rows}))));
    const cuda::HalvesOut h_halves = {in_form(take_halves(arena, choices, width), down_form), down_form.order,
                                      arena.take<int8_t>(choices * cuda::padded_cols(width) / 32)};
    const cuda::HalvesOut shared_halves = {
        in_form(take_halves(arena, shared_direct ? tokens : 0, shared_rows), shared_down_form), shared_down_form.order,
        arena.take<int8_t>(tokens * cuda::padded_cols(shared_rows) / 32)};
    cuda::SortedChoices sorted;
    sorted.token = arena.take<int32_t>(choices);
    sorted.slot = arena.take<int32_t>(choices);
    sorted.tile_expert = arena.take<int32_t>(tiles);
    sorted.tile_first = arena.take<int32_t>(tiles);
    sorted.tile_count = arena.take<int32_t>(tiles);
    float* h = arena.take<float>(direct ? 0 : choices * width);
    float* y = arena.take<float>(choices * out);
    float* z = arena.take<float>(tokens * in);
    float* r = arena.take<float>(tokens * out);
    float* shared_h = arena.take<float>(shared_direct ? 0 : tokens * shared_rows);

    float* x = op.x + int64_t{first} * op.hidden_size;
    const cuda::Prepare normed = {.slots = tokens,
                                  .cols = op.hidden_size,
                                  .input = Input::normed,
                                  .x = x,
                                  .x_stride = op.hidden_size,
                                  .norm = op.norm,
                                  .eps = op.eps};
    cuda::Halves vectors = of_tokens(op.hidden_size);
    std::optional<Form> prepared;
    const auto prepare = [&](const cuda::Prepare& input, const Form& form) {
      vectors = in_form(vectors, form);
      if (prepared != form) cuda::prepare_halves(input, form.order, vectors, launch());
      prepared = form;
    };
    if (latent) {
      prepare(normed, form_of_weight(op.latent_in));
      multiply_many({op.latent_in, z}, tokens, vectors, 0);
    }
    if (op.shared_up) {
      prepare(normed, shared_up_form);
      multiply_many({op.shared_up, shared_h, Output::activate, relu2}, tokens, vectors, 0,
                    shared_direct ? &shared_halves : nullptr);
      if (shared_direct && shared_down_form.kind == cuda::Vectors::halves)
        cuda::level_halves(shared_halves, tokens, launch());
    }
    if (latent) {
      vectors = of_tokens(in);
      prepared.reset();
      prepare({.slots = tokens, .cols = static_cast<int>(in), .x = z, .x_stride = in}, up_form);
    } else {
      prepare(normed, up_form);
    }
    cuda::sort_choices(op.topk_ids + int64_t{first} * per_token, static_cast<int>(choices), per_token,
                       op.n_routed_experts, tile, tiles, sorted, launch());
    const auto multiply = [&](const ExpertWeights& weights, const cuda::Experts& which, const cuda::Halves& halves,
                              const int32_t* rows, float* to, __nv_bfloat16* to_bf16, Output output,
                              const cuda::HalvesOut* to_halves) {
      cuda::Gemm product;
      product.matrix = which.shape;
      product.expert_data = which.data;
      product.expert_scales = which.scales;
      product.expert_scale = which.scale;
      product.expert_row_scales = which.row_scales;
      product.tile_expert = sorted.tile_expert;
      product.tile_first = sorted.tile_first;
      product.tile_count = sorted.tile_count;
      product.slots = static_cast<int>(choices);
      product.x = halves;
      product.rows = rows;
      product.y = to;
      product.y_bf16 = to_bf16;
      product.y_stride = weights.rows;
      product.output = output;
      product.relu2 = relu2;
      if (to_halves) product.halves = *to_halves;
      if (halves.kind != cuda::Vectors::halves) return cuda::multiply_same_kind(product, tiles, launch());
      cuda::multiply_many(weights.format, product, tiles, launch());
    };
    multiply(op.up, *up, vectors, sorted.token, h, nullptr, Output::activate, direct ? &h_halves : nullptr);
    if (direct && down_form.kind == cuda::Vectors::halves) {
      cuda::level_halves(h_halves, static_cast<int>(choices), launch());
    } else if (!direct) {
      cuda::prepare_halves(
          {.slots = static_cast<int>(choices), .cols = static_cast<int>(width), .x = h, .x_stride = width},
          h_halves.order, h_halves.to, launch());
    }
    // Where vectors are rounded anyway, so are experts' results: half the bytes.
    auto* y_bf16 = down_form.kind == cuda::Vectors::halves ? nullptr : reinterpret_cast<__nv_bfloat16*>(y);
    multiply(op.down, *down, h_halves.to, nullptr, y, y_bf16, Output::store, nullptr);
    const auto combine = [&](auto* from) {
      cuda::combine_experts(from, sorted.slot, op.topk_weights + int64_t{first} * per_token, tokens, per_token,
                            static_cast<int>(out), !latent, latent ? r : x, launch());
    };
    y_bf16 ? combine(y_bf16) : combine(y);
    const auto add_to_x = [&](const Weight& weight, const float* from) {
      const Form form = form_of_weight(weight);
      vectors = in_form(of_tokens(weight.cols), form);
      cuda::prepare_halves({.slots = tokens, .cols = static_cast<int>(weight.cols), .x = from, .x_stride = weight.cols},
                           form.order, vectors, launch());
      multiply_many({weight, x, Output::add}, tokens, vectors, 0);
    };
    if (latent) add_to_x(op.latent_out, r);
    if (shared_direct) {
      multiply_many({op.shared_down, x, Output::add}, tokens, shared_halves.to, 0);
    } else if (op.shared_down) {
      add_to_x(op.shared_down, shared_h);
    }
  }
  return true;
}

}  // namespace proa
