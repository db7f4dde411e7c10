#include <algorithm>
#include <cmath>
#include <vector>

#include "checkpoint/checkpoint.h"
#include "checkpoint/json_events.h"
#include "checkpoint/printable.h"

namespace proa {
namespace {

using Json = nlohmann::ordered_json;

// Builds the tree. The library's own builder looks for each key among all before it, which takes minutes for a map of
// 40,000 modules; and it has no bound on memory, of which "[1,1,1,..." takes twenty times its size.
class TreeBuilder final : public nlohmann::json_sax<Json> {
 public:
  TreeBuilder(const std::string& file, size_t text_bytes) : file_(file), left_(kMemory + text_bytes) {}

  Json take() { return std::move(root_); }
  const std::optional<Error>& failure() const { return failure_; }

  bool null() override { return put(nullptr) != nullptr; }
  bool boolean(bool value) override { return put(value) != nullptr; }
  bool number_integer(int64_t value) override { return put(value) != nullptr; }
  bool number_unsigned(uint64_t value) override { return put(value) != nullptr; }
  bool number_float(double value, const std::string& /*text*/) override { return put(value) != nullptr; }
  bool string(std::string& value) override {
    return spend(kBlockBytes + value.size()) && put(std::move(value)) != nullptr;
  }
  bool binary(binary_t& /*value*/) override { return false; }  // not in text
  bool key(std::string& name) override {
    key_ = std::move(name);
    return spend(kMemberBytes + key_.size());
  }
  bool start_object(size_t /*count*/) override { return open(Json::object()); }
  bool start_array(size_t /*count*/) override { return open(Json::array()); }
  bool end_array() override { return close(); }
  bool end_object() override {
    const auto& members = open_.back()->get_ref<const Json::object_t&>();
    std::vector<std::string_view> names;
    names.reserve(members.size());
    for (const auto& [name, value] : members) names.push_back(name);
    std::sort(names.begin(), names.end());
    const auto twice = std::adjacent_find(names.begin(), names.end());
    if (twice != names.end()) return fail("each field once", printable(*twice) + " twice");
    return close();
  }
  bool parse_error(size_t /*position*/, const std::string& /*last_token*/,
                   const nlohmann::detail::exception& what) override {
    return fail("", json_problem(what));
  }

 private:
  static constexpr size_t kMemory = size_t{48} << 20;  // beside one byte per byte of text
  // Of one value, with the copy that a growing array holds for a moment; an object's member; what lies elsewhere.
  static constexpr size_t kElementBytes = 48, kMemberBytes = 112, kBlockBytes = 64;

  bool fail(std::string expected, std::string actual) {
    failure_ = Error{
        .doing = "read JSON", .where = file_, .expected = std::move(expected), .actual = std::move(actual), .hint = {}};
    return false;
  }

  bool spend(size_t bytes) {
    if (bytes > left_) return fail("fewer values in a text of this size", "more");
    left_ -= bytes;
    return true;
  }

  // Where the value came to lie; null after a failure.
  Json* put(Json value) {
    if (!spend(kElementBytes)) return nullptr;
    if (open_.empty()) {
      root_ = std::move(value);
      return &root_;
    }
    Json& parent = *open_.back();
    if (parent.is_array()) return &parent.get_ref<Json::array_t&>().emplace_back(std::move(value));
    auto& members = parent.get_ref<Json::object_t&>();
    members.emplace_back(std::move(key_), std::move(value));
    return &members.back().second;
  }

  bool open(Json container) {
    if (!spend(kBlockBytes)) return false;
    Json* placed = put(std::move(container));
    if (placed == nullptr) return false;
    open_.push_back(placed);  // stays where it is: its parent does not grow before it is closed
    return true;
  }

  bool close() {
    open_.pop_back();
    return true;
  }

  const std::string& file_;
  size_t left_;  // bytes of memory
  Json root_;
  std::vector<Json*> open_;
  std::string key_;
  std::optional<Error> failure_;
};

// The text with Python's non-finite numbers, which JSON lacks, as strings; empty when there are none.
std::string with_finite_numbers(std::string_view text) {
  std::string rewritten;
  size_t copied = 0;
  for (size_t i = 0; i < text.size(); ++i) {
    const char c = text[i];
    if (c == '"') {
      for (++i; i < text.size() && text[i] != '"'; ++i) {
        if (text[i] == '\\') ++i;
      }
    } else if (c == 'N' || c == 'I' || c == '-') {
      for (std::string_view word : {"NaN", "Infinity", "-Infinity"}) {
        if (text.substr(i, word.size()) != word) continue;
        rewritten.append(text, copied, i - copied);
        rewritten.append("\"").append(word).append("\"");
        i += word.size() - 1;
        copied = i + 1;
        break;
      }
    }
  }
  if (copied != 0) rewritten.append(text, copied);
  return rewritten;
}

}  // namespace

Result<nlohmann::ordered_json> parse_json(std::string_view text, const std::string& file, size_t max_string_bytes) {
  PROA_TRY(check_json_limits(text, file, {.string_bytes = max_string_bytes}));
  const std::string rewritten = with_finite_numbers(text);
  if (!rewritten.empty()) text = rewritten;
  TreeBuilder builder(file, text.size());
  if (!Json::sax_parse(text.begin(), text.end(), &builder)) {
    if (builder.failure()) return *builder.failure();
    return Error{.doing = "read JSON", .where = file, .actual = "no JSON"};
  }
  return builder.take();
}

}  // namespace proa
