// Element-wise functions between the two halves of an MLP.
#pragma once

#include <cmath>
#include <cstdint>

namespace proa {

enum class Activation : uint8_t {
  relu2,  // relu(x)²
  silu,   // x · sigmoid(x)
};

template <typename T>
T activate(Activation activation, T x) {
  if (activation == Activation::relu2) return x > 0 ? x * x : T{0};
  return x / (1 + std::exp(-x));
}

}  // namespace proa
