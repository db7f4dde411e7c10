// Dummy checkpoints: their tensors are those of the published lists at full size, a file that was written holds the
// bytes that lie in memory, and a model of them does work like a trained one's: tokens differ, experts are hit
// evenly, logits are neither flat nor certain.
#include "models/dummy.h"

#include <gtest/gtest.h>

#include <set>

#include "engine/teacher_forcing.h"
#include "models/family.h"
#include "models/step_cost.h"
#include "sparse_checkpoint.h"
#include "tokenizer/tokenizer.h"

namespace proa::golden {
namespace {

nlohmann::ordered_json known_config(const std::string& name) {
  return nlohmann::ordered_json::parse(must(find_known_model(name)).model->config);
}

DummyCheckpoint make(const std::string& name, const nlohmann::ordered_json& config, const std::string& precision,
                     DummyOptions options = {}) {
  return must(make_dummy(name, config, *must(find_precision(precision)), options));
}

// Every tensor with type, shape and size, by parsing the headers: the data are holes.
std::map<std::string, std::string> listed(const DummyCheckpoint& dummy) {
  std::map<std::string, std::string> tensors;
  for (const DummyFile& file : dummy.files) {
    const auto memory =
        must(AnonymousMemory::allocate(file.bytes, file.name));  // pages that are not written cost nothing
    std::copy(file.header.begin(), file.header.end(), memory.bytes().begin());
    const auto put = [&](const auto& entries) {
      for (const auto& [name, entry] : entries) tensors[name] = entry.type + " " + to_string(entry.shape);
      for (const DummyTensor& tensor : file.tensors) {
        const TensorEntry& entry = entries.at(tensor.name);
        EXPECT_EQ(entry.data - memory.bytes().data(), static_cast<int64_t>(tensor.begin)) << tensor.name;
        EXPECT_EQ(entry.bytes, tensor.bytes) << tensor.name;
        EXPECT_EQ(tensor.begin % info(tensor.fill.format).block_alignment, 0u) << tensor.name;
      }
    };
    if (dummy.gguf()) {
      put(must(Gguf::parse(memory.bytes(), file.name)).tensors());
    } else {
      put(must(Safetensors::parse(memory.bytes(), file.name)).tensors());
    }
  }
  return tensors;
}

struct Published {
  const char* description;  // in goldens/family
  const char* model;
  const char* precision;
  bool gguf;
};
class Lists : public testing::TestWithParam<Published> {};

TEST_P(Lists, AreThePublishedOnes) {
  const auto& [description, model, precision, gguf] = GetParam();
  std::map<std::string, std::string> expected;
  for (const SparseTensor& tensor :
       sparse_tensors(read_description(goldens_folder() + "family/" + description + ".txt"))) {
    // Left out: speculation, and scales of KV caches that are 1.
    if (tensor.name.starts_with("mtp.") || tensor.name.ends_with(".k_scale") || tensor.name.ends_with(".v_scale"))
      continue;
    expected[tensor.name] = tensor.type + " " + to_string(tensor.shape);
  }
  const auto actual = listed(make(model, known_config(model), precision, {.gguf = gguf}));
  for (const auto& [name, what] : expected) {
    const auto found = actual.find(name);
    ASSERT_NE(found, actual.end()) << name;
    ASSERT_EQ(found->second, what) << name;
  }
  EXPECT_EQ(actual.size(), expected.size());
}

constexpr const char* kNano = "NVIDIA-Nemotron-3-Nano-30B-A3B";
INSTANTIATE_TEST_SUITE_P(
    Family, Lists,
    testing::Values(
        Published{"nano-30b-bf16", kNano, "bf16", false}, Published{"nano-30b-fp8", kNano, "fp8", false},
        Published{"nano-30b-nvfp4", kNano, "nvfp4", false}, Published{"nano-30b-gguf-bf16", kNano, "bf16", true},
        Published{"nano-30b-gguf-q8_0", kNano, "q8_0", true}, Published{"nano-30b-gguf-q6_k", kNano, "q6_k", true},
        Published{"nano-30b-gguf-q5_k_m", kNano, "q5_k_m", true},
        Published{"nano-30b-gguf-q4_k_m", kNano, "q4_k_m", true}, Published{"nano-30b-gguf-q4_0", kNano, "q4_0", true},
        Published{"nano-30b-gguf-iq4_nl", kNano, "iq4_nl", true},
        Published{"nano-30b-gguf-mxfp4_moe", kNano, "mxfp4", true},
        Published{"nano-4b-bf16", "NVIDIA-Nemotron-3-Nano-4B", "bf16", false},
        Published{"nano-4b-gguf-q8_0", "NVIDIA-Nemotron-3-Nano-4B", "q8_0", true},
        Published{"nano-9b-v2", "NVIDIA-Nemotron-Nano-9B-v2", "bf16", false},
        Published{"nano-12b-v2", "NVIDIA-Nemotron-Nano-12B-v2", "bf16", false},
        Published{"h-8b", "Nemotron-H-8B-Base-8K", "bf16", false},
        Published{"lightning-30b-bf16", "NVIDIA-Nemotron-3.5-Lightning-30B-A3B", "bf16", false},
        Published{"lightning-30b-nvfp4", "NVIDIA-Nemotron-3.5-Lightning-30B-A3B", "nvfp4", false},
        Published{"super-120b-bf16", "NVIDIA-Nemotron-3-Super-120B-A12B", "bf16", false}),
    [](const auto& row) {
      std::string name = row.param.description;
      std::replace(name.begin(), name.end(), '-', '_');
      return name;
    });

// Nano-30B at full size, its matrices left unfilled: what a token reads of its weights.
TEST(Dummy, BytesPerTokenAreThoseThatSpeedIsStatedAgainst) {
  const auto backend = must(make_backend("cpu", {.num_threads = 1}));
  for (const auto& [precision, megabytes] : {std::pair<const char*, double>{"bf16", 6473},
                                             {"fp8", 3977},
                                             {"nvfp4", 2886},
                                             {"q8_0", 3456},
                                             {"q4_k_m", 2506},
                                             {"q4_0", 2022}}) {
    const auto dummy = make(kNano, known_config(kNano), precision);
    const auto checkpoint = std::make_shared<const Checkpoint>(must(Checkpoint::dummy(dummy, 1, 1 << 16)));
    const auto model = must(open_model(checkpoint, *backend));
    EXPECT_NEAR(weight_bytes_per_token(*model) / 1e6 / megabytes, 1, 0.01) << precision;
  }
}

// Every precision of every model has a list that its reader takes; all of it at sizes that fill no memory.
TEST(Dummy, EveryPrecisionOfEveryModelCanBeMade) {
  for (const KnownModel& model : known_models()) {
    const auto config = must(scale_config(nlohmann::ordered_json::parse(model.config), 0, 16));
    for (const Precision& precision : known_precisions()) {
      for (const bool gguf : {false, true}) {
        if (!(gguf ? precision.gguf : precision.huggingface)) continue;
        const auto dummy = make(std::string(model.name), config, std::string(precision.name), {.gguf = gguf});
        EXPECT_EQ(dummy.gguf(), gguf);
        EXPECT_FALSE(listed(dummy).empty()) << model.name << " " << precision.name;
      }
    }
  }
}

// A small model with every kind of layer.
nlohmann::ordered_json tiny_config() { return must(scale_config(known_config(kNano), 6, 32)); }

TEST(Dummy, InMemoryItIsTheFileThatWouldBeWritten) {
  for (const auto& [precision, gguf] : {std::pair("q4_0", true), {"nvfp4", false}, {"bf16", false}}) {
    const auto dummy = make("tiny", tiny_config(), precision, {.max_shard_bytes = 3'000'000});
    EXPECT_EQ(dummy.files.size() > 1, !gguf && std::string(precision) == "bf16");
    const Checkpoint checkpoint = must(Checkpoint::dummy(dummy));
    size_t seen = 0;
    for (const DummyFile& file : dummy.files) {
      std::vector<std::byte> written;
      const auto status = stream_dummy(file, 2, [&](std::span<const std::byte> piece) -> Result<void> {
        written.insert(written.end(), piece.begin(), piece.end());
        return {};
      });
      ASSERT_TRUE(status.ok());
      ASSERT_EQ(written.size(), file.bytes);
      for (const DummyTensor& tensor : file.tensors) {
        const TensorEntry* entry = checkpoint.find(tensor.name);
        ASSERT_NE(entry, nullptr) << tensor.name;
        EXPECT_EQ(std::memcmp(entry->data, written.data() + tensor.begin, tensor.bytes), 0) << tensor.name;
        // The place tells what fills it: here a slice from the second unit on.
        const uint64_t unit = dummy_unit_bytes(tensor.fill.format);
        if (tensor.bytes > unit) {
          const auto place = checkpoint.dummy()->find(entry->data + unit);
          ASSERT_TRUE(place.has_value());
          EXPECT_EQ(place->begin, unit);
          EXPECT_EQ(place->bytes, tensor.bytes - unit);
          EXPECT_EQ(place->fill.key[0], tensor.fill.key[0]);
        }
        ++seen;
      }
    }
    EXPECT_EQ(seen, checkpoint.tensors().size());
  }
}

TEST(Dummy, LargeTensorsCanBeLeftToADevice) {
  const Checkpoint checkpoint = must(Checkpoint::dummy(make("tiny", tiny_config(), "q8_0"), 1, 4096));
  for (const auto& [name, entry] : checkpoint.tensors()) {
    const auto place = checkpoint.dummy()->find(entry.data);
    ASSERT_TRUE(place.has_value()) << name;
    EXPECT_EQ(place->on_host, entry.bytes <= 4096) << name;
    const bool zero = std::all_of(entry.data, entry.data + entry.bytes, [](std::byte b) { return b == std::byte{0}; });
    EXPECT_EQ(zero, !place->on_host || name.ends_with("exp_probs_b.bias")) << name;
  }
}

// As far as a model can tell it has memory of its own; its ops are the plain loops.
class Apart final : public Backend {
 public:
  std::string_view name() const override { return "apart"; }
  std::string_view description() const override { return ""; }
  std::string_view on_reference() const override { return ""; }
  bool shares_memory() const override { return false; }
  Result<Buffer> allocate(size_t bytes) override { return host_->allocate(bytes); }

