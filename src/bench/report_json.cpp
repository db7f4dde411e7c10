#include <cmath>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <sstream>
#include <type_traits>

#include "bench/report.h"

namespace proa {
namespace {

using Json = nlohmann::ordered_json;

constexpr size_t kMaxFileBytes = size_t{64} << 20;

template <typename T>
void put(Json& json, const char* name, const std::optional<T>& value) {
  if (value) json[name] = *value;
}

Json row_to_json(const BenchRow& row) {
  Json json = {{"what", to_string(row.what)}};
  if (!row.part.empty()) json["part"] = row.part;
  json["model"] = row.model;
  json["quantization"] = row.quantization;
  json["weights"] = row.weights;
  json["kv_cache_dtype"] = row.kv_cache_dtype;
  json["num_tokens"] = row.num_tokens;
  json["depth"] = row.depth;
  json["batch"] = row.batch;
  json["seconds"] = row.seconds;
  json["read_probe"] = row.read_probe;
  json["arithmetic_probe"] = row.arithmetic_probe;
  if (row.arithmetic) json["arithmetic"] = to_string(*row.arithmetic);
  put(json, "bytes", row.bytes);
  put(json, "flops", row.flops);
  put(json, "weight_bytes", row.weight_bytes);
  put(json, "distinct_experts", row.distinct_experts);
  put(json, "expected_experts", row.expected_experts);
  put(json, "kl", row.kl);
  if (!row.token_ids.empty()) json["token_ids"] = row.token_ids;
  // For readers of the file; read_report computes them again.
  put(json, "tokens_per_second", row.tokens_per_second());
  put(json, "bytes_per_second", row.bytes_per_second());
  put(json, "flops_per_second", row.flops_per_second());
  put(json, "limit_tokens_per_second", row.limit_tokens_per_second());
  if (const Summary share = row.share(); share.count > 0) {
    json["share"] = {{"median", share.median}, {"min", share.min}, {"max", share.max}};
  }
  return json;
}

// f(name, field) for each.
template <typename Plan, typename F>
void for_each_field(Plan& plan, F&& f) {
  f("device", plan.device);
  f("device_total_bytes", plan.memory.total);
  f("device_free_bytes", plan.memory.free);
  f("gpu_memory_utilization", plan.utilization);
  f("max_model_len", plan.max_model_len);
  f("num_blocks", plan.num_blocks);
  f("block_size", plan.block_size);
  f("num_slots", plan.num_slots);
  f("weight_bytes", plan.weight_bytes);
  f("kv_bytes", plan.kv_bytes);
  f("state_bytes", plan.state_bytes);
  f("workspace_bytes", plan.workspace_bytes);
  f("step_bytes", plan.step_bytes);
  f("scratch_bytes", plan.scratch_bytes);
}

// Reads fields of one object; the first error is kept and the rest is skipped.
class Reader {
 public:
  Reader(const Json& json, std::string where) : json_(json), where_(std::move(where)) {
    if (!json.is_object()) fail("", "an object");
  }

  template <typename T>
  void optional(const char* name, T& value) {
    if (error_.has_value() || !json_.contains(name) || json_.at(name).is_null()) return;
    take(name, json_.at(name), value);
  }
  template <typename T>
  void required(const char* name, T& value) {
    if (error_.has_value()) return;
    if (!json_.contains(name)) return fail(name, "a value");
    take(name, json_.at(name), value);
  }
  void fail(const std::string& name, const std::string& expected) {
    if (error_.has_value()) return;
    error_ = Error{.doing = "read a bench report",
                   .where = where_ + (name.empty() ? "" : (where_.empty() ? "" : ": ") + name),
                   .expected = expected,
                   .actual = name.empty() ? json_.type_name()
                             : json_.contains(name)
                                 ? json_.at(name).dump(-1, ' ', true, Json::error_handler_t::replace).substr(0, 80)
                                 : "none"};
  }
  const std::optional<Error>& error() const { return error_; }

