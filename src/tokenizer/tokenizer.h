// Text to token ids and back: byte-level BPE and SentencePiece's BPE, cut as the model was trained.
//
//   PROA_ASSIGN(auto tokenizer, Tokenizer::open(checkpoint));
//   auto ids = tokenizer.encode("Hello", {.parse_special = true});
//   Detokenizer out(tokenizer);
//   for (int32_t id : sampled) std::cout << out.push(id);
//
// Invalid UTF-8 in a text becomes U+FFFD (one per maximal subpart, as Python's errors="replace") before encoding.
// Source: Sennrich et al. 2016 (BPE); GPT-2's byte alphabet; Hugging Face `tokenizers` for the order of the stages;
// llama.cpp for what GGUF files leave out.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "core/result.h"

namespace proa {

class Checkpoint;
struct Vocabulary;

struct EncodeOptions {
  // Control tokens ("<|im_end|>") in the text become their ids; off, they are ordinary characters. Added tokens that
  // are not control tokens (GGUF "user defined") are part of the language and always matched.
  bool parse_special = false;
  // Prepends BOS if the file wants one (adds_bos()). Leave off for chat: templates write their own.
  bool add_bos = false;
};

// A stretch of a prompt. Template text has parse_special on; what users wrote has it off.
struct TextSegment {
  std::string_view text;
  bool parse_special = false;
};

struct TokenizerOptions {
  bool llama_cpp = false;  // GGUF only: llama.cpp's pre-tokenizer where it differs from the model's own
};

// Immutable and cheap to copy; copies share the tables, and any number of threads may encode and decode at once.
// Does not keep the checkpoint or vocabulary it was made from.
class Tokenizer {
 public:
  // From GGUF metadata, or from tokenizer.json (and tokenizer_config.json) beside safetensors. Errors: no tokenizer,
  // unsupported kind of model or pre-tokenizer (the message names the field and what is supported), broken tables.
  static Result<Tokenizer> open(const Checkpoint& checkpoint, TokenizerOptions options = {});
  // Only the tokenizer of what `path` names: a GGUF file (a vocabulary alone will do), a tokenizer.json (with
  // tokenizer_config.json where it lies beside it), or a folder that holds either.
  static Result<Tokenizer> open_path(const std::string& path, TokenizerOptions options = {});
  static Result<Tokenizer> create(const Vocabulary& vocabulary);

  // Any bytes, any length; time is n log n in the longest word.
  std::vector<int32_t> encode(std::string_view text, EncodeOptions options = {}) const;
  // As if the texts were one: words run across the borders of segments, and the result is that of the joined text
  // unless a control token is spelt in (or reaches into) a segment that has parse_special off.
  std::vector<int32_t> encode(std::span<const TextSegment> segments, bool add_bos = false) const;

  // The bytes of a token, possibly part of a character; "" for an id outside the vocabulary. Lives as long as any copy
  // of this tokenizer.
  std::string_view piece(int32_t id) const;
  // UTF-8 text of all ids together; invalid bytes become U+FFFD. Ids outside the vocabulary are left out, and so is the
  // space that vocabularies of SentencePiece put in front of a text.
  std::string decode(std::span<const int32_t> ids, bool skip_special = false) const;

  int32_t vocab_size() const;                                     // ids are 0 .. vocab_size() - 1
  bool is_special(int32_t id) const;                              // control or unknown token; user-defined ones are not
  std::optional<int32_t> token_id(std::string_view bytes) const;  // of the token with exactly these bytes

  std::optional<int32_t> bos_id() const;
  bool adds_bos() const;  // the file wants BOS in front of a completion's prompt
  bool adds_eos() const;  // the file wants EOS behind; encode() never does it
  // Every id that ends generation by the tokenizer's account, the file's eos first; generation_config.json may know
  // more. May be empty.
  std::span<const int32_t> eos_ids() const;

 private:
  friend class Detokenizer;
  struct Tables;
  explicit Tokenizer(std::shared_ptr<const Tables> tables) : tables_(std::move(tables)) {}
  std::shared_ptr<const Tables> tables_;
};

// Ids to text as they come. Holds back at most 3 bytes of an unfinished character. The texts of all push() and the
// final finish() together equal decode() of the same ids. One per sequence; not shared between threads.
class Detokenizer {
 public:
  // `continues`: the ids follow a text, so a space in front belongs to them, where decode() would drop one.
  explicit Detokenizer(Tokenizer tokenizer, bool skip_special = false, bool continues = false);

  std::string push(int32_t id);  // the text that is complete now, always valid UTF-8, often empty
  std::string finish();          // what was held back, as U+FFFD; the detokenizer is as new afterwards

 private:
  friend class Tokenizer;
  void append(int32_t id, std::string& text);

  Tokenizer tokenizer_;
  bool skip_special_;
  bool continues_;
  bool strips_;          // the next piece loses the space in front
  std::string pending_;  // start of a character, 0 to 3 bytes
};

}  // namespace proa
