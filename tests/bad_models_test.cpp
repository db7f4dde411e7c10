// Checkpoints that are readable and wrong: a golden with one thing changed, and what the error must say. Whatever is
// wrong with tensors is said at once, whatever is wrong with a field names file and field, and nothing crashes.
#include <gtest/gtest.h>

#include <cstdlib>
#include <cstring>
#include <fstream>
#include <functional>
#include <map>

#include "checkpoint/gguf_writer.h"
#include "checkpoint/safetensors_writer.h"
#include "golden.h"

namespace proa::golden {
namespace {

namespace fs = std::filesystem;
using Json = nlohmann::ordered_json;

struct StoredTensor {
  std::vector<int64_t> shape;
  std::string dtype;  // safetensors
  int ggml_type = 0;
  std::vector<std::byte> data;
};
using Tensors = std::map<std::string, StoredTensor>;

struct Metadata {  // a GGUF value as the file has it
  uint32_t type;
  std::vector<std::byte> bytes;
};

template <typename T>
std::vector<std::byte> raw(const T& value) {
  std::vector<std::byte> bytes(sizeof value);
  std::memcpy(bytes.data(), &value, sizeof value);
  return bytes;
}
Metadata text(std::string_view value) {
  auto bytes = raw<uint64_t>(value.size());
  for (char c : value) bytes.push_back(static_cast<std::byte>(c));
  return {static_cast<uint32_t>(GgufType::string), bytes};
}
Metadata u32(uint32_t value) { return {static_cast<uint32_t>(GgufType::u32), raw(value)}; }
Metadata f32(float value) { return {static_cast<uint32_t>(GgufType::f32), raw(value)}; }

// A checkpoint taken apart, to be changed and written again.
struct Parts {
  Json config;                               // of a folder
  std::map<std::string, Metadata> metadata;  // of a GGUF file
  Tensors tensors;
};

Parts take_apart(const std::string& path) {
  const Checkpoint checkpoint = must(Checkpoint::open(path));
  Parts parts{.config = checkpoint.config()};
  for (const auto& [name, entry] : checkpoint.tensors()) {
    parts.tensors[name] = {entry.shape,
                           entry.type,
                           entry.format ? info(*entry.format).ggml_type : 0,
                           {entry.data, entry.data + entry.bytes}};
  }
  if (!checkpoint.gguf()) return parts;
  for (const auto& [key, value] : checkpoint.gguf()->metadata()) {
    Metadata meta{static_cast<uint32_t>(value.type), {}};
    if (value.type == GgufType::string) meta.bytes = raw<uint64_t>(value.bytes.size());
    if (value.is_array()) {
      meta.bytes = raw(static_cast<uint32_t>(value.element));
      const auto count = raw(value.count);
      meta.bytes.insert(meta.bytes.end(), count.begin(), count.end());
    }
    meta.bytes.insert(meta.bytes.end(), value.bytes.begin(), value.bytes.end());
    parts.metadata[std::string(key)] = std::move(meta);
  }
  return parts;
}

// Written to a place of this test's own, removed at the end.
class Written {
 public:
  explicit Written(const Parts& parts) {
    std::string name = fs::temp_directory_path() / "proa_bad_models_XXXXXX";
    EXPECT_NE(mkdtemp(name.data()), nullptr);
    folder_ = name;
    if (parts.metadata.empty()) {
      std::ofstream(folder_ / "config.json") << parts.config.dump();
      SafetensorsWriter writer;
      for (const auto& [key, t] : parts.tensors) writer.put_raw_tensor(key, t.shape, t.dtype, t.data);
      EXPECT_TRUE(writer.write(folder_ / "model.safetensors").ok());
      path_ = folder_;
    } else {
      GgufWriter writer;
      for (const auto& [key, meta] : parts.metadata) writer.put_raw(key, meta.type, meta.bytes);
      for (const auto& [key, t] : parts.tensors) {
        writer.put_raw_tensor(key, t.shape, static_cast<uint32_t>(t.ggml_type), t.data);
      }
      path_ = folder_ / "model.gguf";
      EXPECT_TRUE(writer.write(path_).ok());
    }
  }
  ~Written() { fs::remove_all(folder_); }
  Written(const Written&) = delete;
  Written& operator=(const Written&) = delete;
  const std::string& path() const { return path_; }

