// From a checked tensor table to what layers hold: matrices placed on the device, small tensors widened to F32.
#pragma once

#include <span>
#include <string>
#include <vector>

#include "checkpoint/checkpoint.h"
#include "checkpoint/tensor_table.h"
#include "layers/moe.h"
#include "ops/backend.h"

namespace proa {

// Formats that a vector of a checkpoint (a norm, a bias) may have; matrices may have any.
inline const std::vector<Format> kVectorFormats = {Format::F32, Format::BF16, Format::F16};

// Remembers its first error, so that a model's loading reads as its list of tensors; ask status() at the end.
class WeightLoader {
 public:
  WeightLoader(TensorMap tensors, Backend& backend) : tensors_(std::move(tensors)), backend_(backend) {}

  // Every name must be in the table, except where `optional` says that an empty result will do.
  Weight matrix(const std::string& name, bool optional = false);
  const float* vector(const std::string& name, bool optional = false);  // decoded, in memory of buffers()
  const float* copy(std::span<const float> values);

  // [n_routed_experts] matrices, from one tensor [n_routed_experts, rows, cols] or from one per expert. The pointers go
  // to `data`, which the result points to.
  ExpertWeights experts(const std::string& stacked_name, std::vector<const std::byte*>& data);
  ExpertWeights experts(std::span<const std::string> names, std::vector<const std::byte*>& data);

  const Result<void>& status() const { return status_; }
  int64_t num_parameters() const { return num_parameters_; }  // of all that was asked for
  int64_t weight_bytes() const { return weight_bytes_; }
  // Memory behind vector(); the model keeps it.
  std::vector<Buffer> take_buffers() { return std::move(buffers_); }

 private:
  const Tensor* find(const std::string& name, bool optional);
  void count(const Tensor& tensor);
  Weight place(const Tensor& tensor);

  TensorMap tensors_;
  Backend& backend_;
  std::vector<Buffer> buffers_;
  Result<void> status_;
  int64_t num_parameters_ = 0;
  int64_t weight_bytes_ = 0;
};

}  // namespace proa
