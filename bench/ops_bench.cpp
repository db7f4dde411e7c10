// Speed of the matrix ops beside the limits of the moment, at the sizes of Nemotron-3-Nano. Rounds of probe and op
// alternate; of each the best counts, and on a shared machine only their ratio means anything. There the op `cached`
// tells kernels apart, with one thread: a projection that stays in the second-level cache, and is over before it is
// disturbed.
//   ops_bench [--target AVX3_DL] [--format Q4_0,BF16] [--tokens 1,256] [--op moe,in_proj] [--threads 2] [--rounds 8]
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "backends/backends.h"

namespace proa {
namespace {

double seconds() { return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count(); }

template <typename F>
double seconds_of(F&& f) {
  const double start = seconds();
  f();
  return seconds() - start;
}

std::vector<std::string> split(const std::string& text) {
  std::vector<std::string> parts;
  for (size_t begin = 0; begin <= text.size();) {
    const size_t end = std::min(text.find(',', begin), text.size());
    if (end > begin) parts.push_back(text.substr(begin, end - begin));
    begin = end + 1;
  }
  return parts;
}

// Random finite values of any format: a row of noise, encoded and repeated. NVFP4 as ModelOpt stores it is E2M1.
struct Matrix {
  Buffer bytes, scale_bytes;
  Weight weight;

  Matrix() = default;
  Matrix(Backend& backend, Format format, int64_t rows, int64_t cols) {
    std::vector<float> row(static_cast<size_t>(cols));
    std::mt19937 engine(1);
    for (float& value : row) value = static_cast<float>(engine() % 1000) * 1e-4f - 0.05f;
    bytes = repeated(backend, format, row, rows);
    weight = {
        .data = bytes.data(), .rows = rows, .cols = cols, .row_stride = row_bytes(format, cols), .format = format};
    if (format != Format::E2M1) return;
    scale_bytes = repeated(backend, Format::F8_E4M3, std::vector<float>(static_cast<size_t>(cols / 16), 0.5f), rows);
    weight.scales = {scale_bytes.data(), static_cast<size_t>(cols / 16), Format::F8_E4M3, 16};
  }
  double size() const { return static_cast<double>(bytes.bytes + scale_bytes.bytes); }

