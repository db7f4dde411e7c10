// Chat completions.
#include <map>
#include <utility>

#include "server/logprobs.h"
#include "server/service.h"

namespace proa {
namespace {

// Adds to what is there; fragments of the same call become one.
void append(AnswerDelta& all, AnswerDelta more) {
  all.reasoning += more.reasoning;
  all.content += more.content;
  for (ToolCallDelta& call : more.calls) {
    if (!all.calls.empty() && all.calls.back().index == call.index && call.name.empty()) {
      all.calls.back().arguments += call.arguments;
    } else {
      all.calls.push_back(std::move(call));
    }
  }
}

}  // namespace

class Service::ChatAnswer final : public Answer {
 public:
  ChatAnswer(const Service& service, const ChatRequest& request, ResponseHead head, const Prompt& prompt)
      : service_(service), request_(request), fields_(request.fields), head_(std::move(head)) {
    usage_.prompt_tokens = static_cast<int64_t>(prompt.token_ids.size());
    if (fields_.return_token_ids) prompt_token_ids_ = prompt.token_ids;
    for (int i = 0; i < fields_.n; ++i) choices_.emplace_back(service.make_parser(request, prompt.text));
    const auto& last = request.prompt.messages.back();
    if (fields_.echo && last.value("role", "") == service.config_.policy.response_role && last.contains("content") &&
        last["content"].is_string()) {
      echo_ = last["content"].get<std::string>();
    }
  }

  void take(size_t index, const TokenEvent& event, std::string* stream) override {
    Choice& choice = choices_[index];
    const bool reasoning = choice.parser.in_reasoning();
    const bool withheld = reasoning && !request_.include_reasoning;
    if (event.token_id >= 0) {
      ++usage_.completion_tokens;
      ++choice.completion_tokens;
      if (reasoning) ++usage_.reasoning_tokens;
      if (fields_.return_token_ids && !withheld) choice.token_ids.push_back(event.token_id);
      if (fields_.logprobs && !withheld) {
        if (choice.logprobs.text().empty()) choice.logprobs.begin_array();
        write_chat_logprob(choice.logprobs, service_.tokenizer_, event, fields_.return_tokens_as_token_ids);
      }
    }
    if (index == 0 && fields_.prompt_logprobs && event.token_id >= 0 && prompt_logprobs_.empty()) {
      prompt_logprobs_ = prompt_logprobs_json(service_.tokenizer_, event.prompt_logprobs);
    }
    AnswerDelta delta = choice.parser.feed(event.text);
    if (event.finish_reason) {
      append(delta, choice.parser.finish());
      choice.end = service_.choice_end(event);
      if (choice.parser.called_tools()) choice.end.finish_reason = "tool_calls";
    }
    if (must_have_content(choice) && stream) {
      choice.has_content = choice.has_content || !delta.content.empty() || !delta.calls.empty();
      choice.reasoning += delta.reasoning;
      if (event.finish_reason && !choice.has_content) delta.content = std::move(choice.reasoning);
    }
    if (!request_.include_reasoning) delta.reasoning.clear();
    for (const ToolCallDelta& call : delta.calls) {
      while (static_cast<size_t>(call.index) >= choice.call_ids.size()) {
        choice.call_ids.push_back("chatcmpl-tool-" + random_hex(32));
      }
    }
    append(choice.all, std::move(delta));
    if (!stream || (choice.begun && !event.finish_reason && ++choice.unsent < fields_.stream_interval)) return;
    choice.unsent = 0;
    write_events(static_cast<int>(index), choice, std::exchange(choice.all, {}), event.finish_reason.has_value(),
                 *stream);
  }

  void cached(size_t index, int tokens) override {
    if (index == 0) usage_.cached_tokens = tokens;
  }

  std::string body() override {
    std::vector<ChatChoice> choices;
    for (Choice& choice : choices_) {
      ChatChoice out;
      if (must_have_content(choice) && choice.all.content.empty() && choice.all.calls.empty()) {
        std::swap(choice.all.content, choice.all.reasoning);
      }
      std::map<int, ToolCall> calls;
      for (const ToolCallDelta& delta : choice.all.calls) {
        ToolCall& call = calls[delta.index];
        call.id = choice.call_ids[static_cast<size_t>(delta.index)];
        call.name += delta.name;
        call.arguments += delta.arguments;
      }
      for (auto& [index, call] : calls) out.calls.push_back(std::move(call));
      if (!choice.all.reasoning.empty()) out.reasoning = std::move(choice.all.reasoning);
      out.content = echo_ + choice.all.content;
      if (out.content->empty() && choice.parser.parses() && (out.reasoning || !out.calls.empty())) out.content.reset();
      out.logprobs = choice.take_logprobs();
      out.end = choice.end;
      if (fields_.return_token_ids) out.token_ids = std::move(choice.token_ids);
      choices.push_back(std::move(out));
    }
    return chat_completion(head_, service_.config_.policy.response_role, choices, usage_, prompt_token_ids_,
                           prompt_logprobs_);
  }

  void end_stream(std::string& stream) override {
    if (fields_.include_usage) stream += usage_event(head_, true, usage_);
  }

