// A block or a slot that is to be copied, within the device or between it and the host.
#pragma once

#include <cstddef>
#include <cstdint>

#include "ops/backend.h"

namespace proa {

struct CacheMove {
  enum class What : uint8_t { block, slot };
  enum class How : uint8_t { on_device, to_host, to_device };
  What what;
  How how;
  int32_t from, to;
};

// In order with the ops, as all copies of a backend.
inline void carry(Backend& backend, CacheMove::How how, void* to, const void* from, size_t bytes) {
  switch (how) {
    case CacheMove::How::on_device:
      return backend.copy(to, from, bytes);
    case CacheMove::How::to_host:
      return backend.download(to, from, bytes);
    case CacheMove::How::to_device:
      return backend.upload(to, from, bytes);
  }
}

}  // namespace proa
