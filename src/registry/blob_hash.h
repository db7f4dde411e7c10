// The hashes by which a hub names contents: SHA-256 of a large file, Git's SHA-1 of a small one.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>

namespace proa {

// Updated piece by piece; hex() ends it. Movable.
class BlobHash {
 public:
  // By the length of a hash in hex: 64 is SHA-256, 40 is the SHA-1 of "blob SIZE\0" and the content, as Git names it.
  // Any other text: no hash, and matches() holds for all content.
  BlobHash(std::string_view expected, uint64_t size);
  ~BlobHash();
  BlobHash(BlobHash&&) noexcept;
  BlobHash& operator=(BlobHash&&) noexcept;

  void update(std::span<const std::byte> bytes);
  bool matches();           // after the last update; once
  std::string hex() const;  // what matches() found; empty without a hash

  static bool can_check(std::string_view expected);

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace proa
