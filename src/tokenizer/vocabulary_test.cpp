#include "tokenizer/vocabulary.h"

#include <gtest/gtest.h>

#include <cmath>
#include <functional>
#include <nlohmann/json.hpp>

#include "checkpoint/gguf.h"
#include "checkpoint/gguf_writer.h"
#include "tokenizer/bpe.h"
#include "tokenizer/tokenizer.h"

namespace proa {
namespace {

using Json = nlohmann::ordered_json;

std::string error_of(const Result<Tokenizer>& result) { return result.ok() ? "" : result.error().message(); }

// What goes into a small GGUF vocabulary: a, b, ab, then the added tokens.
struct GgufFields {
  std::string architecture = "llama", model = "gpt2", pre = "gpt-2";
  std::vector<std::string> tokens = {"a", "b", "ab", "<s>", "</s>", "<think>", "<|im_end|>"};
  std::vector<int32_t> types = {1, 1, 1, 3, 3, 4, 4};
  std::vector<std::string> merges = {"a b"};
  std::function<void(GgufWriter&)> more = [](GgufWriter&) {};

  // `use` sees the vocabulary while the bytes it points into live.
  std::string read(const std::function<void(const Vocabulary&, const Tokenizer&)>& use) const {
    GgufWriter writer;
    writer.put_string("general.architecture", architecture);
    if (!model.empty()) writer.put_string("tokenizer.ggml.model", model);
    if (!pre.empty()) writer.put_string("tokenizer.ggml.pre", pre);
    if (!tokens.empty()) writer.put_strings("tokenizer.ggml.tokens", tokens);
    if (!types.empty()) writer.put_i32s("tokenizer.ggml.token_type", types);
    if (!merges.empty()) writer.put_strings("tokenizer.ggml.merges", merges);
    more(writer);
    const std::vector<std::byte> bytes = writer.bytes();
    auto gguf = Gguf::parse(bytes, "test.gguf");
    if (!gguf.ok()) return gguf.error().message();
    auto vocabulary = vocabulary_from_gguf(*gguf);
    if (!vocabulary.ok()) return vocabulary.error().message();
    auto tokenizer = Tokenizer::create(*vocabulary);
    if (!tokenizer.ok()) return tokenizer.error().message();
    use(*vocabulary, *tokenizer);
    return "";
  }
};

TEST(GgufVocabulary, ReadsAllFields) {
  GgufFields fields;
  fields.more = [](GgufWriter& writer) {
    writer.put_u32("tokenizer.ggml.bos_token_id", 3);
    writer.put_u32("tokenizer.ggml.eos_token_id", 4);
    writer.put_u32("tokenizer.ggml.eot_token_id", UINT32_MAX);
    writer.put_bool("tokenizer.ggml.add_bos_token", true);
    writer.put_bool("tokenizer.ggml.add_eos_token", true);
  };
  const std::string error = fields.read([](const Vocabulary& vocabulary, const Tokenizer& tokenizer) {
    EXPECT_EQ(vocabulary.bos_id, 3);
    // <|im_end|> says user-defined, and is a control token for all that.
    EXPECT_EQ(vocabulary.eos_ids, (std::vector<int32_t>{4, 6}));
    EXPECT_EQ(vocabulary.types[6], TokenType::control);
    EXPECT_EQ(vocabulary.types[5], TokenType::user_defined);
    EXPECT_TRUE(tokenizer.adds_bos());
    EXPECT_TRUE(tokenizer.adds_eos());
    EXPECT_EQ(tokenizer.encode("ab<s>", {.parse_special = true, .add_bos = true}), (std::vector<int32_t>{3, 2, 3}));
  });
  EXPECT_EQ(error, "");
}

TEST(GgufVocabulary, ThePresetFillsWhatTheFileLeavesOut) {
  GgufFields fields;
  fields.pre = "llama-bpe";
  fields.types.clear();
  EXPECT_EQ(fields.read([](const Vocabulary& vocabulary, const Tokenizer&) {
    EXPECT_TRUE(vocabulary.add_bos);
    EXPECT_TRUE(vocabulary.ignore_merges);
    EXPECT_TRUE(vocabulary.added.empty());  // without types nothing is known to be more than a word
    EXPECT_EQ(vocabulary.bos_id, -1);
  }),
            "");
  fields.pre.clear();  // as llama.cpp does
  EXPECT_EQ(fields.read([](const Vocabulary& vocabulary, const Tokenizer&) { EXPECT_EQ(vocabulary.steps.size(), 4u); }),
            "");
}

TEST(GgufVocabulary, EarlyFilesOfGptOssNameNoExpressionAndSeveralEnds) {
  GgufFields fields;
  fields.architecture = "gptoss";
  fields.pre.clear();
  fields.more = [](GgufWriter& writer) { writer.put_i32s("tokenizer.ggml.eos_token_ids", std::vector<int32_t>{4, 2}); };
  EXPECT_EQ(fields.read([](const Vocabulary& vocabulary, const Tokenizer&) {
    EXPECT_EQ(vocabulary.steps.at(0).expression, pretokenizer_preset("gpt-4o")->steps.at(0).expression);
    EXPECT_EQ(vocabulary.eos_ids, (std::vector<int32_t>{4, 2, 6}));
  }),
            "");
}

TEST(GgufVocabulary, BrokenFilesAreErrorsThatNameTheKey) {
  struct Row {
    const char* message;
    void (*change)(GgufFields&);
  };
  const Row rows[] = {
      {"tokenizer.ggml.model", [](GgufFields& f) { f.model.clear(); }},
      {"expected gpt2 (byte-level BPE) or llama (SentencePiece's BPE), found 't5' (Unigram and WordPiece",
       [](GgufFields& f) { f.model = "t5"; }},
      {"tokenizer.ggml.scores", [](GgufFields& f) { f.model = "llama"; }},
      {"tokenizer.ggml.scores: expected 7 scores",
       [](GgufFields& f) {
         f.model = "llama";
         f.more = [](GgufWriter& w) { w.put_f32s("tokenizer.ggml.scores", std::vector<float>(6)); };
       }},
      {"score of token 1: expected a number, found nan",
       [](GgufFields& f) {
         f.model = "llama";
         f.more = [](GgufWriter& w) {
           w.put_f32s("tokenizer.ggml.scores", std::vector<float>{0, std::nanf(""), 0, 0, 0, 0, 0});
         };
       }},
      {"token 0: expected <0x00> to <0xFF>, as its type is byte, found 'a'",
       [](GgufFields& f) {
         f.model = "llama";
         f.types[0] = 6;
         f.more = [](GgufWriter& w) { w.put_f32s("tokenizer.ggml.scores", std::vector<float>(7)); };
       }},
      {"unknown_token_id: expected an id below 7, found 9",
       [](GgufFields& f) {
         f.model = "llama";
         f.more = [](GgufWriter& w) {
           w.put_f32s("tokenizer.ggml.scores", std::vector<float>(7));
           w.put_u32("tokenizer.ggml.unknown_token_id", 9);
         };
       }},
      {"tokenizer.ggml.pre: expected one of default, gpt-2", [](GgufFields& f) { f.pre = "nobody"; }},
      {"tokenizer.ggml.tokens", [](GgufFields& f) { f.tokens.clear(); }},
      {"tokenizer.ggml.token_type: expected 7 types", [](GgufFields& f) { f.types.pop_back(); }},
      {"tokenizer.ggml.token_type[1]: expected 1 to 6, found 0", [](GgufFields& f) { f.types[1] = 0; }},
      {"tokenizer.ggml.token_type[1]: expected 1 to 6, found -7", [](GgufFields& f) { f.types[1] = -7; }},
      {"tokenizer.ggml.merges", [](GgufFields& f) { f.merges.clear(); }},
      {"tokenizer.ggml.merges[0]", [](GgufFields& f) { f.merges[0] = "ab"; }},
      {"tokenizer.ggml.merges[0]", [](GgufFields& f) { f.merges[0] = "a b "; }},
      {"merge 0: expected tokens of the vocabulary, found 'c'", [](GgufFields& f) { f.merges[0] = "a c"; }},
      {"merge 0: expected tokens of the vocabulary, found ''", [](GgufFields& f) { f.merges[0] = " b"; }},
      {"eos_token_id: expected an id below 7, found 7",
       [](GgufFields& f) { f.more = [](GgufWriter& w) { w.put_u32("tokenizer.ggml.eos_token_id", 7); }; }},
      {"eos_token_ids: expected at most 64 ids below 7, found 2 with 7",
       [](GgufFields& f) {
         f.more = [](GgufWriter& w) { w.put_i32s("tokenizer.ggml.eos_token_ids", std::vector<int32_t>{4, 7}); };
       }},
      {"bos_token_id: expected an id below 7, found -3",
       [](GgufFields& f) { f.more = [](GgufWriter& w) { w.put_i32("tokenizer.ggml.bos_token_id", -3); }; }},
      {"add_bos_token",
       [](GgufFields& f) { f.more = [](GgufWriter& w) { w.put_string("tokenizer.ggml.add_bos_token", "yes"); }; }},
  };
  for (const Row& row : rows) {
    GgufFields fields;
    row.change(fields);
    const std::string error = fields.read([](const Vocabulary&, const Tokenizer&) {});
    EXPECT_NE(error.find(row.message), std::string::npos) << row.message << " in: " << error;
  }
}

Json base() {
  return Json::parse(R"({
    "version": "1.0", "truncation": null, "padding": null,
    "added_tokens": [
      {"id": 3, "content": "<s>", "single_word": false, "lstrip": false, "rstrip": false, "normalized": false, "special": true},
      {"id": 4, "content": "<|im_end|>", "special": false},
      {"id": 6, "content": "<think>", "special": false}],
    "normalizer": null,
    "pre_tokenizer": {"type": "Sequence", "pretokenizers": [
      {"type": "Split", "pattern": {"Regex": "\\s+"}, "behavior": "Isolated", "invert": false},
      {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false}]},
    "post_processor": {"type": "TemplateProcessing",
      "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}], "pair": [],
      "special_tokens": {"<s>": {"id": "<s>", "ids": [3], "tokens": ["<s>"]}}},
    "decoder": {"type": "ByteLevel"},
    "model": {"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
      "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "ignore_merges": false,
      "vocab": {"a": 0, "b": 1, "ab": 2}, "merges": [["a", "b"]]}})");
}

// Llama 2's kind: a byte without a character's token, and spaces spelt ▁.
Json sentencepiece() {
  return Json::parse(R"({
    "added_tokens": [{"id": 0, "content": "<unk>", "special": true}, {"id": 1, "content": "<s>", "special": true},
                     {"id": 6, "content": "<think>", "special": false, "normalized": false}],
    "normalizer": {"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "▁"},
      {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}]},
    "pre_tokenizer": null,
    "post_processor": {"type": "TemplateProcessing",
      "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}], "pair": [],
      "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}}},
    "decoder": {"type": "Sequence", "decoders": [{"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
      {"type": "ByteFallback"}, {"type": "Fuse"}, {"type": "Strip", "content": " ", "start": 1, "stop": 0}]},
    "model": {"type": "BPE", "unk_token": "<unk>", "fuse_unk": true, "byte_fallback": true,
      "vocab": {"<unk>": 0, "<s>": 1, "▁": 2, "a": 3, "▁a": 4, "<0xC3>": 5, "<0xA9>": 7},
      "merges": [["▁", "a"]]}})");
}

Result<Tokenizer> open(const std::string& json, const std::string& config = "") {
  PROA_ASSIGN(const Vocabulary vocabulary, vocabulary_from_tokenizer_json(json, config));
  return Tokenizer::create(vocabulary);
}

TEST(TokenizerJson, ReadsAllFields) {
  auto tokenizer = open(base().dump(), R"({"bos_token": "<s>", "eos_token": {"content": "<|im_end|>"},
                                           "model_max_length": 1000000000000000019884624838656})");
  ASSERT_TRUE(tokenizer.ok()) << tokenizer.error().message();
  EXPECT_EQ(tokenizer->vocab_size(), 7);  // id 5 is unused
  EXPECT_EQ(tokenizer->piece(5), "");
  EXPECT_EQ(tokenizer->bos_id(), 3);
  EXPECT_TRUE(tokenizer->adds_bos());
  EXPECT_TRUE(tokenizer->is_special(4));  // by its name, whatever the file says
  EXPECT_FALSE(tokenizer->is_special(6));
  ASSERT_EQ(tokenizer->eos_ids().size(), 1u);
  EXPECT_EQ(tokenizer->eos_ids()[0], 4);
  EXPECT_EQ(tokenizer->encode("ab<think>", {.add_bos = true}), (std::vector<int32_t>{3, 2, 6}));
}

