// GGUF files with one thing wrong. The builder can state other counts, sizes and offsets than the true ones, and knows
// where each field begins, so that a file can end there.
#include <algorithm>
#include <functional>
#include <optional>
#include <utility>

#include "hostile.h"

namespace proa::hostile {
namespace {

constexpr uint64_t kHuge = ~uint64_t{0};

enum Type : uint32_t { kU8, kI8, kU16, kI16, kU32, kI32, kF32, kBool, kString, kArray, kU64, kI64, kF64 };

std::string text(std::string_view value) { return raw<uint64_t>(value.size()) + std::string(value); }

struct Key {
  std::string name;
  uint32_t type;
  std::string value;  // what stands after the type
};

struct TensorInfo {
  std::string name;
  std::vector<int64_t> sizes;  // in the order of the file
  uint32_t type = 0;           // F32
  std::string data = {};
  std::optional<uint64_t> offset = {};
  std::optional<uint32_t> num_dims = {};
};

struct Place {
  size_t offset;
  std::string item;  // what messages call it
  size_t needs;      // bytes of the field that begins here
};

struct Builder {
  std::string magic = "GGUF";
  uint32_t version = 3;
  std::optional<uint64_t> num_tensors, num_keys;
  std::vector<Key> keys;
  std::vector<TensorInfo> tensors;
  uint32_t alignment = 32;
  std::vector<Place> places = {};  // filled by bytes()

  Key& key(const std::string& name) {
    return *std::find_if(keys.begin(), keys.end(), [&](const Key& k) { return k.name == name; });
  }
  TensorInfo& tensor(const std::string& name) {
    return *std::find_if(tensors.begin(), tensors.end(), [&](const TensorInfo& t) { return t.name == name; });
  }

