#include "tokenizer/tokenizer.h"

#include <cassert>

#include "checkpoint/checkpoint.h"
#include "tokenizer/added_tokens.h"
#include "tokenizer/bpe.h"
#include "tokenizer/pre_tokenizer.h"
#include "tokenizer/utf8.h"
#include "tokenizer/vocabulary.h"

namespace proa {

struct Tokenizer::Tables {
  Bpe bpe;
  PreTokenizer pre_tokenizer;
  AddedTokenMatcher added;             // matched in the text as it comes
  AddedTokenMatcher added_normalized;  // matched in what is left, after normalisation
  bool nfc;
  bool add_bos, add_eos;
  int32_t bos_id;
  std::vector<int32_t> eos_ids;

  bool contains(int32_t id) const { return id >= 0 && static_cast<size_t>(id) < bpe.size(); }
  void encode_between(std::string_view text, PreTokenizer::Scratch& words, BpeScratch& merging,
                      std::vector<int32_t>& ids) const;
};

Result<Tokenizer> Tokenizer::open(const Checkpoint& checkpoint, TokenizerOptions options) {
  if (const Gguf* gguf = checkpoint.gguf()) {
    PROA_ASSIGN(const Vocabulary vocabulary, vocabulary_from_gguf(*gguf, options.llama_cpp));
    return create(vocabulary);
  }
  PROA_ASSIGN(const std::string json, checkpoint.read_text("tokenizer.json"));
  std::string config;
  if (checkpoint.has_file("tokenizer_config.json")) {
    PROA_ASSIGN(config, checkpoint.read_text("tokenizer_config.json"));
  }
  PROA_ASSIGN(const Vocabulary vocabulary, vocabulary_from_tokenizer_json(json, config));
  return create(vocabulary);
}

Result<Tokenizer> Tokenizer::create(const Vocabulary& vocabulary) {
  PROA_ASSIGN(Bpe bpe, Bpe::create(vocabulary));
  PROA_ASSIGN(PreTokenizer pre_tokenizer, PreTokenizer::create(vocabulary.steps));

  // Control tokens stay with the first pass whatever `normalized` says: the borders of segments are known only there,
  // and their contents are not such that normalisation changes them.
  std::vector<AddedToken> plain, normalized;
  std::vector<std::string> contents;
  contents.reserve(vocabulary.added.size());
  for (AddedToken token : vocabulary.added) {
    if (token.special || !token.normalized) {
      plain.push_back(token);
      continue;
    }
    if (vocabulary.nfc && maybe_not_nfc(token.content)) {
      std::string valid;
      append_replacing_invalid(valid, token.content);
      token.content = contents.emplace_back(to_nfc(valid));
    }
    normalized.push_back(token);
  }
  PROA_ASSIGN(AddedTokenMatcher added, AddedTokenMatcher::create(plain));
  PROA_ASSIGN(AddedTokenMatcher added_normalized, AddedTokenMatcher::create(normalized));

  const auto outside = [&](int32_t id) { return id >= static_cast<int64_t>(bpe.size()); };
  std::vector<int32_t> named = vocabulary.eos_ids;
  named.push_back(vocabulary.bos_id);
  for (const int32_t id : named) {
    if (!outside(id)) continue;
    return Error{.doing = "build tokenizer",
                 .where = "bos or eos token",
                 .expected = "an id below " + std::to_string(bpe.size()),
                 .actual = std::to_string(id)};
  }
  return Tokenizer(std::make_shared<const Tables>(
      Tables{std::move(bpe), std::move(pre_tokenizer), std::move(added), std::move(added_normalized), vocabulary.nfc,
             vocabulary.add_bos, vocabulary.add_eos, vocabulary.bos_id, vocabulary.eos_ids}));
}

void Tokenizer::Tables::encode_between(std::string_view text, PreTokenizer::Scratch& words, BpeScratch& merging,
                                       std::vector<int32_t>& ids) const {
  if (text.empty()) return;
  std::string composed;
  if (nfc && maybe_not_nfc(text)) text = composed = to_nfc(text);
  const auto cut = [&](std::string_view part) {
    pre_tokenizer.cut(part, words, [&](std::string_view word) { bpe.encode(word, merging, ids); });
  };
  size_t done = 0;
  while (const auto match = added_normalized.next(text, done, {})) {
    cut(text.substr(done, match->begin - done));
    ids.push_back(match->id);
    done = match->end;
  }
  cut(text.substr(done));
}

std::vector<int32_t> Tokenizer::encode(std::string_view text, EncodeOptions options) const {
  const TextSegment segment{text, options.parse_special};
  return encode(std::span(&segment, 1), options.add_bos);
}

std::vector<int32_t> Tokenizer::encode(std::span<const TextSegment> segments, bool add_bos) const {
  std::string text;
  std::vector<AddedTokenMatcher::Run> runs;
  size_t total = 0;
  for (const TextSegment& segment : segments) total += segment.text.size();
  text.reserve(total);
  for (const TextSegment& segment : segments) {
    append_replacing_invalid(text, segment.text);
    if (!runs.empty() && runs.back().parse_special == segment.parse_special) {
      runs.back().end = text.size();
    } else if (text.size() > (runs.empty() ? 0 : runs.back().end)) {
      runs.push_back({text.size(), segment.parse_special});
    }
  }

  std::vector<int32_t> ids;
  ids.reserve(text.size() / 4 + 8);
  if (add_bos && tables_->add_bos && tables_->bos_id >= 0) ids.push_back(tables_->bos_id);
  PreTokenizer::Scratch words = tables_->pre_tokenizer.make_scratch(text.size());
  BpeScratch merging;
  const std::string_view view = text;
  size_t done = 0;
  while (const auto match = tables_->added.next(view, done, runs)) {
    tables_->encode_between(view.substr(done, match->begin - done), words, merging, ids);
    ids.push_back(match->id);
    done = match->end;
  }
  tables_->encode_between(view.substr(done), words, merging, ids);
  return ids;
}

std::string_view Tokenizer::piece(int32_t id) const {
  return tables_->contains(id) ? tables_->bpe.piece(id) : std::string_view();
}

std::string Tokenizer::decode(std::span<const int32_t> ids, bool skip_special) const {
  std::string bytes;
  for (const int32_t id : ids) {
    if (!skip_special || !is_special(id)) bytes += piece(id);
  }
  std::string text;
  text.reserve(bytes.size());
  append_replacing_invalid(text, bytes);
  return text;
}

int32_t Tokenizer::vocab_size() const { return static_cast<int32_t>(tables_->bpe.size()); }

bool Tokenizer::is_special(int32_t id) const {
  if (!tables_->contains(id)) return false;
  const TokenType type = tables_->bpe.type(id);
  return type == TokenType::control || type == TokenType::unknown;
}

std::optional<int32_t> Tokenizer::token_id(std::string_view bytes) const {
  if (const auto id = tables_->added.find(bytes)) return id;
  if (const auto id = tables_->added_normalized.find(bytes)) return id;
  const int32_t id = tables_->bpe.find(bytes);
  return id >= 0 ? std::optional(id) : std::nullopt;
}

std::optional<int32_t> Tokenizer::bos_id() const {
  return tables_->bos_id >= 0 ? std::optional(tables_->bos_id) : std::nullopt;
}
bool Tokenizer::adds_bos() const { return tables_->add_bos; }
bool Tokenizer::adds_eos() const { return tables_->add_eos; }
std::span<const int32_t> Tokenizer::eos_ids() const { return tables_->eos_ids; }

std::string Detokenizer::push(int32_t id) {
  if (skip_special_ && tokenizer_.is_special(id)) return {};
  pending_ += tokenizer_.piece(id);
  std::string text;
  const size_t unfinished = append_valid_utf8(text, pending_);
  pending_.erase(0, pending_.size() - unfinished);
  return text;
}

std::string Detokenizer::finish() {
  std::string text;
  append_replacing_invalid(text, pending_);
  pending_.clear();
  return text;
}

}  // namespace proa