TEST(TokenizerJson, EmptyTextIsAnError) {
  const auto tokenizer = vocabulary_from_tokenizer_json({}, "");  // a null pointer, as an empty file gives
  ASSERT_FALSE(tokenizer.ok());
  EXPECT_NE(tokenizer.error().message().find("expected JSON, found nothing"), std::string::npos)
      << tokenizer.error().message();
}

TEST(TokenizerJson, OtherSpellingsOfTheSame) {
  const std::pair<const char*, void (*)(Json&)> rows[] = {
      {"merges as text", [](Json& j) { j["model"]["merges"] = {"a b"}; }},
      {"no model type", [](Json& j) { j["model"].erase("type"); }},
      {"empty affixes", [](Json& j) { j["model"]["continuing_subword_prefix"] = ""; }},
      {"NFC",
       [](Json& j) {
         j["normalizer"] = {{"type", "NFC"}};
       }},
      {"NFC in a sequence",
       [](Json& j) {
         j["normalizer"] = {{"type", "Sequence"}, {"normalizers", {{{"type", "NFC"}}}}};
       }},
      {"ByteLevel alone",
       [](Json& j) {
         j["pre_tokenizer"] = {{"type", "ByteLevel"}, {"add_prefix_space", false}};
       }},
      {"Split by text",
       [](Json& j) {
         j["pre_tokenizer"]["pretokenizers"][0]["pattern"] = {{"String", ".?*"}};
       }},
      {"two post-processors",
       [](Json& j) {
         j["post_processor"] = {{"type", "Sequence"}, {"processors", {{{"type", "ByteLevel"}}, j["post_processor"]}}};
       }},
      {"duplicate added tokens", [](Json& j) { j["added_tokens"].push_back(j["added_tokens"][0]); }},
  };
  for (const auto& [what, change] : rows) {
    Json json = base();
    change(json);
    auto tokenizer = open(json.dump());
    ASSERT_TRUE(tokenizer.ok()) << what << ": " << error_of(tokenizer);
    EXPECT_EQ(tokenizer->encode("ab<think>", {.add_bos = true}), (std::vector<int32_t>{3, 2, 6})) << what;
  }
}

