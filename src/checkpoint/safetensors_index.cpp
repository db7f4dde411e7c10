#include "checkpoint/safetensors_index.h"

#include <algorithm>

#include "checkpoint/json_events.h"
#include "checkpoint/printable.h"
#include "checkpoint/safetensors.h"

namespace proa {
namespace {

class IndexEvents final : public JsonEvents {
 public:
  explicit IndexEvents(const std::string& path) : path_(path) {}

  SafetensorsIndex index;
  bool have_map = false;

  bool scalar(const JsonScalar& value) override {
    if (depth_ == 0) return fail(error("an object weight_map", "none"));
    if (depth_ == 1 && key_ == "weight_map") return fail(error("an object weight_map", "another type"));
    if (depth_ != 2 || !in_map_) return true;
    const std::string expected = "a file name in this folder for " + printable(key_);
    if (!value.is_string()) return fail(error(expected, "another type"));
    if (!is_plain_file_name(value.text)) return fail(error(expected, "\"" + printable(value.text) + "\""));
    auto [file, is_new] = number_.emplace(value.text, static_cast<uint32_t>(index.files.size()));
    if (is_new) {
      if (index.files.size() == kMaxShards) {
        return fail(error("at most " + std::to_string(kMaxShards) + " shards", "more"));
      }
      index.files.emplace_back(value.text);
    }
    if (index.shard.size() == Safetensors::kMaxTensors) {
      return fail(error("at most " + std::to_string(Safetensors::kMaxTensors) + " tensors", "more"));
    }
    if (!index.shard.emplace(std::move(key_), file->second).second) {
      return fail(error("each tensor once in weight_map", printable(key_) + " twice"));
    }
    return true;
  }
  bool key(std::string& name) override {
    if (depth_ == 1 && name == "weight_map" && have_map) return fail(error("one weight_map", "two"));
    key_ = std::move(name);
    return true;
  }
  bool start_object(size_t /*count*/) override {
    if (depth_ == 1 && key_ == "weight_map") in_map_ = have_map = true;
    return start();
  }
  bool end_object() override {
    if (--depth_ == 1) in_map_ = false;
    return true;
  }
  bool start_array(size_t /*count*/) override {
    if (depth_ == 1 && key_ == "weight_map") return fail(error("an object weight_map", "an array"));
    return start();
  }
  bool end_array() override {
    --depth_;
    return true;
  }

 private:
  static constexpr size_t kMaxShards = 10'000;

  Error error(std::string expected, std::string actual) const {
    return {.doing = "open checkpoint",
            .where = path_,
            .expected = std::move(expected),
            .actual = std::move(actual),
            .hint = {}};
  }
  bool start() {
    if (in_map_ && depth_ == 2) {
      return fail(error("a file name in this folder for " + printable(key_), "another type"));
    }
    ++depth_;
    return true;
  }

  const std::string& path_;
  int depth_ = 0;
  bool in_map_ = false;
  std::string key_;
  std::map<std::string, uint32_t, std::less<>> number_;
};

}  // namespace

bool is_plain_file_name(std::string_view name) {
  const auto odd = [](char c) { return c == '/' || static_cast<uint8_t>(c) < 0x20 || c == 0x7f; };
  return !name.empty() && std::none_of(name.begin(), name.end(), odd) && name != "." && name != "..";
}

Result<SafetensorsIndex> parse_safetensors_index(std::string_view text, const std::string& path) {
  IndexEvents events(path);
  PROA_TRY(parse_json_events(text, path, {.string_bytes = 4096}, events));
  if (!events.have_map) {
    return Error{.doing = "open checkpoint", .where = path, .expected = "an object weight_map", .actual = "none"};
  }
  return std::move(events.index);
}

}  // namespace proa
