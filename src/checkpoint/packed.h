// Packed checkpoints: one file that is mapped like any other, with tensors in a layout that kernels like. So far there
// is one layout, "identity": the files of the source as they are.
//
//   "PROAPACK", u32 version, u32 length of the JSON that follows, JSON, then the parts, each from a page boundary on
//   JSON {"layout": "identity", "source": {"name", "key"}, "parts": [{"name", "offset", "bytes", "hash"}, ...]}
//
// The key says which source a pack was made of: a hash of names, sizes, and of the beginning, the end and samples of
// each file. The hash of a part is that of all its bytes. All little-endian.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <vector>

#include "core/result.h"

namespace proa {

struct PackedPart {
  std::string name;
  std::span<const std::byte> bytes;  // in what was parsed
  uint64_t hash = 0;
};

struct Packed {
  std::string layout;
  std::string source_name;  // without its folder
  std::string source_key;   // 16 hexadecimal digits
  std::vector<PackedPart> parts;

  static bool has_magic(std::span<const std::byte> bytes);
  // Bounds and names are checked, contents are not. The caller keeps the bytes alive; `path` is for messages.
  static Result<Packed> parse(std::span<const std::byte> bytes, const std::string& path);
};

// Called with the bytes that were done since the last call; an error ends the work.
using PackProgress = std::function<Result<void>(uint64_t bytes)>;

// Writes `output` (which appears when it is whole) from a folder or a GGUF file of one part. Errors: those of reading
// the source; a source that is packed or split; a full disk, before anything is written.
Result<void> pack_checkpoint(const std::string& source, const std::string& output, bool replace,
                             const PackProgress& progress);
// Compares every part with its hash. Errors name the parts that differ.
Result<void> verify_packed(const std::string& path, const PackProgress& progress);
// The key of a source, at the cost of a few pages of each file.
Result<std::string> source_key(const std::string& source);
// Bytes of the source's files.
Result<uint64_t> source_bytes(const std::string& source);

}  // namespace proa