 private:
  static Buffer repeated(Backend& backend, Format format, const std::vector<float>& row, int64_t rows) {
    const size_t stride = row_bytes(format, static_cast<int64_t>(row.size()));
    Buffer buffer = *backend.allocate(stride * static_cast<size_t>(rows) + 64);
    std::vector<std::byte> encoded(stride);
    encode_row(format, row.data(), static_cast<int64_t>(row.size()), encoded.data());
    for (int64_t r = 0; r < rows; ++r)
      std::memcpy(buffer.data() + static_cast<size_t>(r) * stride, encoded.data(), stride);
    return buffer;
  }
};

// One op at the sizes of a model. Weights of several layers, so that none is in a cache.
struct Case {
  virtual ~Case() = default;
  virtual void run(Backend& backend, int tokens, int layer) = 0;
  virtual int layers() const = 0;
  virtual double bytes(int tokens) const = 0;       // of weights that a call reads
  virtual double operations(int tokens) const = 0;  // of a call
};

constexpr int kMostTokens = 2048;
constexpr int kNano = 2688;  // hidden_size of the 30B

struct Projection : Case {  // norm and one matrix
  std::vector<Matrix> weights;
  std::vector<float> x, norm, y;
  Projection(Backend& backend, Format format, int64_t rows, int64_t cols, int count)
      : x(static_cast<size_t>(kMostTokens * cols), 0.5f),
        norm(static_cast<size_t>(cols), 1.0f),
        y(static_cast<size_t>(kMostTokens * rows)) {
    for (int i = 0; i < count; ++i) weights.emplace_back(backend, format, rows, cols);
    for (size_t i = 0; i < x.size(); ++i) x[i] = static_cast<float>(i * 7919 % 1013) * 0.002f - 1;
  }
  int layers() const override { return static_cast<int>(weights.size()); }
  void run(Backend& backend, int tokens, int layer) override {
    const Weight& weight = weights[static_cast<size_t>(layer)].weight;
    const LinearOutput output{weight, y.data()};
    backend.norm_linear({tokens, static_cast<int>(weight.cols), x.data(), norm.data(), 1e-5f, {&output, 1}});
  }
  double bytes(int) const override { return weights[0].size(); }
  double operations(int tokens) const override {
    return 2.0 * static_cast<double>(weights[0].weight.rows * weights[0].weight.cols) * tokens;
  }
};

struct Feed : Case {  // mlp of the 4B
  std::vector<Matrix> up, down;
  std::vector<float> x, norm;
  Feed(Backend& backend, Format format) : x(static_cast<size_t>(kMostTokens) * 3136, 0.5f), norm(3136, 1.0f) {
    for (int i = 0; i < 3; ++i) {
      up.emplace_back(backend, format, 12544, 3136);
      down.emplace_back(backend, format, 3136, 12544);
    }
  }
  int layers() const override { return 3; }
  void run(Backend& backend, int tokens, int layer) override {
    for (size_t i = 0; i < static_cast<size_t>(tokens) * 3136; ++i)
      x[i] = static_cast<float>(i * 7919 % 1013) * 0.002f - 1;
    backend.mlp({tokens,
                 3136,
                 x.data(),
                 norm.data(),
                 1e-5f,
                 {},
                 up[static_cast<size_t>(layer)].weight,
                 down[static_cast<size_t>(layer)].weight,
                 Activation::relu2});
  }
  double bytes(int) const override { return up[0].size() + down[0].size(); }
  double operations(int tokens) const override { return 4.0 * 3136 * 12544 * tokens; }
};

struct Experts : Case {  // one layer of the 30B: 128 experts of 1856, six a token, one shared of 3712
  static constexpr int kExperts = 128, kChosen = 6;
  std::vector<Matrix> up, down;
  Matrix shared_up, shared_down;
  ExpertTables up_table, down_table;
  ExpertWeights up_weights, down_weights;
  std::vector<float> x, norm, topk_weights;
  std::vector<int32_t> topk_ids;
  Experts(Backend& backend, Format format)
      : shared_up(backend, format, 3712, kNano),
        shared_down(backend, format, kNano, 3712),
        x(static_cast<size_t>(kMostTokens) * kNano, 0.5f),
        norm(kNano, 1.0f),
        topk_weights(kMostTokens * kChosen, 0.2f),
        topk_ids(kMostTokens * kChosen) {
    std::vector<Weight> ups, downs;
    for (int e = 0; e < kExperts; ++e) {
      ups.push_back(up.emplace_back(backend, format, 1856, kNano).weight);
      downs.push_back(down.emplace_back(backend, format, kNano, 1856).weight);
    }
    up_weights = up_table.assign(ups);
    down_weights = down_table.assign(downs);
    std::mt19937 engine(3);
    std::vector<int32_t> all(kExperts);
    for (int e = 0; e < kExperts; ++e) all[static_cast<size_t>(e)] = e;
    for (int t = 0; t < kMostTokens; ++t) {
      std::shuffle(all.begin(), all.end(), engine);
      std::copy_n(all.begin(), kChosen, topk_ids.begin() + t * kChosen);
    }
  }
  int layers() const override { return 16; }  // other tokens: other experts
  size_t first(int tokens, int layer) const {
    return static_cast<size_t>(layer) * static_cast<size_t>(tokens) % static_cast<size_t>(kMostTokens - tokens + 1);
  }
  void run(Backend& backend, int tokens, int layer) override {
    for (size_t i = 0; i < static_cast<size_t>(tokens) * kNano; ++i)
      x[i] = static_cast<float>(i * 7919 % 1013) * 0.002f - 1;
    const size_t begin = first(tokens, layer) * kChosen;
    backend.moe({tokens,
                 kNano,
                 x.data(),
                 norm.data(),
                 1e-5f,
                 kExperts,
                 kChosen,
                 topk_ids.data() + begin,
                 topk_weights.data(),
                 up_weights,
                 down_weights,
                 {},
                 {},
                 shared_up.weight,
                 shared_down.weight,
                 Activation::relu2});
  }
  double bytes(int tokens) const override {  // a mean over layers
    double experts = 0;
    for (int layer = 0; layer < layers(); ++layer) {
      std::vector<bool> used(kExperts);
      for (int i = 0; i < tokens * kChosen; ++i) {
        used[static_cast<size_t>(topk_ids[first(tokens, layer) * kChosen + static_cast<size_t>(i)])] = true;
      }
      experts += static_cast<double>(std::count(used.begin(), used.end(), true)) / layers();
    }
    return shared_up.size() + shared_down.size() + experts * (up[0].size() + down[0].size());
  }
  double operations(int tokens) const override { return 4.0 * kNano * (kChosen * 1856 + 3712) * tokens; }
};

std::unique_ptr<Case> make(const std::string& op, Backend& backend, Format format) {
  if (op == "in_proj") return std::make_unique<Projection>(backend, format, 10304, kNano, 8);
  if (op == "head") return std::make_unique<Projection>(backend, format, 32768, kNano, 3);
  if (op == "cached") return std::make_unique<Projection>(backend, format, 256, kNano / 2, 1);
  if (op == "mlp") return std::make_unique<Feed>(backend, format);
  if (op == "moe") return std::make_unique<Experts>(backend, format);
  std::fprintf(stderr, "--op %s: in_proj, head, mlp, moe or cached\n", op.c_str());
  std::exit(2);
}

}  // namespace
}  // namespace proa

