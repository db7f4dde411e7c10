#include "checkpoint/tensor_entry.h"

#include "checkpoint/printable.h"
#include "quant/formats.h"

namespace proa {

Result<Tensor> to_tensor(const TensorEntry& entry) {
  const std::string where = entry.file + ": " + printable(entry.name);
  if (!entry.format) {
    std::string known;
    for (Format format : kFormats) known += (known.empty() ? "one of " : ", ") + std::string(info(format).name);
    return Error{.doing = "use tensor", .where = where, .expected = known, .actual = "type " + printable(entry.type)};
  }
  if (entry.shape.size() > Shape::kMaxRank) {
    return Error{.doing = "use tensor",
                 .where = where,
                 .expected = "at most 4 dimensions",
                 .actual = "shape " + to_string(entry.shape)};
  }
  const size_t alignment = info(*entry.format).block_alignment;
  if (entry.bytes != 0 && reinterpret_cast<uintptr_t>(entry.data) % alignment != 0) {
    return Error{.doing = "use tensor",
                 .where = where,
                 .expected = "data at a multiple of " + std::to_string(alignment) + " bytes",
                 .actual = "data not aligned for " + entry.type,
                 .hint = "rewrite the file with a current version of its library"};
  }
  return Tensor{entry.data, Shape(std::span<const int64_t>(entry.shape)), *entry.format, entry.bytes};
}

}  // namespace proa
