#include "tokenizer/tokenizer.h"

#include <algorithm>
#include <cassert>
#include <filesystem>

#include "checkpoint/checkpoint.h"
#include "core/mapped_file.h"
#include "tokenizer/added_tokens.h"
#include "tokenizer/bpe.h"
#include "tokenizer/pre_tokenizer.h"
#include "tokenizer/utf8.h"
#include "tokenizer/vocabulary.h"

namespace proa {

namespace {

// True, with the changed text in `out`, when the steps change `text`, which is not empty.
bool normalize(const std::vector<NormalizerStep>& steps, std::string_view text, std::string& out) {
  bool changed = false;
  for (const NormalizerStep& step : steps) {
    std::string next;
    switch (step.kind) {
      case NormalizerStep::Kind::nfc:
        if (!maybe_not_nfc(text)) continue;
        next = to_nfc(text);
        break;
      case NormalizerStep::Kind::prepend:
        next.reserve(step.to.size() + text.size());
        next.append(step.to).append(text);
        break;
      case NormalizerStep::Kind::replace:
        if (text.find(step.from) == std::string_view::npos) continue;
        next.reserve(text.size() + text.size() / 2);
        append_replaced(next, text, step.from, step.to);
        break;
    }
    text = out = std::move(next);
    changed = true;
  }
  return changed;
}

}  // namespace

struct Tokenizer::Tables {
  Bpe bpe;
  PreTokenizer pre_tokenizer;
  AddedTokenMatcher added;             // matched in the text as it comes
  AddedTokenMatcher added_normalized;  // matched in what is left, after normalisation
  std::vector<NormalizerStep> normalizer;
  LeadingSpace leading_space;
  bool add_bos, add_eos;
  int32_t bos_id;
  std::vector<int32_t> eos_ids;

