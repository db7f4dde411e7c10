// What a cache of fewer bits does to answers, on any device whose memory the host shares: keys, values and states are
// rounded as that cache would store them, and kept in F32. For evaluation; nothing gets smaller or faster.
#pragma once

#include <memory>
#include <optional>
#include <string>

#include "core/result.h"
#include "ops/forwarding_backend.h"

namespace proa {

enum class Rounding : uint8_t { none, f16, bf16, e4m3 };

class RoundingBackend final : public ForwardingBackend {
 public:
  // Keys and values are rounded when they are stored, scale 1; SSM states at the end of every step that writes them:
  // once a token in decoding, once a chunk in prefill. Convolution states stay.
  RoundingBackend(std::shared_ptr<Backend> inner, Rounding keys_values, Rounding state)
      : ForwardingBackend(std::move(inner)), keys_values_(keys_values), state_(state) {}

  void attend(const Attend& op) override;
  void conv_ssm_step(const ConvSsmStep& op) override;
  void ssd_chunk(const SsdChunk& op) override;

 private:
  void round_state(const StateCacheView& cache, const Mamba2Shape& shape, const int32_t* slots, int count) const;

  Rounding keys_values_, state_;
  std::vector<float> k_, v_;
};

}  // namespace proa
