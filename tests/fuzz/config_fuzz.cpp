// libFuzzer target: any bytes as config.json, hf_quant_config.json and generation_config.json of a checkpoint whose
// tensors are right for the seeds. What is accepted must come out as a model that can say what it needs.
// The first byte chooses the tensors; a byte 0 stands between the three texts.
#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <new>
#include <string>
#include <string_view>
#include <vector>

#include "checkpoint/checkpoint.h"
#include "checkpoint/config_reader.h"
#include "checkpoint/quant_config.h"
#include "models/model.h"
#include "quant/formats.h"

namespace {

using proa::TensorEntry;
using Entries = std::map<std::string, TensorEntry, std::less<>>;

constexpr size_t kMaxBytes = 4096;

class HostBackend final : public proa::Backend {
 public:
  std::string_view name() const override { return "host"; }
  std::string_view description() const override { return "memory"; }
  std::string_view on_reference() const override { return "everything"; }
  proa::Result<proa::Buffer> allocate(size_t bytes) override {
    constexpr std::align_val_t kAlignment{64};
    auto* memory = static_cast<std::byte*>(::operator new(bytes, kAlignment));
    std::fill_n(memory, bytes, std::byte{});
    return proa::Buffer{{memory, [=](std::byte* p) { ::operator delete(p, kAlignment); }}, bytes};
  }
};

// Entries one after the other in a buffer of zeros.
class Tensors {
 public:
  void add(const std::string& name, const char* type, std::vector<int64_t> shape) {
    TensorEntry entry{.name = name, .shape = std::move(shape), .type = type};
    entry.format = proa::format_from_safetensors(type);
    entry.bytes = entry.type == "F32" ? 4 : 1;
    for (int64_t size : entry.shape) entry.bytes *= static_cast<size_t>(size);
    entry.file = "fuzz";
    entry.data = zeros_.data() + used_;
    used_ += (entry.bytes + 15) / 16 * 16;
    if (used_ > zeros_.size()) std::abort();
    entries_[name] = entry;
  }
  const Entries& entries() const { return entries_; }