TEST(TokenizerJson, TheConfigDecidesAboutBos) {
  EXPECT_FALSE(open(base().dump(), R"({"add_bos_token": false})")->adds_bos());
  Json json = base();
  json["post_processor"] = nullptr;
  EXPECT_FALSE(open(json.dump())->adds_bos());
  EXPECT_EQ(open(json.dump(), R"({"bos_token": "<s>", "add_bos_token": true})")->encode("a", {.add_bos = true}),
            (std::vector<int32_t>{3, 0}));
}

TEST(TokenizerJson, BrokenAndUnsupportedFilesAreErrorsThatNameTheField) {
  struct Row {
    const char* message;
    void (*change)(Json&);
  };
  const Row rows[] = {
      {"expected an object, found an array", [](Json& j) { j = Json::array(); }},
      {"model.vocab: expected an object of token to id, found nothing", [](Json& j) { j.erase("model"); }},
      {"model.type: expected BPE, found 'Unigram' (supported are byte-level BPE and SentencePiece's BPE",
       [](Json& j) { j["model"]["type"] = "Unigram"; }},
      {"model.type: expected BPE, found 'WordPiece'", [](Json& j) { j["model"]["type"] = "WordPiece"; }},
      {"model.type: expected a string, found a number", [](Json& j) { j["model"]["type"] = 5; }},
      {"model.byte_fallback: expected false, as pre_tokenizer has ByteLevel",
       [](Json& j) { j["model"]["byte_fallback"] = true; }},
      {"model.dropout: expected null or 0", [](Json& j) { j["model"]["dropout"] = 0.1; }},
      {"model.end_of_word_suffix", [](Json& j) { j["model"]["end_of_word_suffix"] = "</w>"; }},
      {"model.ignore_merges: expected a boolean", [](Json& j) { j["model"]["ignore_merges"] = "true"; }},
      {"model.unk_token: expected a token of the vocabulary, found '<x>'",
       [](Json& j) { j["model"]["unk_token"] = "<x>"; }},
      {"model.vocab: expected an object", [](Json& j) { j["model"]["vocab"] = Json::array(); }},
      {"model.vocab.b: expected a token id, found -1", [](Json& j) { j["model"]["vocab"]["b"] = -1; }},
      {"model.vocab.b: expected a token id, found 4294967296", [](Json& j) { j["model"]["vocab"]["b"] = 1ll << 32; }},
      {"model.vocab.b: expected an id below 262147, found 262147", [](Json& j) { j["model"]["vocab"]["b"] = 262147; }},
      {"model.vocab.b: expected a token id, found 'x'", [](Json& j) { j["model"]["vocab"]["b"] = "x"; }},
      {"model.vocab.b: expected an id of its own, found 0, which is 'a' too",
       [](Json& j) { j["model"]["vocab"]["b"] = 0; }},
      {"expected 1 to",
       [](Json& j) {
         j["model"]["vocab"] = Json::object(), j["added_tokens"] = nullptr, j["model"]["merges"] = Json::array(),
         j["post_processor"] = nullptr;
       }},
      {"model.merges: expected an array", [](Json& j) { j["model"]["merges"] = "a b"; }},
      {"model.merges[0]", [](Json& j) { j["model"]["merges"] = {"ab"}; }},
      {"model.merges[0]", [](Json& j) { j["model"]["merges"] = {"a b c"}; }},
      {"model.merges[0]", [](Json& j) { j["model"]["merges"] = Json::parse(R"([["a"]])"); }},
      {"model.merges[0]", [](Json& j) { j["model"]["merges"] = Json::parse(R"([["a", 1]])"); }},
      {"model.merges[0]", [](Json& j) { j["model"]["merges"] = Json::parse("[1]"); }},
      {"merge 1: expected tokens of the vocabulary, found 'c'", [](Json& j) { j["model"]["merges"].push_back("a c"); }},
      {"added_tokens: expected an array", [](Json& j) { j["added_tokens"] = 1; }},
      {"added_tokens[1].id: expected a token id, found -4", [](Json& j) { j["added_tokens"][1]["id"] = -4; }},
      {"added_tokens[1].id: expected a token id, found 5000009", [](Json& j) { j["added_tokens"][1]["id"] = 5000009; }},
      {"added_tokens[1].id: expected an id below 262150, found 500000",
       [](Json& j) { j["added_tokens"][1]["id"] = 500000; }},
      {"added_tokens[1].id: expected a token id, found nothing", [](Json& j) { j["added_tokens"][1].erase("id"); }},
      {"added_tokens[1]: expected an id of its own", [](Json& j) { j["added_tokens"][1]["id"] = 0; }},
      {"added_tokens[1].content: expected a string", [](Json& j) { j["added_tokens"][1]["content"] = 4; }},
      {"added_tokens[1].lstrip: expected a boolean", [](Json& j) { j["added_tokens"][1]["lstrip"] = 4; }},
      {"normalizer.type: expected NFC, Prepend, Replace, a Sequence of them, or null, found 'Lowercase'",
       [](Json& j) {
         j["normalizer"] = {{"type", "Lowercase"}};
       }},
      {"normalizer.normalizers[0].type",
       [](Json& j) { j["normalizer"] = Json::parse(R"({"type":"Sequence","normalizers":[{"type":"NFKC"}]})"); }},
      {"pre_tokenizer: expected ByteLevel", [](Json& j) { j["pre_tokenizer"] = nullptr; }},
      {"pre_tokenizer: expected ByteLevel", [](Json& j) { j["pre_tokenizer"]["pretokenizers"].erase(1); }},
      {"pre_tokenizer.type: expected Split, Digits, Metaspace, ByteLevel",
       [](Json& j) {
         j["pre_tokenizer"] = {{"type", "BertPreTokenizer"}};
       }},
      {"normalizer.normalizers: expected at most 256 items, found 300",
       [](Json& j) {
         j["normalizer"] = {{"type", "Sequence"}, {"normalizers", Json::array()}};
         for (int i = 0; i < 300; ++i) j["normalizer"]["normalizers"].push_back({{"type", "NFC"}});
       }},
      {"normalizer.normalizers[16]: expected at most 16 steps",
       [](Json& j) {
         j["normalizer"] = {{"type", "Sequence"}, {"normalizers", Json::array()}};
         for (int i = 0; i < 20; ++i) j["normalizer"]["normalizers"].push_back({{"type", "NFC"}});
       }},
      {"normalizer.pattern.String: expected a text that is not empty",
       [](Json& j) { j["normalizer"] = Json::parse(R"({"type":"Replace","pattern":{"String":""},"content":"x"})"); }},
      {"normalizer.pattern.String: expected a string",
       [](Json& j) { j["normalizer"] = Json::parse(R"({"type":"Replace","pattern":{"Regex":"a"},"content":"x"})"); }},
      {"normalizer.normalizers[1].content: expected replacements that lengthen a text at most 8 times",
       [](Json& j) {
         j["normalizer"] = Json::parse(R"({"type":"Sequence","normalizers":[
           {"type":"Replace","pattern":{"String":"a"},"content":"aaa"},
           {"type":"Replace","pattern":{"String":"a"},"content":"aaa"}]})");
       }},
      {"pre_tokenizer.pretokenizers[0].pattern.String: expected a text that is not empty",
       [](Json& j) {
         j["pre_tokenizer"]["pretokenizers"][0]["pattern"] = {{"String", ""}};
       }},
      {"pre_tokenizer.pretokenizers[2].type: expected nothing after ByteLevel",
       [](Json& j) {
         j["pre_tokenizer"]["pretokenizers"].push_back({{"type", "Digits"}});
       }},
      {"pretokenizers[0].behavior", [](Json& j) { j["pre_tokenizer"]["pretokenizers"][0]["behavior"] = "Sideways"; }},
      {"pretokenizers[0].pattern.String", [](Json& j) { j["pre_tokenizer"]["pretokenizers"][0]["pattern"] = "x"; }},
      {"compile pre-tokenizer", [](Json& j) { j["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"] = "(a"; }},
      {"at most 16 steps",
       [](Json& j) {
         auto& steps = j["pre_tokenizer"]["pretokenizers"];
         for (int i = 0; i < 20; ++i) steps.insert(steps.begin(), steps[0]);
       }},
      {"post_processor.type",
       [](Json& j) {
         j["post_processor"] = {{"type", "BertProcessing"}};
       }},
      {"post_processor.single",
       [](Json& j) {
         auto& s = j["post_processor"]["single"];
         s.insert(s.end(), {s[0], s[0]});
       }},
      {"post_processor.special_tokens.<s>.ids: expected an array, found nothing",
       [](Json& j) { j["post_processor"].erase("special_tokens"); }},
      {"post_processor.special_tokens.<s>.ids: expected one id, found 2",
       [](Json& j) {
         j["post_processor"]["special_tokens"]["<s>"]["ids"] = {3, 3};
       }},
      {"bos or eos token: expected an id below 7, found 50",
       [](Json& j) { j["post_processor"]["special_tokens"]["<s>"]["ids"] = {50}; }},
      {"decoder.type: expected ByteLevel, found 'WordPiece'",
       [](Json& j) {
         j["decoder"] = {{"type", "WordPiece"}};
       }},
  };
  for (const Row& row : rows) {
    Json json = base();
    row.change(json);
    const std::string error = error_of(open(json.dump()));
    EXPECT_NE(error.find(row.message), std::string::npos) << row.message << " in: " << error;
  }
  EXPECT_NE(error_of(open(base().dump(), "{")), "");
  EXPECT_NE(error_of(open(base().dump(), "[]")), "");
  EXPECT_NE(error_of(open(base().dump(), R"({"bos_token": "<nobody>"})")).find("bos_token"), std::string::npos);
  EXPECT_NE(error_of(open(base().dump(), R"({"eos_token": 5})")).find("eos_token"), std::string::npos);
  EXPECT_NE(error_of(open(base().dump(), R"({"add_bos_token": "no"})")).find("add_bos_token"), std::string::npos);
}

