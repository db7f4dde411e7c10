#include "server/service.h"

#include <algorithm>
#include <array>
#include <ctime>
#include <random>

#include "checkpoint/checkpoint.h"
#include "server/json_text.h"
#include "server/openapi.h"
#include "server/page.h"
#include "server/reply_group.h"

namespace proa {
namespace {

constexpr size_t kMaxRequestId = 200;
constexpr std::string_view kCompatible = "vllm 0.13";

// What a client may name its request: printable, and short enough for headers and logs.
bool is_request_id(std::string_view id) {
  return !id.empty() && id.size() <= kMaxRequestId &&
         std::all_of(id.begin(), id.end(), [](char c) { return c > ' ' && c < 0x7f && c != '"' && c != '\\'; });
}

int total_blocks(const Engine& engine) { return engine.stats().free_blocks; }  // nothing has run yet

CacheSettings with_blocks(CacheSettings cache, const Engine& engine) {
  cache.block_size = std::to_string(engine.config().block_size);
  cache.num_gpu_blocks = std::to_string(total_blocks(engine));
  return cache;
}

ApiError json_error(const char* kind, const std::string& message) {
  ApiError error = http_error(
      400, "1 validation error:\n  {'type': '" + std::string(kind) + "', 'loc': ('body',), 'msg': '" + message + "'}");
  error.param = "body";
  return error;
}

}  // namespace

std::string random_hex(int digits) {
  thread_local std::mt19937_64 random{std::random_device{}()};
  std::string text;
  while (static_cast<int>(text.size()) < digits) {
    uint64_t bits = random();
    for (int i = 0; i < 16 && static_cast<int>(text.size()) < digits; ++i, bits >>= 4)
      text += "0123456789abcdef"[bits & 15];
  }
  return text;
}

Service::Service(ServiceConfig config, Engine& engine, const Tokenizer& tokenizer, const ChatTemplate* chat_template)
    : config_(std::move(config)),
      reasoning_(reasoning_rules(config_.policy.reasoning_parser)),
      engine_(engine),
      tokenizer_(tokenizer),
      chat_template_(chat_template),
      started_(std::time(nullptr)),
      metrics_(config_.model_names.front(), engine.config().max_model_len, total_blocks(engine),
               with_blocks(config_.cache, engine)) {
  std::vector<std::string> paths;
  for (const Entry& entry : table()) paths.emplace_back(entry.path);
  metrics_.set_routes(std::move(paths));
}

// --- routing ---

const std::vector<Service::Entry>& Service::table() {
  static const std::vector<Entry> entries = {
      {"/", &Service::page, nullptr, false},
      {"/health", &Service::health, nullptr, false},
      {"/load", &Service::load, nullptr, false},
      {"/ping", &Service::health, &Service::health, false},
      {"/version", &Service::version, nullptr, false},
      {"/metrics", &Service::metrics_text, nullptr, false},
      {"/openapi.json", &Service::openapi, nullptr, true},
      {"/tokenizer_info", &Service::tokenizer_info, nullptr, true},
      {"/tokenize", nullptr, &Service::tokenize, true},
      {"/detokenize", nullptr, &Service::detokenize, true},
      {"/v1/models", &Service::models, nullptr, true},
      {"/v1/chat/completions", nullptr, &Service::chat_completions, true},
      {"/v1/completions", nullptr, &Service::completions, true},
      {"/invocations", nullptr, &Service::invocations, true},
      // Some clients leave /v1 out.
      {"/models", &Service::models, nullptr, true},
      {"/chat/completions", nullptr, &Service::chat_completions, true},
      {"/completions", nullptr, &Service::completions, true},
  };
  return entries;
}

std::vector<Service::Route> Service::routes() {
  std::vector<Route> routes;
  for (const Entry& entry : table()) {
    routes.push_back({entry.path, entry.get && entry.post ? "GET, POST" : entry.get ? "GET" : "POST"});
  }
  return routes;
}

bool Service::is_quick(const http::Request& request) { return request.method != "POST" || request.path == "/ping"; }

http::Response Service::error_response(int status, std::string_view message) {
  return ::proa::error_response(http_error(status, std::string(message)));
}

bool Service::is_open(const std::string& path) const {
  // The page has no data of its own; it asks its reader for the key.
  return path == "/health" || path == "/ping" || path == "/" || (path == "/metrics" && config_.open_metrics);
}

void Service::Call::respond(http::Response response) {
  status = response.status;
  response_bytes = response.body.size();
  response.headers.insert(response.headers.end(), headers.begin(), headers.end());
  count();
  exchange.respond(std::move(response));
}

void Service::Call::begin_stream() {
  status = 200;
  std::vector<http::Header> all = headers;
  all.push_back({"cache-control", "no-cache"});
  exchange.begin_stream({.content_type = "text/event-stream; charset=utf-8", .headers = std::move(all)});
}

void Service::Call::end_stream() {
  count();
  exchange.end_stream();
}

void Service::Call::count() const {
  if (!metrics) return;
  metrics->http({.route = route,
                 .method = exchange.request().method,
                 .status = status,
                 .seconds = std::chrono::duration<double>(Clock::now() - arrived).count(),
                 .request_bytes = request_bytes,
                 .response_bytes = response_bytes});
}

void Service::handle(http::Exchange& exchange) {
  const http::Request& request = exchange.request();
  if (http::is_preflight(request)) return exchange.respond(http::answer_preflight(request, config_.cors));
  Call call{.exchange = exchange, .headers = http::cors_headers(request, config_.cors)};
  const std::string_view given = request.header("X-Request-Id");
  call.request_id = is_request_id(given) ? std::string(given) : random_hex(32);
  if (config_.enable_request_id_headers) call.headers.push_back({"x-request-id", call.request_id});

  std::string path = request.path;
  const std::string& root = config_.root_path;
  if (!root.empty() && path.starts_with(root) && path.size() > root.size() && path[root.size()] == '/') {
    path.erase(0, root.size());
  }
  if (!config_.api_keys.empty() && !is_open(path) && !http::has_api_key(request, config_.api_keys)) {
    return call.respond({.status = 401, .body = R"({"error":"Unauthorized"})"});
  }
  route(call, path);
}

void Service::route(Call& call, const std::string& path) {
  const auto& entries = table();
  const auto entry =
      std::find_if(entries.begin(), entries.end(), [&](const Entry& known) { return path == known.path; });
  if (entry == entries.end() || (config_.disable_docs && path == "/openapi.json") ||
      (!config_.enable_tokenizer_info && path == "/tokenizer_info")) {
    return call.fail(http_error(404, "Not Found"));
  }
  const std::string& method = call.exchange.request().method;
  const Handler handler = method == "GET" ? entry->get : method == "POST" ? entry->post : nullptr;
  if (entry->measured) call.metrics = &metrics_;
  call.route = static_cast<size_t>(entry - entries.begin());
  if (handler) return (this->*handler)(call);
  call.headers.push_back({"allow", entry->get && entry->post ? "GET, POST" : entry->get ? "GET" : "POST"});
  call.fail(http_error(405, "Method Not Allowed"));
}

// --- the small ones ---

void Service::health(Call& call) { call.respond({.status = draining_ ? 503 : 200, .content_type = ""}); }

void Service::version(Call& call) {
  JsonText json;
  json.begin_object().member("version", config_.version).member("compat", kCompatible).end_object();
  call.respond({.body = json.take()});
}

void Service::load(Call& call) {
  JsonText json;
  json.begin_object().member("server_load", config_.enable_server_load_tracking ? load_.load() : 0).end_object();
  call.respond({.body = json.take()});
}

void Service::metrics_text(Call& call) {
  call.respond({.content_type = "text/plain; version=0.0.4; charset=utf-8", .body = metrics_.text(engine_)});
}

void Service::page(Call& call) {
  call.respond({.content_type = "text/html; charset=utf-8",
                .body = std::string(page_html()),
                .headers = {{"content-security-policy", std::string(kPagePolicy)}}});
}

void Service::openapi(Call& call) { call.respond({.body = openapi_document(config_.version)}); }

void Service::models(Call& call) {
  const int64_t now = std::time(nullptr);
  JsonText json;
  json.begin_object().member("object", "list").key("data").begin_array();
  for (const std::string& name : config_.model_names) {
    json.begin_object().member("id", name).member("object", "model").member("created", now).member("owned_by", "vllm");
    json.member("root", config_.model_root)
        .null_member("parent")
        .member("max_model_len", engine_.config().max_model_len);
    json.key("permission").begin_array().begin_object().member("id", "modelperm-" + random_hex(32));
    json.member("object", "model_permission").member("created", now).member("allow_create_engine", false);
    json.member("allow_sampling", true).member("allow_logprobs", true).member("allow_search_indices", false);
    json.member("allow_view", true).member("allow_fine_tuning", false).member("organization", "*").null_member("group");
    json.member("is_blocking", false).end_object().end_array().end_object();
  }
  call.respond({.body = json.end_array().end_object().take()});
}

// --- what routes with a body share ---

std::optional<nlohmann::ordered_json> Service::read_body(Call& call) {
  const http::Request& request = call.exchange.request();
  std::string_view type = request.header("Content-Type");
  type = type.substr(0, type.find(';'));
  while (type.ends_with(' ')) type.remove_suffix(1);
  if (!http::equal_ignoring_case(type, "application/json")) {
    call.fail(json_error("value_error", "Unsupported Media Type: Only 'application/json' is allowed"));
    return std::nullopt;
  }
  if (request.body.empty()) {
    call.fail(json_error("missing", "Field required"));
    return std::nullopt;
  }
  auto body = parse_json(request.body, "body", request.body.size());
  if (!body.ok()) {
    call.fail(json_error("json_invalid", "JSON decode error: " + body.error().message()));
    return std::nullopt;
  }
  return *std::move(body);
}

bool Service::knows_model(Call& call, const std::string& model) {
  const auto& names = config_.model_names;
  if (model.empty() || std::find(names.begin(), names.end(), model) != names.end()) return true;
  call.fail(model_not_found(model));
  return false;
}

void Service::name_request(Call& call, const std::string& request_id) {
  const bool named = is_request_id(call.exchange.request().header("X-Request-Id"));
  if (!named && is_request_id(request_id)) call.request_id = request_id;
}

std::optional<ApiError> Service::render(const ChatPrompt& chat, bool add_special_tokens, Prompt& prompt) const {
  std::optional<ChatTemplate> own;
  if (chat.chat_template) {
    SpecialTokenTexts tokens;
    if (const auto bos = tokenizer_.bos_id()) tokens.bos_token = tokenizer_.piece(*bos);
    if (!tokenizer_.eos_ids().empty()) tokens.eos_token = tokenizer_.piece(tokenizer_.eos_ids().front());
    auto parsed = ChatTemplate::create(*chat.chat_template, tokens, "chat_template");
    if (!parsed.ok()) return bad_request(parsed.error().message(), "chat_template");
    own = *std::move(parsed);
  }
  const ChatTemplate* used = own ? &*own : chat_template_;
  if (!used) {
    return bad_request(
        "As of transformers v4.44, default chat template is no longer allowed, so you must provide a chat template if "
        "the "
        "tokenizer does not define one.");
  }
  const auto rendered = used->render(chat.messages, chat.options());
  if (!rendered.ok()) {
    const Error& error = rendered.error();
    // An exception that the template raised speaks for itself.
    if (error.expected.empty() && !error.actual.empty()) return bad_request(error.actual);
    return bad_request(without_paths(error.message()), error.where);
  }
  std::vector<TextSegment> segments;
  for (const auto& segment : *rendered) {
    segments.push_back({segment.text, !segment.from_input});
    prompt.text += segment.text;
  }
  prompt.token_ids = tokenizer_.encode(segments, add_special_tokens);
  return std::nullopt;
}

std::optional<ApiError> Service::settle_tokens(RequestFields& fields) const {
  SamplingParams& params = fields.params;
  const auto unknown = [size = tokenizer_.vocab_size()](int32_t id) { return id < 0 || id >= size; };
  std::string wrong;
  for (const TokenBias& bias : params.logit_bias) {
    if (unknown(bias.token_id)) wrong += (wrong.empty() ? "" : ", ") + std::to_string(bias.token_id);
  }
  if (!wrong.empty()) return unknown_tokens("logit_bias", wrong);
  if (std::any_of(params.allowed_token_ids.begin(), params.allowed_token_ids.end(), unknown)) {
    return bad_request("allowed_token_ids contains out-of-vocab token id!", "allowed_token_ids");
  }
  // As vLLM: a word counts as it stands, and behind a space where that begins with another token.
  for (const std::string& word : fields.bad_words) {
    const std::string bare = word.substr(word.find_first_not_of(' '));
    const std::vector<int32_t> ids = tokenizer_.encode(bare, {.parse_special = true});
    std::vector<int32_t> spaced = tokenizer_.encode(" " + bare, {.parse_special = true});
    if (ids.empty()) continue;
    params.bad_words.push_back(ids);
    if (spaced.size() == ids.size() && spaced.front() != ids.front()) params.bad_words.push_back(std::move(spaced));
  }
  return std::nullopt;
}

std::optional<ThinkingBudget> Service::settle_budget(const ChatRequest& request, const std::string& prompt_text) const {
  if (!request.thinking_budget || !reasoning_ || reasoning_start(prompt_text) == ReasoningStart::kClosed) {
    return std::nullopt;
  }
  ThinkingBudget budget = *request.thinking_budget;
  budget.end_token_ids = tokenizer_.encode("\n\n</think>", {.parse_special = true});
  budget.closing_texts = {"</think>"};
  if (reasoning_->tool_call_ends) budget.closing_texts.emplace_back("<tool_call>");
  return budget;
}

std::optional<ApiError> Service::fit(RequestFields& fields, std::vector<int32_t>& ids) const {
  const int64_t limit = engine_.config().max_model_len;
  const auto vocab_size = tokenizer_.vocab_size();
  for (const int32_t id : ids) {
    if (id >= 0 && id < vocab_size) continue;
    return bad_request("Token id " + std::to_string(id) + " is out of vocabulary", "prompt");
  }
  if (fields.truncate_prompt_tokens) {
    const int64_t wanted = *fields.truncate_prompt_tokens;
    if (wanted > limit) {
      return bad_request("truncate_prompt_tokens value (" + std::to_string(wanted) +
                             ") is greater than max_model_len (" + std::to_string(limit) +
                             "). Please, select a smaller truncation size.",
                         "truncate_prompt_tokens");
    }
    const int64_t room = limit - std::min(std::max<int64_t>(fields.max_tokens.value_or(1), 1), limit - 1);
    const auto keep = static_cast<size_t>(wanted < 0 ? room : wanted);
    if (ids.size() > keep && fields.truncate_right) ids.resize(keep);
    if (ids.size() > keep) ids.erase(ids.begin(), ids.end() - static_cast<std::ptrdiff_t>(keep));
  }
  if (ids.empty()) return bad_request("The decoder prompt cannot be empty", "prompt");
  const auto size = static_cast<int64_t>(ids.size());
  if (size >= limit) {
    return bad_request("This model's maximum context length is " + std::to_string(limit) +
                           " tokens. However, your request has " + std::to_string(size) +
                           " input tokens. Please reduce the length of the input messages.",
                       "input_tokens");
  }
  if (fields.max_tokens && *fields.max_tokens > limit - size) {
    const std::string wanted = std::to_string(*fields.max_tokens);
    return bad_request("'max_tokens' or 'max_completion_tokens' is too large: " + wanted +
                           ". This model's maximum context length is " + std::to_string(limit) +
                           " tokens and your request has " + std::to_string(size) + " input tokens (" + wanted + " > " +
                           std::to_string(limit) + " - " + std::to_string(size) + ").",
                       "max_tokens");
  }
  const int64_t max_tokens =
      std::min(fields.max_tokens.value_or(limit - size), config_.policy.max_new_tokens.value_or(limit));
  fields.max_tokens = max_tokens;
  if (fields.params.min_tokens > max_tokens) {
    return bad_request("min_tokens must be less than or equal to max_tokens=" + std::to_string(max_tokens) + ", got " +
                           std::to_string(fields.params.min_tokens) + ".",
                       "min_tokens");
  }
  return std::nullopt;
}

std::optional<ApiError> Service::submit(const Call& call, const RequestFields& fields,
                                        const std::vector<std::vector<int32_t>>& prompts,
                                        std::vector<std::shared_ptr<Reply>>& replies) {
  SamplingParams params = fields.params;
  params.temperature = effective_temperature(params.temperature);
  // max_tokens 0 asks about the prompt alone; an engine generates one token for that, which is not shown.
  params.max_tokens = static_cast<int>(std::clamp<int64_t>(*fields.max_tokens, 1, INT32_MAX));
  params.min_tokens = std::min(params.min_tokens, *params.max_tokens);
  params.logprobs = fields.logprobs;
  params.prompt_logprobs = fields.prompt_logprobs;
  std::vector<Request> requests;
  for (const std::vector<int32_t>& prompt : prompts) {
    for (int i = 0; i < fields.n; ++i) {
      requests.push_back({.id = call.request_id,
                          .prompt_token_ids = prompt,
                          .params = params,
                          .sequence_index = static_cast<uint32_t>(i),
                          .priority = fields.priority,
                          .use_prefix_cache = !fields.salted});
    }
  }
  if (requests.size() > static_cast<size_t>(engine_.config().max_queue)) {  // which no waiting would change
    return bad_request(
        "The request asks for " + std::to_string(requests.size()) +
            " sequences, which is more than the queue holds: " + std::to_string(engine_.config().max_queue),
        "n");
  }
  auto submitted = engine_.submit(std::move(requests));
  if (!submitted.ok()) return submit_error(submitted.error());
  replies = *std::move(submitted);
  return std::nullopt;
}

ChoiceEnd Service::choice_end(const TokenEvent& event) const {
  ChoiceEnd end;
  switch (*event.finish_reason) {
    case FinishReason::stop:
      end.finish_reason = "stop";
      break;
    case FinishReason::length:
      end.finish_reason = "length";
      break;
    case FinishReason::cancelled:
      end.finish_reason = "abort";
      break;
    case FinishReason::error:
      end.finish_reason = "error";
      break;
  }
  if (event.stop_string) {
    JsonText text;
    end.stop_reason = text.string(*event.stop_string).take();
  } else if (event.stop_token) {
    const auto eos = tokenizer_.eos_ids();
    const bool is_eos = !eos.empty() && eos.front() == *event.stop_token;
    if (!is_eos) end.stop_reason = std::to_string(*event.stop_token);
  }
  return end;
}

class Service::Generation {
 public:
  Generation(Service& service, const Call& call, std::shared_ptr<const void> owner, const RequestFields& fields,
             std::unique_ptr<Answer> answer, std::vector<std::shared_ptr<Reply>> replies)
      : service_(service),
        call_(call),
        owner_(std::move(owner)),
        fields_(fields),
        answer_(std::move(answer)),
        group_(std::move(replies)),
        progress_(group_.size()) {
    ++service_.load_;
  }
  // Whatever ends it: a request that was cut short counts as such.
  ~Generation() {
    --service_.load_;
    for (size_t i = 0; i < progress_.size(); ++i) {
      if (!progress_[i].ended) count_end(i, failure_ ? "error" : "abort");
    }
  }

