// Rounding to the nearest level, for the encoders of formats.
#pragma once

namespace proa {

// floor(q + 0.5) within [low, high]. NaN becomes low, or 0 where that is higher: no undefined conversion.
inline int nearest_level(float q, int low, int high) {
  if (q >= static_cast<float>(high)) return high;
  if (q <= static_cast<float>(low)) return low;
  if (q != q) return low > 0 ? low : 0;
  const int down = static_cast<int>(q) - (q < static_cast<float>(static_cast<int>(q)) ? 1 : 0);
  return down + (q - static_cast<float>(down) >= 0.5f ? 1 : 0);
}

// 1 / d, and 0 where there is nothing to divide by.
inline float inverse_or_zero(float d) { return d != 0 ? 1.0f / d : 0.0f; }

// The value of largest magnitude with its sign, the first of equals.
inline float extreme_of(const float* x, int count) {
  float extreme = 0;
  for (int i = 0; i < count; ++i) {
    const float magnitude = x[i] < 0 ? -x[i] : x[i];
    if (magnitude > (extreme < 0 ? -extreme : extreme)) extreme = x[i];
  }
  return extreme;
}

// Scale and minus the minimum of `levels` equal steps from min(x, 0) to max(x).
inline void range_of(const float* x, int count, int levels, float& scale, float& min) {
  float least = 0;
  float most = 0;
  for (int i = 0; i < count; ++i) {
    least = x[i] < least ? x[i] : least;
    most = x[i] > most ? x[i] : most;
  }
  scale = (most - least) / static_cast<float>(levels);
  min = -least;
}

}  // namespace proa
