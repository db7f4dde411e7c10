// Llama against the official implementation, from a Hugging Face folder and from a GGUF file, whose q and k rows are
// permuted so that rotary pairs lie side by side.
#include <gtest/gtest.h>

#include "golden.h"

namespace proa::golden {
namespace {

class LlamaLogits : public testing::TestWithParam<const char*> {
 protected:
  const Case golden_ = load(std::string("llama/") + GetParam());
};

TEST_P(LlamaLogits, AreTheOfficialOnes) {
  for (const std::string& path : {golden_.folder, golden_.gguf()}) {
    for (const auto& backend : all_backends()) {
      const auto model = open(path, *backend);
      double f32 = 0, largest = 0;
      for (const Sequence& sequence : golden_.sequences) {
        const auto ours = logits(*model, *backend, sequence);
        const double off = deviation(ours, sequence.logits);
        EXPECT_LE(off, kTolerance) << path << " " << backend->description() << ", " << sequence.token_ids.size();
        f32 = std::max(f32, off);
        largest = std::max(largest, max_difference(ours, sequence.logits));
      }
      std::printf("  %-8s %-5s %-26s rms %.1e  max %.1e\n", golden_.name.c_str(),
                  path == golden_.folder ? "hf" : "gguf", std::string(backend->description()).c_str(), f32, largest);
    }
  }
}

TEST_P(LlamaLogits, DoNotDependOnChunksOrBatch) {
  for (const auto& backend : all_backends()) {
    const auto model = open(golden_.folder, *backend);
    const auto together = logits_together(*model, *backend, golden_.sequences);
    for (size_t i = 0; i < golden_.sequences.size(); ++i) {
      const Sequence& sequence = golden_.sequences[i];
      const auto at_once = logits(*model, *backend, sequence);
      EXPECT_LE(deviation(together[i], at_once), same_function(*model, *backend))
          << backend->description() << ", batch";
      for (const std::vector<int>& chunks : {std::vector{1}, {2}, {7}, {16}, {5, 1}, {3, 1, 1, 8, 1, 17, 2}}) {
        EXPECT_LE(deviation(logits(*model, *backend, sequence, {.chunks = chunks, .block_size = 5}), at_once),
                  same_function(*model, *backend))
            << backend->description() << ", chunks from " << chunks.front();
      }
    }
  }
}

// Every head's dot product q · k sums the same products in another order, so equal up to rounding.
TEST_P(LlamaLogits, OfTheGgufTwinAreTheSame) {
  for (const auto& backend : all_backends()) {
    const auto folder = open(golden_.folder, *backend);
    const auto gguf = open(golden_.gguf(), *backend);
    EXPECT_EQ(folder->info().num_parameters, gguf->info().num_parameters);
    for (const Sequence& sequence : golden_.sequences) {
      EXPECT_LE(deviation(logits(*folder, *backend, sequence), logits(*gguf, *backend, sequence)), kSameFunction)
          << backend->description();
    }
  }
}

// Without positions, or with the other kind of rotary pairs, the golden is missed by far.
class OtherRope final : public Backend {
 public:
  explicit OtherRope(bool none) : none_(none) {}
  std::string_view name() const override { return "other rope"; }
  std::string_view description() const override { return name(); }
  std::string_view on_reference() const override { return ""; }
  Result<Buffer> allocate(size_t bytes) override { return memory_->allocate(bytes); }
  void rope(const Rope& op) override {
    Rope other = op;
    other.pairs = op.pairs == RopePairs::halves ? RopePairs::adjacent : RopePairs::halves;
    if (!none_) rope_reference(other);
  }

 private:
  const bool none_;
  const std::unique_ptr<Backend> memory_ = must(make_backend("reference"));
};

TEST_P(LlamaLogits, NeedTheRightRope) {
  for (const std::string& path : {golden_.folder, golden_.gguf()}) {
    for (bool none : {true, false}) {
      OtherRope backend(none);
      const auto model = open(path, backend);
      const Sequence& sequence = golden_.sequences.back();
      EXPECT_GE(deviation(logits(*model, backend, sequence), sequence.logits), kVisible) << path << " " << none;
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Goldens, LlamaLogits, testing::Values("tied", "untied"),
                         [](const auto& test) { return std::string(test.param); });

}  // namespace
}  // namespace proa::golden
