#include "quant/formats.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <fstream>
#include <limits>
#include <map>
#include <random>
#include <span>
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
  EXPECT_EQ(formats, 9u);
}

// Little-endian words of splitmix64.
std::vector<std::byte> random_bytes(uint64_t seed, size_t count) {
  std::vector<std::byte> bytes(count + 8);
  for (size_t i = 0; i < count; i += 8) {
    uint64_t z = seed += 0x9E3779B97F4A7C15;
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB;
    z ^= z >> 31;
    std::memcpy(bytes.data() + i, &z, 8);
  }
  bytes.resize(count);
  return bytes;
}

uint64_t checksum(std::span<const float> values) {
  uint64_t sum = 0;
  for (size_t i = 0; i < values.size(); ++i) {
    const uint64_t bits = std::isnan(values[i]) ? 0x7FC00000 : std::bit_cast<uint32_t>(values[i]);
    sum += bits * (2 * i + 1) * 0x9E3779B97F4A7C15;
  }
  return sum;
}

// Bit for bit what gguf.quants makes of 2048 random blocks: every pattern of the bits of scales is among them.
TEST(Formats, DecodeAsTheReferenceWhateverTheBits) {
  constexpr size_t kBlocks = 2048, kPerChecksum = 64;
  std::ifstream file(PROA_SOURCE_DIR "/tests/goldens/quant/decode.txt");
  ASSERT_TRUE(file.good());
  size_t formats = 0;
  std::string line;
  for (; std::getline(file, line); ++formats) {
    std::istringstream fields(line);
    std::string name, hex;
    fields >> name >> hex;
    SCOPED_TRACE(name);
    const auto format = format_from_name(name);
    ASSERT_TRUE(format);
    const auto elements = static_cast<size_t>(info(*format).block_elements);
    const auto bytes =
        random_bytes(static_cast<uint64_t>(info(*format).ggml_type), kBlocks * info(*format).block_bytes);
    std::vector<float> decoded(kBlocks * elements);
    decode_row(*format, bytes.data(), static_cast<int64_t>(decoded.size()), decoded.data());

    const std::vector<float> first = floats(from_hex(hex));
    ASSERT_EQ(first.size(), elements);
    for (size_t i = 0; i < elements; ++i) {
      if (std::isnan(first[i]) && std::isnan(decoded[i])) continue;
      ASSERT_EQ(std::bit_cast<uint32_t>(decoded[i]), std::bit_cast<uint32_t>(first[i])) << "value " << i;
    }
    for (size_t block = 0; block < kBlocks; block += kPerChecksum) {
      uint64_t expected = 0;
      ASSERT_TRUE(fields >> std::hex >> expected);
      const std::span group = std::span(decoded).subspan(block * elements, kPerChecksum * elements);
      ASSERT_EQ(checksum(group), expected) << "in blocks " << block << " to " << block + kPerChecksum - 1;
    }
  }
  EXPECT_EQ(formats, static_cast<size_t>(std::count_if(std::begin(kFormats), std::end(kFormats),
                                                       [](Format f) { return info(f).ggml_type >= 0; })));
}

// The simple encoders: their error on normal values is near what the number of levels allows, and what they have
// decoded once they give back.
TEST(Formats, EncodersKeepTheirPrecision) {
  const struct {
    Format format;
    double error;  // RMS relative to that of the values
  } rows[] = {{Format::F32, 0},      {Format::F16, 3e-4},     {Format::BF16, 2.5e-3}, {Format::Q8_0, 6e-3},
              {Format::Q4_0, 0.1},   {Format::Q4_1, 0.09},    {Format::Q5_0, 0.05},   {Format::Q5_1, 0.045},
              {Format::Q2_K, 0.4},   {Format::Q3_K, 0.2},     {Format::Q4_K, 0.09},   {Format::Q5_K, 0.05},
              {Format::Q6_K, 0.03},  {Format::IQ4_NL, 0.1},   {Format::IQ4_XS, 0.1},  {Format::MXFP4, 0.15},
              {Format::NVFP4, 0.11}, {Format::F8_E4M3, 0.04}, {Format::E2M1, 0.2}};
  EXPECT_EQ(std::size(rows), std::size(kFormats));
  std::mt19937_64 random(3);
  std::normal_distribution<float> normal;
  std::vector<float> x(4096), y(x.size());
  for (float& value : x) value = normal(random);
  for (const auto& row : rows) {
    std::vector<std::byte> bytes(row_bytes(row.format, 4096));
    encode_row(row.format, x.data(), 4096, bytes.data());
    decode_row(row.format, bytes.data(), 4096, y.data());
    double error = 0, squares = 0;
    for (size_t i = 0; i < x.size(); ++i) {
      error += std::pow(x[i] - y[i], 2);
      squares += std::pow(x[i], 2);
    }
    EXPECT_LE(std::sqrt(error / squares), row.error) << info(row.format).name;
    EXPECT_GE(std::sqrt(error / squares), row.error / 3) << info(row.format).name << ": the bound says nothing";
  }
}

