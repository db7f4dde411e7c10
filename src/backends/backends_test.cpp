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
  const auto rounded = make_backend("cpu", {.activation_dtype = "fp8"});
  ASSERT_FALSE(rounded.ok());
  EXPECT_NE(rounded.error().message().find("--activation-dtype fp8: expected a CUDA device"), std::string::npos);
  const auto unknown = make_backend("cpu", {.activation_dtype = "int3"});
  ASSERT_FALSE(unknown.ok());
  EXPECT_NE(unknown.error().message().find("--activation-dtype: expected auto, bfloat16 or fp8"), std::string::npos);
  const auto target = make_backend("cpu", {.cpu_target = "MMX"});
  ASSERT_FALSE(target.ok());
  EXPECT_NE(target.error().message().find("--cpu-target: expected one this machine has: "), std::string::npos);
  EXPECT_NE(target.error().message().find("found MMX"), std::string::npos);
}

// A snapshot's way: within the device, to the host, back to another place.
TEST(Backends, CopiesReachEveryPlaceInOrder) {
  for (const auto& backend : all_backends()) {
    SCOPED_TRACE(std::string(backend->name()));
    constexpr size_t kBytes = 100'000;
    auto device = backend->allocate(3 * kBytes);
    auto host = backend->allocate_pinned(kBytes);
    ASSERT_TRUE(device.ok() && host.ok());
    std::vector<std::byte> given(kBytes), back(kBytes);
    for (size_t i = 0; i < kBytes; ++i) given[i] = static_cast<std::byte>(i * 7 + i / 251);
    std::byte* at = device->data();
    backend->upload(at, given.data(), kBytes);
    backend->copy(at + kBytes + 1, at, kBytes - 1);
    backend->upload(at, back.data(), kBytes);  // what was copied is there already
    backend->download(host->data(), at + kBytes + 1, kBytes - 1);
    backend->upload(at + 2 * kBytes, host->data(), kBytes - 1);
    backend->download(back.data(), at + 2 * kBytes, kBytes - 1);
    ASSERT_TRUE(backend->synchronize().ok());
    EXPECT_TRUE(std::equal(given.begin(), given.end() - 1, back.begin()));
  }
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

// One sentence each: what was found and what would work, whatever this program and this machine have.
TEST(Backends, AWrongCudaDeviceIsRefused) {
  const bool built = !cuda_architectures().empty();
  const bool there = make_backend("cuda:0").ok();
  for (const std::string device :
       {"cuda:", "cuda:-1", "cuda:x", "cuda:1x", "cuda:99999999999", "cuda:99", "gpu", "CUDA:0"}) {
    const auto made = make_backend(device);
    ASSERT_FALSE(made.ok()) << device;
    const Error& error = made.error();
    EXPECT_EQ(error.doing, "choose a device");
    EXPECT_TRUE(error.where.starts_with("--device")) << error.message();
    EXPECT_FALSE(error.expected.empty() || error.actual.empty()) << error.message();
    EXPECT_EQ(error.message().find('\n'), std::string::npos);
    if (!built || !device.starts_with("cuda:")) {
      EXPECT_EQ(error.actual, device);
    } else if (device == "cuda:99") {
      EXPECT_EQ(error.where, "--device cuda:99");
      EXPECT_NE(error.hint.find(there ? "nvidia-smi" : "--device cpu"), std::string::npos) << error.message();
    } else {
      EXPECT_EQ(error.expected, "cuda:N with N from 0 on");
      EXPECT_EQ(error.actual, device);
    }
  }
}

TEST(Backends, NamesTheCudaArchitecturesItHoldsCodeFor) {
  for (const CudaArchitecture& each : cuda_architectures()) {
    EXPECT_TRUE(each.name.starts_with("sm_")) << each.name;
    EXPECT_EQ(each.has_run, each.name == "sm_90a") << each.name;
  }
}

TEST(Backends, SayWhatMemoryThereIs) {
  for (const auto& backend : all_backends()) {
    const DeviceMemory memory = backend->memory();
    EXPECT_GT(memory.free, 0u) << backend->name();
    EXPECT_GT(memory.total, memory.free) << backend->name();
    EXPECT_EQ(memory.scratch, 0u) << backend->name();
    if (backend->shares_memory()) continue;
    constexpr size_t kBytes = size_t{256} << 20;
    const auto buffer = backend->allocate(kBytes);
    ASSERT_TRUE(buffer.ok());
    EXPECT_LE(backend->memory().free + kBytes / 2, memory.free);
  }
}

// Rows are multiplied in scratch memory: what was reserved for the most is enough for all.
TEST(Backends, ReserveWhatTheLargestStepNeeds) {
  for (const auto& backend : all_backends()) {
    SCOPED_TRACE(backend->name());
    constexpr int kWidth = 64, kMost = 40;
    const auto memory = backend->allocate((kWidth + 1 + 2 * kMost) * kWidth * sizeof(float));
    ASSERT_TRUE(memory.ok());
    float* at = memory->as<float>();
    Weight weight{.data = memory->data(), .rows = kWidth, .cols = kWidth, .row_stride = kWidth * sizeof(float)};
    weight.format = Format::F32;
    const float* norm = at += kWidth * kWidth;
    const float* x = at += kWidth;
    float* y = at += kMost * kWidth;
    const auto step = [&](int tokens) {
      const LinearOutput outputs[] = {{weight, y}};
      backend->norm_linear({tokens, kWidth, x, norm, 1e-5f, outputs});
    };
    const auto counted = backend->scratch_bytes([&] { step(kMost); });
    ASSERT_TRUE(counted.ok());
    EXPECT_EQ(backend->memory().scratch, 0u) << "it was only counted";
    ASSERT_TRUE(backend->reserve([&] { step(kMost); }).ok());
    EXPECT_EQ(backend->memory().scratch, *counted);
    EXPECT_EQ(*counted > 0, backend->name() != "reference");
    for (const int tokens : {kMost, 1, 7}) step(tokens);
    ASSERT_TRUE(backend->synchronize().ok());
    EXPECT_EQ(backend->memory().scratch, *counted);
  }
}

// An op whose scratch the device does not have: an error of that step, and the next one is computed.
TEST(Backends, ADeviceOutOfMemoryInAStepGoesOn) {
  const auto backends = all_backends();
  Backend& backend = *backends.back();
  if (backend.shares_memory()) GTEST_SKIP() << "no CUDA device";
  backend.conv_ssm_step(
      {.shape = {.num_heads = 4096, .head_dim = 64, .n_groups = 1, .ssm_state_size = 128, .conv_kernel = 4},
       .num_seqs = 1 << 24,
       .tokens_per_seq = 1});
  const auto failed = backend.synchronize();
  ASSERT_FALSE(failed.ok());
  EXPECT_EQ(failed.error().doing + " " + failed.error().where, "allocate memory cuda:0");
  EXPECT_TRUE(backend.synchronize().ok());
  const auto zeros = backend.allocate(1000);
  ASSERT_TRUE(zeros.ok());
  std::vector<std::byte> content(1000, std::byte{1});
  backend.download(content.data(), zeros->data(), content.size());
  ASSERT_TRUE(backend.synchronize().ok());
  EXPECT_EQ(content, std::vector<std::byte>(1000));
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
