#include "models/family.h"

#include <gtest/gtest.h>

namespace proa {
namespace {

TEST(Family, FindsAModelWhateverIsAroundItsName) {
  struct Row {
    const char* asked;
    const char* name;
    const char* precision;
  };
  const Row rows[] = {
      {"NVIDIA-Nemotron-3-Nano-30B-A3B", "NVIDIA-Nemotron-3-Nano-30B-A3B", ""},
      {"nvidia/NVIDIA-Nemotron-3-Nano-30B-A3B", "NVIDIA-Nemotron-3-Nano-30B-A3B", ""},  // organisation
      {"NVIDIA-Nemotron-3-Nano-30B-A3B-BF16", "NVIDIA-Nemotron-3-Nano-30B-A3B", "bf16"},
      {"NVIDIA-Nemotron-3-Nano-30B-A3B-FP8", "NVIDIA-Nemotron-3-Nano-30B-A3B", "fp8"},
      {"nvidia/NVIDIA-Nemotron-3-Nano-4B-NVFP4", "NVIDIA-Nemotron-3-Nano-4B", "nvfp4"},
      {"nvidia-nemotron-nano-9b-v2", "NVIDIA-Nemotron-Nano-9B-v2", ""},  // case
  };
  for (const Row& row : rows) {
    const auto found = find_known_model(row.asked);
    ASSERT_TRUE(found.ok()) << row.asked;
    EXPECT_EQ(found->model->name, row.name);
    EXPECT_EQ(found->precision, row.precision) << row.asked;
    EXPECT_EQ(found->model->config.substr(0, 1), "{") << row.asked;
  }
}

TEST(Family, AnUnknownNameListsTheKnownOnes) {
  for (const char* name : {"", "nvidia/", "NVIDIA-Nemotron-3-Nano-30B", "NVIDIA-Nemotron-3-Nano-30B-A3B-Q4_0"}) {
    const auto found = find_known_model(name);
    ASSERT_FALSE(found.ok()) << name;
    for (const KnownModel& model : known_models()) {
      EXPECT_NE(found.error().expected.find(model.name), std::string::npos) << model.name;
    }
  }
  EXPECT_EQ(known_models().size(), 7u);
}

}  // namespace
}  // namespace proa
