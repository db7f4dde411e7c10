#include "quant/formats.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <fstream>
#include <limits>
#include <map>
#include <sstream>
#include <string>
#include <vector>

namespace proa {
namespace {

std::vector<std::byte> from_hex(const std::string& hex) {
  std::vector<std::byte> bytes;
  for (size_t i = 0; i + 1 < hex.size(); i += 2) {
    bytes.push_back(static_cast<std::byte>(std::stoi(hex.substr(i, 2), nullptr, 16)));
  }
  return bytes;
}

std::vector<float> floats(const std::vector<std::byte>& bytes) {
  std::vector<float> values(bytes.size() / sizeof(float));
  std::memcpy(values.data(), bytes.data(), values.size() * sizeof(float));
  return values;
}

// The same bytes as the public reference quantiser, and the same floats back (tools/goldens/quant.py).
TEST(Formats, EncodeAndDecodeAsTheReference) {
  std::ifstream file(PROA_SOURCE_DIR "/tests/goldens/quant/blocks.txt");
  ASSERT_TRUE(file.good());
  std::string name, hex;
  file >> name >> hex;
  ASSERT_EQ(name, "input");
  const std::vector<float> input = floats(from_hex(hex));
  ASSERT_EQ(input.size(), 12u * 32u);

  size_t formats = 0;
  std::string decoded_hex;
  for (; file >> name >> hex >> decoded_hex; ++formats) {
    const auto format = format_from_name(name);
    ASSERT_TRUE(format) << name;
    const int64_t cols = static_cast<int64_t>(input.size());
    const std::vector<std::byte> expected = from_hex(hex);
    ASSERT_EQ(row_bytes(*format, cols), expected.size()) << name;
    std::vector<std::byte> encoded(expected.size());
    encode_row(*format, input.data(), cols, encoded.data());
    const size_t block_bytes = info(*format).block_bytes;
    for (size_t i = 0; i < expected.size(); ++i) {
      ASSERT_EQ(encoded[i], expected[i]) << name << " block " << i / block_bytes << " byte " << i % block_bytes;
    }
    const std::vector<float> expected_floats = floats(from_hex(decoded_hex));
    std::vector<float> decoded(input.size());
    decode_row(*format, expected.data(), cols, decoded.data());
    for (size_t i = 0; i < decoded.size(); ++i) {
      ASSERT_EQ(decoded[i], expected_floats[i]) << name << " value " << i;
    }
  }
  EXPECT_EQ(formats, std::size(kFormats));
}

TEST(Formats, TheListIsConsistent) {
  const std::map<std::string_view, size_t> block_bytes = {{"F32", 4},   {"F16", 2},   {"BF16", 2},
                                                          {"Q8_0", 34}, {"Q4_0", 18}, {"Q4_1", 20}};
  for (Format format : kFormats) {
    const FormatInfo& f = info(format);
    EXPECT_EQ(f.block_bytes, block_bytes.at(f.name));
    EXPECT_EQ(format_from_name(f.name), format);
    EXPECT_EQ(format_from_ggml(f.ggml_type), format);
    if (!f.safetensors_dtype.empty()) {
      EXPECT_EQ(format_from_safetensors(f.safetensors_dtype), format);
    }
    EXPECT_EQ(visit_format(format, [](auto t) { return format_of<decltype(t)>; }), format);
  }
  EXPECT_EQ(info(Format::Q4_1).ggml_type, 3);
  EXPECT_EQ(info(Format::BF16).ggml_type, 30);
  EXPECT_EQ(format_from_ggml(12), std::nullopt);
  EXPECT_EQ(format_from_ggml(-1), std::nullopt);
  EXPECT_EQ(format_from_safetensors(""), std::nullopt);
  EXPECT_EQ(format_from_safetensors("I64"), std::nullopt);
  EXPECT_EQ(format_from_name("q4_1"), std::nullopt);
  EXPECT_EQ(row_bytes(Format::Q4_1, 576), 360u);
}

// Values no quantiser likes: no undefined conversion, and the finite ones keep their place in the block.
TEST(Formats, EncodeSurvivesNonFiniteValues) {
  const float inf = std::numeric_limits<float>::infinity();
  const float nan = std::numeric_limits<float>::quiet_NaN();
  for (float odd : {inf, -inf, nan, std::numeric_limits<float>::max(), std::numeric_limits<float>::denorm_min()}) {
    for (Format format : kFormats) {
      std::vector<float> x(32, 0.0f), y(32);
      x[5] = odd;
      std::vector<uint32_t> row(32);
      encode_row(format, x.data(), 32, row.data());
      decode_row(format, row.data(), 32, y.data());
      if (std::isfinite(odd) && odd < 1) {
        EXPECT_NEAR(y[5], odd, 1e-7) << info(format).name;
      }
    }
  }
}

TEST(Tensor, SlicesAlongTheFirstDimension) {
  std::vector<std::byte> data(2 * 3 * row_bytes(Format::Q4_0, 64));
  const Tensor experts{data.data(), {2, 3, 64}, Format::Q4_0, data.size()};
  EXPECT_EQ(experts.rows(), 6);
  EXPECT_EQ(experts.cols(), 64);
  const Tensor expert = experts.slice(1);
  EXPECT_EQ(expert.shape, (Shape{3, 64}));
  EXPECT_EQ(expert.data, data.data() + 3 * 36);
  EXPECT_EQ(expert.bytes, 3u * 36u);
  const Tensor row = expert.slice(2);
  EXPECT_EQ(row.shape, Shape{64});
  EXPECT_EQ(row.data, data.data() + 5 * 36);
  EXPECT_EQ(row.rows(), 1);
}

TEST(Tensor, ShapesPrint) {
  EXPECT_EQ(to_string(Shape{576, 192}), "[576, 192]");
  EXPECT_EQ(to_string(Shape{}), "[]");
  EXPECT_EQ(Shape{}.elements(), 1);
  EXPECT_EQ((Shape{3, 0}).elements(), 0);
  EXPECT_FALSE((Shape{3, 1} == Shape{3}));
}

}  // namespace
}  // namespace proa
