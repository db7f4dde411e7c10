// What published files say about themselves beside their tensors: the metadata of a GGUF file, ModelOpt's
// hf_quant_config.json. For whoever writes checkpoints: dummy weights, quantize.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "checkpoint/gguf_writer.h"
#include "checkpoint/tensor_table.h"
#include "models/nemotron_h_tensors.h"
#include "models/precision.h"

namespace proa {

// "blk.7.ssm_in.weight" and "backbone.layers.7.mixer..." to 7; -1 outside of layers.
int layer_of(std::string_view name);

// The keys that llama.cpp's converter writes for this family (reference nemotron-h 5.2), without a tokenizer.
void put_gguf_metadata(const nemotron_h::NemotronHConfig& config, const std::string& name, GgufWriter& out);

// The shape that a tensor of the table of GGUF names has there: as the converter leaves it, the convolution's middle
// size gone, SSM vectors with one more.
std::vector<int64_t> gguf_shape(const TensorSpec& spec);

// The modules that hf_quant_config.json names.
struct QuantisedModules {
  std::vector<std::string> excluded;
  std::vector<std::pair<std::string, const char*>> quantised;  // with the algorithm

  void add(const TensorSpec& spec, HfScheme scheme);
};
std::string hf_quant_config(const Precision& precision, bool mixed, const QuantisedModules& modules);

// Tensors, in order, over files of at most `max_bytes` each. A Tensor has `bytes` and `name`.
template <class Tensor>
class Shards {
 public:
  explicit Shards(uint64_t max_bytes) : max_bytes_(max_bytes) {}

  // These stay together: a matrix and its scales.
  void add(std::vector<Tensor> tensors) {
    uint64_t bytes = 0;
    for (const Tensor& tensor : tensors) bytes += tensor.bytes;
    if (in_last_ > 0 && in_last_ + bytes > max_bytes_) files.emplace_back(), in_last_ = 0;
    in_last_ += bytes;
    total_bytes += bytes;
    for (Tensor& tensor : tensors) files.back().push_back(std::move(tensor));
  }

  std::vector<std::vector<Tensor>> files{1};
  uint64_t total_bytes = 0;

 private:
  uint64_t max_bytes_, in_last_ = 0;
};

// "model.safetensors" where there is one file, else "model-00001-of-00003.safetensors".
std::string shard_name(size_t number, size_t count);

// model.safetensors.index.json.
std::string shard_index(const std::vector<std::pair<std::string, std::string>>& file_of_tensor, uint64_t total_bytes);
template <class Tensor>
std::string shard_index(const Shards<Tensor>& shards) {
  std::vector<std::pair<std::string, std::string>> tensors;
  for (size_t i = 0; i < shards.files.size(); ++i) {
    for (const Tensor& tensor : shards.files[i]) tensors.emplace_back(tensor.name, shard_name(i, shards.files.size()));
  }
  return shard_index(tensors, shards.total_bytes);
}

}  // namespace proa
