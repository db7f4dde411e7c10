// The same weights as other savers would write them: other spellings of config fields and tensors, experts stacked or
// one by one, tensors beside them that are not used. Logits are those of the golden to the last bit.
#include <gtest/gtest.h>
#include <unistd.h>

#include <cstring>
#include <functional>

#include "checkpoint/gguf_writer.h"
#include "checkpoint/safetensors_writer.h"
#include "core/output_path.h"
#include "golden.h"

namespace proa::golden {
namespace {

using Json = nlohmann::ordered_json;

struct StoredTensor {
  std::string name, type;
  std::vector<int64_t> shape;
  std::vector<std::byte> data;
};
using Tensors = std::vector<StoredTensor>;

void rename(Json& config, const std::string& from, const std::string& to) {
  config[to] = config.at(from);
  config.erase(from);
}

void replace(std::string& text, const std::string& from, const std::string& to) {
  if (const size_t at = text.find(from); at != text.npos) text.replace(at, from.size(), to);
}

std::function<void(Json&, Tensors&)> renamed(std::vector<std::pair<std::string, std::string>> names) {
  return [names](Json&, Tensors& tensors) {
    for (StoredTensor& tensor : tensors) {
      for (const auto& [from, to] : names) replace(tensor.name, from, to);
    }
  };
}

// "...experts.0.up_proj.weight" and its like become "...experts.up_proj".
void stack(Json&, Tensors& tensors) {
  std::sort(tensors.begin(), tensors.end(), [](const StoredTensor& a, const StoredTensor& b) {
    return std::pair(a.name.size(), a.name) < std::pair(b.name.size(), b.name);  // 9 before 10
  });
  Tensors result;
  for (const StoredTensor& tensor : tensors) {
    const size_t at = tensor.name.find(".experts.");
    if (at == tensor.name.npos) {
      result.push_back(tensor);
      continue;
    }
    std::string name = tensor.name.substr(0, at + 9) + tensor.name.substr(tensor.name.find('.', at + 9) + 1);
    replace(name, ".weight", "");
    auto whole = std::find_if(result.begin(), result.end(), [&](const auto& other) { return other.name == name; });
    if (whole == result.end()) {
      whole = result.insert(whole, {name, tensor.type, {0, tensor.shape[0], tensor.shape[1]}, {}});
    }
    ++whole->shape[0];
    whole->data.insert(whole->data.end(), tensor.data.begin(), tensor.data.end());
  }
  tensors = std::move(result);
}

void types(Json& config, const char* mamba, const char* attention) {
  Json list = Json::array();
  for (const char letter : config.at("hybrid_override_pattern").get<std::string>()) {
    list.push_back(letter == 'M' ? mamba : letter == '*' ? attention : letter == 'E' ? "moe" : "mlp");
  }
  config.erase("hybrid_override_pattern");
  config["layers_block_type"] = list;
}

void nest(Json& config, const char* name) {
  Json outer = {{"architectures", {"SomethingMultimodal"}}, {"hidden_size", 7}};
  outer[name] = config;
  config = outer;
}

void add(Tensors& tensors, const std::string& name, const std::string& type, std::vector<int64_t> shape) {
  int64_t bytes = type == "BF16" ? 2 : type == "I64" ? 8 : 4;
  for (const int64_t size : shape) bytes *= size;
  tensors.push_back({name, type, std::move(shape), std::vector<std::byte>(static_cast<size_t>(bytes))});
  const float one = 1;  // scales cannot be 0
  if (type == "F32") std::memcpy(tensors.back().data.data(), &one, sizeof(one));
}

struct Variant {
  const char* what;
  std::function<void(Json& config, Tensors& tensors)> edit;
  const char* golden = "m_e_attn";  // as published: backbone., hybrid_override_pattern, experts one by one
  const char* unused = "";          // what model->unused() must name
};

const Variant kVariants[] = {
    {"as it is", [](Json&, Tensors&) {}},
    {"layers_block_type", [](Json& c, Tensors&) { types(c, "mamba", "attention"); }},
    {"layers_block_type of transformers 5", [](Json& c, Tensors&) { types(c, "linear_attention", "full_attention"); }},
    {"layers_block_type without num_hidden_layers",
     [](Json& c, Tensors&) {
       types(c, "mamba", "attention");
       c.erase("num_hidden_layers");
     }},
    {"layer_types",
     [](Json& c, Tensors&) {
       types(c, "linear_attention", "full_attention");
       rename(c, "layers_block_type", "layer_types");
     }},
    {"attention_head_dim", [](Json& c, Tensors&) { rename(c, "head_dim", "attention_head_dim"); }},
    {"a head_dim of null beside it",
     [](Json& c, Tensors&) {
       rename(c, "head_dim", "attention_head_dim");
       c["head_dim"] = nullptr;
     }},
    {"norm_eps alone", [](Json& c, Tensors&) { c.erase("layer_norm_epsilon"); }},
    {"rms_norm_eps alone",
     [](Json& c, Tensors&) {
       c.erase("norm_eps");
       rename(c, "layer_norm_epsilon", "rms_norm_eps");
     }},
    {"fields of Mamba with their older names",
     [](Json& c, Tensors&) {
       const std::pair<const char*, const char*> names[] = {
           {"n_groups", "mamba_n_groups"},       {"conv_kernel", "mamba_d_conv"},
           {"expand", "mamba_expand"},           {"time_step_min", "mamba_dt_min"},
           {"time_step_max", "mamba_dt_max"},    {"time_step_floor", "mamba_dt_init_floor"},
           {"use_conv_bias", "mamba_conv_bias"}, {"chunk_size", "mamba_chunk_size"}};
       for (const auto& [from, to] : names) rename(c, from, to);
       c["mamba_dt_limit"] = {0.0, "Infinity"};
     }},
    {"an open time_step_limit",
     [](Json& c, Tensors&) {
       c["time_step_limit"] = {0.0, {{"__float__", "Infinity"}}};
     }},
    {"nulls",
     [](Json& c, Tensors&) { c["moe_latent_size"] = c["time_step_limit"] = c["num_nextn_predict_layers"] = {}; }},
    {"integers as floats", [](Json& c, Tensors&) { c["hidden_size"] = c.at("hidden_size").get<double>(); }},
    {"inside llm_config", [](Json& c, Tensors&) { nest(c, "llm_config"); }},
    {"inside text_config", [](Json& c, Tensors&) { nest(c, "text_config"); }},
    {"model.", renamed({{"backbone.", "model."}})},
    {"stacked experts", stack},
    {"model. and stacked experts",
     [](Json& c, Tensors& t) {
       renamed({{"backbone.", "model."}})(c, t);
       stack(c, t);
     }},
    {"experts as switch_mlp",
     [](Json& c, Tensors& t) {
       stack(c, t);
       renamed({{".experts.up_proj", ".switch_mlp.fc1.weight"}, {".experts.down_proj", ".switch_mlp.fc2.weight"}})(c,
                                                                                                                   t);
     }},
    {"embed_tokens", renamed({{"backbone.embeddings.", "backbone.embed_tokens."}})},
    {"a text model inside, with eyes and ears",
     [](Json& c, Tensors& t) {
       nest(c, "llm_config");
       renamed({{"backbone.", "language_model.backbone."}, {"lm_head.", "language_model.lm_head."}})(c, t);
       add(t, "vision_model.blocks.0.weight", "BF16", {3, 5});
       add(t, "vision_model.positions", "I64", {4});
       add(t, "mlp1.0.weight", "BF16", {2, 2});
       add(t, "sound_encoder.x", "BF16", {2});
       add(t, "sound_projection.x", "BF16", {2});
     },
     "m_e_attn", "vision, sound"},
    {"language_model.model. with stacked experts",
     [](Json& c, Tensors& t) {
       nest(c, "text_config");
       renamed({{"backbone.", "language_model.model."}, {"lm_head.", "language_model.lm_head."}})(c, t);
       stack(c, t);
     }},
    {"multi-token prediction",
     [](Json& c, Tensors& t) {
       c["num_nextn_predict_layers"] = 1;
       add(t, "mtp.layers.0.eh_proj.weight", "BF16", {64, 128});
       add(t, "mtp.fc.weight", "BF16", {64, 128});
       add(t, "mtp.pre_fc_norm_hidden.weight", "BF16", {64});
     },
     "m_e_attn", "multi-token prediction"},
    {"scales of keys and values",
     [](Json&, Tensors& t) {
       add(t, "backbone.layers.1.mixer.k_proj.k_scale", "F32", {1});
       add(t, "backbone.layers.1.mixer.v_proj.v_scale", "F32", {});
     },
     "m_e_attn", "scales of an FP8 KV cache"},
    {"latent projections", renamed({{"backbone.", "model."}}), "moe_latent"},
    {"latent projections, stacked experts", stack, "moe_latent"},
    {"older fields, model.", renamed({{"backbone.", "model."}}), "dense"},
};

class NemotronHVariants : public testing::Test {
 protected:
  NemotronHVariants() { std::filesystem::create_directories(folder_); }
  ~NemotronHVariants() override { std::filesystem::remove_all(folder_); }

