#include "checkpoint/packed.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <iterator>

#include "checkpoint/checkpoint.h"
#include "checkpoint/gguf_writer.h"
#include "checkpoint/safetensors_writer.h"
#include "core/output_path.h"

namespace proa {
namespace {

namespace fs = std::filesystem;

class PackedTest : public testing::Test {
 protected:
  PackedTest() {
    fs::create_directories(folder_ + "/hf");
    GgufWriter gguf;
    gguf.put_string("general.architecture", "llama");
    gguf.put_tensor("a.weight", std::vector<int64_t>{2, 4}, Format::F32, values_);
    EXPECT_TRUE(gguf.write(folder_ + "/model.gguf").ok());
    SafetensorsWriter safetensors;
    safetensors.put_tensor("a.weight", std::vector<int64_t>{2, 4}, Format::F32, values_);
    EXPECT_TRUE(safetensors.write(folder_ + "/hf/model.safetensors").ok());
    put(folder_ + "/hf/config.json", "{\"model_type\": \"llama\"}");
    put(folder_ + "/hf/tokenizer.json", "{}");
  }
  ~PackedTest() override { fs::remove_all(folder_); }

  static void put(const std::string& path, std::string_view text) { ASSERT_TRUE(write_file(path, text).ok()); }
  static std::string text(const std::string& path) {
    std::ifstream file(path, std::ios::binary);
    return std::string((std::istreambuf_iterator<char>(file)), {});
  }
  static Result<void> no_progress(uint64_t) { return {}; }

  const std::vector<float> values_ = {1, 2, 3, 4, 5, 6, 7, 8};
  const std::string folder_ = testing::TempDir() + "proa_packed_" + std::to_string(::getpid());
  const std::string out_ = folder_ + "/packed.proa";
};

TEST_F(PackedTest, OpensAsItsSourceDoes) {
  for (const std::string& source : {folder_ + "/model.gguf", folder_ + "/hf"}) {
    const auto packed = pack_checkpoint(source, out_, true, no_progress);
    ASSERT_TRUE(packed.ok()) << packed.error().message();
    const auto checkpoint = Checkpoint::open(out_);
    ASSERT_TRUE(checkpoint.ok()) << checkpoint.error().message();
    const auto original = Checkpoint::open(source);
    EXPECT_TRUE(checkpoint->is_packed());
    EXPECT_FALSE(original->is_packed());
    EXPECT_EQ(checkpoint->kind(), original->kind());
    EXPECT_EQ(checkpoint->config(), original->config());
    EXPECT_EQ(checkpoint->has_file("tokenizer.json"), original->has_file("tokenizer.json"));
    ASSERT_EQ(checkpoint->tensors().size(), 1u);
    const Tensor tensor = *checkpoint->tensor("a.weight");
    EXPECT_EQ(std::memcmp(tensor.data, values_.data(), tensor.bytes), 0);
    EXPECT_TRUE(verify_packed(out_, no_progress).ok());
  }
}

TEST_F(PackedTest, TheKeyFollowsTheContents) {
  const std::string key = *source_key(folder_ + "/hf");
  EXPECT_EQ(*source_key(folder_ + "/hf/"), key);
  put(folder_ + "/hf/tokenizer.json", "[]");
  EXPECT_NE(*source_key(folder_ + "/hf"), key);
}

TEST_F(PackedTest, DamageIsFoundAndNamed) {
  ASSERT_TRUE(pack_checkpoint(folder_ + "/hf", out_, false, no_progress).ok());
  std::string bytes = text(out_);
  bytes[bytes.find("\"model_type\"") + 1] = 'x';
  put(out_, bytes);
  const auto verified = verify_packed(out_, no_progress);
  ASSERT_FALSE(verified.ok());
  EXPECT_NE(verified.error().message().find("config.json"), std::string::npos);
  EXPECT_EQ(verified.error().message().find("model.safetensors"), std::string::npos);
}

TEST_F(PackedTest, NamesInTheFileDoNotSteerATerminal) {
  ASSERT_TRUE(pack_checkpoint(folder_ + "/hf", out_, false, no_progress).ok());
  std::string bytes = text(out_);
  bytes.replace(bytes.find("\"config.json\""), 13, R"("\u001b.json")");
  bytes.replace(bytes.find("{\"name\":\"hf\""), 12, R"({"name":"\n")");
  bytes[bytes.find("\"model_type\"") + 1] = 'x';
  put(out_, bytes);
  const auto verified = verify_packed(out_, no_progress);
  ASSERT_FALSE(verified.ok());
  EXPECT_NE(verified.error().message().find("\\x1b.json"), std::string::npos) << verified.error().message();
  EXPECT_NE(verified.error().message().find("\\x0a"), std::string::npos) << verified.error().message();
}

TEST_F(PackedTest, EveryCutAndEveryChangedHeaderByteIsSurvived) {
  ASSERT_TRUE(pack_checkpoint(folder_ + "/hf", out_, false, no_progress).ok());
  const std::string bytes = text(out_);
  const size_t header = 16 + 600;
  for (size_t size = 0; size < bytes.size(); size += size < header ? 1 : 997) {
    const auto cut = std::as_bytes(std::span(bytes)).first(size);
    EXPECT_FALSE(Packed::parse(cut, "cut").ok()) << size;
  }
  for (size_t i = 0; i < header; ++i) {
    std::string changed = bytes;
    changed[i] = static_cast<char>(changed[i] ^ 0x11);
    const auto parsed = Packed::parse(std::as_bytes(std::span(changed)), "changed");
    if (!parsed.ok()) continue;
    for (const PackedPart& part : parsed->parts) {  // inside, whatever it says
      EXPECT_GE(reinterpret_cast<const char*>(part.bytes.data()), changed.data());
      EXPECT_LE(reinterpret_cast<const char*>(part.bytes.data()) + part.bytes.size(), changed.data() + changed.size());
    }
  }
}

TEST_F(PackedTest, RefusesWhatCannotBePacked) {
  ASSERT_TRUE(pack_checkpoint(folder_ + "/hf", out_, false, no_progress).ok());
  const auto message = [&](const std::string& source, const std::string& output) {
    const auto result = pack_checkpoint(source, output, false, no_progress);
    return result.ok() ? "" : result.error().message();
  };
  EXPECT_NE(message(out_, folder_ + "/again").find("packed already"), std::string::npos);
  EXPECT_NE(message(folder_ + "/hf", out_).find("a name that is free"), std::string::npos);
  EXPECT_NE(message(folder_ + "/none", folder_ + "/again").find("none"), std::string::npos);
  const auto stop = [](uint64_t) -> Result<void> { return Error{"pack", "", "", "interrupted", ""}; };
  EXPECT_FALSE(pack_checkpoint(folder_ + "/hf", folder_ + "/again", false, stop).ok());
  for (const auto& entry : fs::directory_iterator(folder_)) {
    EXPECT_FALSE(entry.path().filename().string().starts_with("again")) << entry.path();
  }
}

}  // namespace
}  // namespace proa
