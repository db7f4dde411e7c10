// Speed of the matrix ops next to the read bandwidth of this moment, at the sizes of SmolLM2-135M (30 layers, hidden
// 576, intermediate 1536, vocabulary 49152). On a shared machine only the best of several rounds means anything, and
// only as a share of the probe taken between them.
//   ops_bench [cpu_target]
#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <random>
#include <string>
#include <vector>

#include "backends/backends.h"
#include "core/thread_pool.h"

namespace proa {
namespace {

constexpr int kLayers = 30;
constexpr int kHidden = 576;
constexpr int kIntermediate = 1536;
constexpr int kKeyValue = 192;
constexpr int kVocabulary = 49152;

double seconds() { return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count(); }

template <typename F>
double seconds_of(F&& f) {
  const double start = seconds();
  f();
  return seconds() - start;
}

template <typename F>
double best_of(int rounds, F&& f) {
  double best = 1e9;
  for (int i = 0; i < rounds; ++i) best = std::min(best, seconds_of(f));
  return best;
}

// Random finite values of any format: encode a row of noise and repeat it.
struct Matrix {
  Buffer bytes;
  Weight weight;

  Matrix(Backend& backend, Format format, int64_t rows, int64_t cols) {
    const size_t stride = row_bytes(format, cols);
    bytes = *backend.allocate(stride * static_cast<size_t>(rows));
    std::vector<float> row(static_cast<size_t>(cols));
    std::mt19937 engine(1);
    for (float& value : row) value = static_cast<float>(engine() % 1000) * 1e-4f - 0.05f;
    std::vector<std::byte> encoded(stride);
    encode_row(format, row.data(), cols, encoded.data());
    for (int64_t r = 0; r < rows; ++r)
      std::memcpy(bytes.data() + static_cast<size_t>(r) * stride, encoded.data(), stride);
    weight = {.data = bytes.data(), .rows = rows, .cols = cols, .row_stride = stride, .format = format};
  }
  double size() const { return static_cast<double>(bytes.bytes); }
};

struct Layer {
  Matrix q, k, v, o, gate, up, down;
  Layer(Backend& backend, Format format)
      : q(backend, format, kHidden, kHidden),
        k(backend, format, kKeyValue, kHidden),
        v(backend, format, kKeyValue, kHidden),
        o(backend, format, kHidden, kHidden),
        gate(backend, format, kIntermediate, kHidden),
        up(backend, format, kIntermediate, kHidden),
        down(backend, format, kHidden, kIntermediate) {}
  double size() const { return q.size() + k.size() + v.size() + o.size() + gate.size() + up.size() + down.size(); }
};

// GB/s that `threads` read from 256 MB.
double read_bandwidth(int threads) {
  static std::vector<uint64_t> memory(size_t{32} << 20, 1);
  ThreadPool pool(threads);
  std::vector<uint64_t> sums(static_cast<size_t>(threads) * 8);
  const double best = best_of(5, [&] {
    pool.parallel_for(static_cast<int64_t>(memory.size()), 4096, [&](int64_t begin, int64_t end, int thread) {
      uint64_t sum[8] = {};
      for (int64_t i = begin; i < end; i += 8) {
        for (int j = 0; j < 8; ++j) sum[j] += memory[static_cast<size_t>(i + j)];
      }
      for (int j = 0; j < 8; ++j) sums[static_cast<size_t>(thread) * 8] += sum[j];
    });
  });
  return static_cast<double>(memory.size()) * 8 / best * 1e-9;
}

void bench(const std::string& target, int threads) {
  const auto made = make_backend("cpu", {.num_threads = threads, .cpu_target = target});
  if (!made.ok()) {
    std::fprintf(stderr, "%s\n", made.error().message().c_str());
    std::exit(1);
  }
  Backend& backend = **made;
  std::printf("%s; reading 256 MB: %.1f GB/s\n", std::string(backend.description()).c_str(), read_bandwidth(threads));

  const std::vector<float> norm(kIntermediate, 1.0f);
  constexpr int kMaxTokens = 256;
  std::vector<float> x(kMaxTokens * kIntermediate, 0.5f);
  std::vector<float> y(kMaxTokens * kIntermediate);
  std::vector<float> key(kMaxTokens * kKeyValue), value(kMaxTokens * kKeyValue);
  std::vector<float> logits(kVocabulary);

  for (Format format : kFormats) {
    std::vector<Layer> layers;
    for (int i = 0; i < kLayers; ++i) layers.emplace_back(backend, format);
    const Matrix head(backend, format, kVocabulary, kHidden);
    // Seconds of all layers for so many tokens: the best of each op over all layers and rounds, summed, since on a busy
    // machine no whole pass is left in peace. Layers follow each other, so weights come from where they do in a model.
    const auto run_layers = [&](int tokens, int rounds) {
      double qkv_best = 1e9, out_best = 1e9, mlp_best = 1e9;
      for (int i = 0; i < rounds; ++i) {
        for (const Layer& layer : layers) {
          const LinearOutput qkv[] = {
              {layer.q.weight, y.data()}, {layer.k.weight, key.data()}, {layer.v.weight, value.data()}};
          qkv_best = std::min(qkv_best, seconds_of([&] {
                                backend.norm_linear({tokens, kHidden, x.data(), norm.data(), 1e-5f, qkv});
                              }));
          out_best = std::min(out_best, seconds_of([&] {
                                backend.linear_residual({tokens, x.data(), layer.o.weight, y.data()});
                              }));
          mlp_best = std::min(mlp_best, seconds_of([&] {
                                backend.mlp({tokens, kHidden, y.data(), norm.data(), 1e-5f, layer.gate.weight,
                                             layer.up.weight, layer.down.weight, Activation::silu});
                              }));
        }
      }
      return kLayers * (qkv_best + out_best + mlp_best);
    };
    double layer_bytes = 0;
    for (const Layer& layer : layers) layer_bytes += layer.size();
    const double parameters =
        kLayers * (2.0 * kHidden * kHidden + 2.0 * kKeyValue * kHidden + 3.0 * kHidden * kIntermediate);

    const double decode = run_layers(1, 20);
    const int32_t row = 0;
    const double last = best_of(20, [&] {
      backend.lm_head({1, kHidden, &row, x.data(), norm.data(), 1e-5f, head.weight, logits.data()});
    });
    const double prefill = run_layers(kMaxTokens, 1);
    const double few = run_layers(8, 5);
    std::printf(
        "%-5s layers %6.1f MB %6.2f ms %5.1f GB/s | lm_head %5.1f MB %5.2f ms %5.1f GB/s | 8 tokens %5.0f "
        "GFLOP/s | %d tokens %5.0f GFLOP/s\n",
        std::string(info(format).name).c_str(), layer_bytes * 1e-6, decode * 1e3, layer_bytes / decode * 1e-9,
        head.size() * 1e-6, last * 1e3, head.size() / last * 1e-9, 2 * parameters * 8 / few * 1e-9, kMaxTokens,
        2 * parameters * kMaxTokens / prefill * 1e-9);
    std::fflush(stdout);
  }
}

}  // namespace
}  // namespace proa

int main(int argc, char** argv) {
  for (int threads : {1, 2}) proa::bench(argc > 1 ? argv[1] : "", threads);
}
