#include "checkpoint/tensor_table.h"

#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "checkpoint/gguf.h"
#include "checkpoint/gguf_writer.h"
#include "quant/formats.h"

namespace proa {
namespace {

// A small file as a model would find it: one tensor of each interesting kind.
class TensorTable : public testing::Test {
 protected:
  void SetUp() override {
    GgufWriter writer;
    const std::vector<float> zeros(1024);
    const auto put = [&](const char* name, std::vector<int64_t> shape, Format format) {
      int64_t elements = 1;
      for (int64_t size : shape) elements *= size;
      writer.put_tensor(name, shape, format, std::span<const float>(zeros).first(static_cast<size_t>(elements)));
    };
    put("embed", {4, 32}, Format::Q4_0);
    put("ssm_a", {6, 1}, Format::F32);
    put("conv", {6, 4}, Format::F32);
    put("norm", {32}, Format::BF16);
    put("column", {32}, Format::Q8_0);
    writer.put_raw_tensor("k", std::vector<int64_t>{256}, 15, std::vector<std::byte>(292));
    bytes_ = writer.bytes();
    auto gguf = Gguf::parse(bytes_, "f");
    ASSERT_TRUE(gguf.ok()) << gguf.error().message();
    gguf_.emplace(*std::move(gguf));
  }

  std::string compare(std::vector<TensorSpec> specs, std::vector<std::string> ignored) {
    const auto tensors = check_tensors(gguf_->tensors(), "f", specs, ignored);
    return tensors.ok() ? "ok" : tensors.error().message();
  }

  std::vector<std::byte> bytes_;
  std::optional<Gguf> gguf_;
};

TEST_F(TensorTable, GivesTensorsUnderTheNamesAndShapesOfTheModel) {
  const std::vector<TensorSpec> specs = {
      {.name = "embeddings", .shape = {4, 32}, .formats = {Format::F32, Format::Q4_0}, .aliases = {"none", "embed"}},
      {.name = "ssm_a", .shape = {6}},
      {.name = "conv", .shape = {6, 1, 4}},
      {.name = "bias", .shape = {6}, .optional = true},
  };
  const std::vector<std::string> ignored = {"norm", "co*mn", "k"};
  const auto tensors = check_tensors(gguf_->tensors(), "f", specs, ignored);
  ASSERT_TRUE(tensors.ok()) << tensors.error().message();
  EXPECT_EQ(tensors->size(), 3u);
  EXPECT_EQ(tensors->at("embeddings").format, Format::Q4_0);
  EXPECT_EQ(tensors->at("embeddings").data, gguf_->find("embed")->data);
  EXPECT_EQ(tensors->at("ssm_a").shape, Shape{6});
  EXPECT_EQ(tensors->at("conv").shape, (Shape{6, 1, 4}));
  EXPECT_FALSE(tensors->contains("bias"));
}

TEST_F(TensorTable, ReportsEachDifference) {
  const std::vector<std::string> all = {"embed", "ssm_a", "conv", "norm", "column", "k"};
  const std::string one = "compare tensors: f: expected the 1 tensors of the model, found 1 difference\n  ";
  const struct {
    TensorSpec spec;
    std::string message;
  } rows[] = {
      {{.name = "lm_head", .shape = {4, 32}}, one + "lm_head: missing, shape [4, 32]"},
      {{.name = "embed", .shape = {32, 4}}, one + "embed: expected shape [32, 4], found [4, 32]"},
      {{.name = "conv", .shape = {24}}, one + "conv: expected shape [24], found [6, 4]"},
      {{.name = "norm", .shape = {32}, .formats = {Format::F32, Format::F16}},
       one + "norm: expected format F32 or F16, found BF16"},
      {{.name = "k", .shape = {256}}, one + "k: expected a known format, found type Q8_K"},
      {{.name = "k", .shape = {256}, .formats = {Format::F32}}, one + "k: expected format F32, found type Q8_K"},
      {{.name = "k", .shape = {256}, .optional = true}, one + "k: expected a known format, found type Q8_K"},
      {{.name = "column", .shape = {32, 1}},
       one + "column: expected rows of whole blocks of 32, found Q8_0 for shape [32, 1]"},
      {{.name = "x", .shape = {1}, .aliases = {"norm"}}, one + "norm: expected shape [1], found [32]"},
  };
  for (const auto& row : rows) EXPECT_EQ(compare({row.spec}, all), row.message);
}

TEST_F(TensorTable, ReportsAllDifferencesTogether) {
  EXPECT_EQ(compare({{.name = "a", .shape = {1}}, {.name = "embed", .shape = {5}}}, {"c", "k"}),
            "compare tensors: f: expected the 2 tensors of the model, found 4 differences\n"
            "  a: missing, shape [1]\n"
            "  embed: expected shape [5], found [4, 32]\n"
            "  norm: not expected, BF16 [32]\n"
            "  ssm_a: not expected, F32 [6, 1]");
  std::vector<TensorSpec> many;
  for (int i = 0; i < 30; ++i) many.push_back({.name = "t" + std::to_string(i), .shape = {1}});
  const std::string text = compare(many, {""});
  EXPECT_NE(text.find("30 differences\n"), text.npos) << text;
  EXPECT_TRUE(text.ends_with("\n  t19: missing, shape [1]\n  ... and 10 more")) << text;
}

TEST_F(TensorTable, IgnoredPatternsMatchTheBeginning) {
  const struct {
    const char* pattern;
    const char* ignored;  // of embed and norm, which the others here leave to be reported
  } rows[] = {
      {"", "embed norm"}, {"*", "embed norm"},  {"e", "embed"},    {"em*d", "embed"}, {"*bed", "embed"},
      {"n*r", "norm"},    {"*m", "embed norm"}, {"**or*", "norm"}, {"embedx", ""},    {"*x", ""},
  };
  for (const auto& row : rows) {
    const std::string text = compare({}, {"ssm_a", "conv", "column", "k", row.pattern});
    const std::string ignored = row.ignored;
    for (const char* name : {"embed", "norm"}) {
      const bool reported = text.find(std::string(name) + ": not expected") != text.npos;
      EXPECT_NE(reported, ignored.find(name) != ignored.npos) << row.pattern << " " << name;
    }
  }
}

}  // namespace
}  // namespace proa
