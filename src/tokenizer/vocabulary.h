// What a tokenizer is made of, as the files say it: tokens, merges, how text is cut before merging, which tokens are
// matched whole. Two makers, one per container; both give the same struct, from which Tokenizer is built.
// Sources: GGUF keys tokenizer.ggml.*; Hugging Face tokenizer.json and tokenizer_config.json.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "core/result.h"

namespace proa {

class Gguf;

// The numbers are those of GGUF's tokenizer.ggml.token_type.
enum class TokenType : uint8_t { normal = 1, unknown = 2, control = 3, user_defined = 4, unused = 5, byte = 6 };

// What stands for a space in SentencePiece vocabularies.
inline constexpr std::string_view kMetaspace = "\u2581";

// One step of changing the text between added tokens before it is cut. `replace` knows no expressions.
struct NormalizerStep {
  enum class Kind : uint8_t { nfc, prepend, replace };
  Kind kind = Kind::nfc;
  std::string from = {};  // replace: what; not empty
  std::string to = {};    // replace: by what; prepend: what goes in front of a text that is not empty
};

// One step of cutting text into the words that are merged on their own. Every step works on the pieces of the one
// before; an `isolated` step makes each match a piece and each gap between matches a piece.
struct PreTokenizerStep {
  enum class Kind : uint8_t {
    split,
    prefix_space,     // a piece that has no space in front gets one
    metaspace,        // spaces become kMetaspace
    metaspace_first,  // and the piece that begins the text gets one in front unless it has one
    metaspace_always  // and every piece does
  };
  enum class Behavior : uint8_t { isolated, removed, merged_with_previous, merged_with_next, contiguous };
  Kind kind = Kind::split;
  std::string expression = {};  // PCRE2 syntax, UTF and UCP on
  Behavior behavior = Behavior::isolated;
  bool invert = false;   // gaps count as matches and matches as gaps
  bool literal = false;  // `expression` is the text itself
};

// A token that is matched as a whole before the text is cut.
struct AddedToken {
  int32_t id = -1;
  std::string_view content;
  bool special = true;       // a control token: matched only where special tokens are parsed
  bool lstrip = false;       // takes the white space before it along
  bool rstrip = false;       // takes the white space after it along
  bool single_word = false;  // not matched beside a letter, digit, mark or underscore
  bool normalized = false;   // matched in the normalised text, after all that are not
};

struct MergeText {
  std::string_view left, right;
};

// What the text of a whole decoding loses in front: the space that stood for the beginning of the text.
enum class LeadingSpace : uint8_t {
  keep,
  strip,        // one space
  strip_token,  // every space of the first token, as the Metaspace decoder has it
};

struct Vocabulary {
  // What merging begins with: the bytes of a word, or (SentencePiece) its characters.
  enum class Symbols : uint8_t { bytes, characters };

  Symbols symbols = Symbols::bytes;
  std::vector<std::string_view> tokens;  // [vocab_size] of bytes in GPT-2's alphabet, else and added tokens literally
  std::vector<TokenType> types;          // [vocab_size]
  std::vector<MergeText> merges;         // by rank, lowest first
  std::vector<float> scores;             // [vocab_size] or empty; any two tokens that join to one merge, highest first
  std::vector<AddedToken> added;
  std::vector<NormalizerStep> normalizer;  // before everything but added tokens that are not `normalized`
  std::vector<PreTokenizerStep> steps;

  bool ignore_merges = false;  // a word that is itself a token is not merged
  bool byte_fallback = false;  // characters: one without a token becomes its bytes, if all of them have <0xNN> tokens
  bool add_bos = false;        // what the file wants in front of a completion's prompt
  bool add_eos = false;
  bool fuse_unk = false;
  int32_t unk_id = -1;  // stands for a symbol that has no token; -1: such symbols are dropped before merging

  // Decoding, of `characters` only.
  bool metaspace_is_space = false;           // kMetaspace in a token is a space
  bool metaspace_is_space_in_added = false;  // in those matched whole, too
  LeadingSpace leading_space = LeadingSpace::keep;

  int32_t bos_id = -1;
  std::vector<int32_t> eos_ids;  // the file's eos first; eot, eom and control tokens known by their text follow

  std::shared_ptr<const void> storage;  // keeps what the views point into, when that is not a mapped file
};

// The steps for a GGUF `tokenizer.ggml.pre`, with what else the name implies.
struct PreTokenizerPreset {
  std::vector<PreTokenizerStep> steps;
  bool ignore_merges = false;
  bool add_bos = false;  // when the file has no add_bos_token
  bool nfc = false;
};

// `llama_cpp`: cut the way llama.cpp does where that differs from the model's own tokenizer (pixtral, gpt-4o, NFC of
// Qwen), to compare outputs. Unknown names are an error that lists the known ones.
Result<PreTokenizerPreset> pretokenizer_preset(std::string_view pre, bool llama_cpp = false);

// The byte that a token spelt <0xNN> stands for; -1: it is spelt otherwise.
int byte_of_token(std::string_view token);

// How many times longer a normaliser may make a text, whatever its steps.
inline constexpr size_t kMaxNormalizerGrowth = 8;

// Whether an expression is one of ours, and so known to run in linear time.
bool is_known_expression(std::string_view expression);

// Views into `gguf`, which must outlive the vocabulary.
Result<Vocabulary> vocabulary_from_gguf(const Gguf& gguf, bool llama_cpp = false);

// `tokenizer_config` may be empty. Both texts may be dropped afterwards.
Result<Vocabulary> vocabulary_from_tokenizer_json(std::string_view tokenizer_json, std::string_view tokenizer_config);

}  // namespace proa
