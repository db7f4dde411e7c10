#include "checkpoint/scaled_tensors.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <functional>
#include <limits>
#include <numeric>
#include <string>
#include <vector>

#include "checkpoint/checkpoint.h"
#include "checkpoint/gguf_writer.h"
#include "checkpoint/safetensors_writer.h"
#include "quant/formats.h"

namespace proa {
namespace {

using Sizes = std::vector<int64_t>;

QuantConfig config(const std::string& text) {
  const auto json = parse_json(text, "c");
  EXPECT_TRUE(json.ok());
  const auto parsed = QuantConfig::parse(*json, "c");
  EXPECT_TRUE(parsed.ok()) << parsed.error().message();
  return parsed.ok() ? *parsed : QuantConfig();
}

std::string config_error(const std::string& text) {
  const auto json = parse_json(text, "c");
  EXPECT_TRUE(json.ok());
  const auto parsed = QuantConfig::parse(*json, "c");
  return parsed.ok() ? "ok" : parsed.error().message();
}

// A file in memory and what becomes of it.
class File {
 public:
  File& put(const char* name, const Sizes& shape, const char* dtype, std::vector<float> scales = {}) {
    const bool f32 = std::string_view(dtype) == "F32";
    std::vector<std::byte> data(
        static_cast<size_t>(std::accumulate(shape.begin(), shape.end(), int64_t{1}, std::multiplies<>())) *
        (f32                                 ? 4
         : std::string_view(dtype) == "BF16" ? 2
                                             : 1));
    if (!scales.empty()) std::copy_n(reinterpret_cast<const std::byte*>(scales.data()), data.size(), data.begin());
    writer_.put_raw_tensor(name, shape, dtype, data);
    return *this;
  }
  Result<ScaledTensors> read(const QuantConfig& quant_config = {}) {
    bytes_ = writer_.bytes();
    auto file = Safetensors::parse(bytes_, "f");
    EXPECT_TRUE(file.ok()) << file.error().message();
    return scaled_tensors(file->tensors(), false, "f", quant_config);
  }
  std::string message(const QuantConfig& quant_config = {}) {
    const auto result = read(quant_config);
    return result.ok() ? "ok" : result.error().message();
  }

