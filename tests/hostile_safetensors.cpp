// Weights of a folder with one thing wrong: model.safetensors, and shards with their index.
#include <algorithm>
#include <functional>
#include <utility>

#include "hostile.h"

namespace proa::hostile {
namespace {

struct Tensor {
  std::string name, dtype, shape;
  size_t bytes;
};

// Header and data written as text, so that a fixture can say anything.
struct Builder {
  std::vector<Tensor> tensors;
  std::string before;  // put into the header in front of the tensors

  Tensor& tensor(const std::string& name) {
    return *std::find_if(tensors.begin(), tensors.end(), [&](const Tensor& t) { return t.name == name; });
  }
  std::string header() const {
    std::string text = "{" + before;
    size_t begin = 0;
    for (const Tensor& t : tensors) {
      text += text == "{" || text.ends_with(',') ? "" : ",";
      text += "\"" + t.name + "\":{\"dtype\":\"" + t.dtype + "\",\"shape\":" + t.shape + ",\"data_offsets\":[" +
              std::to_string(begin) + "," + std::to_string(begin + t.bytes) + "]}";
      begin += t.bytes;
    }
    return text + "}";
  }
  size_t data_bytes() const {
    size_t bytes = 0;
    for (const Tensor& t : tensors) bytes += t.bytes;
    return bytes;
  }
};

std::string file_of(std::string header, size_t data_bytes) {
  header.append((8 - header.size() % 8) % 8, ' ');
  return raw<uint64_t>(header.size()) + header + std::string(data_bytes, '\0');
}
std::string file_of(const Builder& b) { return file_of(b.header(), b.data_bytes()); }

Builder good() {
  const std::string layer = "model.layers.0.";
  return {.tensors = {{"model.embed_tokens.weight", "F32", "[8,16]", 512},
                      {"model.norm.weight", "F32", "[16]", 64},
                      {"lm_head.weight", "F32", "[8,16]", 512},
                      {layer + "input_layernorm.weight", "F32", "[16]", 64},
                      {layer + "post_attention_layernorm.weight", "F32", "[16]", 64},
                      {layer + "self_attn.q_proj.weight", "F32", "[16,16]", 1024},
                      {layer + "self_attn.k_proj.weight", "F32", "[8,16]", 512},
                      {layer + "self_attn.v_proj.weight", "F32", "[8,16]", 512},
                      {layer + "self_attn.o_proj.weight", "F32", "[16,16]", 1024},
                      {layer + "mlp.gate_proj.weight", "F32", "[32,16]", 2048},
                      {layer + "mlp.up_proj.weight", "F32", "[32,16]", 2048},
                      {layer + "mlp.down_proj.weight", "F32", "[16,32]", 2048}},
          .before = R"("__metadata__":{"format":"pt"})"};
}

const std::string kFile = "model.safetensors";

Fixture bytes(std::string what, std::function<std::string(const std::string&)> change, std::vector<std::string> said) {
  return {std::move(what), [=](Files& files) { files[kFile] = change(file_of(good())); }, std::move(said)};
}
Fixture change(std::string what, std::function<void(Builder&)> change, std::vector<std::string> said) {
  return {std::move(what),
          [=](Files& files) {
            Builder b = good();
            change(b);
            files[kFile] = file_of(b);
          },
          std::move(said)};
}
// The text of the header with one piece replaced.
Fixture text(std::string what, std::string from, std::string to, std::vector<std::string> said) {
  return {std::move(what),
          [=](Files& files) {
            const Builder b = good();
            std::string header = b.header();
            replace(header, from, to);
            files[kFile] = file_of(header, b.data_bytes());
          },
          std::move(said)};
}
Fixture header(std::string what, std::string text, std::vector<std::string> said) {
  return {std::move(what), [=](Files& files) { files[kFile] = file_of(text, 0); }, std::move(said)};
}

// Two shards and their index in place of the one file.
struct Shards {
  Builder first, second;
  std::map<std::string, std::string> weight_map;
  std::string index;  // written instead of weight_map unless empty
};
Fixture shards(std::string what, std::function<void(Shards&)> change, std::vector<std::string> said,
               std::function<void(const fs::path&)> arrange = {}) {
  return {std::move(what),
          [=](Files& files) {
            Shards s;
            s.first = s.second = good();
            s.first.tensors.resize(6);
            s.second.tensors.erase(s.second.tensors.begin(), s.second.tensors.begin() + 6);
            for (const Tensor& t : s.first.tensors) s.weight_map[t.name] = "one.safetensors";
            for (const Tensor& t : s.second.tensors) s.weight_map[t.name] = "two.safetensors";
            change(s);
            std::string map;
            for (const auto& [name, file] : s.weight_map) {
              map += (map.empty() ? "\"" : ",\"") + name + "\":\"" + file + "\"";
            }
            files.erase(kFile);
            files["one.safetensors"] = file_of(s.first);
            files["two.safetensors"] = file_of(s.second);
            files["model.safetensors.index.json"] =
                s.index.empty() ? R"({"metadata":{"total_size":1},"weight_map":{)" + map + "}}" : s.index;
          },
          std::move(said), std::move(arrange)};
}

std::string many_tensors(size_t count, const std::string& prefix) {
  std::string header = "{";
  for (size_t i = 0; i < count; ++i) {
    header += (i ? ",\"" : "\"") + prefix + std::to_string(i) + R"(":{"dtype":"U8","shape":[0],"data_offsets":[0,0]})";
  }
  return header + "}";
}

}  // namespace

