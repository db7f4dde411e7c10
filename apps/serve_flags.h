// The flags of `proa serve`: those of `vllm serve` that mean something here, those that are accepted and change
// nothing, and those that are refused.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "apps/open_engine.h"
#include "http/server.h"
#include "server/service.h"

namespace CLI {
class App;
}

namespace proa {

class Checkpoint;

struct ServeOptions {
  OpenOptions open;
  std::string quantization;  // of a checkpoint's weights, as it was asked for; see check_quantization()
  ServiceConfig service;
  http::ServerConfig http;

  int max_queue = 256;
  int block_size = 16;
  int64_t kv_cache_bytes = 0;
  bool vllm_defaults = false;                   // --generation-config vllm
  nlohmann::ordered_json generation_overrides;  // an object or null
  int shutdown_seconds = 5;
  bool access_log = true, stats_log = true;
  std::vector<std::string> quiet_endpoints;  // not in the access log
  std::string log_level = "info";

  std::vector<std::string> warnings;  // for people, a line each
};

// Flags as they were written; settle() makes ServeOptions of them.
struct ServeFlags {
  ServeOptions options;
  std::string model_flag, max_model_len, max_num_batched_tokens, kv_cache_memory_bytes;
  std::string allowed_origins, allowed_methods, allowed_headers;
  std::string default_chat_template_kwargs, override_generation_config, generation_config = "auto";
  std::string load_format = "auto", quantization, ssm_cache_dtype = "auto", scheduling_policy = "fcfs",
              logprobs_mode = "raw_logprobs";
  std::string quiet_endpoints;
  std::vector<std::string> served_model_names, api_keys;
  bool no_access_log = false, no_stats_log = false;
  int tensor_parallel = 1, pipeline_parallel = 1, data_parallel = 1;
  std::vector<std::string> ignored;    // flags without effect that were given
  std::vector<std::string> overruled;  // flags that would have one, and are told why they have none
  std::vector<std::string> refused;    // flags that cannot be honoured and were given
  std::vector<std::string> again;      // flags with one value that were given more than once
};

void add_serve_flags(CLI::App& command, ServeFlags& flags);

// What --quantization NAME means for a checkpoint. Error: a name that contradicts it. As in vLLM, ModelOpt's
// checkpoints are what they are whatever was asked for, and fp8 of a BF16 one is made while loading.
struct Quantization {
  std::string quantize_to;  // OpenOptions::quantize_to
  std::string remark;       // for people; empty: there is nothing to say
};
Result<Quantization> check_quantization(const std::string& name, const Checkpoint& checkpoint);

// Errors: a value that cannot be honoured, naming the flag and what would work.
Result<ServeOptions> settle(const ServeFlags& flags);

}  // namespace proa
