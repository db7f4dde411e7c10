#include "checkpoint/checkpoint.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>
#include <functional>
#include <string>
#include <vector>

#include "checkpoint/gguf_writer.h"
#include "checkpoint/safetensors_writer.h"
#include "core/output_path.h"
#include "quant/formats.h"

namespace proa {
namespace {

namespace fs = std::filesystem;

// A folder with two shards; each row of the tests changes one thing in it.
class CheckpointTest : public testing::Test {
 protected:
  void SetUp() override {
    folder_ = fs::path(testing::TempDir()) / ("proa_checkpoint_" + std::to_string(getpid()));
    reset();
  }
  void TearDown() override { fs::remove_all(folder_); }

  void reset() {
    fs::remove_all(folder_);
    fs::create_directories(folder_);
    write("config.json", R"({"model_type": "tiny", "hidden_size": 4})");
    write_shard("model-1.safetensors", {"a", "b"});
    write_shard("model-2.safetensors", {"c"});
    write("model.safetensors.index.json", R"({"metadata": {}, "weight_map": {
        "a": "model-1.safetensors", "b": "model-1.safetensors", "c": "model-2.safetensors"}})");
  }

  std::string path(const std::string& name) const { return (folder_ / name).string(); }

  void write(const std::string& name, std::string_view text) const { ASSERT_TRUE(write_file(path(name), text).ok()); }

  void write_shard(const std::string& name, const std::vector<std::string>& tensors) const {
    SafetensorsWriter writer;
    for (const std::string& tensor : tensors) {
      writer.put_tensor(tensor, std::vector<int64_t>{4}, Format::F32, std::vector<float>{1, 2, 3, 4});
    }
    ASSERT_TRUE(writer.write(path(name)).ok());
  }

  std::string open_message(const std::string& where) const {
    const auto checkpoint = Checkpoint::open(where);
    return checkpoint.ok() ? "ok" : checkpoint.error().message();
  }

  fs::path folder_;
};

TEST_F(CheckpointTest, FolderOfShards) {
  write("generation_config.json", R"({"temperature": 0.5})");
  write("chat_template.jinja", "{{ x }}");
  write("empty.txt", "");
  auto opened = Checkpoint::open(folder_.string());
  ASSERT_TRUE(opened.ok()) << opened.error().message();
  const Checkpoint checkpoint = *std::move(opened);  // tensors stay valid
  EXPECT_EQ(checkpoint.kind(), Checkpoint::Kind::huggingface);
  EXPECT_EQ(checkpoint.path(), folder_.string());
  EXPECT_EQ(checkpoint.gguf(), nullptr);
  EXPECT_EQ(checkpoint.tensors().size(), 3u);
  EXPECT_EQ(checkpoint.config()["hidden_size"], 4);
  EXPECT_EQ(checkpoint.generation_config()["temperature"], 0.5);
  const auto tensor = checkpoint.tensor("c");
  ASSERT_TRUE(tensor.ok()) << tensor.error().message();
  EXPECT_EQ(reinterpret_cast<const float*>(tensor->data)[3], 4.0f);
  EXPECT_EQ(checkpoint.tensor("d").error().message(), "use tensor: " + folder_.string() + ": d: no such tensor");

  EXPECT_TRUE(checkpoint.has_file("chat_template.jinja"));
  EXPECT_FALSE(checkpoint.has_file("tokenizer.json"));
  EXPECT_EQ(*checkpoint.read_text("chat_template.jinja"), "{{ x }}");
  EXPECT_EQ(*checkpoint.read_text("empty.txt"), "");
  EXPECT_EQ((*checkpoint.read_json("config.json"))["model_type"], "tiny");
  for (const char* name : {"../config.json", "/etc/passwd", "..", ".", ""}) {
    EXPECT_FALSE(checkpoint.has_file(name)) << name;
    EXPECT_FALSE(checkpoint.read_text(name).ok()) << name;
  }
  EXPECT_EQ(checkpoint.read_text("tokenizer.json").error().message(),
            "open file: " + path("tokenizer.json") + ": No such file or directory");
}

TEST_F(CheckpointTest, FolderWithOneFile) {
  write_shard("model.safetensors", {"whole"});  // goes before an index
  const auto checkpoint = Checkpoint::open(folder_.string());
  ASSERT_TRUE(checkpoint.ok()) << checkpoint.error().message();
  EXPECT_EQ(checkpoint->tensors().size(), 1u);
  EXPECT_TRUE(checkpoint->tensor("whole").ok());
  EXPECT_TRUE(checkpoint->generation_config().is_null());
}