  std::string bytes() {
    std::string out, item;
    places.clear();
    const auto put = [&](std::string_view part) {
      places.push_back({out.size(), item, part.size()});
      out += part;
    };
    const auto put_text = [&](std::string_view value) {
      put(raw<uint64_t>(value.size()));
      put(value);
    };
    put(magic);
    put(raw(version));
    put(raw(num_tensors.value_or(tensors.size())));
    put(raw(num_keys.value_or(keys.size())));
    for (size_t i = 0; i < keys.size(); ++i) {
      item = "key " + std::to_string(i);
      put_text(keys[i].name);
      item = "key " + keys[i].name;
      put(raw(keys[i].type));
      const size_t first = keys[i].type == kString ? sizeof(uint64_t) : keys[i].value.size();
      put(std::string_view(keys[i].value).substr(0, first));
      if (first < keys[i].value.size()) put(std::string_view(keys[i].value).substr(first));
    }
    uint64_t offset = 0;
    for (size_t i = 0; i < tensors.size(); ++i) {
      const TensorInfo& t = tensors[i];
      item = "tensor " + std::to_string(i);
      put_text(t.name);
      item = "tensor " + t.name;
      put(raw(t.num_dims.value_or(static_cast<uint32_t>(t.sizes.size()))));
      for (int64_t size : t.sizes) put(raw(size));
      put(raw(t.type));
      put(raw(t.offset.value_or(offset)));
      offset += (t.data.size() + alignment - 1) / alignment * alignment;
    }
    out.append((alignment - out.size() % alignment) % alignment, '\0');
    for (size_t i = 0; i < tensors.size(); ++i) {
      out += tensors[i].data;
      if (i + 1 < tensors.size()) out.append((alignment - out.size() % alignment) % alignment, '\0');
    }
    return out;
  }
};

Key u32(std::string name, uint32_t value) { return {std::move(name), kU32, raw(value)}; }
Key f32(std::string name, float value) { return {std::move(name), kF32, raw(value)}; }
Key string(std::string name, std::string_view value) { return {std::move(name), kString, text(value)}; }
Key strings(std::string name, const std::vector<std::string>& values) {
  std::string value = raw<uint32_t>(kString) + raw<uint64_t>(values.size());
  for (const auto& v : values) value += text(v);
  return {std::move(name), kArray, std::move(value)};
}
Key i32s(std::string name, const std::vector<int32_t>& values) {
  std::string value = raw<uint32_t>(kI32) + raw<uint64_t>(values.size());
  for (int32_t v : values) value += raw(v);
  return {std::move(name), kArray, std::move(value)};
}

TensorInfo zeros(std::string name, std::vector<int64_t> sizes) {
  size_t bytes = 4;
  for (int64_t size : sizes) bytes *= static_cast<size_t>(size);
  return {std::move(name), std::move(sizes), 0, std::string(bytes, '\0')};
}

const std::vector<std::string> kTokens = {"<s>", "</s>", "a", "b", "Ġ", "Ġa", "ab", "Ċ"};

Builder good() {
  Builder b;
  b.keys = {string("general.architecture", "llama"),
            u32("llama.block_count", 1),
            u32("llama.context_length", 64),
            u32("llama.embedding_length", 16),
            u32("llama.feed_forward_length", 32),
            u32("llama.attention.head_count", 4),
            u32("llama.attention.head_count_kv", 2),
            f32("llama.attention.layer_norm_rms_epsilon", 1e-5f),
            string("tokenizer.ggml.model", "gpt2"),
            string("tokenizer.ggml.pre", "default"),
            strings("tokenizer.ggml.tokens", kTokens),
            i32s("tokenizer.ggml.token_type", {3, 3, 1, 1, 1, 1, 1, 1}),
            strings("tokenizer.ggml.merges", {"Ġ a", "a b"}),
            u32("tokenizer.ggml.bos_token_id", 0),
            u32("tokenizer.ggml.eos_token_id", 1),
            string("tokenizer.chat_template", "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}")};
  b.tensors = {zeros("token_embd.weight", {16, 8}),    zeros("output_norm.weight", {16}),
               zeros("output.weight", {16, 8}),        zeros("blk.0.attn_norm.weight", {16}),
               zeros("blk.0.attn_q.weight", {16, 16}), zeros("blk.0.attn_k.weight", {16, 8}),
               zeros("blk.0.attn_v.weight", {16, 8}),  zeros("blk.0.attn_output.weight", {16, 16}),
               zeros("blk.0.ffn_norm.weight", {16}),   zeros("blk.0.ffn_gate.weight", {16, 32}),
               zeros("blk.0.ffn_up.weight", {16, 32}), zeros("blk.0.ffn_down.weight", {32, 16})};
  return b;
}

Fixture change(std::string what, std::function<void(Builder&)> change, std::vector<std::string> said) {
  return {std::move(what),
          [=](Files& files) {
            Builder b = good();
            change(b);
            files["model.gguf"] = b.bytes();
          },
          std::move(said)};
}

// Ends the file where each of its first fields begins, and one byte before the field is whole.
void add_truncations(std::vector<Fixture>& fixtures) {
  Builder b = good();
  const std::string whole = b.bytes();
  const auto cut = [&](size_t size, const Place& place) {
    const std::string item = place.item.empty() ? "" : ": " + place.item;
    std::vector<std::string> said = {"F/model.gguf: offset " + std::to_string(place.offset) + item,
                                     "expected " + std::to_string(place.needs) + " more bytes, found " +
                                         std::to_string(size - place.offset) + " until the end of the file"};
    if (size < 4)
      said = {size == 0 ? "F/model.gguf: expected a file with content, found an empty file"
                        : "F/model.gguf: expected a GGUF file"};
    fixtures.push_back({"ends at byte " + std::to_string(size),
                        [=](Files& files) { files["model.gguf"] = whole.substr(0, size); }, std::move(said)});
  };
  // The header, the first key and the first tensor: from there on the fields repeat. Counts are refused for a file that
  // ends after them, so the fields of keys and tensors are cut in files that claim one of each.
  for (size_t i = 0; i < 4; ++i) {
    cut(b.places[i].offset, b.places[i]);
    cut(b.places[i].offset + b.places[i].needs - 1, b.places[i]);
    if (i == 3) fixtures.resize(fixtures.size() - 2);  // by then the count of tensors was refused
  }
  fixtures.push_back({"ends after the count of tensors",
                      [=](Files& files) { files["model.gguf"] = whole.substr(0, 16); },
                      {"F/model.gguf: offset 16: expected at most 0 tensors in a file of this size, found 12"}});
  Builder small = good();
  small.keys.resize(1);
  small.tensors.resize(1);
  const std::string bytes = small.bytes() + std::string(512, '\0');
  for (size_t i = 4; i < small.places.size(); ++i) {
    const Place place = small.places[i];
    for (const size_t size : {place.offset, place.offset + place.needs - 1}) {
      // A count of items that cannot be in what is left is the first complaint of so short a file.
      if (size < 24 + 13 + 24) continue;
      fixtures.push_back({"a small file ends at byte " + std::to_string(size),
                          [=](Files& files) { files["model.gguf"] = bytes.substr(0, size); },
                          {"F/model.gguf: offset " + std::to_string(place.offset) + ": " + place.item,
                           "expected " + std::to_string(place.needs) + " more bytes, found " +
                               std::to_string(size - place.offset) + " until the end of the file"}});
    }
  }
  const size_t data = whole.size() - 2048 - 2048 - 2048 - 64 - 1024 - 512 - 512 - 1024 - 64 - 512 - 64 - 512;
  fixtures.push_back({"ends in the padding before the data",
                      [=](Files& files) { files["model.gguf"] = whole.substr(0, data - 1); },
                      {"F/model.gguf: offset ", ": tensor data: expected ", " more bytes, found "}});
  fixtures.push_back({"ends before the data",
                      [=](Files& files) { files["model.gguf"] = whole.substr(0, data); },
                      {"F/model.gguf: tensor token_embd.weight: expected 512 bytes at offset 0, found 0 bytes of data",
                       "the file may be truncated"}});
  fixtures.push_back(
      {"ends within the last tensor",
       [=](Files& files) { files["model.gguf"] = whole.substr(0, whole.size() - 1); },
       {"F/model.gguf: tensor blk.0.ffn_down.weight: expected 2048 bytes at offset ", "the file may be truncated"}});
}

}  // namespace

Files good_gguf() { return {{"model.gguf", good().bytes()}}; }

std::vector<Fixture> gguf_fixtures() {
  std::vector<Fixture> fixtures = {
      change("another magic", [](Builder& b) { b.magic = "GGML"; }, {"F/model.gguf: expected a GGUF file"}),
      change("version 1", [](Builder& b) { b.version = 1; }, {"offset 8: expected GGUF version 2 or 3, found 1"}),
      change("a version of the future", [](Builder& b) { b.version = 4; }, {"expected GGUF version 2 or 3, found 4"}),
      change("big-endian", [](Builder& b) { b.version = 0x03000000; }, {"found a big-endian file"}),
      change("2^64 - 1 tensors", [](Builder& b) { b.num_tensors = kHuge; },
             {"offset 16: expected at most ", " tensors in a file of this size, found 18446744073709551615"}),
      change("2^61 tensors, whose size in memory overflows", [](Builder& b) { b.num_tensors = uint64_t{1} << 61; },
             {"tensors in a file of this size, found 2305843009213693952"}),
      change("2^64 - 1 keys", [](Builder& b) { b.num_keys = kHuge; },
             {"offset 24: expected at most ", " keys in a file of this size, found 18446744073709551615"}),
      change(
          "a tensor more than described", [](Builder& b) { b.num_tensors = 13; },
          {"F/model.gguf: tensor token_embd.weight: expected data of its own, found an overlap with another tensor"}),
      change("a key more than there is", [](Builder& b) { b.num_keys = 17; }, {"F/model.gguf: ", "expected "}),
      change("a tensor fewer than the model has", [](Builder& b) { b.num_tensors = 11; },
             {"blk.0.ffn_down.weight: missing"}),
      change("a key fewer, so the last one is read as a tensor", [](Builder& b) { b.num_keys = 15; },
             {"F/model.gguf: offset ", "tensor tokenizer.chat_template: expected at most 4 dimensions"}),
      change("a length of 2^64 - 1 for a key's name",
             [](Builder& b) {
               b.keys[0].name = "k";
               b.keys[0].value = raw(kHuge);
               b.keys.resize(1);
             },
             {"key k: expected 18446744073709551615 more bytes"}),
      change("a length of 2^63 for a string", [](Builder& b) { b.keys[0].value = raw(uint64_t{1} << 63); },
             {"key general.architecture: expected 9223372036854775808 more bytes, found "}),
      change("a type of no value", [](Builder& b) { b.keys[1].type = 13; },
             {"key llama.block_count: expected a value type from 0 to 12, found 13"}),
      change("a type of 2^32 - 1", [](Builder& b) { b.keys[1].type = 0xffffffff; },
             {"key llama.block_count: expected a value type from 0 to 12, found 4294967295"}),
      change("an array of 2^62 strings",
             [](Builder& b) { b.key("tokenizer.ggml.tokens").value = raw<uint32_t>(kString) + raw(uint64_t{1} << 62); },
             {"key tokenizer.ggml.tokens: expected at most ", " elements in a file of this size, found 46116860184"}),
      change("an array of 2^61 u64, whose bytes overflow",
             [](Builder& b) { b.key("tokenizer.ggml.tokens").value = raw<uint32_t>(kU64) + raw(uint64_t{1} << 61); },
             {"key tokenizer.ggml.tokens: expected at most ", "found 2305843009213693952"}),
      change("an array of arrays",
             [](Builder& b) { b.key("tokenizer.ggml.tokens").value = raw<uint32_t>(kArray) + raw(uint64_t{1}); },
             {"key tokenizer.ggml.tokens: expected an array of numbers or strings, found an array of arrays"}),
      change("an array of no type",
             [](Builder& b) { b.key("tokenizer.ggml.tokens").value = raw<uint32_t>(99) + raw(uint64_t{1}); },
             {"key tokenizer.ggml.tokens: expected a value type from 0 to 12, found 99"}),
      change("a bool of 2",
             [](Builder& b) {
               b.keys.push_back({"x.flag", kBool, "\x02"});
             },
             {"key x.flag: expected a bool of 0 or 1, found 2"}),
      change("a key twice", [](Builder& b) { b.keys.push_back(b.keys[0]); },
             {"key general.architecture: expected each key once, found it twice"}),
      change("a key that steers the terminal",
             [](Builder& b) {
               b.keys[0].name = "\x1b[2J\xc2\x9b\xff";
               b.keys.push_back(b.keys[0]);
             },
             {"key \\x1b[2J\\xc2\\x9b\\xff: expected each key once"}),
      change("an alignment of 0", [](Builder& b) { b.keys.push_back(u32("general.alignment", 0)); },
             {"F/model.gguf: general.alignment: expected a power of two, found u32 0"}),
      change("an alignment of 24", [](Builder& b) { b.keys.push_back(u32("general.alignment", 24)); },
             {"general.alignment: expected a power of two, found u32 24"}),
      change("an alignment beyond the file", [](Builder& b) { b.keys.push_back(u32("general.alignment", 1u << 31)); },
             {"tensor data: expected ", " more bytes, found "}),
      change("an alignment that is a string", [](Builder& b) { b.keys.push_back(string("general.alignment", "32")); },
             {"general.alignment: expected an integer from 0 to 4294967295, found string \"32\""}),
      change("an alignment of -1",
             [](Builder& b) {
               b.keys.push_back({"general.alignment", kI32, raw(int32_t{-1})});
             },
             {"general.alignment: expected an integer from 0 to 4294967295, found i32 -1"}),
      change("five dimensions",
             [](Builder& b) {
               b.tensors[0].sizes = {1, 1, 1, 1, 1};
             },
             {"tensor token_embd.weight: expected at most 4 dimensions, found 5"}),
      change("2^32 - 1 dimensions", [](Builder& b) { b.tensors[0].num_dims = 0xffffffff; },
             {"tensor token_embd.weight: expected at most 4 dimensions, found 4294967295"}),
      change("a negative size",
             [](Builder& b) {
               b.tensors[0].sizes = {-16, 8};
             },
             {"tensor token_embd.weight: expected sizes of at least 0 whose product fits 64 bits, found -16"}),
      change("a product of 2^64",
             [](Builder& b) {
               b.tensors[0].sizes = {int64_t{1} << 32, int64_t{1} << 32};
             },
             {"tensor token_embd.weight: expected sizes of at least 0 whose product fits 64 bits, found 4294967296"}),
      change("bytes of 2^64", [](Builder& b) { b.tensors[0].sizes = {int64_t{1} << 62}; },
             {"tensor token_embd.weight: expected a size that fits 64 bits, found F32 [4611686018427387904]"}),
      change("a size of 0 that hides an overflow",
             [](Builder& b) {
               b.tensors[0].sizes = {0, int64_t{1} << 40, int64_t{1} << 40};
             },
             {"token_embd.weight: expected shape [0, 16], found [1099511627776, 1099511627776, 0]"}),
      change("a row of half a block", [](Builder& b) { b.tensors[0].type = 2; },
             {"tensor token_embd.weight: expected rows of whole blocks of 32, found Q4_0 [8, 16]"}),
      change("a type of no name", [](Builder& b) { b.tensors[0].type = 4000000000u; },
             {"token_embd.weight", "found type ggml type 4000000000"}),
      change("a type that was removed", [](Builder& b) { b.tensors[0].type = 4; },
             {"token_embd.weight", "found type ggml type 4"}),
      change("an offset that is not aligned", [](Builder& b) { b.tensors[1].offset = 516; },
             {"tensor output_norm.weight: expected an offset that is a multiple of 32, found 516"}),
      change("an offset beyond the file", [](Builder& b) { b.tensors[1].offset = 1 << 20; },
             {"tensor output_norm.weight: expected 64 bytes at offset 1048576, found ", " bytes of data"}),
      change("an offset that wraps round", [](Builder& b) { b.tensors[1].offset = kHuge - 31; },
             {"tensor output_norm.weight: expected 64 bytes at offset 18446744073709551584"}),
      change("two tensors at one place", [](Builder& b) { b.tensors[1].offset = 0; },
             {"expected data of its own, found an overlap with another tensor"}),
      change("one tensor reaches into the next",
             [](Builder& b) {
               b.tensors[0].sizes = {16, 9};
             },
             {"tensor output_norm.weight: expected data of its own, found an overlap with another tensor"}),
      change("a tensor twice", [](Builder& b) { b.tensors[2].name = "token_embd.weight"; },
             {"tensor token_embd.weight: expected each tensor once, found its name twice"}),
      change("a tensor without a name", [](Builder& b) { b.tensors[2].name = ""; },
             {"1 difference", "  : not expected, F32 [8, 16]"}),
      change("a name with a NUL", [](Builder& b) { b.tensors[1].name = std::string("output_norm.weight\0", 19); },
             {"output_norm.weight: missing", "output_norm.weight\\x00: not expected"}),
      change("a name of 100,000 bytes", [](Builder& b) { b.tensors[2].name = std::string(100'000, 'x'); },
             {"tensor 2: expected a name of at most 256 bytes, found 100000"}),
      change("a shape turned round", [](Builder& b) { std::swap(b.tensors[9].sizes[0], b.tensors[9].sizes[1]); },
             {"blk.0.ffn_gate.weight: expected shape [32, 16], found [16, 32]"}),
      change("a tensor too many", [](Builder& b) { b.tensors.push_back(zeros("blk.1.attn_q.weight", {16})); },
             {"blk.1.attn_q.weight: not expected, F32 [16]"}),
      change("no tensors", [](Builder& b) { b.tensors.clear(); }, {"token_embd.weight: missing"}),
      change("no keys", [](Builder& b) { b.keys.clear(); },
             {"F/model.gguf: tokenizer.ggml.model: expected a string, found no such key"}),
      change("another architecture", [](Builder& b) { b.keys[0] = string("general.architecture", "gpt\x1b[1mj"); },
             {"general.architecture: expected one of ", "found gpt\\x1b[1mj"}),
      change("4 billion layers", [](Builder& b) { b.key("llama.block_count") = u32("llama.block_count", 0xffffffff); },
             {"num_hidden_layers: expected 1 to 1024, found 4294967295"}),
      change("1024 layers of which one is there",
             [](Builder& b) { b.key("llama.block_count") = u32("llama.block_count", 1024); },
             {"9207 differences", "blk.1.attn_norm.weight: missing", "... and 9187 more"}),
      change("no heads", [](Builder& b) { b.key("llama.attention.head_count").value = raw(0u); },
             {"llama.attention.head_count", "0"}),
      change("a width of 2^32 - 1", [](Builder& b) { b.key("llama.embedding_length").value = raw(0xffffffffu); },
             {"hidden_size: expected 1 to 67108864, found 4294967295"}),
      change("16,385 tensors of no bytes",
             [](Builder& b) {
               b.tensors.clear();
               for (int i = 0; i < 16385; ++i) b.tensors.push_back({std::to_string(i), {0}});
             },
             {"expected at most 16384 tensors, found 16385"}),
      change("16,384 tensors of long names",
             [](Builder& b) {
               b.tensors.clear();
               for (int i = 0; i < 16384; ++i) b.tensors.push_back({std::to_string(i) + std::string(250, 'n'), {0}});
             },
             {"differences", "token_embd.weight: missing"}),
      change("100,000 keys",
             [](Builder& b) {
               for (int i = 0; i < 100'000; ++i) b.keys.push_back({std::to_string(i), kU8, "\x01"});
             },
             {"expected at most 65536 keys, found 100016"}),
      change("65,536 keys",
             [](Builder& b) {
               for (int i = 16; i < 65536; ++i) b.keys.push_back({std::to_string(i), kU8, "\x01"});
               b.keys[0] = string("general.architecture", "none");
             },
             {"general.architecture: expected one of"}),
      change("a part of a split model",
             [](Builder& b) {
               b.keys.push_back({"split.count", kU16, raw(uint16_t{3})});
               b.keys.push_back({"split.no", kU16, raw(uint16_t{0})});
               b.keys.push_back({"split.tensors.count", kI32, raw(int32_t{12})});
             },
             {"read split GGUF: F/model.gguf: expected a name that ends in -00001-of-00003.gguf"}),
      change("one of four billion parts", [](Builder& b) { b.keys.push_back(u32("split.count", 0xffffffff)); },
             {"read split GGUF: F/model.gguf: expected a split.count of at most 99999, found 4294967295"}),
  };
  add_truncations(fixtures);
  // Split files, by name.
  const auto split = [](std::string what, std::function<void(Builder&, Builder&)> change, std::vector<std::string> said,
                        std::function<void(const fs::path&)> arrange = {}) {
    return Fixture{std::move(what),
                   [=](Files& files) {
                     Builder first = good(), second;
                     for (Builder* b : {&first, &second}) {
                       b->keys.push_back({"split.count", kU16, raw(uint16_t{2})});
                       b->keys.push_back({"split.no", kU16, raw(static_cast<uint16_t>(b == &first ? 0 : 1))});
                       b->keys.push_back({"split.tensors.count", kI32, raw(int32_t{12})});
                     }
                     second.tensors.assign(first.tensors.begin() + 6, first.tensors.end());
                     first.tensors.resize(6);
                     change(first, second);
                     files.clear();
                     files["m-00001-of-00002.gguf"] = first.bytes();
                     files["m-00002-of-00002.gguf"] = second.bytes();
                   },
                   std::move(said), std::move(arrange), "m-00001-of-00002.gguf"};
  };
  const auto part = [](int no) { return "m-0000" + std::to_string(no) + "-of-00002.gguf"; };
  fixtures.push_back(
      split("a tensor in both parts", [](Builder& a, Builder& b) { b.tensors[0].name = a.tensors[0].name; },
            {"expected each tensor in one part, found token_embd.weight in F/m-00001-of-00002.gguf and in "
             "F/m-00002-of-00002.gguf"}));
  fixtures.push_back(split("a tensor fewer than all parts together should have",
                           [](Builder&, Builder& b) { b.tensors.pop_back(); },
                           {"expected 12 tensors, as split.tensors.count says, found 11 in all parts"}));
  fixtures.push_back(split("a part of another number", [](Builder&, Builder& b) { b.keys[1].value = raw(uint16_t{7}); },
                           {"F/m-00002-of-00002.gguf: split.no: expected 1, found u16 7"}));
  fixtures.push_back(split("a part of another model", [](Builder&, Builder& b) { b.keys[0].value = raw(uint16_t{9}); },
                           {"F/m-00002-of-00002.gguf: split.count: expected 2, found u16 9"}));
  fixtures.push_back(split("the second part cut", [](Builder&, Builder& b) { b.tensors[0].sizes = {1 << 20}; },
                           {"F/m-00002-of-00002.gguf: tensor blk.0.attn_v.weight: expected 4194304 bytes"}));
  fixtures.push_back(split(
      "the second part missing", [](Builder&, Builder&) {},
      {"expected 2 parts, found 1 missing: m-00002-of-00002.gguf"},
      [=](const fs::path& folder) { fs::remove(folder / part(2)); }));
  fixtures.push_back(split(
      "the second part a folder", [](Builder&, Builder&) {},
      {"open file: F/m-00002-of-00002.gguf: expected a regular file, found a folder"},
      [=](const fs::path& folder) {
        fs::remove(folder / part(2));
        fs::create_directory(folder / part(2));
      }));
  fixtures.push_back(split(
      "the second part a link to the first", [](Builder&, Builder&) {},
      {"F/m-00002-of-00002.gguf: split.no: expected 1, found u16 0"},
      [=](const fs::path& folder) {
        fs::remove(folder / part(2));
        fs::create_symlink(part(1), folder / part(2));
      }));
  return fixtures;
}

std::vector<Fixture> gguf_tokenizer_fixtures() {
  const std::string file = "F/model.gguf: tokenizer.ggml.";
  const auto tokens = [](size_t count) {
    std::vector<std::string> all;
    for (size_t i = 0; i < count; ++i) all.push_back(std::to_string(i));
    return all;
  };
  return {
      change("no tokens", [](Builder& b) { b.key("tokenizer.ggml.tokens") = u32("x", 1); },
             {file + "tokens: expected an array of strings, found no such key"}),
      change("tokens that are numbers",
             [](Builder& b) { b.key("tokenizer.ggml.tokens") = i32s("tokenizer.ggml.tokens", {1}); },
             {file + "tokens: expected an array of strings, found array of 1 i32"}),
      change("another kind of model",
             [](Builder& b) { b.key("tokenizer.ggml.model") = string("tokenizer.ggml.model", "rwkv\x07"); },
             {file + "model: expected ", "rwkv\\x07"}),
      change("an unknown pre-tokenizer",
             [](Builder& b) { b.key("tokenizer.ggml.pre") = string("tokenizer.ggml.pre", "novel"); }, {"novel"}),
      change("types of another number",
             [](Builder& b) {
               b.key("tokenizer.ggml.token_type") = i32s("tokenizer.ggml.token_type", {1, 1});
             },
             {file + "token_type: expected 8 types, one per token, found 2"}),
      change("a type of 77",
             [](Builder& b) {
               b.key("tokenizer.ggml.token_type") = i32s("tokenizer.ggml.token_type", {3, 3, 77, 1, 1, 1, 1, 1});
             },
             {file + "token_type[2]: expected 1 to 6, found 77"}),
      change("types that are strings",
             [](Builder& b) { b.key("tokenizer.ggml.token_type") = strings("tokenizer.ggml.token_type", kTokens); },
             {file + "token_type: expected an array of integers, found array of 8 string"}),
      change("no merges", [](Builder& b) { b.key("tokenizer.ggml.merges") = u32("x", 1); },
             {file + "merges: expected an array of strings, found no such key"}),
      change("a merge of one part",
             [](Builder& b) {
               b.key("tokenizer.ggml.merges") = strings("tokenizer.ggml.merges", {"Ġ a", "ab"});
             },
             {file + "merges[1]: expected two tokens with a space between, found 'ab'"}),
      change("a merge of three parts",
             [](Builder& b) { b.key("tokenizer.ggml.merges") = strings("tokenizer.ggml.merges", {"a b c"}); },
             {file + "merges[0]: expected two tokens with a space between, found 'a b c'"}),
      change("a merge of unknown parts",
             [](Builder& b) { b.key("tokenizer.ggml.merges") = strings("tokenizer.ggml.merges", {"q r"}); },
             {"merge", "q"}),
      change("a merge into nothing",
             [](Builder& b) { b.key("tokenizer.ggml.merges") = strings("tokenizer.ggml.merges", {"b a"}); },
             {"merge", "b"}),
      change("a BOS outside of the vocabulary",
             [](Builder& b) { b.key("tokenizer.ggml.bos_token_id").value = raw(8u); },
             {file + "bos_token_id: expected an id below 8, found 8"}),
      change("an EOS of 2^31", [](Builder& b) { b.key("tokenizer.ggml.eos_token_id").value = raw(1u << 31); },
             {file + "eos_token_id: expected an id below 8, found 2147483648"}),
      change("an EOS that is a string",
             [](Builder& b) { b.key("tokenizer.ggml.eos_token_id") = string("tokenizer.ggml.eos_token_id", "</s>"); },
             {file + "eos_token_id: expected a 64-bit integer, found string"}),
      change("a flag that is a number", [](Builder& b) { b.keys.push_back(u32("tokenizer.ggml.add_bos_token", 1)); },
             {file + "add_bos_token: expected a bool, found u32 1"}),
      change("a token twice",
             [](Builder& b) {
               b.key("tokenizer.ggml.tokens") =
                   strings("tokenizer.ggml.tokens", {"<s>", "</s>", "a", "a", "Ġ", "Ġa", "ab", "Ċ"});
             },
             {"a"}),
      change("a template that is a number",
             [](Builder& b) { b.key("tokenizer.chat_template") = u32("tokenizer.chat_template", 7); },
             {"tokenizer.chat_template: expected a string, found u32 7"}),
      change("a million types in a byte each",
             [](Builder& b) {
               b.key("tokenizer.ggml.token_type") = {
                   "tokenizer.ggml.token_type", kArray,
                   raw<uint32_t>(kU8) + raw(uint64_t{6'000'000}) + std::string(6'000'000, '\1')};
             },
             {file + "token_type: expected an array of at most 4194304 integers, found array of 6000000 u8"}),
      change("a million merges",
             [](Builder& b) {
               b.key("tokenizer.ggml.merges") =
                   strings("tokenizer.ggml.merges", std::vector<std::string>(1'000'000, "a b"));
             },
             {file + "merges: expected at most 750000, found 1000000"}),
      change("600,000 tokens",
             [=](Builder& b) {
               b.key("tokenizer.ggml.tokens") = strings("tokenizer.ggml.tokens", tokens(600'000));
               b.key("tokenizer.ggml.token_type") = u32("x", 1);
             },
             {"F/model.gguf: vocabulary: expected 1 to 524288 tokens, found 600000"}),
      change("520,000 tokens and none that merges",
             [=](Builder& b) {
               b.key("tokenizer.ggml.tokens") = strings("tokenizer.ggml.tokens", tokens(520'000));
               b.key("tokenizer.ggml.token_type") = u32("x", 1);
             },
             {"F/model.gguf: merge 0: expected tokens of the vocabulary"}),
      change("a token of 20 MB",
             [](Builder& b) {
               b.key("tokenizer.ggml.tokens") = strings(
                   "tokenizer.ggml.tokens", {"<s>", "</s>", "a", "b", "Ġ", "Ġa", "ab", std::string(20'000'000, 'x')});
             },
             {"F/model.gguf: vocabulary: expected at most 16777216 bytes of text, found 20000"}),
      change("740,000 merges",
             [](Builder& b) {
               std::vector<std::string> merges(740'000, "a b");
               merges.push_back("q r");
               b.key("tokenizer.ggml.merges") = strings("tokenizer.ggml.merges", merges);
             },
             {"F/model.gguf: merge 740000: expected tokens of the vocabulary, found 'q'"}),
  };
}

}  // namespace proa::hostile
