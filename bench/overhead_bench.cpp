// What the bench adds to a step: decode of a model that does nothing but take one millisecond, measured as `proa bench`
// measures. All that is not the model counts: the engine's loop, the sampler, the reader of the replies, the clocks.
// And what a known history of 32,768 tokens takes before its next first token, beside its two steps.
//   overhead_bench [passes]
// Exit code 1 only where something is very wrong; the number is for people.
#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <string>
#include <vector>

#include "backends/backends.h"
#include "bench/measure.h"
#include "bench/statistics.h"
#include "tokenizer/vocabulary.h"

namespace proa {
namespace {

using Clock = std::chrono::steady_clock;

constexpr double kStepSeconds = 1e-3;
constexpr int kSteps = 256;

// Its logits name a token that hashes from what came before, so tokens and sequences differ as they must.
class PacedModel : public Model {
 public:
  explicit PacedModel(int vocab_size) {
    info_.architecture = "PacedForCausalLM";
    info_.vocab_size = vocab_size;
    info_.max_position_embeddings = 65536;
    cache_specs_ = {CacheSpec{.kind = CacheSpec::Kind::kv, .num_kv_heads = 1, .head_dim = 8},
                    CacheSpec{.kind = CacheSpec::Kind::state,
                              .conv_dim = 8,
                              .conv_kernel = 4,
                              .num_heads = 1,
                              .ssm_head_dim = 8,
                              .ssm_state_size = 8}};
    set_weights({{.name = "lm_head", .kind = WeightKind::lm_head, .parameters = vocab_size, .bytes = vocab_size}});
  }

  size_t workspace_bytes(int) const override { return 0; }

  void forward(Backend&, const Batch& batch, std::span<const LayerCache>, Arena&, float* logits) const override {
    const Clock::time_point begin = Clock::now();
    for (int row = 0; row < batch.num_logit_rows; ++row) {
      const int token = batch.logit_rows[row];
      const auto chosen = (static_cast<uint64_t>(batch.token_ids[token]) * 2654435761u +
                           static_cast<uint64_t>(batch.positions[token]) * 40503u + 977u) %
                          static_cast<uint64_t>(info_.vocab_size);
      float* values = logits + int64_t{row} * info_.vocab_size;
      std::fill_n(values, info_.vocab_size, 0.0f);
      values[chosen] = 1;
    }
    Clock::time_point end;
    do {
      end = Clock::now();
    } while (std::chrono::duration<double>(end - begin).count() < kStepSeconds);
    if (begins_.size() < begins_.capacity()) {
      begins_.push_back(begin);
      ends_.push_back(end);
    }
  }

  void reserve(size_t steps) {
    begins_.reserve(steps);
    ends_.reserve(steps);
  }

  // Seconds between the end of each step and the begin of the next; longer ones lie between two passes.
  std::vector<double> gaps() const {
    std::vector<double> result;
    for (size_t i = 1; i < begins_.size(); ++i) {
      const double gap = std::chrono::duration<double>(begins_[i] - ends_[i - 1]).count();
      if (gap < kStepSeconds) result.push_back(gap);
    }
    return result;
  }

 private:
  // Written by the engine's thread, read when it is gone.
  mutable std::vector<Clock::time_point> begins_, ends_;
};

Tokenizer make_tokenizer(int vocab_size) {
  std::vector<std::string> texts;
  for (int i = 0; i < vocab_size; ++i) texts.push_back("t" + std::to_string(i));
  Vocabulary vocabulary;
  vocabulary.tokens.assign(texts.begin(), texts.end());
  vocabulary.types.assign(texts.size(), TokenType::normal);
  vocabulary.eos_ids = {0};
  auto tokenizer = Tokenizer::create(vocabulary);
  if (!tokenizer.ok()) {
    std::fprintf(stderr, "%s\n", tokenizer.error().message().c_str());
    std::exit(1);
  }
  return *std::move(tokenizer);
}

// Part of a step of 1 ms that is not the model's, at the median step.
double overhead(int vocab_size, int passes) {
  const auto model = std::make_shared<PacedModel>(vocab_size);
  model->reserve(static_cast<size_t>((passes + 1) * (kSteps + 16)));
  const std::shared_ptr<Backend> backend = *make_backend("cpu", {.num_threads = 1});
  MeasureConfig config;
  config.num_iters = passes;
  config.probe_seconds = 0;
  const auto row = measure_decode(model, backend, make_tokenizer(vocab_size), config, 1, 0, kSteps);
  if (!row.ok()) {
    std::fprintf(stderr, "%s\n", row.error().message().c_str());
    std::exit(1);
  }
  const std::vector<double> gaps = model->gaps();
  const double gap = median(gaps);
  const double mean_step = median(row->seconds) / kSteps;
  std::printf(
      "vocabulary %6d: %6.2f us between steps = %.2f %% of 1 ms (median of %zu steps); a step by the bench %.4f ms\n",
      vocab_size, gap * 1e6, gap / kStepSeconds * 100, gaps.size(), mean_step * 1e3);
  return gap / kStepSeconds;
}

// Of each turn, what is not one of its steps.
void known_history(int num_tokens, int passes) {
  constexpr int kSteps = 2;  // to the end of the turn, where a snapshot is due, and to the prompt's end
  const auto model = std::make_shared<PacedModel>(131072);
  const std::shared_ptr<Backend> backend = *make_backend("cpu", {.num_threads = 1});
  MeasureConfig config;
  config.num_iters = passes;
  config.probe_seconds = 0;
  config.max_num_batched_tokens = 8192;
  const auto rows = measure_history(model, backend, make_tokenizer(131072), config, num_tokens);
  if (!rows.ok()) {
    std::fprintf(stderr, "%s\n", rows.error().message().c_str());
    std::exit(1);
  }
  for (const BenchRow& row : *rows) {
    if (row.depth == 0) continue;
    std::printf("known history of %d tokens, %s: %.2f ms beside %d steps\n", num_tokens, row.part.c_str(),
                (median(row.seconds) - kSteps * kStepSeconds) * 1e3, kSteps);
  }
}

}  // namespace
}  // namespace proa

int main(int argc, char** argv) {
  const int passes = argc > 1 ? std::max(1, std::atoi(argv[1])) : 5;
  const double small = proa::overhead(1024, passes);
  proa::overhead(131072, passes);  // with the sampler's pass over the logits of Nemotron-3
  proa::known_history(32768, passes);
  return small < 0.05 ? 0 : 1;
}
