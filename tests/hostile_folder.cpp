// Folders with one thing wrong: config.json and its companions, and things that are no plain files.
#include <sys/stat.h>
#include <unistd.h>

#include <functional>
#include <utility>

#include "hostile.h"

namespace proa::hostile {
namespace {

Fixture set(std::string what, std::string file, std::string text, std::vector<std::string> said) {
  return {std::move(what), [=](Files& files) { files[file] = text; }, std::move(said)};
}
// A piece of config.json replaced.
Fixture config(std::string what, std::string from, std::string to, std::vector<std::string> said) {
  return {std::move(what), [=](Files& files) { replace(files["config.json"], from, to); }, std::move(said)};
}
// Members put into config.json behind its own.
Fixture member(std::string what, std::string text, std::vector<std::string> said) {
  return config(std::move(what), "\"vocab_size\":8", "\"vocab_size\":8," + text, std::move(said));
}
Fixture without(std::string what, std::string file, std::vector<std::string> said,
                std::function<void(const fs::path&)> arrange = {}) {
  return {std::move(what), [=](Files& files) { files.erase(file); }, std::move(said), std::move(arrange)};
}

std::string many_members(size_t count) {
  std::string text = "{";
  for (size_t i = 0; i < count; ++i) text += "\"" + std::to_string(i) + "\":0,";
  return text + "\"x\":0}";
}

}  // namespace

std::vector<Fixture> folder_fixtures() {
  const std::string hidden = "\"hidden_size\":16";
  const std::string json = "read JSON: F/config.json: ", field = "F/config.json: ";
  return {
      // config.json as JSON
      set("nothing", "config.json", "", {json + "parse error at line 1, column 1"}),
      set("a list", "config.json", "[]", {json + "expected an object, found array"}),
      set("a string", "config.json", "\"x\"", {json + "expected an object, found string"}),
      set("cut short", "config.json", R"({"architectures":["Llama)", {json + "parse error at line 1, column 25"}),
      set("broken UTF-8", "config.json", "{\"a\":\"\xc0\xaf\"}", {json, "ill-formed UTF-8 byte"}),
      set("a lone surrogate", "config.json", R"({"a":"\udc00"})", {json, "surrogate"}),
      set("a comment", "config.json", "// x\n{}", {json + "parse error at line 1, column 1"}),
      set("a byte order mark alone", "config.json", "\xef\xbb\xbf", {json + "parse error"}),
      set("100,000 brackets", "config.json", repeat("[", 100'000),
          {"F/config.json: offset 128: expected at most 128 levels of nesting, found more"}),
      set("100,000 objects", "config.json", repeat("{\"a\":", 100'000),
          {"expected at most 128 levels of nesting, found more"}),
      set("a string of 5 MB", "config.json", "{\"a\":\"" + std::string(5 << 20, 'x') + "\"}",
          {"F/config.json: offset 5: expected a string of at most 4194304 bytes, found more"}),
      set("more than 16 MB", "config.json", std::string((16 << 20) + 1, ' '),
          {"read file: F/config.json: expected at most 16777216 bytes, found 16777217"}),
      set("16 MB of numbers", "config.json", "{\"a\":[" + repeat("1,", (8 << 20) - 16) + "1]}",
          {json + "expected fewer values in a text of this size, found more"}),
      set("16 MB of lists", "config.json", "{\"a\":[" + repeat("[],", (5 << 20) - 16) + "1]}",
          {json + "expected fewer values in a text of this size, found more"}),
      set("a million members", "config.json", many_members(1'000'000),
          {json + "expected fewer values in a text of this size, found more"}),
      set("200,000 members", "config.json", many_members(200'000), {field + "architectures"}),
      set("a number beyond doubles", "config.json", R"({"a":1e999})", {json + "number overflow"}),
      config("a field twice", hidden, hidden + "," + hidden,
             {json + "expected each field once, found hidden_size twice"}),
      config("an object of one key twice", hidden, hidden + R"(,"x":{"k\u0000":1,"k\u0000":2})",
             {json + "expected each field once, found k\\x00 twice"}),
      // its fields
      config("a number as text", hidden, R"("hidden_size":"16")",
             {field + "hidden_size: expected an integer of at least 1, found \"16\""}),
      config("NaN", hidden, R"("hidden_size":NaN)",
             {field + "hidden_size: expected an integer of at least 1, found \"NaN\""}),
      config("Infinity", hidden, R"("hidden_size":Infinity)",
             {field + "hidden_size: expected an integer of at least 1, found \"Infinity\""}),
      config("a fraction", hidden, R"("hidden_size":16.5)",
             {field + "hidden_size: expected an integer of at least 1, found 16.5"}),
      config("zero", hidden, R"("hidden_size":0)", {field + "hidden_size: expected an integer of at least 1, found 0"}),
      config("negative", hidden, R"("hidden_size":-16)",
             {field + "hidden_size: expected an integer of at least 1, found -16"}),
      config("2^31", hidden, R"("hidden_size":2147483648)",
             {field + "hidden_size: expected an integer of at least 1, found 2147483648"}),
      config("2^64", hidden, R"("hidden_size":18446744073709551616)",
             {field + "hidden_size: expected an integer of at least 1, found 1.8446744073709552e+19"}),
      config("a list for a number", hidden, R"("hidden_size":[16])",
             {field + "hidden_size: expected an integer of at least 1, found an array of 1"}),
      config("an object for a number", hidden, R"("hidden_size":{})",
             {field + "hidden_size: expected an integer of at least 1, found an object"}),
      config("null", hidden, R"("hidden_size":null)",
             {field + "hidden_size: expected an integer of at least 1, found no such field"}),
      config("a width that no tensor has", hidden, R"("hidden_size":32)",
             {"model.embed_tokens.weight: expected shape [8, 32], found [8, 16]"}),
      config("the largest width", hidden, R"("hidden_size":2147483647)",
             {"hidden_size: expected 1 to 67108864, found 2147483647"}),
      config("heads that do not divide", R"("num_key_value_heads":2)", R"("num_key_value_heads":3)",
             {"num_key_value_heads: expected a divisor of 4, found 3"}),
      config("more heads than width", R"("num_attention_heads":4)", R"("num_attention_heads":4000)",
             {"head_dim: expected 1 to 4096, found 0"}),
      config("a million layers", R"("num_hidden_layers":1)", R"("num_hidden_layers":1000000)",
             {field + "num_hidden_layers: expected an integer from 1 to 1024, found 1000000"}),
      config("1024 layers of which one is there", R"("num_hidden_layers":1)", R"("num_hidden_layers":1024)",
             {"9207 differences", "... and 9187 more"}),
      config("an unknown architecture", "LlamaForCausalLM", R"(Mamba\u001b[31m\u202eForCausalLM)",
             {"architectures: expected one of ", "Mamba\\x1b[31m\\xe2\\x80\\xaeForCausalLM"}),
      config("no architecture", R"(["LlamaForCausalLM"])", "[]", {field + "architectures: expected one name, found 0"}),
      config("an architecture that is a number", R"(["LlamaForCausalLM"])", "[7]",
             {field + "architectures[0]: expected a string, found 7"}),
      member("an activation with control characters", R"("hidden_act":"si\u0007lu")",
             {field + "hidden_act: expected silu, found si\\x07lu"}),
      member("an activation of 1 MB", "\"hidden_act\":\"" + std::string(1 << 20, 'x') + "\"",
             {field + "hidden_act: expected silu, found xxx"}),
      member("a bias that is text", R"("mlp_bias":"no")", {field + "mlp_bias: expected true or false, found \"no\""}),
      member("an epsilon of NaN", R"("rms_norm_eps":NaN)",
             {field + "rms_norm_eps: expected a number from 0.0 to 1.0, found \"NaN\""}),
      member("an epsilon of 1e300", R"("rms_norm_eps":1e300)",
             {field + "rms_norm_eps: expected a number from 0.0 to 1.0, found 1e+300"}),
      member("a theta of -Infinity", R"("rope_theta":-Infinity)",
             {field + "rope_theta: expected a number of at least 1.0, found \"-Infinity\""}),
      member("a scaling that is a list", R"("rope_scaling":[])",
             {field + "rope_scaling: expected an object, found an array of 0"}),
      member("a scaling of no kind", R"("rope_scaling":{"rope_type":"\u001b"})",
             {"rope_type: expected default, linear or llama3, found \\x1b"}),
      // quantisation
      member("an unknown quantisation", R"("quantization_config":{"quant_method":"awq\u0000"})",
             {"F/config.json: quantization_config: quant_method: expected modelopt, found \"awq\\x00\""}),
      member("an unknown algorithm", R"("quantization_config":{"quant_algo":"W1A1"})",
             {"quantization_config: quant_algo: expected one of FP8", "found \"W1A1\""}),
      member("a quantisation that is a string", R"("quantization_config":"fp8")",
             {field + "quantization_config: expected an object, found \"fp8\""}),
      member(
          "FP8 without a single FP8 tensor",
          R"("quantization_config":{"quant_algo":"MIXED_PRECISION","quantized_layers":{"layers.0.mlp.up_proj":{"quant_algo":"FP8"}}})",
          {"model.layers.0.mlp.up_proj.weight: expected FP8 after F/config.json: quantization_config, found F32"}),
      set("hf_quant_config.json of nothing", "hf_quant_config.json", "",
          {"read JSON: F/hf_quant_config.json: parse error at line 1, column 1"}),
      set("hf_quant_config.json that is a list", "hf_quant_config.json", "[]",
          {"F/hf_quant_config.json: expected an object, found array"}),
      set("hf_quant_config.json without its object", "hf_quant_config.json", "{}",
          {"F/hf_quant_config.json: quantization: expected an object, found no such field"}),
      set("a group of 7", "hf_quant_config.json", R"({"quantization":{"quant_algo":"NVFP4","group_size":7}})",
          {"F/hf_quant_config.json: quantization: group_size: expected 16, found 7"}),
      set("a layer that is a number", "hf_quant_config.json",
          R"({"quantization":{"quant_algo":"MIXED_PRECISION","quantized_layers":{"a\u001b":3}}})",
          {"quantized_layers: a\\x1b: expected an object, found number"}),
      set("excluded modules that are numbers", "hf_quant_config.json",
          R"({"quantization":{"quant_algo":"FP8","exclude_modules":[1]}})",
          {"exclude_modules[0]: expected a string, found 1"}),
      set("10,000 patterns", "hf_quant_config.json",
          R"({"quantization":{"quant_algo":"FP8","exclude_modules":[)" + repeat("\"*a\",", 10'000) + "\"*\"]}}",
          {"exclude_modules: expected at most 4096 "}),
      // generation_config.json
      set("generation_config.json of nothing", "generation_config.json", "",
          {"read JSON: F/generation_config.json: parse error at line 1, column 1"}),
      set("generation_config.json that is a number", "generation_config.json", "3",
          {"read JSON: F/generation_config.json: expected an object, found number"}),
      set("generation_config.json nested deeply", "generation_config.json", repeat("[", 1000),
          {"F/generation_config.json: offset 128: expected at most 128 levels of nesting"}),
      // what lies in the folder
      without("no config.json", "config.json", {"open checkpoint: F: expected a config.json, found none"}),
      without("no weights", "model.safetensors",
              {"open checkpoint: F: expected model.safetensors or model.safetensors.index.json, found neither"}),
      without("no tokenizer", "tokenizer.json", {"open file: F/tokenizer.json: No such file or directory"}),
      without("config.json a folder", "config.json",
              {"open file: F/config.json: expected a regular file, found a folder"},
              [](const fs::path& folder) { fs::create_directory(folder / "config.json"); }),
      without("config.json a named pipe", "config.json",
              {"open file: F/config.json: expected a regular file, found a special file"},
              [](const fs::path& folder) { mkfifo((folder / "config.json").c_str(), 0600); }),
      without("config.json a device", "config.json",
              {"open file: F/config.json: expected a file of this folder, found a link to /dev/zero"},
              [](const fs::path& folder) { fs::create_symlink("/dev/zero", folder / "config.json"); }),
      without("config.json a link to a file of the system", "config.json",
              {"open file: F/config.json: expected a file of this folder, found a link to /etc/passwd"},
              [](const fs::path& folder) { fs::create_symlink("/etc/passwd", folder / "config.json"); }),
      without("config.json a link to itself", "config.json",
              {"open file: F/config.json: Too many levels of symbolic links"},
              [](const fs::path& folder) { fs::create_symlink("config.json", folder / "config.json"); }),
      without("config.json a link to nothing", "config.json",
              {"open checkpoint: F: expected a config.json, found none"},
              [](const fs::path& folder) { fs::create_symlink("gone.json", folder / "config.json"); }),
      without("weights a folder", "model.safetensors",
              {"open file: F/model.safetensors: expected a regular file, found a folder"},
              [](const fs::path& folder) { fs::create_directory(folder / "model.safetensors"); }),
      without("weights a named pipe", "model.safetensors",
              {"open file: F/model.safetensors: expected a regular file, found a special file"},
              [](const fs::path& folder) { mkfifo((folder / "model.safetensors").c_str(), 0600); }),
      without("weights a link out of the folder", "model.safetensors",
              {"open file: F/model.safetensors: expected a file of this folder, found a link to /dev/null (copy the "
               "file, or name the folder that holds it)"},
              [](const fs::path& folder) { fs::create_symlink("/dev/null", folder / "model.safetensors"); }),
      without("the tokenizer a named pipe", "tokenizer.json",
              {"open file: F/tokenizer.json: expected a regular file, found a special file"},
              [](const fs::path& folder) { mkfifo((folder / "tokenizer.json").c_str(), 0600); }),
      without("the template a link out of the folder", "chat_template.jinja",
              {"open file: F/chat_template.jinja: expected a file of this folder, found a link to "},
              [](const fs::path& folder) { fs::create_symlink("/etc/hostname", folder / "chat_template.jinja"); }),
      {"a snapshot whose link leaves the cache",
       {},
       {"open file: F/snapshots/1/config.json: expected a file of this folder, found a link to "},
       [](const fs::path& folder) {
         fs::create_directories(folder / "snapshots/1");
         fs::create_directories(folder / "other");
         fs::copy(folder / "config.json", folder / "other/config.json");
         fs::create_symlink("../../other/config.json", folder / "snapshots/1/config.json");
       },
       "snapshots/1"},
      {"a snapshot of the cache whose blob is no JSON",
       {},
       {"read JSON: F/snapshots/1/config.json: parse error at line 1, column 1"},
       [](const fs::path& folder) {
         fs::create_directories(folder / "snapshots/1");
         fs::create_directories(folder / "blobs");
         fs::copy(folder / "chat_template.jinja", folder / "blobs/abc");
         fs::resize_file(folder / "blobs/abc", 0);
         fs::create_symlink("../../blobs/abc", folder / "snapshots/1/config.json");
       },
       "snapshots/1"},
      {"a file of another kind",
       {},
       {"open checkpoint: F/chat_template.jinja: expected a GGUF file, a packed checkpoint, or a folder with "
        "config.json and safetensors "
        "files, found a file of another kind"},
       {},
       "chat_template.jinja"},
      {"one shard named",
       {},
       {"found a file of another kind (name the folder that holds it)"},
       {},
       "model.safetensors"},
      {"nothing there", {}, {"open file: F/none: No such file or directory"}, {}, "none"},
      {"a link to itself",
       {},
       {"F/loop: Too many levels of symbolic links"},
       [](const fs::path& folder) { fs::create_symlink("loop", folder / "loop"); },
       "loop"},
      {"a named pipe",
       {},
       {"open file: F/pipe: expected a regular file, found a special file"},
       [](const fs::path& folder) { mkfifo((folder / "pipe").c_str(), 0600); },
       "pipe"},
      {"an empty file",
       {},
       {"open file: F/empty.gguf: expected a file with content, found an empty file"},
       [](const fs::path& folder) {
         fs::copy(folder / "config.json", folder / "empty.gguf"), fs::resize_file(folder / "empty.gguf", 0);
       },
       "empty.gguf"},
      {"weights that may not be read",
       {},
       {"open file: F/model.safetensors: Permission denied"},
       [](const fs::path& folder) { fs::permissions(folder / "model.safetensors", fs::perms::none); },
       "",
       Reader::nobody},
      {"a folder that may not be searched",
       {},
       {"F/config.json: Permission denied"},
       [](const fs::path& folder) { fs::permissions(folder, fs::perms::none); },
       "",
       Reader::nobody},
  };
}

}  // namespace proa::hostile
