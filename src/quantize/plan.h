// Where every tensor of a quantised checkpoint comes from and where its bytes go, settled before anything is written:
// files with their headers, and one item per matrix or vector of the source, in any order.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "core/result.h"
#include "models/precision.h"
#include "quantize/source.h"

namespace proa {

enum class Recipe : uint8_t {
  encode,   // to Item::format; the same bytes where the source has that format
  neg_exp,  // -exp(x) as F32: A of A_log
  fp8,      // E4M3 and one F32 scale: amax / 448
  nvfp4,    // E2M1, an E4M3 scale for 16 values, one F32 scale: amax / (6 · 448)
  raw,      // bytes as they are
};

struct Place {
  uint32_t file = 0;
  uint64_t offset = 0;  // in the file; 0: nowhere, since headers come first
  explicit operator bool() const { return offset != 0; }
};

struct QuantizeItem {
  std::string source;          // tensor of the source
  int64_t slice = -1;          // of its first dimension; -1: all of it
  std::vector<int64_t> shape;  // of this part, PyTorch order
  std::string module;          // "backbone.layers.1.mixer.experts.3.up_proj"; empty: no matrix of a linear layer
  Recipe recipe = Recipe::encode;
  Format format{};
  Place data;
  Place group_scales, scale, input_scale;  // of fp8 and nvfp4
  Place kv_scale;                          // of k_proj and v_proj, where the files have them

  int64_t cols() const { return shape.empty() ? 1 : shape.back(); }
  int64_t rows() const;
};

struct QuantizedFile {
  std::string name;  // plain; of a GGUF file empty: it is the output itself
  std::vector<std::byte> header;
  uint64_t bytes = 0;
};

struct QuantizePlan {
  const Precision* precision = nullptr;
  bool gguf = false;
  bool scales_activations = false;  // items have input scales: calibration is needed
  std::vector<QuantizedFile> files;
  std::map<std::string, std::string> texts;  // files beside the weights
  std::vector<QuantizeItem> items;           // in the order of the source's names
  std::vector<std::string> dropped;          // tensors of the source that a GGUF file has no place for
  uint64_t source_bytes = 0;                 // that items read

  uint64_t bytes() const;
};

struct PlanOptions {
  uint64_t max_shard_bytes = 5'000'000'000;
  std::string name;          // general.name of a GGUF file
  bool input_scales = true;  // off: weights alone are quantised (W8A16, W4A16)
};

// Precisions that quantize() can make: whose encoders are those of others, bit for bit or nearly.
std::string quantize_precisions();  // "fp8, nvfp4, q8_0 ..."
Result<const Precision*> find_quantize_precision(std::string_view name);
inline bool is_folder_precision(const Precision& precision) {
  return precision.name == "fp8" || precision.name == "nvfp4";
}

// Errors, all of one kind together: tensors that are missing, of another shape, or stored in another way than as plain
// floats; matrices whose rows are no multiple of the precision's blocks; a tokenizer that a GGUF file cannot hold.
Result<QuantizePlan> plan_quantize(const QuantizeSource& source, const Precision& precision,
                                   const PlanOptions& options);

}  // namespace proa
