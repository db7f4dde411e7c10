#include "apps/inspection.h"

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <map>
#include <set>

#include "apps/open_checkpoint.h"
#include "backends/backends.h"
#include "models/step_cost.h"
#include "tokenizer/vocabulary.h"

namespace proa {
namespace {

using Json = nlohmann::ordered_json;

Json failed(const Error& error) { return {{"error", error.message()}}; }

// What hf_quant_config.json or config.json claims, in a line: "NVFP4, KV cache FP8".
Json quantization(const Checkpoint& checkpoint) {
  Json object = checkpoint.config().value("quantization_config", Json());
  if (checkpoint.has_file("hf_quant_config.json")) {
    const auto file = checkpoint.read_json("hf_quant_config.json");
    if (file.ok() && file->is_object()) object = file->value("quantization", Json());
  }
  if (!object.is_object() || !object.contains("quant_algo") || !object["quant_algo"].is_string()) return nullptr;
  std::string text = object["quant_algo"];
  const Json kv = object.value("kv_cache_quant_algo", Json());
  if (kv.is_string()) text += ", KV cache " + kv.get<std::string>();
  return text;
}

Json weights(const Model& model) {
  std::map<std::pair<WeightKind, std::string>, WeightUse> sums;
  for (const WeightUse& weight : model.weights()) {
    WeightUse& sum = sums[{weight.kind, weight.stored}];
    sum.num_experts += weight.num_experts - (sum.parameters == 0);  // it begins at 1
    sum.parameters += weight.parameters;
    sum.bytes += weight.bytes;
  }
  Json rows = Json::array();
  for (const auto& [key, sum] : sums) {
    rows.push_back({{"kind", to_string(key.first)},
                    {"format", key.second},
                    {"count", sum.num_experts},
                    {"parameters", sum.parameters},
                    {"bytes", sum.bytes},
                    {"bits_per_weight", sum.parameters == 0 ? 0 : 8.0 * double(sum.bytes) / double(sum.parameters)}});
  }
  return rows;
}

// The name by which GGUF files know this way of cutting text, for tokenizers that only bring the expressions.
std::string pre_name(const Vocabulary& vocabulary) {
  for (const char* name : {"pixtral", "gpt-2", "llama-bpe", "qwen2", "smollm", "olmo", "gpt-4o"}) {
    const auto preset = pretokenizer_preset(name);
    if (!preset.ok() || preset->steps.size() != vocabulary.steps.size()) continue;
    const auto same = [](const PreTokenizerStep& a, const PreTokenizerStep& b) { return a.expression == b.expression; };
    if (std::equal(preset->steps.begin(), preset->steps.end(), vocabulary.steps.begin(), same)) return name;
  }
  return "its own";
}

struct OpenedTokenizer {
  Tokenizer tokenizer;
  Json report;
};

Result<OpenedTokenizer> open_tokenizer(const Checkpoint& checkpoint, int model_vocab_size) {
  Json report;
  Vocabulary vocabulary;
  std::string json, config;
  if (const Gguf* gguf = checkpoint.gguf()) {
    PROA_ASSIGN(const std::string_view type, gguf->string("tokenizer.ggml.model"));
    PROA_ASSIGN(const std::string_view pre, gguf->string("tokenizer.ggml.pre", "default"));
    PROA_ASSIGN(vocabulary, vocabulary_from_gguf(*gguf));
    report = {{"type", type}, {"pre", pre}};
  } else {
    if (!checkpoint.has_file("tokenizer.json")) {
      return Error{"open tokenizer", checkpoint.path(), "a tokenizer.json", "none", ""};
    }
    PROA_ASSIGN(json, checkpoint.read_text("tokenizer.json"));
    if (checkpoint.has_file("tokenizer_config.json")) {
      PROA_ASSIGN(config, checkpoint.read_text("tokenizer_config.json"));
    }
    PROA_ASSIGN(vocabulary, vocabulary_from_tokenizer_json(json, config));
    report = {{"type", "tokenizer.json"}, {"pre", pre_name(vocabulary)}};
  }
  PROA_ASSIGN(Tokenizer tokenizer, Tokenizer::create(vocabulary));
  if (tokenizer.vocab_size() > model_vocab_size) {
    return Error{"open tokenizer", checkpoint.path(),
                 "at most " + std::to_string(model_vocab_size) + " tokens, the rows of the embedding",
                 std::to_string(tokenizer.vocab_size()), ""};
  }
  const auto token = [&](int32_t id) { return Json{{"id", id}, {"text", tokenizer.piece(id)}}; };
  report["vocab_size"] = tokenizer.vocab_size();
  report["merges"] = vocabulary.merges.size();
  report["control_tokens"] = std::count(vocabulary.types.begin(), vocabulary.types.end(), TokenType::control);
  report["bos"] = tokenizer.bos_id() ? token(*tokenizer.bos_id()) : Json();
  report["eos"] = Json::array();
  for (const int32_t id : tokenizer.eos_ids()) report["eos"].push_back(token(id));
  report["adds_bos"] = tokenizer.adds_bos();
  return OpenedTokenizer{std::move(tokenizer), std::move(report)};
}

// What the template does with a few conversations, as its text would not tell.
Json template_features(const ChatTemplate& chat_template) {
  const Json user = {{"role", "user"}, {"content", "proa-user"}};
  const auto render = [&](const Json& messages, ChatOptions options) {
    options.now.tm_mday = 1;
    const auto segments = chat_template.render(messages, options);
    std::string text;
    if (!segments.ok()) return text;
    for (const auto& segment : *segments) text += segment.text;
    return text;
  };
  const auto with_thinking = [&](std::optional<bool> on) {
    return render(Json::array({user}), {.enable_thinking = on});
  };
  const std::string off = with_thinking(false), on = with_thinking(true), unset = with_thinking({});
  std::string thinking = "no";
  if (off != on) {
    thinking = unset == on ? "on" : "off";
  } else if (unset.find("<think>") != unset.npos) {
    thinking = "always";
  }
  const Json tool = {{"type", "function"},
                     {"function",
                      {{"name", "proa_tool"},
                       {"description", "A probe."},
                       {"parameters", {{"type", "object"}, {"properties", Json::object()}}}}}};
  const Json system = Json::array({{{"role", "system"}, {"content", "proa-system"}}, user});
  const auto shows = [](const std::string& text, const char* word) { return text.find(word) != text.npos; };
  const ChatOptions with_tools = {.tools = Json::array({tool})};
  // Some templates render only what has tools.
  return {{"system", shows(render(system, {}) + render(system, with_tools), "proa-system")},
          {"tools", shows(render(Json::array({user}), with_tools), "proa_tool")},
          {"thinking", thinking},
          {"content_parts", chat_template.takes_content_parts()}};
}

Json chat_template(const Checkpoint& checkpoint, const Tokenizer* tokenizer, const std::string& file) {
  const auto source = chat_template_source(checkpoint, tokenizer, file);
  if (!source.ok()) return failed(source.error());
  if (!*source) return nullptr;
  Json report = {{"from", (*source)->from}, {"bytes", (*source)->text.size()}};
  const auto parsed =
      ChatTemplate::create((*source)->text, tokenizer ? special_token_texts(*tokenizer) : SpecialTokenTexts());
  if (!parsed.ok()) {
    report["error"] = parsed.error().message();
  } else {
    report.update(template_features(*parsed));
  }
  return report;
}

Json generation(const Checkpoint& checkpoint, const Tokenizer* tokenizer) {
  const auto read = read_generation_config(checkpoint, tokenizer ? tokenizer->eos_ids() : std::span<const int32_t>());
  if (!read.ok()) return failed(read.error());
  const SamplingParams& params = read->params;
  return {{"temperature", params.temperature},
          {"top_p", params.top_p},
          {"top_k", params.top_k},
          {"min_p", params.min_p},
          {"repetition_penalty", params.repetition_penalty},
          {"eos_token_ids", read->eos_token_ids}};
}

Json step_cost(const Model& model, Format kv_cache_dtype) {
  const StateBytes state = state_bytes(model);
  Json step = {{"kv_cache_dtype", info(kv_cache_dtype).name},
               {"kv_bytes_per_token", kv_bytes_per_token(model, kv_cache_dtype)},
               {"ssm_state_bytes", state.ssm},
               {"conv_state_bytes", state.conv},
               {"weight_bytes_per_token", weight_bytes_per_token(model)},
               {"decode_flops", decode_flops(model, 0)},
               {"batches", Json::array()}};
  for (const int num_seqs : {1, 8, 64}) {
    const double experts = expected_distinct_experts(model, num_seqs);
    step["batches"].push_back(
        {{"num_seqs", num_seqs},
         {"distinct_experts", experts},
         {"weight_bytes", weight_bytes_of_step(model, num_seqs, experts)},
         {"bytes_per_token", decode_bytes(model, num_seqs, experts, kv_cache_dtype, 0) / num_seqs}});
  }
  return step;
}

Result<Json> memory(const Model& model, Backend& device, const OpenOptions& options, Format kv_cache_dtype) {
  const int64_t longest = model.info().max_position_embeddings;
  std::set<int64_t> lengths;
  if (options.max_model_len > 0) {
    lengths = {options.max_model_len};
  } else {
    for (const int64_t length : {4096, 32768, 131072, 1048576}) lengths.insert(std::min<int64_t>(length, longest));
    lengths.insert(longest);
  }
  Json contexts = Json::array();
  for (const int64_t length : lengths) {
    PROA_ASSIGN(const MemoryPlan plan,
                Engine::needs(model, device,
                              {.max_num_seqs = options.max_num_seqs,
                               .max_num_batched_tokens = std::max(options.max_num_batched_tokens, options.max_num_seqs),
                               .max_model_len = length,
                               .kv_cache_dtype = kv_cache_dtype,
                               .enable_prefix_caching = false}));  // snapshots take what is left over
    contexts.push_back({{"max_model_len", length},
                        {"weights", plan.weight_bytes},
                        {"kv", plan.kv_bytes},
                        {"state", plan.state_bytes},
                        {"workspace", plan.workspace_bytes + plan.scratch_bytes},
                        {"step", plan.step_bytes},
                        {"total", plan.total_bytes()}});
  }
  return Json{{"max_num_seqs", options.max_num_seqs}, {"contexts", std::move(contexts)}};
}

Json backend_report(Backend& backend) {
  Json ops = Json::array();
  std::string name;
  for (const char c : std::string(backend.on_reference()) + ",") {
    if (c != ',') {
      if (c != ' ') name += c;
    } else if (!name.empty()) {
      ops.push_back(std::move(name));
      name.clear();
    }
  }
  const DeviceMemory memory = backend.memory();
  Json report = {{"device", backend.name()},       {"description", backend.description()},
                 {"memory_total", memory.total},   {"memory_free", memory.free},
                 {"on_reference", std::move(ops)}, {"cuda_architectures", Json::array()}};
  for (const CudaArchitecture& each : cuda_architectures()) {
    report["cuda_architectures"].push_back({{"name", each.name}, {"devices", each.devices}, {"has_run", each.has_run}});
  }
  if (!report["cuda_architectures"].empty() && !backend.name().starts_with("cuda")) {
    const auto cuda = make_backend("cuda:0");
    report["cuda_unavailable"] = cuda.ok() ? Json() : Json(cuda.error().message());
  }
  return report;
}

Json layer_counts(const ModelInfo& info) {
  const std::string& pattern = info.layer_pattern;
  if (pattern.empty()) return {{"attention", info.num_hidden_layers}, {"mlp", info.num_hidden_layers}};
  Json counts;
  for (const auto& [letter, name] : {std::pair{'M', "mamba"}, {'*', "attention"}, {'E', "moe"}, {'-', "mlp"}}) {
    if (const auto count = std::count(pattern.begin(), pattern.end(), letter)) counts[name] = count;
  }
  return counts;
}

// The few small tensors that opening a model reads lie far apart. Reading ahead at each of them would fetch hundreds of
// megabytes of a file that is not in memory yet.
void without_read_ahead(const Checkpoint& checkpoint) {
  std::map<std::string_view, std::pair<uintptr_t, uintptr_t>> ranges;  // by file
  for (const auto& [name, entry] : checkpoint.tensors()) {
    if (entry.bytes == 0) continue;
    const auto begin = reinterpret_cast<uintptr_t>(entry.data), end = begin + entry.bytes;
    auto& range = ranges.try_emplace(entry.file, begin, end).first->second;
    range = {std::min(range.first, begin), std::max(range.second, end)};
  }
  const auto page = static_cast<uintptr_t>(::sysconf(_SC_PAGESIZE));
  for (const auto& [file, range] : ranges) {
    const uintptr_t begin = range.first / page * page;
    ::madvise(reinterpret_cast<void*>(begin), range.second - begin, MADV_RANDOM);
  }
}

}  // namespace

Result<Json> inspect(const OpenOptions& options) {
  PROA_ASSIGN(const Format kv_cache_dtype, parse_kv_cache_dtype(options.kv_cache_dtype));
  PROA_ASSIGN(const auto device, make_backend(options.device, {.num_threads = options.threads,
                                                               .cpu_target = options.cpu_target,
                                                               .activation_dtype = options.activation_dtype}));
  PROA_ASSIGN(auto opened, open_headers(options));
  const auto checkpoint = std::make_shared<const Checkpoint>(std::move(opened));
  without_read_ahead(*checkpoint);
  // On the host, where weights stay in their files; another device would be given copies.
  PROA_ASSIGN(const auto host, make_backend("reference"));
  PROA_ASSIGN(const auto model, open_model(checkpoint, *host));

  std::set<std::string_view> files;
  size_t tensor_bytes = 0;
  for (const auto& [name, entry] : checkpoint->tensors()) {
    files.insert(entry.file);
    tensor_bytes += entry.bytes;
  }
  const ModelInfo& about = model->info();
  const ParameterCount parameters = count_parameters(*model);
  Json report = {
      {"model", checkpoint->path()},
      {"container", checkpoint->gguf() ? "gguf" : "huggingface"},
      {"files", files.size()},
      {"tensors", checkpoint->tensors().size()},
      {"tensor_bytes", tensor_bytes},
      {"quantization", quantization(*checkpoint)},
      {"architecture", about.architecture},
      {"layer_pattern", about.layer_pattern},
      {"num_hidden_layers", about.num_hidden_layers},
      {"layers", layer_counts(about)},
      {"hidden_size", about.hidden_size},
      {"vocab_size", about.vocab_size},
      {"max_position_embeddings", about.max_position_embeddings},
      {"n_routed_experts", about.n_routed_experts},
      {"num_experts_per_tok", about.num_experts_per_tok},
      {"parameters", {{"total", parameters.total}, {"active", parameters.active}, {"embedding", parameters.embedding}}},
      {"weights", weights(*model)},
      {"unused", Json::array()}};
  for (const UnusedTensors& group : model->unused()) {
    report["unused"].push_back(
        {{"what", group.what}, {"count", group.count}, {"parameters", group.parameters}, {"bytes", group.bytes}});
  }
  const auto tokenizer = open_tokenizer(*checkpoint, about.vocab_size);
  const Tokenizer* encoder = tokenizer.ok() ? &tokenizer->tokenizer : nullptr;
  report["tokenizer"] = encoder ? tokenizer->report : failed(tokenizer.error());
  report["chat_template"] = chat_template(*checkpoint, encoder, options.chat_template);
  report["generation"] = generation(*checkpoint, encoder);
  report["step"] = step_cost(*model, kv_cache_dtype);
  PROA_ASSIGN(report["memory"], memory(*model, *device, options, kv_cache_dtype));
  report["backend"] = backend_report(*device);
  return report;
}

}  // namespace proa