 private:
  std::unique_ptr<Backend> host_ = must(make_backend("reference"));
};

// Experts in one tensor (GGUF) and in one each, scales of matrices, of groups and none.
TEST(Dummy, ADeviceHoldsWhatTheHostLeftOut) {
  for (const auto& [precision, gguf] : {std::pair("q4_0", true), {"nvfp4", false}, {"fp8", false}, {"bf16", true}}) {
    const DummyCheckpoint dummy = make("tiny", tiny_config(), precision, {.gguf = gguf});
    const auto logits = [&](Backend& backend, uint64_t max_tensor_bytes) {
      const auto checkpoint = std::make_shared<const Checkpoint>(must(Checkpoint::dummy(dummy, 1, max_tensor_bytes)));
      const auto model = must(open_model(checkpoint, backend));
      auto result =
          must(forced_logits(*model, backend, std::vector<int32_t>{1, 700, 3001}, std::vector<int32_t>{0, 2}));
      for (const auto& [name, entry] : checkpoint->tensors()) {
        if (entry.bytes <= max_tensor_bytes) continue;
        EXPECT_TRUE(std::all_of(entry.data, entry.data + entry.bytes, [](std::byte b) { return b == std::byte{0}; }))
            << name;
      }
      return result;
    };
    Apart device;
    EXPECT_EQ(logits(device, 64), logits(*must(make_backend("reference")), UINT64_MAX)) << precision;
  }
}

TEST(Dummy, TheVocabularyReadsWhatItWrites) {
  for (const char* precision : {"q4_0", "bf16"}) {
    const auto checkpoint = must(Checkpoint::dummy(make("tiny", tiny_config(), precision)));
    const Tokenizer tokenizer = must(Tokenizer::open(checkpoint));
    EXPECT_EQ(tokenizer.vocab_size(), 4096);
    EXPECT_EQ(tokenizer.token_id("<|im_end|>"), 11);
    EXPECT_EQ(tokenizer.token_id("</think>"), 13);
    EXPECT_EQ(tokenizer.encode("\n"), std::vector<int32_t>{1010});
    for (const char* text : {"Hello, world: ba ba!", "naïve \xF0\x9F\x98\x80", " bababa"}) {
      EXPECT_EQ(tokenizer.decode(tokenizer.encode(text)), text);
    }
    std::set<std::string> texts;
    for (int32_t id = 0; id < tokenizer.vocab_size(); ++id) texts.insert(std::string(tokenizer.piece(id)));
    EXPECT_EQ(texts.size(), 4096u);
  }
}

TEST(Dummy, RefusesWhatCannotBe) {
  EXPECT_NE(find_precision("q4_x").error().message().find("q4_k_m"), std::string::npos);
  EXPECT_NE(scale_config(tiny_config(), 7, 1).error().message().find("--layers"), std::string::npos);
  const struct {
    const char *what, *key, *value, *says;
  } bad_configs[] = {
      {"text for a number", "num_hidden_layers", R"("six")", "num_hidden_layers"},
      {"a fraction of layers", "num_hidden_layers", "6.5", "num_hidden_layers"},
      {"a pattern that is a list", "hybrid_override_pattern", "[1]", "hybrid_override_pattern"},
      {"a pattern shorter than the layers", "hybrid_override_pattern", R"("M*")", "hybrid_override_pattern"},
      {"layer types that are text", "layers_block_type", R"("mamba")", "layers_block_type"},
      {"fewer layer types than layers", "layers_block_type", R"(["mamba"])", "layers_block_type"},
      {"a list of heads", "num_attention_heads", "[4]", "num_attention_heads"},
      {"negative heads", "mamba_num_heads", "-9223372036854775808", "mamba_num_heads"},
      {"a width near 64 bits", "hidden_size", "9223372036854775807", "hidden_size"},
      {"a vocabulary beyond 64 bits signed", "vocab_size", "18446744073709551615", "vocab_size"},
  };
  for (const auto& [what, key, value, says] : bad_configs) {
    auto config = tiny_config();
    config[key] = nlohmann::ordered_json::parse(value);
    const auto scaled = scale_config(config, 4, 2);
    ASSERT_FALSE(scaled.ok()) << what;
    EXPECT_NE(scaled.error().message().find(says), std::string::npos) << what << ": " << scaled.error().message();
  }
  EXPECT_FALSE(scale_config(nlohmann::ordered_json::parse("[]"), 4, 2).ok());
  EXPECT_NE(scale_config(tiny_config(), 0, 0).error().message().find("--scale-down"), std::string::npos);
  auto config = tiny_config();
  config["vocab_size"] = 100;
  EXPECT_NE(make_dummy("tiny", config, **find_precision("bf16")).error().message().find("vocab_size"),
            std::string::npos);
}

}  // namespace
}  // namespace proa::golden