int main(int argc, char** argv) {
  using namespace proa;
  std::string target, formats = "Q4_0,Q8_0,BF16", tokens = "1,8,256", ops = "in_proj,moe", threads = "0", rounds = "8";
  for (int i = 1; i + 1 < argc; i += 2) {
    const std::string flag = argv[i];
    for (const auto& [name, value] : {std::pair{"--target", &target},
                                      {"--format", &formats},
                                      {"--tokens", &tokens},
                                      {"--op", &ops},
                                      {"--threads", &threads},
                                      {"--rounds", &rounds}}) {
      if (flag == name) *value = argv[i + 1];
    }
  }
  const auto made = make_backend("cpu", {.num_threads = std::atoi(threads.c_str()), .cpu_target = target});
  if (!made.ok()) {
    std::fprintf(stderr, "%s\n", made.error().message().c_str());
    return 1;
  }
  Backend& backend = **made;
  std::printf("%s\n%-8s %-8s %6s %9s %9s %7s %9s %7s\n", std::string(backend.description()).c_str(), "op", "format",
              "tokens", "ms", "GB/s", "read", "GFLOP/s", "probe");
  for (const std::string& op : split(ops)) {
    for (const std::string& name : split(formats)) {
      const auto format = format_from_name(name);
      if (!format) return std::fprintf(stderr, "--format %s\n", name.c_str()), 2;
      const auto each = make(op, backend, *format);
      const bool short_float = *format == Format::BF16 || *format == Format::F8_E4M3 || *format == Format::E2M1;
      const Probe arithmetic = short_float && backend.probe(Probe::bf16, 0.01) > 0 ? Probe::bf16 : Probe::int8;
      for (const std::string& count : split(tokens)) {
        const int n = std::min(std::atoi(count.c_str()), kMostTokens);
        double best = 1e9, read = 0, peak = 0;
        each->run(backend, n, 0);
        for (int round = 0, layer = 0; round < std::atoi(rounds.c_str()); ++round) {
          read = std::max(read, backend.probe(Probe::read, 0.01));
          peak = std::max(peak, backend.probe(arithmetic, 0.01));
          const double until = seconds() + 0.04;
          do {
            layer = (layer + 1) % each->layers();
            best = std::min(best, seconds_of([&] { each->run(backend, n, layer); }));
          } while (seconds() < until);
        }
        std::printf("%-8s %-8s %6d %9.3f %9.1f %6.1f%% %9.0f %6.1f%%\n", op.c_str(), name.c_str(), n, best * 1e3,
                    each->bytes(n) / best * 1e-9, 100 * each->bytes(n) / best / read, each->operations(n) / best * 1e-9,
                    100 * each->operations(n) / best / peak);
        std::fflush(stdout);
      }
    }
  }
}
