// main() for a fuzz target without libFuzzer: replays the files (or folders of files) that it is given, then runs
// mutations of them for ten seconds.
//   <reader>_fuzz [-dict=FILE] FILE_OR_FOLDER...
// Always the same mutations in the same order; PROA_FUZZ_SEED gives others, PROA_FUZZ_SECONDS another time. A failure
// of the target ends the program, after the bytes it was given have been written to crash-<target>.bin.
#include <algorithm>
#include <chrono>
#include <csignal>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <random>
#include <string>
#include <vector>

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size);

namespace {

using Bytes = std::vector<uint8_t>;
constexpr size_t kMaxBytes = 1 << 14;  // larger seeds are replayed, not mutated

Bytes current;           // for the handler
std::string crash_file;  // likewise

void save_current() {
  if (std::FILE* file = std::fopen(crash_file.c_str(), "wb")) {
    std::fwrite(current.data(), 1, current.size(), file);
    std::fclose(file);
  }
  std::fprintf(stderr, "the input is in %s, %zu bytes\n", crash_file.c_str(), current.size());
}

void on_signal(int signal) {
  std::fprintf(stderr, "signal %d; ", signal);
  save_current();
  std::_Exit(1);
}

void run(const Bytes& input) {
  current = input;
  LLVMFuzzerTestOneInput(current.data(), current.size());
}

// Lines "text" of a libFuzzer dictionary, with \xNN, \\ and \".
std::vector<Bytes> read_dictionary(const std::string& path) {
  std::ifstream file(path);
  if (!file) {
    std::fprintf(stderr, "cannot read %s\n", path.c_str());
    std::exit(2);
  }
  std::vector<Bytes> words;
  for (std::string line; std::getline(file, line);) {
    const size_t begin = line.find('"'), end = line.rfind('"');
    if (line.starts_with('#') || begin == end) continue;
    Bytes word;
    for (size_t i = begin + 1; i < end; ++i) {
      if (line[i] != '\\') {
        word.push_back(static_cast<uint8_t>(line[i]));
      } else if (line[++i] == 'x') {
        word.push_back(static_cast<uint8_t>(std::stoi(line.substr(i + 1, 2), nullptr, 16)));
        i += 2;
      } else {
        word.push_back(static_cast<uint8_t>(line[i]));
      }
    }
    words.push_back(std::move(word));
  }
  return words;
}

class Mutator {
 public:
  Mutator(const std::vector<Bytes>& seeds, const std::vector<Bytes>& words, uint64_t seed)
      : seeds_(seeds), words_(words), random_(seed) {}

  // A seed after one to four changes: bits, bytes that matter in headers and JSON, numbers of 32 and 64 bits and of
  // decimal digits, words of the dictionary, cuts, copies, pieces of another seed. Half of them near the front.
  Bytes next() {
    Bytes bytes = seeds_[below(seeds_.size())];
    for (size_t n = 1 + below(4); n > 0; --n) change(bytes);
    return bytes;
  }

 private:
  size_t below(size_t end) { return end == 0 ? 0 : random_() % end; }

  Bytes piece(const Bytes& bytes) {
    const auto begin = bytes.begin() + static_cast<ptrdiff_t>(below(bytes.size()));
    return {begin, begin + static_cast<ptrdiff_t>(below(std::min<size_t>(64, bytes.end() - begin + 1)))};
  }

  void insert(Bytes& bytes, size_t at, const Bytes& what) {
    if (bytes.size() + what.size() > kMaxBytes) return;
    bytes.insert(bytes.begin() + static_cast<ptrdiff_t>(at), what.begin(), what.end());
  }
  void replace(Bytes& bytes, size_t at, size_t count, const Bytes& what) {
    const auto begin = bytes.begin() + static_cast<ptrdiff_t>(at);
    bytes.erase(begin, begin + static_cast<ptrdiff_t>(std::min(count, bytes.size() - at)));
    insert(bytes, at, what);
  }

