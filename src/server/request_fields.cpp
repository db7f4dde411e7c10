#include "server/request_fields.h"

#include <algorithm>
#include <cmath>
#include <map>

#include "telemetry/metrics.h"

namespace proa {
namespace {

using Json = nlohmann::ordered_json;

constexpr double kGreedyBelow = 1e-5;        // temperatures that vLLM takes for greedy
constexpr double kLowestTemperature = 0.01;  // and what it raises others to

bool is_empty(const Json& value) {
  return (value.is_structured() && value.empty()) || (value.is_boolean() && !value.get<bool>());
}

// More than one kind of constraint on the answer, which vLLM refuses with these words.
bool contradicts_itself(const FieldReader& fields) {
  int kinds = 0;
  for (const char* name : {"guided_json", "guided_regex", "guided_choice", "guided_grammar"}) {
    kinds += fields.find(name) ? 1 : 0;
  }
  if (const Json* given = fields.find("structured_outputs"); given && given->is_object()) {
    for (const char* name : {"json", "regex", "choice", "grammar", "json_object", "structural_tag"}) {
      const auto kind = given->find(name);
      kinds += kind != given->end() && !kind->is_null() ? 1 : 0;
    }
  }
  return kinds > 1;
}

// Fields that change the answer and that this server cannot honour: saying so beats a wrong answer.
std::optional<ApiError> find_unsupported(const FieldReader& fields, const RequestPolicy& policy) {
  if (contradicts_itself(fields)) {
    return bad_request(
        "You can only use one kind of constraints for structured outputs ('json', 'regex', 'choice' or 'grammar').",
        "structured_outputs");
  }
  for (const char* name : {"logprob_token_ids", "use_beam_search", "structured_outputs", "guided_json", "guided_regex",
                           "guided_choice", "guided_grammar", "prompt_embeds", "repetition_detection"}) {
    const Json* value = fields.find(name);
    if (value && !is_empty(*value))
      return not_supported("`" + std::string(name) + "` is not supported by this server.", name);
  }
  if (const Json* format = fields.find("response_format")) {
    const auto type = format->is_object() ? format->find("type") : format->end();
    if (!format->is_object() || type == format->end() || *type != "text") {
      return not_supported("`response_format` other than {\"type\": \"text\"} is not supported by this server.",
                           "response_format");
    }
  }
  const Json* priority = fields.find("priority");
  if (priority && !policy.priority_scheduling && to_integer(*priority) != 0) {
    return bad_request("Got priority " + priority->dump() + " but Priority scheduling is not enabled.", "priority");
  }
  if (const Json* salt = fields.find("cache_salt");
      salt && (!salt->is_string() || salt->get_ref<const std::string&>().empty())) {
    return bad_request("Parameter 'cache_salt' must be a non-empty string if provided.", "cache_salt");
  }
  return std::nullopt;
}

std::optional<ApiError> read_logit_bias(FieldReader& fields, std::vector<TokenBias>& biases) {
  const Json* given = fields.object("logit_bias");
  if (!given) return std::nullopt;
  std::map<int32_t, float> by_token;  // "5" and "05" are the same token
  for (const auto& [key, value] : given->items()) {
    const auto id = to_integer(key);
    if (!id) {
      return bad_request("Found token_id `" + key +
                             "` in logit_bias but token_id must be an integer or string "
                             "representing an integer",
                         "logit_bias");
    }
    const auto bias = to_number(value);
    if (!bias || std::isnan(*bias)) {
      fields.problem("logit_bias." + key, "float_type", "Input should be a valid number");
      continue;
    }
    if (*id < 0 || *id > INT32_MAX) return unknown_tokens("logit_bias", key);
    by_token[static_cast<int32_t>(*id)] = static_cast<float>(std::clamp(*bias, -100.0, 100.0));  // OpenAI's bounds
  }
  for (const auto& [id, bias] : by_token) biases.push_back({id, bias});
  return std::nullopt;
}

std::optional<ApiError> read_token_rules(FieldReader& fields, RequestFields& request) {
  if (auto error = read_logit_bias(fields, request.params.logit_bias)) return error;
  fields.read("allowed_token_ids", request.params.allowed_token_ids);
  if (fields.find("allowed_token_ids") && request.params.allowed_token_ids.empty()) {
    return bad_request("allowed_token_ids is not None and empty!", "allowed_token_ids");
  }
  fields.read("bad_words", request.bad_words);
  for (const std::string& word : request.bad_words) {
    if (word.find_first_not_of(' ') == std::string::npos) {
      return bad_request("bad_words cannot contain an empty string.", "bad_words");
    }
  }
  return std::nullopt;
}

void read_stop(FieldReader& fields, std::vector<std::string>& stop) {
  const Json* value = fields.find("stop");
  if (value && value->is_string()) {
    stop = {value->get<std::string>()};
  } else {
    fields.read("stop", stop);
  }
}

}  // namespace

std::optional<ApiError> read_request_fields(FieldReader& fields, const RequestPolicy& policy, RequestFields& request) {
  SamplingParams& params = request.params;
  params = policy.defaults;
  fields.read("model", request.model);
  fields.read("temperature", params.temperature);
  fields.read("top_p", params.top_p);
  fields.read("top_k", params.top_k);
  fields.read("min_p", params.min_p);
  fields.read("repetition_penalty", params.repetition_penalty);
  fields.read("presence_penalty", params.presence_penalty);
  fields.read("frequency_penalty", params.frequency_penalty);
  fields.read("min_tokens", params.min_tokens);
  fields.read("ignore_eos", params.ignore_eos);
  fields.read("skip_special_tokens", params.skip_special_tokens);
  fields.read("include_stop_str_in_output", params.include_stop_str_in_output);
  fields.read("stop_token_ids", params.stop_token_ids);
  read_stop(fields, params.stop);
  std::optional<int64_t> seed;
  fields.read("seed", seed);
  if (seed) params.seed = static_cast<uint64_t>(*seed);

  fields.read("max_tokens", request.max_tokens);
  fields.read("n", request.n);
  fields.read("priority", request.priority);
  request.salted = fields.find("cache_salt") != nullptr;
  fields.read("stream", request.stream);
  request.stream_interval = policy.stream_interval;
  if (fields.find("stream_interval")) fields.read("stream_interval", request.stream_interval, 1);
  fields.read("echo", request.echo);
  fields.read("add_special_tokens", request.add_special_tokens);
  fields.read("truncate_prompt_tokens", request.truncate_prompt_tokens);
  std::string side;
  fields.read("truncation_side", side);
  request.truncate_right = side == "right";
  fields.read("return_token_ids", request.return_token_ids);
  request.return_tokens_as_token_ids = policy.return_tokens_as_token_ids;
  fields.read("return_tokens_as_token_ids", request.return_tokens_as_token_ids);
  fields.read("request_id", request.request_id);

  if (const Json* options = fields.object("stream_options")) {
    if (!request.stream) {
      return bad_request("Stream options can only be defined when `stream=True`.", "stream_options");
    }
    FieldReader stream_fields(*options, "body.stream_options");
    stream_fields.read("include_usage", request.include_usage);
    stream_fields.read("continuous_usage_stats", request.continuous_usage);
    if (auto error = stream_fields.error()) return error;
  }
  request.continuous_usage = request.continuous_usage && request.include_usage;
  if (request.stream && policy.force_include_usage) request.include_usage = true;

  std::optional<int64_t> prompt_logprobs;
  fields.read("prompt_logprobs", prompt_logprobs);
  if (prompt_logprobs && *prompt_logprobs < -1) {
    return bad_request("`prompt_logprobs` must be a positive value or -1.", "prompt_logprobs");
  }
  if (prompt_logprobs && *prompt_logprobs != 0 && request.stream) {
    return bad_request("`prompt_logprobs` are not available when `stream=True`.", "prompt_logprobs");
  }
  if (prompt_logprobs && !request.stream) {  // -1 is the whole vocabulary
    request.prompt_logprobs =
        static_cast<int>(*prompt_logprobs < 0 ? INT32_MAX : std::min<int64_t>(*prompt_logprobs, INT32_MAX));
  }
  if (auto error = read_token_rules(fields, request)) return error;
  return find_unsupported(fields, policy);
}

std::optional<ApiError> check_request_fields(const RequestFields& request, const RequestPolicy& policy,
                                             bool zero_tokens_allowed) {
  const SamplingParams& params = request.params;
  const auto got = [](double value) { return ", got " + python_float(value) + "."; };
  const auto got_integer = [](int64_t value) { return ", got " + std::to_string(value) + "."; };
  if (request.n < 1) return bad_request("n must be at least 1" + got_integer(request.n), "n");
  if (request.n > kMaxChoices) {
    return bad_request("n must be at most " + std::to_string(kMaxChoices) + got_integer(request.n), "n");
  }
  // Written so that NaN fails every range.
  if (!(params.presence_penalty >= -2 && params.presence_penalty <= 2)) {
    return bad_request("presence_penalty must be in [-2, 2]" + got(params.presence_penalty), "presence_penalty");
  }
  if (!(params.frequency_penalty >= -2 && params.frequency_penalty <= 2)) {
    return bad_request("frequency_penalty must be in [-2, 2]" + got(params.frequency_penalty), "frequency_penalty");
  }
  if (!(params.repetition_penalty > 0 && std::isfinite(params.repetition_penalty))) {
    return bad_request("repetition_penalty must be greater than zero" + got(params.repetition_penalty),
                       "repetition_penalty");
  }
  if (!(params.temperature >= 0)) {
    return bad_request("temperature must be non-negative" + got(params.temperature), "temperature");
  }
  if (!std::isfinite(params.temperature)) {
    return bad_request("temperature must be a finite number" + got(params.temperature), "temperature");
  }
  if (!(params.top_p > 0 && params.top_p <= 1)) {
    return bad_request("top_p must be in (0, 1]" + got(params.top_p), "top_p");
  }
  if (params.top_k < -1) {
    return bad_request("top_k must be 0 (disable), or at least 1" + got_integer(params.top_k), "top_k");
  }
  if (!(params.min_p >= 0 && params.min_p <= 1))
    return bad_request("min_p must be in [0, 1]" + got(params.min_p), "min_p");
  if (request.max_tokens && *request.max_tokens < (zero_tokens_allowed ? 0 : 1)) {
    return bad_request("max_tokens must be at least 1" + got_integer(*request.max_tokens), "max_tokens");
  }
  if (params.min_tokens < 0) {
    return bad_request("min_tokens must be greater than or equal to 0" + got_integer(params.min_tokens), "min_tokens");
  }
  if (request.max_tokens && params.min_tokens > *request.max_tokens) {
    return bad_request("min_tokens must be less than or equal to max_tokens=" + std::to_string(*request.max_tokens) +
                           got_integer(params.min_tokens),
                       "min_tokens");
  }
  if (request.logprobs && *request.logprobs > policy.max_logprobs) {
    return bad_request("Requested sample logprobs of " + std::to_string(*request.logprobs) +
                           ", which is greater than max allowed: " + std::to_string(policy.max_logprobs),
                       "logprobs");
  }
  if (request.prompt_logprobs && *request.prompt_logprobs > policy.max_logprobs) {
    return bad_request("Requested prompt logprobs of " + std::to_string(*request.prompt_logprobs) +
                           ", which is greater than max allowed: " + std::to_string(policy.max_logprobs),
                       "prompt_logprobs");
  }
  if (std::any_of(params.stop.begin(), params.stop.end(), [](const std::string& stop) { return stop.empty(); })) {
    return bad_request("stop cannot contain an empty string.", "stop");
  }
  if (params.temperature < kGreedyBelow && request.n > 1) {
    return bad_request("n must be 1 when using greedy sampling" + got_integer(request.n), "n");
  }
  if (request.truncate_prompt_tokens &&
      (*request.truncate_prompt_tokens < -1 || *request.truncate_prompt_tokens == 0)) {
    return bad_request("truncate_prompt_tokens must be -1 or at least 1" + got_integer(*request.truncate_prompt_tokens),
                       "truncate_prompt_tokens");
  }
  return std::nullopt;
}

float effective_temperature(float temperature) {
  if (temperature < kGreedyBelow) return 0;
  return std::max(temperature, static_cast<float>(kLowestTemperature));
}

}  // namespace proa
