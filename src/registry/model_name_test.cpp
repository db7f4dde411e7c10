#include "registry/model_name.h"

#include <gtest/gtest.h>

#include <string>

namespace proa {
namespace {

TEST(ModelName, WhatIsRead) {
  const struct {
    const char* text;
    ModelName name;
  } rows[] = {
      {"org/name", {"org/name", "", "", ""}},
      {"nvidia/NVIDIA-Nemotron-3-Nano-30B-A3B-BF16", {"nvidia/NVIDIA-Nemotron-3-Nano-30B-A3B-BF16", "", "", ""}},
      {"o/n_1.5-x", {"o/n_1.5-x", "", "", ""}},
      {"org/name@v1.0", {"org/name", "v1.0", "", ""}},
      {"org/name:v1.0", {"org/name", "v1.0", "", ""}},
      {"org/name@refs/pr/3", {"org/name", "refs/pr/3", "", ""}},
      {"org/name@Q4_0", {"org/name", "Q4_0", "", ""}},
      {"org/name:Q4_0", {"org/name", "", "Q4_0", ""}},
      {"org/name:iq4_xs", {"org/name", "", "iq4_xs", ""}},
      {"org/name:UD-Q4_K_XL", {"org/name", "", "UD-Q4_K_XL", ""}},
      {"org/name:BF16", {"org/name", "", "BF16", ""}},
      {"org/name/a.gguf", {"org/name", "", "", "a.gguf"}},
      {"org/name/d/a.gguf@v1", {"org/name", "v1", "", "d/a.gguf"}},
  };
  for (const auto& row : rows) {
    SCOPED_TRACE(row.text);
    const auto name = parse_model_name(row.text);
    ASSERT_TRUE(name.ok()) << name.error().message();
    EXPECT_EQ(name->id, row.name.id);
    EXPECT_EQ(name->revision, row.name.revision);
    EXPECT_EQ(name->tag, row.name.tag);
    EXPECT_EQ(name->file, row.name.file);
  }
}

TEST(ModelName, WhatIsRefused) {
  const std::string long_part(97, 'a');
  for (const std::string& text : {std::string(),
                                  std::string("/"),
                                  std::string("name"),
                                  std::string("org/"),
                                  std::string("/name"),
                                  std::string("../name"),
                                  std::string("org/.."),
                                  std::string("org/../x.gguf"),
                                  std::string("./name"),
                                  std::string("org/name/"),
                                  std::string("org/name/../x.gguf"),
                                  std::string("org/name/a//b.gguf"),
                                  std::string("org/name/x.bin"),
                                  std::string("org/na me"),
                                  std::string("org/n%2e"),
                                  std::string("org/n--m"),
                                  std::string("org/n..m"),
                                  std::string("-org/name"),
                                  std::string("org/name-"),
                                  std::string("org/name@"),
                                  std::string("org/name@../x"),
                                  std::string("org/name@a/../b"),
                                  std::string("org/name@.hidden"),
                                  std::string("org/name@a b"),
                                  std::string("org/name:"),
                                  std::string("org/name:Q4_0:x"),
                                  std::string("org/name?x=1"),
                                  std::string("https://host/org/name"),
                                  std::string("org/n\0m", 7),
                                  std::string("org/n\nm"),
                                  std::string("o\xc3\xbcrg/name"),
                                  "org/" + long_part,
                                  long_part + "/name",
                                  "org/name@" + std::string(300, 'r'),
                                  "org/name/" + std::string(600, 'f') + ".gguf"}) {
    const auto name = parse_model_name(text);
    EXPECT_FALSE(name.ok()) << text;
  }
}

TEST(ModelName, SafeRelativePaths) {
  for (const char* path : {"a", "a/b.txt", ".gitattributes", "a b", "ü/ä.json", "..a/b.."}) {
    EXPECT_TRUE(is_safe_relative_path(path)) << path;
  }
  for (const std::string& path :
       {std::string(), std::string("/a"), std::string("a/"), std::string(".."), std::string("a/../b"), std::string("."),
        std::string("a//b"), std::string("a\\b"), std::string("a\nb"),
        std::string("a\xc2\x9b"
                    "1m"),
        std::string("a\0b", 3), std::string(600, 'a'), std::string(256, 'a')}) {
    EXPECT_FALSE(is_safe_relative_path(path)) << path;
  }
}

TEST(ModelName, QuantizationTags) {
  EXPECT_TRUE(has_quantization_tag("m.Q4_K_M.gguf", "q4_k_m"));
  EXPECT_TRUE(has_quantization_tag("m-q4_0-00001-of-00002.gguf", "Q4_0"));
  EXPECT_TRUE(has_quantization_tag("Q4_0/m.gguf", "Q4_0"));
  EXPECT_TRUE(has_quantization_tag("m-UD-Q4_K_XL.gguf", "Q4_K_XL"));
  EXPECT_FALSE(has_quantization_tag("m.IQ4_XS.gguf", "Q4_XS"));
  EXPECT_FALSE(has_quantization_tag("m.Q4_K_M.gguf", "Q4_K"));
  EXPECT_FALSE(has_quantization_tag("m.Q4_0_8_8.gguf", "Q4_0"));
  EXPECT_FALSE(has_quantization_tag("m.gguf", "Q4_0"));
}

}  // namespace
}  // namespace proa