// Against a search through all 256 values.
TEST(MiniFloat, E4m3RoundsToTheNearest) {
  EXPECT_EQ(e4m3_to_float(0x7e), 448);
  EXPECT_EQ(e4m3_to_float(0x08), 0x1p-6f);
  EXPECT_EQ(e4m3_to_float(0x01), 0x1p-9f);
  EXPECT_EQ(e4m3_to_float(0xb8), -1);
  EXPECT_TRUE(std::isnan(e4m3_to_float(0x7f)) && std::isnan(e4m3_to_float(0xff)));
  EXPECT_EQ(float_to_e4m3(std::numeric_limits<float>::infinity()), 0x7e);
  EXPECT_EQ(float_to_e4m3(std::numeric_limits<float>::quiet_NaN()) & 0x7f, 0x7f);
  for (int code = 0; code < 256; ++code) {
    if ((code & 0x7f) == 0x7f) continue;
    EXPECT_EQ(float_to_e4m3(e4m3_to_float(static_cast<uint8_t>(code))), code);
    if ((code & 0x7f) == 0x7e) continue;
    const float here = e4m3_to_float(static_cast<uint8_t>(code)), next = e4m3_to_float(static_cast<uint8_t>(code + 1));
    const float middle = (here + next) / 2;
    EXPECT_EQ(float_to_e4m3(middle), code + code % 2) << code;
    EXPECT_EQ(float_to_e4m3(std::nextafter(middle, here)), code);
    EXPECT_EQ(float_to_e4m3(std::nextafter(middle, next)), code + 1);
  }
}

TEST(Formats, TheListIsConsistent) {
  const std::map<std::string_view, size_t> block_bytes = {
      {"F32", 4},      {"F16", 2},    {"BF16", 2},   {"Q8_0", 34},   {"Q4_0", 18},  {"Q4_1", 20},  {"Q5_0", 22},
      {"Q5_1", 24},    {"Q2_K", 84},  {"Q3_K", 110}, {"Q4_K", 144},  {"Q5_K", 176}, {"Q6_K", 210}, {"IQ4_NL", 18},
      {"IQ4_XS", 136}, {"MXFP4", 17}, {"NVFP4", 36}, {"F8_E4M3", 1}, {"E2M1", 1}};
  for (Format format : kFormats) {
    const FormatInfo& f = info(format);
    EXPECT_EQ(f.block_bytes, block_bytes.at(f.name));
    EXPECT_EQ(format_from_name(f.name), format);
    if (f.ggml_type >= 0) {
      EXPECT_EQ(format_from_ggml(f.ggml_type), format);
    }
    if (!f.safetensors_dtype.empty()) {
      EXPECT_EQ(format_from_safetensors(f.safetensors_dtype), format);
    }
    EXPECT_EQ(visit_format(format, [](auto t) { return format_of<decltype(t)>; }), format);
  }
  EXPECT_EQ(info(Format::Q4_1).ggml_type, 3);
  EXPECT_EQ(info(Format::BF16).ggml_type, 30);
  EXPECT_EQ(info(Format::NVFP4).ggml_type, 40);
  EXPECT_EQ(format_from_ggml(16), std::nullopt);
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
      std::vector<float> x(256, 0.0f), y(256);
      x[5] = odd;
      std::vector<uint32_t> row(256);
      encode_row(format, x.data(), 256, row.data());
      decode_row(format, row.data(), 256, y.data());
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
