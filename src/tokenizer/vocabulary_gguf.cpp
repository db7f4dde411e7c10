#include <algorithm>

#include "checkpoint/gguf.h"
#include "checkpoint/printable.h"
#include "tokenizer/bpe.h"
#include "tokenizer/end_tokens.h"
#include "tokenizer/vocabulary.h"

namespace proa {
namespace {

constexpr const char* kDoing = "read tokenizer";

Error problem(const Gguf& gguf, std::string key, std::string expected, std::string actual) {
  return Error{
      .doing = kDoing, .where = gguf.path() + ": " + key, .expected = std::move(expected), .actual = printable(actual)};
}

// The id that `key` names; -1 when the file does not say, or says with a -1 that there is none.
Result<int32_t> token_id_of(const Gguf& gguf, const std::string& key, size_t size) {
  if (!gguf.has(key)) return int32_t{-1};
  PROA_ASSIGN(const int64_t id, gguf.i64(key));
  // Some writers store "none" as an all-ones u32.
  if (id == -1 || id == int64_t{UINT32_MAX}) return int32_t{-1};
  if (id < 0 || static_cast<uint64_t>(id) >= size) {
    return problem(gguf, key, "an id below " + std::to_string(size), std::to_string(id));
  }
  return static_cast<int32_t>(id);
}

Result<void> read_types(const Gguf& gguf, Vocabulary& vocabulary) {
  const size_t size = vocabulary.tokens.size();
  vocabulary.types.assign(size, TokenType::normal);
  if (!gguf.has("tokenizer.ggml.token_type")) return {};
  PROA_ASSIGN(const std::vector<int64_t> types, gguf.integers("tokenizer.ggml.token_type"));
  if (types.size() != size) {
    return problem(gguf, "tokenizer.ggml.token_type", std::to_string(size) + " types, one per token",
                   std::to_string(types.size()));
  }
  for (size_t id = 0; id < size; ++id) {
    if (types[id] < 1 || types[id] > 6) {
      return problem(gguf, "tokenizer.ggml.token_type[" + std::to_string(id) + "]", "1 to 6",
                     std::to_string(types[id]));
    }
    vocabulary.types[id] = static_cast<TokenType>(types[id]);
  }
  return {};
}

Result<void> read_byte_level(const Gguf& gguf, bool llama_cpp, Vocabulary& vocabulary) {
  // Where a file does not say, llama.cpp's default; but the early files of GPT-OSS, which say nothing, are known.
  const auto architecture = gguf.string("general.architecture", "");
  const bool gpt_oss = architecture.ok() && (*architecture == "gptoss" || *architecture == "gpt-oss");
  PROA_ASSIGN(const std::string_view pre, gguf.string("tokenizer.ggml.pre", gpt_oss ? "gpt-4o" : "default"));
  PROA_ASSIGN(PreTokenizerPreset preset, pretokenizer_preset(pre, llama_cpp));
  PROA_ASSIGN(const GgufStrings merges, gguf.strings("tokenizer.ggml.merges"));
  if (merges.size() > Bpe::kMaxMerges) {
    return problem(gguf, "tokenizer.ggml.merges", "at most " + std::to_string(Bpe::kMaxMerges),
                   std::to_string(merges.size()));
  }
  vocabulary.merges.reserve(merges.size());
  for (const std::string_view merge : merges) {
    // The space is not of the byte alphabet, so the only one separates the two.
    const size_t space = merge.find(' ');
    if (space == std::string_view::npos || merge.find(' ', space + 1) != std::string_view::npos) {
      return problem(gguf, "tokenizer.ggml.merges[" + std::to_string(vocabulary.merges.size()) + "]",
                     "two tokens with a space between", "'" + std::string(merge) + "'");
    }
    vocabulary.merges.push_back({merge.substr(0, space), merge.substr(space + 1)});
  }
  PROA_ASSIGN(vocabulary.add_bos, gguf.boolean("tokenizer.ggml.add_bos_token", preset.add_bos));
  vocabulary.steps = std::move(preset.steps);
  vocabulary.ignore_merges = preset.ignore_merges;
  if (preset.nfc) vocabulary.normalizer.push_back({.kind = NormalizerStep::Kind::nfc});
  return {};
}

// SentencePiece's BPE: no merges and no expressions, but a score per token.
Result<void> read_sentencepiece(const Gguf& gguf, Vocabulary& vocabulary) {
  const size_t size = vocabulary.tokens.size();
  PROA_ASSIGN(vocabulary.scores, gguf.floats("tokenizer.ggml.scores"));
  if (vocabulary.scores.size() != size) {
    return problem(gguf, "tokenizer.ggml.scores", std::to_string(size) + " scores, one per token",
                   std::to_string(vocabulary.scores.size()));
  }
  vocabulary.symbols = Vocabulary::Symbols::characters;
  vocabulary.byte_fallback = true;
  vocabulary.metaspace_is_space = true;
  if (!gguf.has("tokenizer.ggml.token_type")) {
    for (size_t id = 0; id < size; ++id) {
      if (byte_of_token(vocabulary.tokens[id]) >= 0) vocabulary.types[id] = TokenType::byte;
    }
  }
  PROA_ASSIGN(const bool prefix_space, gguf.boolean("tokenizer.ggml.add_space_prefix", true));
  if (prefix_space) {
    vocabulary.normalizer.push_back({.kind = NormalizerStep::Kind::prepend, .to = std::string(kMetaspace)});
    vocabulary.leading_space = LeadingSpace::strip;
  }
  vocabulary.normalizer.push_back({.kind = NormalizerStep::Kind::replace, .from = " ", .to = std::string(kMetaspace)});
  PROA_ASSIGN(vocabulary.add_bos, gguf.boolean("tokenizer.ggml.add_bos_token", true));
  PROA_ASSIGN(vocabulary.unk_id, token_id_of(gguf, "tokenizer.ggml.unknown_token_id", size));
  return {};
}

}  // namespace

Result<Vocabulary> vocabulary_from_gguf(const Gguf& gguf, bool llama_cpp) {
  PROA_ASSIGN(const std::string_view model, gguf.string("tokenizer.ggml.model"));
  if (model != "gpt2" && model != "llama") {
    Error error = problem(gguf, "tokenizer.ggml.model", "gpt2 (byte-level BPE) or llama (SentencePiece's BPE)",
                          "'" + std::string(model) + "'");
    if (model == "t5" || model == "bert") error.hint = "Unigram and WordPiece are not supported";
    return error;
  }

  Vocabulary vocabulary;
  PROA_ASSIGN(const GgufStrings tokens, gguf.strings("tokenizer.ggml.tokens"));
  vocabulary.tokens.assign(tokens.begin(), tokens.end());
  const size_t size = vocabulary.tokens.size();
  PROA_TRY(read_types(gguf, vocabulary));
  if (model == "gpt2") {
    PROA_TRY(read_byte_level(gguf, llama_cpp, vocabulary));
  } else {
    PROA_TRY(read_sentencepiece(gguf, vocabulary));
  }

  std::vector<int32_t> ends;
  for (const char* key : {"eos", "eot", "eom"}) {
    PROA_ASSIGN(const int32_t id, token_id_of(gguf, "tokenizer.ggml." + std::string(key) + "_token_id", size));
    if (id >= 0) ends.push_back(id);
  }
  if (gguf.has("tokenizer.ggml.eos_token_ids")) {  // of GPT-OSS
    PROA_ASSIGN(const std::vector<int64_t> ids, gguf.integers("tokenizer.ggml.eos_token_ids"));
    for (const int64_t id : ids) {
      if (id < 0 || static_cast<uint64_t>(id) >= size || ids.size() > 64) {
        return problem(gguf, "tokenizer.ggml.eos_token_ids", "at most 64 ids below " + std::to_string(size),
                       std::to_string(ids.size()) + " with " + std::to_string(id));
      }
      ends.push_back(static_cast<int32_t>(id));
    }
  }
  for (size_t id = 0; id < size; ++id) {
    TokenType& type = vocabulary.types[id];
    const bool whole = type == TokenType::control || type == TokenType::user_defined || type == TokenType::unknown;
    if (!whole || vocabulary.tokens[id].empty()) continue;
    if (ends_generation(vocabulary.tokens[id])) {
      // Files have these as user-defined by mistake, which would let a message end its own turn.
      type = TokenType::control;
      ends.push_back(static_cast<int32_t>(id));
    }
    vocabulary.added.push_back(
        {.id = static_cast<int32_t>(id), .content = vocabulary.tokens[id], .special = type != TokenType::user_defined});
  }
  for (const int32_t id : ends) {
    auto& eos_ids = vocabulary.eos_ids;
    if (std::find(eos_ids.begin(), eos_ids.end(), id) == eos_ids.end()) eos_ids.push_back(id);
  }

  PROA_ASSIGN(vocabulary.bos_id, token_id_of(gguf, "tokenizer.ggml.bos_token_id", size));
  PROA_ASSIGN(vocabulary.add_eos, gguf.boolean("tokenizer.ggml.add_eos_token", false));
  return vocabulary;
}

}  // namespace proa
