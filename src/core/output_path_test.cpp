#include "core/output_path.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <iterator>

namespace proa {
namespace {

namespace fs = std::filesystem;

class OutputPathTest : public testing::Test {
 protected:
  OutputPathTest() { fs::create_directories(folder_); }
  ~OutputPathTest() override { fs::remove_all(folder_); }

  static std::string text(const std::string& path) {
    std::ifstream file(path, std::ios::binary);
    return std::string((std::istreambuf_iterator<char>(file)), {});
  }
  static void put(const std::string& path, std::string_view text) {
    auto file = OutputFile::create(path);
    ASSERT_TRUE(file.ok());
    ASSERT_TRUE(file->write(std::as_bytes(std::span(text))).ok());
    ASSERT_TRUE(file->close().ok());
  }

  const std::string folder_ = testing::TempDir() + "proa_output_" + std::to_string(::getpid());
  const std::string path_ = folder_ + "/a";
};

TEST_F(OutputPathTest, AFileAppearsWhenItIsWhole) {
  auto out = OutputPath::create(path_, false, false);
  ASSERT_TRUE(out.ok());
  put(out->partial(), "one");
  EXPECT_FALSE(fs::exists(path_));
  ASSERT_TRUE(out->commit().ok());
  EXPECT_EQ(text(path_), "one");
  EXPECT_FALSE(fs::exists(out->partial()));
}

TEST_F(OutputPathTest, WithoutCommitNothingStays) {
  for (const bool folder : {false, true}) {
    {
      auto out = OutputPath::create(path_, folder, false);
      ASSERT_TRUE(out.ok());
      put(out->partial() + (folder ? "/b" : ""), "one");
    }
    EXPECT_TRUE(fs::is_empty(folder_));
  }
}

TEST_F(OutputPathTest, ReplacesOnlyWhenTold) {
  put(path_, "old");
  EXPECT_FALSE(OutputPath::create(path_, false, false).ok());
  EXPECT_FALSE(OutputPath::create(path_, true, true).ok());  // a folder over a file
  auto out = OutputPath::create(path_, false, true);
  ASSERT_TRUE(out.ok());
  put(out->partial(), "new");
  ASSERT_TRUE(out->commit().ok());
  EXPECT_EQ(text(path_), "new");
}

TEST_F(OutputPathTest, AFolderReplacesAFolder) {
  for (const char* name : {"b", "c"}) {
    auto out = OutputPath::create(path_ + "/", true, true);
    ASSERT_TRUE(out.ok());
    put(out->partial() + "/config.json", "{}");
    put(out->partial() + "/" + name, name);
    ASSERT_TRUE(out->commit().ok());
    EXPECT_EQ(std::distance(fs::directory_iterator(folder_), {}), 1);
  }
  EXPECT_FALSE(fs::exists(path_ + "/b"));
  EXPECT_EQ(text(path_ + "/c"), "c");
}

TEST_F(OutputPathTest, AFolderOfOthersIsNotReplaced) {
  fs::create_directories(path_);
  put(path_ + "/letter.txt", "dear");
  EXPECT_FALSE(OutputPath::create(path_, true, true).ok());
  put(path_ + "/config.json", "{}");
  fs::create_directory(path_ + "/photos");
  EXPECT_FALSE(OutputPath::create(path_, true, true).ok());
  fs::remove(path_ + "/photos");
  auto out = OutputPath::create(path_, true, true);
  ASSERT_TRUE(out.ok());
  fs::create_directory(path_ + "/photos");  // since then
  EXPECT_FALSE(out->commit().ok());
  EXPECT_EQ(text(path_ + "/letter.txt"), "dear");
}

TEST_F(OutputPathTest, TwoRunsDoNotShareAName) {
  for (const bool folder : {false, true}) {
    auto first = OutputPath::create(path_, folder, false);
    auto second = OutputPath::create(path_, folder, false);
    ASSERT_TRUE(first.ok() && second.ok());
    EXPECT_NE(first->partial(), second->partial());
    EXPECT_TRUE(fs::exists(first->partial()));
  }
  EXPECT_TRUE(fs::is_empty(folder_));
}

TEST_F(OutputPathTest, AFileInOneCall) {
  const std::string path = folder_ + "/made/a";
  ASSERT_TRUE(write_file(path, "new").ok());
  ASSERT_TRUE(write_file(path, "newer").ok());
  EXPECT_EQ(text(path), "newer");
  EXPECT_EQ(std::distance(fs::directory_iterator(folder_ + "/made"), fs::directory_iterator()), 1);  // no half file
  for (const std::string& wrong : {path + "/b", folder_ + "/made"}) {  // a file in the way, a folder
    const auto written = write_file(wrong, "x");
    ASSERT_FALSE(written.ok()) << wrong;
    EXPECT_NE(written.error().message().find(path.substr(0, path.size() - 2)), std::string::npos);
  }
}

TEST_F(OutputPathTest, SaysWhatIsWrong) {
  EXPECT_NE(OutputPath::create(folder_ + "/none/a", false, false).error().message().find("/none"), std::string::npos);
  EXPECT_FALSE(free_disk_space(folder_ + "/none/a").ok());
  EXPECT_GT(*free_disk_space(path_), 0u);
  if (!fs::exists("/dev/full")) GTEST_SKIP();
  auto full = OutputFile::create("/dev/full");
  ASSERT_TRUE(full.ok());
  const std::string_view some = "some";
  EXPECT_NE(full->write(std::as_bytes(std::span(some))).error().message().find("No space left"), std::string::npos);
}

}  // namespace
}  // namespace proa
