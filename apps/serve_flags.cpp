#include "apps/serve_flags.h"

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cstdlib>
#include <filesystem>
#include <fstream>

#include "apps/serve_arguments.h"
#include "chat/reasoning.h"
#include "chat/tool_parser.h"
#include "checkpoint/checkpoint.h"
#include "core/text.h"
#include "server/field_reader.h"

namespace proa {
namespace {

using Json = nlohmann::ordered_json;

// Flags of vLLM that change nothing here: what they tune does not exist, or is always so.
constexpr const char* kIgnoredSwitches[] = {
    "trust-remote-code",          "enable-chunked-prefill",    "enforce-eager",
    "async-scheduling",           "enable-expert-parallel",    "enable-mamba-cache-stochastic-rounding",
    "language-model-only",        "enable-sleep-mode",         "enable-prompt-tokens-details",
    "enable-per-request-metrics", "enable-log-outputs",        "enable-log-deltas",
    "enable-log-requests",        "disable-log-requests",      "kv-cache-metrics",
    "enable-mfu-metrics",         "disable-custom-all-reduce", "disable-frontend-multiprocessing",
    "skip-tokenizer-init",        "disable-cascade-attn",      "calculate-kv-scales"};
constexpr const char* kIgnoredOptions[] = {"dtype",
                                           "mamba-cache-dtype",
                                           "mamba-cache-mode",
                                           "mamba-backend",
                                           "mamba-cache-philox-rounds",
                                           "moe-backend",
                                           "attention-backend",
                                           "attention-config",
                                           "speculative-config",
                                           "compilation-config",
                                           "optimization-level",
                                           "structured-outputs-config",
                                           "swap-space",
                                           "cpu-offload-gb",
                                           "otlp-traces-endpoint",
                                           "show-hidden-metrics-for-version",
                                           "limit-mm-per-prompt",
                                           "chat-template-content-format",
                                           "reasoning-parser-plugin",
                                           "tool-parser-plugin",
                                           "max-log-len",
                                           "log-config-file",
                                           "fingerprint-mode",
                                           "api-server-count",
                                           "hf-token",
                                           "code-revision",
                                           "tokenizer-mode",
                                           "tokenizer-revision",
                                           "config-format",
                                           "prefix-caching-hash-algo",
                                           "kv-offloading-backend",
                                           "num-gpu-blocks-override",
                                           "kv-cache-dtype-skip-layers",
                                           "max-num-partial-prefills",
                                           "distributed-executor-backend",
                                           "guided-decoding-backend",
                                           "max-parallel-loading-workers"};
// Values of --quantization in vLLM.
constexpr const char* kBitsAndBytes = "bitsandbytes";
constexpr const char* kQuantizations[] = {kBitsAndBytes,
                                          "awq",
                                          "awq_marlin",
                                          "gptq",
                                          "gptq_marlin",
                                          "gptq_bitblas",
                                          "bitblas",
                                          "fp8",
                                          "ptpc_fp8",
                                          "fbgemm_fp8",
                                          "fp8_per_tensor",
                                          "fp8_per_block",
                                          "fp8_per_channel",
                                          "modelopt",
                                          "modelopt_fp4",
                                          "modelopt_mixed",
                                          "modelopt_mxfp8",
                                          "gguf",
                                          "mxfp4",
                                          "experts_int8",
                                          "compressed-tensors",
                                          "torchao",
                                          "quark",
                                          "moe_wna16",
                                          "auto-round",
                                          "petit_nvfp4",
                                          "tpu_int8",
                                          "ipex",
                                          "hqq",
                                          "rtn",
                                          "inc"};
// Flags that would change something, are accepted as all of vLLM's, and are told why they do not.
struct Overruled {
  const char *name, *remark;
  bool takes_value = true;
};
constexpr Overruled kOverruled[] = {
    {"tokenizer", "the checkpoint's own is used"},
    {"hf-overrides", "config.json is taken as it is"},
    {"lora-modules", "adapters are not loaded, and requests that name one get a 404"},
    {"headless", "the API is served nonetheless", false},
};
constexpr const char* kRefusedSwitches[] = {"enable-lora"};
constexpr const char* kRefusedOptions[] = {"middleware", "hf-config-path"};

void add_marking_flags(CLI::App& command, std::vector<std::string>& given, const char* const* names, size_t count,
                       bool takes_value) {
  for (size_t i = 0; i < count; ++i) {
    const std::string name = names[i];
    const auto mark = [&given, name] { given.push_back("--" + name); };
    CLI::Option* option;
    if (takes_value) {
      option = command.add_option_function<std::vector<std::string>>("--" + name, [mark](const auto&) { mark(); });
    } else {
      option = command.add_flag_function("--" + name + ",!--no-" + name, [mark](int64_t) { mark(); });
    }
    option->group("");  // not in --help
  }
}

// vLLM gives every boolean a --no-NAME; --help is readable without them.
void add_switch(CLI::App& command, const std::string& name, bool& value, const std::string& help) {
  command.add_flag("--" + name, value, help);
  command.add_flag_callback("--no-" + name, [&value] { value = false; })->group("");
}

Error refused(std::string flag, std::string expected, std::string actual, std::string hint = "") {
  return {"read the command line", std::move(flag), std::move(expected), std::move(actual), std::move(hint)};
}

Result<std::vector<std::string>> json_list(const char* flag, const std::string& text) {
  const Json list = Json::parse(text, nullptr, false);
  std::vector<std::string> values;
  if (list.is_array()) {
    for (const Json& item : list) {
      if (item.is_string()) values.push_back(item.get<std::string>());
    }
  }
  if (!list.is_array() || values.size() != list.size()) return refused(flag, "a JSON list of strings", text);
  return values;
}

Result<Json> json_object(const char* flag, const std::string& text) {
  Json object = Json::parse(text, nullptr, false);
  if (!object.is_object()) return refused(flag, "a JSON object", text);
  return object;
}

// A generation_config.json, or the folder of one.
Result<Json> read_generation_file(std::string path) {
  if (std::filesystem::is_directory(path)) path += "/generation_config.json";
  std::ifstream file(path, std::ios::binary);
  std::string text(size_t{1} << 20, '\0');
  file.read(text.data(), static_cast<std::streamsize>(text.size()));
  text.resize(static_cast<size_t>(file.gcount()));
  if (!file.eof()) return refused("--generation-config", "auto, vllm, or a readable generation_config.json", path);
  PROA_ASSIGN(Json config, parse_json(text, path));
  if (!config.is_object()) return refused("--generation-config", "a JSON object in the file", path);
  return config;
}

void add_model_flags(CLI::App& command, ServeFlags& flags) {
  OpenOptions& open = flags.options.open;
  command.add_option("model", open.model,
                     "a Hugging Face folder, a GGUF file, or org/name in the cache (see proa pull)");
  command.add_option("--model", flags.model_flag, "the same as a flag");
  command
      .add_option("--served-model-name", flags.served_model_names,
                  "names the API knows the model by, the first one in answers; default: the model as given")
      ->multi_option_policy(CLI::MultiOptionPolicy::TakeAll);
  command.add_option("--revision", open.revision, "branch, tag or commit of an org/name");
  command.add_option("--download-dir", open.download_dir, "the cache of models; else HF_HOME and its like");
  command
      .add_option("--load-format", flags.load_format, "auto, safetensors, gguf, or dummy: random weights at full size")
      ->capture_default_str();
  command.add_option(
      "--quantization,-q", flags.quantization,
      "of dummy weights: bf16, fp8, nvfp4, q8_0, q4_k_m, q4_0, ...; of a BF16 checkpoint: fp8, or bitsandbytes (as "
      "Q4_0), made while loading; of others: what they are");
  command.add_option("--device", open.device, "auto, cpu, cuda:N, or reference")->capture_default_str();
  command.add_option("--threads", open.threads, "CPU threads; 0: one per core")
      ->check(CLI::Range(0, 1024))
      ->capture_default_str();
  command.add_option("--cpu-target", open.cpu_target,
                     "instruction set of the CPU: AVX3_DL, AVX3_BF16 and AVX3_AMX multiply rounded values, others F32");
  add_activation_flag(command, open);
  command.add_option("--seed", open.seed, "of dummy weights");
  command.add_option(
      "--max-model-len", flags.max_model_len,
      "tokens of a conversation, prompt and answer: 32768, 32k, 32K; auto: the model's own, at most 32768");
  command.add_option("--max-num-seqs", open.max_num_seqs, "requests that run at once")
      ->check(CLI::Range(1, 4096))
      ->capture_default_str();
  command.add_option("--max-num-batched-tokens", flags.max_num_batched_tokens,
                     "prompt tokens of one step; default 512");
  command.add_option("--max-queue", flags.options.max_queue, "requests that may wait; more are answered with 429")
      ->check(CLI::Range(1, 1 << 20))
      ->capture_default_str();
  command
      .add_option("--gpu-memory-utilization", open.gpu_memory_utilization,
                  "the part of a GPU's memory that may be taken, by other processes too")
      ->check(CLI::Range(0.01, 1.0))
      ->capture_default_str();
  command.add_option("--gpu-memory-limit", open.gpu_memory_limit,
                     "bytes of a GPU's memory that may be taken, such as 24G, in place of a part of it");
  command.add_option("--kv-cache-memory-bytes", flags.kv_cache_memory_bytes,
                     "of keys and values; default: what max-num-seqs requests of max-model-len tokens take");
  command.add_option("--kv-cache-dtype", open.kv_cache_dtype, "auto, bfloat16, float16, float32, or fp8 (E4M3)")
      ->capture_default_str();
  command.add_option("--mamba-ssm-cache-dtype", flags.ssm_cache_dtype, "auto or float32; others are kept as float32");
  command.add_option("--block-size", flags.options.block_size, "tokens per KV block")
      ->check(CLI::Range(1, 4096))
      ->capture_default_str();
  add_prefix_cache_flags(command, open);
  command.add_option("--scheduling-policy", flags.scheduling_policy,
                     "fcfs, or priority: requests with a lower priority field run first");
  command.add_option("--tensor-parallel-size", flags.tensor_parallel, "1")->group("");
  command.add_option("--pipeline-parallel-size", flags.pipeline_parallel, "1")->group("");
  command.add_option("--data-parallel-size", flags.data_parallel, "1")->group("");
}

void add_api_flags(CLI::App& command, ServeFlags& flags) {
  ServiceConfig& service = flags.options.service;
  RequestPolicy& policy = service.policy;
  command.add_option("--chat-template", flags.options.open.chat_template,
                     "a Jinja file in place of the checkpoint's template");
  add_switch(command, "trust-request-chat-template", policy.trust_request_chat_template,
             "requests may bring a template");
  command.add_option("--default-chat-template-kwargs", flags.default_chat_template_kwargs,
                     "JSON: variables of the template, where a request has none");
  command.add_option("--response-role", policy.response_role, "role of answers")->capture_default_str();
  command.add_option("--reasoning-parser", policy.reasoning_parser,
                     "nemotron_v3, nano_v3 or deepseek_r1; without it thoughts stay in the content");
  command.add_option("--tool-call-parser", policy.tool_parser, "qwen3_coder, qwen3_xml or hermes");
  add_switch(command, "enable-auto-tool-choice", policy.enable_auto_tool_choice,
             "the model decides whether to call tools");
  add_switch(command, "exclude-tools-when-tool-choice-none", policy.exclude_tools_when_tool_choice_none,
             "with tool_choice none the prompt does not list them");
  command
      .add_option(
          "--generation-config", flags.generation_config,
          "auto: sampling defaults of the checkpoint's generation_config.json, and its max_new_tokens, which no answer "
          "exceeds; vllm: none; or another such file")
      ->capture_default_str();
  command.add_option("--override-generation-config", flags.override_generation_config, "JSON: {\"temperature\": 0.6}");
  command.add_option("--max-logprobs", policy.max_logprobs, "alternatives per token a request may ask for, at most 20")
      ->capture_default_str();
  command.add_option("--logprobs-mode", flags.logprobs_mode, "raw_logprobs");
  add_switch(command, "return-tokens-as-token-ids", policy.return_tokens_as_token_ids,
             "tokens of logprobs as token_id:N");
  command.add_option("--stream-interval", policy.stream_interval, "tokens in one event of a stream")
      ->check(CLI::Range(1, 1 << 20))
      ->capture_default_str();
  add_switch(command, "enable-force-include-usage", policy.force_include_usage, "every stream ends with its usage");
  add_switch(command, "enable-request-id-headers", service.enable_request_id_headers, "answers carry X-Request-Id");
  add_switch(command, "enable-server-load-tracking", service.enable_server_load_tracking, "/load counts requests");
  add_switch(command, "disable-fastapi-docs", service.disable_docs, "no /openapi.json");
  add_switch(command, "enable-tokenizer-info-endpoint", service.enable_tokenizer_info,
             "/tokenizer_info: special tokens and the chat template");
}

void add_http_flags(CLI::App& command, ServeFlags& flags) {
  http::ServerConfig& http = flags.options.http;
  command.add_option("--host", http.host, "address to listen on")->capture_default_str();
  command.add_option("--port", http.port, "port, 0: any free one")->check(CLI::Range(0, 65535))->capture_default_str();
  command.add_option("--uds", http.uds, "a unix socket instead");
  command.add_option("--ssl-certfile", http.ssl_certfile, "PEM: the server's certificate chain");
  command.add_option("--ssl-keyfile", http.ssl_keyfile, "PEM: its key");
  command.add_option("--ssl-ca-certs", http.ssl_ca_certs, "PEM: authorities of client certificates");
  command.add_option("--ssl-cert-reqs", http.ssl_cert_reqs, "client certificates: 0 none, 1 wanted, 2 required")
      ->check(CLI::Range(0, 2));
  command
      .add_option("--api-key", flags.api_keys,
                  "keys, one of which every route but /health, /ping and the page at / asks for; or VLLM_API_KEY")
      ->multi_option_policy(CLI::MultiOptionPolicy::TakeAll);
  add_switch(command, "open-metrics", flags.options.service.open_metrics, "/metrics needs no key");
  command.add_option("--root-path", flags.options.service.root_path, "prefix of a proxy");
  command.add_option("--allowed-origins", flags.allowed_origins, "CORS: a JSON list, default [\"*\"]");
  command.add_option("--allowed-methods", flags.allowed_methods, "CORS: a JSON list, default [\"*\"]");
  command.add_option("--allowed-headers", flags.allowed_headers, "CORS: a JSON list, default [\"*\"]");
  add_switch(command, "allow-credentials", flags.options.service.cors.allow_credentials, "CORS: with cookies");
  command.add_option("--max-connections", http.max_connections, "more are answered with 503")
      ->check(CLI::Range(1, 1 << 20))
      ->capture_default_str();
  command.add_option("--max-body-bytes", http.max_body_bytes, "of a request; more is answered with 413")
      ->capture_default_str();
  command.add_option("--h11-max-incomplete-event-size", http.max_header_bytes,
                     "bytes of headers; more is answered with 431");
  command.add_option("--h11-max-header-count", http.max_headers, "headers of a request")->capture_default_str();
  command
      .add_option("--shutdown-timeout", flags.options.shutdown_seconds,
                  "seconds that running requests have after SIGTERM")
      ->check(CLI::Range(0, 86400))
      ->capture_default_str();
  command.add_option("--uvicorn-log-level", flags.options.log_level, "debug, info, warning, error or critical");
  add_switch(command, "disable-uvicorn-access-log", flags.no_access_log, "no line per request");
  command.add_option("--disable-access-log-for-endpoints", flags.quiet_endpoints,
                     "paths without such lines, with commas");
  add_switch(command, "disable-log-stats", flags.no_stats_log, "no line every ten seconds");
}

}  // namespace

void add_serve_flags(CLI::App& command, ServeFlags& flags) {
  flags.options.open.max_num_seqs = 16;
  command.option_defaults()->multi_option_policy(CLI::MultiOptionPolicy::TakeLast);  // as vLLM: the last one counts
  command.option_defaults()->group("Model and engine");
  add_model_flags(command, flags);
  command.option_defaults()->group("API");
  add_api_flags(command, flags);
  command.option_defaults()->group("HTTP and log");
  add_http_flags(command, flags);
  add_marking_flags(command, flags.ignored, kIgnoredSwitches, std::size(kIgnoredSwitches), false);
  add_marking_flags(command, flags.ignored, kIgnoredOptions, std::size(kIgnoredOptions), true);
  for (const Overruled& one : kOverruled) {
    add_marking_flags(command, flags.overruled, &one.name, 1, one.takes_value);
  }
  add_marking_flags(command, flags.refused, kRefusedSwitches, std::size(kRefusedSwitches), false);
  add_marking_flags(command, flags.refused, kRefusedOptions, std::size(kRefusedOptions), true);
}

namespace {

Result<void> settle_model(const ServeFlags& flags, ServeOptions& options) {
  OpenOptions& open = options.open;
  if (!flags.model_flag.empty()) open.model = flags.model_flag;
  if (open.model.empty()) return refused("MODEL", "a model: a folder, a GGUF file or org/name", "none");
  if (!flags.max_model_len.empty() && flags.max_model_len != "auto" && flags.max_model_len != "-1") {
    PROA_ASSIGN(open.max_model_len, parse_human_integer("--max-model-len", flags.max_model_len));
    if (open.max_model_len < 2) return refused("--max-model-len", "at least 2, or auto", flags.max_model_len);
  }
  if (!flags.max_num_batched_tokens.empty()) {
    PROA_ASSIGN(const int64_t tokens, parse_human_integer("--max-num-batched-tokens", flags.max_num_batched_tokens));
    if (tokens < 1 || tokens > 1 << 20) {
      return refused("--max-num-batched-tokens", "1 to 1048576", flags.max_num_batched_tokens);
    }
    open.max_num_batched_tokens = static_cast<int>(tokens);
  }
  open.max_num_batched_tokens = std::max(open.max_num_batched_tokens, open.max_num_seqs);
  if (!flags.kv_cache_memory_bytes.empty()) {
    PROA_ASSIGN(options.kv_cache_bytes, parse_human_integer("--kv-cache-memory-bytes", flags.kv_cache_memory_bytes));
  }
  if (open.kv_cache_dtype == "fp8_e5m2") {
    options.warnings.push_back("--kv-cache-dtype fp8_e5m2: keys and values are kept as fp8_e4m3, in as little memory");
    open.kv_cache_dtype = "fp8_e4m3";
  }
  PROA_TRY(parse_kv_cache_dtype(open.kv_cache_dtype));
  const auto state_types = {"auto", "float32", "float16", "bfloat16"};
  if (std::find(state_types.begin(), state_types.end(), flags.ssm_cache_dtype) == state_types.end()) {
    return refused("--mamba-ssm-cache-dtype", "auto, float32, float16 or bfloat16", flags.ssm_cache_dtype);
  }
  if (flags.ssm_cache_dtype == "float16" || flags.ssm_cache_dtype == "bfloat16") {
    options.warnings.push_back("--mamba-ssm-cache-dtype " + flags.ssm_cache_dtype + ": the state is kept in float32");
  }

  if (flags.load_format == "dummy") {
    open.load_format = "dummy";
    open.quantization = flags.quantization;
  } else {
    const auto known = {"auto", "safetensors", "gguf", "hf", "fastsafetensors", "pt", "runai_streamer", kBitsAndBytes};
    if (std::find(known.begin(), known.end(), flags.load_format) == known.end()) {
      return refused("--load-format", "auto, safetensors, gguf or dummy", flags.load_format);
    }
    const auto methods = std::find(std::begin(kQuantizations), std::end(kQuantizations), flags.quantization);
    if (!flags.quantization.empty() && methods == std::end(kQuantizations)) {
      return refused("--quantization", "a name that vLLM knows: fp8, modelopt, modelopt_fp4, gguf ...",
                     flags.quantization);
    }
    options.quantization = flags.load_format == kBitsAndBytes ? kBitsAndBytes : flags.quantization;
  }
  if (flags.scheduling_policy != "fcfs" && flags.scheduling_policy != "priority") {
    return refused("--scheduling-policy", "fcfs or priority", flags.scheduling_policy);
  }
  options.service.policy.priority_scheduling = flags.scheduling_policy == "priority";
  if (flags.tensor_parallel != 1 || flags.pipeline_parallel != 1 || flags.data_parallel != 1) {
    return refused("--tensor-parallel-size, --pipeline-parallel-size, --data-parallel-size", "1", "more",
                   "one server runs on one device");
  }
  return {};
}

Result<void> settle_service(const ServeFlags& flags, ServeOptions& options) {
  ServiceConfig& service = options.service;
  RequestPolicy& policy = service.policy;
  service.model_names = flags.served_model_names;
  if (service.model_names.empty()) service.model_names = {options.open.model};
  service.model_root = options.open.model;
  policy.model = service.model_names.front();
  service.api_keys = flags.api_keys;
  if (const char* key = std::getenv("VLLM_API_KEY"); key && *key && service.api_keys.empty()) service.api_keys = {key};
  std::erase(service.api_keys, "");
  while (service.root_path.ends_with('/')) service.root_path.pop_back();

  if (!policy.reasoning_parser.empty() && !reasoning_rules(policy.reasoning_parser)) {
    return refused("--reasoning-parser", "nemotron_v3, nano_v3 or deepseek_r1", policy.reasoning_parser);
  }
  const std::vector<std::string> parsers = tool_parser_names();
  if (!policy.tool_parser.empty() && std::find(parsers.begin(), parsers.end(), policy.tool_parser) == parsers.end()) {
    return refused("--tool-call-parser", "qwen3_coder, qwen3_xml or hermes", policy.tool_parser);
  }
  if (policy.enable_auto_tool_choice && policy.tool_parser.empty()) {
    return refused("--enable-auto-tool-choice", "--tool-call-parser beside it", "none");
  }
  if (policy.max_logprobs < -1) return refused("--max-logprobs", "0 to 20", std::to_string(policy.max_logprobs));
  if (policy.max_logprobs < 0 || policy.max_logprobs > kMaxLogprobs) {
    options.warnings.push_back("--max-logprobs " + std::to_string(policy.max_logprobs) + ": at most 20 are given");
    policy.max_logprobs = kMaxLogprobs;
  }
  if (flags.logprobs_mode != "raw_logprobs") return refused("--logprobs-mode", "raw_logprobs", flags.logprobs_mode);
  options.vllm_defaults = flags.generation_config != "auto";
  if (flags.generation_config != "auto" && flags.generation_config != "vllm") {
    PROA_ASSIGN(options.generation_overrides, read_generation_file(flags.generation_config));
  }
  if (!flags.override_generation_config.empty()) {
    PROA_ASSIGN(const Json overrides, json_object("--override-generation-config", flags.override_generation_config));
    if (!options.generation_overrides.is_object()) options.generation_overrides = Json::object();
    options.generation_overrides.update(overrides);
  }
  if (!flags.default_chat_template_kwargs.empty()) {
    PROA_ASSIGN(policy.default_chat_template_kwargs,
                json_object("--default-chat-template-kwargs", flags.default_chat_template_kwargs));
  }
  const struct {
    const char* flag;
    const std::string& text;
    std::vector<std::string>& list;
  } lists[] = {{"--allowed-origins", flags.allowed_origins, service.cors.allowed_origins},
               {"--allowed-methods", flags.allowed_methods, service.cors.allowed_methods},
               {"--allowed-headers", flags.allowed_headers, service.cors.allowed_headers}};
  for (const auto& list : lists) {
    if (list.text.empty()) continue;
    PROA_ASSIGN(list.list, json_list(list.flag, list.text));
  }
  return {};
}

}  // namespace

Result<Quantization> check_quantization(const std::string& name, const Checkpoint& checkpoint) {
  const bool gguf = checkpoint.kind() == Checkpoint::Kind::gguf;
  const bool modelopt = checkpoint.config().contains("quantization_config");  // others are not opened
  const std::string is = gguf ? "gguf" : modelopt ? "modelopt" : "";
  if (!is.empty() && name.starts_with(is)) return Quantization{};
  const bool fp8 = name.starts_with("fp8") || name == "ptpc_fp8";
  if (modelopt && fp8) {
    return Quantization{.remark = "--quantization " + name +
                                  ": the checkpoint says how its weights are (modelopt), and they stay so"};
  }
  const auto type = checkpoint.config().find("model_type");
  const bool can_be_made = is.empty() && type != checkpoint.config().end() && *type == "nemotron_h";
  if (can_be_made && fp8) return Quantization{.quantize_to = "fp8"};
  if (can_be_made && name == kBitsAndBytes) {
    return Quantization{.quantize_to = "q4_0",
                        .remark =
                            "--quantization bitsandbytes: weights become Q4_0 while they are loaded, which is "
                            "another format of 4 bits"};
  }
  if (is.empty() && fp8) {
    return Quantization{.remark = "--quantization " + name +
                                  ": only weights of Nemotron-H are made smaller while they are loaded; this "
                                  "checkpoint is served as it is"};
  }
  if (name == kBitsAndBytes) {
    return refused("--quantization bitsandbytes", "a BF16 checkpoint of Nemotron-H, which becomes Q4_0",
                   is.empty() ? "another model" : "one that is quantized: " + is,
                   "a GGUF file of the model in Q4_0 or Q4_K_M takes as little memory");
  }
  return refused("--quantization " + name,
                 "what the checkpoint is: " + (is.empty() ? "not quantized, which needs no such flag" : is), name,
                 "Quantization method specified in the model config (" + (is.empty() ? "None" : is) +
                     ") does not match the quantization method specified in the `quantization` argument (" + name +
                     ")");
}

Result<ServeOptions> settle(const ServeFlags& flags) {
  ServeOptions options = flags.options;
  if (!flags.refused.empty()) return refused(flags.refused.front(), "", "not supported");
  PROA_TRY(settle_model(flags, options));
  PROA_TRY(settle_service(flags, options));
  const auto levels = {"trace", "debug", "info", "warning", "error", "critical"};
  if (std::find(levels.begin(), levels.end(), options.log_level) == levels.end()) {
    return refused("--uvicorn-log-level", "trace, debug, info, warning, error or critical", options.log_level);
  }
  if (!options.http.ssl_keyfile.empty() && options.http.ssl_certfile.empty()) {
    return refused("--ssl-keyfile", "--ssl-certfile beside it", "none");
  }
  for (size_t begin = 0; begin < flags.quiet_endpoints.size();) {
    const size_t end = std::min(flags.quiet_endpoints.find(',', begin), flags.quiet_endpoints.size());
    options.quiet_endpoints.push_back(flags.quiet_endpoints.substr(begin, end - begin));
    begin = end + 1;
  }
  options.access_log = !flags.no_access_log;
  options.stats_log = !flags.no_stats_log;
  std::vector<std::string> ignored = flags.ignored;
  std::sort(ignored.begin(), ignored.end());
  ignored.erase(std::unique(ignored.begin(), ignored.end()), ignored.end());
  const auto warn = [&](std::string line, const std::vector<std::string>& about) {
    for (const std::string& flag : about) line += " " + flag;
    if (!about.empty()) options.warnings.push_back(std::move(line));
  };
  warn("without effect here:", ignored);
  for (const Overruled& one : kOverruled) {
    const std::string flag = std::string("--") + one.name;
    const bool given = std::find(flags.overruled.begin(), flags.overruled.end(), flag) != flags.overruled.end();
    if (given) options.warnings.push_back(flag + ": " + one.remark);
  }
  warn("given more than once, the last one counts:", flags.again);
  return options;
}

}  // namespace proa
