#include "ops/backend.h"

#include <vector>

#include "quant/dummy.h"

namespace proa {

Result<PlacedWeight> Backend::place_dummy(const Tensor& tensor, const DummyFill& fill, uint64_t begin) {
  PROA_ASSIGN(Buffer memory, allocate(tensor.bytes));
  std::vector<std::byte> bytes(tensor.bytes);
  fill_dummy(fill, begin, bytes);
  upload(memory.data(), bytes.data(), bytes.size());
  PlacedWeight placed{wrap(tensor), memory};
  placed.weight.data = memory.data();
  placed.weight.residency = shares_memory() ? Residency::host : Residency::device;
  return placed;
}

}  // namespace proa
