#include "tokenizer/bpe.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <cstring>
#include <functional>

#include "checkpoint/printable.h"
#include "tokenizer/utf8.h"

namespace proa {
namespace {

constexpr uint64_t kNoPair = ~uint64_t{0};
constexpr size_t kShortWord = 64;                 // up to here scanning all ranks beats a heap
constexpr size_t kLongestScored = 1024;           // bytes of a token that is joined by its score; longer ones are not
constexpr size_t kLongestWord = size_t{1} << 30;  // so that positions fit 32 bits; longer words are cut

constexpr bool is_printable_byte(int byte) {
  return (byte >= 33 && byte <= 126) || (byte >= 161 && byte <= 172) || (byte >= 174 && byte <= 255);
}

struct ByteAlphabet {
  std::array<char32_t, 256> character{};
  std::array<int16_t, 256 + 68> byte{};  // by code point; -1: not of the alphabet

  constexpr ByteAlphabet() {
    byte.fill(-1);
    char32_t next = 256;
    for (int b = 0; b < 256; ++b) {
      character[b] = is_printable_byte(b) ? static_cast<char32_t>(b) : next++;
      byte[character[b]] = static_cast<int16_t>(b);
    }
  }
};
constexpr ByteAlphabet kAlphabet;

uint64_t mix(uint64_t a, uint64_t b) {
  const auto product = static_cast<unsigned __int128>(a) * b;
  return static_cast<uint64_t>(product) ^ static_cast<uint64_t>(product >> 64);
}

uint32_t hash_bytes(std::string_view bytes) {
  uint64_t state = 0x9E3779B97F4A7C15u ^ bytes.size();
  while (bytes.size() > 8) {
    uint64_t eight;
    std::memcpy(&eight, bytes.data(), 8);
    state = mix(state ^ eight, 0xD6E8FEB86659FD93u);
    bytes.remove_prefix(8);
  }
  uint64_t rest = 0;
  std::memcpy(&rest, bytes.data(), bytes.size());
  state = mix(state ^ rest, 0xA0761D6478BD642Fu);
  return static_cast<uint32_t>(state ^ state >> 32);
}

uint64_t pair_of(int32_t left, int32_t right) {
  return static_cast<uint64_t>(static_cast<uint32_t>(left)) << 32 | static_cast<uint32_t>(right);
}

size_t hash_pair(uint64_t pair) { return static_cast<size_t>(mix(pair, 0x9E3779B97F4A7C15u)); }

size_t table_size(size_t entries) { return std::bit_ceil(std::max<size_t>(entries * 2, 16)); }

bool reachable(TokenType type) { return type != TokenType::control && type != TokenType::unknown; }

Error problem(std::string where, std::string expected, std::string actual) {
  return Error{.doing = "build tokenizer",
               .where = printable(where),
               .expected = std::move(expected),
               .actual = printable(actual)};
}

}  // namespace

bool append_from_byte_alphabet(std::string& bytes, std::string_view spelling) {
  const size_t before = bytes.size();
  for (size_t i = 0; i < spelling.size(); ++i) {
    char32_t c = static_cast<uint8_t>(spelling[i]);
    if (c >= 0x80) {  // the alphabet ends at U+0143, so two bytes are the longest
      const uint8_t next = i + 1 < spelling.size() ? static_cast<uint8_t>(spelling[i + 1]) : 0;
      c = c >= 0xC2 && c <= 0xDF && (next & 0xC0) == 0x80 ? (c & 0x1F) << 6 | (next & 0x3F) : 0xFFFF;
      ++i;
    }
    if (c >= kAlphabet.byte.size() || kAlphabet.byte[c] < 0) {
      bytes.resize(before);
      return false;
    }
    bytes.push_back(static_cast<char>(kAlphabet.byte[c]));
  }
  return true;
}

std::string to_byte_alphabet(std::string_view bytes) {
  std::string spelling;
  for (const char b : bytes) {
    const char32_t c = kAlphabet.character[static_cast<uint8_t>(b)];
    if (c < 0x80) {
      spelling.push_back(static_cast<char>(c));
    } else {
      spelling.push_back(static_cast<char>(0xC0 | c >> 6));
      spelling.push_back(static_cast<char>(0x80 | (c & 0x3F)));
    }
  }
  return spelling;
}

int byte_of_token(std::string_view token) {
  if (token.size() != 6 || !token.starts_with("<0x") || token[5] != '>') return -1;
  int byte = 0;
  for (const char c : token.substr(3, 2)) {
    const int digit = c >= '0' && c <= '9'   ? c - '0'
                      : c >= 'A' && c <= 'F' ? c - 'A' + 10
                      : c >= 'a' && c <= 'f' ? c - 'a' + 10
                                             : -1;
    if (digit < 0) return -1;
    byte = byte * 16 + digit;
  }
  return byte;
}

Result<Bpe> Bpe::create(const Vocabulary& vocabulary) {
  Bpe bpe;
  const size_t size = vocabulary.tokens.size();
  if (size == 0 || size > kMaxTokens) {
    return problem("vocabulary", "1 to " + std::to_string(kMaxTokens) + " tokens", std::to_string(size));
  }
  if (vocabulary.types.size() != size) {
    return problem("token types", std::to_string(size) + ", one per token", std::to_string(vocabulary.types.size()));
  }
  if (!vocabulary.scores.empty() && vocabulary.scores.size() != size) {
    return problem("scores", std::to_string(size) + ", one per token", std::to_string(vocabulary.scores.size()));
  }
  size_t total = 0;
  for (const std::string_view token : vocabulary.tokens) total += token.size();
  if (total > kMaxTextBytes) {
    return problem("vocabulary", "at most " + std::to_string(kMaxTextBytes) + " bytes of text", std::to_string(total));
  }
  if (vocabulary.merges.size() > kMaxMerges) {
    return problem("merges", "at most " + std::to_string(kMaxMerges), std::to_string(vocabulary.merges.size()));
  }

  bpe.symbols_ = vocabulary.symbols;
  bpe.unk_id_ = vocabulary.unk_id;
  bpe.fuse_unk_ = vocabulary.fuse_unk;
  bpe.ignore_merges_ = vocabulary.ignore_merges;
  bpe.types_ = vocabulary.types;
  if (bpe.unk_id_ >= static_cast<int64_t>(size)) {
    return problem("unknown token", "an id below " + std::to_string(size), std::to_string(bpe.unk_id_));
  }
  PROA_TRY(bpe.add_tokens(vocabulary));
  if (vocabulary.scores.empty()) {
    PROA_TRY(bpe.add_merges(vocabulary.merges));
  } else {
    PROA_TRY(bpe.add_scores(vocabulary.scores));
  }
  return bpe;
}

Result<void> Bpe::add_tokens(const Vocabulary& vocabulary) {
  const size_t size = vocabulary.tokens.size();
  const bool characters = symbols_ == Vocabulary::Symbols::characters;
  std::vector<bool> literal(size);
  for (const AddedToken& added : vocabulary.added) {
    if (added.id < 0 || static_cast<size_t>(added.id) >= size) {
      return problem("added token " + std::string(added.content), "an id below " + std::to_string(size),
                     std::to_string(added.id));
    }
    literal[added.id] = true;
  }

  std::fill(std::begin(byte_ids_), std::end(byte_ids_), -1);
  std::fill(std::begin(fallback_ids_), std::end(fallback_ids_), -1);
  std::fill(std::begin(ends_before_space_), std::end(ends_before_space_), true);
  slots_.assign(table_size(size), Slot{0, -1});
  const size_t slot_mask = slots_.size() - 1;
  std::string bytes;
  for (size_t i = 0; i < size; ++i) {
    const auto id = static_cast<int32_t>(i);
    const std::string_view token = vocabulary.tokens[i];
    bytes.clear();
    if (characters || literal[i] || !append_from_byte_alphabet(bytes, token)) bytes = token;
    spelt_.push_back(bytes);
    if (characters) {
      const int byte = types_[i] == TokenType::byte ? byte_of_token(token) : -1;
      if (types_[i] == TokenType::byte && byte < 0) {
        return problem("token " + std::to_string(i), "<0x00> to <0xFF>, as its type is byte",
                       "'" + std::string(token) + "'");
      }
      bytes.clear();
      if (byte >= 0) {
        bytes.push_back(static_cast<char>(byte));
        if (vocabulary.byte_fallback && fallback_ids_[byte] < 0) fallback_ids_[byte] = id;
      } else if (literal[i] ? vocabulary.metaspace_is_space_in_added : vocabulary.metaspace_is_space) {
        append_replaced(bytes, token, kMetaspace, " ");
      } else {
        bytes = token;
      }
      decoded_.push_back(bytes);
      if (byte >= 0) continue;  // no text spells them
    }

    const std::string_view spelling = spelt_[id];
    if (spelling.empty() || !reachable(types_[i])) continue;
    longest_ = std::max(longest_, spelling.size());
    const uint32_t hash = hash_bytes(spelling);
    size_t at = hash & slot_mask;
    // Of tokens spelt alike the first can be reached, the others only decode.
    while (slots_[at].id >= 0 && (slots_[at].hash != hash || spelt_[slots_[at].id] != spelling)) {
      at = (at + 1) & slot_mask;
    }
    if (slots_[at].id < 0) slots_[at] = {hash, id};
    if (!characters) continue;
    for (size_t space = spelling.find(kMetaspace, 1); space != std::string_view::npos;
         space = spelling.find(kMetaspace, space + 1)) {
      ends_before_space_[static_cast<uint8_t>(spelling[space - 1])] = false;
    }
  }
  for (int b = 0; b < (characters ? 128 : 256); ++b) {
    const char byte = static_cast<char>(b);
    byte_ids_[b] = find(std::string_view(&byte, 1));
  }
  if (find(kMetaspace) < 0) {  // unknown ones are fused with what is beside them
    std::fill(std::begin(ends_before_space_), std::end(ends_before_space_), false);
  }
  return {};
}

bool Bpe::append_spelling(std::string& spelling, std::string_view text) const {
  if (symbols_ == Vocabulary::Symbols::bytes) return append_from_byte_alphabet(spelling, text);
  spelling += text;
  return true;
}

Result<void> Bpe::add_scores(const std::vector<float>& scores) {
  std::vector<float> sorted;
  for (size_t id = 0; id < scores.size(); ++id) {
    if (!std::isfinite(scores[id])) {
      return problem("score of token " + std::to_string(id), "a number", std::to_string(scores[id]));
    }
    sorted.push_back(scores[id]);
  }
  std::sort(sorted.begin(), sorted.end(), std::greater<>());
  sorted.erase(std::unique(sorted.begin(), sorted.end()), sorted.end());
  ranks_.reserve(scores.size());
  for (const float score : scores) {
    ranks_.push_back(static_cast<uint32_t>(std::lower_bound(sorted.begin(), sorted.end(), score, std::greater<>()) -
                                           sorted.begin()));
  }
  return {};
}

// Every look-up here misses the caches, so merges go in groups: all slots of a group are asked for before any is read.
// Measured with 280,147 merges: 33 ms instead of 147.
Result<void> Bpe::add_merges(const std::vector<MergeText>& merges) {
  constexpr size_t kGroup = 64;
  struct Pending {
    size_t begin, border, end;             // in `bytes`: left is [begin, border), right [border, end)
    uint32_t left_hash, right_hash, hash;  // of left, right and both
    uint64_t pair;
    int32_t joined;
  };
  merges_.assign(table_size(merges.size()), Merge{kNoPair, 0, -1});
  const size_t merge_mask = merges_.size() - 1;
  const size_t slot_mask = slots_.size() - 1;
  const auto unknown = [&](size_t rank, std::string_view named) {
    return problem("merge " + std::to_string(rank), "tokens of the vocabulary", "'" + std::string(named) + "'");
  };
  std::string bytes;
  Pending group[kGroup];
  for (size_t first = 0; first < merges.size(); first += kGroup) {
    const size_t count = std::min(kGroup, merges.size() - first);
    bytes.clear();
    for (size_t i = 0; i < count; ++i) {
      const MergeText& merge = merges[first + i];
      Pending& p = group[i];
      p.begin = bytes.size();
      if (!append_spelling(bytes, merge.left)) return unknown(first + i, merge.left);
      p.border = bytes.size();
      if (!append_spelling(bytes, merge.right)) return unknown(first + i, merge.right);
      p.end = bytes.size();
      const std::string_view both = std::string_view(bytes).substr(p.begin);
      p.left_hash = hash_bytes(both.substr(0, p.border - p.begin));
      p.right_hash = hash_bytes(both.substr(p.border - p.begin));
      p.hash = hash_bytes(both);
      for (const uint32_t hash : {p.left_hash, p.right_hash, p.hash}) __builtin_prefetch(&slots_[hash & slot_mask]);
    }
    for (size_t i = 0; i < count; ++i) {
      Pending& p = group[i];
      const std::string_view both = std::string_view(bytes).substr(p.begin, p.end - p.begin);
      const int32_t left = find(both.substr(0, p.border - p.begin), p.left_hash);
      const int32_t right = find(both.substr(p.border - p.begin), p.right_hash);
      p.joined = find(both, p.hash);
      const MergeText& merge = merges[first + i];
      if (left < 0 || right < 0) return unknown(first + i, left < 0 ? merge.left : merge.right);
      if (p.joined < 0) return unknown(first + i, std::string(merge.left).append(merge.right));
      p.pair = pair_of(left, right);
      __builtin_prefetch(&merges_[hash_pair(p.pair) & merge_mask]);
    }
    for (size_t i = 0; i < count; ++i) {
      size_t at = hash_pair(group[i].pair) & merge_mask;
      while (merges_[at].pair != kNoPair && merges_[at].pair != group[i].pair) at = (at + 1) & merge_mask;
      if (merges_[at].pair != kNoPair) continue;
      merges_[at] = {group[i].pair, static_cast<uint32_t>(first + i), group[i].joined};
    }
  }
  return {};
}

int32_t Bpe::find(std::string_view spelling) const {
  return spelling.size() <= longest_ ? find(spelling, hash_bytes(spelling)) : -1;
}

int32_t Bpe::find(std::string_view spelling, uint32_t hash) const {
  const size_t mask = slots_.size() - 1;
  for (size_t at = hash & mask; slots_[at].id >= 0; at = (at + 1) & mask) {
    if (slots_[at].hash == hash && spelt_[slots_[at].id] == spelling) return slots_[at].id;
  }
  return -1;
}

int32_t Bpe::find_decoded(std::string_view bytes) const {
  if (symbols_ == Vocabulary::Symbols::bytes) return find(bytes);
  std::string spelling;
  append_replaced(spelling, bytes, " ", kMetaspace);
  for (const std::string_view candidate : {std::string_view(spelling), bytes}) {
    const int32_t id = find(candidate);
    if (id >= 0 && piece(id) == bytes) return id;
  }
  return bytes.size() == 1 ? fallback_ids_[static_cast<uint8_t>(bytes[0])] : -1;
}

Bpe::Found Bpe::find_merge(int32_t left, int32_t right) const {
  constexpr Found kNone{kNoRank, -1};
  if (left < 0 || right < 0) return kNone;
  if (!ranks_.empty()) {
    if (types_[left] == TokenType::byte || types_[right] == TokenType::byte) return kNone;
    char both[kLongestScored];
    const std::string_view a = spelt_[left], b = spelt_[right];
    if (a.size() + b.size() > std::min(longest_, sizeof both)) return kNone;
    std::memcpy(both, a.data(), a.size());
    std::memcpy(both + a.size(), b.data(), b.size());
    const int32_t id = find(std::string_view(both, a.size() + b.size()));
    return id < 0 ? kNone : Found{ranks_[id], id};
  }
  const uint64_t pair = pair_of(left, right);
  const size_t mask = merges_.size() - 1;
  for (size_t at = hash_pair(pair) & mask; merges_[at].pair != kNoPair; at = (at + 1) & mask) {
    if (merges_[at].pair == pair) return {merges_[at].rank, merges_[at].id};
  }
  return kNone;
}

void Bpe::append(int32_t id, std::vector<int32_t>& ids, bool& after_unknown) const {
  if (id >= 0) {
    ids.push_back(id);
    after_unknown = false;
  } else {
    if (!after_unknown || !fuse_unk_) ids.push_back(unk_id_);
    after_unknown = true;
  }
}

// Without an unknown token a symbol that has none is left out here, so that its neighbours can merge: what Hugging Face
// `tokenizers` does. SmolLM2 has no tokens for some control characters.
void Bpe::begin(std::string_view word, std::vector<int32_t>& symbols) const {
  symbols.clear();
  const auto add = [&](int32_t id) {
    if (id >= 0 || unk_id_ >= 0) symbols.push_back(id);
  };
  if (symbols_ == Vocabulary::Symbols::bytes) {
    for (const char byte : word) add(byte_ids_[static_cast<uint8_t>(byte)]);
    return;
  }
  while (!word.empty()) {
    const uint8_t length = utf8_step(word).length;
    const std::string_view character = word.substr(0, length);
    word.remove_prefix(length);
    const int32_t id = length == 1 ? byte_ids_[static_cast<uint8_t>(character[0])] : find(character);
    const auto fallback = [&](char byte) { return fallback_ids_[static_cast<uint8_t>(byte)]; };
    if (id < 0 && std::all_of(character.begin(), character.end(), [&](char byte) { return fallback(byte) >= 0; })) {
      for (const char byte : character) symbols.push_back(fallback(byte));
    } else {
      add(id);
    }
  }
}

void Bpe::encode(std::string_view word, BpeScratch& scratch, std::vector<int32_t>& ids) const {
  if (word.empty()) return;
  if (ignore_merges_) {
    if (const int32_t id = find(word); id >= 0) return ids.push_back(id);
  }
  if (symbols_ == Vocabulary::Symbols::bytes) return encode_part(word, scratch, ids);
  // SentencePiece vocabularies are given whole paragraphs as one word. Where no token reaches across the beginning of a
  // kMetaspace the parts are merged on their own, which gives the same and stays in the caches.
  size_t begin = 0;
  for (size_t at = 1; at < word.size(); at += kMetaspace.size()) {
    at = std::min(word.find(kMetaspace, at), word.size());
    if (at < word.size() && !ends_before_space_[static_cast<uint8_t>(word[at - 1])]) continue;
    encode_part(word.substr(begin, at - begin), scratch, ids);
    begin = at;
  }
  encode_part(word.substr(begin), scratch, ids);
}

void Bpe::encode_part(std::string_view word, BpeScratch& scratch, std::vector<int32_t>& ids) const {
  while (!word.empty()) {
    size_t size = std::min(word.size(), kLongestWord);
    while (size < word.size() && (static_cast<uint8_t>(word[size]) & 0xC0) == 0x80) --size;
    begin(word.substr(0, size), scratch.first);
    word.remove_prefix(size);
    if (scratch.first.size() <= kShortWord) {
      encode_short(scratch.first, ids);
    } else {
      encode_long(scratch, ids);
    }
  }
}

void Bpe::encode_short(const std::vector<int32_t>& first, std::vector<int32_t>& ids) const {
  int32_t symbols[kShortWord];
  Found merges[kShortWord];  // of symbol i with the next one
  size_t count = first.size();
  std::copy(first.begin(), first.end(), symbols);
  for (size_t i = 0; i + 1 < count; ++i) merges[i] = find_merge(symbols[i], symbols[i + 1]);
  while (true) {
    size_t best = count;
    uint32_t best_rank = kNoRank;
    for (size_t i = 0; i + 1 < count; ++i) {
      if (merges[i].rank < best_rank) best_rank = merges[i].rank, best = i;
    }
    if (best == count) break;
    symbols[best] = merges[best].id;
    std::copy(symbols + best + 2, symbols + count, symbols + best + 1);
    std::copy(merges + best + 1, merges + count - 1, merges + best);
    --count;
    if (best > 0) merges[best - 1] = find_merge(symbols[best - 1], symbols[best]);
    if (best + 1 < count) merges[best] = find_merge(symbols[best], symbols[best + 1]);
  }
  bool after_unknown = false;
  for (size_t i = 0; i < count; ++i) append(symbols[i], ids, after_unknown);
}

// Symbols form a list; a heap holds the merges that are possible now. An entry whose symbols have since been merged
// away is recognised by their ids and skipped.
void Bpe::encode_long(BpeScratch& scratch, std::vector<int32_t>& ids) const {
  constexpr uint32_t kEnd = UINT32_MAX;
  constexpr int32_t kGone = -2;
  auto& symbols = scratch.symbols;
  auto& heap = scratch.heap;
  const auto later = [](const BpeScratch::Candidate& a, const BpeScratch::Candidate& b) {
    return a.rank != b.rank ? a.rank > b.rank : a.position > b.position;
  };
  const uint32_t size = static_cast<uint32_t>(scratch.first.size());
  symbols.resize(size);
  for (uint32_t i = 0; i < size; ++i) {
    symbols[i] = {scratch.first[i], i + 1 < size ? i + 1 : kEnd, i > 0 ? i - 1 : kEnd};
  }
  heap.clear();
  const auto candidate = [&](uint32_t at) {
    const uint32_t next = symbols[at].next;
    if (next == kEnd) return false;
    const Found merge = find_merge(symbols[at].id, symbols[next].id);
    if (merge.rank == kNoRank) return false;
    heap.push_back({merge.rank, at, symbols[at].id, symbols[next].id});
    return true;
  };
  for (uint32_t i = 0; i < size; ++i) candidate(i);
  std::make_heap(heap.begin(), heap.end(), later);
  while (!heap.empty()) {
    std::pop_heap(heap.begin(), heap.end(), later);
    const BpeScratch::Candidate best = heap.back();
    heap.pop_back();
    auto& symbol = symbols[best.position];
    if (symbol.id != best.left || symbol.next == kEnd || symbols[symbol.next].id != best.right) continue;
    const uint32_t next = symbol.next;
    symbol.id = find_merge(best.left, best.right).id;
    symbol.next = symbols[next].next;
    symbols[next].id = kGone;
    if (symbol.next != kEnd) symbols[symbol.next].previous = best.position;
    if (symbol.previous != kEnd && candidate(symbol.previous)) std::push_heap(heap.begin(), heap.end(), later);
    if (candidate(best.position)) std::push_heap(heap.begin(), heap.end(), later);
  }
  bool after_unknown = false;
  for (uint32_t at = size > 0 ? 0 : kEnd; at != kEnd; at = symbols[at].next) append(symbols[at].id, ids, after_unknown);
}

}  // namespace proa
