// Parts of one GGUF model, PREFIX-00001-of-0000N.gguf, as llama-gguf-split and the gguf package write them: the first
// part holds the metadata, every part its own tensors, `split.no` (from 0) and `split.count`.
#include <algorithm>
#include <array>
#include <charconv>
#include <cstdio>
#include <filesystem>
#include <utility>

#include "checkpoint/gguf.h"
#include "checkpoint/printable.h"

namespace proa {
namespace {

constexpr uint32_t kMaxParts = 99999;  // five digits
constexpr size_t kMaxListed = 20;
constexpr std::string_view kSuffix = "-00001-of-00001.gguf";

std::optional<uint32_t> five_digits(std::string_view text) {
  uint32_t value = 0;
  const auto [end, code] = std::from_chars(text.data(), text.data() + 5, value);
  if (code != std::errc() || end != text.data() + 5) return std::nullopt;
  return value;
}

}  // namespace

std::optional<GgufPartName> parse_gguf_part_name(std::string_view path) {
  if (path.size() <= kSuffix.size()) return std::nullopt;
  const std::string_view suffix = path.substr(path.size() - kSuffix.size());
  const auto number = five_digits(suffix.substr(1));
  const auto count = five_digits(suffix.substr(10));
  if (suffix[0] != '-' || suffix.substr(6, 4) != "-of-" || suffix.substr(15) != ".gguf" || !number || !count ||
      *number < 1 || *number > *count) {
    return std::nullopt;
  }
  return GgufPartName{std::string(path.substr(0, path.size() - kSuffix.size())), *number, *count};
}

std::string GgufPartName::path(uint32_t part) const {
  std::array<char, 32> suffix{};
  std::snprintf(suffix.data(), suffix.size(), "-%05u-of-%05u.gguf", part, count);
  return prefix + suffix.data();
}

Result<void> Gguf::join_parts(uint32_t count) {
  const auto error = [&](std::string expected, std::string actual, std::string hint = "") {
    return Error{.doing = "read split GGUF",
                 .where = path_,
                 .expected = std::move(expected),
                 .actual = std::move(actual),
                 .hint = std::move(hint)};
  };
  if (count > kMaxParts) {
    return error("a split.count of at most " + std::to_string(kMaxParts), std::to_string(count));
  }
  PROA_ASSIGN(const uint32_t own, u32("split.no"));
  const auto name = parse_gguf_part_name(path_);
  if (own != 0 || (name && name->number != 1)) {
    const std::string first =
        name ? std::filesystem::path(name->path(1)).filename().string() : "the part whose name ends in -00001-of-...";
    return error("the first of " + std::to_string(count) + " parts",
                 own == 0 ? "split.no 0 under another name" : "part " + std::to_string(uint64_t{own} + 1),
                 "give " + printable(first));
  }
  if (!name || name->count != count) {
    std::array<char, 32> suffix{};
    std::snprintf(suffix.data(), suffix.size(), "-00001-of-%05u.gguf", count);
    return error(std::string("a name that ends in ") + suffix.data() + ", as split.count says", "another name");
  }
  PROA_ASSIGN(const uint32_t num_tensors, u32("split.tensors.count"));

  std::string missing;
  size_t num_missing = 0;
  for (uint32_t part = 2; part <= count; ++part) {
    std::error_code code;
    if (std::filesystem::exists(name->path(part), code)) continue;
    if (++num_missing > kMaxListed) continue;
    missing += (num_missing > 1 ? ", " : "") + printable(std::filesystem::path(name->path(part)).filename().string());
  }
  if (num_missing > kMaxListed) missing += " and " + std::to_string(num_missing - kMaxListed) + " more";
  if (num_missing > 0) {
    return error(std::to_string(count) + " parts", std::to_string(num_missing) + " missing: " + missing);
  }

  PROA_ASSIGN(const uint32_t alignment, u32("general.alignment", kDefaultAlignment));
  for (uint32_t number = 2; number <= count; ++number) {
    PROA_ASSIGN(MappedFile file, MappedFile::open(name->path(number)));
    PROA_ASSIGN(Gguf part, parse(file.bytes(), file.path()));
    // Where the data begins depends on it, and a part without the key could mean either.
    PROA_ASSIGN(const uint32_t part_alignment, part.u32("general.alignment", kDefaultAlignment));
    const std::pair<const char*, uint32_t> wanted[] = {{"split.no", number - 1}, {"split.count", count}};
    for (const auto& [key, value] : wanted) {
      PROA_ASSIGN(const uint32_t found, part.u32(key));
      if (found != value) return part.type_error(key, std::to_string(value));
    }
    if (part_alignment != alignment) {
      return part.type_error("general.alignment", std::to_string(alignment) + ", as in the first part");
    }
    for (auto& [tensor, entry] : part.tensors_) {
      const auto [at, is_new] = tensors_.emplace(tensor, std::move(entry));
      if (!is_new) {
        return error("each tensor in one part",
                     printable(tensor) + " in " + at->second.file + " and in " + part.path());
      }
    }
    files_.push_back(std::move(file));
  }
  if (tensors_.size() != num_tensors) {
    return error(std::to_string(num_tensors) + " tensors, as split.tensors.count says",
                 std::to_string(tensors_.size()) + " in all parts");
  }
  return {};
}

}  // namespace proa
