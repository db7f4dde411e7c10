// Completions, and the tokenizer's routes.
#include <utility>

#include "server/logprobs.h"
#include "server/service.h"

namespace proa {

class Service::CompletionAnswer final : public Answer {
 public:
  // `echoes`: [prompts] the text of each, empty where it is not wanted.
  CompletionAnswer(const Service& service, const RequestFields& fields, ResponseHead head,
                   const std::vector<std::vector<int32_t>>& prompts, std::vector<std::string> echoes)
      : service_(service), fields_(fields), head_(std::move(head)), prompts_(prompts), echoes_(std::move(echoes)) {
    for (const auto& prompt : prompts) {
      usage_.prompt_tokens += static_cast<int64_t>(prompt.size());
      for (int i = 0; i < fields.n; ++i) choices_.emplace_back(service.tokenizer_, fields.return_tokens_as_token_ids);
    }
  }

  void take(size_t index, const TokenEvent& event, std::string* stream) override {
    Choice& choice = choices_[index];
    const bool first = !std::exchange(choice.begun, true);
    if (first && fields_.prompt_logprobs && event.token_id >= 0) {
      choice.prompt_logprobs = prompt_logprobs_json(service_.tokenizer_, event.prompt_logprobs);
      if (fields_.echo && fields_.logprobs) {
        choice.logprobs.add_prompt(prompts_[prompt_of(index)].front(), event.prompt_logprobs);
      }
    }
    const bool prompt_alone = *fields_.max_tokens == 0;
    if (event.token_id >= 0 && !prompt_alone) {
      ++usage_.completion_tokens;
      ++choice.completion_tokens;
      if (fields_.return_token_ids) choice.token_ids.push_back(event.token_id);
      if (fields_.logprobs) choice.logprobs.add(event);
    }
    if (event.finish_reason) choice.end = service_.choice_end(event);
    if (prompt_alone && choice.end.finish_reason == "stop") choice.end = {.finish_reason = "length"};
    choice.text += (first ? echoes_[prompt_of(index)] : "") + (prompt_alone ? "" : event.text);
    if (!stream || (!first && !event.finish_reason && ++choice.unsent < fields_.stream_interval)) return;
    choice.unsent = 0;
    Usage so_far = usage_;
    so_far.prompt_tokens = static_cast<int64_t>(prompts_[prompt_of(index)].size());
    so_far.completion_tokens = choice.completion_tokens;
    ChunkFields chunk{.index = static_cast<int>(index)};
    if (!choice.logprobs.empty()) chunk.logprobs = choice.logprobs.take();
    if (fields_.return_token_ids) chunk.token_ids = std::exchange(choice.token_ids, {});
    if (fields_.continuous_usage) chunk.usage = &so_far;
    if (event.finish_reason) chunk.end = &choice.end;
    *stream += completion_event(head_, std::exchange(choice.text, {}), chunk, first ? prompt_ids(index) : std::nullopt);
  }

  // An echo without an answer: max_tokens 0.
  void echo_only() {
    for (size_t i = 0; i < choices_.size(); ++i) {
      choices_[i].text = echoes_[prompt_of(i)];
      choices_[i].end.finish_reason = "length";
    }
  }
  void stream_echoes(std::string& stream) {
    for (size_t i = 0; i < choices_.size(); ++i) {
      const ChunkFields chunk{.index = static_cast<int>(i), .end = &choices_[i].end};
      stream += completion_event(head_, choices_[i].text, chunk, prompt_ids(i));
    }
  }

  void cached(size_t index, int tokens) override {
    if (index % static_cast<size_t>(fields_.n) == 0) usage_.cached_tokens += tokens;
  }

  std::string body() override {
    std::vector<CompletionChoice> choices;
    for (size_t i = 0; i < choices_.size(); ++i) {
      Choice& choice = choices_[i];
      CompletionChoice out{.text = std::move(choice.text), .end = choice.end, .prompt_token_ids = prompt_ids(i)};
      if (!choice.logprobs.empty()) out.logprobs = choice.logprobs.take();
      if (fields_.return_token_ids) out.token_ids = std::move(choice.token_ids);
      out.prompt_logprobs = std::move(choice.prompt_logprobs);
      choices.push_back(std::move(out));
    }
    return completion(head_, choices, usage_);
  }

  void end_stream(std::string& stream) override {
    if (fields_.include_usage) stream += usage_event(head_, false, usage_);
  }

 private:
  struct Choice {
    Choice(const Tokenizer& tokenizer, bool as_token_ids) : logprobs(tokenizer, as_token_ids) {}
    std::string text;  // that was not sent yet
    int unsent = 0;    // tokens of it
    CompletionLogprobs logprobs;
    std::string prompt_logprobs;  // JSON
    std::vector<int32_t> token_ids;
    int64_t completion_tokens = 0;
    ChoiceEnd end;
    bool begun = false;
  };

  size_t prompt_of(size_t choice) const { return choice / static_cast<size_t>(fields_.n); }
  std::optional<std::vector<int32_t>> prompt_ids(size_t choice) const {
    if (!fields_.return_token_ids) return std::nullopt;
    return prompts_[prompt_of(choice)];
  }