 private:
  void take(const char* name, const Json& json, std::string& value) {
    if (!json.is_string()) return fail(name, "a string");
    value = json.get<std::string>();
  }
  void take(const char* name, const Json& json, bool& value) {
    if (!json.is_boolean()) return fail(name, "true or false");
    value = json.get<bool>();
  }
  void take(const char* name, const Json& json, double& value) {
    if (!json.is_number() || !std::isfinite(json.get<double>())) return fail(name, "a number");
    value = json.get<double>();
  }
  void take(const char* name, const Json& json, int64_t& value) {
    const bool fits = json.is_number_integer() && (!json.is_number_unsigned() || json.get<uint64_t>() <= INT64_MAX);
    if (!fits || json.get<int64_t>() < 0) return fail(name, "a whole number, not negative");
    value = json.get<int64_t>();
  }
  void take(const char* name, const Json& json, size_t& value) {
    int64_t wide = 0;
    take(name, json, wide);
    value = static_cast<size_t>(wide);
  }
  void take(const char* name, const Json& json, int& value) {
    int64_t wide = 0;
    take(name, json, wide);
    if (wide > INT32_MAX) return fail(name, "a whole number below 2^31");
    value = static_cast<int>(wide);
  }
  template <typename T>
  void take(const char* name, const Json& json, std::optional<T>& value) {
    T some{};
    take(name, json, some);
    if (!error_) value = std::move(some);
  }
  template <typename T>
  void take(const char* name, const Json& json, std::vector<T>& values) {
    if (!json.is_array()) return fail(name, "a list");
    for (const Json& element : json) {
      T value{};
      take(name, element, value);
      if (error_) return;
      values.push_back(std::move(value));
    }
  }

