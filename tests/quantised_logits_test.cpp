// Quantised checkpoints: what ModelOpt exports, and every format of GGUF on every matrix, give the logits of the
// weights that their bytes mean.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <functional>
#include <numeric>
#include <random>

#include "checkpoint/gguf_writer.h"
#include "checkpoint/safetensors_writer.h"
#include "golden.h"

namespace proa::golden {
namespace {

namespace fs = std::filesystem;

// FP8 per tensor and per channel, NVFP4, a map of both; experts one by one and stacked; tools/goldens/
// nemotron_h_quantised.py.
constexpr const char* kCases[] = {"fp8", "fp8_channel", "nvfp4", "mixed"};

class QuantisedLogits : public testing::TestWithParam<const char*> {
 protected:
  const Case golden_ = load(std::string("nemotron_h_quantised/") + GetParam());
};

TEST_P(QuantisedLogits, AreThoseOfTheDecodedWeights) {
  std::vector<std::string> paths = {golden_.folder};
  if (golden_.has_gguf()) paths.push_back(golden_.gguf());
  for (const std::string& path : paths) {
    for (const auto& backend : all_backends()) {
      const auto model = open(path, *backend);
      double worst = 0;
      for (const Sequence& sequence : golden_.sequences) {
        for (const std::vector<int>& chunks : {std::vector<int>{}, {1}, {5, 1, 9}}) {
          const auto ours = logits(*model, *backend, sequence, {.chunks = chunks});
          const double off = deviation(ours, sequence.logits);
          const bool rounds = product_rounding(*model, *backend) > 0;
          EXPECT_LE(rounds ? middle_deviation(ours, sequence.logits, sequence.rows.size()) : off,
                    tolerance(*model, *backend))
              << path << " on " << backend->description();
          EXPECT_LT(mean_kl(ours, sequence.logits, sequence.rows.size()), 1e-3);
          worst = std::max(worst, off);
        }
      }
      std::printf("  %-12s %-10s %-26s rms %.1e\n", golden_.name.c_str(), path == golden_.folder ? "" : "gguf",
                  std::string(backend->description()).c_str(), worst);
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Goldens, QuantisedLogits, testing::ValuesIn(kCases),
                         [](const auto& test) { return std::string(test.param); });

class Folder {
 public:
  Folder() {
    std::string name = fs::temp_directory_path() / "proa_quantised_XXXXXX";
    if (mkdtemp(name.data()) == nullptr) throw std::runtime_error("no temporary folder");
    path_ = name;
  }
  ~Folder() { fs::remove_all(path_); }
  Folder(const Folder&) = delete;
  Folder& operator=(const Folder&) = delete;
  const fs::path& path() const { return path_; }

 private:
  fs::path path_;
};

// A Nemotron-H of all four layer kinds whose matrices all have rows of 256 columns.
constexpr int kWidth = 256, kVocab = 32, kExperts = 3;

// Every matrix in `format`, or those same values as floats.
void write_gguf(const std::string& path, Format format, bool decoded) {
  GgufWriter writer;
  const std::string architecture = "nemotron_h_moe";
  const auto key = [&](const char* name) { return architecture + "." + name; };
  writer.put_string("general.architecture", architecture);
  const std::pair<const char*, uint32_t> integers[] = {{"block_count", 4},
                                                       {"context_length", 128},
                                                       {"embedding_length", kWidth},
                                                       {"attention.head_count", 4},
                                                       {"attention.key_length", 64},
                                                       {"ssm.conv_kernel", 4},
                                                       {"ssm.state_size", 8},
                                                       {"ssm.group_count", 2},
                                                       {"ssm.time_step_rank", 8},
                                                       {"ssm.inner_size", kWidth},
                                                       {"expert_count", kExperts},
                                                       {"expert_used_count", 2},
                                                       {"expert_feed_forward_length", kWidth},
                                                       {"expert_shared_feed_forward_length", kWidth}};
  for (const auto& [name, value] : integers) writer.put_u32(key(name), value);
  writer.put_f32(key("attention.layer_norm_rms_epsilon"), 1e-5f);
  writer.put_i32s(key("attention.head_count_kv"), std::vector<int32_t>{0, 2, 0, 0});
  writer.put_i32s(key("feed_forward_length"), std::vector<int32_t>{0, 0, kWidth, kWidth});

  std::mt19937 random(5);
  const auto values = [&](const std::vector<int64_t>& shape, float mean, float spread) {
    std::normal_distribution<float> normal(mean, spread);
    std::vector<float> result(static_cast<size_t>(std::accumulate(shape.begin(), shape.end(), 1, std::multiplies<>())));
    for (float& value : result) value = normal(random);
    return result;
  };
  const auto matrix = [&](const std::string& name, std::vector<int64_t> shape) {
    std::vector<float> x = values(shape, 0, 1.0f / 16);
    if (decoded) {
      for (size_t i = 0; i < x.size(); i += kWidth) {
        std::vector<std::byte> row(row_bytes(format, kWidth));
        encode_row(format, x.data() + i, kWidth, row.data());
        decode_row(format, row.data(), kWidth, x.data() + i);
      }
    }
    writer.put_tensor(name, shape, decoded ? Format::F32 : format, x);
  };
  const auto vector = [&](const std::string& name, std::vector<int64_t> shape, float mean, float spread) {
    writer.put_tensor(name, shape, Format::F32, values(shape, mean, spread));
  };
  matrix("token_embd.weight", {kVocab, kWidth});
  matrix("output.weight", {kVocab, kWidth});
  vector("output_norm.weight", {kWidth}, 1, 0.1f);
  for (const char* block : {"blk.0.", "blk.1.", "blk.2.", "blk.3."}) {
    vector(block + std::string("attn_norm.weight"), {kWidth}, 1, 0.1f);
  }
  matrix("blk.0.ssm_in.weight", {2 * kWidth + 2 * 16 + 8, kWidth});
  vector("blk.0.ssm_conv1d.weight", {kWidth + 2 * 16, 4}, 0, 0.5f);
  vector("blk.0.ssm_conv1d.bias", {kWidth + 2 * 16}, 0, 0.3f);
  vector("blk.0.ssm_dt.bias", {8}, -2, 0.5f);
  vector("blk.0.ssm_a", {8, 1}, -3, 0.5f);
  vector("blk.0.ssm_d", {8, 1}, 1, 0.3f);
  vector("blk.0.ssm_norm.weight", {2, kWidth / 2}, 1, 0.1f);
  matrix("blk.0.ssm_out.weight", {kWidth, kWidth});
  matrix("blk.1.attn_q.weight", {kWidth, kWidth});
  matrix("blk.1.attn_k.weight", {128, kWidth});
  matrix("blk.1.attn_v.weight", {128, kWidth});
  matrix("blk.1.attn_output.weight", {kWidth, kWidth});
  matrix("blk.2.ffn_gate_inp.weight", {kExperts, kWidth});
  vector("blk.2.exp_probs_b.bias", {kExperts}, 0, 0.1f);
  matrix("blk.2.ffn_up_exps.weight", {kExperts, kWidth, kWidth});
  matrix("blk.2.ffn_down_exps.weight", {kExperts, kWidth, kWidth});
  matrix("blk.2.ffn_up_shexp.weight", {kWidth, kWidth});
  matrix("blk.2.ffn_down_shexp.weight", {kWidth, kWidth});
  matrix("blk.3.ffn_up.weight", {kWidth, kWidth});
  matrix("blk.3.ffn_down.weight", {kWidth, kWidth});
  ASSERT_TRUE(writer.write(path).ok());
}

TEST(QuantisedGguf, AnyFormatOnAnyMatrix) {
  const Folder folder;
  const std::string path = folder.path() / "model.gguf", decoded_path = folder.path() / "decoded.gguf";
  Sequence sequence{.token_ids = {3, 1, 4, 15, 9, 26, 5, 30, 5, 8, 9}, .rows = {0, 3, 10}};
  for (Format format : kFormats) {
    if (info(format).ggml_type < 0) continue;
    write_gguf(path, format, false);
    write_gguf(decoded_path, format, true);
    for (const auto& backend : all_backends()) {
      const auto expected = logits(*open(decoded_path, *backend), *backend, sequence);
      const auto model = open(path, *backend);
      for (const std::vector<int>& chunks : {std::vector<int>{}, {1}}) {
        const auto actual = logits(*model, *backend, sequence, {.chunks = chunks});
        if (const double rounding = product_rounding(*model, *backend); rounding > 0) {
          EXPECT_LE(middle_deviation(actual, expected, sequence.rows.size()), 3 * rounding)
              << info(format).name << " on " << backend->description();
          continue;
        }
        EXPECT_LE(deviation(actual, expected), kSameFunction) << info(format).name << " on " << backend->description();
      }
      if (format != Format::F32) {
        EXPECT_LT(model->info().weight_bytes, 4 * model->info().num_parameters);
      }
    }
  }
}

// One row breaks one thing of a checkpoint; `said` is part of the error.
TEST(QuantisedCheckpoints, DisagreementsAreErrors) {
  struct Row {
    const char* base;
    const char* file;  // "" for the tensors
    std::string from, to;
    std::string said;
  };
  const std::string hf = "hf_quant_config.json";
  const Row rows[] = {
      {"fp8", hf.c_str(), "\"FP8\"", "\"INT4_AWQ\"",
       "quant_algo: expected one of FP8, FP8_PER_CHANNEL_PER_TOKEN, NVFP4, W4A16_NVFP4, MIXED_PRECISION, found "
       "\"INT4_AWQ\""},
      {"fp8", hf.c_str(), "\"quant_algo\": \"FP8\"", "\"quant_algo\": \"NVFP4\"",
       "backbone.layers.3.mixer.in_proj.weight: expected NVFP4 after "},
      {"fp8", hf.c_str(), "\"lm_head\"", "\"backbone.layers.3.mixer.in_proj\"",
       "backbone.layers.3.mixer.in_proj.weight: expected excluded after "},
      {"fp8", hf.c_str(), "\"lm_head\"", "\"backbone.layers.0.mixer.experts*\"",
       "backbone.layers.0.mixer.experts.0.down_proj.weight: expected excluded after "},
      {"nvfp4", hf.c_str(), "\"group_size\": 16", "\"group_size\": 32", "group_size: expected 16, found 32"},
      {"nvfp4", hf.c_str(), "\"quantization\"", "\"quantisation\"", "quantization: expected"},
      {"mixed", "config.json", "\"backbone.layers.3.mixer.in_proj\"", "\"backbone.layers.3.mixer.other\"",
       "backbone.layers.3.mixer.in_proj.weight: expected not listed after "},
      {"mixed", "config.json", "\"backbone.layers.3.mixer.in_proj\"", "\"backbone.layers.2.mixer.q_proj\"",
       "backbone.layers.2.mixer.q_proj.weight: expected FP8 after "},
      {"mixed", "config.json", "\"modelopt\"", "\"bitsandbytes\"",
       "quant_method: expected modelopt, found \"bitsandbytes\""},
      {"fp8", "", "backbone.layers.3.mixer.in_proj.weight_scale", "",
       "backbone.layers.3.mixer.in_proj.weight: F8_E4M3 without backbone.layers.3.mixer.in_proj.weight_scale"},
      {"fp8", "", "backbone.layers.3.mixer.in_proj.input_scale", "backbone.layers.3.mixer.in_proj.pre_quant_scale",
       "backbone.layers.3.mixer.in_proj.pre_quant_scale: not expected"},
      {"nvfp4", "", "backbone.layers.3.mixer.in_proj.weight_scale_2", "",
       "backbone.layers.3.mixer.in_proj.weight: NVFP4 without backbone.layers.3.mixer.in_proj.weight_scale_2"},
      {"nvfp4", "", "backbone.layers.3.mixer.in_proj.weight_scale", "backbone.layers.3.mixer.in_proj.scale",
       "backbone.layers.3.mixer.in_proj.weight: U8 without backbone.layers.3.mixer.in_proj.weight_scale"},
  };
  const auto backend = must(make_backend("reference"));
  for (const Row& row : rows) {
    SCOPED_TRACE(row.said);
    const Folder folder;
    const fs::path base = goldens_folder() + "nemotron_h_quantised/" + row.base;
    for (const auto& entry : fs::directory_iterator(base)) {
      if (entry.path().extension() == ".json") fs::copy(entry.path(), folder.path());
    }
    const Safetensors tensors = must(Safetensors::open(base / "model.safetensors"));
    SafetensorsWriter writer;
    size_t changed = 0;
    for (const auto& [name, entry] : tensors.tensors()) {
      const bool hit = row.file[0] == '\0' && name == row.from;
      changed += hit;
      if (hit && row.to.empty()) continue;
      writer.put_raw_tensor(hit ? row.to : name, entry.shape, entry.type, {entry.data, entry.bytes});
    }
    ASSERT_TRUE(writer.write(folder.path() / "model.safetensors").ok());
    if (row.file[0] != '\0') {
      std::ifstream in(base / row.file);
      std::string text{std::istreambuf_iterator<char>(in), {}};
      const size_t at = text.find(row.from);
      ASSERT_NE(at, text.npos);
      text.replace(at, row.from.size(), row.to);
      std::ofstream(folder.path() / row.file) << text;
      ++changed;
    }
    ASSERT_EQ(changed, 1u);
    const auto model = open_model(std::make_shared<const Checkpoint>(must(Checkpoint::open(folder.path()))), *backend);
    ASSERT_FALSE(model.ok());
    EXPECT_NE(model.error().message().find(row.said), std::string::npos) << model.error().message();
  }
}

}  // namespace
}  // namespace proa::golden