Files good_folder() {
  return {
      {"config.json",
       R"({"architectures":["LlamaForCausalLM"],"hidden_size":16,"intermediate_size":32,"num_hidden_layers":1,)"
       R"("num_attention_heads":4,"num_key_value_heads":2,"vocab_size":8})"},
      {"generation_config.json", R"({"temperature":0.5,"eos_token_id":[1]})"},
      {"tokenizer.json",
       R"({"added_tokens":[{"id":0,"content":"<s>","special":true},{"id":1,"content":"</s>","special":true}],)"
       R"("normalizer":null,"pre_tokenizer":{"type":"Sequence","pretokenizers":[{"type":"Split","pattern":)"
       R"({"Regex":"\\s+|\\w+"},"behavior":"Isolated","invert":false},{"type":"ByteLevel","add_prefix_space":false,)"
       R"("use_regex":false}]},"post_processor":null,"decoder":{"type":"ByteLevel"},"model":{"type":"BPE",)"
       R"("vocab":{"a":2,"b":3,"Ġ":4,"Ġa":5,"ab":6,"Ċ":7},"merges":["Ġ a","a b"]}})"},
      {"tokenizer_config.json", R"({"bos_token":"<s>","eos_token":"</s>"})"},
      {"chat_template.jinja", "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"},
      {kFile, file_of(good())},
  };
}

