// Matrices that a checkpoint keeps in several tensors: stored values, and beside them scales. They become one entry of
// the matrix's own shape with its scaling apart, so that models name the matrix alone. What a tensor is, its dtype and
// the tensors beside it tell. For X.weight of a linear layer [N, K], or stacked experts [E, N, K]:
//
//   FP8     X.weight F8_E4M3 [N, K];    X.weight_scale [] or [1]: of the matrix; [N] or [N, 1]: of each row
//   NVFP4   X.weight U8 [N, K / 2], two E2M1 in a byte;  X.weight_scale F8_E4M3 [N, K / 16];  X.weight_scale_2 []
//   GGUF    X.weight of any type;       X.scale [1]
//
// A scale of the matrix is [E] where it is one per expert. X.input_scale [], [1] or [E] belongs to activations, which
// stay as they are unless a backend is told to round them: that of FP8 is kept. X.k_scale and X.v_scale [] are those of
// an FP8 KV cache: a cached value is the key or value divided by it. (Reference nemotron-h 4.1, 4.3, 4.6, 5.6.) A new
// scheme is a case here, and where its stored values are of a new kind a format in quant/.
#pragma once

#include <map>
#include <string>
#include <vector>

#include "checkpoint/quant_config.h"
#include "checkpoint/tensor_entry.h"
#include "core/result.h"

namespace proa {

class Checkpoint;

struct Scaling {
  QuantScheme scheme = QuantScheme::none;  // none: a scale beside a GGUF tensor
  TensorEntry group_scales{};              // [.., N, K / group] as stored; no format: none
  int64_t group = 0;
  std::vector<float> row_scales{};  // [E · N], or empty
  std::vector<float> scales{};      // of whole matrices: [1] for all, or [E]
  float input_scale = 0;            // of FP8's activations, the largest that is above 0 and finite; 0: none
};

struct ScaledTensors {
  // Without the tensors that scale others. A matrix of NVFP4 has format E2M1 and its full shape.
  std::map<std::string, TensorEntry, std::less<>> entries;
  // By the address of the matrix's first byte: its names in file and model may differ.
  std::map<const std::byte*, Scaling> scaling;
  // Of an FP8 KV cache, by the name of the tensor that has it: "...k_proj.k_scale".
  std::map<std::string, float, std::less<>> kv_scales;
};

// Errors, all differences together: scales that are missing, of a wrong shape or type, negative or not finite; stored
// values that are not what the checkpoint's quantisation config says, by module.
Result<ScaledTensors> scaled_tensors(const Checkpoint& checkpoint);

// The same on a bare list of entries.
Result<ScaledTensors> scaled_tensors(const std::map<std::string, TensorEntry, std::less<>>& entries, bool gguf,
                                     const std::string& path, const QuantConfig& config);

}  // namespace proa
