// Products of activations that became E4M3 or BF16 (Backend::quantises), against a reference that rounds the same: what
// is left are sums. The tables of the other ops hold such a backend to Backend::product_rounding.
#include <cmath>

#include "ops/reference.h"
#include "ops/testing.h"

namespace proa::testing {
namespace {

// x as E4M3 of each token's vector by `scale`, or where that is 0 by the one that makes its largest value 448.
std::vector<double> quantised(std::vector<double> x, int64_t tokens, float scale, Format format = Format::F8_E4M3) {
  const int64_t cols = tokens == 0 ? 0 : static_cast<int64_t>(x.size()) / tokens;
  std::vector<float> values(static_cast<size_t>(cols));
  std::vector<std::byte> bytes(row_bytes(format, cols));
  const bool e4m3 = format == Format::F8_E4M3;
  for (int64_t t = 0; t < tokens; ++t) {
    double* row = x.data() + t * cols;
    double largest = 0;
    for (int64_t c = 0; c < cols; ++c) largest = std::max(largest, std::abs(row[c]));
    const double by = !e4m3 ? 1 : scale > 0 ? scale : std::max(largest, 0x1p-100) / 448;
    for (int64_t c = 0; c < cols; ++c) {
      values[static_cast<size_t>(c)] = static_cast<float>(e4m3 ? std::clamp(row[c] / by, -448.0, 448.0) : row[c]);
    }
    encode_row(format, values.data(), cols, bytes.data());
    decode_row(format, bytes.data(), cols, values.data());
    for (int64_t c = 0; c < cols; ++c) row[c] = values[static_cast<size_t>(c)] * by;
  }
  return x;
}

// What routed experts give becomes BF16 before it is weighted.
std::vector<double> as_bf16(const std::vector<double>& y) {
  std::vector<float> values(y.begin(), y.end());
  std::vector<std::byte> bytes(2 * values.size());
  const auto count = static_cast<int64_t>(values.size());
  encode_row(Format::BF16, values.data(), count, bytes.data());
  decode_row(Format::BF16, bytes.data(), count, values.data());
  return {values.begin(), values.end()};
}

// Each 32 columns of E4M3 lose up to 2^-13 of the sum so far (gemm_same_kind.cu). A value whose F32 rounding is n of
// itself, and that lies so near the middle of two steps, goes the other way. Steps are at most u of a value, so that is
// 2 n / u of all values, each then off by u: sqrt(2 n u) in the root of the mean of squares.
double bound(int64_t terms, Format format) {
  const bool e4m3 = format == Format::F8_E4M3;
  const double n = 2 * sum_bound(terms), u = e4m3 ? 0x1p-3 : 0x1p-7;
  return (e4m3 ? 0x1p-13 * static_cast<double>((terms + 31) / 32) : 0) + std::sqrt(2 * n * u) + n;
}

template <typename F>
void on_quantising_backends(const std::string& name, Format format, int num_tokens, F&& f) {
  on_all_backends(name, [&](Backend& backend) {
    if (backend.quantises(format, num_tokens)) f(backend);
  });
}

struct ProductCase {
  std::string name;
  int num_tokens = 150, cols = 160, rows = 280;
  float input_scale = 0.02f;
  float scale = 1;  // of x
  Format format = Format::F8_E4M3;
};
const ProductCase kProductCases[] = {
    {.name = "base"},
    {.name = "a scale for each token", .input_scale = 0},
    {.name = "values beyond 448", .input_scale = 0.004f},
    {.name = "large x", .input_scale = 0, .scale = 1e6f},
    {.name = "tiny x", .input_scale = 0, .scale = 1e-6f},
    {.name = "whole tiles", .num_tokens = 256, .cols = 256, .rows = 512},
    {.name = "a tile and one", .num_tokens = 129, .cols = 144, .rows = 257},
    {.name = "more than half a tile", .num_tokens = 200, .rows = 130},
    {.name = "one row", .rows = 1},
    {.name = "sixteen columns", .cols = 16},
    {.name = "more stages than the ring", .cols = 1040, .rows = 65},
    {.name = "columns of a model", .num_tokens = 130, .cols = 2688, .rows = 40},
    {.name = "BF16", .format = Format::BF16},
    {.name = "BF16, eight columns", .cols = 8, .format = Format::BF16},
    {.name = "BF16, half a tile, a part of a stage",
     .num_tokens = 192,
     .cols = 168,
     .rows = 257,
     .format = Format::BF16},
    {.name = "BF16, more stages than the ring", .cols = 1032, .rows = 65, .format = Format::BF16},
};

TEST(QuantisedActivations, NormLinear) {
  for (const ProductCase& c : kProductCases) {
    Random random(21);
    const Floats x = random.normals(int64_t{c.num_tokens} * c.cols, c.scale), norm = random.normals(c.cols);
    TestWeight weight(random, c.format, c.rows, c.cols);
    weight.weight.input_scale = c.input_scale;
    const auto u = quantised(reference::rms_norm(x.data(), norm.data(), 0, c.num_tokens, c.cols), c.num_tokens,
                             c.input_scale, c.format);
    const auto sums = reference::linear(weight.weight, u, c.num_tokens);
    const std::vector<float> expected(sums.begin(), sums.end());
    on_quantising_backends(c.name, c.format, c.num_tokens, [&](Backend& backend) {
      Floats y = poisoned(static_cast<int64_t>(expected.size()));
      const LinearOutput output{weight.weight, y.data()};
      backend.norm_linear({.num_tokens = c.num_tokens,
                           .hidden_size = c.cols,
                           .x = x.data(),
                           .norm = norm.data(),
                           .eps = 0,
                           .outputs = {&output, 1}});
      EXPECT_LE(relative_error(y, expected), bound(c.cols, c.format));
    });
  }
}

TEST(QuantisedActivations, LinearResidual) {
  for (const ProductCase& c : kProductCases) {
    Random random(22);
    const Floats x = random.normals(int64_t{c.num_tokens} * c.cols, c.scale);
    TestWeight weight(random, c.format, c.rows, c.cols);
    weight.weight.input_scale = c.input_scale * c.scale;
    const auto u = quantised({x.begin(), x.end()}, c.num_tokens, weight.weight.input_scale, c.format);
    const auto sums = reference::linear(weight.weight, u, c.num_tokens);
    const std::vector<float> expected(sums.begin(), sums.end());
    on_quantising_backends(c.name, c.format, c.num_tokens, [&](Backend& backend) {
      Floats residual(static_cast<int64_t>(expected.size()));  // zeros
      backend.linear_residual(
          {.num_tokens = c.num_tokens, .x = x.data(), .weight = weight.weight, .residual = residual.data()});
      EXPECT_LE(relative_error(residual, expected), bound(c.cols, c.format));
    });
  }
}

// Small integers, whose sums are exact in any order and in 14 bits: whatever is in a wrong place shows.
struct Integers {
  std::vector<Array<std::byte>> memory;
  Random random{23};

