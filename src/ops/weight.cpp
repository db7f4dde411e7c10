#include "ops/weight.h"

#include <algorithm>
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

void decode_row(const Weight& weight, int64_t r, float* y) {
  decode_row(weight.format, weight.row(r), weight.cols, y);
  apply_scales(weight, r, y);
  if (weight.scale == 1) return;
  for (int64_t c = 0; c < weight.cols; ++c) y[c] *= weight.scale;
}

void apply_scales(const Weight& weight, int64_t r, float* y) {
  const Scales& scales = weight.scales;
  if (!scales) return;
  assert(info(scales.format).block_elements == 1 && scales.group > 0);
  constexpr int64_t kAtOnce = 64;
  float values[kAtOnce];
  const int64_t groups = (weight.cols + scales.group - 1) / scales.group;
  for (int64_t first = 0; first < groups; first += kAtOnce) {
    const int64_t count = std::min(kAtOnce, groups - first);
    decode_row(scales.format, scales.row(r) + row_bytes(scales.format, first), count, values);
    for (int64_t g = 0; g < count; ++g) {
      const int64_t begin = (first + g) * scales.group;
      const int64_t end = std::min(weight.cols, begin + scales.group);
      for (int64_t c = begin; c < end; ++c) y[c] *= values[g];
    }
  }
}

bool alike(const Weight& a, const Weight& b) {
  return a.rows == b.rows && a.cols == b.cols && a.row_stride == b.row_stride && a.format == b.format &&
         a.layout == b.layout && a.residency == b.residency && !a.scales == !b.scales &&
         a.scales.row_stride == b.scales.row_stride && a.scales.format == b.scales.format &&
         a.scales.group == b.scales.group;
}

ExpertWeights ExpertTables::assign(const std::vector<Weight>& experts) {
  data.clear();
  scales.clear();
  scale.clear();
  if (experts.empty()) return {};
  for (const Weight& weight : experts) {
    assert(alike(weight, experts.front()));
    data.push_back(weight.data);
    scales.push_back(weight.scales.data);
    scale.push_back(weight.scale);
  }
  const Weight& first = experts.front();
  const bool plain = std::all_of(scale.begin(), scale.end(), [](float s) { return s == 1; });
  const auto most = std::max_element(experts.begin(), experts.end(),
                                     [](const Weight& a, const Weight& b) { return a.input_scale < b.input_scale; });
  return {.data = data.data(),
          .rows = first.rows,
          .cols = first.cols,
          .row_stride = first.row_stride,
          .format = first.format,
          .layout = first.layout,
          .residency = first.residency,
          .scales = first.scales,
          .scales_data = first.scales ? scales.data() : nullptr,
          .scale = plain ? nullptr : scale.data(),
          .input_scale = most->input_scale};
}

}  // namespace proa