  void expect_same(const Case& golden, const std::string& original, const std::string& variant, const char* unused) {
    const auto expected = open(original, *backend_);
    const auto model = open(variant, *backend_);
    EXPECT_EQ(model->info().num_parameters, expected->info().num_parameters);
    std::string what;
    for (const UnusedTensors& group : model->unused()) what += (what.empty() ? "" : ", ") + group.what;
    EXPECT_EQ(what, unused);
    const Sequence& sequence = golden.sequences.front();
    EXPECT_EQ(max_difference(logits(*model, *backend_, sequence), logits(*expected, *backend_, sequence)), 0);
  }

  const std::string folder_ = testing::TempDir() + "proa_variant_" + std::to_string(::getpid());
  const std::unique_ptr<Backend> backend_ = must(make_backend("cpu", {.num_threads = 1}));
};

TEST_F(NemotronHVariants, OfFoldersAreTheSameModel) {
  for (const Variant& variant : kVariants) {
    SCOPED_TRACE(variant.what);
    const Case golden = load(std::string("nemotron_h/") + variant.golden);
    const auto file = must(Safetensors::open(golden.folder + "/model.safetensors"));
    Tensors tensors;
    for (const auto& [name, entry] : file.tensors()) {
      tensors.push_back({name, entry.type, entry.shape, {entry.data, entry.data + entry.bytes}});
    }
    Json config = read_json(golden.folder + "/config.json");
    variant.edit(config, tensors);

    SafetensorsWriter writer;
    for (const StoredTensor& tensor : tensors)
      writer.put_raw_tensor(tensor.name, tensor.shape, tensor.type, tensor.data);
    ASSERT_TRUE(writer.write(folder_ + "/model.safetensors").ok());
    ASSERT_TRUE(write_file(folder_ + "/config.json", config.dump()).ok());
    expect_same(golden, golden.folder, folder_, variant.unused);
  }
}

TEST_F(NemotronHVariants, OfGgufAreTheSameModel) {
  const std::pair<const char*, const char*> names[] = {{"ffn_latent_down", "ffn_latent_in"},
                                                       {"ffn_latent_up", "ffn_latent_out"}};
  const Case golden = load("nemotron_h/moe_latent");
  const auto file = must(Gguf::open(golden.gguf()));
  GgufWriter writer;
  for (const auto& [key, value] : file.metadata()) {
    std::string stored;
    const auto number = [&](auto n) { stored.append(reinterpret_cast<const char*>(&n), sizeof n); };
    if (value.is_array()) number(static_cast<uint32_t>(value.element));
    if (value.is_array()) number(uint64_t{value.count});
    if (value.type == GgufType::string) number(uint64_t{value.bytes.size()});
    stored.append(reinterpret_cast<const char*>(value.bytes.data()), value.bytes.size());
    writer.put_raw(key, static_cast<uint32_t>(value.type), std::as_bytes(std::span(stored)));
  }
  for (const auto& [name, entry] : file.tensors()) {
    std::string other = name;
    for (const auto& [from, to] : names) replace(other, from, to);
    writer.put_tensor(other, entry.shape, *entry.format, std::span(entry.data, entry.bytes));
  }
  const std::string path = folder_ + "/model.gguf";
  ASSERT_TRUE(writer.write(path).ok());
  expect_same(golden, golden.gguf(), path, "");
}

}  // namespace
}  // namespace proa::golden