  bool contains(int32_t id) const { return id >= 0 && static_cast<size_t>(id) < bpe.size(); }
  void encode_between(std::string_view text, bool at_start, PreTokenizer::Scratch& words, BpeScratch& merging,
                      std::vector<int32_t>& ids) const;
};

namespace {

// What readers of a text cannot know: where it lies.
template <class T>
Result<T> at(const std::string& place, Result<T> result) {
  if (result.ok()) return result;
  Error error = std::move(result).error();
  error.where = place + error.where;
  return error;
}

}  // namespace

Result<Tokenizer> Tokenizer::open(const Checkpoint& checkpoint, TokenizerOptions options) {
  if (const Gguf* gguf = checkpoint.gguf()) {
    PROA_ASSIGN(const Vocabulary vocabulary, vocabulary_from_gguf(*gguf, options.llama_cpp));
    return at(gguf->path() + ": ", create(vocabulary));
  }
  PROA_ASSIGN(const std::string json, checkpoint.read_text("tokenizer.json"));
  std::string config;
  if (checkpoint.has_file("tokenizer_config.json")) {
    PROA_ASSIGN(config, checkpoint.read_text("tokenizer_config.json"));
  }
  const std::string folder = checkpoint.path() + "/";
  PROA_ASSIGN(const Vocabulary vocabulary, at(folder, vocabulary_from_tokenizer_json(json, config)));
  return at(folder + "tokenizer.json: ", create(vocabulary));
}

namespace {

Result<std::string> read_text(const std::string& path) {
  PROA_ASSIGN(const MappedFile file, MappedFile::open(path));
  if (file.bytes().size() > Checkpoint::kMaxTextBytes) {
    return Error{.doing = "read tokenizer",
                 .where = path,
                 .expected = "at most " + std::to_string(Checkpoint::kMaxTextBytes) + " bytes",
                 .actual = std::to_string(file.bytes().size())};
  }
  return std::string(reinterpret_cast<const char*>(file.bytes().data()), file.bytes().size());
}

}  // namespace

Result<Tokenizer> Tokenizer::open_path(const std::string& path, TokenizerOptions options) {
  namespace fs = std::filesystem;
  std::error_code code;
  std::string file = path;
  if (fs::is_directory(path, code)) {
    file = (fs::path(path) / "tokenizer.json").string();
    if (!fs::exists(file, code)) {
      std::vector<std::string> models;  // the first by name: parts of a split model are numbered
      for (fs::directory_iterator entry(path, code), end; !code && entry != end; entry.increment(code)) {
        if (entry->path().extension() == ".gguf") models.push_back(entry->path().string());
      }
      if (!models.empty()) file = *std::min_element(models.begin(), models.end());
    }
  }
  PROA_ASSIGN(const MappedFile head, MappedFile::open(file));
  const std::string_view bytes(reinterpret_cast<const char*>(head.bytes().data()), head.bytes().size());
  if (bytes.starts_with("GGUF")) {
    PROA_ASSIGN(const Gguf gguf, Gguf::open(file));
    PROA_ASSIGN(const Vocabulary vocabulary, vocabulary_from_gguf(gguf, options.llama_cpp));
    return create(vocabulary);
  }
  PROA_ASSIGN(const std::string json, read_text(file));
  std::string config;
  const std::string beside = (fs::path(file).parent_path() / "tokenizer_config.json").string();
  if (fs::path(file).filename() == "tokenizer.json" && fs::exists(beside, code)) {
    PROA_ASSIGN(config, read_text(beside));
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
    std::string valid, changed;
    append_replacing_invalid(valid, token.content);
    if (!valid.empty() && normalize(vocabulary.normalizer, valid, changed)) {
      token.content = contents.emplace_back(std::move(changed));
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
  return Tokenizer(std::make_shared<const Tables>(Tables{
      std::move(bpe), std::move(pre_tokenizer), std::move(added), std::move(added_normalized), vocabulary.normalizer,
      vocabulary.leading_space, vocabulary.add_bos, vocabulary.add_eos, vocabulary.bos_id, vocabulary.eos_ids}));
}

void Tokenizer::Tables::encode_between(std::string_view text, bool at_start, PreTokenizer::Scratch& words,
                                       BpeScratch& merging, std::vector<int32_t>& ids) const {
  if (text.empty()) return;
  std::string changed;
  if (normalize(normalizer, text, changed)) text = changed;
  const auto cut = [&](size_t begin, size_t end) {
    pre_tokenizer.cut(text.substr(begin, end - begin), at_start && begin == 0, words,
                      [&](std::string_view word) { bpe.encode(word, merging, ids); });
  };
  size_t done = 0;
  while (const auto match = added_normalized.next(text, done, {})) {
    cut(done, match->begin);
    ids.push_back(match->id);
    done = match->end;
  }
  cut(done, text.size());
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
    tables_->encode_between(view.substr(done, match->begin - done), done == 0, words, merging, ids);
    ids.push_back(match->id);
    done = match->end;
  }
  tables_->encode_between(view.substr(done), done == 0, words, merging, ids);
  return ids;
}

std::string_view Tokenizer::piece(int32_t id) const {
  return tables_->contains(id) ? tables_->bpe.piece(id) : std::string_view();
}

std::string Tokenizer::decode(std::span<const int32_t> ids, bool skip_special) const {
  Detokenizer whole(*this, skip_special);
  std::string text;
  for (const int32_t id : ids) whole.append(id, text);
  return text += whole.finish();
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
  const int32_t id = tables_->bpe.find_decoded(bytes);
  return id >= 0 ? std::optional(id) : std::nullopt;
}

std::optional<int32_t> Tokenizer::bos_id() const {
  return tables_->bos_id >= 0 ? std::optional(tables_->bos_id) : std::nullopt;
}
bool Tokenizer::adds_bos() const { return tables_->add_bos; }
bool Tokenizer::adds_eos() const { return tables_->add_eos; }
std::span<const int32_t> Tokenizer::eos_ids() const { return tables_->eos_ids; }

Detokenizer::Detokenizer(Tokenizer tokenizer, bool skip_special, bool continues)
    : tokenizer_(std::move(tokenizer)),
      skip_special_(skip_special),
      continues_(continues),
      strips_(!continues && tokenizer_.tables_->leading_space != LeadingSpace::keep) {}

std::string Detokenizer::push(int32_t id) {
  std::string text;
  append(id, text);
  return text;
}

void Detokenizer::append(int32_t id, std::string& text) {
  if (skip_special_ && tokenizer_.is_special(id)) return;
  std::string_view piece = tokenizer_.piece(id);
  if (piece.empty()) return;
  std::string stripped;
  if (strips_) {
    strips_ = false;
    if (tokenizer_.tables_->leading_space == LeadingSpace::strip_token) {
      append_replaced(stripped, piece, " ", "");
      piece = stripped;
    } else if (piece.front() == ' ') {
      piece.remove_prefix(1);
    }
  }
  if (!pending_.empty()) {
    pending_ += piece;
    piece = pending_;
  }
  const size_t unfinished = append_valid_utf8(text, piece);
  pending_ = std::string(piece.substr(piece.size() - unfinished));
}

std::string Detokenizer::finish() {
  std::string text;
  append_replacing_invalid(text, pending_);
  pending_.clear();
  strips_ = !continues_ && tokenizer_.tables_->leading_space != LeadingSpace::keep;
  return text;
}

}  // namespace proa
