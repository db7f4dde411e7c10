#include <gtest/gtest.h>

#include <cstdlib>
#include <memory>

#include "backends/backends.h"
#include "backends/cpu/probe_loops.h"

namespace proa {
namespace {

TEST(Probe, EveryReadLoopReadsEveryByte) {
  constexpr size_t kBytes = 8192;
  const std::unique_ptr<std::byte, decltype(&std::free)> memory(
      static_cast<std::byte*>(std::aligned_alloc(4096, kBytes + 4096)), std::free);  // fetched ahead: anything
  std::fill_n(memory.get(), kBytes, std::byte{7});
  for (const ProbeLoop& loop : probe_loops()) {
    if (!loop.read) continue;
    const uint64_t before = loop.read(memory.get(), kBytes);
    for (size_t i = 0; i < kBytes; i += 31) {
      memory.get()[i] = std::byte{8};
      EXPECT_NE(loop.read(memory.get(), kBytes), before) << loop.name << ", byte " << i;
      memory.get()[i] = std::byte{7};
    }
    EXPECT_EQ(loop.read(memory.get(), kBytes), before) << loop.name;
  }
}

TEST(Probe, EveryIterationChangesWhatIsComputed) {
  for (const ProbeLoop& loop : probe_loops()) {
    if (!loop.compute) continue;
    EXPECT_NE(loop.compute(1), loop.compute(2)) << loop.name;
    EXPECT_NE(loop.compute(2), loop.compute(1000)) << loop.name;
    EXPECT_EQ(loop.compute(1000), loop.compute(1000)) << loop.name;
  }
}

// Whatever the machine: it reads and multiplies, one thread no less than nothing. No device of today is outside.
TEST(Probe, IsOfThisWorld) {
  auto made = make_backend("cpu", {.num_threads = 2});
  ASSERT_TRUE(made.ok()) << made.error().message();
  Backend& backend = **made;
  for (Probe what : kProbes) {
    const double rate = backend.probe(what, 0.02);
    if (what == Probe::read || what == Probe::f32) {
      EXPECT_GT(rate, 1e6) << to_string(what);
    } else {
      EXPECT_GE(rate, 0) << to_string(what);
    }
    EXPECT_LT(rate, 1e16) << to_string(what);
  }
  auto reference = make_backend("reference");
  ASSERT_TRUE(reference.ok());
  for (Probe what : kProbes) EXPECT_EQ((*reference)->probe(what, 0.01), 0);
}

}  // namespace
}  // namespace proa
