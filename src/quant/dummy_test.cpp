#include "quant/dummy.h"

#include <gtest/gtest.h>

#include <cmath>
#include <vector>

namespace proa {
namespace {

std::vector<std::byte> filled(const DummyFill& fill, size_t units) {
  std::vector<std::byte> bytes(units * dummy_unit_bytes(fill.format));
  fill_dummy(fill, 0, bytes);
  return bytes;
}

std::vector<float> decoded(const DummyFill& fill, size_t units) {
  const std::vector<std::byte> bytes = filled(fill, units);
  const auto count =
      static_cast<int64_t>(bytes.size() / info(fill.format).block_bytes) * info(fill.format).block_elements;
  std::vector<float> values(static_cast<size_t>(count));
  decode_row(fill.format, bytes.data(), count, values.data());
  return values;
}

TEST(Dummy, EveryFormatHasTheDeviationAskedForAndNoMean) {
  for (const Format format : kFormats) {
    // As for a small embedding, a wide matrix, and the experts of a large model.
    for (const double deviation : {1.0, 0.02, 0.0013}) {
      if (format == Format::NVFP4 && deviation < 0.006) continue;  // below its least scale: files have one beside it
      const bool codes = format == Format::F8_E4M3 || format == Format::E2M1;
      const double wanted = codes ? dummy_code_rms(format) : deviation;
      const double reach = deviation * std::sqrt(3.0);
      const std::vector<float> values = decoded(dummy_fill(format, 0, "a.weight", -reach, reach), 4096);
      double sum = 0, squares = 0;
      for (const float value : values) {
        ASSERT_TRUE(std::isfinite(value)) << info(format).name;
        sum += value;
        squares += double{value} * value;
      }
      const auto count = static_cast<double>(values.size());
      EXPECT_NEAR(std::sqrt(squares / count) / wanted, 1, 0.04) << info(format).name << " " << deviation;
      EXPECT_NEAR(sum / count / wanted, 0, 5 / std::sqrt(count / 16)) << info(format).name;
    }
  }
}

// A common offset within each block, as -0.5 d of the codes -8..7 would be, is invisible in the mean of all values when
// scales have signs; it shows in the sums of blocks, whose square must be that of independent values.
TEST(Dummy, ValuesOfABlockAreIndependent) {
  for (const Format format : kFormats) {
    const int n = 32;
    const std::vector<float> values = decoded(dummy_fill(format, 1, "b.weight", -1, 1), 8192);
    double sums = 0, squares = 0;
    for (size_t i = 0; i + n <= values.size(); i += n) {
      double sum = 0;
      for (int j = 0; j < n; ++j) {
        sum += values[i + static_cast<size_t>(j)];
        squares += std::pow(values[i + static_cast<size_t>(j)], 2);
      }
      sums += sum * sum;
    }
    EXPECT_LT(sums / squares, 1.3) << info(format).name;  // IQ4's table leans to one side
    EXPECT_GT(sums / squares, 0.9) << info(format).name;
  }
}

TEST(Dummy, GroupScalesArePositive) {
  const std::vector<float> values = decoded(dummy_group_scales(0, "a.weight_scale"), 1024);
  double squares = 0;
  for (const float value : values) {
    EXPECT_GE(value, 128);
    EXPECT_LE(value, 240);
    squares += double{value} * value;
  }
  EXPECT_NEAR(std::sqrt(squares / static_cast<double>(values.size())) / dummy_group_scale_rms(), 1, 0.01);
}

TEST(Dummy, VectorsKeepTheirRange) {
  for (const Format format : {Format::F32, Format::BF16, Format::F16}) {
    float least = 100, most = -100;
    for (const float value : decoded(dummy_fill(format, 0, "dt_bias", -6.9, -2.25), 4096)) {
      least = std::min(least, value);
      most = std::max(most, value);
    }
    EXPECT_NEAR(least, -6.9, 0.03);
    EXPECT_NEAR(most, -2.25, 0.03);
    for (const float value : decoded(dummy_fill(format, 0, "norm", 1, 1), 16)) EXPECT_EQ(value, 1);
  }
}

// Whatever part is asked for, in one go or by a thread per unit, a byte depends on its place alone.
TEST(Dummy, PartsAreThoseOfTheWhole) {
  for (const Format format : kFormats) {
    const DummyFill fill = dummy_fill(format, 7, "c.weight", -1, 1);
    const size_t unit = dummy_unit_bytes(format);
    const std::vector<std::byte> whole = filled(fill, 5000);
    for (const auto& [begin, size] : {std::pair<size_t, size_t>{0, 1}, {1, 4999 * unit}, {17, 3 * unit + unit / 2}}) {
      std::vector<std::byte> part(size);
      fill_dummy(fill, begin * unit, part);
      EXPECT_TRUE(std::equal(part.begin(), part.end(), whole.begin() + static_cast<std::ptrdiff_t>(begin * unit)))
          << info(format).name << " from " << begin;
    }
    visit_format(format, [&](auto f) {
      std::vector<std::byte> one(unit);
      for (const uint64_t u : {0, 1, 4999}) {
        dummy_unit<decltype(f)>(fill, u, one.data());
        EXPECT_TRUE(std::equal(one.begin(), one.end(), whole.begin() + static_cast<std::ptrdiff_t>(u * unit)));
      }
    });
  }
}

TEST(Dummy, CrossesTheEndOfTheCounter) {  // 2^32 words are 16 GiB of a plain format
  const DummyFill fill = dummy_fill(Format::Q4_0, 7, "c.weight", -1, 1);
  const uint64_t unit = (uint64_t{1} << 30) - 2;  // four words each
  std::vector<std::byte> part(4 * 18), one(18);
  fill_dummy(fill, unit * 18, part);
  for (uint64_t i = 0; i < 4; ++i) {
    dummy_unit<Q4_0>(fill, unit + i, one.data());
    EXPECT_TRUE(std::equal(one.begin(), one.end(), part.begin() + static_cast<std::ptrdiff_t>(i * 18)));
  }
}

TEST(Dummy, SeedAndNameChangeTheBits) {
  const auto bits = [](uint64_t seed, const char* name) {
    return filled(dummy_fill(Format::Q8_0, seed, name, -1, 1), 4);
  };
  EXPECT_EQ(bits(0, "a"), bits(0, "a"));
  EXPECT_NE(bits(0, "a"), bits(1, "a"));
  EXPECT_NE(bits(0, "a"), bits(0, "b"));
}

// Written down, so that every machine and device is held to the same bits.
TEST(Dummy, BitsAreTheseOnEveryMachine) {
  EXPECT_EQ(dummy_word(1, 2, 3), 3797366418u);
  const DummyFill fill = dummy_fill(Format::Q4_0, 0, "blk.0.ssm_in.weight", -1, 1);
  EXPECT_EQ(fill.key[0], 1722978645u);
  EXPECT_EQ(fill.key[1], 4210814093u);
  uint64_t sum = 0;
  for (const Format format : kFormats) {
    for (const std::byte byte : filled(dummy_fill(format, 0, "blk.0.ssm_in.weight", -0.1, 0.1), 64)) {
      sum = sum * 31 + static_cast<uint64_t>(byte);
    }
  }
  EXPECT_EQ(sum, 17765380020300197994u);
}

}  // namespace
}  // namespace proa
