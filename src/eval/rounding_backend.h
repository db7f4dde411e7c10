// What a state of fewer bits does to answers, on any device whose memory the host shares: states are rounded as such a
// cache would store them, and kept in F32. For evaluation; nothing gets smaller or faster.
#pragma once

#include <memory>
#include <optional>
#include <string>

#include "core/result.h"
#include "ops/forwarding_backend.h"

namespace proa {

enum class Rounding : uint8_t { none, f16, bf16 };

class RoundingBackend final : public ForwardingBackend {
 public:
  // SSM states are rounded at the end of every step that writes them: once a token in decoding, once a chunk in
  // prefill. Convolution states stay.
  RoundingBackend(std::shared_ptr<Backend> inner, Rounding state)
      : ForwardingBackend(std::move(inner)), state_(state) {}

  void conv_ssm_step(const ConvSsmStep& op) override;
  void ssd_chunk(const SsdChunk& op) override;

 private:
  void round_state(const StateCacheView& cache, const Mamba2Shape& shape, const int32_t* slots, int count) const;

  Rounding state_;
};

}  // namespace proa
