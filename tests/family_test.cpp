// Every checkpoint of the family at full size, opened as a user's would be: its headers are real, its data a hole in a
// file. What the model then holds is compared with descriptions written from the published lists of tensors, whose
// totals are the published ones.
#include <gtest/gtest.h>
#include <unistd.h>

#include <map>

#include "models/step_cost.h"
#include "sparse_checkpoint.h"

namespace proa::golden {
namespace {

std::vector<std::string> descriptions() {
  std::vector<std::string> names;
  for (const auto& file : std::filesystem::directory_iterator(goldens_folder() + "family")) {
    names.push_back(file.path().stem().string());
  }
  std::sort(names.begin(), names.end());
  return names;
}

class FullSize : public testing::Test {
 protected:
  ~FullSize() override { std::filesystem::remove_all(folder_); }

  const std::string folder_ = testing::TempDir() + "proa_family_" + std::to_string(::getpid());
};
class Family : public FullSize, public testing::WithParamInterface<std::string> {};

TEST_P(Family, HoldsWhatItsDescriptionSays) {
  const auto lines = read_description(goldens_folder() + "family/" + GetParam() + ".txt");
  std::string path;
  if (const std::string why = write_sparse_checkpoint(lines, folder_, path); !why.empty()) GTEST_SKIP() << why;
  const auto backend = must(make_backend("cpu", {.num_threads = 1}));
  const auto checkpoint = std::make_shared<const Checkpoint>(must(Checkpoint::open(path)));
  const auto model = must(open_model(checkpoint, *backend));

  // By kind and type: matrices, parameters, bytes.
  std::map<std::pair<std::string, std::string>, std::vector<int64_t>> kinds, expected;
  for (const WeightUse& weight : model->weights()) {
    std::string kind(to_string(weight.kind));
    std::replace(kind.begin(), kind.end(), ' ', '_');
    auto& sums = kinds[{kind, weight.stored}];
    sums.resize(3);
    sums[0] += weight.num_experts;
    sums[1] += weight.parameters;
    sums[2] += weight.bytes;
  }
  std::map<std::string, UnusedTensors> unused;
  for (const UnusedTensors& group : model->unused()) unused[group.what] = group;
  const UnusedTensors& mtp = unused["multi-token prediction"];
  const std::map<std::string, std::vector<int64_t>> found = {
      {"tensors", {static_cast<int64_t>(checkpoint->tensors().size())}},
      {"parameters", {model->info().num_parameters}},
      {"active", {count_parameters(*model).active}},
      {"unused", {mtp.count, mtp.parameters}},
      {"kv_scales", {unused["scales of an FP8 KV cache"].count}}};

  for (const auto& line : lines) {
    std::vector<int64_t> values;
    for (size_t i = line[0] == "kind" ? 3 : 2; i < line.size() && (line[0] == "kind" || line[0] == "expect"); ++i) {
      values.push_back(std::stoll(line[i]));
    }
    if (line[0] == "kind") {
      expected[{line[1], line[2]}] = values;
    } else if (line[0] == "expect" && line[1] == "mb_per_token") {
      const auto published = static_cast<double>(values[0]);
      EXPECT_NEAR(weight_bytes_per_token(*model) / 1e6, published, 0.01 * published);
    } else if (line[0] == "expect") {
      EXPECT_EQ(found.at(line[1]), values) << line[1];
    }
  }
  EXPECT_EQ(kinds, expected);
}

// What a step of Nano costs beside its weights. "127,000 tokens a second" of prefill at 790 TFLOPS, 96.5 MB of SSM
// state and 6 KiB of keys and values a token are the published figures.
TEST_F(FullSize, CostsOfNano) {
  const auto lines = read_description(goldens_folder() + "family/nano-30b-gguf-q4_0.txt");
  std::string path;
  if (const std::string why = write_sparse_checkpoint(lines, folder_, path); !why.empty()) GTEST_SKIP() << why;
  const auto backend = must(make_backend("cpu", {.num_threads = 1}));
  const auto checkpoint = std::make_shared<const Checkpoint>(must(Checkpoint::open(path)));
  const auto model = must(open_model(checkpoint, *backend));

  EXPECT_EQ(state_bytes(*model).ssm, 46ll << 20);
  EXPECT_NEAR(2 * static_cast<double>(state_bytes(*model).ssm) / 1e6, 96.5, 0.1);
  EXPECT_EQ(state_bytes(*model).conv, 23 * 3 * 6144 * 4);
  EXPECT_EQ(kv_bytes_per_token(*model, Format::BF16), 6144);
  const int64_t tokens[] = {1, 4, 8, 32, 64};
  const double distinct[] = {6, 22.4, 40.8, 100.5, 122};
  for (int i = 0; i < 5; ++i) EXPECT_NEAR(expected_distinct_experts(*model, tokens[i]), distinct[i], 0.2);
  EXPECT_NEAR(790e12 / (prefill_flops(*model, 8192) / 8192), 127000, 500);
}

INSTANTIATE_TEST_SUITE_P(Descriptions, Family, testing::ValuesIn(descriptions()), [](const auto& row) {
  std::string name = row.param;
  std::replace(name.begin(), name.end(), '-', '_');
  return name;
});

}  // namespace
}  // namespace proa::golden
