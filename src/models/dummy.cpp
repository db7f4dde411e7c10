#include "models/dummy.h"

#include <algorithm>
#include <cmath>
#include <map>
#include <numeric>

#include "checkpoint/gguf_writer.h"
#include "checkpoint/safetensors_writer.h"
#include "models/dummy_vocabulary.h"
#include "models/published.h"

namespace proa {
namespace {

using nemotron_h::NemotronHConfig;
using nlohmann::ordered_json;

constexpr double kSqrt12 = 3.4641016151377544;

int64_t elements(std::span<const int64_t> shape) {
  return std::accumulate(shape.begin(), shape.end(), int64_t{1}, std::multiplies<>());
}

// ---- GGUF ----

void put_vocabulary(const DummyVocabulary& vocabulary, GgufWriter& out) {
  out.put_string("tokenizer.ggml.model", "gpt2");
  out.put_string("tokenizer.ggml.pre", "pixtral");
  out.put_strings("tokenizer.ggml.tokens", vocabulary.tokens);
  std::vector<int32_t> types(vocabulary.tokens.size(), 1);
  std::fill_n(types.begin(), vocabulary.num_special, 3);
  out.put_i32s("tokenizer.ggml.token_type", types);
  const std::vector<std::string> merges = {"b a"};
  out.put_strings("tokenizer.ggml.merges", merges);
  out.put_u32("tokenizer.ggml.bos_token_id", static_cast<uint32_t>(vocabulary.bos));
  out.put_u32("tokenizer.ggml.eos_token_id", static_cast<uint32_t>(vocabulary.eos));
  out.put_u32("tokenizer.ggml.unknown_token_id", static_cast<uint32_t>(vocabulary.unk));
  out.put_u32("tokenizer.ggml.padding_token_id", static_cast<uint32_t>(vocabulary.unk));
  out.put_bool("tokenizer.ggml.add_bos_token", false);
  out.put_string("tokenizer.chat_template", dummy_chat_template());
}

DummyFile gguf_file(const NemotronHConfig& c, const std::string& name, const DummyVocabulary& vocabulary,
                    const Precision& precision, uint64_t seed) {
  GgufWriter out;
  put_gguf_metadata(c, name + ", dummy weights", out);
  put_vocabulary(vocabulary, out);
  DummyFile file{.name = "model.gguf"};
  uint64_t at = 0;
  const auto add = [&](const std::string& tensor, const std::vector<int64_t>& shape, const DummyFill& fill) {
    out.declare_tensor(tensor, shape, fill.format);
    const uint64_t bytes = static_cast<uint64_t>(elements(shape) / shape.back()) * row_bytes(fill.format, shape.back());
    file.tensors.push_back({tensor, at, bytes, fill});
    at += (bytes + out.alignment() - 1) / out.alignment() * out.alignment();
  };
  std::map<std::string, int> seen;  // by name within its layer
  for (const TensorSpec& spec : nemotron_h::tensor_table(c, nemotron_h::Names(Checkpoint::Kind::gguf))) {
    if (spec.optional) continue;
    const int layer = layer_of(spec.name);
    const int index = layer < 0 ? 0 : seen[spec.name.substr(spec.name.find('.', 4))]++;
    const std::vector<int64_t> shape = gguf_shape(spec);
    const Format format = gguf_format(precision, c, spec.name, shape, layer, index);
    double low = spec.low, high = spec.high;
    // Without a scale of its own NVFP4 reaches down to 2^-9 only: files have one beside each matrix that is multiplied.
    if (format == Format::NVFP4 && layer >= 0) {
      const int64_t matrices = shape.size() == 3 ? shape.front() : 1;
      const std::string scale = spec.name.substr(0, spec.name.size() - 6) + "scale";
      add(scale, {matrices}, dummy_fill(Format::F32, seed, scale, spec.high, spec.high));
      low = -1, high = 1;
    }
    add(spec.name, shape, dummy_fill(format, seed, spec.name, low, high));
  }
  file.header = out.header();
  for (DummyTensor& tensor : file.tensors) tensor.begin += file.header.size();
  file.bytes = file.header.size() + at;
  return file;
}

// ---- safetensors ----

struct HfTensor {
  std::string name;
  std::vector<int64_t> shape;
  std::string_view dtype;
  uint64_t bytes;
  DummyFill fill;
};

HfTensor plain_tensor(std::string name, std::vector<int64_t> shape, const DummyFill& fill) {
  const FormatInfo& format = info(fill.format);
  const auto bytes = static_cast<uint64_t>(elements(shape)) * format.block_bytes;
  return {std::move(name), std::move(shape), format.safetensors_dtype, bytes, fill};
}

// A tensor of the table with the scales that belong to it.
void add_hf(const TensorSpec& spec, HfScheme scheme, bool mixed, uint64_t seed, std::vector<HfTensor>& out) {
  const std::string module = spec.name.substr(0, spec.name.size() - std::min<size_t>(7, spec.name.size()));
  const double deviation = (spec.high - spec.low) / kSqrt12;
  const auto constant = [&](const char* suffix, std::vector<int64_t> shape, double value) {
    const std::string name = module + suffix;
    out.push_back(plain_tensor(name, std::move(shape), dummy_fill(Format::F32, seed, name, value, value)));
  };
  constexpr double kActivation = 8;  // the largest one that input scales provide for
  switch (scheme) {
    case HfScheme::bf16:
    case HfScheme::f32: {
      const Format format = scheme == HfScheme::f32 ? Format::F32 : Format::BF16;
      out.push_back(plain_tensor(spec.name, spec.shape, dummy_fill(format, seed, spec.name, spec.low, spec.high)));
      return;
    }
    case HfScheme::fp8:
      out.push_back(plain_tensor(spec.name, spec.shape, dummy_fill(Format::F8_E4M3, seed, spec.name, -1, 1)));
      constant(".weight_scale", {}, deviation / dummy_code_rms(Format::F8_E4M3));
      constant(".input_scale", mixed ? std::vector<int64_t>{1} : std::vector<int64_t>{}, kActivation / 448);
      return;
    case HfScheme::nvfp4:
    case HfScheme::nvfp4_weight_only: {
      std::vector<int64_t> packed = spec.shape, groups = spec.shape;
      packed.back() /= 2;
      groups.back() /= 16;
      const auto bytes = static_cast<uint64_t>(elements(packed));
      out.push_back({spec.name, packed, "U8", bytes, dummy_fill(Format::E2M1, seed, spec.name, -1, 1)});
      const std::string scales = module + ".weight_scale";
      out.push_back(plain_tensor(scales, groups, dummy_group_scales(seed, scales)));
      constant(".weight_scale_2", {}, deviation / (dummy_code_rms(Format::E2M1) * dummy_group_scale_rms()));
      if (scheme == HfScheme::nvfp4) constant(".input_scale", {}, kActivation / (6 * 448));
      return;
    }
  }
}

// As the official library orders a file: wide types first, then by name; so everything is aligned.
DummyFile shard_file(std::string name, std::vector<HfTensor>& tensors) {
  const auto width = [](const HfTensor& t) { return t.dtype == "F32" ? 0 : t.dtype == "BF16" ? 1 : 2; };
  std::sort(tensors.begin(), tensors.end(), [&](const HfTensor& a, const HfTensor& b) {
    return std::pair(width(a), std::string_view(a.name)) < std::pair(width(b), std::string_view(b.name));
  });
  SafetensorsWriter out;
  out.put_metadata("format", "pt");
  DummyFile file{.name = std::move(name)};
  uint64_t at = 0;
  for (const HfTensor& tensor : tensors) {
    out.declare_tensor(tensor.name, tensor.shape, tensor.dtype, tensor.bytes);
    file.tensors.push_back({tensor.name, at, tensor.bytes, tensor.fill});
    at += tensor.bytes;
  }
  file.header = out.header();
  for (DummyTensor& tensor : file.tensors) tensor.begin += file.header.size();
  file.bytes = file.header.size() + at;
  return file;
}

void add_safetensors(const NemotronHConfig& c, bool lightning, const Precision& precision, const DummyOptions& options,
                     DummyCheckpoint& out) {
  const bool mixed = lightning && precision.name == "nvfp4";
  QuantisedModules modules;
  Shards<HfTensor> shards(options.max_shard_bytes);
  for (const TensorSpec& spec : nemotron_h::tensor_table(c, nemotron_h::Names(Checkpoint::Kind::huggingface))) {
    if (spec.optional) continue;
    const HfScheme scheme = hf_scheme(precision, c, mixed, spec.name, spec.shape, layer_of(spec.name));
    modules.add(spec, scheme);
    std::vector<HfTensor> tensors;
    add_hf(spec, scheme, mixed, options.seed, tensors);
    shards.add(std::move(tensors));
  }
  const size_t count = shards.files.size();
  for (size_t i = 0; i < count; ++i) out.files.push_back(shard_file(shard_name(i, count), shards.files[i]));
  if (count > 1) out.texts["model.safetensors.index.json"] = shard_index(shards);
  if (precision.name != "bf16") out.texts["hf_quant_config.json"] = hf_quant_config(precision, mixed, modules);
}

}  // namespace

Result<DummyCheckpoint> make_dummy(const std::string& name, const ordered_json& config, const Precision& precision,
                                   const DummyOptions& options) {
  PROA_ASSIGN(const NemotronHConfig c, nemotron_h::read_config(config, name + "/config.json"));
  if (c.vocab_size < DummyVocabulary::kLeast || c.vocab_size > 1 << 22) {
    return Error{"make dummy weights", name + "/config.json: vocab_size",
                 std::to_string(DummyVocabulary::kLeast) + " to " + std::to_string(1 << 22),
                 std::to_string(c.vocab_size), ""};
  }
  const DummyVocabulary vocabulary(c.vocab_size);
  DummyCheckpoint out{.name = name};
  if (precision.gguf && (options.gguf || !precision.huggingface)) {
    out.files.push_back(gguf_file(c, name, vocabulary, precision, options.seed));
    return out;
  }
  out.texts["config.json"] = config.dump(2) + "\n";
  out.texts["generation_config.json"] =
      ordered_json{{"bos_token_id", 1}, {"do_sample", true},  {"eos_token_id", {2, 11}},
                   {"pad_token_id", 0}, {"temperature", 1.0}, {"top_p", 1.0}}
          .dump(2) +
      "\n";
  out.texts["tokenizer.json"] = vocabulary.tokenizer_json();
  out.texts["tokenizer_config.json"] = vocabulary.tokenizer_config_json();
  add_safetensors(c, config.contains("mtp_layers_block_type"), precision, options, out);
  return out;
}

constexpr int64_t kMaxConfigNumber = int64_t{1} << 31;

Result<ordered_json> scale_config(ordered_json config, int64_t layers, int64_t divisor) {
  const auto bad = [](const std::string& field, std::string expected, std::string actual) {
    return Error{"scale model", "config.json" + field, std::move(expected), std::move(actual), ""};
  };
  if (!config.is_object()) return bad("", "an object", config.type_name());
  for (const char* key : {"num_hidden_layers", "hidden_size", "intermediate_size", "moe_intermediate_size",
                          "moe_shared_expert_intermediate_size", "moe_latent_size", "vocab_size", "mamba_num_heads",
                          "n_groups", "num_attention_heads", "num_key_value_heads"}) {
    const auto field = config.find(key);
    if (field == config.end() || field->is_null()) continue;
    if (!field->is_number_integer() || field->get<double>() < 0 || field->get<double>() > kMaxConfigNumber) {
      return bad(": " + std::string(key), "a whole number of at most " + std::to_string(kMaxConfigNumber),
                 field->is_number() ? field->dump() : field->type_name());
    }
  }
  const auto integer = [&](const char* key) {
    return config.contains(key) && config[key].is_number_integer() ? config[key].get<int64_t>() : 0;
  };
  if (layers != 0) {
    const int64_t all = integer("num_hidden_layers");
    if (layers < 1 || (all > 0 && layers > all)) {
      return Error{"scale model", "--layers", "1 to " + std::to_string(all), std::to_string(layers), ""};
    }
    config["num_hidden_layers"] = layers;
    const auto count = static_cast<size_t>(layers);
    if (const auto pattern = config.find("hybrid_override_pattern"); pattern != config.end()) {
      const std::string text = pattern->is_string() ? pattern->get<std::string>() : "";
      if (text.size() < count) {
        return bad(": hybrid_override_pattern", "at least " + std::to_string(layers) + " letters",
                   pattern->is_string() ? std::to_string(text.size()) : pattern->type_name());
      }
      *pattern = text.substr(0, count);
    }
    if (const auto types = config.find("layers_block_type"); types != config.end()) {
      if (!types->is_array() || types->size() < count) {
        return bad(": layers_block_type", "a list of at least " + std::to_string(layers),
                   types->is_array() ? std::to_string(types->size()) : types->type_name());
      }
      ordered_json first = ordered_json::array();
      for (size_t i = 0; i < count; ++i) first.push_back((*types)[i]);
      *types = std::move(first);
    }
  }
  if (divisor == 1) return config;
  if (divisor < 1 || divisor > 1024) {
    return Error{"scale model", "--scale-down", "1 to 1024", std::to_string(divisor), ""};
  }
  for (const char* key : {"hidden_size", "intermediate_size", "moe_intermediate_size",
                          "moe_shared_expert_intermediate_size", "moe_latent_size"}) {
    if (const int64_t width = integer(key)) {
      config[key] = std::max<int64_t>(64, (width / divisor + 32) / 64 * 64);
    }
  }
  if (const int64_t vocab = integer("vocab_size")) {
    config["vocab_size"] = std::max(std::min<int64_t>(vocab, 2048), vocab / divisor / 64 * 64);
  }
  for (const auto& [heads_key, groups_key] :
       {std::pair("mamba_num_heads", "n_groups"), std::pair("num_attention_heads", "num_key_value_heads")}) {
    const int64_t heads = std::max<int64_t>(2, integer(heads_key) / divisor);
    config[heads_key] = heads;
    config[groups_key] = std::gcd(heads, std::max<int64_t>(1, integer(groups_key)));
  }
  return config;
}

}  // namespace proa
