#include "quantize/encode.h"

#include <gtest/gtest.h>

#include <vector>

#include "quant/minifloat.h"

namespace proa {
namespace {

// By hand from the definition: scale amax / (6 · 448), group scales E4M3, nearest codes.
TEST(Encode, Nvfp4Ties) {
  // A group whose scale is exactly 1: amax 6 with scale 1.
  const float x[16] = {6, -6, 0.25f, -0.25f, 0.75f, -0.75f, 1.25f, 1.75f, 2.5f, 3.5f, 5.0f, 0, -0.f, 0.26f, 4.9f, 5.1f};
  uint8_t codes[8], scales[1];
  encode_nvfp4(x, 16, 1, codes, scales);
  EXPECT_EQ(e4m3_to_float(scales[0]), 1);
  const uint8_t expected[16] = {7, 15, 0, 8, 2, 10, 2, 4, 4, 6, 6, 0, 0, 1, 6, 7};  // ties to the even code
  for (int i = 0; i < 16; ++i) {
    EXPECT_EQ(codes[i / 2] >> (4 * (i % 2)) & 15, expected[i]) << i << ": " << x[i];
  }
}

TEST(Encode, Nvfp4Scales) {
  std::vector<float> x(48, 0.f);
  x[0] = 6 * 448;  // the largest of the matrix: its group's scale is 448
  x[16] = 1e-6f;   // far below: the least scale there is
  const float scale = nvfp4_scale(6 * 448);
  EXPECT_FLOAT_EQ(scale, 1);
  uint8_t codes[24], scales[3];
  encode_nvfp4(x.data(), 48, scale, codes, scales);
  EXPECT_EQ(e4m3_to_float(scales[0]), 448);
  EXPECT_EQ(e4m3_to_float(scales[1]), 0x1p-9f);
  EXPECT_EQ(e4m3_to_float(scales[2]), 1);  // a group of zeros
  EXPECT_EQ(codes[0], 7);
  EXPECT_EQ(codes[8], 0);
}

TEST(Encode, Fp8) {
  const float scale = fp8_scale(448);
  EXPECT_EQ(scale, 1);
  EXPECT_EQ(fp8_scale(0), 1);
  const float x[] = {448, -448, 0, 1, 17, 18, 19, 0x1p-9f, 0x1p-10f, 3 * 0x1p-10f};
  const float expected[] = {448, -448, 0, 1, 16, 18, 20, 0x1p-9f, 0, 0x1p-8f};  // ties to even
  uint8_t out[10];
  encode_fp8(x, 10, scale, out);
  for (int i = 0; i < 10; ++i) EXPECT_EQ(e4m3_to_float(out[i]), expected[i]) << x[i];
}

}  // namespace
}  // namespace proa
