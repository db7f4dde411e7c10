#include "checkpoint/safetensors.h"

#include <gtest/gtest.h>

#include <cstring>
#include <string>
#include <vector>

#include "checkpoint/damage_test.h"
#include "checkpoint/safetensors_writer.h"
#include "quant/formats.h"

namespace proa {
namespace {

std::vector<std::byte> file_of(const std::string& header, size_t data_bytes) {
  const uint64_t length = header.size();
  std::vector<std::byte> bytes(8 + header.size() + data_bytes);
  std::memcpy(bytes.data(), &length, 8);
  std::memcpy(bytes.data() + 8, header.data(), header.size());
  return bytes;
}

std::string message(const std::vector<std::byte>& bytes) {
  const auto file = Safetensors::parse(bytes, "f");
  return file.ok() ? "ok" : file.error().message();
}

// Everything in a parsed file can be read to its last byte.
void touch(const Safetensors& file) {
  uint64_t sum = 0;
  for (const auto& [name, entry] : file.tensors()) {
    for (size_t i = 0; i < entry.bytes; ++i) sum += static_cast<uint64_t>(entry.data[i]);
    if (!file.tensor(name).ok()) ++sum;
  }
  sink = sum;
}

// A file by the official library (tools/goldens/checkpoint.py): value i of each float tensor is i / 4 - 3.
TEST(Safetensors, ReadsAFileOfTheOfficialLibrary) {
  const auto file = Safetensors::open(PROA_SOURCE_DIR "/tests/goldens/checkpoint/tiny.safetensors");
  ASSERT_TRUE(file.ok()) << file.error().message();
  EXPECT_EQ(file->tensors().size(), 9u);
  EXPECT_EQ(file->metadata().at("format"), "pt");

  const struct {
    const char* name;
    Format format;
    Shape shape;
  } rows[] = {{"f32", Format::F32, {3, 4}},
              {"f16", Format::F16, {2, 3, 4}},
              {"bf16", Format::BF16, {6, 1, 4}},
              {"scalar", Format::F32, {}},
              {"empty", Format::F32, {0, 4}}};
  for (const auto& row : rows) {
    const auto tensor = file->tensor(row.name);
    ASSERT_TRUE(tensor.ok()) << tensor.error().message();
    EXPECT_EQ(tensor->format, row.format) << row.name;
    EXPECT_EQ(tensor->shape, row.shape) << row.name;
    std::vector<float> values(static_cast<size_t>(row.shape.elements()));
    ASSERT_EQ(tensor->bytes, row_bytes(row.format, row.shape.elements())) << row.name;
    decode_row(row.format, tensor->data, row.shape.elements(), values.data());
    for (size_t i = 0; i < values.size(); ++i) EXPECT_EQ(values[i], static_cast<float>(i) / 4 - 3) << row.name;
  }

  // Types without a format are listed; only using them is an error.
  ASSERT_NE(file->find("i64"), nullptr);
  EXPECT_EQ(file->find("i64")->type, "I64");
  EXPECT_EQ(file->find("i64")->bytes, 24u);
  EXPECT_EQ(file->find("f8")->type, "F8_E4M3");
  const auto tensor = file->tensor("i64");
  ASSERT_FALSE(tensor.ok());
  const std::string text = tensor.error().message();
  EXPECT_TRUE(text.starts_with("use tensor: " + file->path() + ": i64: expected one of F32, F16, BF16, ")) << text;
  EXPECT_TRUE(text.ends_with(", found type I64")) << text;
  EXPECT_EQ(file->tensor("none").error().message(), "use tensor: " + file->path() + ": none: no such tensor");
}

TEST(Safetensors, ReadsWhatTheWriterWrites) {
  SafetensorsWriter writer;
  const std::vector<float> values = {1, -2, 3.5, 0, 5, 6};
  writer.put_metadata("format", "pt");
  writer.put_tensor("b", std::vector<int64_t>{2, 3}, Format::BF16, values);
  writer.put_tensor("a\n", std::vector<int64_t>{6}, Format::F32, values);
  const auto bytes = writer.bytes();
  const auto file = Safetensors::parse(bytes, "f");
  ASSERT_TRUE(file.ok()) << file.error().message();
  touch(*file);
  const auto tensor = file->tensor("b");
  ASSERT_TRUE(tensor.ok());
  EXPECT_EQ(tensor->shape, (Shape{2, 3}));
  std::vector<float> read(6);
  decode_row(Format::BF16, tensor->data, 6, read.data());
  EXPECT_EQ(read, values);
  EXPECT_NE(file->find("a\n"), nullptr);
}

TEST(Safetensors, MalformedFiles) {
  const auto tensor = [](const std::string& fields) { return "{\"t\":{" + fields + "}}"; };
  const std::string good = R"("dtype":"F32","shape":[2],"data_offsets":[0,8])";
  ASSERT_EQ(message(file_of(tensor(good), 8)), "ok");
  const struct {
    std::string header;
    size_t data_bytes;
    std::string message;
  } rows[] = {
      {"", 0, "f: expected a JSON object, found nothing"},
      {" {}", 0, "f: expected a JSON object, found other text"},
      {"{", 0, "f: parse error at line 1, column 2: "},
      {"{}}", 0, "f: parse error at line 1, column 3: "},
      {"{\"t\":[[[[[[[[[[1]]]]]]]]]]}", 0, "f: offset 12: expected at most 8 levels of nesting, found more"},
      {"{\"\xff\":{}}", 0,
       "f: parse error at line 1, column 3: syntax error while parsing object key - invalid string: ill-formed UTF-8 "
       "byte"},
      {"{}", 8, "read safetensors: f: expected 0 bytes of data, found 8"},
      {"{\"t\":3}", 0, "f: t: expected an object, found another type"},
      {"{\"__metadata__\":{\"a\":1}}", 0, "f: __metadata__: expected an object of strings, found another type"},
      {"{\"t\":{" + good + "},\"t\":{" + good + "}}", 8, "f: t: expected each tensor once, found its name twice"},
      {tensor(R"("shape":[2],"data_offsets":[0,8])"), 8,
       "f: t: expected dtype, shape and data_offsets, found no dtype"},
      {tensor(R"("dtype":"F32","data_offsets":[0,8])"), 8,
       "f: t: expected dtype, shape and data_offsets, found no shape"},
      {tensor(R"("dtype":"F32","shape":[2])"), 8,
       "f: t: expected dtype, shape and data_offsets, found no data_offsets"},
      {tensor(good + R"(,"shape":[2])"), 8, "f: t: expected each field once, found shape twice"},
      {tensor(R"("dtype":1,"shape":[2],"data_offsets":[0,8])"), 8,
       "f: t: expected dtype as a string, found another type"},
      {tensor(R"("dtype":"F32","shape":2,"data_offsets":[0,8])"), 8,
       "f: t: expected shape as an array, found another type"},
      {tensor(R"("dtype":"F32","shape":[-2],"data_offsets":[0,8])"), 8,
       "f: t: expected sizes that are integers of at least 0, found -2"},
      {tensor(R"("dtype":"F32","shape":[2.0],"data_offsets":[0,8])"), 8,
       "f: t: expected sizes that are integers of at least 0, found 2.0"},
      {tensor(R"("dtype":"F32","shape":[2],"data_offsets":[0])"), 8,
       "f: t: expected data_offsets as two integers of at least 0, found [0]"},
      {tensor(R"("dtype":"F32","shape":[2],"data_offsets":[-8,0])"), 8,
       "f: t: expected data_offsets as two integers of at least 0, found [-8..."},
      {tensor(R"("dtype":"F32","shape":[2],"data_offsets":[8,0])"), 8,
       "f: t: expected data_offsets within the 8 bytes of data, found [8, 0]"},
      {tensor(good), 7,
       "f: t: expected data_offsets within the 7 bytes of data, found [0, 8] (the file may be "
       "truncated)"},
      {tensor(R"("dtype":"F32","shape":[3],"data_offsets":[0,8])"), 8,
       "f: t: expected the bytes of F32 [3], found 8 bytes"},
      // 2^32 * 2^32 = 0 and 2^62 * 4 = 0 without overflow checks.
      {tensor(R"("dtype":"F32","shape":[4294967296,4294967296],"data_offsets":[0,0])"), 0,
       "f: t: expected a shape whose product fits 64 bits, found [4294967296, 4294967296]"},
      {tensor(R"("dtype":"F32","shape":[4611686018427387904],"data_offsets":[0,0])"), 0,
       "f: t: expected the bytes of F32 [4611686018427387904], found 0 bytes"},
      {R"({"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]},"b":{"dtype":"U8","shape":[4],"data_offsets":[2,6]}})",
       6, "f: b: expected data that begin where the tensor before ends, found an overlap"},
      {R"({"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]},"b":{"dtype":"U8","shape":[4],"data_offsets":[6,10]}})",
       10, "f: b: expected data that begin where the tensor before ends, found a gap"},
      {"{\"\\u001b[2J\":3}", 0, "f: \\x1b[2J: expected an object, found another type"},
  };
  for (const auto& row : rows) {
    const std::string found = message(file_of(row.header, row.data_bytes));
    EXPECT_NE(found.find(row.message), found.npos) << "found:    " << found << "\nexpected: " << row.message;
  }
}

