#include "quantize/plan.h"

#include <algorithm>
#include <numeric>

#include "checkpoint/differences.h"
#include "checkpoint/printable.h"
#include "checkpoint/safetensors_writer.h"
#include "models/published.h"
#include "quantize/gguf_vocabulary.h"

namespace proa {
namespace {

using namespace nemotron_h;
constexpr const char* kDoing = "plan the quantised checkpoint";
constexpr std::string_view kPrecisions[] = {"fp8",  "nvfp4", "bf16", "f16",  "f32",    "q8_0",
                                            "q5_1", "q5_0",  "q4_1", "q4_0", "iq4_nl", "mxfp4"};

int64_t product(std::span<const int64_t> shape) {
  return std::accumulate(shape.begin(), shape.end(), int64_t{1}, std::multiplies<>());
}

// A tensor as the published BF16 checkpoint has it, and the same in the source and in GGUF.
struct Part {
  std::string source;
  int64_t slice = -1;
  const TensorSpec* hf = nullptr;
  std::string gguf;
  int64_t expert = -1;
};

constexpr TensorName kMamba[] = {kNorm, kInProj, kConv, kConvBias, kDtBias, kA, kD, kGatedNorm, kOutProj};
constexpr TensorName kAttention[] = {kNorm, kQ, kK, kV, kO};
constexpr TensorName kMoe[] = {kNorm,     kGate,       kBias,     kExpertsUp, kExpertsDown,
                               kSharedUp, kSharedDown, kLatentIn, kLatentOut};
constexpr TensorName kMlp[] = {kNorm, kUp, kDown};

std::span<const TensorName> parts_of(char mixer) {
  switch (mixer) {
    case 'M':
      return kMamba;
    case '*':
      return kAttention;
    case 'E':
      return kMoe;
    default:
      return kMlp;
  }
}

std::vector<Part> list_parts(const NemotronHConfig& c, const Names& source, const std::vector<TensorSpec>& table) {
  std::map<std::string_view, const TensorSpec*> specs;
  for (const TensorSpec& spec : table) specs[spec.name] = &spec;
  const Names hf(Checkpoint::Kind::huggingface), gguf(Checkpoint::Kind::gguf);
  std::vector<Part> parts;
  const auto add = [&](std::string from, const std::string& name, std::string to, int64_t slice = -1,
                       int64_t expert = -1) {
    const auto spec = specs.find(name);
    if (spec == specs.end() || spec->second->optional) return;  // what this model does not have
    parts.push_back({std::move(from), slice, spec->second, std::move(to), expert});
  };
  for (const TensorName& name : {kEmbeddings, kFinalNorm}) add(source.trunk(name), hf.trunk(name), gguf.trunk(name));
  add(source.lm_head(), hf.lm_head(), gguf.lm_head());
  for (size_t i = 0; i < c.pattern.size(); ++i) {
    for (const TensorName& name : parts_of(c.pattern[i])) {
      if (name.hf != kExpertsUp.hf && name.hf != kExpertsDown.hf) {
        add(source.layer(i, name), hf.layer(i, name), gguf.layer(i, name));
        continue;
      }
      const bool stacked = source.stacked(i, name);
      for (int64_t e = 0; e < c.n_routed_experts; ++e) {
        add(stacked ? source.layer(i, name) : source.expert(i, name, e), hf.expert(i, name, e), gguf.layer(i, name),
            stacked ? e : -1, e);
      }
    }
  }
  return parts;
}

// Sizes of 1 aside.
bool same_shape(std::vector<int64_t> a, std::vector<int64_t> b) {
  std::erase(a, 1);
  std::erase(b, 1);
  return a == b;
}

// NVFP4 as Lightning has it.
bool is_mixed(const Precision& precision, const QuantizeSource& source) {
  return precision.name == "nvfp4" && source.config.contains("mtp_layers_block_type");
}

// What is wrong with the source's tensors; those of absent shards are not known.
Result<void> check_source(const QuantizeSource& source, const std::vector<Part>& parts) {
  Differences lines;
  for (const Part& part : parts) {
    const auto found = source.tensors.find(part.source);
    if (found == source.tensors.end()) {
      lines.add(printable(part.source) + ": missing");
      continue;
    }
    const TensorEntry& entry = found->second;
    if (entry.file.empty()) continue;
    std::vector<int64_t> wanted = part.hf->shape;
    if (part.slice >= 0) wanted.insert(wanted.begin(), source.model.n_routed_experts);
    const auto text = [](const std::vector<int64_t>& shape) {
      std::string list;
      for (const int64_t size : shape) list += (list.empty() ? "" : ", ") + std::to_string(size);
      return "[" + list + "]";
    };
    if (!same_shape(wanted, entry.shape)) {
      lines.add(printable(part.source) + ": shape " + text(wanted) + " expected, found " + text(entry.shape));
    } else if (entry.format != Format::BF16 && entry.format != Format::F16 && entry.format != Format::F32) {
      lines.add(printable(part.source) + ": BF16, F16 or F32 expected, found " + printable(entry.type));
    }
  }
  if (!lines.any()) return {};
  return Error{kDoing, source.path, "", lines.text(), ""};
}

// Matrices that the precision would have quantised, had their rows been as long as its blocks want.
Result<void> check_rows(const QuantizeSource& source, const std::vector<Part>& parts, const Precision& precision,
                        bool gguf) {
  const NemotronHConfig& c = source.model;
  const bool mixed = is_mixed(precision, source);
  Differences lines;
  for (const Part& part : parts) {
    if (part.expert > 0) continue;  // as the first one
    const std::string& name = gguf ? part.gguf : part.hf->name;
    const int layer = layer_of(part.hf->name);
    const int64_t block = gguf ? 32 : 16;
    std::vector<int64_t> longer = part.hf->shape;
    longer.back() = (longer.back() + block - 1) / block * block;
    const auto stored = [&](const std::vector<int64_t>& shape) {
      return gguf ? static_cast<int>(gguf_format(precision, c, name, shape, layer, 0))
                  : static_cast<int>(hf_scheme(precision, c, mixed, name, shape, layer));
    };
    if (stored(longer) == stored(part.hf->shape)) continue;
    lines.add(printable(part.source) + ": rows of a multiple of " + std::to_string(block) + " values expected, found " +
              std::to_string(part.hf->shape.back()));
  }
  if (!lines.any()) return {};
  return Error{kDoing, source.path + " as " + std::string(precision.name), "", lines.text(),
               gguf ? "f16, bf16 or fp8, which have no blocks" : "fp8 or bf16, which have no blocks"};
}

// ---- GGUF ----

// llama.cpp's number of a file type, general.file_type.
uint32_t file_type(std::string_view precision) {
  constexpr std::pair<std::string_view, uint32_t> kTypes[] = {{"f32", 0},   {"f16", 1},   {"q4_0", 2}, {"q4_1", 3},
                                                              {"q8_0", 7},  {"q5_0", 8},  {"q5_1", 9}, {"iq4_nl", 25},
                                                              {"bf16", 32}, {"mxfp4", 38}};
  for (const auto& [name, number] : kTypes) {
    if (name == precision) return number;
  }
  return 0;
}

Result<void> plan_gguf(const QuantizeSource& source, const std::vector<Part>& parts, const PlanOptions& options,
                       QuantizePlan& plan) {
  const NemotronHConfig& c = source.model;
  GgufWriter out;
  put_gguf_metadata(c, options.name, out);
  out.put_u32("general.file_type", file_type(plan.precision->name));
  PROA_TRY(put_gguf_vocabulary(source, c.vocab_size, out));
  struct Tensor {
    uint64_t offset;
    Format format;
    uint64_t matrix_bytes;  // of one expert
  };
  std::map<std::string, Tensor> tensors;
  uint64_t at = 0;
  std::map<std::string, int> seen;
  for (const TensorSpec& spec : tensor_table(c, Names(Checkpoint::Kind::gguf))) {
    if (spec.optional) continue;
    const int layer = layer_of(spec.name);
    const int index = layer < 0 ? 0 : seen[spec.name.substr(spec.name.find('.', 4))]++;
    const std::vector<int64_t> shape = gguf_shape(spec);
    const Format format = gguf_format(*plan.precision, c, spec.name, shape, layer, index);
    out.declare_tensor(spec.name, shape, format);
    const uint64_t bytes = static_cast<uint64_t>(product(shape) / shape.back()) * row_bytes(format, shape.back());
    tensors[spec.name] = {at, format, shape.size() == 3 ? bytes / static_cast<uint64_t>(shape.front()) : bytes};
    at += (bytes + out.alignment() - 1) / out.alignment() * out.alignment();
  }
  std::vector<std::byte> header = out.header();
  for (const Part& part : parts) {
    const Tensor& tensor = tensors.at(part.gguf);
    QuantizeItem item{.source = part.source, .slice = part.slice, .shape = part.hf->shape, .format = tensor.format};
    if (part.gguf.ends_with("ssm_a")) item.recipe = Recipe::neg_exp;
    const auto expert = static_cast<uint64_t>(std::max<int64_t>(part.expert, 0));
    item.data = {0, header.size() + tensor.offset + expert * tensor.matrix_bytes};
    plan.items.push_back(std::move(item));
  }
  const uint64_t bytes = header.size() + at;
  plan.files.push_back({"", std::move(header), bytes});
  return {};
}

// ---- safetensors ----

struct HfTensor {
  std::string name;
  std::vector<int64_t> shape;
  std::string dtype;
  uint64_t bytes;
  size_t item;
  Place QuantizeItem::*place;
};

// The tensors that an item leaves behind, in the order in which ModelOpt's exports name them.
void add_hf(const QuantizeItem& item, size_t index, const std::string& name, bool mixed, const std::string& raw_dtype,
            uint64_t raw_bytes, std::vector<HfTensor>& out) {
  const auto elements = static_cast<uint64_t>(product(item.shape));
  const auto scalar = [&](const std::string& suffix, Place QuantizeItem::*place, std::vector<int64_t> shape = {}) {
    out.push_back({item.module + suffix, std::move(shape), "F32", sizeof(float), index, place});
  };
  if (item.recipe == Recipe::raw) {
    out.push_back({name, item.shape, raw_dtype, raw_bytes, index, &QuantizeItem::data});
  } else if (item.recipe == Recipe::encode) {
    const FormatInfo& format = info(item.format);
    out.push_back({name, item.shape, std::string(format.safetensors_dtype), elements * format.block_bytes, index,
                   &QuantizeItem::data});
  } else if (item.recipe == Recipe::fp8) {
    out.push_back({name, item.shape, "F8_E4M3", elements, index, &QuantizeItem::data});
    scalar(".weight_scale", &QuantizeItem::scale);
  } else {
    std::vector<int64_t> packed = item.shape, groups = item.shape;
    packed.back() /= 2;
    groups.back() /= 16;
    out.push_back({name, packed, "U8", elements / 2, index, &QuantizeItem::data});
    out.push_back(
        {item.module + ".weight_scale", groups, "F8_E4M3", elements / 16, index, &QuantizeItem::group_scales});
    scalar(".weight_scale_2", &QuantizeItem::scale);
  }
  if (item.input_scale) {
    scalar(".input_scale", &QuantizeItem::input_scale, mixed ? std::vector<int64_t>{1} : std::vector<int64_t>{});
  }
  if (item.kv_scale) {
    scalar(item.module.ends_with("k_proj") ? ".k_scale" : ".v_scale", &QuantizeItem::kv_scale, {1});
  }
}

constexpr Place kWanted = {0, 1};  // until files are laid out

void lay_out(std::string name, std::vector<HfTensor>& tensors, QuantizePlan& plan) {
  // As the official library orders a file: wide types first, then by name; so everything is aligned.
  const auto width = [](const HfTensor& t) {
    return t.dtype == "F64" || t.dtype == "I64"    ? 0
           : t.dtype == "F32" || t.dtype == "I32"  ? 1
           : t.dtype == "BF16" || t.dtype == "F16" ? 2
                                                   : 3;
  };
  std::sort(tensors.begin(), tensors.end(), [&](const HfTensor& a, const HfTensor& b) {
    return std::pair(width(a), std::string_view(a.name)) < std::pair(width(b), std::string_view(b.name));
  });
  SafetensorsWriter out;
  out.put_metadata("format", "pt");
  for (const HfTensor& tensor : tensors) out.declare_tensor(tensor.name, tensor.shape, tensor.dtype, tensor.bytes);
  QuantizedFile file{.name = std::move(name), .header = out.header()};
  uint64_t at = file.header.size();
  for (const HfTensor& tensor : tensors) {
    plan.items[tensor.item].*tensor.place = {static_cast<uint32_t>(plan.files.size()), at};
    at += tensor.bytes;
  }
  file.bytes = at;
  plan.files.push_back(std::move(file));
}

Result<void> plan_folder(const QuantizeSource& source, const std::vector<Part>& parts, const PlanOptions& options,
                         QuantizePlan& plan) {
  const NemotronHConfig& c = source.model;
  const bool mixed = is_mixed(*plan.precision, source);
  QuantisedModules modules;
  Shards<HfTensor> shards(options.max_shard_bytes);
  const auto add = [&](QuantizeItem item, const std::string& name, const std::string& raw_dtype, uint64_t raw_bytes) {
    std::vector<HfTensor> tensors;
    add_hf(item, plan.items.size(), name, mixed, raw_dtype, raw_bytes, tensors);
    plan.items.push_back(std::move(item));
    shards.add(std::move(tensors));
  };
  std::map<std::string, bool, std::less<>> used;
  for (const Part& part : parts) {
    used[part.source] = true;
    HfScheme scheme = hf_scheme(*plan.precision, c, mixed, part.hf->name, part.hf->shape, layer_of(part.hf->name));
    if (!options.input_scales && scheme == HfScheme::nvfp4) scheme = HfScheme::nvfp4_weight_only;
    modules.add(*part.hf, scheme);
    QuantizeItem item{.source = part.source, .slice = part.slice, .shape = part.hf->shape};
    item.module = part.hf->name.substr(0, part.hf->name.rfind('.'));
    item.recipe = scheme == HfScheme::fp8                                              ? Recipe::fp8
                  : scheme == HfScheme::nvfp4 || scheme == HfScheme::nvfp4_weight_only ? Recipe::nvfp4
                                                                                       : Recipe::encode;
    if (item.recipe == Recipe::encode) {
      // Small tensors stay as they are; of shards that are absent that is what published files have.
      const TensorEntry& entry = source.tensors.find(part.source)->second;
      item.format = entry.format.value_or(scheme == HfScheme::f32 ? Format::F32 : Format::BF16);
    } else if (options.input_scales && scheme != HfScheme::nvfp4_weight_only) {
      item.input_scale = kWanted;
      plan.scales_activations = true;
    }
    if (mixed && options.input_scales &&
        (part.hf->name.ends_with("k_proj.weight") || part.hf->name.ends_with("v_proj.weight"))) {
      item.kv_scale = kWanted;
    }
    add(std::move(item), part.hf->name, "", 0);
  }
  // Multi-token prediction, vision: not read here, and carried over.
  for (const auto& [name, entry] : source.tensors) {
    if (used.contains(name)) continue;
    if (entry.file.empty()) {
      return Error{kDoing, source.path + ": " + printable(name), "a tensor of the trunk in a shard that is absent",
                   "another one, whose size is not known", "quantise with all shards there"};
    }
    QuantizeItem item{.source = name, .shape = entry.shape, .recipe = Recipe::raw};
    add(std::move(item), name, entry.type, entry.bytes);
  }

  const size_t count = shards.files.size();
  for (size_t i = 0; i < count; ++i) lay_out(shard_name(i, count), shards.files[i], plan);
  plan.texts = source.texts;
  if (count > 1) plan.texts["model.safetensors.index.json"] = shard_index(shards);
  if (!options.input_scales && plan.precision->name == "nvfp4" && !mixed) {
    // One algorithm for all that is not excluded, whose name says that activations stay.
    std::string text = hf_quant_config(*plan.precision, false, modules);
    const size_t at = text.find("\"NVFP4\"");
    if (at != text.npos) text.replace(at, 7, "\"W4A16_NVFP4\"");
    plan.texts["hf_quant_config.json"] = text;
  } else {
    plan.texts["hf_quant_config.json"] = hf_quant_config(*plan.precision, mixed, modules);
  }
  return {};
}

}  // namespace

int64_t QuantizeItem::rows() const {
  const int64_t width = cols();
  return width == 0 ? 0 : product(shape) / width;
}

uint64_t QuantizePlan::bytes() const {
  uint64_t sum = 0;
  for (const QuantizedFile& file : files) sum += file.bytes;
  for (const auto& [name, text] : texts) sum += text.size();
  return sum;
}

std::string quantize_precisions() {
  std::string list;
  for (const std::string_view name : kPrecisions) list += (list.empty() ? "" : ", ") + std::string(name);
  return list;
}

Result<const Precision*> find_quantize_precision(std::string_view name) {
  auto found = find_precision(name);
  if (found.ok() &&
      std::find(std::begin(kPrecisions), std::end(kPrecisions), (*found)->name) != std::end(kPrecisions)) {
    return found;
  }
  return Error{"choose a precision", "--to", "one of " + quantize_precisions(),
               printable(std::string(name.substr(0, 100))),
               found.ok() ? "llama-quantize searches for better scales of this type than the encoder here does" : ""};
}

Result<QuantizePlan> plan_quantize(const QuantizeSource& source, const Precision& precision,
                                   const PlanOptions& options) {
  QuantizePlan plan{.precision = &precision, .gguf = !is_folder_precision(precision)};
  const Checkpoint names_of = Checkpoint::in_memory(source.path, source.config, source.tensors);
  const Names names(names_of);
  const std::vector<TensorSpec> table = tensor_table(source.model, Names(Checkpoint::Kind::huggingface));
  std::vector<Part> parts = list_parts(source.model, names, table);
  PROA_TRY(check_source(source, parts));
  PROA_TRY(check_rows(source, parts, precision, plan.gguf));
  // Shard by shard, so that a source is read from front to back.
  if (plan.gguf) {
    PROA_TRY(plan_gguf(source, parts, options, plan));
    std::map<std::string_view, bool> used;
    for (const Part& part : parts) used[part.source] = true;
    for (const auto& [name, entry] : source.tensors) {
      if (!used.contains(name)) plan.dropped.push_back(name);
    }
  } else {
    PROA_TRY(plan_folder(source, parts, options, plan));
  }
  for (const QuantizeItem& item : plan.items) {
    const TensorEntry& entry = source.tensors.find(item.source)->second;
    plan.source_bytes +=
        item.slice < 0 ? entry.bytes : entry.bytes / static_cast<uint64_t>(source.model.n_routed_experts);
  }
  return plan;
}

}  // namespace proa
