// The routes: what a request asks for, and what it gets. Between the HTTP server, which knows no route, and the engine,
// which knows no HTTP.
//
//   Service service({...}, engine, tokenizer, chat_template);
//   Server::start({.handler = [&](Exchange& exchange) { service.handle(exchange); },
//                  .is_quick = Service::is_quick, .error_response = Service::error_response});
#pragma once

#include <atomic>
#include <functional>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "chat/chat_template.h"
#include "chat/reasoning.h"
#include "engine/engine.h"
#include "http/access.h"
#include "http/server.h"
#include "server/chat_request.h"
#include "server/completion_request.h"
#include "server/request_fields.h"
#include "server/responses.h"
#include "server/server_metrics.h"
#include "tokenizer/tokenizer.h"

namespace proa {

struct ServiceConfig {
  std::vector<std::string> model_names;  // at least one; answers carry the first
  std::string model_root;                // the model as it was given
  std::string version;
  RequestPolicy policy;
  std::vector<std::string> api_keys;
  bool open_metrics = false;  // /metrics needs no key
  http::CorsConfig cors;
  std::string root_path;  // of a proxy: taken off paths that begin with it
  bool enable_request_id_headers = false;
  bool enable_server_load_tracking = false;
  bool disable_docs = false;            // no /openapi.json
  bool enable_tokenizer_info = false;   // /tokenizer_info, which shows the template
  std::string chat_template_text = {};  // its source, for that
  CacheSettings cache;
};

class Service {
 public:
  // All of them outlive the service. Without a chat template chat completions are refused.
  Service(ServiceConfig config, Engine& engine, const Tokenizer& tokenizer, const ChatTemplate* chat_template);

  void handle(http::Exchange& exchange);

  static bool is_quick(const http::Request& request);  // needs neither engine nor much time
  static http::Response error_response(int status, std::string_view message);

  // From now on health says 503; nothing else changes.
  void begin_draining() { draining_ = true; }

  struct Route {
    std::string path;
    std::string methods;  // "GET", "GET, POST"
  };
  static std::vector<Route> routes();

  ServerMetrics& metrics() { return metrics_; }

 private:
  using Clock = std::chrono::steady_clock;
  using Json = nlohmann::ordered_json;

  // One request under way: the exchange, which outlives it, and what every answer to it carries.
  struct Call {
    http::Exchange& exchange;
    std::vector<http::Header> headers;
    std::string request_id;  // the client's, or made here
    Clock::time_point arrived = Clock::now();
    ServerMetrics* metrics = nullptr;  // where the answer is counted, before its end is sent; null: nowhere
    size_t route = 0;
    int status = 0;
    size_t request_bytes = exchange.request().body.size();
    size_t response_bytes = 0;

    void respond(http::Response response);
    void fail(const ApiError& error) { respond(::proa::error_response(error)); }
    void begin_stream();
    void end_stream();
    void count() const;
    bool write(std::string_view part) {
      response_bytes += part.size();
      return exchange.write(part);
    }
  };
  using Handler = void (Service::*)(Call&);
  struct Entry {
    const char* path;
    Handler get, post;
    bool measured;  // counted among the http_ families
  };
  static const std::vector<Entry>& table();

  void route(Call& call, const std::string& path);
  bool is_open(const std::string& path) const;  // needs no key

  void health(Call& call);
  void version(Call& call);
  void load(Call& call);
  void metrics_text(Call& call);
  void models(Call& call);
  void openapi(Call& call);
  void page(Call& call);
  void tokenizer_info(Call& call);
  void tokenize(Call& call);
  void detokenize(Call& call);
  void chat_completions(Call& call);
  void completions(Call& call);
  void invocations(Call& call);  // either, by the body's fields

  // The body as JSON; none: the answer was sent.
  std::optional<Json> read_body(Call& call);
  bool knows_model(Call& call, const std::string& model);
  // By the body's request_id, where no header named it.
  static void name_request(Call& call, const std::string& request_id);

  struct Prompt {
    std::vector<int32_t> token_ids;
    std::string text;  // as rendered; of chats alone
  };
  std::optional<ApiError> render(const ChatPrompt& chat, bool add_special_tokens, Prompt& prompt) const;
  // What of the fields needs the vocabulary: words as tokens, ids that are none.
  std::optional<ApiError> settle_tokens(RequestFields& fields) const;
  // The end of thinking in tokens; `budget` none: nothing.
  std::optional<ThinkingBudget> settle_budget(const ChatRequest& request, const std::string& prompt_text) const;
  // Cuts the prompt if the request wants that, settles how many tokens may come, and checks that both fit.
  std::optional<ApiError> fit(RequestFields& fields, std::vector<int32_t>& prompt_token_ids) const;
  // n sequences of each prompt, in order: all of them or none.
  std::optional<ApiError> submit(const Call& call, const RequestFields& fields,
                                 const std::vector<std::vector<int32_t>>& prompts,
                                 std::vector<std::shared_ptr<Reply>>& replies);
  // "stop_reason" and "finish_reason" of a last event.
  ChoiceEnd choice_end(const TokenEvent& event) const;
  AnswerParser make_parser(const ChatRequest& request, const std::string& prompt_text) const;

  // Turns the events of the replies into what is sent; events of choice i are those of reply i.
  class Answer {
   public:
    virtual ~Answer() = default;
    // Appends the events of a stream to *stream, or keeps what body() needs where that is null.
    virtual void take(size_t choice, const TokenEvent& event, std::string* stream) = 0;
    // Prompt tokens of a choice that were not computed for it.
    virtual void cached(size_t choice, int tokens) = 0;
    virtual std::string body() = 0;
    virtual void end_stream(std::string& stream) = 0;
  };
  class ChatAnswer;
  class CompletionAnswer;
  // An answer under way, from the first token to the last, or until the client leaves. No thread waits for it.
  class Generation;
  // `fields` and what `answer` refers to belong to `owner`.
  void generate(const Call& call, std::shared_ptr<const void> owner, const RequestFields& fields,
                std::unique_ptr<Answer> answer, std::vector<std::shared_ptr<Reply>> replies);

  const ServiceConfig config_;
  const std::optional<ReasoningRules> reasoning_;
  Engine& engine_;
  const Tokenizer& tokenizer_;
  const ChatTemplate* const chat_template_;
  const int64_t started_;  // seconds since 1970
  ServerMetrics metrics_;
  std::atomic<bool> draining_{false};
  std::atomic<int> load_{0};
};

std::string random_hex(int digits);

}  // namespace proa