TEST(TokenizerJson, SentencePieceWithByteFallback) {
  using Ids = std::vector<int32_t>;
  auto tokenizer = open(sentencepiece().dump());
  ASSERT_TRUE(tokenizer.ok()) << error_of(tokenizer);
  EXPECT_EQ(tokenizer->encode("a", {.add_bos = true}), (Ids{1, 4}));
  EXPECT_EQ(tokenizer->encode("a a  a"), (Ids{4, 4, 2, 4}));
  EXPECT_EQ(tokenizer->encode(" a"), (Ids{2, 4}));
  EXPECT_EQ(tokenizer->encode("▁a"), (Ids{2, 4}));  // in such a vocabulary the same
  EXPECT_EQ(tokenizer->encode("é"), (Ids{2, 5, 7}));
  EXPECT_EQ(tokenizer->encode("xx☃ x"), (Ids{2, 0, 2, 0}));   // ☃ has no byte tokens here; unknown ones are fused
  EXPECT_EQ(tokenizer->encode("<0xC3>a"), (Ids{2, 0, 3}));    // a byte token is not spelt
  EXPECT_EQ(tokenizer->encode("a<think>a"), (Ids{4, 6, 4}));  // every stretch gets its space
  EXPECT_EQ(tokenizer->decode(Ids{4, 4, 2, 4, 5, 7}), "a a  aé");
  EXPECT_EQ(tokenizer->decode(Ids{1, 4}), "<s> a");
  EXPECT_EQ(tokenizer->decode(Ids{1, 4}, true), "a");
  EXPECT_EQ(tokenizer->decode(Ids{3, 5}), "a\uFFFD");
  EXPECT_EQ(tokenizer->piece(4), " a");
  EXPECT_EQ(tokenizer->piece(5), "\xC3");
  EXPECT_EQ(tokenizer->token_id(" a"), 4);
  EXPECT_EQ(tokenizer->token_id("\xA9"), 7);
  Detokenizer following(*tokenizer, false, /*continues=*/true);
  EXPECT_EQ(following.push(4), " a");
  Detokenizer whole(*tokenizer);
  EXPECT_EQ(whole.push(4), "a");
  EXPECT_EQ(whole.push(4), " a");
  EXPECT_EQ(whole.finish(), "");
  EXPECT_EQ(whole.push(4), "a") << "as new after finish()";
}

