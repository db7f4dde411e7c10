// Nemotron-H against the official implementation: every golden checkpoint on every backend, however its tokens are cut
// into steps and whatever else shares those steps.
#include <gtest/gtest.h>

#include "engine/engine.h"
#include "golden.h"

namespace proa::golden {
namespace {

// Between them: hybrid_override_pattern and layers_block_type in both spellings; backbone. and model. names; experts
// one by one and stacked; one file and shards; field names of older members; MTP tensors, which are to be ignored.
constexpr const char* kCases[] = {"attn_only",  "dense",      "lightning",  "lightning_bf16", "m_e_attn",
                                  "mamba_only", "moe_groups", "moe_latent", "m_e_attn_bf16"};

class NemotronHLogits : public testing::TestWithParam<const char*> {
 protected:
  const Case golden_ = load(std::string("nemotron_h/") + GetParam());
};

TEST_P(NemotronHLogits, AreTheOfficialOnes) {
  for (const auto& backend : all_backends()) {
    const auto model = open(golden_.folder, *backend);
    double f32 = 0, largest = 0, bf16 = 0, bf16_bound = 0;
    for (size_t i = 0; i < golden_.sequences.size(); ++i) {
      SCOPED_TRACE(std::string(backend->name()) + " " + std::string(backend->description()) + ", sequence " +
                   std::to_string(i));
      const Sequence& sequence = golden_.sequences[i];
      const auto ours = logits(*model, *backend, sequence);
      const double off = deviation(ours, sequence.logits);
      EXPECT_LE(off, tolerance(*model, *backend));
      EXPECT_LT(mean_kl(ours, sequence.logits, sequence.rows.size()), 1e-3);
      f32 = std::max(f32, off);
      largest = std::max(largest, max_difference(ours, sequence.logits));
      if (!sequence.logits_bf16.empty()) {
        const double rounded = deviation(ours, sequence.logits_bf16, sequence.logits);
        EXPECT_LE(rounded, sequence.bf16_bound + 4 * product_rounding(*model, *backend));
        if (rounded > bf16) bf16 = rounded, bf16_bound = sequence.bf16_bound;
      }
    }
    std::printf("  %-15s %-26s rms %.1e  max %.1e", golden_.name.c_str(), std::string(backend->description()).c_str(),
                f32, largest);
    if (bf16 > 0) std::printf("  against BF16 arithmetic %.4f of %.4f", bf16, bf16_bound);
    std::printf("\n");
  }
}

TEST_P(NemotronHLogits, DoNotDependOnChunks) {
  struct Row {
    const char* what;
    std::vector<int> chunks;
    int block_size = 16;
    bool decode = true;
    bool single = false;  // most steps are of one token
  };
  const Row rows[] = {
      {.what = "token by token, as decodes", .chunks = {1}, .single = true},
      {.what = "token by token, as prefills of one", .chunks = {1}, .decode = false, .single = true},
      {.what = "chunks of 2", .chunks = {2}, .block_size = 3, .single = true},
      {.what = "chunks of 7", .chunks = {7}},
      {.what = "chunks of 16", .chunks = {16}, .block_size = 5},
      {.what = "a prefill, then decodes", .chunks = {5, 1}, .block_size = 3, .single = true},
      {.what = "decodes between prefills", .chunks = {3, 1, 1, 8, 1, 17, 2, 40}},
      {.what = "a first chunk of one", .chunks = {1, 6, 1, 1, 64}, .block_size = 1},
  };
  for (const auto& backend : all_backends()) {
    const auto model = open(golden_.folder, *backend);
    double worst = 0;
    for (const Sequence& sequence : golden_.sequences) {
      const bool is_long = sequence.token_ids.size() > 100;
      const auto at_once = logits(*model, *backend, sequence);
      for (const Row& row : rows) {
        if (is_long && row.single && &row != rows) continue;
        const double off =
            deviation(logits(*model, *backend, sequence,
                             {.chunks = row.chunks, .decode_single_tokens = row.decode, .block_size = row.block_size}),
                      at_once);
        EXPECT_LE(off, same_function(*model, *backend))
            << backend->description() << ": " << row.what << ", " << sequence.token_ids.size() << " tokens";
        worst = std::max(worst, off);
      }
    }
    std::printf("  %-15s %-26s chunks %.1e\n", golden_.name.c_str(), std::string(backend->description()).c_str(),
                worst);
  }
}

TEST_P(NemotronHLogits, DoNotDependOnTheBatch) {
  for (const auto& backend : all_backends()) {
    const auto model = open(golden_.folder, *backend);
    std::vector<Sequence> sequences = golden_.sequences;
    sequences.push_back(golden_.sequences.front());  // the same request twice
    sequences.push_back(golden_.sequences[1]);
    const auto together = logits_together(*model, *backend, sequences);
    double worst = 0;
    for (size_t i = 0; i < sequences.size(); ++i) {
      const double off = deviation(together[i], logits(*model, *backend, sequences[i]));
      EXPECT_LE(off, same_function(*model, *backend)) << backend->description() << ", sequence " << i;
      worst = std::max(worst, off);
    }
    std::printf("  %-15s %-26s batch %.1e\n", golden_.name.c_str(), std::string(backend->description()).c_str(), worst);
  }
}

// With an FP8 cache logits are those of the plain reference with such a cache, however tokens are cut into steps. Where
// a key or value lies between two steps of E4M3 the least difference decides which it becomes: that is a part of what
// such a cache does, and much less than all of it.
TEST_P(NemotronHLogits, WithAnFp8Cache) {
  const auto plain = must(make_backend("reference"));
  const auto plain_model = open(golden_.folder, *plain);
  const ForcingOptions at_once{.kv_cache_dtype = Format::F8_E4M3};
  std::vector<std::vector<float>> expected;
  double rounding = 0;  // what such a cache does
  for (const Sequence& sequence : golden_.sequences) {
    expected.push_back(logits(*plain_model, *plain, sequence, at_once));
    rounding = std::max(rounding, deviation(expected.back(), sequence.logits));
  }
  for (const auto& backend : all_backends()) {
    const auto model = open(golden_.folder, *backend);
    double worst = 0;
    for (size_t i = 0; i < golden_.sequences.size(); ++i) {
      for (const std::vector<int>& chunks : {std::vector<int>{}, {7}, {5, 1}}) {
        const auto ours = logits(*model, *backend, golden_.sequences[i],
                                 {.chunks = chunks, .kv_cache_dtype = Format::F8_E4M3, .block_size = 5});
        worst = std::max(worst, deviation(ours, expected[i]));
      }
    }
    EXPECT_LE(worst, rounding / 4 + tolerance(*model, *backend)) << backend->description();
    std::printf("  %-15s %-26s FP8 cache %.1e of %.1e\n", golden_.name.c_str(),
                std::string(backend->description()).c_str(), worst, rounding);
  }
}

// Rounds A to BF16, in which the two kinds of file agree.
class CoarseDecay final : public Backend {
 public:
  std::string_view name() const override { return "coarse decay"; }
  std::string_view description() const override { return "the reference, A rounded to BF16"; }
  std::string_view on_reference() const override { return ""; }
  Result<Buffer> allocate(size_t bytes) override { return memory_->allocate(bytes); }
  void conv_ssm_step(const ConvSsmStep& op) override {
    ConvSsmStep coarse = op;
    coarse.weights.a = round(op.weights.a, op.shape.num_heads);
    conv_ssm_step_reference(coarse);
  }
  void ssd_chunk(const SsdChunk& op) override {
    SsdChunk coarse = op;
    coarse.weights.a = round(op.weights.a, op.shape.num_heads);
    ssd_chunk_reference(coarse);
  }

