// From a checked tensor table to what layers hold: matrices placed on the device, small tensors widened to F32.
#pragma once

#include <map>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "checkpoint/checkpoint.h"
#include "checkpoint/scaled_tensors.h"
#include "checkpoint/tensor_table.h"
#include "layers/moe.h"
#include "models/model.h"
#include "ops/backend.h"

namespace proa {

// Formats that a vector of a checkpoint (a norm, a bias) may have; matrices may have any.
inline const std::vector<Format> kVectorFormats = {Format::F32, Format::BF16, Format::F16};

// Tensors that may be in a checkpoint and are not used: a pattern as check_tensors() takes it, and what they are for.
struct Ignored {
  std::string pattern;
  const char* what;
};

// The tensors that a model wants, with their scales, checked against the checkpoint. Errors as of scaled_tensors() and
// check_tensors().
struct CheckedTensors {
  TensorMap tensors;
  std::map<const std::byte*, Scaling> scaling;
  std::map<std::string, float, std::less<>> kv_scales;  // of ScaledTensors
  std::vector<UnusedTensors> unused;  // ignored ones, and scales that only other arithmetic would need
  const DummyIndex* dummy = nullptr;  // the checkpoint's
};
Result<CheckedTensors> checked_tensors(const Checkpoint& checkpoint, std::span<const TensorSpec> table,
                                       std::span<const Ignored> ignored);

// Remembers its first error, so that a model's loading reads as its list of tensors; ask status() at the end.
class WeightLoader {
 public:
  WeightLoader(CheckedTensors checked, Backend& backend)
      : tensors_(std::move(checked.tensors)),
        scaling_(std::move(checked.scaling)),
        kv_scales_(std::move(checked.kv_scales)),
        dummy_(checked.dummy),
        backend_(backend) {}

  // Every name must be in the table, except where `optional` says that an empty result will do.
  Weight matrix(WeightKind kind, const std::string& name, bool optional = false);
  const float* vector(const std::string& name, bool optional = false);        // decoded, in memory of take_buffers()
  std::vector<float> values(const std::string& name, bool optional = false);  // decoded, for the host to work on
  // Of an FP8 KV cache, beside the projection whose weight is named: "k_scale" or "v_scale"; 1 where there is none.
  float kv_scale(const std::string& projection, const std::string& scale) const;
  template <typename T>
  const T* copy(const std::vector<T>& values) {  // to the device, in memory of take_buffers()
    return static_cast<const T*>(copy_bytes(std::as_bytes(std::span(values))));
  }

  // [n_routed_experts] matrices, from one tensor [n_routed_experts, rows, cols] or from one per expert. The result
  // points to `tables`. A token needs `per_token` of them.
  ExpertWeights experts(const std::string& stacked_name, int per_token, ExpertTables& tables);
  ExpertWeights experts(std::span<const std::string> names, int per_token, ExpertTables& tables);

  const Result<void>& status() const { return status_; }
  // Memory behind all of it; the model keeps it.
  std::vector<Buffer> take_buffers() { return std::move(buffers_); }
  // All that was asked for and was there.
  std::vector<WeightUse> take_uses() { return std::move(uses_); }

 private:
  const Tensor* find(const std::string& name, bool optional);
  void fail(Error error);
  // How to make the bytes of a tensor that are nowhere; none: they are where they should be.
  std::optional<DummyIndex::Place> missing(const Tensor& tensor) const;
  Weight place(const Tensor& tensor);
  // The matrices of a tensor [matrices, rows, cols], or the one it is.
  std::vector<Weight> place_each(const Tensor& tensor, bool stacked);
  const void* copy_bytes(std::span<const std::byte> bytes);
  // The matrices of a tensor, one unless it is [matrices, rows, cols], with their scales; their bytes go to `use`.
  std::vector<Weight> matrices(const Tensor& tensor, WeightUse& use);
  ExpertWeights assign(const std::vector<Weight>& experts, ExpertTables& tables, const std::string& name);

  TensorMap tensors_;
  std::map<const std::byte*, Scaling> scaling_;
  std::map<std::string, float, std::less<>> kv_scales_;
  const DummyIndex* dummy_;
  Backend& backend_;
  std::vector<Buffer> buffers_;
  Result<void> status_;
  std::vector<WeightUse> uses_;
};

}  // namespace proa