 private:
  alignas(64) std::array<std::byte, 32768> zeros_{};
  size_t used_ = 0;
  Entries entries_;
};

enum class Kind { separate_experts, stacked_experts, fp8, nvfp4, llama, count };

std::unique_ptr<Tensors> make_tensors(Kind kind) {
  auto tensors = std::make_unique<Tensors>();
  const auto f32 = [&](const std::string& name, std::vector<int64_t> shape) { tensors->add(name, "F32", shape); };
  if (kind == Kind::llama) {
    f32("model.embed_tokens.weight", {8, 16});
    f32("model.norm.weight", {16});
    f32("lm_head.weight", {8, 16});
    const std::string layer = "model.layers.0.";
    for (const char* norm : {"input_layernorm.weight", "post_attention_layernorm.weight"}) f32(layer + norm, {16});
    f32(layer + "self_attn.q_proj.weight", {16, 16});
    f32(layer + "self_attn.k_proj.weight", {8, 16});
    f32(layer + "self_attn.v_proj.weight", {8, 16});
    f32(layer + "self_attn.o_proj.weight", {16, 16});
    f32(layer + "mlp.gate_proj.weight", {32, 16});
    f32(layer + "mlp.up_proj.weight", {32, 16});
    f32(layer + "mlp.down_proj.weight", {16, 32});
    return tensors;
  }
  f32("backbone.embeddings.weight", {8, 16});
  f32("backbone.norm_f.weight", {16});
  f32("lm_head.weight", {8, 16});
  const std::string m = "backbone.layers.0.mixer.", a = "backbone.layers.1.mixer.", e = "backbone.layers.2.mixer.",
                    d = "backbone.layers.3.mixer.";
  for (int i = 0; i < 4; ++i) f32("backbone.layers." + std::to_string(i) + ".norm.weight", {16});
  f32(m + "in_proj.weight", {26, 16});
  f32(m + "conv1d.weight", {16, 1, 4});
  f32(m + "conv1d.bias", {16});
  for (const char* head : {"dt_bias", "A_log", "D"}) f32(m + head, {2});
  f32(m + "norm.weight", {8});
  f32(m + "out_proj.weight", {16, 8});
  f32(a + "q_proj.weight", {8, 16});
  f32(a + "k_proj.weight", {4, 16});
  f32(a + "v_proj.weight", {4, 16});
  f32(a + "o_proj.weight", {16, 8});
  f32(e + "gate.weight", {2, 16});
  f32(e + "gate.e_score_correction_bias", {2});
  if (kind == Kind::stacked_experts) {
    for (const char* proj : {"up_proj", "down_proj"}) f32(e + "experts." + proj, {2, 16, 16});
  } else {
    for (const char* proj : {"0.up_proj", "0.down_proj", "1.up_proj", "1.down_proj"}) {
      f32(e + "experts." + proj + ".weight", {16, 16});
    }
  }
  f32(e + "shared_experts.up_proj.weight", {16, 16});
  f32(e + "shared_experts.down_proj.weight", {16, 16});
  for (const char* proj : {"up_proj", "down_proj"}) {
    const std::string name = d + proj + ".weight";
    if (kind == Kind::fp8) {
      tensors->add(name, "F8_E4M3", {16, 16});
      f32(name + "_scale", {});
    } else if (kind == Kind::nvfp4) {
      tensors->add(name, "U8", {16, 8});
      tensors->add(name + "_scale", "F8_E4M3", {16, 1});
      f32(name + "_scale_2", {});
    } else {
      f32(name, {16, 16});
    }
  }
  return tensors;
}

volatile uint64_t sink;  // keeps what was made

void read_generation(const nlohmann::ordered_json& json) {
  const proa::ConfigReader reader(json, "generation_config.json");
  sink = reader.number("temperature", {.min = 0, .max = 100}, 1.0).ok() + reader.integer("top_k", {.min = -1}, 0).ok() +
         reader.boolean("do_sample", true).ok() +
         reader.integer_or_list("eos_token_id", {.min = 0}, std::vector<int64_t>{}).ok() +
         reader.strings("suppress", std::vector<std::string>{}).ok();
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  static const auto all = [] {
    std::vector<std::unique_ptr<Tensors>> made;
    for (int kind = 0; kind < static_cast<int>(Kind::count); ++kind) made.push_back(make_tensors(Kind(kind)));
    return made;
  }();
  if (size == 0 || size > kMaxBytes) return 0;
  const Entries& entries = all[data[0] % all.size()]->entries();
  std::array<std::string_view, 3> texts;
  std::string_view rest(reinterpret_cast<const char*>(data) + 1, size - 1);
  for (std::string_view& text : texts) {
    const size_t end = std::min(rest.find('\0'), rest.size());
    text = rest.substr(0, end);
    rest.remove_prefix(std::min(end + 1, rest.size()));
  }
  if (!texts[2].empty()) {
    const auto generation = proa::parse_json(texts[2], "generation_config.json");
    if (generation.ok()) read_generation(*generation);
  }
  auto config = proa::parse_json(texts[0], "config.json");
  if (!config.ok() || !config->is_object()) return 0;
  if (!texts[1].empty()) {
    auto quant = proa::parse_json(texts[1], "hf_quant_config.json");
    if (!quant.ok() || !quant->is_object()) return 0;
    (*config)["quantization_config"] = *std::move(quant);
  }
  // A legal number of experts that are not in the file makes a long list of missing tensors, which takes its time.
  if (const auto experts = config->find("n_routed_experts"); experts != config->end()) {
    if (experts->is_number() && experts->get<double>() > 300 && experts->get<double>() <= 65536) return 0;
  }

  static HostBackend backend;
  auto checkpoint =
      std::make_shared<const proa::Checkpoint>(proa::Checkpoint::in_memory("fuzz", *std::move(config), entries));
  const auto model = proa::open_model(checkpoint, backend);
  if (!model.ok()) {
    if (model.error().message().empty()) std::abort();
    return 0;
  }
  const proa::ModelInfo& info = (*model)->info();
  if (info.num_hidden_layers <= 0 || info.weight_bytes <= 0 || info.vocab_size <= 0) std::abort();
  sink = (*model)->workspace_bytes(4) + (*model)->cache_specs().size();
  return 0;
}
