// A model of dummy weights behaves like a trained one where it costs time: experts are hit as evenly as if each token
// drew them, sequences differ, logits are neither flat nor certain, and the kernels agree with the reference. Here at
// an eighth of the width of Nemotron-3-Nano; PROA_DUMMY_SCALE=1 PROA_DUMMY_PRECISION=q4_0 runs the true one (20 GB of
// memory).
#include <gtest/gtest.h>

#include <cmath>
#include <cstdlib>
#include <set>

#include "engine/model_runner.h"
#include "golden.h"
#include "models/dummy.h"
#include "models/family.h"
#include "models/step_cost.h"

namespace proa::golden {
namespace {

struct Opened {
  std::unique_ptr<Backend> backend;
  std::shared_ptr<const Checkpoint> checkpoint;
  std::unique_ptr<Model> model;
};

Opened open(const std::string& name, int64_t layers, int64_t scale, const std::string& precision,
            const char* device = "cpu") {
  const auto config = nlohmann::ordered_json::parse(must(find_known_model(name)).model->config);
  const auto dummy =
      must(make_dummy(name, must(scale_config(config, layers, scale)), *must(find_precision(precision))));
  Opened opened;
  opened.backend = must(make_backend(device, {}));
  opened.checkpoint = std::make_shared<const Checkpoint>(must(Checkpoint::dummy(dummy)));
  opened.model = must(open_model(opened.checkpoint, *opened.backend));
  return opened;
}

constexpr const char* kNano = "NVIDIA-Nemotron-3-Nano-30B-A3B";

int64_t scale() {
  const char* text = std::getenv("PROA_DUMMY_SCALE");
  return text ? std::atoi(text) : 8;
}
std::string precision() {
  const char* text = std::getenv("PROA_DUMMY_PRECISION");
  return text ? text : "q4_0";
}

// Logits of one row: entropy in nats, the best token, deviation.
struct Row {
  double entropy = 0, deviation = 0;
  int32_t best = 0;
};
Row describe(const float* logits, int vocab_size) {
  Row row;
  row.best = static_cast<int32_t>(std::max_element(logits, logits + vocab_size) - logits);
  double sum = 0, mean = 0, square = 0;
  for (int i = 0; i < vocab_size; ++i) {
    EXPECT_TRUE(std::isfinite(logits[i]));
    sum += std::exp(double{logits[i]} - logits[row.best]);
    mean += logits[i] / vocab_size;
    square += double{logits[i]} * logits[i] / vocab_size;
  }
  for (int i = 0; i < vocab_size; ++i) {
    const double p = std::exp(double{logits[i]} - logits[row.best]) / sum;
    if (p > 0) row.entropy -= p * std::log(p);
  }
  row.deviation = std::sqrt(square - mean * mean);
  return row;
}

// Greedy decoding of `batch` sequences that begin with one token each.
class Decoding {
 public:
  Decoding(const Opened& opened, int batch) : opened_(opened), batch_(batch) {
    RunnerLimits limits;
    limits.max_num_seqs = limits.max_num_batched_tokens = limits.max_num_logit_rows = batch;
    limits.num_blocks = limits.num_slots = batch;
    limits.count_experts = true;
    runner_ = must(ModelRunner::create(*opened.model, *opened.backend, limits));
    for (int i = 0; i < batch; ++i) tokens_.push_back(1300 + 17 * i);
  }

  void step() {
    runner_->begin();
    for (int i = 0; i < batch_; ++i) {
      const int32_t block = i;
      runner_->add({.token_ids = std::span(tokens_).subspan(static_cast<size_t>(i), 1),
                    .num_computed = done_,
                    .blocks = std::span(&block, 1),
                    .state_slot = i,
                    .fresh_state = done_ == 0,
                    .decode = true});
      runner_->want_logits(0, nullptr);
    }
    const auto status = runner_->forward();
    ASSERT_TRUE(status.ok());
    const float* logits = must(runner_->logits());
    rows.clear();
    for (int i = 0; i < batch_; ++i) {
      const int vocab = opened_.model->info().vocab_size;
      rows.push_back(describe(logits + int64_t{i} * vocab, vocab));
      tokens_[static_cast<size_t>(i)] = rows.back().best;
    }
    ++done_;
    const auto counts = runner_->expert_tokens();
    const double layers = std::max(1, opened_.model->info().num_moe_layers);
    distinct =
        static_cast<double>(std::count_if(counts.begin(), counts.end(), [](int32_t n) { return n > 0; })) / layers;
  }

