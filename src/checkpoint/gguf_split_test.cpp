#include <gtest/gtest.h>
#include <unistd.h>

#include <cstring>
#include <filesystem>
#include <functional>
#include <string>
#include <vector>

#include "checkpoint/checkpoint.h"
#include "checkpoint/gguf_writer.h"
#include "quant/formats.h"

namespace proa {
namespace {

namespace fs = std::filesystem;

TEST(GgufPartName, Table) {
  const struct {
    const char* path;
    const char* prefix;  // nullptr: no such name
    uint32_t number, count;
  } rows[] = {
      {"a/m-00001-of-00003.gguf", "a/m", 1, 3},      {"m-00003-of-00003.gguf", "m", 3, 3},
      {"m-00004-of-00003.gguf", nullptr, 0, 0},      {"m-00000-of-00003.gguf", nullptr, 0, 0},
      {"m-0001-of-00003.gguf", nullptr, 0, 0},       {"m-00001-of-00003.GGUF", nullptr, 0, 0},
      {"m-+0001-of-00003.gguf", nullptr, 0, 0},      {"m-00001_of_00003.gguf", nullptr, 0, 0},
      {"m_00001-of-00003.gguf", nullptr, 0, 0},      {"-00001-of-00003.gguf", nullptr, 0, 0},
      {"m-00001-of-00003.gguf.part", nullptr, 0, 0}, {"", nullptr, 0, 0},
  };
  for (const auto& row : rows) {
    SCOPED_TRACE(row.path);
    const auto name = parse_gguf_part_name(row.path);
    ASSERT_EQ(name.has_value(), row.prefix != nullptr);
    if (!name) continue;
    EXPECT_EQ(name->prefix, row.prefix);
    EXPECT_EQ(name->number, row.number);
    EXPECT_EQ(name->count, row.count);
    EXPECT_EQ(name->path(row.number), row.path);
  }
}

// By the official writer (tools/goldens/checkpoint.py): a first part without tensors, then a and b, then c.
TEST(GgufSplit, Golden) {
  auto opened = Checkpoint::open(PROA_SOURCE_DIR "/tests/goldens/checkpoint/split-00001-of-00003.gguf");
  ASSERT_TRUE(opened.ok()) << opened.error().message();
  const Checkpoint checkpoint = *std::move(opened);  // views stay valid
  EXPECT_EQ(*checkpoint.gguf()->string("test.string"), "in the first part");
  ASSERT_EQ(checkpoint.tensors().size(), 3u);
  for (const auto& [name, file] : {std::pair{"a", "00002"}, {"b", "00002"}, {"c", "00003"}}) {
    const auto tensor = checkpoint.tensor(name);
    ASSERT_TRUE(tensor.ok()) << tensor.error().message();
    EXPECT_EQ(tensor->shape, (Shape{3, 4}));
    EXPECT_NE(checkpoint.find(name)->file.find(file), std::string::npos);
    for (int i = 0; i < 12; ++i) {
      float value = 0;
      std::memcpy(&value, static_cast<const std::byte*>(tensor->data) + 4 * i, 4);
      EXPECT_EQ(value, static_cast<float>(i) / 4 - 3);
    }
  }
}

struct Part {
  int no = 0, count = 3, total = 4;  // negative: without the key
  std::vector<std::string> tensors;
  uint32_t alignment = 32;
};

class GgufSplitTest : public testing::Test {
 protected:
  void SetUp() override {
    folder_ = fs::path(testing::TempDir()) / ("proa_split_" + std::to_string(getpid()));
    fs::create_directories(folder_);
  }
  void TearDown() override { fs::remove_all(folder_); }

  std::string path(int number) const {
    return GgufPartName{(folder_ / "m").string(), static_cast<uint32_t>(number), 3}.path(static_cast<uint32_t>(number));
  }

  void write(const std::vector<Part>& parts) const {
    for (size_t i = 0; i < parts.size(); ++i) {
      GgufWriter writer(parts[i].alignment);
      const std::pair<const char*, int> keys[] = {
          {"split.no", parts[i].no}, {"split.count", parts[i].count}, {"split.tensors.count", parts[i].total}};
      for (const auto& [key, value] : keys) {
        const auto number = static_cast<uint16_t>(value);
        if (value >= 0) writer.put_raw(key, static_cast<uint32_t>(GgufType::u16), std::as_bytes(std::span(&number, 1)));
      }
      for (const std::string& name : parts[i].tensors) {
        writer.put_tensor(name, std::vector<int64_t>{2}, Format::F32, std::vector<float>{static_cast<float>(i), 0});
      }
      ASSERT_TRUE(writer.write(path(static_cast<int>(i) + 1)).ok());
    }
  }

