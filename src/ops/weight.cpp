#include "ops/weight.h"

#include <cassert>

namespace proa {

Weight wrap(const Tensor& tensor) {
  const int64_t cols = tensor.cols();
  const int64_t rows = tensor.rows();
  assert((tensor.shape.size() <= 2 || tensor.shape.elements() == tensor.shape.front() * cols) && "not a matrix");
  return {.data = tensor.data,
          .rows = rows,
          .cols = cols,
          .row_stride = row_bytes(tensor.format, cols),
          .format = tensor.format};
}

}  // namespace proa