  void change(Bytes& bytes) {
    static constexpr uint64_t kNumbers[] = {0,
                                            1,
                                            0x7f,
                                            0xff,
                                            0xffff,
                                            0x7fffffff,
                                            0x80000000,
                                            0xffffffff,
                                            1ull << 32,
                                            1ull << 62,
                                            0x7fffffffffffffff,
                                            0xffffffffffffffff};
    const size_t at = below(below(2) ? bytes.size() : std::min<size_t>(bytes.size(), 512));
    const uint64_t number = kNumbers[below(std::size(kNumbers))] + below(3) - 1;
    switch (below(10)) {
      case 0:
        if (at < bytes.size()) bytes[at] ^= static_cast<uint8_t>(1u << below(8));
        break;
      case 1:
        if (at < bytes.size()) bytes[at] = static_cast<uint8_t>(random_());
        break;
      case 2:
        if (at < bytes.size()) bytes[at] = static_cast<uint8_t>("\"{}[],:0-9eE\\\x00\xff"[below(15)]);
        break;
      case 3:
        for (size_t i = 0, width = below(2) ? 4 : 8; i < width && at + i < bytes.size(); ++i) {
          bytes[at + i] = static_cast<uint8_t>(number >> (8 * i));
        }
        break;
      case 4: {
        const std::string digits = std::to_string(below(2) ? number : below(300));
        size_t begin = at;
        while (begin < bytes.size() && (bytes[begin] < '0' || bytes[begin] > '9')) ++begin;
        size_t end = begin;
        while (end < bytes.size() && bytes[end] >= '0' && bytes[end] <= '9') ++end;
        replace(bytes, begin, end - begin, Bytes(digits.begin(), digits.end()));
        break;
      }
      case 5:
        bytes.resize(at);
        break;
      case 6:
        insert(bytes, below(bytes.size() + 1), piece(bytes));
        break;
      case 7:
        insert(bytes, at, piece(seeds_[below(seeds_.size())]));
        break;
      case 8:
        replace(bytes, at, below(64), {});
        break;
      case 9:
        if (!words_.empty()) replace(bytes, at, below(2) * below(16), words_[below(words_.size())]);
        break;
    }
  }

  const std::vector<Bytes>& seeds_;
  const std::vector<Bytes>& words_;
  std::mt19937_64 random_;
};

}  // namespace

#if defined(__SANITIZE_ADDRESS__)
extern "C" void __sanitizer_set_death_callback(void (*callback)());
#endif

int main(int argc, char** argv) {
  std::vector<Bytes> seeds, words;
  std::vector<std::filesystem::path> paths;
  for (int i = 1; i < argc; ++i) {
    const std::string argument = argv[i];
    if (argument.starts_with("-dict=")) {
      words = read_dictionary(argument.substr(6));
    } else if (std::filesystem::is_directory(argument)) {
      const std::filesystem::directory_iterator folder(argument);
      for (const auto& entry : folder) paths.push_back(entry.path());
    } else {
      paths.emplace_back(argument);
    }
  }
  std::sort(paths.begin(), paths.end());  // folders come in any order
  for (const auto& path : paths) {
    std::ifstream file(path, std::ios::binary);
    if (!file) {
      std::fprintf(stderr, "cannot read %s\n", path.c_str());
      return 2;
    }
    seeds.emplace_back(std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>());
  }
  crash_file = "crash-" + std::filesystem::path(argv[0]).filename().string() + ".bin";
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_set_death_callback(save_current);
#else
  for (int signal : {SIGSEGV, SIGFPE, SIGILL, SIGBUS}) std::signal(signal, on_signal);
#endif
  std::signal(SIGABRT, on_signal);

  run({});
  for (const Bytes& seed : seeds) run(seed);
  std::erase_if(seeds, [](const Bytes& seed) { return seed.empty() || seed.size() > kMaxBytes; });

  const char* seconds = std::getenv("PROA_FUZZ_SECONDS");
  const char* number = std::getenv("PROA_FUZZ_SEED");
  const uint64_t seed = number ? std::strtoull(number, nullptr, 10) : 1;
  const std::chrono::duration<double> limit(seconds ? std::atof(seconds) : 10);
  const auto start = std::chrono::steady_clock::now();
  Mutator mutator(seeds, words, seed);
  size_t inputs = 0;
  while (!seeds.empty() && std::chrono::steady_clock::now() - start < limit) {
    run(mutator.next());
    ++inputs;
  }
  std::printf("seed %llu: %zu files, %zu words, %zu mutations\n", static_cast<unsigned long long>(seed), paths.size(),
              words.size(), inputs);
  return 0;
}