 private:
  const float* round(const float* a, int num_heads) {
    std::vector<uint16_t> half(static_cast<size_t>(num_heads));
    rounded_.resize(half.size());
    encode_row(Format::BF16, a, num_heads, half.data());
    decode_row(Format::BF16, half.data(), num_heads, rounded_.data());
    return rounded_.data();
  }

  std::vector<float> rounded_;
  const std::unique_ptr<Backend> memory_ = must(make_backend("reference"));
};

// Not bit-equal: GGUF stores A = -exp(A_log), and the exp of its maker rounds a last bit otherwise than ours. Nor is
// chunk_size in the file, so a kernel may block the scan otherwise.
TEST_P(NemotronHLogits, OfTheGgufTwinAreTheSame) {
  if (!golden_.has_gguf()) GTEST_SKIP() << "no twin of this case";
  for (const auto& backend : all_backends()) {
    const auto folder = open(golden_.folder, *backend);
    const auto gguf = open(golden_.gguf(), *backend);
    EXPECT_EQ(folder->info().layer_pattern, gguf->info().layer_pattern);
    EXPECT_EQ(folder->info().num_parameters, gguf->info().num_parameters);
    double worst = 0;
    for (const Sequence& sequence : golden_.sequences) {
      for (const std::vector<int>& chunks : {std::vector<int>{}, {13}}) {
        const double off = deviation(logits(*folder, *backend, sequence, {.chunks = chunks}),
                                     logits(*gguf, *backend, sequence, {.chunks = chunks}));
        EXPECT_LE(off, kSameFunction) << backend->description() << ", " << sequence.token_ids.size() << " tokens";
        worst = std::max(worst, off);
      }
    }
    std::printf("  %-15s %-26s gguf %.1e\n", golden_.name.c_str(), std::string(backend->description()).c_str(), worst);
  }
  // Apart from that last bit of A nothing may differ.
  CoarseDecay backend;
  const auto folder = open(golden_.folder, backend);
  const auto gguf = open(golden_.gguf(), backend);
  for (const Sequence& sequence : golden_.sequences) {
    EXPECT_EQ(max_difference(logits(*folder, backend, sequence), logits(*gguf, backend, sequence)), 0);
  }
}

// What does not fit is refused by the plan, and by the allocation where nobody planned; the device goes on.
TEST(FullDevice, RefusesWhatDoesNotFitAndGoesOn) {
  auto made = make_backend("cuda:0");
  if (!made.ok()) GTEST_SKIP() << made.error().message();
  Backend& backend = **made;
  const Case golden = load("nemotron_h/m_e_attn");
  const auto model = open(golden.folder, backend);
  const auto right = [&] {
    const Sequence& sequence = golden.sequences.front();
    return deviation(logits(*model, backend, sequence), sequence.logits) <= tolerance(*model, backend);
  };
  ASSERT_TRUE(right());
  EngineConfig config{.max_num_seqs = 1, .max_num_batched_tokens = 16, .gpu_memory_utilization = 1};
  config.max_model_len = 17;
  const MemoryPlan small = must(Engine::plan(*model, backend, config));
  const int blocks = static_cast<int>((size_t{1} << 30) / small.bytes_per_block);
  config.max_model_len = int64_t{blocks} * config.block_size;
  ASSERT_TRUE(Engine::plan(*model, backend, config).ok()) << "a gigabyte is free";
  {
    const DeviceMemory memory = backend.memory();
    EXPECT_GT(memory.total, memory.free);
    const Buffer occupant = must(backend.allocate(memory.free - (size_t{512} << 20)));
    EXPECT_LE(backend.memory().free, size_t{600} << 20);

    const auto plan = Engine::plan(*model, backend, config);
    ASSERT_FALSE(plan.ok());
    EXPECT_EQ(plan.error().where, "cuda:0");
    EXPECT_NE(plan.error().hint.find("--max-model-len "), std::string::npos) << plan.error().message();
    EXPECT_NE(plan.error().hint.find(" fits"), std::string::npos) << plan.error().message();
    std::printf("  %s\n", plan.error().message().c_str());

    const auto runner = ModelRunner::create(*model, backend, {.max_blocks_per_seq = blocks, .num_blocks = blocks});
    ASSERT_FALSE(runner.ok());
    EXPECT_EQ(runner.error().doing + " " + runner.error().where, "allocate memory cuda:0");
    std::printf("  %s\n", runner.error().message().c_str());
    EXPECT_TRUE(backend.synchronize().ok());
    EXPECT_TRUE(right());
  }
  EXPECT_TRUE(Engine::plan(*model, backend, config).ok());
}

INSTANTIATE_TEST_SUITE_P(Goldens, NemotronHLogits, testing::ValuesIn(kCases),
                         [](const auto& test) { return std::string(test.param); });

}  // namespace
}  // namespace proa::golden