  static std::string message(const std::string& where) {
    const auto checkpoint = Checkpoint::open(where);
    return checkpoint.ok() ? "ok" : checkpoint.error().message();
  }

  static std::vector<Part> base() {
    return {{.no = 0, .tensors = {"a"}}, {.no = 1, .tensors = {"b", "c"}}, {.no = 2, .tensors = {"d"}}};
  }

  fs::path folder_;
};

TEST_F(GgufSplitTest, WhatIsWrongIsNamed) {
  using Parts = std::vector<Part>;
  const struct {
    std::function<void(Parts&)> change;
    std::string says;
  } rows[] = {
      {[](Parts&) {}, "ok"},
      {[](Parts& p) { p[0].no = -1; }, "m-00001-of-00003.gguf: split.no: expected an integer"},
      {[](Parts& p) { p[0].no = 1; }, "expected the first of 3 parts, found part 2 (give m-00001-of-00003.gguf)"},
      {[](Parts& p) { p[0].total = -1; }, "split.tensors.count: expected an integer"},
      {[](Parts& p) { p[0].total = 5; }, "expected 5 tensors, as split.tensors.count says, found 4 in all parts"},
      {[](Parts& p) { p[0].count = 4; }, "expected a name that ends in -00001-of-00004.gguf"},
      {[](Parts& p) { p[1].no = 2; }, "m-00002-of-00003.gguf: split.no: expected 1, found u16 2"},
      {[](Parts& p) { p[1].no = -1; }, "m-00002-of-00003.gguf: split.no: expected an integer"},
      {[](Parts& p) { p[2].count = 2; }, "m-00003-of-00003.gguf: split.count: expected 3, found u16 2"},
      {[](Parts& p) { p[2].count = -1; }, "m-00003-of-00003.gguf: split.count: expected an integer"},
      {[](Parts& p) { p[2].tensors = {"a"}; }, "expected each tensor in one part, found a in "},
      {[](Parts& p) { p[1].alignment = 64; },
       "m-00002-of-00003.gguf: general.alignment: expected 32, as in the first part, found u32 64"},
      {[](Parts& p) { p[1].total = -1; }, "ok"},
  };
  for (const auto& row : rows) {
    SCOPED_TRACE(row.says);
    Parts parts = base();
    row.change(parts);
    write(parts);
    const std::string said = message(path(1));
    EXPECT_NE(said.find(row.says), std::string::npos) << said;
  }
}

TEST_F(GgufSplitTest, MissingPartsAreListed) {
  write(base());
  fs::remove(path(2));
  fs::remove(path(3));
  EXPECT_EQ(message(path(1)), "read split GGUF: " + path(1) +
                                  ": expected 3 parts, found 2 missing: m-00002-of-00003.gguf, m-00003-of-00003.gguf");
}

TEST_F(GgufSplitTest, AnotherPartThanTheFirst) {
  write(base());
  EXPECT_EQ(message(path(2)), "read split GGUF: " + path(2) +
                                  ": expected the first of 3 parts, found part 2 (give m-00001-of-00003.gguf)");
  fs::copy_file(path(1), folder_ / "renamed.gguf");
  EXPECT_EQ(message((folder_ / "renamed.gguf").string()),
            "read split GGUF: " + (folder_ / "renamed.gguf").string() +
                ": expected a name that ends in -00001-of-00003.gguf, as split.count says, found another name");
  fs::copy_file(path(2), folder_ / "second.gguf");
  EXPECT_NE(message((folder_ / "second.gguf").string()).find("found part 2 (give the part whose name ends in -00001"),
            std::string::npos);
}

TEST_F(GgufSplitTest, DamageInAnyPart) {
  for (int number : {1, 2, 3}) {
    write(base());
    for (uintmax_t size = fs::file_size(path(number)) - 24; size-- > 0;) {  // 8 bytes of data and 24 of padding
      fs::resize_file(path(number), size);
      ASSERT_NE(message(path(1)), "ok") << "part " << number << " cut to " << size;
    }
  }
}

}  // namespace
}  // namespace proa