  void on_event(const std::function<void()>& notify) { group_.on_event(notify); }

  // Hands on what has come; true: that was all.
  bool resume() {
    const bool gone = call_.exchange.client_gone();
    if (!gone && begun_ && !call_.exchange.has_room()) return false;  // for a slow client events wait in the replies
    const bool more = group_.poll([this](size_t i, TokenEvent& event) { take(i, event); });
    if (gone || failure_ || !more) {
      end(gone);
      return true;
    }
    if (!stream_.empty()) {
      begin();
      call_.write(stream_);
      stream_.clear();
    }
    return false;
  }

 private:
  struct Progress {
    std::optional<Clock::time_point> last;
    bool ended = false;
  };

  void count_end(size_t i, const char* reason) {
    progress_[i].ended = true;
    service_.metrics_.finished({.arrived = call_.arrived,
                                .ended = Clock::now(),
                                .reason = reason,
                                .timings = group_.reply(i).timings(),
                                .n = fields_.n,
                                .max_tokens = *fields_.max_tokens});
  }

  void take(size_t i, const TokenEvent& event) {
    if (event.token_id >= 0) {
      const auto seconds = [](Clock::duration duration) { return std::chrono::duration<double>(duration).count(); };
      if (progress_[i].last) {
        service_.metrics_.next_token(seconds(event.time - *progress_[i].last));
      } else {
        service_.metrics_.first_token(seconds(event.time - call_.arrived));
        answer_->cached(i, group_.reply(i).timings().cached_tokens);
      }
      progress_[i].last = event.time;
    }
    if (event.finish_reason) {
      count_end(i, service_.choice_end(event).finish_reason.c_str());
      if (*event.finish_reason == FinishReason::error) {
        failure_ = internal_error(group_.reply(i).error().value_or(Error{.doing = "generate"}));
      }
    }
    if (!failure_) answer_->take(i, event, fields_.stream ? &stream_ : nullptr);
  }

