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

}  // namespace proa
