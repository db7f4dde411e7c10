// A device may round what it multiplies where many tokens come at once (Backend::product_rounding). How far logits of a
// prompt are then from those of the same prompt in chunks too small for it, over all layers of a model.
#include <gtest/gtest.h>

#include <cmath>
#include <random>

#include "engine/teacher_forcing.h"
#include "golden.h"
#include "models/dummy.h"
#include "models/family.h"

namespace proa::golden {
namespace {

// Mean over rows of KL(b || a) of the tokens' probabilities.
double divergence(std::span<const float> a, std::span<const float> b, size_t vocab_size) {
  double sum = 0;
  for (size_t row = 0; row < b.size(); row += vocab_size) {
    double total_a = 0, total_b = 0;
    const double most_a = *std::max_element(a.begin() + row, a.begin() + row + vocab_size);
    const double most_b = *std::max_element(b.begin() + row, b.begin() + row + vocab_size);
    for (size_t i = row; i < row + vocab_size; ++i) {
      total_a += std::exp(a[i] - most_a);
      total_b += std::exp(b[i] - most_b);
    }
    for (size_t i = row; i < row + vocab_size; ++i) {
      const double log_a = a[i] - most_a - std::log(total_a), log_b = b[i] - most_b - std::log(total_b);
      sum += std::exp(log_b) * (log_b - log_a);
    }
  }
  return sum / static_cast<double>(b.size() / vocab_size);
}

struct Row {
  const char *model, *precision;
  double most;          // logits off, of their RMS
  double most_rounded;  // the same where activations become BF16 or E4M3 (Backend::quantises)
};

// The roundings of some hundred products add up as a random walk. A router sees them as well: where two experts all but
// tie it takes the other one, which is most of what a model with experts shows. Wrong products are off by 1.4.
constexpr Row kRows[] = {
    {"Nemotron-H-8B-Base-8K", "q4_0", 0.01, 0.01},         {"Nemotron-H-8B-Base-8K", "bf16", 0.01, 0.05},
    {"NVIDIA-Nemotron-3-Nano-30B-A3B", "q4_0", 0.1, 0.1},  {"NVIDIA-Nemotron-3-Nano-30B-A3B", "q8_0", 0.1, 0.1},
    {"NVIDIA-Nemotron-3-Nano-30B-A3B", "bf16", 0.1, 0.4},  {"NVIDIA-Nemotron-3-Nano-30B-A3B", "fp8", 0.1, 0.7},
    {"NVIDIA-Nemotron-3-Nano-30B-A3B", "nvfp4", 0.1, 0.4},
};

TEST(PrefillDrift, ManyTokensAtOnceAreNearlyWhatFewAre) {
  for (const auto& backend : all_backends()) {
    if (backend->product_rounding(Format::Q4_0, 1 << 20) == 0) continue;
    for (const Row& row : kRows) {
      const auto config = nlohmann::ordered_json::parse(must(find_known_model(row.model)).model->config);
      const auto dummy =
          must(make_dummy("dummy", must(scale_config(config, 0, 4)), *must(find_precision(row.precision))));
      const auto checkpoint = std::make_shared<const Checkpoint>(must(Checkpoint::dummy(dummy)));
      const auto model = must(open_model(checkpoint, *backend));
      const auto vocab_size = static_cast<uint32_t>(model->info().vocab_size);
      std::mt19937 random(1);
      std::vector<int32_t> tokens(600), rows;
      for (int32_t& token : tokens) token = static_cast<int32_t>(random() % vocab_size);
      for (int32_t at = 100; at < 600; at += 50) rows.push_back(at);
      ForcingOptions options{.kv_cache_dtype = Format::BF16};
      const auto many = must(forced_logits(*model, *backend, tokens, rows, options));
      options.chunks = {60};
      const auto few = must(forced_logits(*model, *backend, tokens, rows, options));
      const double off = deviation(many, few);
      EXPECT_LE(off, backend->quantises(Format::BF16, 1 << 20) ? row.most_rounded : row.most)
          << row.model << " " << row.precision << ", " << backend->description();
      std::printf("  %-30s %-5s on %s: logits off by %.1e of their RMS, KL %.1e\n", row.model, row.precision,
                  std::string(backend->description()).c_str(), off, divergence(many, few, vocab_size));
    }
  }
}

}  // namespace
}  // namespace proa::golden