TEST(TokenizerJson, MetaspaceInFrontOfTheTextOrOfEveryPiece) {
  using Ids = std::vector<int32_t>;
  struct Row {
    const char* pre_tokenizer;
    Ids a_think_a, space_a;
    const char* decoded;  // of ▁a ▁a
  };
  const Row rows[] = {
      {R"({"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": false})",
       {4, 6, 3},
       {4},
       "a a"},
      {R"({"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always"})", {4, 6, 4}, {4}, "a a"},
      {R"({"type": "Metaspace", "replacement": "▁", "add_prefix_space": true})", {4, 6, 4}, {4}, "a a"},
      {R"({"type": "Metaspace", "replacement": "▁", "prepend_scheme": "never"})", {3, 6, 3}, {4}, " a a"},
      {R"({"type": "Metaspace", "replacement": "▁", "add_prefix_space": false})", {3, 6, 3}, {4}, " a a"},
  };
  for (const Row& row : rows) {
    Json json = sentencepiece();
    json["normalizer"] = nullptr;
    json["pre_tokenizer"] = Json::parse(row.pre_tokenizer);
    json["decoder"] = {{"type", "Sequence"}, {"decoders", {{{"type", "ByteFallback"}}, json["pre_tokenizer"]}}};
    auto tokenizer = open(json.dump());
    ASSERT_TRUE(tokenizer.ok()) << error_of(tokenizer);
    EXPECT_EQ(tokenizer->encode("a<think>a"), row.a_think_a) << row.pre_tokenizer;
    EXPECT_EQ(tokenizer->encode(" a"), row.space_a) << row.pre_tokenizer;
    EXPECT_EQ(tokenizer->decode(Ids{4, 4}), row.decoded) << row.pre_tokenizer;
  }
}

