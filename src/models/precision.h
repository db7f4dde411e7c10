// Precisions as data: which format each tensor has in the files that people publish. GGUF follows llama-quantize,
// safetensors follow ModelOpt's exports (reference nemotron-h 3.2, 4.2-4.5, 5.4).
#pragma once

#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "checkpoint/checkpoint.h"
#include "models/nemotron_h_tensors.h"

namespace proa {

struct Precision {
  std::string_view name;  // "q4_0", as --quantization takes it
  std::string_view what;  // one line for people
  bool gguf;              // there are GGUF files of it
  bool huggingface;       // there are safetensors of it; where both are, dummy weights take these
};

std::span<const Precision> known_precisions();
// In any case. Errors: an unknown name, with the known ones.
Result<const Precision*> find_precision(std::string_view name);

// The format that a tensor of a GGUF file has; `index` counts tensors of the same name in other layers before it. What
// llama-quantize leaves alone is F32. Where a row does not divide by the block it takes another type, as it does there.
Format gguf_format(const Precision& precision, const nemotron_h::NemotronHConfig& config, std::string_view name,
                   std::span<const int64_t> shape, int layer, int index);

// How a tensor of a safetensors checkpoint is stored. `mixed`: NVFP4 as Lightning has it, with FP8 for Mamba-2 and a
// packed lm_head.
enum class HfScheme { bf16, f32, fp8, nvfp4, nvfp4_weight_only };
HfScheme hf_scheme(const Precision& precision, const nemotron_h::NemotronHConfig& config, bool mixed,
                   std::string_view name, std::span<const int64_t> shape, int layer);

}  // namespace proa
