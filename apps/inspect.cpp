// proa inspect: what a checkpoint is, and what it needs to run.
#include <CLI/CLI.hpp>
#include <cstdio>
#include <filesystem>
#include <memory>

#include "apps/commands.h"
#include "apps/inspection.h"
#include "core/text.h"

namespace proa {
namespace {

using Json = nlohmann::ordered_json;

struct InspectOptions {
  OpenOptions open;
  bool json = false;
};

std::string format(const char* pattern, double value) {
  char text[64];
  std::snprintf(text, sizeof text, pattern, value);
  return text;
}

std::string grouped(int64_t value) {  // "131,072"
  std::string text = std::to_string(value);
  for (auto i = static_cast<int64_t>(text.size()) - 3; i > 0; i -= 3) text.insert(static_cast<size_t>(i), ",");
  return text;
}

// With three or four digits: "31.58 B", "6.12 G".
std::string scaled(double value, std::initializer_list<const char*> units, double two_digits_below) {
  auto unit = units.begin();
  while (value >= 999.5 && unit + 1 != units.end()) value /= 1000, ++unit;
  const char* pattern = unit == units.begin() ? "%.0f" : value < two_digits_below ? "%.2f" : "%.1f";
  return format(pattern, value) + *unit;
}

std::string bytes(const Json& value) { return bytes_text(value.get<double>()); }
std::string bytes_or_none(const Json& value) { return value == 0 ? "-" : bytes(value); }
std::string count(const Json& value) { return scaled(value.get<double>(), {"", " K", " M", " B", " T"}, 100); }

std::string join(const std::vector<std::string>& parts, const char* separator = ", ") {
  std::string text;
  for (const std::string& part : parts) text += (text.empty() ? "" : separator) + part;
  return text;
}

// The text of a token on one line: control characters and what is no UTF-8 escaped.
std::string token(const Json& token) {
  const std::string text = token["text"].dump(-1, ' ', false, Json::error_handler_t::replace);
  return text.substr(1, text.size() - 2) + " (" + std::to_string(token["id"].get<int>()) + ")";
}

void row(const char* name, const std::string& text) { std::printf("%-12s%s\n", name, text.c_str()); }

// Columns as wide as their widest entry: the first two to the left, numbers to the right.
void table(const std::vector<std::vector<std::string>>& rows, size_t left) {
  std::vector<size_t> widths;
  for (const auto& cells : rows) {
    widths.resize(std::max(widths.size(), cells.size()));
    for (size_t i = 0; i < cells.size(); ++i) widths[i] = std::max(widths[i], cells[i].size());
  }
  for (const auto& cells : rows) {
    std::string line;
    for (size_t i = 0; i < cells.size(); ++i) {
      const std::string space(widths[i] - cells[i].size(), ' ');
      line += (i ? "  " : "") + (i < left ? cells[i] + space : space + cells[i]);
    }
    line.erase(line.find_last_not_of(' ') + 1);
    std::puts(line.c_str());
  }
}

std::string model_line(const Json& report) {
  std::vector<std::string> layers;
  for (const auto& [key, number] : report["layers"].items()) {
    const std::string name = key == "mamba" ? "Mamba-2" : key == "moe" ? "MoE" : key == "mlp" ? "MLP" : key;
    layers.push_back(std::to_string(number.get<int>()) + " " + name);
  }
  std::string text = report["architecture"].get<std::string>() + ", " +
                     std::to_string(report["num_hidden_layers"].get<int>()) + " layers: " + join(layers);
  if (report["n_routed_experts"] > 0) {
    text += " of " + std::to_string(report["n_routed_experts"].get<int>()) + " experts, " +
            std::to_string(report["num_experts_per_tok"].get<int>()) + " chosen";
  }
  return text + "; hidden size " + grouped(report["hidden_size"].get<int64_t>());
}

std::string tokenizer_line(const Json& tokenizer) {
  std::vector<std::string> ends;
  for (const Json& id : tokenizer["eos"]) ends.push_back(token(id));
  std::string text = tokenizer["type"].get<std::string>() + ", pre " + tokenizer["pre"].get<std::string>() + "; " +
                     grouped(tokenizer["vocab_size"].get<int64_t>()) + " tokens, " +
                     grouped(tokenizer["control_tokens"].get<int64_t>()) + " of them control, " +
                     grouped(tokenizer["merges"].get<int64_t>()) + " merges";
  text += "\n            ";
  text += tokenizer["bos"].is_null() ? "no BOS" : "BOS " + token(tokenizer["bos"]);
  if (!tokenizer["bos"].is_null()) text += tokenizer["adds_bos"].get<bool>() ? ", added to completions" : ", not added";
  return text + "; " + (ends.empty() ? "no EOS" : "EOS " + join(ends));
}

std::string template_line(const Json& chat_template) {
  std::string text = chat_template["from"].get<std::string>() + ", " + bytes(chat_template["bytes"]);
  if (chat_template.contains("error")) return text + ": not usable: " + chat_template["error"].get<std::string>();
  const std::string thinking = chat_template["thinking"];
  std::vector<std::string> can;
  if (chat_template["system"].get<bool>()) can.push_back("system messages");
  if (chat_template["tools"].get<bool>()) can.push_back("tools");
  if (thinking == "always") can.push_back("thinking");
  if (thinking == "on" || thinking == "off") can.push_back("thinking (" + thinking + " unless asked)");
  if (chat_template["content_parts"].get<bool>()) can.push_back("content in parts");
  return text + ": " + (can.empty() ? "plain turns" : join(can));
}

std::string generation_line(const Json& generation) {
  const auto number = [&](const char* name) { return format("%g", generation[name].get<double>()); };
  std::string text = "temperature " + number("temperature") + ", top-p " + number("top_p");
  if (generation["top_k"] > 0) text += ", top-k " + number("top_k");
  if (generation["min_p"] > 0) text += ", min-p " + number("min_p");
  if (generation["repetition_penalty"] != 1) text += ", repetition penalty " + number("repetition_penalty");
  std::vector<std::string> ids;
  for (const Json& id : generation["eos_token_ids"]) ids.push_back(std::to_string(id.get<int>()));
  return text + (ids.empty() ? "; nothing ends a reply" : "; a reply ends at " + join(ids));
}

void print_weights(const Json& report) {
  std::vector<std::vector<std::string>> rows = {{"weights", "format", "count", "parameters", "bytes", "bits/weight"}};
  int64_t total = 0, size = 0, matrices = 0;
  for (const Json& weight : report["weights"]) {
    std::string stored = weight["format"];
    if (weight["kind"] == to_string(WeightKind::vector) && stored != "F32") stored += " as F32";
    rows.push_back({weight["kind"], stored, grouped(weight["count"].get<int64_t>()), count(weight["parameters"]),
                    bytes(weight["bytes"]), format("%.2f", weight["bits_per_weight"].get<double>())});
    matrices += weight["count"].get<int64_t>();
    total += weight["parameters"].get<int64_t>();
    size += weight["bytes"].get<int64_t>();
  }
  rows.push_back({"total", "", grouped(matrices), count(total), bytes(size),
                  total == 0 ? "" : format("%.2f", 8.0 * static_cast<double>(size) / static_cast<double>(total))});
  table(rows, 2);
  for (const Json& unused : report["unused"]) {
    std::printf("not used: %s tensors for %s, %s\n", grouped(unused["count"].get<int64_t>()).c_str(),
                unused["what"].get<std::string>().c_str(), bytes(unused["bytes"]).c_str());
  }
}

void print_step(const Json& report) {
  const Json& step = report["step"];
  const auto state = [&](const char* name) { return 2 * step[name].get<double>(); };
  std::printf("a token reads %s of weights", bytes(step["weight_bytes_per_token"]).c_str());
  if (state("ssm_state_bytes") > 0) {
    std::printf(", reads and writes %s of state (SSM %s, convolution %s)",
                bytes(state("ssm_state_bytes") + state("conv_state_bytes")).c_str(),
                bytes(state("ssm_state_bytes")).c_str(), bytes(state("conv_state_bytes")).c_str());
  }
  std::printf(",\nand reads %s of keys and values (%s) per token of context; %sFLOP\n",
              bytes(step["kv_bytes_per_token"]).c_str(), step["kv_cache_dtype"].get<std::string>().c_str(),
              scaled(step["decode_flops"].get<double>(), {" ", " K", " M", " G", " T"}, 10).c_str());
  const bool moe = report["n_routed_experts"] > 0;
  std::vector<std::vector<std::string>> rows = {{"sequences", "weights read", "bytes a token"}};
  if (moe) rows[0].push_back("experts touched");
  for (const Json& batch : step["batches"]) {
    rows.push_back(
        {grouped(batch["num_seqs"].get<int>()), bytes(batch["weight_bytes"]), bytes(batch["bytes_per_token"])});
    if (moe) rows.back().push_back(format("%.1f", batch["distinct_experts"].get<double>()));
  }
  table(rows, 0);
}

void print_memory(const Json& report) {
  const Json& memory = report["memory"];
  const int sequences = memory["max_num_seqs"];
  std::printf("memory for %d sequence%s, KV in %s\n", sequences, sequences == 1 ? "" : "s",
              report["step"]["kv_cache_dtype"].get<std::string>().c_str());
  std::vector<std::vector<std::string>> rows = {{"context", "weights", "KV", "state", "workspace", "total"}};
  for (const Json& context : memory["contexts"]) {
    rows.push_back({grouped(context["max_model_len"].get<int64_t>()), bytes(context["weights"]),
                    bytes_or_none(context["kv"]), bytes_or_none(context["state"]),
                    bytes(context["workspace"].get<double>() + context["step"].get<double>()),
                    bytes(context["total"])});
  }
  table(rows, 0);
}

void print(const Json& report) {
  std::string title = std::filesystem::path(report["model"].get<std::string>()).filename();
  if (title.empty()) title = report["model"].get<std::string>();
  const auto files = report["files"].get<int64_t>();
  std::string stored = report["container"] == "gguf" ? "GGUF" : "Hugging Face";
  if (!report["quantization"].is_null()) stored += ", " + report["quantization"].get<std::string>();
  std::puts(title.c_str());
  row("file", stored + "; " + bytes(report["tensor_bytes"]) + " in " + grouped(report["tensors"].get<int64_t>()) +
                  " tensors, " + grouped(files) + (files == 1 ? " file" : " files"));
  row("model", model_line(report));
  if (!report["layer_pattern"].get<std::string>().empty()) row("", report["layer_pattern"]);
  const Json& parameters = report["parameters"];
  bool tied = true;
  for (const Json& weight : report["weights"]) tied = tied && weight["kind"] != to_string(WeightKind::lm_head);
  row("parameters", count(parameters["total"]) + ", " + count(parameters["active"]) + " active per token; " +
                        count(parameters["embedding"]) + " in the embedding" +
                        (tied ? ", which is the output matrix as well" : ""));
  row("context", grouped(report["max_position_embeddings"].get<int64_t>()) + " tokens");

  const auto part = [&](const char* name, const char* key, std::string (*line)(const Json&)) {
    const Json& value = report[key];
    if (value.is_null()) return row(name, "none");
    if (value.size() == 1 && value.contains("error"))
      return row(name, "not usable: " + value["error"].get<std::string>());
    row(name, line(value));
  };
  part("tokenizer", "tokenizer", tokenizer_line);
  part("template", "chat_template", template_line);
  part("generation", "generation", generation_line);
  const Json& backend = report["backend"];
  std::vector<std::string> slow;
  for (const Json& op : backend["on_reference"]) slow.push_back(op);
  row("device", backend["device"].get<std::string>() + ", " + backend["description"].get<std::string>() + "; " +
                    (slow.empty() ? "a kernel for every op" : "on the reference: " + join(slow)) + "; " +
                    bytes(backend["memory_free"]) + " of memory free of " + bytes(backend["memory_total"]));
  if (!backend["cuda_architectures"].empty()) {
    std::vector<std::string> run, never;
    for (const Json& each : backend["cuda_architectures"]) {
      const std::string devices = each["devices"];
      (each["has_run"].get<bool>() ? run : never)
          .push_back(each["name"].get<std::string>() + (devices.empty() ? "" : " (" + devices + ")"));
    }
    row("CUDA code", join(run) + (run.empty() || never.empty() ? "" : "; ") +
                         (never.empty() ? "" : "compiled, never run: " + join(never)));
    if (const auto reason = backend.find("cuda_unavailable"); reason != backend.end() && reason->is_string()) {
      row("", reason->get<std::string>());
    }
  }
  std::puts("");
  print_weights(report);
  std::puts("");
  print_step(report);
  std::puts("");
  print_memory(report);
}

int inspect_command(const InspectOptions& options) {
  const auto report = inspect(options.open);
  if (!report.ok()) {
    std::fprintf(stderr, "proa: %s\n", report.error().message().c_str());
    return 1;
  }
  if (options.json) {
    std::puts(report->dump(2, ' ', false, Json::error_handler_t::replace).c_str());
  } else {
    print(*report);
  }
  return 0;
}

}  // namespace

void add_inspect_command(CLI::App& app, int& exit_code) {
  CLI::App* command = app.add_subcommand("inspect", "what a checkpoint is, and what it needs to run");
  auto options = std::make_shared<InspectOptions>();
  add_open_flags(*command, options->open);
  command->add_option("--max-num-seqs", options->open.max_num_seqs, "sequences at once, for the memory")
      ->check(CLI::Range(1, 65536))
      ->capture_default_str();
  command->add_flag("--json", options->json, "one JSON object; bytes, tokens and parameters are plain numbers");
  command->footer("Example: proa inspect MODEL --max-model-len 131072 --max-num-seqs 4");
  command->callback([options, &exit_code] { exit_code = inspect_command(*options); });
}

}  // namespace proa
