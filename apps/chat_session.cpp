#include "apps/chat_session.h"

#include <ctime>

namespace proa {
namespace {

std::tm local_time() {
  const std::time_t now = std::time(nullptr);
  std::tm local = {};
  localtime_r(&now, &local);
  return local;
}

}  // namespace

void ChatSession::reset() {
  nlohmann::ordered_json kept = nlohmann::ordered_json::array();
  if (!messages_.empty() && messages_.front()["role"] == "system") kept.push_back(messages_.front());
  messages_ = std::move(kept);
  raw_prompt_.clear();
}

void ChatSession::set_system(std::string text) {
  messages_ = nlohmann::ordered_json::array();
  raw_prompt_.clear();
  if (!text.empty()) messages_.push_back({{"role", "system"}, {"content", std::move(text)}});
}

Result<ChatSession::Prompt> ChatSession::render() const {
  const Tokenizer& tokenizer = opened_.tokenizer;
  if (options_.raw) return Prompt{tokenizer.encode(raw_prompt_, {.parse_special = true, .add_bos = true})};

  PROA_ASSIGN(const auto rendered, opened_.chat_template->render(
                                       messages_, {.enable_thinking = options_.enable_thinking, .now = local_time()}));
  std::vector<TextSegment> segments;
  std::string text;
  for (const auto& segment : rendered) {
    segments.push_back({segment.text, !segment.from_input});
    text += segment.text;
  }
  return Prompt{tokenizer.encode(segments), reasoning_start(text)};
}

Result<Answer> ChatSession::ask(const std::string& text, const OnText& on_text,
                                const std::function<bool()>& keep_going) {
  const auto messages_before = messages_;
  const std::string raw_before = raw_prompt_;
  if (options_.raw) {
    raw_prompt_ += text;
  } else {
    messages_.push_back({{"role", "user"}, {"content", text}});
  }
  const auto undo = [&](Error error) {
    messages_ = messages_before;
    raw_prompt_ = raw_before;
    return error;
  };

  auto prompt = render();
  if (!prompt.ok()) return undo(prompt.error());
  auto reply = opened_.engine->submit({.prompt_token_ids = prompt->token_ids, .params = options_.params});
  if (!reply.ok()) return undo(reply.error());

  Answer answer;
  answer.prompt_token_ids = std::move(prompt->token_ids);
  ReasoningParser parser(prompt->start);
  const auto deliver = [&](Part part, const std::string& piece) {
    if (piece.empty()) return;
    (part == Part::reasoning ? answer.reasoning : answer.content) += piece;
    if (!on_text(part, piece)) (*reply)->cancel();
  };
  const auto deliver_delta = [&](const ReasoningDelta& delta) {
    deliver(Part::reasoning, delta.reasoning);
    deliver(Part::content, delta.content);
  };

  std::vector<TokenEvent> events;
  for (;;) {
    const Reply::Status status = (*reply)->next(events, std::chrono::milliseconds(100));
    if (!keep_going()) (*reply)->cancel();
    if (status == Reply::Status::end) break;
    if (status == Reply::Status::timeout) continue;
    for (TokenEvent& event : events) {
      if (options_.raw) {
        deliver(Part::content, event.text);
      } else {
        deliver_delta(parser.feed(event.text));
      }
      if (event.finish_reason) answer.finish_reason = *event.finish_reason;
      if (event.token_id >= 0) answer.tokens.push_back(std::move(event));
    }
  }
  if (!options_.raw) deliver_delta(parser.finish());
  answer.timings = (*reply)->timings();
  if (answer.finish_reason == FinishReason::error) {
    return undo((*reply)->error().value_or(Error{"generate", "", "", "the engine gave no reason", ""}));
  }

  if (options_.raw) {
    raw_prompt_ += answer.content;
  } else {
    nlohmann::ordered_json message = {{"role", "assistant"}, {"content", answer.content}};
    if (!answer.reasoning.empty()) message["reasoning_content"] = answer.reasoning;
    messages_.push_back(std::move(message));
  }
  last_ = answer;
  return answer;
}

nlohmann::ordered_json Answer::to_json() const {
  using nlohmann::ordered_json;
  ordered_json ids = ordered_json::array(), logprobs = ordered_json::array();
  for (const TokenEvent& token : tokens) {
    ids.push_back(token.token_id);
    ordered_json entry = {{"token_id", token.token_id}, {"logprob", token.logprob}};
    if (!token.top_logprobs.empty()) {
      entry["top_logprobs"] = ordered_json::array();
      for (const TokenLogprob& top : token.top_logprobs) {
        entry["top_logprobs"].push_back({{"token_id", top.token_id}, {"logprob", top.logprob}});
      }
    }
    logprobs.push_back(std::move(entry));
  }
  ordered_json json = {{"text", content}};
  if (!reasoning.empty()) json["reasoning"] = reasoning;
  json["token_ids"] = std::move(ids);
  json["logprobs"] = std::move(logprobs);
  json["prompt_token_ids"] = prompt_token_ids;
  json["finish_reason"] = to_string(finish_reason);
  json["usage"] = {{"prompt_tokens", timings.prompt_tokens},
                   {"completion_tokens", timings.completion_tokens},
                   {"prompt_tokens_details", {{"cached_tokens", timings.cached_tokens}}}};
  json["timings"] = {{"load_s", 0},
                     {"first_token_s", timings.first_token_seconds},
                     {"prefill_tokens", timings.prompt_tokens - timings.cached_tokens},
                     {"prefill_s", timings.prefill_seconds},
                     {"decode_tokens", timings.completion_tokens > 0 ? timings.completion_tokens - 1 : 0},
                     {"decode_s", timings.decode_seconds}};
  return json;
}

}  // namespace proa
