#include "checkpoint/gguf.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <string>
#include <vector>

#include "checkpoint/damage_test.h"
#include "checkpoint/gguf_writer.h"
#include "quant/formats.h"

namespace proa {
namespace {

using Bytes = std::vector<std::byte>;
using Sizes = std::vector<int64_t>;

std::string message(const Bytes& bytes) {
  const auto file = Gguf::parse(bytes, "f");
  return file.ok() ? "ok" : file.error().message();
}

template <class T>
std::string message(const Result<T>& result) {
  return result.ok() ? "ok" : result.error().message();
}

std::vector<float> quarters(size_t count) {
  std::vector<float> values(count);
  for (size_t i = 0; i < count; ++i) values[i] = static_cast<float>(i) / 4 - 3;
  return values;
}

// Everything in a parsed file can be read to its last byte.
void touch(const Gguf& file) {
  uint64_t sum = 0;
  for (const auto& [key, value] : file.metadata()) {
    for (std::byte b : value.bytes) sum += static_cast<uint64_t>(b);
    sum += file.u32(key).ok() + file.f32(key).ok() + file.integers(key).ok() + file.floats(key).ok();
    if (const auto strings = file.strings(key); strings.ok()) {
      size_t count = 0;
      for (std::string_view text : *strings) {
        for (char c : text) sum += static_cast<unsigned char>(c);
        ++count;
      }
      ASSERT_EQ(count, strings->size());
    }
  }
  for (const auto& [name, entry] : file.tensors()) {
    for (size_t i = 0; i < entry.bytes; ++i) sum += static_cast<uint64_t>(entry.data[i]);
    sum += file.tensor(name).ok();
  }
  sink = sum;
}

// A file by the official writer (tools/goldens/checkpoint.py): value i of each tensor is i / 4 - 3.
class GoldenGguf : public testing::Test {
 protected:
  void SetUp() override {
    auto opened = Gguf::open(PROA_SOURCE_DIR "/tests/goldens/checkpoint/tiny.gguf");
    ASSERT_TRUE(opened.ok()) << opened.error().message();
    file = std::make_unique<Gguf>(*std::move(opened));
  }
  std::unique_ptr<Gguf> file;
};

TEST_F(GoldenGguf, Tensors) {
  EXPECT_EQ(file->version(), 3u);
  EXPECT_EQ(file->tensors().size(), 9u);
  for (Format format :
       {Format::F32, Format::F16, Format::BF16, Format::Q8_0, Format::Q4_0, Format::Q4_1, Format::Q5_0}) {
    const std::string name = "matrix." + std::string(info(format).name);
    const auto tensor = file->tensor(name);
    ASSERT_TRUE(tensor.ok()) << tensor.error().message();
    EXPECT_EQ(tensor->format, format);
    EXPECT_EQ(tensor->shape, (Shape{3, 64}));
    const Bytes expected = encode_tensor(format, 64, quarters(3 * 64));
    ASSERT_EQ(tensor->bytes, expected.size());
    EXPECT_EQ(std::memcmp(tensor->data, expected.data(), expected.size()), 0) << name;
  }
  EXPECT_EQ(file->tensor("vector")->shape, Shape{5});
  EXPECT_EQ(file->tensor("cube")->shape, (Shape{2, 3, 4}));
  EXPECT_EQ(file->find("matrix.Q5_0")->type, "Q5_0");
  EXPECT_EQ(message(file->tensor("none")), "use tensor: " + file->path() + ": none: no such tensor");
}

TEST_F(GoldenGguf, Metadata) {
  EXPECT_EQ(*file->string("general.architecture"), "tiny");
  EXPECT_EQ(*file->u32("test.u8"), 200u);
  EXPECT_EQ(*file->i64("test.i8"), -100);
  EXPECT_EQ(*file->u32("test.u16"), 60000u);
  EXPECT_EQ(*file->i64("test.i16"), -30000);
  EXPECT_EQ(*file->u32("test.u32"), 4000000000u);
  EXPECT_EQ(*file->i64("test.i32"), -2000000000);
  EXPECT_EQ(*file->i64("test.i64"), -(int64_t{1} << 40));
  EXPECT_EQ(*file->f32("test.u64"), 0x1p63f);
  EXPECT_EQ(*file->f32("test.f32"), 0.5f);
  EXPECT_EQ(*file->f32("test.i8"), -100.0f);
  EXPECT_TRUE(*file->boolean("test.bool"));
  EXPECT_EQ(*file->string("test.string"), "grüße");
  EXPECT_EQ(*file->integers("test.i32s"), (std::vector<int64_t>{2, 0, -1}));
  EXPECT_EQ(*file->integers("test.bools"), (std::vector<int64_t>{1, 0, 1}));
  EXPECT_EQ(*file->floats("test.f32s"), (std::vector<float>{0.25f, -1.5f}));
  const auto strings = file->strings("test.strings");
  ASSERT_TRUE(strings.ok());
  EXPECT_EQ(std::vector<std::string>(strings->begin(), strings->end()), (std::vector<std::string>{"a", "", "ü b"}));
  EXPECT_EQ(*file->u32("none", 7), 7u);
  EXPECT_EQ(*file->string("none", "text"), "text");
  EXPECT_EQ(*file->u32_per_layer("test.u8", 2), (std::vector<uint32_t>{200, 200}));
}

TEST_F(GoldenGguf, MetadataOfAnotherType) {
  const std::string at = "read GGUF: " + file->path() + ": ";
  const std::string u32 = "expected an integer from 0 to 4294967295, found ";
  EXPECT_EQ(message(file->u32("none")), at + "none: " + u32 + "no such key");
  EXPECT_EQ(message(file->u32("test.string", 7)), at + "test.string: " + u32 + "string \"grüße\"");
  EXPECT_EQ(message(file->u32("test.i8")), at + "test.i8: " + u32 + "i8 -100");
  EXPECT_EQ(message(file->u32("test.i32s")), at + "test.i32s: " + u32 + "array of 3 i32");
  EXPECT_EQ(message(file->u32("test.f32")), at + "test.f32: " + u32 + "f32 0.500000");
  EXPECT_EQ(message(file->u32("test.bool")), at + "test.bool: " + u32 + "bool 1");
  EXPECT_EQ(message(file->i64("test.u64")),
            at + "test.u64: expected a 64-bit integer, found u64 9223372036854775808.000000");
  EXPECT_FALSE(file->f32("test.f64").ok());  // beyond float
  EXPECT_FALSE(file->f32("test.strings").ok());
  EXPECT_EQ(message(file->boolean("test.u8")), at + "test.u8: expected a bool, found u8 200");
  EXPECT_EQ(message(file->string("test.strings")), at + "test.strings: expected a string, found array of 3 string");
  EXPECT_EQ(message(file->strings("test.i32s")), at + "test.i32s: expected an array of strings, found array of 3 i32");
  EXPECT_EQ(message(file->integers("test.f32s")),
            at + "test.f32s: expected an array of integers, found array of 2 f32");
  EXPECT_EQ(message(file->integers("test.u8")), at + "test.u8: expected an array of integers, found u8 200");
  EXPECT_EQ(message(file->floats("test.strings")),
            at + "test.strings: expected an array of numbers, found array of 3 string");
  EXPECT_EQ(message(file->u32_per_layer("test.bools", 4)),
            at + "test.bools: expected 4 integers from 0 to 4294967295, found array of 3 bool");
  EXPECT_FALSE(file->u32_per_layer("test.i32s", 3).ok());  // one is negative
}

TEST_F(GoldenGguf, StaysValidWhenMoved) {
  const auto text = *file->string("test.string");
  const Gguf moved = std::move(*file);
  EXPECT_EQ(text, "grüße");
  EXPECT_EQ(*moved.string("test.string"), "grüße");
  touch(moved);
}

GgufWriter base_writer() {
  GgufWriter writer;
  writer.put_u32("k", 3);
  writer.put_tensor("t", Sizes{2, 32}, Format::Q4_0, quarters(64));
  return writer;
}

TEST(Gguf, ReadsWhatTheWriterWrites) {
  GgufWriter writer(64);
  writer.put_i32("i32", -5);
  writer.put_u64("u64", 1);
  writer.put_f32("f32", 1.5f);
  writer.put_bool("bool", false);
  writer.put_string("string", "x");
  writer.put_strings("strings", std::vector<std::string>{"p", "qq"});
  writer.put_strings("none", {});
  writer.put_i32s("i32s", std::vector<int32_t>{1, -2});
  writer.put_f32s("f32s", std::vector<float>{0.5f});
  writer.put_bools("bools", {true, false});
  writer.put_tensor("q", Sizes{2, 3, 32}, Format::Q8_0, quarters(192));
  writer.put_tensor("s", Sizes{}, Format::F32, quarters(1));
  const Bytes bytes = writer.bytes();
  const auto file = Gguf::parse(bytes, "f");
  ASSERT_TRUE(file.ok()) << file.error().message();
  touch(*file);
  EXPECT_EQ(*file->i64("i32"), -5);
  EXPECT_EQ(*file->u32("u64"), 1u);
  EXPECT_FALSE(*file->boolean("bool"));
  EXPECT_TRUE(file->strings("none")->empty());
  EXPECT_EQ(*file->integers("i32s"), (std::vector<int64_t>{1, -2}));
  EXPECT_EQ(*file->integers("bools"), (std::vector<int64_t>{1, 0}));
  EXPECT_EQ(*file->u32("general.alignment"), 64u);
  EXPECT_EQ(file->tensor("q")->shape, (Shape{2, 3, 32}));
  EXPECT_EQ(file->tensor("s")->shape, Shape{});
  EXPECT_EQ((file->find("q")->data - bytes.data()) % 64, 0);
}

// Each row writes a file of its own, or damages the bytes of the base file.
TEST(Gguf, MalformedFiles) {
  ASSERT_EQ(message(base_writer().bytes()), "ok");
  const auto set = [](size_t offset, auto value) {
    return [=](Bytes& bytes) { std::memcpy(bytes.data() + offset, &value, sizeof(value)); };
  };
  // Offsets in the base file: 4 version, 8 tensors, 16 keys, 24 key "k" (9) + type at 33 + value at 37, tensor at 41:
  // name (9), dimensions at 50, sizes at 54 and 62, type at 70, offset at 74, padding from 82 to 96.
  const struct {
    std::function<void(Bytes&)> damage;
    const char* message;
  } rows[] = {
      {set(0, 'X'), "offset 4: expected magic GGUF, found \"XGUF\""},
      {set(4, 1u), "offset 8: expected GGUF version 2 or 3, found 1"},
      {set(4, 0x03000000u), "offset 8: expected GGUF version 2 or 3, found a big-endian file"},
      {set(8, ~uint64_t{0}), "tensors in a file of this size, found 18446744073709551615"},
      {set(16, uint64_t{1} << 40), "keys in a file of this size, found 1099511627776"},
      {set(16, uint64_t{2}), "tensor 0: expected 562949953421312 more bytes"},
      {set(24, ~uint64_t{0}), "key 0: expected 18446744073709551615 more bytes"},
      {set(33, 13u), "key k: expected a value type from 0 to 12, found 13"},
      {set(50, 5u), "tensor t: expected at most 4 dimensions, found 5"},
      {set(54, int64_t{-1}), "tensor t: expected sizes of at least 0 whose product fits 64 bits, found -1"},
      {set(62, int64_t{1} << 60), "tensor t: expected sizes of at least 0 whose product fits 64 bits, found 115292150"},
      {set(54, int64_t{33}), "tensor t: expected rows of whole blocks of 32, found Q4_0 [2, 33]"},
      {set(62, int64_t{1} << 57),
       "tensor t: expected 2594073385365405696 bytes at offset 0, found 64 bytes of data (the "
       "file may be truncated)"},
      {set(74, uint64_t{8}), "tensor t: expected an offset that is a multiple of 32, found 8"},
      {set(74, uint64_t{64}), "tensor t: expected 36 bytes at offset 64, found 64 bytes of data"},
      {set(74, ~uint64_t{31}), "tensor t: expected 36 bytes at offset 18446744073709551584"},
      {[](Bytes& b) { b.resize(90); }, "offset 82: tensor data: expected 14 more bytes, found 8 until the end"},
      {[](Bytes& b) { b.resize(96 + 35); }, "tensor t: expected 36 bytes at offset 0, found 35 bytes of data"},
      {[](Bytes& b) {
         GgufWriter w = base_writer();
         w.put_u32("k", 4);
         b = w.bytes();
       },
       "key k: expected each key once, found it twice"},
      {[](Bytes& b) {
         GgufWriter w = base_writer();
         w.put_tensor("t", Sizes{1}, Format::F32, quarters(1));
         b = w.bytes();
       },
       "f: tensor t: expected each tensor once, found its name twice"},
      {[](Bytes& b) {
         GgufWriter w;
         w.put_tensor("a", Sizes{32}, Format::F32, quarters(32));
         w.put_tensor("b", Sizes{1}, Format::F32, quarters(1));
         b = w.bytes();
         const uint64_t offset = 64;  // of b, at the end of its description: inside of a
         std::memcpy(b.data() + 24 + 2 * (9 + 4 + 8 + 4 + 8) - 8, &offset, 8);
       },
       "f: tensor b: expected data of its own, found an overlap with another tensor"},
      {[](Bytes& b) {
         GgufWriter w;
         w.put_u32("general.alignment", 24);
         b = w.bytes();
       },
       "f: general.alignment: expected a power of two, found u32 24"},
      {[](Bytes& b) {
         GgufWriter w;
         w.put_string("general.alignment", "32");
         b = w.bytes();
       },
       "f: general.alignment: expected an integer from 0 to 4294967295, found string \"32\""},
      {[](Bytes& b) {
         GgufWriter w;
         const uint32_t array_of_arrays[] = {9, 1, 0};
         w.put_raw("k", 9, std::as_bytes(std::span(array_of_arrays)));
         b = w.bytes();
       },
       "key k: expected an array of numbers or strings, found an array of arrays"},
      {[](Bytes& b) {
         GgufWriter w;
         const uint32_t array[] = {4, 0xffffffff, 0x3fffffff, 0};  // u32, a count whose bytes overflow
         w.put_raw("k", 9, std::as_bytes(std::span(array)));
         b = w.bytes();
       },
       "key k: expected at most 3 elements in a file of this size, found 4611686018427387903"},
      {[](Bytes& b) {
         GgufWriter w;
         const uint32_t array[] = {8, 1, 0, 100, 0};  // one string of 100 bytes
         w.put_raw("k", 9, std::as_bytes(std::span(array)));
         b = w.bytes();
       },
       "key k: expected 100 more bytes, found"},
      {[](Bytes& b) {
         GgufWriter w;
         const std::byte two[] = {std::byte{2}};
         w.put_raw("k", 7, two);
         b = w.bytes();
       },
       "key k: expected a bool of 0 or 1, found 2"},
      {[](Bytes& b) {
         GgufWriter w;
         w.put_u32("\x1b[2J", 1);
         w.put_u32("\x1b[2J", 1);
         b = w.bytes();
       },
       "key \\x1b[2J: expected each key once, found it twice"},
  };
  for (const auto& row : rows) {
    Bytes bytes = base_writer().bytes();
    row.damage(bytes);
    const std::string found = message(bytes);
    EXPECT_NE(found.find(row.message), found.npos) << "found:    " << found << "\nexpected: " << row.message;
  }
}

TEST(Gguf, TypesOfTheFutureAreListed) {
  GgufWriter writer;
  writer.put_raw_tensor("t", Sizes{5}, 99, std::as_bytes(std::span("12345")));
  writer.put_raw_tensor("k", Sizes{256}, 15, Bytes(292));
  const Bytes bytes = writer.bytes();
  const auto file = Gguf::parse(bytes, "f");
  ASSERT_TRUE(file.ok()) << file.error().message();
  EXPECT_EQ(file->find("t")->type, "ggml type 99");
  EXPECT_EQ(file->find("k")->type, "Q8_K");
  EXPECT_TRUE(message(file->tensor("k")).starts_with("use tensor: f: k: expected one of F32, F16, BF16, "));
  EXPECT_TRUE(message(file->tensor("k")).ends_with(", found type Q8_K"));
  EXPECT_FALSE(file->tensor("t").ok());
}

TEST(Gguf, VocabularyWithoutTensors) {
  GgufWriter writer;
  writer.put_u32("k", 3);
  Bytes bytes = writer.bytes();
  bytes.resize(41);  // ends with the metadata, no padding
  EXPECT_EQ(message(bytes), "ok");
}

TEST(Gguf, SurvivesDamage) {
  GgufWriter writer;
  writer.put_u32("a", 3);
  writer.put_strings("b", std::vector<std::string>{"p", "qq"});
  writer.put_f32s("c", std::vector<float>{0.5f, 1.5f});
  writer.put_bool("d", true);
  writer.put_tensor("t", Sizes{1, 32}, Format::Q4_0, quarters(32));
  writer.put_tensor("u", Sizes{3}, Format::F32, quarters(3));
  const Bytes good = writer.bytes();
  ASSERT_EQ(message(good), "ok");
  const auto parsed = Gguf::parse(good, "f");
  const size_t needed = static_cast<size_t>(parsed->find("u")->data - good.data()) + 12;
  for_each_truncation(good, [&](const auto& bytes) {
    EXPECT_EQ(Gguf::parse(bytes, "f").ok(), bytes.size() >= needed) << bytes.size();
  });
  size_t errors = 0;
  for_each_damage(good, [&](const auto& bytes) {
    const auto file = Gguf::parse(bytes, "f");
    if (file.ok()) return touch(*file);
    EXPECT_FALSE(file.error().message().empty());
    ++errors;
  });
  EXPECT_GT(errors, 500u);
}

// Real files, where the environment names a folder of them.
TEST(Gguf, RealVocabularies) {
  const char* folder = std::getenv("PROA_TEST_DATA");
  if (folder == nullptr) GTEST_SKIP() << "PROA_TEST_DATA is not set";
  const auto file = Gguf::open(std::string(folder) + "/tokenizers/ggml-vocab-gpt-2.gguf");
  ASSERT_TRUE(file.ok()) << file.error().message();
  EXPECT_EQ(*file->string("tokenizer.ggml.model"), "gpt2");
  EXPECT_EQ(file->strings("tokenizer.ggml.tokens")->size(), 50257u);
  touch(*file);
}

}  // namespace
}  // namespace proa
