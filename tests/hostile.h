// Hostile files: a good checkpoint, one change, and what the error must say. Each is opened in a process of its own, as
// a user would open it, and may take no more memory than its files and 64 MB.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <map>
#include <string>
#include <string_view>
#include <vector>

namespace proa::hostile {

namespace fs = std::filesystem;

using Files = std::map<std::string, std::string>;  // name -> bytes

// Whether the child gives up being root, who may read anything.
enum class Reader { as_it_is, nobody };

struct Fixture {
  std::string what;
  std::function<void(Files&)> change = {};
  std::vector<std::string> said;                      // parts of the message; F is the folder
  std::function<void(const fs::path&)> arrange = {};  // done to the folder after the files were written
  std::string open = "";                              // the file to open; the folder itself without one
  Reader reader = Reader::as_it_is;
};

// A Hugging Face folder and a GGUF file of the same tiny Llama, with tokenizer and chat template.
Files good_folder();
Files good_gguf();  // "model.gguf"

// What is wrong with a model, its tokenizer or its template; "no error" when all three open and serve once.
std::string open_all(const std::string& path);

// A child writes nothing, and reports what open_all says and how much resident memory it took at its peak, beyond what
// it began with; negative where the system does not tell.
struct Opened {
  std::string message;
  int64_t peak_bytes = -1;
};
Opened open_in_child(const std::string& path, Reader reader = Reader::as_it_is);

// Checks that the good files open, then every fixture: its message, and its memory.
void expect_all(const Files& good, const std::string& open, const std::vector<Fixture>& fixtures);

// Tables, one per kind of file.
std::vector<Fixture> gguf_fixtures();
std::vector<Fixture> safetensors_fixtures();
std::vector<Fixture> folder_fixtures();
std::vector<Fixture> tokenizer_fixtures();       // tokenizer.json
std::vector<Fixture> gguf_tokenizer_fixtures();  // the vocabulary of a GGUF file
std::vector<Fixture> template_fixtures();

// Little pieces for builders.
template <typename T>
std::string raw(T value) {
  return std::string(reinterpret_cast<const char*>(&value), sizeof value);
}
std::string repeat(std::string_view text, size_t count);
// Replaces the first `from`, which must be there.
void replace(std::string& text, std::string_view from, std::string_view to);

}  // namespace proa::hostile