  std::vector<Row> rows;
  double distinct = 0;  // experts of a layer that the last step touched, mean

 private:
  const Opened& opened_;
  int batch_;
  int done_ = 0;
  std::unique_ptr<ModelRunner> runner_;
  std::vector<int32_t> tokens_;
};

void check_behaviour(const Opened& opened, std::initializer_list<int> batches) {
  for (const int batch : batches) {
    Decoding decoding(opened, batch);
    double distinct = 0, entropy = 0, deviation = 0;
    std::vector<std::set<int32_t>> tokens(static_cast<size_t>(batch));
    std::set<int32_t> last;
    constexpr int kSteps = 4;
    for (int i = 0; i < kSteps; ++i) {
      ASSERT_NO_FATAL_FAILURE(decoding.step());
      distinct += decoding.distinct / kSteps;
      last.clear();
      for (int s = 0; s < batch; ++s) {
        const Row& row = decoding.rows[static_cast<size_t>(s)];
        last.insert(row.best);
        tokens[static_cast<size_t>(s)].insert(row.best);
        entropy += row.entropy / (kSteps * batch);
        deviation += row.deviation / (kSteps * batch);
      }
    }
    const double expected = expected_distinct_experts(*opened.model, batch);
    std::printf("batch %2d: %.1f experts of %.1f, entropy %.2f nats, logits of deviation %.2f\n", batch, distinct,
                expected, entropy, deviation);
    if (expected > 0) {
      EXPECT_NEAR(distinct / expected, 1, 0.1) << batch;
    }
    EXPECT_GT(static_cast<double>(last.size()), 0.9 * batch) << batch;
    for (const auto& of_sequence : tokens) EXPECT_GT(of_sequence.size(), 2u);
    EXPECT_NEAR(deviation, 3, 0.5);
    EXPECT_GT(entropy, 3);
    EXPECT_LT(entropy, std::log(opened.model->info().vocab_size) - 1);
  }
}

TEST(DummyBehaviour, ExpertsAreHitEvenlyAndSequencesDiffer) {
  check_behaviour(open(kNano, 0, scale(), precision()), {1, 4, 8, 32, 64});
}

TEST(DummyBehaviour, SoAreOtherMembersOfTheFamily) {
  check_behaviour(open("NVIDIA-Nemotron-3-Super-120B-A12B", 0, 32, "bf16"), {1, 16});
  check_behaviour(open("NVIDIA-Nemotron-3-Nano-4B", 0, 16, "q4_k_m"), {1, 16});
  check_behaviour(open("NVIDIA-Nemotron-Nano-9B-v2", 0, 16, "nvfp4"), {1, 16});
}

// Every kind of mixer and of weight: kernels against the reference in double precision.
TEST(DummyBehaviour, KernelsAgreeWithTheReference) {
  struct Case {
    const char* model;
    int64_t layers;
    const char* precision;
  };
  for (const auto& [model, layers, precision] : {Case{kNano, 7, "bf16"},
                                                 {kNano, 7, "fp8"},
                                                 {kNano, 7, "nvfp4"},
                                                 {kNano, 7, "q4_0"},
                                                 {kNano, 7, "q4_k_m"},
                                                 {kNano, 7, "mxfp4"},
                                                 {"NVIDIA-Nemotron-3.5-Lightning-30B-A3B", 7, "nvfp4"},
                                                 {"NVIDIA-Nemotron-3-Super-120B-A12B", 8, "bf16"},
                                                 {"NVIDIA-Nemotron-3-Nano-4B", 13, "q8_0"}}) {
    const std::vector<int32_t> prompt = {5, 100, 1300, 1301, 700, 1302, 900, 1017};
    const std::vector<int32_t> rows = {0, 7};
    std::vector<std::vector<float>> logits;
    double rounding = 0;
    for (const char* device : {"cpu", "reference"}) {
      const Opened opened = open(model, layers, 32, precision, device);
      rounding = std::max(rounding, product_rounding(*opened.model, *opened.backend));
      logits.push_back(must(forced_logits(*opened.model, *opened.backend, prompt, rows)));
    }
    double error = 0, square = 0;
    for (size_t i = 0; i < logits[0].size(); ++i) {
      error += std::pow(logits[0][i] - logits[1][i], 2);
      square += std::pow(logits[1][i], 2);
    }
    EXPECT_LT(std::sqrt(error / square), kTolerance + rounding) << model << " " << precision;
  }
}

}  // namespace
}  // namespace proa::golden