TEST(TokenizerJson, BrokenSentencePieceFilesAreErrorsThatNameTheField) {
  const std::pair<const char*, void (*)(Json&)> rows[] = {
      {"decoder: expected a decoder", [](Json& j) { j["decoder"] = nullptr; }},
      {"decoder: expected ByteFallback in it", [](Json& j) { j["decoder"]["decoders"].erase(1); }},
      {"decoder.decoders[2].type: expected Replace or Metaspace, ByteFallback, Fuse, then Strip, found 'Strip'",
       [](Json& j) { j["decoder"]["decoders"].erase(2); }},
      {"decoder.decoders[3]: expected start 0 or 1 and stop 0",
       [](Json& j) { j["decoder"]["decoders"][3]["start"] = 2; }},
      {"decoder.decoders[3].content: expected ' '", [](Json& j) { j["decoder"]["decoders"][3]["content"] = "x"; }},
      {"decoder.decoders[0].pattern.String: expected '▁'",
       [](Json& j) { j["decoder"]["decoders"][0]["pattern"]["String"] = "_"; }},
      {"decoder.decoders[0].content: expected ' '", [](Json& j) { j["decoder"]["decoders"][0]["content"] = "  "; }},
      {"decoder.decoders[1].type", [](Json& j) { j["decoder"]["decoders"][1]["type"] = "CTC"; }},
      {"normalizer.normalizers[0].prepend: expected at most 64 bytes",
       [](Json& j) { j["normalizer"]["normalizers"][0]["prepend"] = std::string(65, 'x'); }},
      {"pre_tokenizer.replacement: expected '▁', found '_'",
       [](Json& j) {
         j["pre_tokenizer"] = {{"type", "Metaspace"}, {"replacement", "_"}};
       }},
      {"pre_tokenizer.prepend_scheme: expected always, first or never",
       [](Json& j) {
         j["pre_tokenizer"] = {{"type", "Metaspace"}, {"replacement", "▁"}, {"prepend_scheme", "maybe"}};
       }},
      {"merge 1: expected tokens of the vocabulary, found '<0xC3>'",
       [](Json& j) {
         j["model"]["merges"].push_back({"<0xC3>", "<0xA9>"});
       }},
  };
  for (const auto& [message, change] : rows) {
    Json json = sentencepiece();
    change(json);
    const std::string error = error_of(open(json.dump()));
    EXPECT_NE(error.find(message), std::string::npos) << message << " in: " << error;
  }
}