std::vector<Fixture> safetensors_fixtures() {
  const std::string q = "model.layers.0.self_attn.q_proj.weight", norm = "model.norm.weight";
  const std::string in = "read safetensors header: F/model.safetensors: ";
  const std::string header_text = good().header();
  const size_t header_bytes = (header_text.size() + 7) / 8 * 8;
  const auto cut = [](size_t size) { return [=](const std::string& whole) { return whole.substr(0, size); }; };
  const auto length = [](uint64_t value) {
    return [=](const std::string& whole) { return raw(value) + whole.substr(8); };
  };
  std::vector<Fixture> fixtures = {
      bytes("nothing", cut(0), {"open file: F/model.safetensors: expected a file with content, found an empty file"}),
      bytes("ends in the length", cut(7), {in + "expected at least 8 bytes, found 7"}),
      bytes("ends after the length", cut(8),
            {in + "expected a header of " + std::to_string(header_bytes) + " bytes, found a file with 0"}),
      bytes("ends in the header", cut(8 + 100), {in + "expected a header of ", "found a file with 100"}),
      bytes("ends before the header's last byte", cut(8 + header_bytes - 1),
            {in + "expected a header of ", "found a file with " + std::to_string(header_bytes - 1)}),
      bytes("ends before the data", cut(8 + header_bytes),
            {in + "model.embed_tokens.weight: expected data_offsets within the 0 bytes of data, found [0, 512] (the "
                  "file may be truncated)"}),
      bytes("ends within a tensor", cut(8 + header_bytes + 600),
            {in + "lm_head.weight: expected data_offsets within the 600 bytes of data, found [576, 1088]"}),
      bytes("ends one byte early", [](const std::string& whole) { return whole.substr(0, whole.size() - 1); },
            {"mlp.down_proj.weight: expected data_offsets within the 10431 bytes of data, found [8384, 10432]"}),
      bytes("a byte more", [](const std::string& whole) { return whole + "x"; },
            {"read safetensors: F/model.safetensors: expected 10432 bytes of data, found 10433"}),
      bytes("a header of no bytes", length(0), {in + "expected a JSON object, found nothing"}),
      bytes("a header of one byte", length(1), {in + "parse error at line 1, column 2"}),
      bytes("a header one byte short", length(header_text.size() - 1), {in + "parse error at line 1, column "}),
      bytes("a header that reaches into the data", length(header_bytes + 8),
            {in + "offset ", "expected JSON, found a byte 0"}),
      bytes("a header of 2^64 - 1", length(~uint64_t{0}),
            {in + "expected a header of at most 100000000 bytes, found 18446744073709551615"}),
      bytes("a header of 2^63", length(uint64_t{1} << 63), {in + "expected a header of at most 100000000 bytes"}),
      bytes("a header of 100 MB in a small file", length(100'000'000),
            {in + "expected a header of 100000000 bytes, found a file with "}),
      bytes("a header that is no object", [](const std::string&) { return file_of("[1, 2]", 0); },
            {in + "expected a JSON object, found other text"}),
      bytes("a pickle", [](const std::string&) { return "\x80\x02}q\x01X\x05\x00\x00\x00" + std::string(64, 'p'); },
            {in + "expected a header of at most "}),
      bytes("a GGUF file", [](const std::string&) { return "GGUF" + std::string(64, '\0'); },
            {in + "expected a header of at most 100000000 bytes, found 1179993927"}),
      header("a string that never ends", "{\"a", {in + "parse error at line 1, column "}),
      header("two objects", "{}{}", {in + "parse error at line 1, column 3"}),
      header("100,000 brackets", "{\"a\":" + repeat("[", 100'000),
             {in + "offset 12: expected at most 8 levels of nesting"}),
      header("a name in broken UTF-8", "{\"\xff\":{}}", {in, "ill-formed UTF-8 byte"}),
      header("a lone surrogate", R"({"\ud800":{}})", {in, "surrogate"}),
      header("a control character", "{\"a\x01\":{}}", {in, "control character"}),
      header("a name of 10 MB", "{\"" + std::string(10 << 20, 'n') + "\":{}}",
             {in + "offset 1: expected a string of at most 4194304 bytes, found more"}),
      header("no tensors", "{}", {"11 differences", "model.embed_tokens.weight: missing"}),
      header("a tensor that is a number", R"({"t":3})", {in + "t: expected an object, found another type"}),
      header("a tensor that is a list", R"({"t":[]})", {in + "t: expected an object, found another type"}),
      header("a tensor that is null", R"({"t":null})", {in + "t: expected an object, found another type"}),
      header("a name that steers the terminal", R"({"\u001b[2J\u009b":3})",
             {in + "\\x1b[2J\\xc2\\x9b: expected an object"}),
      text("metadata that is a list", R"({"format":"pt"})", "[]",
           {in + "__metadata__: expected an object of strings, found another type"}),
      text("metadata of numbers", R"("pt")", "7",
           {in + "__metadata__: expected an object of strings, found another type"}),
      text("metadata twice", R"("__metadata__":{"format":"pt"})", R"("__metadata__":{},"__metadata__":{})",
           {in + "__metadata__: expected one __metadata__, found two"}),
      text("a tensor twice", "\"" + norm + "\"", "\"model.embed_tokens.weight\"",
           {in + "model.embed_tokens.weight: expected each tensor once, found its name twice"}),
      text("no dtype", R"("dtype":"F32",)", "",
           {in + "model.embed_tokens.weight: expected dtype, shape and data_offsets, found no dtype"}),
      text("no shape", R"("shape":[8,16],)", "",
           {"model.embed_tokens.weight: expected dtype, shape and data_offsets, found no shape"}),
      text("no data_offsets", R"(,"data_offsets":[0,512])", "",
           {"model.embed_tokens.weight: expected dtype, shape and data_offsets, found no data_offsets"}),
      text("dtype twice", R"("dtype":"F32",)", R"("dtype":"F32","dtype":"F16",)",
           {"expected each field once, found dtype twice"}),
      text("shape twice", R"("shape":[8,16],)", R"("shape":[8,16],"shape":[16],)",
           {"expected each field once, found shape twice"}),
      text("data_offsets twice", R"("data_offsets":[0,512])", R"("data_offsets":[0,512],"data_offsets":[0,512])",
           {"expected each field once, found data_offsets twice"}),
      text("a dtype that is a number", R"("dtype":"F32")", R"("dtype":32)",
           {"expected dtype as a string, found another type"}),
      text("a shape that is an object", R"("shape":[8,16])", R"("shape":{})",
           {"expected shape as an array, found another type"}),
      text("a shape that is a string", R"("shape":[8,16])", R"("shape":"8x16")",
           {"expected shape as an array, found another type"}),
      text("a negative size", "[8,16]", "[-8,16]", {"expected sizes that are integers of at least 0, found -8"}),
      text("a fraction", "[8,16]", "[8.5,16]", {"expected sizes that are integers of at least 0, found 8.5"}),
      text("a size that is a string", "[8,16]", R"(["8",16])",
           {"expected sizes that are integers of at least 0, found 8"}),
      text("a size of 2^64", "[8,16]", "[18446744073709551616]",
           {"expected sizes that are integers of at least 0, found 1844"}),
      text("a size of 2^63", "[8,16]", "[9223372036854775808]",
           {"expected sizes that are integers of at least 0, found 9223372036854775808"}),
      text("a product of 2^64", "[8,16]", "[4294967296,4294967296]",
           {"expected a shape whose product fits 64 bits, found [4294967296, 4294967296]"}),
      text("bytes of 2^64", "[8,16]", "[4611686018427387904]",
           {"expected the bytes of F32 [4611686018427387904], found 512 bytes"}),
      text("17 dimensions", "[8,16]", "[1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,8,16]",
           {"expected at most 16 dimensions, found more"}),
      text("a shape in a shape", "[8,16]", "[[8],16]", {"expected sizes that are integers of at least 0"}),
      text("offsets turned round", "[0,512]", "[512,0]",
           {"expected data_offsets within the 10432 bytes of data, found [512, 0]"}),
      text("offsets beyond the file", "[0,512]", "[1000000,1000512]",
           {"expected data_offsets within the 10432 bytes of data, found [1000000, 1000512]"}),
      text("offsets of 2^64 - 1", "[0,512]", "[0,18446744073709551615]",
           {"within the 10432 bytes of data, found [0, 18446744073709551615]"}),
      text("a negative offset", "[0,512]", "[-1,512]",
           {"expected data_offsets as two integers of at least 0, found [-1..."}),
      text("one offset", "[0,512]", "[0]", {"expected data_offsets as two integers of at least 0, found [0]"}),
      text("three offsets", "[0,512]", "[0,512,512]",
           {"expected data_offsets as two integers of at least 0, found [0,512,512..."}),
      text("an offset that is a list", "[0,512]", "[0,[512]]",
           {"expected data_offsets as two integers of at least 0, found [0,[..."}),
      text("offsets that are null", "[0,512]", "null",
           {"expected data_offsets as two integers of at least 0, found null"}),
      text("more bytes than the shape has", "[8,16]", "[8,8]",
           {"model.embed_tokens.weight: expected the bytes of F32 [8, 8], found 512 bytes"}),
      text("half a byte", R"("dtype":"F32","shape":[8,16])", R"("dtype":"F4","shape":[1023])",
           {"expected the bytes of F4 [1023], found 512 bytes"}),
      text("an overlap", "[512,576]", "[508,572]",
           {"norm.weight: expected data that begin where the tensor before ends, found an overlap"}),
      text("two tensors at one place", "[512,576]", "[0,64]",
           {"expected data that begin where the tensor before ends, found an overlap"}),
      text("a gap", "[512,576]", "[516,580]",
           {"norm.weight: expected data that begin where the tensor before ends, found a gap"}),
      change("a tensor missing",
             [=](Builder& b) {
               b.tensor(q) = {"stray", "U8", "[3]", 3};
             },
             {q + ": missing, shape [16, 16]", "stray: not expected, U8 [3]"}),
      change("a shape turned round", [](Builder& b) { b.tensor("lm_head.weight").shape = "[16,8]"; },
             {"lm_head.weight: expected shape [8, 16], found [16, 8]"}),
      change("integers for weights", [=](Builder& b) { b.tensor(q).dtype = "I32"; },
             {q + ": expected a known format, found type I32"}),
      change("a dtype of no name", [=](Builder& b) { b.tensor(q).dtype = "F32\\u001b"; },
             {q + ": expected a known format, found type F32\\x1b"}),
      change("quantised and without scales",
             [=](Builder& b) {
               b.tensor(q) = {q, "F8_E4M3", "[16,16]", 256};
             },
             {q + ": F8_E4M3 without model.layers.0.self_attn.q_proj.weight_scale"}),
      change("a scale of another shape",
             [=](Builder& b) {
               b.tensor(q) = {q, "F8_E4M3", "[16,16]", 256};
               b.tensors.push_back({q + "_scale", "F32", "[3]", 12});
             },
             {q + "_scale: expected F32 of 1 or 16 values, found F32 [3]"}),
      change("data that are not aligned",
             [=](Builder& b) {
               b.tensors.insert(b.tensors.begin(), {"model.layers.0.self_attn.q_proj.k_scale", "U8", "[1]", 1});
             },
             {"expected data at a multiple of 4 bytes, found data not aligned for F32"}),
      {"300,000 tensors without data",
       [](Files& files) { files[kFile] = file_of(many_tensors(300'000, "t"), 0); },
       {in + "t", ": expected fewer tensors in a file of this size, found more"}},
      {"75,000 tensors without data",
       [](Files& files) { files[kFile] = file_of(many_tensors(75'000, "t"), 0); },
       {"75011 differences", "model.embed_tokens.weight: missing", "... and 74991 more"}},
      {"28,000 tensors of long names",
       [](Files& files) { files[kFile] = file_of(many_tensors(28'000, std::string(300, 'n')), 0); },
       {"28011 differences", "model.embed_tokens.weight: missing"}},
      {"a header of 30 MB of numbers",
       [](Files& files) { files[kFile] = file_of("{\"t\":[" + repeat("1,", 15 << 20) + "1]}", 0); },
       {in + "t: expected an object, found another type"}},
      {"a shape of 30 MB",
       [](Files& files) {
         files[kFile] =
             file_of(R"({"t":{"dtype":"U8","shape":[)" + repeat("1,", 15 << 20) + R"(1],"data_offsets":[0,1]}})", 1);
       },
       {in + "t: expected at most 16 dimensions, found more"}},
      {"a million strings of metadata",
       [](Files& files) {
         std::string text = R"({"__metadata__":{)";
         for (int i = 0; i < 1'000'000; ++i) text += "\"" + std::to_string(i) + "\":\"\",";
         files[kFile] = file_of(text + R"("x":""}})", 0);
       },
       {in + "__metadata__: expected at most 10000 strings, found more"}},
  };

  const std::string index = "open checkpoint: F/model.safetensors.index.json: ";
  const auto point_to = [=](const std::string& file) { return [=](Shards& s) { s.weight_map[norm] = file; }; };
  const std::string plain = index + "expected a file name in this folder for " + norm + ", found ";
  const std::vector<Fixture> more = {
      shards("leaves the folder", point_to("../one.safetensors"), {plain + "\"../one.safetensors\""}),
      shards("an absolute path", point_to("/etc/passwd"), {plain + "\"/etc/passwd\""}),
      shards("a file below", point_to("sub/one.safetensors"), {plain + "\"sub/one.safetensors\""}),
      shards("the folder itself", point_to("."), {plain + "\".\""}),
      shards("the folder above", point_to(".."), {plain + "\"..\""}),
      shards("no name", point_to(""), {plain + "\"\""}),
      shards("a name with a NUL", point_to("one.safetensors\\u0000.png"), {plain + "\"one.safetensors\\x00.png\""}),
      shards("a shard that is not there", point_to("three.safetensors"),
             {index + "expected 3 shards, found 1 missing: three.safetensors"}),
      shards("a name of 5,000 bytes", point_to(std::string(5000, 's')),
             {"F/model.safetensors.index.json", "expected a string of at most 4096 bytes"}),
      shards("config.json as a shard", point_to("config.json"),
             {"read safetensors header: F/config.json: expected a header of at most 100000000 bytes"}),
      shards("the index as a shard", point_to("model.safetensors.index.json"),
             {"read safetensors header: F/model.safetensors.index.json: expected a header of at most"}),
      shards(
          "a tensor in another shard than the index says", [=](Shards& s) { s.weight_map[norm] = "two.safetensors"; },
          {index + "expected every tensor of the index in its shard, found 1 missing: " + norm + " (two.safetensors)"}),
      shards("a tensor that no shard has", [](Shards& s) { s.weight_map["ghost"] = "two.safetensors"; },
             {index + "expected every tensor of the index in its shard, found 1 missing: ghost (two.safetensors)"}),
      shards("a tensor in two shards",
             [](Shards& s) {
               s.first.tensors.push_back({"stray", "U8", "[1]", 1});
               s.second.tensors.push_back({"stray", "U8", "[1]", 1});
             },
             {index + "expected each tensor in one shard or in the index, found stray in two shards"}),
      shards("a shard cut short", [](Shards& s) { s.second.tensors.back().bytes = 2047; },
             {"F/two.safetensors: model.layers.0.mlp.down_proj.weight: expected the bytes of F32 [16, 32], found 2047 "
              "bytes"}),
      shards("an index that is a list", [](Shards& s) { s.index = "[]"; },
             {index + "expected an object weight_map, found none"}),
      shards("an index that is a number", [](Shards& s) { s.index = "7"; },
             {index + "expected an object weight_map, found none"}),
      shards("no weight_map", [](Shards& s) { s.index = R"({"metadata":{}})"; },
             {index + "expected an object weight_map, found none"}),
      shards("a weight_map that is a list", [](Shards& s) { s.index = R"({"weight_map":["one.safetensors"]})"; },
             {index + "expected an object weight_map, found an array"}),
      shards("two weight_maps", [](Shards& s) { s.index = R"({"weight_map":{},"weight_map":{}})"; },
             {index + "expected one weight_map, found two"}),
      shards("a tensor twice in the index",
             [](Shards& s) { s.index = R"({"weight_map":{"a":"one.safetensors","a":"two.safetensors"}})"; },
             {index + "expected each tensor once in weight_map, found a twice"}),
      shards("a shard that is a number", [](Shards& s) { s.index = R"({"weight_map":{"a":1}})"; },
             {index + "expected a file name in this folder for a, found another type"}),
      shards("a shard that is an object",
             [](Shards& s) { s.index = R"({"weight_map":{"a":{"file":"one.safetensors"}}})"; },
             {index + "expected a file name in this folder for a, found another type"}),
      shards("an empty weight_map", [](Shards& s) { s.index = R"({"weight_map":{}})"; },
             {"model.embed_tokens.weight: missing"}),
      shards("an index cut short", [](Shards& s) { s.index = R"({"weight_map":{"a":"one.safetens)"; },
             {"F/model.safetensors.index.json: parse error at line 1, column "}),
      shards("an index of nothing", [](Shards& s) { s.index = " "; },
             {"F/model.safetensors.index.json: parse error at line 1, column 2"}),
      shards("an index of 10,001 shards",
             [](Shards& s) {
               s.index = R"({"weight_map":{)";
               for (int i = 0; i < 10'001; ++i)
                 s.index += "\"" + std::to_string(i) + "\":\"f" + std::to_string(i) + "\",";
               s.index += R"("x":"one.safetensors"}})";
             },
             {index + "expected at most 10000 shards, found more"}),
      shards("an index of 300,000 tensors",
             [](Shards& s) {
               s.index = R"({"weight_map":{)";
               for (int i = 0; i < 300'000; ++i) s.index += "\"" + std::to_string(i) + "\":\"one.safetensors\",";
               s.index += R"("x":"one.safetensors"}})";
             },
             {index + "expected at most 200000 tensors, found more"}),
      shards(
          "a shard that is a folder", [](Shards&) {},
          {"open file: F/two.safetensors: expected a regular file, found a folder"},
          [](const fs::path& folder) {
            fs::remove(folder / "two.safetensors");
            fs::create_directory(folder / "two.safetensors");
          }),
      shards(
          "a shard that links to itself", [](Shards&) {},
          {"open file: F/two.safetensors: Too many levels of symbolic links"},
          [](const fs::path& folder) {
            fs::remove(folder / "two.safetensors");
            fs::create_symlink("two.safetensors", folder / "two.safetensors");
          }),
      shards(
          "a shard that links to nothing", [](Shards&) {},
          {index + "expected 2 shards, found 1 missing: two.safetensors"},
          [](const fs::path& folder) {
            fs::remove(folder / "two.safetensors");
            fs::create_symlink("nowhere", folder / "two.safetensors");
          }),
      shards(
          "a shard that links out of the folder", [](Shards&) {},
          {"open file: F/two.safetensors: expected a file of this folder, found a link to ",
           "(copy the file, or name the folder that holds it)"},
          [](const fs::path& folder) {
            fs::rename(folder / "two.safetensors", folder.parent_path() / "two.safetensors");
            fs::create_symlink("../two.safetensors", folder / "two.safetensors");
          }),
  };
  fixtures.insert(fixtures.end(), more.begin(), more.end());
  return fixtures;
}

}  // namespace proa::hostile
