// Byte-level byte-pair encoding of one word: start from its bytes and apply the lowest-ranked merge, leftmost first,
// until none applies. Sources: Sennrich et al. 2016; the byte alphabet of GPT-2's encoder.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "core/result.h"
#include "tokenizer/vocabulary.h"

namespace proa {

// GPT-2's alphabet writes each byte as a printable character: 33-126, 161-172 and 174-255 as the code point of the same
// number, the other 68 as U+0100 and on. Appends the bytes that `spelling` stands for; false, with nothing appended,
// when a character is not of the alphabet.
bool append_from_byte_alphabet(std::string& bytes, std::string_view spelling);
std::string to_byte_alphabet(std::string_view bytes);

// Working memory of encode(), to be reused from word to word by one thread.
struct BpeScratch {
  struct Symbol {
    int32_t id;
    uint32_t next, previous;  // index of the first byte of the neighbour
  };
  struct Candidate {
    uint32_t rank, position;
    int32_t left, right;
  };
  std::vector<Symbol> symbols;
  std::vector<Candidate> heap;
};

class Bpe {
 public:
  static constexpr size_t kMaxTokens = 1 << 24;

  static Result<Bpe> create(const Vocabulary& vocabulary);

  size_t size() const { return types_.size(); }
  std::string_view piece(int32_t id) const {  // bytes; `id` must be in range
    return std::string_view(arena_).substr(offsets_[id], offsets_[id + 1] - offsets_[id]);
  }
  TokenType type(int32_t id) const { return types_[id]; }

  // The token with these bytes that words can become; control and unknown tokens are none. -1: not there.
  int32_t find(std::string_view bytes) const;

  // Appends the ids of `word`. Time is linear in the word's length up to the logarithm.
  void encode(std::string_view word, BpeScratch& scratch, std::vector<int32_t>& ids) const;

 private:
  struct Slot {
    uint32_t hash;
    int32_t id;
  };
  struct Merge {
    uint64_t pair;
    uint32_t rank;
    int32_t id;
  };

  Result<void> add_merges(const std::vector<MergeText>& merges);
  int32_t find(std::string_view bytes, uint32_t hash) const;
  const Merge* find_merge(int32_t left, int32_t right) const;  // nullptr: these do not merge
  void encode_short(std::string_view word, std::vector<int32_t>& ids) const;
  void encode_long(std::string_view word, BpeScratch& scratch, std::vector<int32_t>& ids) const;
  void append(int32_t id, std::vector<int32_t>& ids, bool& after_unknown) const;

  std::string arena_;              // the bytes of all tokens, one after the other
  std::vector<uint32_t> offsets_;  // [size + 1] into arena_
  std::vector<TokenType> types_;
  std::vector<Slot> slots_;    // open addressing; size is a power of two
  std::vector<Merge> merges_;  // the same; pair is left << 32 | right
  int32_t byte_ids_[256];      // -1: the vocabulary has no token for this byte
  int32_t unk_id_ = -1;
  bool fuse_unk_ = false;
  bool ignore_merges_ = false;
};

}  // namespace proa