 private:
  fs::path folder_;
  std::string path_;
};

struct Row {
  const char* what;
  std::function<void(Parts&)> change;
  std::vector<std::string> said;  // each is part of the message
};

// The error of opening a model, or the model's logits made and no error.
std::string open_and_run(const std::string& path) {
  const auto backend = must(make_backend("reference"));
  auto checkpoint = Checkpoint::open(path);
  if (!checkpoint.ok()) return checkpoint.error().message();
  const auto model = open_model(std::make_shared<const Checkpoint>(std::move(*checkpoint)), *backend);
  if (!model.ok()) return model.error().message();
  const std::vector<int32_t> token_ids = {1, 2, 3}, rows = {2};
  const auto logits = forced_logits(**model, *backend, token_ids, rows);
  return logits.ok() ? "no error" : logits.error().message();
}

void expect_errors(const std::string& base, std::span<const Row> rows) {
  const Parts right = take_apart(goldens_folder() + base);
  EXPECT_EQ(open_and_run(Written(right).path()), "no error");
  for (const Row& row : rows) {
    SCOPED_TRACE(row.what);
    Parts parts = right;
    row.change(parts);
    const Written written(parts);
    const std::string message = open_and_run(written.path());
    EXPECT_NE(message, "no error");
    EXPECT_NE(message.find(written.path()), std::string::npos) << message;
    for (const std::string& part : row.said)
      EXPECT_NE(message.find(part), std::string::npos) << part << "\n" << message;
  }
}

auto set(const char* field, Json value) {
  return [=](Parts& p) { p.config[field] = value; };
}
auto drop(const char* field) {
  return [=](Parts& p) { p.config.erase(field); };
}
auto put(const char* key, Metadata value) {
  return [=](Parts& p) { p.metadata[key] = value; };
}
auto without(const char* key) {
  return [=](Parts& p) { p.metadata.erase(key); };
}

TEST(BadModels, TensorsOfAFolder) {
  const std::string in_proj = "backbone.layers.0.mixer.in_proj.weight", norm = "backbone.layers.1.norm.weight";
  const std::string q = "backbone.layers.3.mixer.q_proj.weight";
  const Row rows[] = {
      {"missing", [=](Parts& p) { p.tensors.erase(in_proj); }, {in_proj + ": missing", "1 difference"}},
      {"turned round",
       [=](Parts& p) { std::swap(p.tensors[in_proj].shape[0], p.tensors[in_proj].shape[1]); },
       {in_proj + ": expected shape [", ", found ["}},
      {"another rank",
       [=](Parts& p) {
         p.tensors[norm].shape = {2, p.tensors[norm].shape[0] / 2};
       },
       {norm + ": expected shape [", ", found [2, "}},
      {"one too many",
       [=](Parts& p) { p.tensors["backbone.layers.0.mixer.gate_proj.weight"] = p.tensors[in_proj]; },
       {"backbone.layers.0.mixer.gate_proj.weight: not expected", "F32"}},
      {"a layer too many",
       [=](Parts& p) { p.tensors["backbone.layers.5.norm.weight"] = p.tensors[norm]; },
       {"backbone.layers.5.norm.weight: not expected"}},
      {"integers", [=](Parts& p) { p.tensors[q].dtype = "I32"; }, {q + ": expected a known format, found type I32"}},
      {"an unknown type", [=](Parts& p) { p.tensors[q].dtype = "F6_E9"; }, {q, "F6_E9"}},
      {"no tensors at all", [](Parts& p) { p.tensors.clear(); }, {"missing", "and ", " more"}},
      {"several at once",
       [=](Parts& p) {
         p.tensors.erase(in_proj);
         p.tensors[norm].shape = {2, p.tensors[norm].shape[0] / 2};
         p.tensors[q].dtype = "I32";
         p.tensors["stray"] = p.tensors[norm];
       },
       {"4 differences", in_proj + ": missing", norm + ": expected shape", q + ": expected a known format",
        "stray: not expected"}},
  };
  expect_errors("nemotron_h/dense", rows);
}

TEST(BadModels, ConfigOfNemotronH) {
  const Row rows[] = {
      {"no architecture", drop("architectures"), {"config.json", "architectures"}},
      {"an unknown architecture",
       set("architectures", {"MambaForCausalLM"}),
       {"architectures", "one of NemotronHForCausalLM, LlamaForCausalLM", "MambaForCausalLM"}},
      {"two architectures", set("architectures", {"LlamaForCausalLM", "NemotronHForCausalLM"}), {"one name", "2"}},
      {"architectures no list", set("architectures", 7), {"architectures"}},
      {"a field missing", drop("hidden_size"), {"config.json", "hidden_size"}},
      {"a field null", set("hidden_size", nullptr), {"hidden_size"}},
      {"text for a number", set("hidden_size", "wide"), {"hidden_size", "integer", "wide"}},
      {"a fraction", set("hidden_size", 32.5), {"hidden_size", "integer", "32.5"}},
      {"zero", set("hidden_size", 0), {"hidden_size", "0"}},
      {"negative", set("vocab_size", -1), {"vocab_size", "-1"}},
      {"beyond 32 bits", set("vocab_size", 1e18), {"vocab_size"}},
      {"beyond 64 bits", set("vocab_size", 1e30), {"vocab_size"}},
      {"another size than the tensors have",
       set("hidden_size", 4096),
       {"backbone.embeddings.weight: expected shape [", "4096"}},
      {"a letter of no mixer", set("hybrid_override_pattern", "M-X"), {"hybrid_override_pattern", "letters M", "M-X"}},
      {"no layers", set("hybrid_override_pattern", ""), {"hybrid_override_pattern"}},
      {"pattern no string", set("hybrid_override_pattern", {1, 2}), {"hybrid_override_pattern"}},
      {"another number of layers", set("num_hidden_layers", 52), {"num_hidden_layers", "6", "52"}},
      {"an unknown mixer",
       [](Parts& p) {
         p.config.erase("hybrid_override_pattern");
         p.config["layers_block_type"] = {"mamba", "hyena"};
       },
       {"layers_block_type", "mamba, attention, moe or mlp", "hyena"}},
      {"no heads", set("num_attention_heads", 0), {"num_attention_heads"}},
      {"KV heads that do not divide", set("num_key_value_heads", 3), {"num_key_value_heads", "a divisor of", "3"}},
      {"groups that do not divide", set("n_groups", 4), {"n_groups", "a divisor of 6", "4"}},
      {"groups of experts that do not divide", set("n_group", 5), {"n_group", "5"}},
      {"more experts than there are", set("num_experts_per_tok", 1000), {"num_experts_per_tok", "1000"}},
      {"more groups than there are", set("topk_group", 99), {"topk_group", "99"}},
      {"sizes that overflow",
       [](Parts& p) {
         p.config["mamba_num_heads"] = 65536;
         p.config["mamba_head_dim"] = 65536;
       },
       {"mamba_num_heads"}},
      {"many experts in many layers",
       [](Parts& p) {
         p.config["hybrid_override_pattern"] = std::string(4000, 'E');
         p.config["num_hidden_layers"] = 4000;
         p.config["n_routed_experts"] = 65536;
       },
       {"n_routed_experts"}},
      {"no taps", set("conv_kernel", 0), {"conv_kernel", "0"}},
      {"epsilon negative", set("layer_norm_epsilon", -1), {"layer_norm_epsilon", "-1"}},
      {"epsilon not a number", set("layer_norm_epsilon", "NaN"), {"layer_norm_epsilon"}},
      {"limits upside down", set("time_step_limit", {1.0, 0.5}), {"time_step_limit", "ascending"}},
      {"three limits", set("time_step_limit", {0.0, 1.0, 2.0}), {"time_step_limit", "two", "3"}},
      {"a bias we do not have", set("attention_bias", true), {"attention_bias", "false", "true"}},
      {"a bias of another kind", set("mamba_proj_bias", "yes"), {"mamba_proj_bias"}},
      {"another activation", set("mlp_hidden_act", "silu"), {"mlp_hidden_act", "relu2", "silu"}},
      {"another Mamba activation", set("mamba_hidden_act", "gelu"), {"mamba_hidden_act", "silu", "gelu"}},
      {"a wide scale", set("routed_scaling_factor", "Infinity"), {"routed_scaling_factor"}},
  };
  expect_errors("nemotron_h/m_e_attn", rows);
}

TEST(BadModels, ConfigOfLlama) {
  const Row rows[] = {
      {"KV heads that do not divide",
       set("num_key_value_heads", 4),
       {"config.json", "num_key_value_heads", "a divisor of 6", "4"}},
      {"more heads than width",
       [](Parts& p) {
         p.config["num_attention_heads"] = p.config["num_key_value_heads"] = 4096;
         p.config.erase("head_dim");
       },
       {"head_dim", "0"}},
      {"an odd head", set("head_dim", 7), {"head_dim", "even", "7"}},
      {"scaling we do not have",
       [](Parts& p) {
         p.config.erase("rope_parameters");
         p.config["rope_scaling"] = {{"rope_type", "yarn"}, {"factor", 2.0}};
       },
       {"rope_type", "default, linear or llama3", "yarn"}},
      {"scaling without a factor",
       [](Parts& p) {
         p.config.erase("rope_parameters");
         p.config["rope_scaling"] = {{"rope_type", "linear"}};
       },
       {"rope_scaling", "factor"}},
      {"theta zero",
       [](Parts& p) {
         p.config.erase("rope_parameters");
         p.config["rope_theta"] = 0;
       },
       {"rope_theta", "0"}},
      {"another activation", set("hidden_act", "gelu"), {"hidden_act", "silu", "gelu"}},
      {"a bias we do not have", set("mlp_bias", true), {"mlp_bias"}},
      {"layers that are not there", set("num_hidden_layers", 1000), {"missing", "more"}},
      {"vocabulary of another size", set("vocab_size", 7), {"model.embed_tokens.weight: expected shape [7, "}},
  };
  expect_errors("llama/untied", rows);
}

TEST(BadModels, GgufOfNemotronH) {
  const std::string in = "blk.0.ssm_in.weight";
  const Row rows[] = {
      {"an unknown architecture",
       put("general.architecture", text("mamba2")),
       {"general.architecture", "one of nemotron_h, nemotron_h_moe, llama", "mamba2"}},
      {"no architecture", without("general.architecture"), {"general.architecture"}},
      {"architecture no string", put("general.architecture", u32(1)), {"general.architecture"}},
      {"a key missing", without("nemotron_h_moe.ssm.state_size"), {"nemotron_h_moe.ssm.state_size"}},
      {"a key of another type",
       put("nemotron_h_moe.embedding_length", text("wide")),
       {"nemotron_h_moe.embedding_length", "string"}},
      {"no blocks", put("nemotron_h_moe.block_count", u32(0)), {"block_count", "0"}},
      {"too many blocks", put("nemotron_h_moe.block_count", u32(0xffffffff)), {"block_count", "4294967295"}},
      {"lists shorter than the blocks", put("nemotron_h_moe.block_count", u32(9)), {"nemotron_h_moe.", "9"}},
      {"no heads", put("nemotron_h_moe.attention.head_count", u32(0)), {"attention.head_count", "0"}},
      {"sizes that overflow 64 bits",
       [](Parts& p) {
         p.metadata["nemotron_h_moe.attention.head_count"] = u32(0xffffffff);
         p.metadata["nemotron_h_moe.attention.key_length"] = u32(0xffffffff);
       },
       {"4294967295"}},
      {"more choices than overflow allows",
       [](Parts& p) {
         p.metadata["nemotron_h_moe.expert_count"] = u32(0xffffffff);
         p.metadata["nemotron_h_moe.expert_group_used_count"] = u32(0xffffffff);
         p.metadata["nemotron_h_moe.expert_used_count"] = u32(0xffffffff);
       },
       {"n_routed_experts", "4294967295"}},
      {"no SSM heads", put("nemotron_h_moe.ssm.time_step_rank", u32(0)), {"ssm.inner_size", "ssm.time_step_rank"}},
      {"no state", put("nemotron_h_moe.ssm.state_size", u32(0)), {"ssm_state_size", "0"}},
      {"no groups", put("nemotron_h_moe.ssm.group_count", u32(0)), {"n_groups", "0"}},
      {"no taps", put("nemotron_h_moe.ssm.conv_kernel", u32(0)), {"ssm.conv_kernel", "0"}},
      {"no groups of experts", put("nemotron_h_moe.expert_group_count", u32(0)), {"n_group", "0"}},
      {"no choice", put("nemotron_h_moe.expert_used_count", u32(0)), {"num_experts_per_tok", "0"}},
      {"epsilon negative",
       put("nemotron_h_moe.attention.layer_norm_rms_epsilon", f32(-1)),
       {"layer_norm_epsilon", "-1"}},
      {"epsilon not a number",
       put("nemotron_h_moe.attention.layer_norm_rms_epsilon", f32(NAN)),
       {"layer_norm_epsilon", "nan"}},
      {"only MTP blocks", put("nemotron_h_moe.nextn_predict_layers", u32(6)), {"block_count"}},
      {"a tensor missing", [=](Parts& p) { p.tensors.erase(in); }, {in + ": missing"}},
      {"no embeddings", [](Parts& p) { p.tensors.erase("token_embd.weight"); }, {"token_embd.weight: missing"}},
      {"another shape",
       [=](Parts& p) { std::swap(p.tensors[in].shape[0], p.tensors[in].shape[1]); },
       {in + ": expected shape"}},
      {"a format we do not have",
       [=](Parts& p) {
         StoredTensor& t = p.tensors["output.weight"];  // IQ2_XXS: 66 bytes for 256 values
         t.ggml_type = 16;
         t.shape = {1, 256};
         t.data.resize(66);
       },
       {"output.weight"}},
      {"a type of no format",
       [=](Parts& p) {
         p.tensors[in].ggml_type = 26;  // I32
       },
       {in + ": expected a known format", "I32"}},
      {"several at once",
       [=](Parts& p) {
         p.tensors.erase(in);
         p.tensors["blk.0.stray"] = p.tensors["output_norm.weight"];
         p.tensors["output.weight"].ggml_type = 26;
       },
       {"3 differences", in + ": missing", "blk.0.stray: not expected", "output.weight: expected a known format"}},
  };
  expect_errors("nemotron_h/m_e_attn/model.gguf", rows);
}

TEST(BadModels, GgufOfLlama) {
  const Row rows[] = {
      {"no blocks", put("llama.block_count", u32(0)), {"num_hidden_layers", "0"}},
      {"no heads", put("llama.attention.head_count", u32(0)), {"llama.attention.head_count", "0"}},
      {"no KV heads", put("llama.attention.head_count_kv", u32(0)), {"head"}},
      {"sizes that overflow 64 bits",
       [](Parts& p) {
         p.metadata["llama.attention.head_count"] = u32(0xffffffff);
         p.metadata["llama.attention.head_count_kv"] = u32(0xffffffff);
         p.metadata["llama.attention.key_length"] = u32(0xfffffffe);
         p.metadata["llama.rope.dimension_count"] = u32(0xfffffffe);
       },
       {"429496729"}},
      {"heads of no size",
       [](Parts& p) {
         p.metadata["llama.attention.key_length"] = u32(0);
         p.metadata["llama.rope.dimension_count"] = u32(0);
       },
       {"head_dim", "0"}},
      {"more rotated than there is",
       put("llama.rope.dimension_count", u32(1000)),
       {"llama.rope.dimension_count", "1000"}},
      {"an odd rotation", put("llama.rope.dimension_count", u32(3)), {"llama.rope.dimension_count", "even", "3"}},
      {"scaling we do not have",
       put("llama.rope.scaling.type", text("yarn")),
       {"llama.rope.scaling.type", "none or linear", "yarn"}},
      {"theta not a number", put("llama.rope.freq_base", f32(NAN)), {"llama.rope.freq_base", "nan"}},
      {"epsilon negative", put("llama.attention.layer_norm_rms_epsilon", f32(-1)), {"rms_norm_eps", "-1"}},
      {"no embeddings", [](Parts& p) { p.tensors.erase("token_embd.weight"); }, {"token_embd.weight: missing"}},
  };
  expect_errors("llama/untied/model.gguf", rows);
}

}  // namespace
}  // namespace proa::golden
