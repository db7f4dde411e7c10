#include "apps/open_engine.h"

#include <CLI/CLI.hpp>
#include <algorithm>
#include <fstream>
#include <iterator>

#include "apps/open_checkpoint.h"
#include "apps/serve_arguments.h"
#include "backends/backends.h"
#include "checkpoint/checkpoint.h"
#include "checkpoint/config_reader.h"
#include "core/text.h"
#include "quantize/write.h"

namespace proa {

Result<Format> parse_kv_cache_dtype(const std::string& name) {
  if (name == "auto" || name == "bfloat16") return Format::BF16;
  if (name == "float16") return Format::F16;
  if (name == "float32") return Format::F32;
  if (name == "fp8" || name == "fp8_e4m3") return Format::F8_E4M3;
  return Error{"open engine", "--kv-cache-dtype", "auto, bfloat16, float16, float32, fp8 or fp8_e4m3", name, ""};
}

Result<GenerationConfig> read_generation_config(const Checkpoint& checkpoint, std::span<const int32_t> eos_ids) {
  GenerationConfig result;
  result.eos_token_ids.assign(eos_ids.begin(), eos_ids.end());
  if (!checkpoint.generation_config().is_object()) return result;

  const ConfigReader config(checkpoint.generation_config(), checkpoint.path() + "/generation_config.json");
  PROA_ASSIGN(const double temperature, config.number("temperature", {.min = 0, .max = 100}, 1.0));
  PROA_ASSIGN(const double top_p, config.number("top_p", {.min = 1e-6, .max = 1}, 1.0));
  PROA_ASSIGN(const double min_p, config.number("min_p", {.min = 0, .max = 1}, 0.0));
  PROA_ASSIGN(const int64_t top_k, config.integer("top_k", {.min = -1}, 0));
  PROA_ASSIGN(const double repetition, config.number("repetition_penalty", {.min = 1e-3, .max = 100}, 1.0));
  PROA_ASSIGN(const bool do_sample, config.boolean("do_sample", true));
  result.params.temperature = do_sample ? static_cast<float>(temperature) : 0;
  result.params.top_p = static_cast<float>(top_p);
  result.params.min_p = static_cast<float>(min_p);
  result.params.top_k = static_cast<int>(top_k);
  result.params.repetition_penalty = static_cast<float>(repetition);
  PROA_ASSIGN(const int64_t max_new_tokens, config.integer("max_new_tokens", {.min = 0}, 0));
  if (max_new_tokens > 0) result.max_new_tokens = max_new_tokens;

  PROA_ASSIGN(const auto eos, config.integer_or_list("eos_token_id", {.min = 0}, std::vector<int64_t>{}));
  for (const int64_t id : eos) {
    const auto token = static_cast<int32_t>(id);
    if (std::find(result.eos_token_ids.begin(), result.eos_token_ids.end(), token) == result.eos_token_ids.end()) {
      result.eos_token_ids.push_back(token);
    }
  }
  return result;
}

namespace {

Result<std::string> read_template_file(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  std::string source((std::istreambuf_iterator<char>(file)), {});
  if (!file) return Error{"read chat template", "--chat-template " + path, "a readable file", "", ""};
  return source;
}

}  // namespace

Result<std::optional<TemplateSource>> chat_template_source(const Checkpoint& checkpoint, const Tokenizer* tokenizer,
                                                           const std::string& file) {
  std::optional<TemplateSource> source;
  if (!file.empty()) {
    PROA_ASSIGN(std::string text, read_template_file(file));
    source = {std::move(text), file};
  } else if (const Gguf* gguf = checkpoint.gguf()) {
    if (gguf->has("tokenizer.chat_template")) {
      PROA_ASSIGN(const std::string_view text, gguf->string("tokenizer.chat_template"));
      source = {std::string(text), "tokenizer.chat_template"};
    }
  } else if (checkpoint.has_file("chat_template.jinja")) {
    PROA_ASSIGN(std::string text, checkpoint.read_text("chat_template.jinja"));
    source = {std::move(text), "chat_template.jinja"};
  } else if (checkpoint.has_file("tokenizer_config.json")) {
    PROA_ASSIGN(const auto json, checkpoint.read_json("tokenizer_config.json"));
    const auto found = json.is_object() ? json.find("chat_template") : json.end();
    if (json.is_object() && found != json.end()) {
      const char* from = "tokenizer_config.json";
      if (found->is_string()) source = {found->get<std::string>(), from};
      for (const auto& named : found->is_array() ? *found : nlohmann::ordered_json::array()) {
        if (named.is_object() && named.value("name", "") == "default") source = {named.value("template", ""), from};
      }
    }
  }
  if (!source && tokenizer && tokenizer->token_id("<|im_start|>") && tokenizer->token_id("<|im_end|>")) {
    source = {std::string(chatml_template()), "ChatML, built in"};
  }
  return source;
}

SpecialTokenTexts special_token_texts(const Tokenizer& tokenizer) {
  SpecialTokenTexts tokens;
  if (const auto bos = tokenizer.bos_id()) tokens.bos_token = tokenizer.piece(*bos);
  if (!tokenizer.eos_ids().empty()) tokens.eos_token = tokenizer.piece(tokenizer.eos_ids().front());
  return tokens;
}

void add_activation_flag(CLI::App& command, OpenOptions& options) {
  command
      .add_option("--activation-dtype", options.activation_dtype,
                  "of prompts, on an H100. auto: nearly as they are; bfloat16: rounded where they meet BF16 weights; "
                  "fp8: also to E4M3 where they meet FP8 weights")
      ->capture_default_str();
}

void add_open_flags(CLI::App& command, OpenOptions& options) {
  command
      .add_option("model", options.model,
                  "a Hugging Face folder, a GGUF file, or org/name in the cache (see proa pull)")
      ->required();
  command.add_option("--revision", options.revision, "branch, tag or commit of an org/name");
  command.add_option("--download-dir", options.download_dir, "the cache of models; else HF_HOME and its like");
  command
      .add_option("--load-format", options.load_format,
                  "auto: read the checkpoint; dummy: random weights at full size, MODEL being a known name or a folder "
                  "with a config.json")
      ->check(CLI::IsMember({"auto", "dummy"}))
      ->capture_default_str();
  command.add_option("--quantization,-q", options.quantization,
                     "precision of dummy weights, such as bf16, fp8, nvfp4, q8_0, q4_k_m, q4_0, mxfp4");
  command.add_option("--seed", options.seed, "of dummy weights and of sampling: the same seed gives the same answer");
  command.add_option("--device", options.device, "auto, cpu, cuda:N, or reference (every op on the plain reference)")
      ->capture_default_str();
  command.add_option("--threads", options.threads, "CPU threads; 0: one per core")
      ->check(CLI::Range(0, 1024))
      ->capture_default_str();
  command.add_option("--cpu-target", options.cpu_target,
                     "instruction set of the CPU: AVX3_DL, AVX3_BF16 and AVX3_AMX multiply rounded values, others F32");
  add_activation_flag(command, options);
  command
      .add_option(
          "--max-model-len", options.max_model_len,
          "tokens of a conversation, prompt and answer; 0: the model's own, at most 32768 and what fits in memory")
      ->check(CLI::Range(int64_t{0}, int64_t{1} << 24))
      ->capture_default_str();
  command
      .add_option("--gpu-memory-utilization", options.gpu_memory_utilization,
                  "the part of a GPU's memory that may be taken, by other processes too")
      ->check(CLI::Range(0.01, 1.0))
      ->capture_default_str();
  command.add_option("--gpu-memory-limit", options.gpu_memory_limit,
                     "bytes of a GPU's memory that may be taken, such as 24G, in place of a part of it");
  command.add_option("--kv-cache-dtype", options.kv_cache_dtype, "auto, bfloat16, float16, float32, or fp8 (E4M3)")
      ->capture_default_str();
  command.add_option("--max-num-batched-tokens", options.max_num_batched_tokens, "prompt tokens of one step")
      ->check(CLI::Range(1, 65536))
      ->capture_default_str();
  command.add_option("--chat-template", options.chat_template,
                     "a Jinja file to use in place of the checkpoint's template");
}

void add_prefix_cache_flags(CLI::App& command, OpenOptions& options) {
  command.add_flag("--enable-prefix-caching,!--no-enable-prefix-caching", options.enable_prefix_caching,
                   "what was computed serves prompts that begin alike; on unless --no-enable-prefix-caching");
  command
      .add_option("--mamba-block-size", options.mamba_block_size,
                  "tokens of a prompt between snapshots of the recurrent state, beside those where turns end")
      ->check(CLI::Range(8, 1 << 20))
      ->capture_default_str();
  command
      .add_option("--kv-offloading-size", options.kv_offloading_size,
                  "GiB of host memory for cached prefixes that the device has no room for")
      ->check(CLI::Range(0.0, 65536.0))
      ->capture_default_str();
}

Result<PreparedModel> prepare_model(const OpenOptions& options) {
  PROA_ASSIGN(const Format kv_cache_dtype, parse_kv_cache_dtype(options.kv_cache_dtype));
  int64_t limit = 0;
  if (!options.gpu_memory_limit.empty()) {
    PROA_ASSIGN(limit, parse_human_integer("--gpu-memory-limit", options.gpu_memory_limit));
    if (limit < 1) return Error{"open engine", "--gpu-memory-limit", "a size above 0", options.gpu_memory_limit, ""};
  }
  PROA_ASSIGN(auto made, make_backend(options.device, {.num_threads = options.threads,
                                                       .cpu_target = options.cpu_target,
                                                       .activation_dtype = options.activation_dtype}));
  PreparedModel prepared{.backend = std::move(made)};
  PROA_ASSIGN(auto headers, open_headers(options));
  prepared.checkpoint = std::make_shared<const Checkpoint>(std::move(headers));
  prepared.loaded =
      prepared.backend->memory().maps_files && !prepared.checkpoint->dummy() && options.quantize_to.empty();
  std::unique_ptr<Backend> host;
  if (!prepared.loaded) {
    PROA_ASSIGN(host, make_backend("reference"));
  }
  PROA_ASSIGN(prepared.model, open_model(prepared.checkpoint, host ? *host : *prepared.backend));
  prepared.config = {.max_num_seqs = options.max_num_seqs,
                     .max_num_batched_tokens = options.max_num_batched_tokens,
                     .max_model_len = options.max_model_len,
                     .gpu_memory_utilization = options.gpu_memory_utilization,
                     .gpu_memory_limit = limit,
                     .uncounted_weight_bytes = prepared.model->info().weight_bytes,
                     .kv_cache_dtype = kv_cache_dtype,
                     .enable_prefix_caching = options.enable_prefix_caching,
                     .snapshot_interval = options.mamba_block_size,
                     .kv_offloading_bytes = static_cast<int64_t>(options.kv_offloading_size * 0x1p30)};
  return prepared;
}

Result<MemoryPlan> plan_memory(const OpenOptions& options, const PreparedModel& prepared, const EngineConfig& config,
                               bool weights_stay) {
  auto plan = Engine::plan(*prepared.model, *prepared.backend, config);
  const bool dummy = prepared.checkpoint->dummy() != nullptr;
  const bool must_stay = weights_stay || dummy || !options.quantize_to.empty();  // in memory, where no file has them
  if (plan.ok() && (plan->weights_stay || !must_stay)) return plan;
  Error error;
  if (!plan.ok()) {
    error = std::move(plan).error();
    if (!dummy || error.hint.find(" fits") != std::string::npos) return error;
  } else {
    const auto bytes = [](size_t value) { return bytes_text(static_cast<double>(value)); };
    error = {"plan memory", plan->device, "at most " + bytes(plan->memory.free) + " that are free",
             bytes(plan->total_bytes()) + ": weights " + bytes(plan->weight_bytes) + ", KV, state and workspace " +
                 bytes(plan->engine_bytes()),
             "weights in a smaller format, or less memory in use by others"};
    if (!dummy) return error;
  }
  // Dummy weights come in any precision.
  const auto needs = Engine::needs(*prepared.model, *prepared.backend, config);
  if (!needs.ok()) return error;
  const auto limit = static_cast<size_t>(static_cast<double>(needs->memory.total) * needs->utilization);
  const size_t taken = needs->memory.total - needs->memory.free + needs->engine_bytes();
  if (const std::string command = dummy_that_fits(options, limit - std::min(limit, taken)); !command.empty()) {
    error.hint = command;
  }
  return error;
}

Result<OpenedModel> load_model(const OpenOptions& options, PreparedModel prepared) {
  std::shared_ptr<const Checkpoint> checkpoint = prepared.checkpoint;
  std::shared_ptr<const Model> model = prepared.model;
  const std::shared_ptr<Backend> backend = prepared.backend;
  EngineConfig config = prepared.config;
  if (!prepared.loaded) {
    if (checkpoint->dummy() || !options.quantize_to.empty()) {
      prepared = {};
      PROA_ASSIGN(auto opened, open_checkpoint(options, !backend->shares_memory()));
      checkpoint = std::make_shared<const Checkpoint>(std::move(opened));
    }
    PROA_ASSIGN(model, open_model(checkpoint, *backend));
    config.uncounted_weight_bytes = 0;
    if (!options.quantize_to.empty() && !backend->memory().maps_files) {
      PROA_TRY(backend->synchronize());  // it may still be copying
      discard_weights(*checkpoint);
    }
  }
  PROA_ASSIGN(Tokenizer tokenizer, Tokenizer::open(*checkpoint));
  if (tokenizer.vocab_size() > model->info().vocab_size) {
    return Error{
        "open engine", checkpoint->path(),
        "a tokenizer of at most " + std::to_string(model->info().vocab_size) + " tokens, the rows of the embedding",
        std::to_string(tokenizer.vocab_size()), ""};
  }
  PROA_ASSIGN(GenerationConfig generation, read_generation_config(*checkpoint, tokenizer.eos_ids()));
  config.eos_token_ids = generation.eos_token_ids;

  std::optional<ChatTemplate> chat_template;
  PROA_ASSIGN(const auto source, chat_template_source(*checkpoint, &tokenizer, options.chat_template));
  if (source) {
    PROA_ASSIGN(chat_template, ChatTemplate::create(source->text, special_token_texts(tokenizer), source->from));
  }
  return OpenedModel{checkpoint,
                     model,
                     backend,
                     std::move(tokenizer),
                     std::move(chat_template),
                     generation.params,
                     generation.max_new_tokens,
                     std::move(config)};
}

Result<OpenedEngine> open_engine(const OpenOptions& options,
                                 const std::function<void(const MemoryPlan&)>& before_loading) {
  PROA_ASSIGN(PreparedModel prepared, prepare_model(options));
  PROA_ASSIGN(const MemoryPlan plan, plan_memory(options, prepared, prepared.config));
  if (before_loading) before_loading(plan);
  PROA_ASSIGN(OpenedModel opened, load_model(options, std::move(prepared)));
  PROA_ASSIGN(auto engine, Engine::create(opened.model, opened.backend, opened.tokenizer, opened.config));
  return OpenedEngine{std::move(opened), std::move(engine)};
}

}  // namespace proa
