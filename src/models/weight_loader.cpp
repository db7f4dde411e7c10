#include "models/weight_loader.h"

#include <cassert>
#include <cstring>

namespace proa {

const Tensor* WeightLoader::find(const std::string& name, [[maybe_unused]] bool optional) {
  const auto it = tensors_.find(name);
  assert((it != tensors_.end() || optional) && "a tensor was asked for that the table does not name");
  if (it == tensors_.end()) return nullptr;
  count(it->second);
  return &it->second;
}

void WeightLoader::count(const Tensor& tensor) {
  num_parameters_ += tensor.shape.elements();
  weight_bytes_ += static_cast<int64_t>(tensor.bytes);
}

Weight WeightLoader::place(const Tensor& tensor) {
  auto weight = backend_.place(tensor);
  if (weight.ok()) return *weight;
  if (status_.ok()) status_ = weight.error();
  return {};
}

Weight WeightLoader::matrix(const std::string& name, bool optional) {
  const Tensor* tensor = find(name, optional);
  return tensor ? place(*tensor) : Weight{};
}

const float* WeightLoader::vector(const std::string& name, bool optional) {
  const Tensor* tensor = find(name, optional);
  if (!tensor) return nullptr;
  std::vector<float> values(static_cast<size_t>(tensor->shape.elements()));
  decode_row(tensor->format, tensor->data, tensor->shape.elements(), values.data());
  return copy(values);
}

const float* WeightLoader::copy(std::span<const float> values) {
  auto buffer = backend_.allocate(values.size_bytes());
  if (!buffer.ok()) {
    if (status_.ok()) status_ = buffer.error();
    return nullptr;
  }
  std::memcpy(buffer->data(), values.data(), values.size_bytes());
  buffers_.push_back(*buffer);
  return buffer->as<float>();
}

ExpertWeights WeightLoader::experts(const std::string& stacked_name, std::vector<const std::byte*>& data) {
  const Tensor* stacked = find(stacked_name, false);
  if (!stacked) return {};
  Weight weight;
  for (int64_t e = 0; e < stacked->shape.front(); ++e) {
    weight = place(stacked->slice(e));
    data.push_back(weight.data);
  }
  return {data.data(), weight.rows, weight.cols, weight.row_stride, weight.format, weight.layout, weight.residency};
}

ExpertWeights WeightLoader::experts(std::span<const std::string> names, std::vector<const std::byte*>& data) {
  Weight first;
  for (const std::string& name : names) {
    const Weight weight = matrix(name);
    if (data.empty()) first = weight;
    if (weight.format != first.format && status_.ok()) {
      status_ = Error{.doing = "load experts",
                      .where = name,
                      .expected = "format " + std::string(info(first.format).name) + " as " + names.front() + " has",
                      .actual = std::string(info(weight.format).name)};
    }
    data.push_back(weight.data);
  }
  return {data.data(), first.rows, first.cols, first.row_stride, first.format, first.layout, first.residency};
}

}  // namespace proa
