// Byte-pair encoding of one word: start from its bytes or characters and apply the lowest-ranked merge, leftmost first,
// until none applies. Merges are listed, or (SentencePiece) any two tokens whose texts together are a token merge,
// those of the highest score first. Sources: Sennrich et al. 2016; the byte alphabet of GPT-2's encoder;
// SentencePiece's BPE.
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
    uint32_t next, previous;  // index of the neighbour
  };
  struct Candidate {
    uint32_t rank, position;
    int32_t left, right;
  };
  std::vector<int32_t> first;  // the symbols that merging begins with
  std::vector<Symbol> symbols;
  std::vector<Candidate> heap;
};

class Bpe {
 public:
  // Twice those of the largest vocabularies in use; the tables take some 100 bytes for each.
  static constexpr size_t kMaxTokens = 1 << 19, kMaxMerges = 750'000, kMaxTextBytes = 1 << 24;

  static Result<Bpe> create(const Vocabulary& vocabulary);

  size_t size() const { return types_.size(); }
  // What the token decodes to; `id` must be in range.
  std::string_view piece(int32_t id) const { return decoded_.offsets.empty() ? spelt_[id] : decoded_[id]; }
  TokenType type(int32_t id) const { return types_[id]; }

  // The token spelt so (with kMetaspace for a space where the vocabulary has it) that words can become; control and
  // unknown tokens are none. -1: not there.
  int32_t find(std::string_view spelling) const;

  // The same by what a token decodes to.
  int32_t find_decoded(std::string_view bytes) const;

  // Appends the ids of `word`. Time is linear in the word's length up to the logarithm.
  void encode(std::string_view word, BpeScratch& scratch, std::vector<int32_t>& ids) const;

 private:
  struct Strings {
    std::string arena;              // all of them, one after the other
    std::vector<uint32_t> offsets;  // [size + 1] into arena

    std::string_view operator[](int32_t id) const {
      return std::string_view(arena).substr(offsets[id], offsets[id + 1] - offsets[id]);
    }
    void push_back(std::string_view text) {
      if (offsets.empty()) offsets.push_back(0);
      arena += text;
      offsets.push_back(static_cast<uint32_t>(arena.size()));
    }
  };
  struct Slot {
    uint32_t hash;
    int32_t id;
  };
  struct Merge {
    uint64_t pair;
    uint32_t rank;
    int32_t id;
  };
  struct Found {
    uint32_t rank;  // kNoRank: these do not merge
    int32_t id;
  };
  static constexpr uint32_t kNoRank = UINT32_MAX;

  Result<void> add_tokens(const Vocabulary& vocabulary);
  Result<void> add_merges(const std::vector<MergeText>& merges);
  Result<void> add_scores(const std::vector<float>& scores);
  bool append_spelling(std::string& spelling, std::string_view text) const;
  int32_t find(std::string_view spelling, uint32_t hash) const;
  Found find_merge(int32_t left, int32_t right) const;
  void begin(std::string_view word, std::vector<int32_t>& symbols) const;
  void encode_part(std::string_view word, BpeScratch& scratch, std::vector<int32_t>& ids) const;
  void encode_short(const std::vector<int32_t>& first, std::vector<int32_t>& ids) const;
  void encode_long(BpeScratch& scratch, std::vector<int32_t>& ids) const;
  void append(int32_t id, std::vector<int32_t>& ids, bool& after_unknown) const;

  Vocabulary::Symbols symbols_ = Vocabulary::Symbols::bytes;
  Strings spelt_;    // bytes, or text with kMetaspace
  Strings decoded_;  // characters only; otherwise a token decodes to what it is spelt
  std::vector<TokenType> types_;
  std::vector<Slot> slots_;      // open addressing; size is a power of two
  std::vector<Merge> merges_;    // the same; pair is left << 32 | right; empty when tokens merge by score
  std::vector<uint32_t> ranks_;  // [size] of the scores, highest first; empty when merges are listed
  int32_t byte_ids_[256];        // of single bytes, or of ASCII characters; -1: the vocabulary has no token for it
  int32_t fallback_ids_[256];    // of <0xNN>; all -1 without byte fallback
  bool ends_before_space_[256];  // no token goes on with kMetaspace after a character that ends in this byte
  size_t longest_ = 0;           // bytes of the longest spelling that can be found
  int32_t unk_id_ = -1;
  bool fuse_unk_ = false;
  bool ignore_merges_ = false;
};

}  // namespace proa