TEST(GgufVocabulary, SentencePieceMergesByScore) {
  using Ids = std::vector<int32_t>;
  const auto scores = [](GgufWriter& writer) {
    writer.put_f32s("tokenizer.ggml.scores", std::vector<float>{0, 0, -9, -9, -9, -2, -1, -3, 0, 0, 0, -2});
    writer.put_u32("tokenizer.ggml.bos_token_id", 1);
    writer.put_u32("tokenizer.ggml.unknown_token_id", 0);
  };
  GgufFields fields;
  fields.model = "llama";
  fields.pre = "default";
  fields.tokens = {"<unk>", "<s>", "▁", "a", "b", "ab", "ba", "▁a", "<0xC3>", "<0xA9>", "<x y>", "bb"};
  fields.types = {2, 3, 1, 1, 1, 1, 1, 1, 6, 6, 4, 5};
  fields.merges.clear();
  fields.more = scores;
  EXPECT_EQ(fields.read([](const Vocabulary& vocabulary, const Tokenizer& tokenizer) {
    EXPECT_TRUE(vocabulary.add_bos);
    EXPECT_EQ(tokenizer.encode("aba", {.add_bos = true}), (Ids{1, 7, 6}));  // ba before ▁a
    EXPECT_EQ(tokenizer.encode("ab"), (Ids{2, 5}));                         // ab before ▁a
    EXPECT_EQ(tokenizer.encode("abb"), (Ids{2, 5, 4}));                     // of equal scores the left one
    EXPECT_EQ(tokenizer.encode("é☃"), (Ids{2, 8, 9, 0}));
    EXPECT_EQ(tokenizer.encode("a<x y>a"), (Ids{7, 10, 7}));
    EXPECT_EQ(tokenizer.encode("<s>", {.parse_special = true}), Ids{1});
    EXPECT_EQ(tokenizer.decode(Ids{7, 6, 7}), "aba a");
    EXPECT_EQ(tokenizer.piece(10), "<x y>");
  }),
            "");
  fields.types.clear();  // byte tokens are then known by how they are spelt
  fields.more = [&](GgufWriter& writer) {
    scores(writer);
    writer.put_bool("tokenizer.ggml.add_space_prefix", false);
    writer.put_bool("tokenizer.ggml.add_bos_token", false);
  };
  EXPECT_EQ(fields.read([](const Vocabulary& vocabulary, const Tokenizer& tokenizer) {
    EXPECT_FALSE(vocabulary.add_bos);
    EXPECT_EQ(tokenizer.encode("é a"), (Ids{8, 9, 7}));
    EXPECT_EQ(tokenizer.decode(Ids{7, 7}), " a a");
  }),
            "");
}

TEST(TokenizerJson, TruncatedFilesAndInvalidBytesAreErrors) {
  const std::string json = base().dump();
  for (size_t length = 0; length < json.size(); ++length) EXPECT_FALSE(open(json.substr(0, length)).ok()) << length;
  for (size_t i = 0; i < json.size(); i += 7) {
    std::string changed = json;
    changed[i] = '\xFF';
    EXPECT_FALSE(open(changed).ok()) << i;
  }
  EXPECT_FALSE(open(std::string(100'000, '[')).ok());
}

}  // namespace
}  // namespace proa
