// What the names in GGUF's tokenizer.ggml.pre stand for. The expressions are facts of the models' own tokenizer.json;
// vectors in the tests hold them to the official tokenizers.
#include <algorithm>
#include <array>
#include <iterator>

#include "checkpoint/printable.h"
#include "tokenizer/vocabulary.h"

namespace proa {
namespace {

constexpr const char* kGpt2 = R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)";

// The family that began with cl100k: contractions, words with one leading non-letter, digits, punctuation with the line
// breaks after it, white space. Members differ in how many digits go together, and Qwen 3.5 in keeping marks in words.
constexpr const char* kLlama3 =
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)";
constexpr const char* kQwen2 =
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)";
constexpr const char* kQwen35 =
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)";

// Mistral's Tekken, also Nemotron 3: words are cut where capitals begin, marks belong to words.
constexpr const char* kTekken = R"([^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+)"
                                R"(|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*)"
                                R"(|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+)";
// llama.cpp knows only a-z and A-Z as cased and no marks.
constexpr const char* kTekkenLlamaCpp =
    R"([^\r\n\p{L}\p{N}]?[^\P{L}a-z]*[^\P{L}A-Z]+|[^\r\n\p{L}\p{N}]?[^\P{L}a-z]+[^\P{L}A-Z]*)"
    R"(|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+)";

constexpr const char* kGpt4o =
    R"([^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?)"
    R"(|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?)"
    R"(|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+)";
constexpr const char* kGpt4oLlamaCpp = R"([^\r\n\p{L}\p{N}]?[^\P{L}a-z]*[^\P{L}A-Z]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?)"
                                       R"(|[^\r\n\p{L}\p{N}]?[^\P{L}a-z]+[^\P{L}A-Z]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?)"
                                       R"(|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+)";

struct Preset {
  const char* name;
  std::array<const char*, 4> expressions;            // one after the other; null: no more
  std::array<const char*, 4> llama_cpp = {nullptr};  // where llama.cpp differs
  bool ignore_merges = false;
  bool add_bos = false;
  bool nfc = false;  // llama.cpp normalises nothing
};

// What llama.cpp falls back to when a file names none.
constexpr std::array<const char*, 4> kDefault = {R"([\p{P}\$\+<=>\^~\|]+)", kGpt2, R"(\p{N}+)", "[0-9][0-9][0-9]"};

constexpr std::array<const char*, 4> kDigitsGpt2 = {R"(\p{N})", kGpt2};
constexpr std::array<const char*, 4> kDeepSeek3 = {
    R"(\p{N}{1,3})", R"([\x{4E00}-\x{9FA5}\x{3040}-\x{309F}\x{30A0}-\x{30FF}]+)",
    R"([!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)"};

constexpr Preset kPresets[] = {
    {.name = "default", .expressions = kDefault},

    {.name = "gpt-2", .expressions = {kGpt2}},
    {.name = "gpt2", .expressions = {kGpt2}},
    {.name = "phi-2", .expressions = {kGpt2}},
    {.name = "mpt", .expressions = {kGpt2}},
    {.name = "olmo", .expressions = {kGpt2}},
    {.name = "jais", .expressions = {kGpt2}},
    {.name = "exaone4", .expressions = {kGpt2}},
    {.name = "granite-docling", .expressions = {kGpt2}},

    {.name = "smollm", .expressions = kDigitsGpt2},
    {.name = "starcoder", .expressions = kDigitsGpt2},
    {.name = "refact", .expressions = kDigitsGpt2},
    {.name = "command-r", .expressions = kDigitsGpt2},
    {.name = "codeshell", .expressions = kDigitsGpt2},
    {.name = "exaone", .expressions = kDigitsGpt2},
    {.name = "minerva-7b", .expressions = kDigitsGpt2},

    {.name = "llama-bpe", .expressions = {kLlama3}, .ignore_merges = true, .add_bos = true},
    {.name = "llama3", .expressions = {kLlama3}, .ignore_merges = true, .add_bos = true},
    {.name = "llama-v3", .expressions = {kLlama3}, .ignore_merges = true, .add_bos = true},
    {.name = "falcon3", .expressions = {kLlama3}, .ignore_merges = true, .add_bos = true},
    {.name = "falcon-h1", .expressions = {kLlama3}, .ignore_merges = true, .add_bos = true},
    {.name = "lfm2", .expressions = {kLlama3}, .ignore_merges = true, .add_bos = true},
    {.name = "dbrx", .expressions = {kLlama3}},
    {.name = "smaug-bpe", .expressions = {kLlama3}},
    {.name = "chatglm-bpe", .expressions = {kLlama3}},
    {.name = "glm4", .expressions = {kLlama3}, .ignore_merges = true},

    {.name = "qwen2", .expressions = {kQwen2}, .nfc = true},
    {.name = "deepseek-r1-qwen", .expressions = {kQwen2}},
    {.name = "megrez", .expressions = {kQwen2}},
    {.name = "stablelm2", .expressions = {kQwen2}},
    {.name = "hunyuan", .expressions = {kQwen2}},
    {.name = "grok-2", .expressions = {kQwen2}},
    {.name = "qwen35", .expressions = {kQwen35}},  // its published vectors keep decomposed letters apart

    // The name of Mistral's Pixtral; files of Nemotron 3 carry it because the vocabularies hash alike.
    {.name = "pixtral", .expressions = {kTekken}, .llama_cpp = {kLlama3}, .ignore_merges = true, .add_bos = true},
    {.name = "tekken",
     .expressions = {kTekken},
     .llama_cpp = {kTekkenLlamaCpp},
     .ignore_merges = true,
     .add_bos = true},

    {.name = "gpt-4o", .expressions = {kGpt4o}, .llama_cpp = {kGpt4oLlamaCpp}},
    {.name = "llama4", .expressions = {kGpt4o}, .llama_cpp = {kGpt4oLlamaCpp}},

    {.name = "deepseek-v3", .expressions = kDeepSeek3},
};

// Other spellings and steps in tokenizer.json files.
constexpr const char* kKnown[] = {R"('(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)",
                                  R"(\p{N}{1,3})", R"(\p{L}+)", R"(\s+)", R"(\d)"};

}  // namespace

bool is_known_expression(std::string_view expression) {
  const auto matches = [&](const char* known) { return known && expression == known; };
  for (const Preset& preset : kPresets) {
    if (std::any_of(preset.expressions.begin(), preset.expressions.end(), matches)) return true;
    if (std::any_of(preset.llama_cpp.begin(), preset.llama_cpp.end(), matches)) return true;
  }
  return std::any_of(std::begin(kKnown), std::end(kKnown), matches);
}

Result<PreTokenizerPreset> pretokenizer_preset(std::string_view pre, bool llama_cpp) {
  std::string known;
  for (const Preset& preset : kPresets) {
    known.append(known.empty() ? "" : ", ").append(preset.name);
    if (preset.name != pre) continue;
    PreTokenizerPreset result;
    for (const char* expression : llama_cpp&& preset.llama_cpp[0] ? preset.llama_cpp : preset.expressions) {
      if (expression) result.steps.push_back({.expression = expression});
    }
    result.ignore_merges = preset.ignore_merges;
    result.add_bos = preset.add_bos;
    result.nfc = preset.nfc && !llama_cpp;
    return result;
  }
  return Error{.doing = "read tokenizer",
               .where = "tokenizer.ggml.pre",
               .expected = "one of " + known,
               .actual = "'" + printable(pre) + "'"};
}

}  // namespace proa
