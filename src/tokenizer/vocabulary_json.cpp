// tokenizer.json as Hugging Face `tokenizers` writes it: added_tokens, normalizer, pre_tokenizer, model,
// post_processor, decoder. What we do not do exactly is an error that names the field, never an approximation.
#include <simdjson.h>

#include <algorithm>

#include "checkpoint/checkpoint.h"
#include "checkpoint/json_events.h"
#include "checkpoint/printable.h"
#include "tokenizer/bpe.h"
#include "tokenizer/end_tokens.h"
#include "tokenizer/vocabulary.h"

namespace proa {
namespace {

using simdjson::dom::element;
using simdjson::dom::element_type;

Error problem(std::string where, std::string expected, std::string actual, std::string hint = {}) {
  return Error{.doing = "read tokenizer",
               .where = "tokenizer.json: " + printable(where, 300),
               .expected = std::move(expected),
               .actual = printable(actual),
               .hint = std::move(hint)};
}

std::string describe(element value) {
  switch (value.type()) {
    case element_type::NULL_VALUE:
      return "null";
    case element_type::BOOL:
      return "a boolean";
    case element_type::STRING:
      return "'" + std::string(value.get_string().value_unsafe().substr(0, 100)) + "'";
    case element_type::ARRAY:
      return "an array";
    case element_type::OBJECT:
      return "an object";
    default:
      return "a number";
  }
}

// A JSON value with its path for messages. A missing field is an invalid Node, not an error, until it is read.
struct Node {
  element value = {};
  bool present = false;
  std::string path = {};