  const Json& json_;
  std::string where_;
  std::optional<Error> error_;
};

Result<BenchRow> row_from_json(const Json& json, const std::string& where) {
  BenchRow row;
  Reader reader(json, where);
  std::string what, arithmetic;
  reader.required("what", what);
  reader.optional("part", row.part);
  reader.required("model", row.model);
  reader.optional("quantization", row.quantization);
  reader.optional("weights", row.weights);
  reader.optional("kv_cache_dtype", row.kv_cache_dtype);
  reader.optional("num_tokens", row.num_tokens);
  reader.optional("depth", row.depth);
  reader.optional("batch", row.batch);
  reader.required("seconds", row.seconds);
  reader.optional("read_probe", row.read_probe);
  reader.optional("arithmetic_probe", row.arithmetic_probe);
  reader.optional("arithmetic", arithmetic);
  reader.optional("bytes", row.bytes);
  reader.optional("flops", row.flops);
  reader.optional("weight_bytes", row.weight_bytes);
  reader.optional("distinct_experts", row.distinct_experts);
  reader.optional("expected_experts", row.expected_experts);
  reader.optional("kl", row.kl);
  reader.optional("token_ids", row.token_ids);

  bool known = false;
  for (What each : {What::load, What::first_token, What::prefill, What::decode, What::memory}) {
    if (what == to_string(each)) row.what = each, known = true;
  }
  if (!known) reader.fail("what", "load, first_token, prefill, decode or memory");
  for (Probe each : kProbes) {
    if (arithmetic == to_string(each)) row.arithmetic = each;
  }
  if (!arithmetic.empty() && !row.arithmetic) reader.fail("arithmetic", "int8, bf16 or f32");
  if (std::any_of(row.seconds.begin(), row.seconds.end(), [](double s) { return s <= 0; }))
    reader.fail("seconds", "times above 0");
  for (const char* name : {"read_probe", "arithmetic_probe"}) {
    const auto& probes = name == std::string_view("read_probe") ? row.read_probe : row.arithmetic_probe;
    if (!probes.empty() && probes.size() != row.seconds.size()) reader.fail(name, "one for each of seconds, or none");
  }
  if (row.batch < 1) reader.fail("batch", "at least 1");
  if (reader.error()) return *reader.error();
  return row;
}

}  // namespace

std::string to_json(const BenchReport& report) {
  Json json = {{"device", report.device},
               {"description", report.description},
               {"cpu_model", report.cpu_model},
               {"threads", report.threads}};
  put(json, "clock_mhz", report.clock_mhz);
  put(json, "memory_bytes", report.memory_bytes);
  put(json, "last_level_cache", report.last_level_cache);
  put(json, "peak_memory_bytes", report.peak_memory_bytes);
  json["date"] = report.date;
  json["command"] = report.command;
  json["version"] = report.version;
  json["commit"] = report.commit;
  if (report.memory_plan) {
    Json& plan = json["memory_plan"];
    for_each_field(*report.memory_plan, [&](const char* name, const auto& value) { plan[name] = value; });
  }
  if (report.answer) {
    const AnswerCheck& a = *report.answer;
    json["answer"] = {{"num_steps", a.num_steps},     {"kl", a.kl},
                      {"kl_bound", a.kl_bound},       {"num_best_differ", a.num_best_differ},
                      {"logit_noise", a.logit_noise}, {"passed", a.passed}};
  }
  json["interrupted"] = report.interrupted;
  json["failures"] = report.failures;
  json["rows"] = Json::array();
  for (const BenchRow& row : report.rows) json["rows"].push_back(row_to_json(row));
  return json.dump(1, ' ', false, Json::error_handler_t::replace) + "\n";
}

Result<BenchReport> read_report(std::string_view text, std::string_view where) {
  const Json json = Json::parse(text, nullptr, false);
  if (json.is_discarded()) {
    return Error{.doing = "read a bench report",
                 .where = std::string(where),
                 .expected = "one JSON object",
                 .actual = "something that is no JSON",
                 .hint = "proa bench --json writes one"};
  }
  BenchReport report;
  Reader reader(json, std::string(where));
  reader.required("device", report.device);
  reader.optional("description", report.description);
  reader.optional("cpu_model", report.cpu_model);
  reader.optional("threads", report.threads);
  reader.optional("clock_mhz", report.clock_mhz);
  reader.optional("memory_bytes", report.memory_bytes);
  reader.optional("last_level_cache", report.last_level_cache);
  reader.optional("peak_memory_bytes", report.peak_memory_bytes);
  reader.optional("date", report.date);
  reader.optional("command", report.command);
  reader.optional("version", report.version);
  reader.optional("commit", report.commit);
  reader.optional("interrupted", report.interrupted);
  reader.optional("failures", report.failures);
  if (!reader.error() && (!json.contains("rows") || !json.at("rows").is_array())) reader.fail("rows", "a list");
  if (reader.error()) return *reader.error();

  if (json.contains("memory_plan") && !json.at("memory_plan").is_null()) {
    MemoryPlan plan;
    Reader fields(json.at("memory_plan"), std::string(where) + ": memory_plan");
    for_each_field(plan, [&](const char* name, auto& value) { fields.required(name, value); });
    if (fields.error()) return *fields.error();
    report.memory_plan = plan;
  }
  if (json.contains("answer") && !json.at("answer").is_null()) {
    AnswerCheck answer;
    Reader fields(json.at("answer"), std::string(where) + ": answer");
    fields.required("num_steps", answer.num_steps);
    fields.required("kl", answer.kl);
    fields.required("kl_bound", answer.kl_bound);
    fields.optional("num_best_differ", answer.num_best_differ);
    fields.optional("logit_noise", answer.logit_noise);
    fields.required("passed", answer.passed);
    if (fields.error()) return *fields.error();
    report.answer = answer;
  }
  for (const Json& each : json.at("rows")) {
    PROA_ASSIGN(BenchRow row,
                row_from_json(each, std::string(where) + ": rows[" + std::to_string(report.rows.size()) + "]"));
    report.rows.push_back(std::move(row));
  }
  return report;
}

Result<BenchReport> read_report_file(const std::string& path) {
  std::error_code failure;
  const auto size = std::filesystem::file_size(path, failure);
  std::ifstream file(path, std::ios::binary);
  if (failure || !file) {
    return Error{.doing = "read a bench report",
                 .where = path,
                 .expected = "a file that can be read",
                 .actual = failure ? failure.message() : "one that cannot"};
  }
  if (size > kMaxFileBytes) {
    return Error{.doing = "read a bench report",
                 .where = path,
                 .expected = "at most " + std::to_string(kMaxFileBytes) + " bytes",
                 .actual = std::to_string(size)};
  }
  std::string text(size, '\0');
  file.read(text.data(), static_cast<std::streamsize>(size));
  text.resize(static_cast<size_t>(std::max<std::streamsize>(0, file.gcount())));
  return read_report(text, path);
}

}  // namespace proa
