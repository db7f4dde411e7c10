// From a path and flags to a running engine: checkpoint, backend, model, tokenizer, chat template. The assembly that
// every command shares.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "chat/chat_template.h"
#include "core/result.h"
#include "engine/engine.h"
#include "tokenizer/tokenizer.h"

namespace CLI {
class App;
}

namespace proa {

struct OpenOptions {                 // flags, named as vLLM's
  std::string model;                 // a path, or a name in the cache of models
  std::string revision;              // of a name
  std::string download_dir;          // the cache; empty: as the environment says
  std::string load_format = "auto";  // auto, or dummy: random weights at full size
  std::string quantization;          // precision of dummy weights, see models/precision.h
  std::string quantize_to;           // of a BF16 folder: what its weights become while they are loaded
  std::optional<uint64_t> seed;      // of dummy weights, and of sampling where a command samples
  std::string device = "auto";
  std::string kv_cache_dtype = "auto";  // auto, bfloat16, float16, float32, fp8, fp8_e4m3
  std::string chat_template;            // a file; empty: the checkpoint's own
  int threads = 0;
  std::string cpu_target;                 // an instruction set of the CPU, as BackendOptions has it
  std::string activation_dtype = "auto";  // bfloat16 or fp8, likewise
  int64_t max_model_len = 0;              // tokens; 0: the model's own, at most kDefaultMaxModelLen and what fits
  int max_num_batched_tokens = 512;
  int max_num_seqs = 1;
  double gpu_memory_utilization = 0.9;  // the part of a GPU's memory that may be taken
  std::string gpu_memory_limit;         // bytes of it, such as 24G, in place of a part
  bool enable_prefix_caching = true;
  int mamba_block_size = 2048;    // tokens of prefill between snapshots of the recurrent state
  double kv_offloading_size = 0;  // GiB of the host's memory for what a GPU has no room for
};

void add_activation_flag(CLI::App& command, OpenOptions& options);  // a part of:
void add_open_flags(CLI::App& command, OpenOptions& options);
void add_prefix_cache_flags(CLI::App& command, OpenOptions& options);  // of commands that answer more than once

// What is known before weights are loaded: enough to plan memory.
struct PreparedModel {
  std::shared_ptr<Backend> backend;
  std::shared_ptr<const Checkpoint> checkpoint;  // of dummy weights the headers alone
  // On the backend itself where that needs no loading, otherwise on the host.
  std::shared_ptr<const Model> model;
  bool loaded = false;
  EngineConfig config;  // as the flags have it; no eos_token_ids
};

// Everything but the engine, of which several can share it one after the other.
struct OpenedModel {
  std::shared_ptr<const Checkpoint> checkpoint;
  std::shared_ptr<const Model> model;
  std::shared_ptr<Backend> backend;
  Tokenizer tokenizer;
  std::optional<ChatTemplate> chat_template;  // none: the checkpoint has none and its vocabulary knows no ChatML
  SamplingParams defaults;                    // of the checkpoint's generation_config.json, as vLLM takes them
  std::optional<int64_t> max_new_tokens;      // of the same file: of any answer
  EngineConfig config;                        // as the flags and generation_config.json have it
};

struct OpenedEngine : OpenedModel {
  std::unique_ptr<Engine> engine;  // last: it goes first
};

// The parts, for commands that need only some of them.

Result<Format> parse_kv_cache_dtype(const std::string& name);  // a value of --kv-cache-dtype

// generation_config.json: what vLLM takes from it, and the ids that end a reply.
struct GenerationConfig {
  SamplingParams params;
  std::vector<int32_t> eos_token_ids;     // those given and those of the file
  std::optional<int64_t> max_new_tokens;  // none: the file does not limit answers
};
Result<GenerationConfig> read_generation_config(const Checkpoint& checkpoint, std::span<const int32_t> eos_ids);

// A chat template's source: the file that was asked for, else the checkpoint's own, else ChatML if the vocabulary has
// its tags. Without a tokenizer there is no such last resort.
struct TemplateSource {
  std::string text;
  std::string from;  // "chat_template.jinja", "tokenizer.chat_template": for people
};
Result<std::optional<TemplateSource>> chat_template_source(const Checkpoint& checkpoint, const Tokenizer* tokenizer,
                                                           const std::string& file);
SpecialTokenTexts special_token_texts(const Tokenizer& tokenizer);

// Errors: as of every part, naming file, tensor or flag.
Result<PreparedModel> prepare_model(const OpenOptions& options);
// What an engine would allocate beside the weights. Error: what does not fit, with the sizes and a command that fits;
// where `weights_stay` is asked for, also weights of a file that is larger than what is left of the memory. Dummy
// weights lie in no file and have to stay.
Result<MemoryPlan> plan_memory(const OpenOptions& options, const PreparedModel& prepared, const EngineConfig& config,
                               bool weights_stay = false);
Result<OpenedModel> load_model(const OpenOptions& options, PreparedModel prepared);

// All of it; `before_loading` sees the plan.
Result<OpenedEngine> open_engine(const OpenOptions& options,
                                 const std::function<void(const MemoryPlan&)>& before_loading = {});

}  // namespace proa
