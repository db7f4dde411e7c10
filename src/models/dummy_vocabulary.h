// A made-up vocabulary for dummy checkpoints: the control tokens of Nemotron-3 at their ids, the 256 bytes, and words
// of made-up syllables, each with a space before it. Deterministic, printable, every token unlike every other.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace proa {

struct DummyVocabulary {
  // vocab_size is at least kLeast.
  explicit DummyVocabulary(int64_t vocab_size);

  static constexpr int64_t kLeast = 512;

  std::vector<std::string> tokens;  // [vocab_size] in GPT-2's byte alphabet
  int64_t num_special = 0;          // the first ones are control tokens
  int32_t unk = 0, bos = 1, eos = 11;

  std::string tokenizer_json() const;
  std::string tokenizer_config_json() const;
};

// A chat template in ChatML, without thinking and tools.
std::string_view dummy_chat_template();

}  // namespace proa
