#include "models/dummy_vocabulary.h"

#include <nlohmann/json.hpp>

namespace proa {
namespace {

constexpr std::string_view kSpecial[] = {"<unk>",
                                         "<s>",
                                         "</s>",
                                         "[INST]",
                                         "[/INST]",
                                         "[AVAILABLE_TOOLS]",
                                         "[/AVAILABLE_TOOLS]",
                                         "[TOOL_RESULTS]",
                                         "[/TOOL_RESULTS]",
                                         "[TOOL_CALLS]",
                                         "<|im_start|>",
                                         "<|im_end|>",
                                         "<think>",
                                         "</think>",
                                         "<tool_call>",
                                         "</tool_call>",
                                         "<tool_response>",
                                         "</tool_response>"};

// How the model's own expression cuts text: words by case, digits one by one (reference nemotron-h 6.1).
constexpr const char* kWords = R"([^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|)"
                               R"([^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|)"
                               R"(\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+)";

constexpr const char* kTemplate =
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + "
    "'<|im_end|>\\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}";

void append_utf8(std::string& text, uint32_t c) {  // up to U+07FF
  if (c < 0x80) {
    text += static_cast<char>(c);
  } else {
    text += static_cast<char>(0xc0 | c >> 6);
    text += static_cast<char>(0x80 | (c & 63));
  }
}

// GPT-2's alphabet: printable bytes are themselves, the others follow from U+0100 on in their order.
std::string byte_token(int byte) {
  const auto printable = [](int b) { return (b >= 33 && b <= 126) || (b >= 161 && b <= 172) || b >= 174; };
  auto c = static_cast<uint32_t>(byte);
  if (!printable(byte)) {
    c = 0x100;
    for (int b = 0; b < byte; ++b) c += printable(b) ? 0 : 1;
  }
  std::string text;
  append_utf8(text, c);
  return text;
}

// Word n: a space and three or more syllables of 16 consonants by 5 vowels.
std::string word(int64_t n) {
  std::string text = byte_token(' ');
  for (int syllables = 0; syllables < 3 || n > 0; ++syllables) {
    text += "bdfghjklmnprstvz"[n % 16];
    n /= 16;
    text += "aeiou"[n % 5];
    n /= 5;
  }
  return text;
}

}  // namespace

DummyVocabulary::DummyVocabulary(int64_t vocab_size) {
  num_special = vocab_size >= 2048 ? 1000 : 18;
  tokens.reserve(static_cast<size_t>(vocab_size));
  for (int64_t i = 0; i < num_special; ++i) {
    tokens.push_back(i < std::ssize(kSpecial) ? std::string(kSpecial[i]) : "<SPECIAL_" + std::to_string(i) + ">");
  }
  for (int byte = 0; byte < 256; ++byte) tokens.push_back(byte_token(byte));
  tokens.push_back("ba");
  for (int64_t n = 0; std::ssize(tokens) < vocab_size; ++n) tokens.push_back(word(n));
}

std::string DummyVocabulary::tokenizer_json() const {
  nlohmann::ordered_json head;
  head["version"] = "1.0";
  head["truncation"] = nullptr;
  head["padding"] = nullptr;
  head["added_tokens"] = nlohmann::ordered_json::array();
  for (int64_t i = 0; i < num_special; ++i) {
    head["added_tokens"].push_back({{"id", i},
                                    {"content", tokens[static_cast<size_t>(i)]},
                                    {"single_word", false},
                                    {"lstrip", false},
                                    {"rstrip", false},
                                    {"normalized", false},
                                    {"special", true}});
  }
  head["normalizer"] = nullptr;
  head["pre_tokenizer"] = {
      {"type", "Sequence"},
      {"pretokenizers",
       nlohmann::ordered_json::array(
           {{{"type", "Split"}, {"pattern", {{"Regex", kWords}}}, {"behavior", "Isolated"}, {"invert", false}},
            {{"type", "ByteLevel"}, {"add_prefix_space", false}, {"trim_offsets", true}, {"use_regex", false}}})}};
  head["post_processor"] = nullptr;
  head["decoder"] = {{"type", "ByteLevel"}, {"add_prefix_space", true}, {"trim_offsets", true}, {"use_regex", true}};
  std::string text = head.dump();
  text.pop_back();
  text += R"(,"model":{"type":"BPE","dropout":null,"unk_token":null,"continuing_subword_prefix":null,)"
          R"("end_of_word_suffix":null,"fuse_unk":false,"byte_fallback":false,"ignore_merges":true,"vocab":{)";
  for (size_t i = 0; i < tokens.size(); ++i) {  // as text: a JSON object of this size is slow to make
    text += (i ? "," : "") + nlohmann::json(tokens[i]).dump() + ":" + std::to_string(i);
  }
  return text + R"(},"merges":["b a"]}})";
}

std::string DummyVocabulary::tokenizer_config_json() const {
  const auto text = [&](int32_t id) { return tokens[static_cast<size_t>(id)]; };
  const nlohmann::ordered_json config = {{"add_bos_token", false},
                                         {"add_eos_token", false},
                                         {"bos_token", text(bos)},
                                         {"eos_token", text(eos)},
                                         {"unk_token", text(unk)},
                                         {"pad_token", text(unk)},
                                         {"chat_template", kTemplate},
                                         {"clean_up_tokenization_spaces", false},
                                         {"tokenizer_class", "PreTrainedTokenizerFast"}};
  return config.dump(2) + "\n";
}

std::string_view dummy_chat_template() { return kTemplate; }

}  // namespace proa