TEST_F(CheckpointTest, GgufFile) {
  GgufWriter writer;
  writer.put_string("general.architecture", "tiny");
  writer.put_tensor("t", std::vector<int64_t>{32}, Format::Q8_0, std::vector<float>(32, 1.0f));
  ASSERT_TRUE(writer.write(path("weights")).ok());  // the magic tells, not the name
  const auto checkpoint = Checkpoint::open(path("weights"));
  ASSERT_TRUE(checkpoint.ok()) << checkpoint.error().message();
  EXPECT_EQ(checkpoint->kind(), Checkpoint::Kind::gguf);
  ASSERT_NE(checkpoint->gguf(), nullptr);
  EXPECT_EQ(*checkpoint->gguf()->string("general.architecture"), "tiny");
  EXPECT_TRUE(checkpoint->tensor("t").ok());
  EXPECT_TRUE(checkpoint->config().empty());
  EXPECT_FALSE(checkpoint->has_file("config.json"));
  EXPECT_FALSE(checkpoint->read_text("config.json").ok());
}

TEST_F(CheckpointTest, BadFolders) {
  const std::string index = "model.safetensors.index.json";
  const struct {
    std::function<void()> change;
    std::string message;
  } rows[] = {
      {[] {}, "ok"},
      {[&] { fs::remove(path("config.json")); }, "open checkpoint: F: expected a config.json, found none"},
      {[&] { write("config.json", "[1]"); }, "read JSON: F/config.json: expected an object, found array"},
      {[&] { write("config.json", "{"); }, "read JSON: F/config.json: parse error at line 1, column 2: "},
      {[&] { write("config.json", ""); }, "read JSON: F/config.json: parse error at line 1, column 1: "},
      {[&] { write("config.json", std::string((16u << 20) + 1, ' ')); },
       "read file: F/config.json: expected at most 16777216 bytes, found 16777217"},
      {[&] { write("generation_config.json", "3"); },
       "read JSON: F/generation_config.json: expected an object, found number"},
      {[&] { fs::remove(path(index)); },
       "open checkpoint: F: expected model.safetensors or model.safetensors.index.json, found neither"},
      {[&] { write(index, "{}"); }, "open checkpoint: F/" + index + ": expected an object weight_map, found none"},
      {[&] { write(index, R"({"weight_map": {"a": 3}})"); },
       "open checkpoint: F/" + index + ": expected a file name in this folder for a, found another type"},
      {[&] { write(index, R"({"weight_map": {"a": "../x.safetensors"}})"); },
       "open checkpoint: F/" + index + ": expected a file name in this folder for a, found \"../x.safetensors\""},
      {[&] {
         fs::remove(path("model-1.safetensors"));
         fs::remove(path("model-2.safetensors"));
       },
       "open checkpoint: F/" + index +
           ": expected 2 shards, found 2 missing: model-1.safetensors, model-2.safetensors"},
      {[&] { write_shard("model-1.safetensors", {"other"}); },
       "open checkpoint: F/" + index +
           ": expected every tensor of the index in its shard, found 2 missing: a (model-1.safetensors), b "
           "(model-1.safetensors)"},
      {[&] {
         write_shard("model-2.safetensors", {"a", "c"});
       },
       "ok"},  // the index says which a
      {[&] {
         write_shard("model-1.safetensors", {"a", "b", "d"});
         write_shard("model-2.safetensors", {"c", "d"});
       },
       "open checkpoint: F/" + index + ": expected each tensor in one shard or in the index, found d in two shards"},
      {[&] { fs::resize_file(path("model-1.safetensors"), 100); },
       "read safetensors header: F/model-1.safetensors: expected a header of "},
      {[&] { fs::resize_file(path("model-1.safetensors"), 0); },
       "open file: F/model-1.safetensors: expected a file with content, found an empty file"},
  };
  for (const auto& row : rows) {
    reset();
    row.change();
    std::string found = open_message(folder_.string());
    for (size_t at; (at = found.find(folder_.string())) != found.npos;) found.replace(at, folder_.string().size(), "F");
    EXPECT_TRUE(found.starts_with(row.message)) << "found:    " << found << "\nexpected: " << row.message;
  }
}

TEST_F(CheckpointTest, NotACheckpoint) {
  EXPECT_EQ(open_message(path("none.gguf")), "open file: " + path("none.gguf") + ": No such file or directory");
  write("note.txt", "PK and more");
  EXPECT_EQ(open_message(path("note.txt")), "open checkpoint: " + path("note.txt") +
                                                ": expected a GGUF file, a packed checkpoint, or a folder with "
                                                "config.json and safetensors files, found a file of another "
                                                "kind");
  EXPECT_EQ(open_message(path("model-1.safetensors")),
            "open checkpoint: " + path("model-1.safetensors") +
                ": expected a GGUF file, a packed checkpoint, or a folder with config.json and safetensors files, "
                "found a file of another "
                "kind (name the folder that holds it)");
  write("empty.gguf", "");
  EXPECT_EQ(open_message(path("empty.gguf")),
            "open file: " + path("empty.gguf") + ": expected a file with content, found an empty file");
  write("cut.gguf", "GGUF\3");
  EXPECT_EQ(open_message(path("cut.gguf")),
            "read GGUF: " + path("cut.gguf") + ": offset 4: expected 4 more bytes, found 1 until the end of the file");
}

}  // namespace
}  // namespace proa