  Weight weight(Format format, int64_t rows, int64_t cols, float input_scale) {
    std::vector<float> values(static_cast<size_t>(cols));
    const size_t stride = row_bytes(format, cols);
    memory.emplace_back(rows * static_cast<int64_t>(stride));
    for (int64_t r = 0; r < rows; ++r) {
      // Few of them, so that sums stay small.
      for (float& value : values) value = random.below(8) == 0 ? static_cast<float>(random.below(3) - 1) : 0.0f;
      encode_row(format, values.data(), cols, memory.back().data() + r * static_cast<int64_t>(stride));
    }
    Weight weight = {memory.back().data(), rows, cols, stride, format};
    weight.input_scale = input_scale;
    return weight;
  }
};

struct MoeIntegers {
  std::string name;
  int num_tokens = 160, hidden = 64, width = 48, shared = 96, n_experts = 8, per_token = 2;
  float input_scale = 1;
  Format format = Format::F8_E4M3;
};

TEST(QuantisedActivations, MoeOfIntegers) {
  const MoeIntegers cases[] = {
      {.name = "base"},
      {.name = "no shared expert", .shared = 0},
      {.name = "tails of rows and columns", .num_tokens = 300, .hidden = 272, .width = 304, .shared = 336},
      {.name = "an expert has more than a tile", .num_tokens = 290, .n_experts = 2},
      {.name = "few tokens for each", .n_experts = 64, .per_token = 6},
      {.name = "scale of two", .input_scale = 2},
      {.name = "BF16", .format = Format::BF16},
      {.name = "BF16, tails", .num_tokens = 300, .hidden = 264, .width = 312, .shared = 328, .format = Format::BF16},
  };
  for (const MoeIntegers& c : cases) {
    Integers make;
    std::vector<Weight> ups, downs;
    for (int e = 0; e < c.n_experts; ++e) {
      ups.push_back(make.weight(c.format, c.width, c.hidden, 1));
      downs.push_back(make.weight(c.format, c.hidden, c.width, c.input_scale));
    }
    ExpertTables up_tables, down_tables;
    const ExpertWeights up = up_tables.assign(ups), down = down_tables.assign(downs);
    Weight shared_up, shared_down;
    if (c.shared > 0) shared_up = make.weight(c.format, c.shared, c.hidden, 1);
    if (c.shared > 0) shared_down = make.weight(c.format, c.hidden, c.shared, c.input_scale);
    Floats x(int64_t{c.num_tokens} * c.hidden), norm(c.hidden);
    for (float& value : x) value = make.random.below(2) == 0 ? 1.0f : -1.0f;
    for (float& value : norm) value = static_cast<float>(1 + make.random.below(2));
    Array<int32_t> ids(int64_t{c.num_tokens} * c.per_token);
    Floats weights(ids.size());
    for (int t = 0; t < c.num_tokens; ++t) {
      const int first = make.random.below(c.n_experts);
      for (int k = 0; k < c.per_token; ++k) {
        ids[t * c.per_token + k] = (first + k) % c.n_experts;
        weights[t * c.per_token + k] = k % 2 == 0 ? 0.5f : 0.25f;
      }
    }

    Floats expected = x;
    const auto expert = [&](const Weight& widen, const Weight& narrow, const std::vector<double>& u) {
      auto h = reference::linear(widen, u, 1);
      for (double& value : h) value = value > 0 ? value * value : 0;
      return reference::linear(narrow, quantised(h, 1, narrow.input_scale, c.format), 1);
    };
    for (int t = 0; t < c.num_tokens; ++t) {
      float* row = expected.data() + int64_t{t} * c.hidden;
      const auto u = reference::rms_norm(row, norm.data(), 0, 1, c.hidden);
      std::vector<double> sum(static_cast<size_t>(c.hidden));
      const auto add = [&](const std::vector<double>& y, double weight) {
        for (size_t i = 0; i < sum.size(); ++i) sum[i] += weight * y[i];
      };
      for (int k = 0; k < c.per_token; ++k) {
        const int64_t at = t * c.per_token + k;
        add(as_bf16(expert(up.expert(ids[at]), down.expert(ids[at]), u)), weights[at]);
      }
      if (c.shared > 0) add(expert(shared_up, shared_down, u), 1);
      for (size_t i = 0; i < sum.size(); ++i) row[i] += static_cast<float>(sum[i]);
    }
    on_quantising_backends(c.name, c.format, c.num_tokens, [&](Backend& backend) {
      Floats out = x;
      backend.moe({.num_tokens = c.num_tokens,
                   .hidden_size = c.hidden,
                   .x = out.data(),
                   .norm = norm.data(),
                   .eps = 0,
                   .n_routed_experts = c.n_experts,
                   .num_experts_per_tok = c.per_token,
                   .topk_ids = ids.data(),
                   .topk_weights = weights.data(),
                   .up = up,
                   .down = down,
                   .latent_in = {},
                   .latent_out = {},
                   .shared_up = shared_up,
                   .shared_down = shared_down,
                   .activation = Activation::relu2});
      int64_t wrong = 0;
      for (int64_t i = 0; i < out.size(); ++i) wrong += out[i] != expected[i];
      EXPECT_EQ(wrong, 0) << "of " << out.size() << ", off " << relative_error(out, expected);
    });
  }
}

}  // namespace
}  // namespace proa::testing