 private:
  struct Choice {
    explicit Choice(AnswerParser answer_parser) : parser(std::move(answer_parser)) {}

    AnswerParser parser;
    std::vector<std::string> call_ids;
    JsonText logprobs;  // those that were not sent yet, an array that is open
    std::vector<int32_t> token_ids;
    int64_t completion_tokens = 0;
    ChoiceEnd end;
    bool begun = false;        // the first event was sent
    bool has_content = false;  // content or a call came
    std::string reasoning;     // all of it, where it may have to become the content of a stream
    AnswerDelta all;           // that was not sent yet
    int unsent = 0;            // tokens of it

    std::string take_logprobs() {
      return logprobs.text().empty() ? "" : std::exchange(logprobs, JsonText()).end_array().take();
    }
  };

  // With thinking off, or where the client insists, an answer that is all reasoning is given as content.
  bool must_have_content(const Choice& choice) const {
    return choice.parser.parses() && (request_.force_nonempty_content || request_.enable_thinking == false);
  }

  void write_events(int index, Choice& choice, AnswerDelta delta, bool at_end, std::string& stream) {
    Usage so_far = usage_;
    so_far.completion_tokens = choice.completion_tokens;
    const Usage* usage = fields_.continuous_usage ? &so_far : nullptr;
    if (!std::exchange(choice.begun, true)) {
      Usage none = so_far;
      none.completion_tokens = none.reasoning_tokens = 0;
      stream += chat_first_event(head_, service_.config_.policy.response_role, index, prompt_token_ids_,
                                 usage ? &none : nullptr);
      if (!echo_.empty())
        stream += chat_event(head_, {.content = echo_}, {}, {.index = index, .usage = usage ? &none : nullptr});
    }
    std::vector<AnswerDelta> parts;
    if (!delta.reasoning.empty()) parts.push_back({.reasoning = std::move(delta.reasoning)});
    if (!delta.content.empty()) parts.push_back({.content = std::move(delta.content)});
    if (!delta.calls.empty()) parts.push_back({.calls = std::move(delta.calls)});
    if (parts.empty() && (at_end || !choice.parser.parses())) parts.emplace_back();
    for (size_t i = 0; i < parts.size(); ++i) {
      ChunkFields chunk{.index = index, .usage = usage};
      if (i == 0) {
        chunk.logprobs = choice.take_logprobs();
        if (fields_.return_token_ids) chunk.token_ids = std::exchange(choice.token_ids, {});
      }
      if (at_end && i + 1 == parts.size()) chunk.end = &choice.end;
      stream += chat_event(head_, parts[i], choice.call_ids, chunk);
    }
  }

  const Service& service_;
  const ChatRequest& request_;
  const RequestFields& fields_;
  const ResponseHead head_;
  Usage usage_;
  std::optional<std::vector<int32_t>> prompt_token_ids_;
  std::string prompt_logprobs_;  // JSON; empty: null
  std::string echo_;
  std::vector<Choice> choices_;
};

AnswerParser Service::make_parser(const ChatRequest& request, const std::string& prompt_text) const {
  std::optional<ReasoningParser> reasoning;
  if (reasoning_) {
    // The models these parsers are for think unless the prompt says that they have.
    const bool closed = reasoning_start(prompt_text) == ReasoningStart::kClosed;
    reasoning.emplace(closed ? ReasoningStart::kClosed : ReasoningStart::kOpen, *reasoning_);
  }
  std::unique_ptr<ToolParser> tools;
  if (!request.tools.is_null()) {
    tools = make_tool_parser(config_.policy.tool_parser, request.tools, {.bare_functions = !request.fields.stream});
  }
  return {std::move(reasoning), std::move(tools), request.parallel_tool_calls};
}

void Service::chat_completions(Call& call) {
  const auto body = read_body(call);
  if (!body) return;
  struct Owned {
    ChatRequest request;
    Prompt prompt;
  };
  const auto owned = std::make_shared<Owned>();
  ChatRequest& request = owned->request;
  Prompt& prompt = owned->prompt;
  if (auto error = read_chat_request(*body, config_.policy, request)) return call.fail(*error);
  if (!knows_model(call, request.fields.model)) return;
  name_request(call, request.fields.request_id);

  if (auto error = render(request.prompt, request.fields.add_special_tokens, prompt)) return call.fail(*error);
  if (auto error = settle_tokens(request.fields)) return call.fail(*error);
  if (auto error = fit(request.fields, prompt.token_ids)) return call.fail(*error);
  request.fields.params.thinking_budget = settle_budget(request, prompt.text);
  auto answer = std::make_unique<ChatAnswer>(
      *this, request, ResponseHead{"chatcmpl-" + call.request_id, std::time(nullptr), config_.model_names.front()},
      prompt);
  // The parsers look for tags, which may be special tokens.
  if (reasoning_ || !request.tools.is_null()) request.fields.params.skip_special_tokens = false;
  std::vector<std::shared_ptr<Reply>> replies;
  if (auto error = submit(call, request.fields, {prompt.token_ids}, replies)) return call.fail(*error);
  generate(call, owned, request.fields, std::move(answer), std::move(replies));
}

}  // namespace proa
