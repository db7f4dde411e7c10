// main() for a fuzz target without libFuzzer: replays the files (or folders of files) that it is given, then runs
// mutations of them. Always the same ones, until two seconds or 200,000 inputs are over; a failure of the target ends
// the program, after the bytes it was given have been written to crash.bin.
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
constexpr size_t kMaxBytes = 1 << 20;

Bytes current;  // for the handler

void save_current(int signal) {
  if (std::FILE* file = std::fopen("crash.bin", "wb")) {
    std::fwrite(current.data(), 1, current.size(), file);
    std::fclose(file);
  }
  std::fprintf(stderr, "signal %d; the input is in crash.bin, %zu bytes\n", signal, current.size());
  std::_Exit(1);
}

void run(const Bytes& input) {
  current = input;
  LLVMFuzzerTestOneInput(current.data(), current.size());
}

// One to four changes: bits, bytes that matter in binary headers, numbers of 32 and 64 bits, cuts, copies, swaps of two
// pieces. Half of them near the front, where headers are.
Bytes mutate(Bytes bytes, std::mt19937_64& random) {
  const auto below = [&](size_t end) { return end == 0 ? 0 : random() % end; };
  for (size_t n = 1 + below(4); n > 0; --n) {
    const size_t reach = below(2) ? bytes.size() : std::min<size_t>(bytes.size(), 512);
    const size_t at = below(reach);
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
    switch (below(8)) {
      case 0:
        if (at < bytes.size()) bytes[at] ^= static_cast<uint8_t>(1u << below(8));
        break;
      case 1:
        if (at < bytes.size()) bytes[at] = static_cast<uint8_t>(random());
        break;
      case 2:
        if (at < bytes.size()) bytes[at] = static_cast<uint8_t>("\"{}[],:0-9eE\\\x00\xff"[below(15)]);
        break;
      case 3:
      case 4: {
        const uint64_t number = kNumbers[below(std::size(kNumbers))] + below(3) - 1;
        for (size_t i = 0; i < (below(2) ? 4 : 8) && at + i < bytes.size(); ++i) {
          bytes[at + i] = static_cast<uint8_t>(number >> (8 * i));
        }
        break;
      }
      case 5:
        bytes.resize(at);
        break;
      case 6:
        if (bytes.size() < kMaxBytes) {
          const Bytes piece(
              bytes.begin() + static_cast<ptrdiff_t>(at),
              bytes.begin() + static_cast<ptrdiff_t>(at + below(std::min<size_t>(64, bytes.size() - at))));
          bytes.insert(bytes.begin() + static_cast<ptrdiff_t>(below(bytes.size() + 1)), piece.begin(), piece.end());
        }
        break;
      case 7: {
        const size_t count = below(std::min<size_t>(64, bytes.size() - at));
        bytes.erase(bytes.begin() + static_cast<ptrdiff_t>(at), bytes.begin() + static_cast<ptrdiff_t>(at + count));
        break;
      }
    }
  }
  return bytes;
}

}  // namespace

int main(int argc, char** argv) {
  std::vector<Bytes> seeds = {{}};
  const auto read = [&](const std::filesystem::path& path) {
    std::ifstream file(path, std::ios::binary);
    if (!file) {
      std::fprintf(stderr, "cannot read %s\n", path.c_str());
      std::exit(2);
    }
    seeds.emplace_back(std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>());
  };
  for (int i = 1; i < argc; ++i) {
    if (!std::filesystem::is_directory(argv[i])) {
      read(argv[i]);
      continue;
    }
    for (const auto& entry : std::filesystem::directory_iterator(argv[i])) read(entry.path());
  }
  for (int signal : {SIGSEGV, SIGABRT, SIGFPE, SIGILL, SIGBUS}) std::signal(signal, save_current);

  for (const Bytes& seed : seeds) run(seed);
  std::mt19937_64 random(1);
  const auto start = std::chrono::steady_clock::now();
  int inputs = 0;
  while (inputs < 200000 && std::chrono::steady_clock::now() - start < std::chrono::seconds(2)) {
    run(mutate(seeds[seeds.size() > 1 ? 1 + random() % (seeds.size() - 1) : 0], random));
    ++inputs;
  }
  std::printf("%zu seeds, %d mutations\n", seeds.size(), inputs);
  return 0;
}
