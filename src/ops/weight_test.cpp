#include "ops/weight.h"

#include <gtest/gtest.h>

#include <array>
#include <vector>

#include "quant/minifloat.h"

namespace proa {
namespace {

std::vector<float> decoded(const Weight& weight, int64_t r) {
  std::vector<float> row(static_cast<size_t>(weight.cols));
  decode_row(weight, r, row.data());
  return row;
}

TEST(Weight, Nvfp4ByHand) {
  // [2, 18]: a group of 16 and a ragged one of 2. Codes 2 and 5 are 1 and 3, code 15 is -6.
  std::array<uint8_t, 18> codes;
  codes.fill(0x52);
  codes[17] = 0xf2;
  const std::array<uint8_t, 4> scales = {float_to_e4m3(2), float_to_e4m3(0.5f), float_to_e4m3(1), float_to_e4m3(448)};
  const Weight weight = {
      .data = reinterpret_cast<const std::byte*>(codes.data()),
      .rows = 2,
      .cols = 18,
      .row_stride = 9,
      .format = Format::E2M1,
      .scales = {reinterpret_cast<const std::byte*>(scales.data()), 2, Format::F8_E4M3, 16},
      .scale = 0.25f,
  };
  const auto first = decoded(weight, 0);
  EXPECT_EQ(first[0], 0.5f);
  EXPECT_EQ(first[15], 1.5f);
  EXPECT_EQ(first[16], 0.125f);
  EXPECT_EQ(first[17], 0.375f);
  const auto second = decoded(weight, 1);
  EXPECT_EQ(second[1], 0.75f);
  EXPECT_EQ(second[16], 112);
  EXPECT_EQ(second[17], -672);
  const Weight part = weight.row_range(1, 2);
  EXPECT_EQ(part.rows, 1);
  EXPECT_EQ(decoded(part, 0), second);
}

TEST(Weight, Fp8PerChannel) {
  const std::array<uint8_t, 4> values = {0x38, 0xb8, 0x40, 0x01};  // 1, -1, 2, 2^-9
  const std::array<float, 2> scales = {3, 0.5f};
  const Weight weight = {.data = reinterpret_cast<const std::byte*>(values.data()),
                         .rows = 2,
                         .cols = 2,
                         .row_stride = 2,
                         .format = Format::F8_E4M3,
                         .scales = {reinterpret_cast<const std::byte*>(scales.data()), 4, Format::F32, 2}};
  EXPECT_EQ(decoded(weight, 0), (std::vector<float>{3, -3}));
  EXPECT_EQ(decoded(weight, 1), (std::vector<float>{1, 0x1p-10f}));
}

TEST(Weight, ManyGroups) {  // more than are decoded at once
  const std::vector<float> ones(400, 1.0f);
  std::vector<float> scales(200);
  for (size_t i = 0; i < scales.size(); ++i) scales[i] = static_cast<float>(i);
  const Weight weight = {.data = reinterpret_cast<const std::byte*>(ones.data()),
                         .rows = 1,
                         .cols = 400,
                         .row_stride = 1600,
                         .format = Format::F32,
                         .scales = {reinterpret_cast<const std::byte*>(scales.data()), 800, Format::F32, 2}};
  const auto row = decoded(weight, 0);
  for (size_t c = 0; c < row.size(); ++c) EXPECT_EQ(row[c], static_cast<float>(c / 2));
}

TEST(Weight, ExpertsKeepTheirOwnScales) {
  const float values[] = {1, 2};
  const float scales[] = {10, 100};
  const auto matrix = [&](int e) {
    return Weight{.data = reinterpret_cast<const std::byte*>(&values[e]),
                  .rows = 1,
                  .cols = 1,
                  .row_stride = 4,
                  .format = Format::F32,
                  .scales = {reinterpret_cast<const std::byte*>(&scales[e]), 4, Format::F32, 1},
                  .scale = e == 0 ? 3.0f : 5.0f};
  };
  ExpertTables tables;
  const ExpertWeights experts = tables.assign({matrix(0), matrix(1)});
  const ExpertTables moved = std::move(tables);
  EXPECT_EQ(decoded(experts.expert(0), 0)[0], 30);
  EXPECT_EQ(decoded(experts.expert(1), 0)[0], 1000);

  ExpertTables plain_tables;
  Weight plain = matrix(1);
  EXPECT_TRUE(alike(plain, matrix(0)));
  plain.scales = {};
  plain.scale = 1;
  EXPECT_FALSE(alike(plain, matrix(0)));
  const ExpertWeights unscaled = plain_tables.assign({plain, plain});
  EXPECT_EQ(unscaled.scale, nullptr);
  EXPECT_EQ(unscaled.scales_data, nullptr);
  EXPECT_EQ(decoded(unscaled.expert(1), 0)[0], 2);
}

}  // namespace
}  // namespace proa
