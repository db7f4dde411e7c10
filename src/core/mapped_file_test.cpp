#include "core/mapped_file.h"

#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cstdio>
#include <string>
#include <string_view>

namespace proa {
namespace {

class MappedFileTest : public testing::Test {
 protected:
  void TearDown() override { std::remove(path_.c_str()); }

  void write(std::string_view text) {
    std::FILE* file = std::fopen(path_.c_str(), "wb");
    ASSERT_NE(file, nullptr);
    ASSERT_EQ(std::fwrite(text.data(), 1, text.size(), file), text.size());
    std::fclose(file);
  }

  std::string path_ = testing::TempDir() + "proa_mapped_file_" + std::to_string(getpid());
};

std::string text(const MappedFile& file) {
  return {reinterpret_cast<const char*>(file.bytes().data()), file.bytes().size()};
}

TEST_F(MappedFileTest, MapsTheBytes) {
  write("some bytes");
  auto file = MappedFile::open(path_);
  ASSERT_TRUE(file.ok()) << file.error().message();
  EXPECT_EQ(text(*file), "some bytes");
  EXPECT_EQ(file->path(), path_);
  file->advise(MappedFile::Advice::will_need);
  file->advise(MappedFile::Advice::random, 3, 1000);
  file->advise(MappedFile::Advice::sequential, 1000);
}

TEST_F(MappedFileTest, MovingKeepsViewsValid) {
  write("one");
  auto first = MappedFile::open(path_);
  ASSERT_TRUE(first.ok());
  const std::byte* data = first->bytes().data();
  MappedFile second = *std::move(first);
  EXPECT_EQ(second.bytes().data(), data);
  EXPECT_TRUE(first->bytes().empty());
  auto third = MappedFile::open(path_);
  ASSERT_TRUE(third.ok());
  *third = std::move(second);
  EXPECT_EQ(third->bytes().data(), data);
  EXPECT_EQ(text(*third), "one");
}

TEST_F(MappedFileTest, ErrorsNameThePathAndTheReason) {
  const auto message = [](const std::string& path) {
    const auto file = MappedFile::open(path);
    return file.ok() ? "opened" : file.error().message();
  };
  EXPECT_EQ(message(path_), "open file: " + path_ + ": No such file or directory");
  EXPECT_EQ(message("/"), "open file: /: expected a regular file, found a folder");
  EXPECT_EQ(message("/dev/null"), "open file: /dev/null: expected a regular file, found a special file");
  write("");
  EXPECT_EQ(message(path_), "open file: " + path_ + ": expected a file with content, found an empty file");
  std::remove(path_.c_str());
  ASSERT_EQ(mkfifo(path_.c_str(), 0600), 0);  // must not wait for a writer
  EXPECT_EQ(message(path_), "open file: " + path_ + ": expected a regular file, found a special file");
}

}  // namespace
}  // namespace proa