TEST(Safetensors, HeaderLength) {
  const auto with_length = [](uint64_t length) {
    auto bytes = file_of("{}", 0);
    std::memcpy(bytes.data(), &length, 8);
    return message(bytes);
  };
  EXPECT_EQ(with_length(3), "read safetensors header: f: expected a header of 3 bytes, found a file with 2");
  EXPECT_EQ(with_length(~uint64_t{0}),
            "read safetensors header: f: expected a header of at most 100000000 bytes, found 18446744073709551615");
  EXPECT_EQ(message({}), "read safetensors header: f: expected at least 8 bytes, found 0");
}

// Unknown dtypes are kept, whatever their size may be.
TEST(Safetensors, DtypesOfTheFuture) {
  const auto bytes = file_of(R"({"t":{"dtype":"F12","shape":[2],"data_offsets":[0,3]}})", 3);
  const auto file = Safetensors::parse(bytes, "f");
  ASSERT_TRUE(file.ok()) << file.error().message();
  EXPECT_FALSE(file->find("t")->format.has_value());
}

TEST(Safetensors, RefusesToUseMisalignedData) {
  // 8 + 56 bytes of header and one byte of another tensor before the F32.
  const auto bytes = file_of(
      R"({"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"t":{"dtype":"F32","shape":[1],"data_offsets":[1,5]}})",
      5);
  const auto file = Safetensors::parse(bytes, "f");
  ASSERT_TRUE(file.ok()) << file.error().message();
  const bool aligned = reinterpret_cast<uintptr_t>(file->find("t")->data) % 4 == 0;
  EXPECT_EQ(file->tensor("t").ok(), aligned);
}

TEST(Safetensors, SurvivesDamage) {
  SafetensorsWriter writer;
  writer.put_metadata("format", "pt");
  writer.put_tensor("a", std::vector<int64_t>{2, 3}, Format::BF16, std::vector<float>{1, 2, 3, 4, 5, 6});
  writer.put_tensor("b", std::vector<int64_t>{2}, Format::F32, std::vector<float>{1, 2});
  const auto good = writer.bytes();
  ASSERT_EQ(message(good), "ok");
  for_each_truncation(good,
                      [](const auto& bytes) { EXPECT_FALSE(Safetensors::parse(bytes, "f").ok()) << bytes.size(); });
  size_t errors = 0;
  for_each_damage(good, [&](const auto& bytes) {
    const auto file = Safetensors::parse(bytes, "f");
    if (file.ok()) return touch(*file);
    EXPECT_FALSE(file.error().message().empty());
    ++errors;
  });
  EXPECT_GT(errors, 500u);
}

}  // namespace
}  // namespace proa