 private:
  SafetensorsWriter writer_;
  std::vector<std::byte> bytes_;
};

TEST(ScaledTensors, WhatIsThereSaysWhatItIs) {
  const struct {
    const char* what;
    Sizes weight;
    const char* dtype;
    Sizes scale;
    Sizes global;  // of NVFP4
    Sizes shape;   // of the matrix
    size_t scales, row_scales;
  } rows[] = {
      {"FP8 per tensor", {4, 6}, "F8_E4M3", {}, {}, {4, 6}, 1, 0},
      {"FP8 per tensor as [1]", {4, 6}, "F8_E4M3", {1}, {}, {4, 6}, 1, 0},
      {"FP8 per channel", {4, 6}, "F8_E4M3", {4}, {}, {4, 6}, 1, 4},
      {"FP8 per channel as a column", {4, 6}, "F8_E4M3", {4, 1}, {}, {4, 6}, 1, 4},
      {"FP8 of one row", {1, 6}, "F8_E4M3", {1}, {}, {1, 6}, 1, 0},
      {"FP8, stacked, one for all", {3, 4, 6}, "F8_E4M3", {}, {}, {3, 4, 6}, 1, 0},
      {"FP8, stacked, one each", {3, 4, 6}, "F8_E4M3", {3, 1, 1}, {}, {3, 4, 6}, 3, 0},
      {"FP8, stacked, per channel", {3, 4, 6}, "F8_E4M3", {3, 4, 1}, {}, {3, 4, 6}, 1, 12},
      {"NVFP4", {4, 16}, "U8", {4, 2}, {}, {4, 32}, 1, 0},
      {"NVFP4, stacked", {3, 4, 16}, "U8", {3, 4, 2}, {3}, {3, 4, 32}, 3, 0},
  };
  for (const auto& row : rows) {
    for (const auto& [name, beside] : {std::pair{"m.weight", "m.weight"}, std::pair{"m.up_proj", "m.up_proj_weight"}}) {
      SCOPED_TRACE(std::string(row.what) + " " + name);
      const bool nvfp4 = std::string_view(row.dtype) == "U8";
      File file;
      file.put(name, row.weight, row.dtype).put("other", {2}, "BF16");
      file.put((std::string(beside) + "_scale").c_str(), row.scale, nvfp4 ? "F8_E4M3" : "F32");
      if (nvfp4) file.put((std::string(beside) + "_scale_2").c_str(), row.global, "F32");
      const auto result = file.read();
      ASSERT_TRUE(result.ok()) << result.error().message();
      ASSERT_EQ(result->entries.size(), 2u);
      const TensorEntry& entry = result->entries.at(name);
      EXPECT_EQ(entry.shape, row.shape);
      EXPECT_EQ(entry.format, nvfp4 ? Format::E2M1 : Format::F8_E4M3);
      const Scaling& scaling = result->scaling.at(entry.data);
      EXPECT_EQ(scaling.scheme, nvfp4 ? QuantScheme::nvfp4 : QuantScheme::fp8);
      EXPECT_EQ(scaling.scales.size(), row.scales);
      EXPECT_EQ(scaling.row_scales.size(), row.row_scales);
      EXPECT_EQ(scaling.group_scales.format.has_value(), nvfp4);
    }
  }
}

TEST(ScaledTensors, LeavesOutWhatBelongsToActivationsAndCaches) {
  File file;
  file.put("a.k_proj.weight", {2, 2}, "F8_E4M3").put("a.k_proj.weight_scale", {}, "F32", {2});
  file.put("a.k_proj.input_scale", {1}, "F32")
      .put("a.k_proj.k_scale", {1}, "F32", {3})
      .put("a.v_proj.v_scale", {1}, "F32", {0.5f});
  file.put("b.weight", {2, 2}, "BF16").put("b.input_scale", {1}, "F32");
  const auto result = file.read();
  ASSERT_TRUE(result.ok());
  std::string names;
  for (const auto& [name, entry] : result->entries) names += name + " ";
  EXPECT_EQ(names, "a.k_proj.weight b.input_scale b.weight ");  // b is not quantised: what is its input_scale?
  EXPECT_EQ(result->scaling.begin()->second.scales, std::vector<float>{2});
  EXPECT_EQ(result->scaling.begin()->second.input_scale, 0);
  EXPECT_EQ(result->kv_scales,
            (std::map<std::string, float, std::less<>>{{"a.k_proj.k_scale", 3}, {"a.v_proj.v_scale", 0.5f}}));
}

// Experts that no token of a calibration chose leave anything.
TEST(ScaledTensors, KeepsTheLargestInputScaleOfFp8) {
  const float nan = std::numeric_limits<float>::quiet_NaN(), infinity = std::numeric_limits<float>::infinity();
  const struct {
    std::vector<int64_t> shape;
    std::vector<float> values;
    float kept;
  } rows[] = {{{}, {0.5f}, 0.5f}, {{1}, {0.25f}, 0.25f}, {{4}, {0.5f, nan, infinity, 2}, 2}, {{2}, {0, -1}, 0}};
  for (const auto& row : rows) {
    File file;
    file.put("a.weight", {2, 2}, "F8_E4M3").put("a.weight_scale", {}, "F32", {1});
    file.put("a.input_scale", row.shape, "F32", row.values);
    const auto result = file.read();
    ASSERT_TRUE(result.ok()) << result.error().message();
    EXPECT_EQ(result->scaling.begin()->second.input_scale, row.kept);
  }
}

TEST(ScaledTensors, Errors) {
  const float nan = std::numeric_limits<float>::quiet_NaN();
  const struct {
    std::function<void(File&)> put;
    std::string message;
  } rows[] = {
      {[](File& f) {
         f.put("m.weight", {4, 6}, "F8_E4M3");
       },
       "m.weight: F8_E4M3 without m.weight_scale"},
      {[](File& f) {
         f.put("m.weight", {4, 16}, "U8");
       },
       "m.weight: U8 without m.weight_scale"},
      {[](File& f) {
         f.put("m.weight", {4, 16}, "U8").put("m.weight_scale", {4, 2}, "F8_E4M3");
       },
       "m.weight: NVFP4 without m.weight_scale_2"},
      {[](File& f) {
         f.put("m.weight", {4, 6}, "F8_E4M3").put("m.weight_scale", {5}, "F32");
       },
       "m.weight_scale: expected F32 of 1 or 4 values, found F32 [5]"},
      {[](File& f) {
         f.put("m.weight", {4, 6}, "F8_E4M3").put("m.weight_scale", {4}, "U8");
       },
       "m.weight_scale: expected F32 of 1 or 4 values, found U8 [4]"},
      {[](File& f) {
         f.put("m.weight", {4, 6}, "F8_E4M3").put("m.weight_scale", {1}, "F32", {-1});
       },
       "m.weight_scale: expected finite scales of at least 0, found -1.000000"},
      {[&](File& f) {
         f.put("m.weight", {1, 2}, "F8_E4M3").put("m.weight_scale", {1}, "F32", {nan});
       },
       "m.weight_scale: expected finite scales of at least 0, found nan"},
      {[](File& f) {
         f.put("m.weight", {4, 16}, "U8").put("m.weight_scale", {4, 1}, "F8_E4M3").put("m.weight_scale_2", {}, "F32");
       },
       "m.weight_scale: expected F8_E4M3 [4, 2], one for each 16 columns of [4, 32], found F8_E4M3 [4, 1]"},
      {[](File& f) {
         f.put("m.weight", {4, 12}, "U8").put("m.weight_scale", {4, 1}, "F8_E4M3").put("m.weight_scale_2", {}, "F32");
       },
       "m.weight_scale: expected F8_E4M3 [4, 1], one for each 16 columns of [4, 24], found F8_E4M3 [4, 1]"},
      {[](File& f) {
         f.put("m.weight", {4, 16}, "U8").put("m.weight_scale", {4, 2}, "F8_E4M3").put("m.weight_scale_2", {2}, "F32");
       },
       "m.weight_scale_2: expected F32 of 1 value, found F32 [2]"},
      {[](File& f) { f.put("m.weight", {6}, "F8_E4M3").put("m.weight_scale", {1}, "F32"); },
       "m.weight: expected a matrix or one per expert, found shape [6]"},
      {[](File& f) {
         f.put("m.weight", {4, 6}, "F8_E4M3").put("m.weight_scale", {}, "F32").put("m.weight_scale_2", {}, "F32");
       },
       "m.weight_scale_2: not expected beside FP8"},
  };
  for (const auto& row : rows) {
    File file;
    row.put(file);
    EXPECT_EQ(file.message(), "read quantised tensors: f: 1 difference\n  " + row.message);
  }
  File many;
  for (int i = 0; i < 30; ++i) many.put(("m" + std::to_string(i) + ".weight").c_str(), {1, 2}, "F8_E4M3");
  EXPECT_TRUE(many.message().ends_with("\n  ... and 10 more")) << many.message();
}

TEST(ScaledTensors, GgufScales) {
  GgufWriter writer;
  const std::vector<float> zeros(3 * 2 * 64);
  const auto put = [&](const char* name, const Sizes& shape, Format format, size_t count) {
    writer.put_tensor(name, shape, format, std::span<const float>(zeros).first(count));
  };
  put("a.weight", {2, 64}, Format::NVFP4, 128);
  writer.put_tensor("a.scale", Sizes{1}, Format::F32, std::vector<float>{3});
  put("a.input_scale", {1}, Format::F32, 1);
  put("e.weight", {3, 2, 64}, Format::NVFP4, 384);
  writer.put_tensor("e.scale", Sizes{3}, Format::F32, std::vector<float>{1, 2, 3});
  put("norm.weight", {64}, Format::F32, 64);
  put("norm.scale", {1}, Format::F32, 1);
  const auto bytes = writer.bytes();
  const auto gguf = Gguf::parse(bytes, "f");
  ASSERT_TRUE(gguf.ok());
  const auto result = scaled_tensors(gguf->tensors(), true, "f", {});
  ASSERT_TRUE(result.ok()) << result.error().message();
  EXPECT_EQ(result->entries.size(), 4u);  // a vector has no scale: the tensor table will ask what that is
  EXPECT_TRUE(result->entries.contains("norm.scale"));
  EXPECT_EQ(result->scaling.at(gguf->find("a.weight")->data).scales, std::vector<float>{3});
  EXPECT_EQ(result->scaling.at(gguf->find("e.weight")->data).scales, (std::vector<float>{1, 2, 3}));
}

TEST(QuantConfig, AllowsWhatItSays) {
  const QuantConfig uniform = config(
      R"({"quant_algo": "NVFP4", "group_size": 16, "exclude_modules": ["lm_head", "backbone.layers.1.mixer", "mtp*"]})");
  const QuantConfig mixed =
      config(R"({"quant_method": "modelopt", "quant_algo": "MIXED_PRECISION", "quantized_layers": {
      "backbone.layers.1.mixer.in_proj": {"quant_algo": "FP8"},
      "backbone.layers.2.mixer.experts": {"quant_algo": "NVFP4", "group_size": 16},
      "backbone.layers.3.mixer.experts.0.up_proj": {"quant_algo": "W4A16_NVFP4"}}})");
  using enum QuantScheme;
  const struct {
    const QuantConfig& config;
    const char* module;
    QuantScheme scheme;
    bool allowed;
  } rows[] = {
      {uniform, "backbone.layers.2.mixer.up_proj", nvfp4, true},
      {uniform, "model.layers.2.mixer.up_proj", nvfp4, true},
      {uniform, "backbone.layers.2.mixer.up_proj", fp8, false},
      {uniform, "backbone.layers.2.mixer.up_proj", none, true},  // it may be no linear layer
      {uniform, "lm_head", nvfp4, false},
      {uniform, "lm_head", none, true},
      {uniform, "language_model.lm_head", nvfp4, false},
      {uniform, "backbone.layers.1.mixer.in_proj", nvfp4, false},
      {uniform, "backbone.layers.11.mixer.in_proj", nvfp4, true},
      {uniform, "mtp.layers.0.eh_proj", nvfp4, false},
      {mixed, "backbone.layers.1.mixer.in_proj", fp8, true},
      {mixed, "model.layers.1.mixer.in_proj", fp8, true},
      {mixed, "backbone.layers.1.mixer.in_proj", nvfp4, false},
      {mixed, "backbone.layers.1.mixer.in_proj", none, false},
      {mixed, "backbone.layers.1.mixer.out_proj", fp8, false},
      {mixed, "backbone.layers.1.mixer.out_proj", none, true},
      {mixed, "backbone.layers.2.mixer.experts.7.up_proj", nvfp4, true},
      {mixed, "backbone.layers.3.mixer.experts.up_proj", nvfp4, true},
      {QuantConfig(), "lm_head", fp8, true},
  };
  for (const auto& row : rows) {
    EXPECT_EQ(row.config.allows(row.module, row.scheme), row.allowed) << row.module << " " << to_string(row.scheme);
  }
}

