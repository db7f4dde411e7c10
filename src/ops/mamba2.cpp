// The recurrence of the header, written as it is read: one token after the other, in double precision.
#include "ops/mamba2.h"

#include <algorithm>
#include <cmath>
#include <vector>

namespace proa {
namespace {

struct State {
  std::vector<double> conv;  // [conv_kernel - 1, conv_dim]
  std::vector<double> ssm;   // [num_heads, head_dim, ssm_state_size]
};

size_t conv_size(const Mamba2Shape& shape) { return static_cast<size_t>(shape.conv_kernel - 1) * shape.conv_dim(); }
size_t ssm_size(const Mamba2Shape& shape) { return static_cast<size_t>(shape.inner()) * shape.ssm_state_size; }

State load(const Mamba2Shape& shape, const StateCacheView& cache, int32_t slot) {
  State state{std::vector<double>(conv_size(shape), 0), std::vector<double>(ssm_size(shape), 0)};
  if (slot >= 0) {
    std::copy_n(cache.conv + slot * conv_size(shape), conv_size(shape), state.conv.begin());
    std::copy_n(cache.ssm + slot * ssm_size(shape), ssm_size(shape), state.ssm.begin());
  }
  return state;
}

void store(const Mamba2Shape& shape, const State& state, const StateCacheView& cache, int32_t slot) {
  if (slot < 0) return;
  std::transform(state.conv.begin(), state.conv.end(), cache.conv + slot * conv_size(shape),
                 [](double value) { return static_cast<float>(value); });
  std::transform(state.ssm.begin(), state.ssm.end(), cache.ssm + slot * ssm_size(shape),
                 [](double value) { return static_cast<float>(value); });
}

double softplus(double v) { return v > 20 ? v : std::log1p(std::exp(v)); }
double silu(double v) { return v / (1 + std::exp(-v)); }

// One token: moves `state` on and writes y [inner].
void step(const Mamba2Shape& shape, const Mamba2Weights& weights, const TimeStepLimit& limit, const float* projected,
          State& state, float* y) {
  const int conv_dim = shape.conv_dim();
  const int kept = shape.conv_kernel - 1;
  const int N = shape.ssm_state_size;
  const float* xbc = projected + shape.inner();
  const float* dt = xbc + conv_dim;

  std::vector<double> activated(conv_dim);
  for (int c = 0; c < conv_dim; ++c) {
    double sum = weights.conv_bias ? weights.conv_bias[c] : 0;
    for (int j = 0; j < kept; ++j) sum += state.conv[j * conv_dim + c] * weights.conv_weight[c * shape.conv_kernel + j];
    sum += double{xbc[c]} * weights.conv_weight[c * shape.conv_kernel + kept];
    activated[c] = silu(sum);
  }
  for (int j = 0; j < kept; ++j) {
    for (int c = 0; c < conv_dim; ++c) {
      state.conv[j * conv_dim + c] = j + 1 < kept ? state.conv[(j + 1) * conv_dim + c] : xbc[c];
    }
  }

  const double* x = activated.data();                // [num_heads, head_dim]
  const double* B = x + shape.inner();               // [n_groups, N]
  const double* C = B + size_t(shape.n_groups) * N;  // [n_groups, N]
  for (int h = 0; h < shape.num_heads; ++h) {
    const int g = h / (shape.num_heads / shape.n_groups);
    const double delta = std::clamp<double>(softplus(double{dt[h]} + weights.dt_bias[h]), limit.min, limit.max);
    const double decay = std::exp(delta * weights.a[h]);
    for (int p = 0; p < shape.head_dim; ++p) {
      const int row = h * shape.head_dim + p;
      double* S = state.ssm.data() + static_cast<size_t>(row) * N;
      double sum = weights.d[h] * x[row];
      for (int n = 0; n < N; ++n) {
        S[n] = decay * S[n] + delta * x[row] * B[g * N + n];
        sum += S[n] * C[g * N + n];
      }
      y[row] = static_cast<float>(sum);
    }
  }
}

}  // namespace

void conv_ssm_step_reference(const ConvSsmStep& op) {
  for (int s = 0; s < op.num_seqs; ++s) {
    State state = load(op.shape, op.cache, op.state_slot_in[s]);
    for (int t = 0; t < op.tokens_per_seq; ++t) {
      const int64_t row = int64_t{s} * op.tokens_per_seq + t;
      step(op.shape, op.weights, op.limit, op.projected + row * op.shape.projected(), state,
           op.y + row * op.shape.inner());
      store(op.shape, state, op.cache, op.state_slot_out[row]);
    }
  }
}

void ssd_chunk_reference(const SsdChunk& op) {
  for (int s = 0; s < op.num_seqs; ++s) {
    State state = load(op.shape, op.cache, op.state_slot_in[s]);
    for (int t = op.query_start[s]; t < op.query_start[s + 1]; ++t) {
      const int64_t row = t - op.query_start[0];
      step(op.shape, op.weights, op.limit, op.projected + row * op.shape.projected(), state,
           op.y + row * op.shape.inner());
    }
    store(op.shape, state, op.cache, op.state_slot_out[s]);
  }
}

}  // namespace proa
