#include "quantize/encode.h"

#include <algorithm>
#include <cmath>

#include "quant/minifloat.h"

namespace proa {
namespace {

// Bounds between codes 0 0.5 1 1.5 2 3 4 6; on a bound the even code of the two.
uint8_t e2m1(float x) {
  constexpr float kBounds[] = {0.25f, 0.75f, 1.25f, 1.75f, 2.5f, 3.5f, 5.0f};
  const float magnitude = std::fabs(x);
  int code = 0;
  while (code < 7 && (magnitude > kBounds[code] || (magnitude == kBounds[code] && code % 2 == 1))) ++code;
  return static_cast<uint8_t>(code | (x < 0 ? 8 : 0));  // -0 is 0, a negative value that rounds to 0 is -0
}

}  // namespace

float fp8_scale(float amax) { return amax > 0 ? amax / kE4m3Max : 1; }
float nvfp4_scale(float amax) { return amax > 0 ? amax / (kE2m1Max * kE4m3Max) : 1; }

void encode_fp8(const float* x, int64_t cols, float scale, uint8_t* out) {
  for (int64_t i = 0; i < cols; ++i) out[i] = float_to_e4m3(x[i] / scale);
}

void encode_nvfp4(const float* x, int64_t cols, float scale, uint8_t* codes, uint8_t* group_scales) {
  for (int64_t g = 0; g < cols / 16; ++g) {
    const float* part = x + 16 * g;
    float amax = 0;
    for (int i = 0; i < 16; ++i) amax = std::max(amax, std::fabs(part[i]));
    float wanted = amax / (kE2m1Max * scale);
    if (wanted == 0) wanted = 1;
    group_scales[g] = float_to_e4m3(std::clamp(wanted, 0x1p-9f, kE4m3Max));
    const float factor = e4m3_to_float(group_scales[g]) * scale;
    for (int i = 0; i < 8; ++i) {
      codes[8 * g + i] = static_cast<uint8_t>(e2m1(part[2 * i] / factor) | e2m1(part[2 * i + 1] / factor) << 4);
    }
  }
}

}  // namespace proa
