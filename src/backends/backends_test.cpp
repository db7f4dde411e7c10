#include "backends/backends.h"

#include <gtest/gtest.h>

#include "quant/dummy.h"

namespace proa {
namespace {

TEST(Backends, MakesWhatIsAskedFor) {
  for (const char* device : {"cpu"}) {
    const auto backend = make_backend(device, {.num_threads = 3});
    ASSERT_TRUE(backend.ok()) << backend.error().message();
    EXPECT_EQ((*backend)->name(), "cpu");
    EXPECT_TRUE((*backend)->description().ends_with(", 3 threads"));
    EXPECT_EQ((*backend)->on_reference(), "");
  }
  const auto reference = make_backend("reference");
  ASSERT_TRUE(reference.ok());
  EXPECT_EQ((*reference)->name(), "reference");
  EXPECT_NE((*reference)->on_reference().find("attend"), std::string_view::npos);
}

TEST(Backends, ErrorsNameTheFlagAndTheChoices) {
  const auto device = make_backend("tpu");
  ASSERT_FALSE(device.ok());
  EXPECT_EQ(device.error().message(), "choose a device: --device: expected auto, cpu, cuda:N or reference, found tpu");
  const auto target = make_backend("cpu", {.cpu_target = "MMX"});
  ASSERT_FALSE(target.ok());
  EXPECT_NE(target.error().message().find("--cpu-target: expected one this machine has: "), std::string::npos);
  EXPECT_NE(target.error().message().find("found MMX"), std::string::npos);
}

// No device of today is outside, and tensor cores are there for a reason.
TEST(Backends, ProbesOfADeviceAreOfThisWorld) {
  for (const auto& backend : all_backends()) {
    if (backend->shares_memory()) continue;  // the CPU's: cpu/probe_test.cpp
    double rates[std::size(kProbes)] = {};
    for (const Probe what : kProbes) {
      double& rate = rates[static_cast<size_t>(what)] = backend->probe(what, 0.05);
      EXPECT_GT(rate, 1e9) << to_string(what);
      EXPECT_LT(rate, 1e16) << to_string(what);
      RecordProperty(to_string(what), std::to_string(rate));
    }
    EXPECT_GT(rates[static_cast<size_t>(Probe::bf16)], rates[static_cast<size_t>(Probe::f32)]);
    EXPECT_GT(rates[static_cast<size_t>(Probe::int8)], rates[static_cast<size_t>(Probe::f32)]);
    EXPECT_TRUE(backend->synchronize().ok());
    return;
  }
  GTEST_SKIP() << "no device with memory of its own";
}

TEST(Backends, MemoryIsZeroedAlignedAndRefusedWhenThereIsNone) {
  for (const auto& backend : all_backends()) {
    for (size_t bytes : {size_t{0}, size_t{1}, size_t{1000}}) {
      const auto buffer = backend->allocate(bytes);
      ASSERT_TRUE(buffer.ok());
      EXPECT_EQ(buffer->bytes, bytes);
      EXPECT_EQ(reinterpret_cast<uintptr_t>(buffer->data()) % 64, 0u);
      std::vector<std::byte> content(bytes, std::byte{1});
      backend->download(content.data(), buffer->data(), bytes);
      ASSERT_TRUE(backend->synchronize().ok());
      EXPECT_EQ(content, std::vector<std::byte>(bytes));
    }
    EXPECT_FALSE(backend->allocate(SIZE_MAX).ok());
  }
}

// The host's own bits, wherever a part begins and ends and whichever device makes them.
TEST(Backends, DummyWeightsHaveTheBitsOfTheHost) {
  constexpr struct {
    const char* name;
    uint64_t begin, units;  // begin in units
    double bytes;           // of one more unit, as a share of it
  } kParts[] = {
      {"one unit", 0, 1, 0},
      {"less than one", 7, 0, 0.5},
      {"from an odd place to an odd one", 13, 1001, 0.5},
      {"several tiles", 1, 10'000, 0.25},
      {"beyond 2^32 words", (uint64_t{1} << 32) / 5 - 3, 1000, 0},
      {"beyond 2^32 words of a plain format", (uint64_t{1} << 32) - 1000, 3000, 0},
  };
  for (const auto& backend : all_backends()) {
    for (const Format format : kFormats) {
      const size_t unit = dummy_unit_bytes(format);
      std::vector<DummyFill> fills = {dummy_fill(format, 3, "a.weight", -0.03, 0.03)};
      if (format == Format::F32 || format == Format::BF16 || format == Format::F16) {
        fills.push_back(dummy_fill(format, 3, "dt_bias", -6.9, -2.25));  // contraction would show where a centre is
      }
      if (format == Format::F8_E4M3) fills.push_back(dummy_group_scales(3, "a.weight_scale"));
      for (const DummyFill& fill : fills) {
        for (const auto& [name, begin, units, rest] : kParts) {
          std::vector<std::byte> expected(units * unit + static_cast<size_t>(rest * static_cast<double>(unit)));
          fill_dummy(fill, begin * unit, expected);
          // What the tensor is called does not matter here, its bytes do.
          const Tensor tensor{nullptr, {1, static_cast<int64_t>(expected.size())}, Format::F8_E4M3, expected.size()};
          const auto placed = backend->place_dummy(tensor, fill, begin * unit);
          ASSERT_TRUE(placed.ok()) << placed.error().message();
          std::vector<std::byte> actual(expected.size());
          backend->download(actual.data(), placed->weight.data, actual.size());
          ASSERT_TRUE(backend->synchronize().ok());
          EXPECT_TRUE(actual == expected) << backend->name() << ", " << info(format).name << ": " << name;
        }
      }
    }
  }
}

}  // namespace
}  // namespace proa
