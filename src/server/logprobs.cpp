#include "server/logprobs.h"

#include <algorithm>
#include <string_view>

#include "tokenizer/utf8.h"

namespace proa {
namespace {

constexpr double kLowest = -9999.0;

double finite(float logprob) { return logprob > kLowest ? logprob : kLowest; }  // NaN too

int64_t characters(std::string_view text) {
  return std::count_if(text.begin(), text.end(), [](char c) { return (static_cast<unsigned char>(c) & 0xc0) != 0x80; });
}

void write_token(JsonText& json, const Tokenizer& tokenizer, int32_t id, float logprob, bool as_token_id) {
  json.member("token", token_text(tokenizer, id, as_token_id)).key("logprob").number(finite(logprob));
  json.key("bytes").begin_array();
  for (const char byte : tokenizer.piece(id)) json.integer(static_cast<unsigned char>(byte));
  json.end_array();
}

}  // namespace

std::string token_text(const Tokenizer& tokenizer, int32_t id, bool as_token_id) {
  if (as_token_id) return "token_id:" + std::to_string(id);
  std::string text;
  append_replacing_invalid(text, tokenizer.piece(id));
  return text;
}

void write_chat_logprob(JsonText& json, const Tokenizer& tokenizer, const TokenEvent& event, bool as_token_ids) {
  json.begin_object();
  write_token(json, tokenizer, event.token_id, event.logprob, as_token_ids);
  json.key("top_logprobs").begin_array();
  for (const TokenLogprob& top : event.top_logprobs) {
    json.begin_object();
    write_token(json, tokenizer, top.token_id, top.logprob, as_token_ids);
    json.end_object();
  }
  json.end_array().end_object();
}

std::string prompt_logprobs_json(const Tokenizer& tokenizer, const std::vector<PromptLogprob>& logprobs) {
  JsonText json;
  json.begin_array().null();
  for (const PromptLogprob& token : logprobs) {
    const auto write = [&](int32_t id, float logprob, int32_t rank) {
      json.key(std::to_string(id)).begin_object().key("logprob").number(finite(logprob)).member("rank", rank);
      json.member("decoded_token", token_text(tokenizer, id, false)).end_object();
    };
    json.begin_object();
    write(token.token_id, token.logprob, token.rank);
    int32_t rank = 0;
    for (const TokenLogprob& top : token.top_logprobs) {
      ++rank;
      if (top.token_id != token.token_id) write(top.token_id, top.logprob, rank);
    }
    json.end_object();
  }
  return json.end_array().take();
}

void CompletionLogprobs::add(const TokenEvent& event) { add(event.token_id, event.logprob, event.top_logprobs); }

void CompletionLogprobs::add_prompt(int32_t first, const std::vector<PromptLogprob>& rest) {
  add(first, std::nullopt, {});
  for (const PromptLogprob& token : rest) add(token.token_id, token.logprob, token.top_logprobs);
}

void CompletionLogprobs::add(int32_t token, std::optional<float> given, const std::vector<TokenLogprob>& tops) {
  tokens_.push_back(token_text(tokenizer_, token, as_token_ids_));
  offsets_.push_back(offset_);
  offset_ += characters(tokens_.back());
  if (!given) {
    logprobs_.emplace_back();
    tops_.emplace_back("null");
    return;
  }
  logprobs_.emplace_back(finite(*given));
  JsonText top;
  top.begin_object();
  std::vector<std::string> seen;
  const auto add_top = [&](int32_t id, float logprob) {  // two tokens may have the same text: the likelier one stays
    std::string text = token_text(tokenizer_, id, as_token_ids_);
    if (std::find(seen.begin(), seen.end(), text) != seen.end()) return;
    top.key(text).number(finite(logprob));
    seen.push_back(std::move(text));
  };
  for (const TokenLogprob& one : tops) add_top(one.token_id, one.logprob);
  add_top(token, *given);
  tops_.push_back(top.end_object().take());
}

std::string CompletionLogprobs::take() {
  JsonText json;
  json.begin_object().key("text_offset").begin_array();
  for (const int64_t offset : offsets_) json.integer(offset);
  json.end_array().key("token_logprobs").begin_array();
  for (const auto& logprob : logprobs_) logprob ? json.number(*logprob) : json.null();
  json.end_array().key("tokens").begin_array();
  for (const std::string& token : tokens_) json.string(token);
  json.end_array().key("top_logprobs").begin_array();
  for (const std::string& top : tops_) json.raw(top);
  json.end_array().end_object();
  offsets_.clear(), logprobs_.clear(), tokens_.clear(), tops_.clear();
  return json.take();
}

}  // namespace proa
