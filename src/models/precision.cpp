#include "models/precision.h"

#include <algorithm>
#include <cctype>

namespace proa {
namespace {

constexpr Precision kPrecisions[] = {
    {"bf16", "the published BF16 weights", true, true},
    {"fp8", "ModelOpt FP8: attention, the Mamba-2 layers before it, embedding and lm_head stay BF16", false, true},
    {"nvfp4", "ModelOpt NVFP4 with the same exceptions; as GGUF all matrices", true, true},
    {"f32", "all F32", true, false},
    {"f16", "matrices F16", true, false},
    {"q8_0", "matrices Q8_0", true, false},
    {"q6_k", "matrices Q6_K, or Q8_0 where rows are no multiple of 256", true, false},
    {"q5_k_m", "llama-quantize's mix: Q5_K or Q5_1, some Q6_K or Q8_0", true, false},
    {"q5_k", "matrices Q5_K or Q5_1", true, false},
    {"q5_1", "matrices Q5_1", true, false},
    {"q5_0", "matrices Q5_0", true, false},
    {"q4_k_m", "llama-quantize's mix: Q4_K or Q5_0, some Q6_K or Q8_0", true, false},
    {"q4_k", "matrices Q4_K or Q5_0", true, false},
    {"q4_1", "matrices Q4_1", true, false},
    {"q4_0", "matrices Q4_0", true, false},
    {"iq4_nl", "matrices IQ4_NL", true, false},
    {"iq4_xs", "matrices IQ4_XS or IQ4_NL", true, false},
    {"mxfp4", "experts MXFP4, other matrices Q8_0", true, false},
    {"q3_k", "matrices Q3_K or Q4_0", true, false},
    {"q2_k", "matrices Q2_K or Q4_0", true, false},
};

std::string lower(std::string_view text) {
  std::string result(text);
  for (char& c : result) c = static_cast<char>(std::tolower(static_cast<unsigned char>(c)));
  return result;
}

// What llama-quantize takes where a row is not a multiple of the block.
Format fallback(Format format) {
  switch (format) {
    case Format::Q2_K:
    case Format::Q3_K:
      return Format::Q4_0;
    case Format::Q4_K:
      return Format::Q5_0;
    case Format::Q5_K:
      return Format::Q5_1;
    case Format::Q6_K:
      return Format::Q8_0;
    case Format::IQ4_XS:
      return Format::IQ4_NL;
    case Format::NVFP4:
      return Format::MXFP4;
    default:
      return format;
  }
}

Format base_format(std::string_view precision) {
  if (precision == "q4_k_m") return Format::Q4_K;
  if (precision == "q5_k_m") return Format::Q5_K;
  std::string name(precision);
  for (char& c : name) c = static_cast<char>(std::toupper(static_cast<unsigned char>(c)));
  return format_from_name(name).value_or(Format::F32);
}

// The first and last eighth of `count` layers, and every third between them.
bool more_bits(int i, int count) { return i < count / 8 || i >= 7 * count / 8 || (i - count / 8) % 3 == 2; }

}  // namespace

std::span<const Precision> known_precisions() { return kPrecisions; }

Result<const Precision*> find_precision(std::string_view name) {
  const std::string wanted = lower(name);
  for (const Precision& precision : kPrecisions) {
    if (precision.name == wanted) return &precision;
  }
  std::string known;
  for (const Precision& precision : kPrecisions) known += (known.empty() ? "" : ", ") + std::string(precision.name);
  return Error{"find precision", "--quantization", "one of " + known, std::string(name.substr(0, 100)), ""};
}

Format gguf_format(const Precision& precision, const nemotron_h::NemotronHConfig& config, std::string_view name,
                   std::span<const int64_t> shape, int layer, int index) {
  const auto has = [&](std::string_view part) { return name.find(part) != name.npos; };
  const bool is_matrix = shape.size() > 1 && name.ends_with(".weight") && !name.ends_with("_norm.weight") &&
                         !has("ffn_gate_inp") && !has("ssm_conv1d");
  if (!is_matrix) return Format::F32;

  Format format = base_format(precision.name);
  const bool plain = format == Format::F32 || format == Format::F16 || format == Format::BF16;
  if (precision.name == "mxfp4") {
    if (shape.size() < 3) format = Format::Q8_0;
  } else if (name == "output.weight") {
    if (!plain && format != Format::Q8_0) format = Format::Q6_K;
  } else if (precision.name.ends_with("_m")) {
    const auto count = [&](char mixer) {
      return static_cast<int>(std::count(config.pattern.begin(), config.pattern.end(), mixer));
    };
    const bool moe = config.n_routed_experts > 1;
    const bool more = has("attn_v")     ? more_bits(index, count('*'))
                      : has("ffn_down") ? more_bits(moe ? layer : index, static_cast<int>(config.pattern.size()))
                                        : false;
    if (more) format = Format::Q6_K;
  }
  const auto fits = [&](Format f) { return shape.back() % info(f).block_elements == 0; };
  if (!fits(format)) format = fallback(format);
  return fits(format) ? format : Format::F16;
}

HfScheme hf_scheme(const Precision& precision, const nemotron_h::NemotronHConfig& config, bool mixed,
                   std::string_view name, std::span<const int64_t> shape, int layer) {
  const auto has = [&](std::string_view part) { return name.find(part) != name.npos; };
  // Super's router is BF16, the others' are F32.
  if (has(".gate.")) return config.moe_latent_size && !has("bias") ? HfScheme::bf16 : HfScheme::f32;
  if (precision.name == "bf16" || shape.size() != 2) return HfScheme::bf16;
  const bool fp8 = precision.name == "fp8";
  if (!fp8 && shape.back() % 16 != 0) return HfScheme::bf16;
  const char mixer = layer < 0 ? ' ' : config.pattern[static_cast<size_t>(layer)];

  if (mixed) {
    if (mixer == 'M') return HfScheme::fp8;
    return name == "lm_head.weight" || mixer == 'E' ? HfScheme::nvfp4_weight_only : HfScheme::bf16;
  }
  const bool before_attention = mixer == 'M' && static_cast<size_t>(layer) + 1 < config.pattern.size() &&
                                config.pattern[static_cast<size_t>(layer) + 1] == '*';
  if (layer < 0 || mixer == '*' || before_attention) return HfScheme::bf16;
  return fp8 ? HfScheme::fp8 : HfScheme::nvfp4;
}

}  // namespace proa
