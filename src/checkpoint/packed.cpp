#include "checkpoint/packed.h"

#include <algorithm>
#include <cstring>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <set>

#include "checkpoint/checkpoint.h"
#include "checkpoint/printable.h"
#include "core/checksum.h"
#include "core/mapped_file.h"
#include "core/output_path.h"

namespace proa {
namespace {

namespace fs = std::filesystem;
using nlohmann::ordered_json;

constexpr std::string_view kMagic = "PROAPACK";
constexpr uint32_t kVersion = 1;
constexpr size_t kHead = 16;
constexpr uint32_t kMaxJson = 16u << 20;
constexpr uint64_t kPage = 4096;  // what mappings begin at
constexpr size_t kPiece = 32u << 20;

uint64_t padded(uint64_t size) { return (size + kPage - 1) / kPage * kPage; }

std::string base_name(const std::string& path) {
  fs::path whole(path);
  if (!whole.has_filename()) whole = whole.parent_path();
  return whole.filename().string();
}

struct SourceFile {
  std::string name;
  MappedFile file;
};

// The weights' files and the texts beside them, by name.
Result<std::vector<SourceFile>> source_files(const std::string& source) {
  PROA_ASSIGN(const Checkpoint checkpoint, Checkpoint::open(source));
  if (checkpoint.is_packed()) {
    return Error{"pack", source, "a folder or a GGUF file", "a checkpoint that is packed already", ""};
  }
  std::set<std::string> paths;
  for (const auto& [name, entry] : checkpoint.tensors()) paths.insert(entry.file);
  if (checkpoint.gguf()) {
    if (paths.size() > 1) {
      return Error{"pack", source, "a GGUF file of one part", std::to_string(paths.size()) + " parts",
                   "join them with llama-gguf-split --merge"};
    }
    paths = {source};
  } else {
    std::error_code code;
    for (fs::directory_iterator at(source, code), last; !code && at != last; at.increment(code)) {
      const fs::directory_entry& file = *at;
      const std::string extension = file.path().extension().string();
      std::error_code ignored;
      if (file.is_regular_file(ignored) && file.file_size(ignored) > 0 &&
          (extension == ".json" || extension == ".jinja")) {
        paths.insert(file.path().string());
      }
    }
    if (code) return Error{"list folder", source, "", code.message(), ""};
  }
  std::vector<SourceFile> files;
  for (const std::string& path : paths) {
    PROA_ASSIGN(MappedFile file, MappedFile::open(path));
    files.push_back({fs::path(path).filename().string(), std::move(file)});
  }
  return files;
}

std::string key_of(const std::vector<SourceFile>& files) {
  constexpr size_t kEnds = 1 << 16, kSample = 4096, kSamples = 64;
  Checksum hash;
  for (const auto& [name, file] : files) {
    const auto bytes = file.bytes();
    const uint64_t sizes[] = {name.size(), bytes.size()};
    hash.add(std::as_bytes(std::span(sizes)));
    hash.add(std::as_bytes(std::span(name)));
    if (bytes.size() <= 2 * kEnds + kSamples * kSample) {
      hash.add(bytes);
      continue;
    }
    hash.add(bytes.first(kEnds));
    hash.add(bytes.last(kEnds));
    for (size_t i = 0; i < kSamples; ++i) hash.add(bytes.subspan((bytes.size() - kSample) / kSamples * i, kSample));
  }
  return hex(hash.value());
}

Error bad(const std::string& path, const std::string& place, std::string expected, std::string actual) {
  return {"read packed checkpoint", path + (place.empty() ? "" : ": ") + place, std::move(expected), std::move(actual),
          ""};
}

// Hashes a part in pieces, and hands each on.
Result<uint64_t> hash_pieces(std::span<const std::byte> bytes,
                             const std::function<Result<void>(std::span<const std::byte>)>& use) {
  Checksum hash;
  for (size_t at = 0; at < bytes.size(); at += kPiece) {
    const auto piece = bytes.subspan(at, std::min(kPiece, bytes.size() - at));
    hash.add(piece);
    PROA_TRY(use(piece));
  }
  return hash.value();
}

}  // namespace

bool Packed::has_magic(std::span<const std::byte> bytes) {
  return bytes.size() >= kMagic.size() && std::memcmp(bytes.data(), kMagic.data(), kMagic.size()) == 0;
}

Result<Packed> Packed::parse(std::span<const std::byte> bytes, const std::string& path) {
  if (bytes.size() < kHead || !has_magic(bytes)) return bad(path, "", "magic PROAPACK", "another kind of file");
  uint32_t numbers[2];  // version, length of the JSON
  std::memcpy(numbers, bytes.data() + kMagic.size(), sizeof numbers);
  if (numbers[0] != kVersion) {
    return bad(path, "version", std::to_string(kVersion), std::to_string(numbers[0]));
  }
  if (numbers[1] > kMaxJson || numbers[1] > bytes.size() - kHead) {
    return bad(path, "header", "at most " + std::to_string(std::min<size_t>(kMaxJson, bytes.size() - kHead)) + " bytes",
               std::to_string(numbers[1]));
  }
  PROA_ASSIGN(const auto json,
              parse_json({reinterpret_cast<const char*>(bytes.data()) + kHead, numbers[1]}, path + ": header"));
  const auto text = [](const ordered_json& object, const char* key) -> std::string {
    const auto found = object.is_object() ? object.find(key) : object.end();
    return object.is_object() && found != object.end() && found->is_string() ? found->get<std::string>() : "";
  };
  Packed packed{.layout = text(json, "layout")};
  if (packed.layout != "identity") return bad(path, "layout", "identity", printable(packed.layout));
  if (json.contains("source")) {
    packed.source_name = text(json["source"], "name");
    packed.source_key = text(json["source"], "key");
  }
  if (!json.contains("parts") || !json["parts"].is_array()) return bad(path, "parts", "a list", "none");
  std::set<std::string> names;
  for (const ordered_json& entry : json["parts"]) {
    PackedPart part{.name = text(entry, "name")};
    const std::string where = "part " + printable(part.name, 100);
    if (part.name.empty() || part.name.find('/') != part.name.npos || !names.insert(part.name).second) {
      return bad(path, where, "a plain name that no other part has", "this one");
    }
    for (const char* key : {"offset", "bytes"}) {
      if (!entry.contains(key) || !entry[key].is_number_unsigned())
        return bad(path, where + ": " + key, "a number", entry.contains(key) ? "another value" : "none");
    }
    const auto offset = entry["offset"].get<uint64_t>(), size = entry["bytes"].get<uint64_t>();
    if (offset % kPage != 0 || offset > bytes.size() || size > bytes.size() - offset) {
      return bad(path, where, std::to_string(size) + " bytes from a page boundary on, within the file",
                 "offset " + std::to_string(offset) + " in " + std::to_string(bytes.size()) + " bytes");
    }
    part.bytes = bytes.subspan(offset, size);
    const std::string hash = text(entry, "hash");
    if (hash.size() != 16 || hash.find_first_not_of("0123456789abcdef") != hash.npos) {
      return bad(path, where + ": hash", "16 hexadecimal digits", printable(hash, 40));
    }
    part.hash = std::stoull(hash, nullptr, 16);
    packed.parts.push_back(std::move(part));
  }
  return packed;
}

Result<void> pack_checkpoint(const std::string& source, const std::string& output, bool replace,
                             const PackProgress& progress) {
  PROA_ASSIGN(const std::vector<SourceFile> files, source_files(source));
  // The header holds hashes that are known at the end: its length must be known before.
  ordered_json json = {{"layout", "identity"}, {"source", {{"name", base_name(source)}, {"key", key_of(files)}}}};
  uint64_t end = 0;
  const auto header = [&](const std::vector<uint64_t>& hashes, uint64_t begin) {
    json["parts"] = ordered_json::array();
    end = begin;
    for (size_t i = 0; i < files.size(); ++i) {
      const uint64_t size = files[i].file.bytes().size();
      json["parts"].push_back({{"name", files[i].name}, {"offset", end}, {"bytes", size}, {"hash", hex(hashes[i])}});
      end += padded(size);
    }
    return json.dump();
  };
  std::vector<uint64_t> hashes(files.size());
  const size_t room = header(hashes, uint64_t{1} << 62).size();  // no offset takes more digits
  if (room > kMaxJson) return Error{"pack", source, "fewer files", std::to_string(files.size()), ""};
  const uint64_t begin = padded(kHead + room);
  header(hashes, begin);

  PROA_ASSIGN(OutputPath out, OutputPath::create(output, false, replace));
  PROA_ASSIGN(const uint64_t free, free_disk_space(output));
  if (end > free) {
    return Error{"pack", output, std::to_string(end) + " bytes of free disk", std::to_string(free), "another disk"};
  }
  PROA_ASSIGN(OutputFile file, OutputFile::create(out.partial()));
  uint64_t at = begin;
  for (size_t i = 0; i < files.size(); ++i) {
    const auto bytes = files[i].file.bytes();
    uint64_t written = 0;
    const auto copy = [&](std::span<const std::byte> piece) -> Result<void> {
      PROA_TRY(file.write_at(at + written, piece));
      written += piece.size();
      return progress(piece.size());
    };
    PROA_ASSIGN(hashes[i], hash_pieces(bytes, copy));
    at += padded(bytes.size());
  }
  const std::string text = header(hashes, begin);
  const uint32_t numbers[] = {kVersion, static_cast<uint32_t>(text.size())};
  std::string head(kMagic);
  head.append(reinterpret_cast<const char*>(numbers), sizeof numbers);
  head += text;
  PROA_TRY(file.write_at(0, std::as_bytes(std::span(head))));
  PROA_TRY(file.close());
  return out.commit();
}

Result<void> verify_packed(const std::string& path, const PackProgress& progress) {
  PROA_ASSIGN(const MappedFile file, MappedFile::open(path));
  PROA_ASSIGN(const Packed packed, Packed::parse(file.bytes(), path));
  std::string damaged;
  for (const PackedPart& part : packed.parts) {
    const auto count = [&](std::span<const std::byte> piece) { return progress(piece.size()); };
    PROA_ASSIGN(const uint64_t hash, hash_pieces(part.bytes, count));
    if (hash != part.hash) damaged += (damaged.empty() ? "" : ", ") + printable(part.name);
  }
  if (damaged.empty()) return {};
  return Error{"verify packed checkpoint", path, "the contents that were written", "others in " + damaged,
               "pack it again from its source, " + printable(packed.source_name)};
}

Result<std::string> source_key(const std::string& source) {
  PROA_ASSIGN(const std::vector<SourceFile> files, source_files(source));
  return key_of(files);
}

Result<uint64_t> source_bytes(const std::string& source) {
  PROA_ASSIGN(const std::vector<SourceFile> files, source_files(source));
  uint64_t sum = 0;
  for (const auto& [name, file] : files) sum += file.bytes().size();
  return sum;
}

}  // namespace proa