  bool is_null() const { return !present || value.is_null(); }
  Node operator[](std::string_view key) const {
    Node child{.path = path.empty() ? std::string(key) : path + "." + std::string(key)};
    if (present && value.is_object()) child.present = value[key].get(child.value) == simdjson::SUCCESS;
    return child;
  }
  Error wrong(std::string expected) const {
    return problem(path, std::move(expected), present ? describe(value) : "nothing");
  }
  Result<std::string_view> string() const {
    std::string_view text;
    if (!present || value.get(text) != simdjson::SUCCESS) return wrong("a string");
    return text;
  }
  Result<bool> boolean(bool fallback) const {
    if (is_null()) return fallback;
    bool flag;
    if (value.get(flag) != simdjson::SUCCESS) return wrong("a boolean");
    return flag;
  }
  Result<int32_t> id() const {
    int64_t number;
    if (!present || value.get(number) != simdjson::SUCCESS || number < 0 ||
        number >= static_cast<int64_t>(Bpe::kMaxTokens)) {
      Error error = wrong("a token id");
      if (present && value.get(number) == simdjson::SUCCESS) error.actual = std::to_string(number);
      return error;
    }
    return static_cast<int32_t>(number);
  }
  Result<std::vector<Node>> array() const {
    simdjson::dom::array values;
    if (!present || value.get(values) != simdjson::SUCCESS) return wrong("an array");
    std::vector<Node> nodes;
    if (values.size() > 256) return problem(path, "at most 256 items", std::to_string(values.size()));
    for (const element child : values) nodes.push_back({child, true, path + "[" + std::to_string(nodes.size()) + "]"});
    return nodes;
  }
};

Result<void> read_normalizer(const Node& node, Vocabulary& vocabulary) {
  if (node.is_null()) return {};
  PROA_ASSIGN(const std::string_view type, node["type"].string());
  if (type == "Sequence") {
    PROA_ASSIGN(const auto parts, node["normalizers"].array());
    for (const Node& part : parts) PROA_TRY(read_normalizer(part, vocabulary));
    return {};
  }
  NormalizerStep step;
  if (type == "NFC") {
    step.kind = NormalizerStep::Kind::nfc;
  } else if (type == "Prepend") {
    step.kind = NormalizerStep::Kind::prepend;
    PROA_ASSIGN(step.to, node["prepend"].string());
    if (step.to.size() > 64) return node["prepend"].wrong("at most 64 bytes");
    if (step.to.empty()) return {};
  } else if (type == "Replace") {
    step.kind = NormalizerStep::Kind::replace;
    PROA_ASSIGN(step.from, node["pattern"]["String"].string());
    PROA_ASSIGN(step.to, node["content"].string());
    if (step.from.empty()) return node["pattern"]["String"].wrong("a text that is not empty");
  } else {
    return node["type"].wrong("NFC, Prepend, Replace, a Sequence of them, or null");
  }
  vocabulary.normalizer.push_back(std::move(step));
  if (vocabulary.normalizer.size() > 16) return node.wrong("at most 16 steps");
  size_t growth = 1;
  for (const NormalizerStep& each : vocabulary.normalizer) {
    if (each.kind != NormalizerStep::Kind::replace) continue;
    growth *= std::max<size_t>(1, (each.to.size() + each.from.size() - 1) / each.from.size());
    if (growth > kMaxNormalizerGrowth) {
      return node["content"].wrong("replacements that lengthen a text at most " + std::to_string(kMaxNormalizerGrowth) +
                                   " times");
    }
  }
  return {};
}

Result<void> read_split(const Node& node, Vocabulary& vocabulary) {
  PreTokenizerStep step;
  const Node pattern = node["pattern"];
  if (pattern["Regex"].present) {
    PROA_ASSIGN(step.expression, pattern["Regex"].string());
  } else {
    PROA_ASSIGN(step.expression, pattern["String"].string());
    step.literal = true;
    if (step.expression.empty()) return pattern["String"].wrong("a text that is not empty");
  }
  PROA_ASSIGN(const std::string_view behavior, node["behavior"].string());
  using Behavior = PreTokenizerStep::Behavior;
  if (behavior == "Isolated") {
    step.behavior = Behavior::isolated;
  } else if (behavior == "Removed") {
    step.behavior = Behavior::removed;
  } else if (behavior == "MergedWithPrevious") {
    step.behavior = Behavior::merged_with_previous;
  } else if (behavior == "MergedWithNext") {
    step.behavior = Behavior::merged_with_next;
  } else if (behavior == "Contiguous") {
    step.behavior = Behavior::contiguous;
  } else {
    return node["behavior"].wrong("Isolated, Removed, MergedWithPrevious, MergedWithNext or Contiguous");
  }
  PROA_ASSIGN(step.invert, node["invert"].boolean(false));
  vocabulary.steps.push_back(std::move(step));
  return {};
}

Result<void> read_metaspace(const Node& node, Vocabulary& vocabulary) {
  PROA_ASSIGN(const std::string_view replacement, node["replacement"].string());
  if (replacement != kMetaspace) return node["replacement"].wrong("'" + std::string(kMetaspace) + "'");
  // Files older than prepend_scheme say add_prefix_space instead.
  std::string_view scheme = "always";
  if (!node["prepend_scheme"].is_null()) {
    PROA_ASSIGN(scheme, node["prepend_scheme"].string());
  } else {
    PROA_ASSIGN(const bool prefix_space, node["add_prefix_space"].boolean(true));
    if (!prefix_space) scheme = "never";
  }
  using Kind = PreTokenizerStep::Kind;
  if (scheme != "always" && scheme != "first" && scheme != "never") {
    return node["prepend_scheme"].wrong("always, first or never");
  }
  vocabulary.steps.push_back({.kind = scheme == "always"  ? Kind::metaspace_always
                                      : scheme == "first" ? Kind::metaspace_first
                                                          : Kind::metaspace});
  PROA_ASSIGN(const bool split, node["split"].boolean(true));
  if (split) {
    vocabulary.steps.push_back({.expression = std::string(kMetaspace),
                                .behavior = PreTokenizerStep::Behavior::merged_with_next,
                                .literal = true});
  }
  return {};
}

// `byte_level` becomes true at the ByteLevel step, after which no other may follow.
Result<void> read_pre_tokenizer(const Node& node, Vocabulary& vocabulary, bool& byte_level) {
  PROA_ASSIGN(const std::string_view type, node["type"].string());
  if (type == "Sequence") {
    PROA_ASSIGN(const auto parts, node["pretokenizers"].array());
    for (const Node& part : parts) PROA_TRY(read_pre_tokenizer(part, vocabulary, byte_level));
    return {};
  }
  if (byte_level) return node["type"].wrong("nothing after ByteLevel");
  if (vocabulary.steps.size() > 64) return node.wrong("at most 64 steps");
  if (type == "Split") return read_split(node, vocabulary);
  if (type == "Metaspace") return read_metaspace(node, vocabulary);
  if (type == "Digits") {
    PROA_ASSIGN(const bool individual, node["individual_digits"].boolean(false));
    vocabulary.steps.push_back({.expression = individual ? R"(\p{N})" : R"(\p{N}+)"});
    return {};
  }
  if (type == "ByteLevel") {
    PROA_ASSIGN(const bool prefix_space, node["add_prefix_space"].boolean(true));
    PROA_ASSIGN(const bool use_regex, node["use_regex"].boolean(true));
    if (prefix_space) vocabulary.steps.push_back({.kind = PreTokenizerStep::Kind::prefix_space});
    if (use_regex) {
      PROA_ASSIGN(const PreTokenizerPreset gpt2, pretokenizer_preset("gpt2"));
      vocabulary.steps.push_back(gpt2.steps[0]);
    }
    byte_level = true;
    return {};
  }
  return node["type"].wrong("Split, Digits, Metaspace, ByteLevel or a Sequence of them");
}

Result<void> read_post_processor(const Node& node, Vocabulary& vocabulary) {
  if (node.is_null()) return {};
  PROA_ASSIGN(const std::string_view type, node["type"].string());
  if (type == "ByteLevel") return {};  // concerns offsets only
  if (type == "Sequence") {
    PROA_ASSIGN(const auto parts, node["processors"].array());
    for (const Node& part : parts) PROA_TRY(read_post_processor(part, vocabulary));
    return {};
  }
  if (type != "TemplateProcessing") return node["type"].wrong("TemplateProcessing, ByteLevel, a Sequence or null");
  PROA_ASSIGN(const auto parts, node["single"].array());
  size_t text = 0;  // where the sequence stands
  while (text < parts.size() && !parts[text]["Sequence"].present) ++text;
  if (text > 1 || parts.size() - text < 1 || parts.size() - text > 2) {
    return problem(node.path + ".single", "the sequence, with at most one token (BOS, EOS) on either side", "another");
  }
  for (const size_t at : {size_t{0}, parts.size() - 1}) {
    if (at == text) continue;
    PROA_ASSIGN(const std::string_view name, parts[at]["SpecialToken"]["id"].string());
    PROA_ASSIGN(const auto ids, node["special_tokens"][name]["ids"].array());
    if (ids.size() != 1) {
      return problem(node.path + ".special_tokens." + std::string(name) + ".ids", "one id", std::to_string(ids.size()));
    }
    PROA_ASSIGN(const int32_t id, ids[0].id());
    if (at < text) {
      vocabulary.bos_id = id;
      vocabulary.add_bos = true;
    } else {
      vocabulary.eos_ids.push_back(id);
      vocabulary.add_eos = true;
    }
  }
  return {};
}

Result<void> read_byte_decoder(const Node& node) {
  if (node.is_null()) return {};
  PROA_ASSIGN(const std::string_view type, node["type"].string());
  if (type == "Sequence") {
    PROA_ASSIGN(const auto parts, node["decoders"].array());
    for (const Node& part : parts) PROA_TRY(read_byte_decoder(part));
    return {};
  }
  if (type != "ByteLevel") return node["type"].wrong("ByteLevel");
  return {};
}

struct CharacterDecoder {
  bool bytes = false;  // <0xNN> are bytes
  bool fused = false;  // the texts of all tokens are one from here on
};

Result<void> read_character_decoder(const Node& node, Vocabulary& vocabulary, CharacterDecoder& decoder) {
  PROA_ASSIGN(const std::string_view type, node["type"].string());
  if (type == "Sequence") {
    PROA_ASSIGN(const auto parts, node["decoders"].array());
    for (const Node& part : parts) PROA_TRY(read_character_decoder(part, vocabulary, decoder));
    return {};
  }
  if (type == "Fuse") {
    decoder.fused = true;
    return {};
  }
  if (type == "ByteFallback" && !decoder.fused) {
    decoder.bytes = true;
    return {};
  }
  if (type == "Replace" && !decoder.fused) {
    PROA_ASSIGN(const std::string_view from, node["pattern"]["String"].string());
    PROA_ASSIGN(const std::string_view to, node["content"].string());
    if (from != kMetaspace) return node["pattern"]["String"].wrong("'" + std::string(kMetaspace) + "'");
    if (to != " ") return node["content"].wrong("' '");
    vocabulary.metaspace_is_space = vocabulary.metaspace_is_space_in_added = true;
    return {};
  }
  if (type == "Strip" && decoder.fused) {
    PROA_ASSIGN(const std::string_view content, node["content"].string());
    PROA_ASSIGN(const int32_t start, node["start"].id());
    PROA_ASSIGN(const int32_t stop, node["stop"].id());
    if (content != " ") return node["content"].wrong("' '");
    if (start > 1 || stop != 0) return node.wrong("start 0 or 1 and stop 0");
    if (start == 1) vocabulary.leading_space = LeadingSpace::strip;
    return {};
  }
  if (type == "Metaspace" && !decoder.fused) {
    PROA_ASSIGN(const std::string_view replacement, node["replacement"].string());
    if (replacement != kMetaspace) return node["replacement"].wrong("'" + std::string(kMetaspace) + "'");
    std::string_view scheme = "always";
    if (!node["prepend_scheme"].is_null()) {
      PROA_ASSIGN(scheme, node["prepend_scheme"].string());
    }
    PROA_ASSIGN(const bool prefix_space, node["add_prefix_space"].boolean(true));
    vocabulary.metaspace_is_space = vocabulary.metaspace_is_space_in_added = true;
    if (scheme != "never" && prefix_space) vocabulary.leading_space = LeadingSpace::strip_token;
    return {};
  }
  return node["type"].wrong("Replace or Metaspace, ByteFallback, Fuse, then Strip");
}

// SentencePiece's tokens as `tokenizers` has them: a character without a token becomes bytes or the unknown token.
Result<void> read_characters(const Node& root, Vocabulary& vocabulary) {
  vocabulary.symbols = Vocabulary::Symbols::characters;
  if (root["decoder"].is_null()) return root["decoder"].wrong("a decoder, as pre_tokenizer has no ByteLevel");
  if (const auto type = root["decoder"]["type"].string(); type.ok() && *type == "ByteLevel") {
    return problem("pre_tokenizer", "ByteLevel at the end of it, as in decoder", "none");
  }
  CharacterDecoder decoder;
  PROA_TRY(read_character_decoder(root["decoder"], vocabulary, decoder));
  if (vocabulary.byte_fallback && !decoder.bytes) {
    return problem("decoder", "ByteFallback in it, as model.byte_fallback is true", "none");
  }
  for (size_t id = 0; decoder.bytes && id < vocabulary.tokens.size(); ++id) {
    if (vocabulary.types[id] == TokenType::normal && byte_of_token(vocabulary.tokens[id]) >= 0) {
      vocabulary.types[id] = TokenType::byte;
    }
  }
  return {};
}

// Ids may leave gaps, but not such that a small file makes a large table.
constexpr size_t kMaxUnusedIds = 1 << 18;

// Sets tokens[id], growing the table; ids between stay unused.
void set_token(Vocabulary& vocabulary, int32_t id, std::string_view token, TokenType type) {
  if (static_cast<size_t>(id) >= vocabulary.tokens.size()) {
    vocabulary.tokens.resize(id + 1);
    vocabulary.types.resize(id + 1, TokenType::unused);
  }
  vocabulary.tokens[id] = token;
  vocabulary.types[id] = type;
}

Result<void> read_model(const Node& model, Vocabulary& vocabulary) {
  if (!model["type"].is_null()) {  // old files leave it out
    PROA_ASSIGN(const std::string_view type, model["type"].string());
    if (type != "BPE") {
      Error error = model["type"].wrong("BPE");
      error.hint = "supported are byte-level BPE and SentencePiece's BPE, not Unigram or WordPiece";
      return error;
    }
  }
  for (const char* affix : {"continuing_subword_prefix", "end_of_word_suffix"}) {
    if (model[affix].is_null()) continue;
    PROA_ASSIGN(const std::string_view text, model[affix].string());
    if (!text.empty()) return model[affix].wrong("null or ''");
  }
  double dropout = 0;
  if (!model["dropout"].is_null() && (model["dropout"].value.get(dropout) != simdjson::SUCCESS || dropout != 0)) {
    return model["dropout"].wrong("null or 0");
  }
  PROA_ASSIGN(vocabulary.byte_fallback, model["byte_fallback"].boolean(false));
  PROA_ASSIGN(vocabulary.fuse_unk, model["fuse_unk"].boolean(false));
  PROA_ASSIGN(vocabulary.ignore_merges, model["ignore_merges"].boolean(false));

  const Node vocab = model["vocab"];
  simdjson::dom::object entries;
  if (!vocab.present || vocab.value.get(entries) != simdjson::SUCCESS) return vocab.wrong("an object of token to id");
  const size_t limit = entries.size() + kMaxUnusedIds;
  for (const auto [token, value] : entries) {
    int64_t id;
    if (value.get(id) != simdjson::SUCCESS || id < 0 || id >= static_cast<int64_t>(Bpe::kMaxTokens)) {
      return Node{value, true, "model.vocab." + std::string(token)}.id().error();
    }
    if (static_cast<size_t>(id) < vocabulary.tokens.size() && vocabulary.types[id] != TokenType::unused) {
      return problem("model.vocab." + std::string(token), "an id of its own",
                     std::to_string(id) + ", which is '" + std::string(vocabulary.tokens[id]) + "' too");
    }
    if (static_cast<size_t>(id) >= limit) {
      return problem("model.vocab." + std::string(token), "an id below " + std::to_string(limit), std::to_string(id));
    }
    set_token(vocabulary, static_cast<int32_t>(id), token, TokenType::normal);
  }

  const Node merges = model["merges"];
  simdjson::dom::array pairs;
  if (!merges.present || merges.value.get(pairs) != simdjson::SUCCESS) return merges.wrong("an array");
  for (const element value : pairs) {
    std::string_view text, left, right;
    simdjson::dom::array both;
    bool good = false;
    if (value.get(text) == simdjson::SUCCESS) {
      const size_t space = text.find(' ');
      good = space != std::string_view::npos && text.find(' ', space + 1) == std::string_view::npos;
      if (good) left = text.substr(0, space), right = text.substr(space + 1);
    } else if (value.get(both) == simdjson::SUCCESS && both.size() == 2) {
      good = both.at(0).get(left) == simdjson::SUCCESS && both.at(1).get(right) == simdjson::SUCCESS;
    }
    if (!good) {
      return Node{value, true, "model.merges[" + std::to_string(vocabulary.merges.size()) + "]"}.wrong(
          "'left right' or ['left', 'right']");
    }
    vocabulary.merges.push_back({left, right});
  }
  return {};
}

Result<void> read_added_tokens(const Node& added, Vocabulary& vocabulary) {
  if (added.is_null()) return {};
  simdjson::dom::array values;
  if (added.value.get(values) != simdjson::SUCCESS) return added.wrong("an array");
  const size_t limit = vocabulary.tokens.size() + values.size() + kMaxUnusedIds;
  size_t index = 0;
  for (const element value : values) {
    const Node node{value, true, "added_tokens[" + std::to_string(index++) + "]"};
    AddedToken token;
    PROA_ASSIGN(token.id, node["id"].id());
    PROA_ASSIGN(token.content, node["content"].string());
    PROA_ASSIGN(token.special, node["special"].boolean(false));
    PROA_ASSIGN(token.lstrip, node["lstrip"].boolean(false));
    PROA_ASSIGN(token.rstrip, node["rstrip"].boolean(false));
    PROA_ASSIGN(token.single_word, node["single_word"].boolean(false));
    PROA_ASSIGN(token.normalized, node["normalized"].boolean(true));
    const auto id = static_cast<size_t>(token.id);
    if (id >= limit) return problem(node.path + ".id", "an id below " + std::to_string(limit), std::to_string(id));
    if (id < vocabulary.tokens.size() && vocabulary.types[id] != TokenType::unused &&
        vocabulary.tokens[id] != token.content) {
      return problem(node.path, "an id of its own for '" + std::string(token.content) + "'",
                     std::to_string(id) + ", which is '" + std::string(vocabulary.tokens[id]) + "' in model.vocab");
    }
    if (ends_generation(token.content)) token.special = true;  // or a message could end its own turn
    set_token(vocabulary, token.id, token.content, token.special ? TokenType::control : TokenType::user_defined);
    vocabulary.added.push_back(token);
  }
  return {};
}

std::optional<int32_t> added_token_id(const Vocabulary& vocabulary, std::string_view content) {
  for (const AddedToken& token : vocabulary.added) {
    if (token.content == content) return token.id;
  }
  for (size_t id = 0; id < vocabulary.tokens.size(); ++id) {
    if (vocabulary.tokens[id] == content && !content.empty()) return static_cast<int32_t>(id);
  }
  return std::nullopt;
}

// bos_token, eos_token and add_bos_token of tokenizer_config.json; an absent file or field leaves what was there.
Result<void> read_config(std::string_view text, Vocabulary& vocabulary) {
  if (text.empty()) return {};
  PROA_ASSIGN(const nlohmann::ordered_json config, parse_json(text, "tokenizer_config.json"));
  const auto wrong = [](const char* key, std::string expected) {
    return Error{.doing = "read tokenizer",
                 .where = "tokenizer_config.json: " + std::string(key),
                 .expected = std::move(expected),
                 .actual = "something else"};
  };
  if (!config.is_object()) return wrong("the file", "an object");
  const auto token = [&](const char* key) -> Result<std::optional<int32_t>> {
    const auto field = config.find(key);
    if (field == config.end() || field->is_null()) return std::optional<int32_t>();
    const nlohmann::ordered_json* content = &*field;
    if (field->is_object() && field->contains("content")) content = &(*field)["content"];
    if (!content->is_string()) return wrong(key, "a token's text, or an object with its content");
    const auto& name = content->get_ref<const std::string&>();
    const auto id = added_token_id(vocabulary, name);
    if (!id) return wrong(key, "a token of tokenizer.json, not '" + printable(name) + "'");
    return id;
  };
  const auto flag = [&](const char* key, bool& value) -> Result<void> {
    const auto field = config.find(key);
    if (field == config.end() || field->is_null()) return {};
    if (!field->is_boolean()) return wrong(key, "a boolean");
    value = field->get<bool>();
    return {};
  };
  PROA_ASSIGN(const auto bos, token("bos_token"));
  if (bos && vocabulary.bos_id < 0) vocabulary.bos_id = *bos;
  PROA_ASSIGN(const auto eos, token("eos_token"));
  auto& ends = vocabulary.eos_ids;
  if (eos && std::find(ends.begin(), ends.end(), *eos) == ends.end()) ends.insert(ends.begin(), *eos);
  PROA_TRY(flag("add_bos_token", vocabulary.add_bos));
  PROA_TRY(flag("add_eos_token", vocabulary.add_eos));
  return {};
}

}  // namespace

Result<Vocabulary> vocabulary_from_tokenizer_json(std::string_view tokenizer_json, std::string_view tokenizer_config) {
  if (tokenizer_json.empty()) return problem("the text", "JSON", "nothing");  // simdjson copies from its null pointer
  // The tree takes some 24 bytes per value, in real files with 16 bytes of text or more.
  const JsonLimits limits = {.depth = 256, .string_bytes = 1 << 20, .values = 1'000'000 + tokenizer_json.size() / 16};
  PROA_TRY(check_json_limits(tokenizer_json, "tokenizer.json", limits));
  auto parser = std::make_shared<simdjson::dom::parser>();
  Node root{.present = true};
  if (const auto error = parser->parse(tokenizer_json.data(), tokenizer_json.size()).get(root.value)) {
    return problem("the text", "JSON", simdjson::error_message(error));
  }
  if (!root.value.is_object()) return problem("the text", "an object", describe(root.value));

  Vocabulary vocabulary;
  vocabulary.storage = parser;
  PROA_TRY(read_model(root["model"], vocabulary));
  PROA_TRY(read_added_tokens(root["added_tokens"], vocabulary));
  PROA_TRY(read_normalizer(root["normalizer"], vocabulary));
  bool byte_level = false;
  if (!root["pre_tokenizer"].is_null()) PROA_TRY(read_pre_tokenizer(root["pre_tokenizer"], vocabulary, byte_level));
  PROA_TRY(read_post_processor(root["post_processor"], vocabulary));
  if (!byte_level) {
    PROA_TRY(read_characters(root, vocabulary));
  } else if (vocabulary.byte_fallback) {
    return problem("model.byte_fallback", "false, as pre_tokenizer has ByteLevel", "true");
  } else {
    PROA_TRY(read_byte_decoder(root["decoder"]));
  }
  if (const Node unk = root["model"]["unk_token"]; !unk.is_null()) {
    PROA_ASSIGN(const std::string_view name, unk.string());
    const auto id = added_token_id(vocabulary, name);
    if (!id) return unk.wrong("a token of the vocabulary");
    vocabulary.unk_id = *id;
  }
  PROA_TRY(read_config(tokenizer_config, vocabulary));
  for (const AddedToken& token : vocabulary.added) {
    auto& ends = vocabulary.eos_ids;
    if (ends_generation(token.content) && std::find(ends.begin(), ends.end(), token.id) == ends.end()) {
      ends.push_back(token.id);
    }
  }
  return vocabulary;
}

}  // namespace proa
