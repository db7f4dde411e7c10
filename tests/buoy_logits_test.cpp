// The built-in checkpoint, which is trained: logits of transformers (tools/goldens/buoy.py) from every backend.
#include <gtest/gtest.h>

#include "golden.h"

namespace proa::golden {
namespace {

TEST(BuoyLogits, AreTheOfficialOnes) {
  const Case golden = load("proa_buoy");
  for (const auto& backend : all_backends()) {
    const auto model = open(std::string(PROA_SOURCE_DIR) + "/models/proa-buoy", *backend);
    const std::string what(backend->description());
    // A window of 1,310 tokens takes the plain loops half a minute: they do the short sequence.
    const bool slow = backend->name() == "reference" || what.find("SCALAR") != what.npos;
    for (size_t i = 0; i < (slow ? 1 : golden.sequences.size()); ++i) {
      SCOPED_TRACE(std::string(backend->name()) + " " + what + ", sequence " + std::to_string(i));
      const size_t num_tokens = golden.sequences[i].token_ids.size();
      const auto ours = logits(*model, *backend, golden.sequences[i]);
      const double off = deviation(ours, golden.sequences[i].logits);
      EXPECT_LE(off, tolerance(*model, *backend, num_tokens));
      std::printf("  %-26s %4zu tokens  rms %.1e  max %.1e\n", what.c_str(), num_tokens, off,
                  max_difference(ours, golden.sequences[i].logits));
      // Chunks of a length that is no multiple of anything.
      const auto cut = logits(*model, *backend, golden.sequences[i], {.chunks = {97}});
      EXPECT_LE(deviation(cut, ours), kSameFunction + 4 * product_rounding(*model, *backend, num_tokens));
    }
  }
}

}  // namespace
}  // namespace proa::golden
