// How fast a tokenizer loads and encodes, one core, and what ids it gives.
//
//   tokenizer_bench MODEL TEXTS... [--ids FOLDER]
//
// MODEL: tokenizer.json, a GGUF file, or a folder with either. TEXTS: files of records (u32 length, bytes), as
// tools/goldens/tokenizer_texts.py writes them; control tokens are matched, BOS is left out. Prints a line per file:
// name, texts, bytes, tokens, seconds of processor time, MB/s (the best of three passes). With --ids, FOLDER/<name>.ids
// holds per text u32 count and the ids as i32, and what is decoded id by id must be all pieces together, but for spaces
// in front. tools/goldens/tokenizer_at_scale.py compares the ids with Hugging Face `tokenizers`.
#include <algorithm>
#include <cstdio>
#include <cstring>
#include <ctime>
#include <filesystem>
#include <fstream>
#include <sstream>
#include <string>
#include <vector>

#include "tokenizer/tokenizer.h"
#include "tokenizer/utf8.h"

namespace {

// Of this thread's work: others on the machine do not count.
double seconds() {
  timespec now{};
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
  return static_cast<double>(now.tv_sec) + static_cast<double>(now.tv_nsec) * 1e-9;
}

std::vector<std::string> read_texts(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  std::vector<std::string> texts;
  for (uint32_t size; file.read(reinterpret_cast<char*>(&size), sizeof size);) {
    std::string text(size, '\0');
    if (!file.read(text.data(), size)) break;
    texts.push_back(std::move(text));
  }
  return texts;
}

}  // namespace

int main(int argc, char** argv) {
  std::vector<std::string> files;
  std::string ids_folder;
  for (int i = 2; i < argc; ++i) {
    if (std::strcmp(argv[i], "--ids") == 0 && i + 1 < argc) {
      ids_folder = argv[++i];
    } else {
      files.push_back(argv[i]);
    }
  }
  if (files.empty()) {
    std::fprintf(stderr, "usage: tokenizer_bench MODEL TEXTS... [--ids FOLDER]\n");
    return 2;
  }
  double start = seconds();
  auto tokenizer = proa::Tokenizer::open_path(argv[1]);
  if (!tokenizer.ok()) {
    std::fprintf(stderr, "tokenizer_bench: %s\n", tokenizer.error().message().c_str());
    return 1;
  }
  std::printf("load %.3f s, %d entries\n", seconds() - start, tokenizer->vocab_size());

  for (const std::string& path : files) {
    const std::vector<std::string> texts = read_texts(path);
    const std::string name = std::filesystem::path(path).stem();
    size_t bytes = 0, tokens = 0;
    for (const std::string& text : texts) bytes += text.size();
    double best = 1e9;
    for (int pass = 0; pass < 3; ++pass) {
      start = seconds();
      tokens = 0;
      for (const std::string& text : texts) tokens += tokenizer->encode(text, {.parse_special = true}).size();
      best = std::min(best, seconds() - start);
    }
    std::printf("%s %zu %zu %zu %.6f %.2f\n", name.c_str(), texts.size(), bytes, tokens, best,
                static_cast<double>(bytes) / best / 1e6);
    if (ids_folder.empty()) continue;
    std::ofstream out(ids_folder + "/" + name + ".ids", std::ios::binary);
    for (const std::string& text : texts) {
      const std::vector<int32_t> ids = tokenizer->encode(text, {.parse_special = true});
      const auto count = static_cast<uint32_t>(ids.size());
      out.write(reinterpret_cast<const char*>(&count), sizeof count);
      out.write(reinterpret_cast<const char*>(ids.data()), static_cast<std::streamsize>(ids.size() * sizeof(int32_t)));
      proa::Detokenizer detokenizer(*tokenizer);
      std::string pushed, pieces, valid;
      for (const int32_t id : ids) {
        pushed += detokenizer.push(id);
        pieces += tokenizer->piece(id);
      }
      pushed += detokenizer.finish();
      proa::append_replacing_invalid(valid, pieces);
      if (valid.ends_with(pushed) && valid.find_first_not_of(' ') >= valid.size() - pushed.size()) continue;
      std::fprintf(stderr, "tokenizer_bench: %s: id by id a text is decoded otherwise than at once\n", name.c_str());
      return 1;
    }
  }
}
