// A tensor as a checkpoint file lists it, before anybody asks whether we can use it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "core/result.h"
#include "core/tensor.h"

namespace proa {

struct TensorEntry {
  std::string name{};
  std::vector<int64_t> shape{};     // PyTorch order; none negative, the product fits int64
  std::string type{};               // as the file calls it: "BF16", "I64", "Q4_K", "ggml type 99"
  std::optional<Format> format{};   // none: a type this program cannot compute with
  const std::byte* data = nullptr;  // in the mapping of the file
  size_t bytes = 0;                 // 0 also when the type's size is unknown
  std::string file{};               // path, for messages
};

// The entry as a Tensor. Errors (naming file and tensor): unknown type, more than Shape::kMaxRank dimensions, data not
// aligned for its format.
Result<Tensor> to_tensor(const TensorEntry& entry);

}  // namespace proa