  void begin() {
    if (!std::exchange(begun_, true)) call_.begin_stream();
  }

  void end(bool gone) {
    if (failure_ || gone) group_.cancel();
    for (size_t i = 0; i < progress_.size(); ++i) {
      if (!progress_[i].ended) count_end(i, failure_ ? "error" : "abort");
    }
    if (!fields_.stream || (failure_ && !begun_)) {
      if (failure_) return call_.fail(*failure_);
      return call_.respond({.body = gone ? "" : answer_->body()});
    }
    begin();
    if (failure_) {
      stream_ += error_event(error_json(*failure_));
    } else if (!gone) {
      answer_->end_stream(stream_);
    }
    call_.write(stream_ + std::string(kDoneEvent));
    call_.end_stream();
  }

  Service& service_;
  Call call_;
  const std::shared_ptr<const void> owner_;
  const RequestFields& fields_;
  const std::unique_ptr<Answer> answer_;
  ReplyGroup group_;
  std::vector<Progress> progress_;
  std::optional<ApiError> failure_;
  std::string stream_;
  bool begun_ = false;
};

void Service::generate(const Call& call, std::shared_ptr<const void> owner, const RequestFields& fields,
                       std::unique_ptr<Answer> answer, std::vector<std::shared_ptr<Reply>> replies) {
  const auto generation =
      std::make_shared<Generation>(*this, call, std::move(owner), fields, std::move(answer), std::move(replies));
  call.exchange.detach([generation] { return generation->resume(); });
  generation->on_event(call.exchange.waker());
}

void Service::invocations(Call& call) {
  const auto body = read_body(call);
  if (!body) return;
  if (body->is_object() && body->contains("messages")) return chat_completions(call);
  if (body->is_object() && body->contains("prompt")) return completions(call);
  call.fail(json_error("value_error",
                       "Cannot find suitable handler for request. Expected one of: chat completions, completions"));
}

}  // namespace proa