  const Service& service_;
  const RequestFields& fields_;
  const ResponseHead head_;
  const std::vector<std::vector<int32_t>>& prompts_;
  const std::vector<std::string> echoes_;
  Usage usage_;
  std::vector<Choice> choices_;
};

void Service::completions(Call& call) {
  const auto body = read_body(call);
  if (!body) return;
  struct Owned {
    CompletionRequest request;
    std::vector<std::vector<int32_t>> prompts;
  };
  const auto owned = std::make_shared<Owned>();
  CompletionRequest& request = owned->request;
  auto& prompts = owned->prompts;
  RequestFields& fields = request.fields;
  if (auto error = read_completion_request(*body, config_.policy, request)) return call.fail(*error);
  if (!knows_model(call, fields.model)) return;
  name_request(call, fields.request_id);

  if (auto error = settle_tokens(fields)) return call.fail(*error);
  std::vector<std::string> echoes;
  for (CompletionPrompt& given : request.prompts) {
    const auto* text = std::get_if<std::string>(&given);
    prompts.push_back(text ? tokenizer_.encode(*text, {.parse_special = true, .add_bos = fields.add_special_tokens})
                           : std::move(std::get<std::vector<int32_t>>(given)));
    if (auto error = fit(fields, prompts.back())) return call.fail(*error);
    echoes.push_back(!fields.echo ? "" : text ? *text : tokenizer_.decode(prompts.back()));
  }
  auto answer = std::make_unique<CompletionAnswer>(
      *this, fields, ResponseHead{"cmpl-" + call.request_id, std::time(nullptr), config_.model_names.front()}, prompts,
      std::move(echoes));
  if (*fields.max_tokens == 0 && !fields.prompt_logprobs) {
    answer->echo_only();
    if (!fields.stream) return call.respond({.body = answer->body()});
    std::string stream;
    answer->stream_echoes(stream);
    answer->end_stream(stream);
    call.begin_stream();
    call.write(stream + std::string(kDoneEvent));
    return call.end_stream();
  }
  std::vector<std::shared_ptr<Reply>> replies;
  if (auto error = submit(call, fields, prompts, replies)) return call.fail(*error);
  generate(call, owned, fields, std::move(answer), std::move(replies));
}

// What clients that count and score tokens themselves ask for; names are those of tokenizer_config.json.
void Service::tokenizer_info(Call& call) {
  JsonText json;
  const auto token = [&](const char* name, std::optional<int32_t> id) {
    json.key(name);
    id ? json.string(token_text(tokenizer_, *id, false)) : json.null();
  };
  const auto eos = tokenizer_.eos_ids();
  json.begin_object().member("tokenizer_class", "PreTrainedTokenizerFast");
  token("bos_token", tokenizer_.bos_id());
  token("eos_token", eos.empty() ? std::nullopt : std::optional(eos.front()));
  json.member("add_bos_token", tokenizer_.adds_bos()).member("model_max_length", engine_.config().max_model_len);
  json.key("chat_template");
  config_.chat_template_text.empty() ? json.null() : json.string(config_.chat_template_text);
  call.respond({.body = json.end_object().take()});
}

void Service::tokenize(Call& call) {
  const auto body = read_body(call);
  if (!body) return;
  FieldReader fields(*body);
  std::string model;
  bool token_strings = false;
  fields.read("model", model);
  fields.read("return_token_strs", token_strings);
  std::vector<int32_t> ids;
  if (body->is_object() && body->contains("messages")) {
    ChatPrompt chat;
    bool add_special_tokens = false;
    fields.read("add_special_tokens", add_special_tokens);
    auto error = read_chat_prompt(fields, config_.policy, chat);
    if (const Json* tools = fields.array("tools")) chat.tools = *tools;
    if (auto wrong = fields.error()) return call.fail(*wrong);
    if (error) return call.fail(*error);
    if (!knows_model(call, model)) return;
    Prompt prompt;
    if (auto failed = render(chat, add_special_tokens, prompt)) return call.fail(*failed);
    ids = std::move(prompt.token_ids);
  } else {
    std::string text;
    bool add_special_tokens = true;
    fields.require("prompt");
    fields.read("prompt", text);
    fields.read("add_special_tokens", add_special_tokens);
    if (auto error = fields.error()) return call.fail(*error);
    if (!knows_model(call, model)) return;
    ids = tokenizer_.encode(text, {.parse_special = true, .add_bos = add_special_tokens});
  }
  JsonText json;
  json.begin_object().member("count", static_cast<int64_t>(ids.size()));
  json.member("max_model_len", engine_.config().max_model_len).key("tokens").begin_array();
  for (const int32_t id : ids) json.integer(id);
  json.end_array().key("token_strs");
  if (token_strings) {
    json.begin_array();
    for (const int32_t id : ids) json.string(token_text(tokenizer_, id, false));
    json.end_array();
  } else {
    json.null();
  }
  call.respond({.body = json.end_object().take()});
}

void Service::detokenize(Call& call) {
  const auto body = read_body(call);
  if (!body) return;
  FieldReader fields(*body);
  std::string model;
  std::vector<int32_t> ids;
  fields.read("model", model);
  fields.require("tokens");
  fields.read("tokens", ids);
  for (size_t i = 0; i < ids.size(); ++i) {
    if (ids[i] >= 0) continue;
    fields.problem("tokens[" + std::to_string(i) + "]", "greater_than_equal",
                   "Input should be greater than or equal to 0");
    break;
  }
  if (auto error = fields.error()) return call.fail(*error);
  if (!knows_model(call, model)) return;
  for (const int32_t id : ids) {
    if (id >= tokenizer_.vocab_size()) {
      return call.fail(bad_request("Token id " + std::to_string(id) + " is out of vocabulary", "tokens"));
    }
  }
  JsonText json;
  json.begin_object().member("prompt", tokenizer_.decode(ids)).end_object();
  call.respond({.body = json.take()});
}

}  // namespace proa