TEST(QuantConfig, Errors) {
  const std::string known =
      "expected one of FP8, FP8_PER_CHANNEL_PER_TOKEN, NVFP4, W4A16_NVFP4, MIXED_PRECISION, found ";
  const std::pair<const char*, std::string> rows[] = {
      {R"({"quant_algo": "W4A8_AWQ"})", "quant_algo: " + known + "\"W4A8_AWQ\""},
      {R"({"quant_algo": null})", "ok"},
      {R"({})", "ok"},
      {R"({"quant_algo": 8})", "quant_algo: expected"},
      {R"({"quant_method": "gptq"})", "quant_method: expected modelopt, found \"gptq\""},
      {R"({"quant_method": "modelopt_fp4", "quant_algo": "NVFP4"})", "ok"},
      {R"({"quant_algo": "NVFP4", "group_size": 32})", "group_size: expected 16, found 32"},
      {R"({"quant_algo": "MIXED_PRECISION"})", "quantized_layers"},
      {R"({"quant_algo": "MIXED_PRECISION", "quantized_layers": {"m": {"quant_algo": "MXFP8"}}})",
       "quantized_layers: m: quant_algo: " + known + "\"MXFP8\""},
      {R"({"quant_algo": "MIXED_PRECISION", "quantized_layers": {"m": 4}})", "m: expected an object, found number"},
      {R"({"quant_algo": "FP8", "exclude_modules": "lm_head"})", "exclude_modules: expected"},
  };
  for (const auto& [text, said] : rows) {
    const std::string message = config_error(text);
    EXPECT_NE(message.find(said), message.npos) << text << "\n" << message;
  }
}

}  // namespace
}  // namespace proa
