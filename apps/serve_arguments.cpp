#include "apps/serve_arguments.h"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <fstream>
#include <map>
#include <nlohmann/json.hpp>
#include <optional>
#include <set>

namespace proa {
namespace {

using Json = nlohmann::ordered_json;

constexpr size_t kMaxConfigBytes = 1 << 20;

struct Short {
  const char *written, *meant;
};
constexpr Short kShort[] = {
    {"-tp", "--tensor-parallel-size"},   {"-pp", "--pipeline-parallel-size"}, {"-dp", "--data-parallel-size"},
    {"-ep", "--enable-expert-parallel"}, {"-sc", "--speculative-config"},     {"-cc", "--compilation-config"},
    {"-ac", "--attention-config"},
};

// A flag's name as we know it; what is no flag comes back as it is.
std::string known_name(std::string name) {
  for (const Short& one : kShort) {
    if (name == one.written) return one.meant;
  }
  if (!name.starts_with("--")) return name;
  const size_t dot = std::min(name.find('.'), name.size());
  std::replace(name.begin(), name.begin() + static_cast<std::ptrdiff_t>(dot), '_', '-');
  return name;
}

std::string_view trim(std::string_view text) {
  while (!text.empty() && (text.front() == ' ' || text.front() == '\t')) text.remove_prefix(1);
  while (!text.empty() && (text.back() == ' ' || text.back() == '\t' || text.back() == '\r')) text.remove_suffix(1);
  return text;
}

// A scalar: without its quotes, or without the comment behind it.
std::string yaml_scalar(std::string_view text) {
  text = trim(text);
  if (text.size() >= 2 && (text.front() == '"' || text.front() == '\'')) {
    const size_t end = text.find(text.front(), 1);
    if (end != text.npos) return std::string(text.substr(1, end - 1));
  }
  const size_t comment = text.starts_with('#') ? 0 : text.find(" #");
  return std::string(trim(text.substr(0, comment)));
}

struct ConfigEntry {
  std::string flag;  // "--max-model-len"
  std::vector<std::string> values;
};

Result<std::vector<ConfigEntry>> read_config(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  std::string text(kMaxConfigBytes + 1, '\0');
  file.read(text.data(), static_cast<std::streamsize>(text.size()));
  text.resize(static_cast<size_t>(file.gcount()));
  if (file.bad() || !file.eof() || text.size() > kMaxConfigBytes) {
    return Error{"read configuration", "--config " + path, "a readable YAML file of at most 1 MiB", "", ""};
  }
  std::vector<ConfigEntry> entries;
  size_t number = 0;
  for (size_t begin = 0; begin < text.size(); ++number) {
    const size_t end = std::min(text.find('\n', begin), text.size());
    const std::string_view line = std::string_view(text).substr(begin, end - begin);
    begin = end + 1;
    const std::string_view content = trim(line);
    const auto bad = [&](const char* expected) {
      return Error{"read configuration", path + ": line " + std::to_string(number + 1), expected, std::string(content),
                   ""};
    };
    if (content.empty() || content.starts_with('#') || content == "---") continue;
    if (content.starts_with("- ")) {
      if (entries.empty()) return bad("a key before the elements of a list");
      entries.back().values.push_back(yaml_scalar(content.substr(2)));
      continue;
    }
    const size_t colon = content.find(':');
    if (line.front() == ' ' || colon == content.npos) return bad("KEY: VALUE, or a list of - VALUE");
    const std::string_view rest = trim(content.substr(colon + 1));
    ConfigEntry entry{.flag = known_name("--" + std::string(trim(content.substr(0, colon))))};
    if (rest.starts_with('[') && rest.ends_with(']')) {
      for (std::string_view items = rest.substr(1, rest.size() - 2); !items.empty();) {
        const size_t comma = std::min(items.find(','), items.size());
        entry.values.push_back(yaml_scalar(items.substr(0, comma)));
        items.remove_prefix(std::min(comma + 1, items.size()));
      }
    } else if (!yaml_scalar(rest).empty()) {
      entry.values.push_back(yaml_scalar(rest));
    }
    entries.push_back(std::move(entry));
  }
  return entries;
}

// Members and elements of JSON that came one by one.
class DottedValues {
 public:
  void add(const std::string& name, const std::string& text) {
    const size_t dot = name.find('.');
    Json* place = &values_[name.substr(0, dot)];
    std::string path = name.substr(dot + 1);
    const bool append = path.ends_with('+');
    if (append) path.pop_back();
    for (size_t begin = 0; begin <= path.size();) {
      const size_t end = std::min(path.find('.', begin), path.size());
      if (!place->is_object()) *place = Json::object();
      place = &(*place)[path.substr(begin, end - begin)];
      begin = end + 1;
    }
    Json value = Json::parse(text, nullptr, false);
    if (value.is_discarded()) value = text;
    if (!append) {
      *place = std::move(value);
    } else {
      if (!place->is_array()) *place = Json::array();
      place->push_back(std::move(value));
    }
  }
  void append_to(std::vector<std::string>& arguments) const {
    for (const auto& [name, value] : values_) {
      arguments.push_back(name);
      arguments.push_back(value.dump(-1, ' ', false, Json::error_handler_t::replace));
    }
  }

 private:
  std::map<std::string, Json> values_;
};

}  // namespace

Result<std::vector<std::string>> expand_serve_arguments(const std::vector<std::string>& arguments) {
  std::vector<std::string> expanded;
  std::string config;
  DottedValues dotted;
  std::set<std::string> given;
  size_t i = 0;
  for (const char* word : {"vllm", "serve"}) i += i < arguments.size() && arguments[i] == word ? 1 : 0;
  for (; i < arguments.size(); ++i) {
    const std::string& argument = arguments[i];
    if (argument.size() == 3 && argument.starts_with("-O") && argument[2] >= '0' && argument[2] <= '9') {
      expanded.insert(expanded.end(), {"--optimization-level", argument.substr(2)});
      continue;
    }
    const size_t equals = argument.starts_with('-') ? argument.find('=') : argument.npos;
    const std::string name = known_name(argument.substr(0, equals));
    std::optional<std::string> value;
    if (equals != argument.npos) value = argument.substr(equals + 1);
    if (name == "--help" && value) {
      expanded.push_back(name);
    } else if (name == "--config" || (name.starts_with("--") && name.find('.') != name.npos)) {
      if (!value && i + 1 < arguments.size()) value = arguments[++i];
      if (!value) return Error{"read the command line", name, "a value", "none", ""};
      if (name == "--config") {
        config = *value;
      } else {
        dotted.add(name, *value);
      }
    } else {
      if (name.starts_with("--")) given.insert(name);
      expanded.push_back(value ? name + "=" + *value : name);
    }
  }
  dotted.append_to(expanded);
  if (config.empty()) return expanded;

  PROA_ASSIGN(const std::vector<ConfigEntry> entries, read_config(config));
  std::vector<std::string> all;
  const bool has_model = given.contains("--model") || (!expanded.empty() && !expanded.front().starts_with('-'));
  for (const ConfigEntry& entry : entries) {
    const std::string opposite =
        entry.flag.starts_with("--no-") ? "--" + entry.flag.substr(5) : "--no-" + entry.flag.substr(2);
    if (given.contains(entry.flag) || given.contains(opposite) || (entry.flag == "--model" && has_model)) continue;
    if (entry.values.size() == 1 && (entry.values[0] == "true" || entry.values[0] == "false")) {
      all.push_back(entry.values[0] == "true" ? entry.flag : opposite);
      continue;
    }
    all.push_back(entry.flag);
    all.insert(all.end(), entry.values.begin(), entry.values.end());
  }
  // A model without a flag must not be taken for one more value of the file's last key.
  std::vector<std::string> result(expanded.begin(),
                                  expanded.begin() + (has_model && !given.contains("--model") ? 1 : 0));
  const size_t taken = result.size();
  result.insert(result.end(), all.begin(), all.end());
  result.insert(result.end(), expanded.begin() + static_cast<std::ptrdiff_t>(taken), expanded.end());
  return result;
}

Result<int64_t> parse_human_integer(const std::string& flag, std::string_view text) {
  const auto bad = [&] {
    return Error{"read the command line", flag, "a number, with k, m, g, t for thousands or K, M, G, T for 1024s",
                 std::string(text), ""};
  };
  constexpr std::string_view kThousands = "kmgt", kBinary = "KMGT";
  if (text.empty()) return bad();
  double factor = 1;
  bool decimal_allowed = false;
  std::string_view digits = text;
  if (const size_t power = kThousands.find(text.back()); power != kThousands.npos) {
    factor = std::pow(1000, static_cast<double>(power) + 1);
    decimal_allowed = true;
    digits.remove_suffix(1);
  } else if (const size_t binary = kBinary.find(text.back()); binary != kBinary.npos) {
    factor = std::pow(1024, static_cast<double>(binary) + 1);
    digits.remove_suffix(1);
  }
  double number = 0;
  const auto [end, error] =
      std::from_chars(digits.data(), digits.data() + digits.size(), number, std::chars_format::fixed);
  const bool whole = digits.find('.') == digits.npos;
  if (digits.empty() || error != std::errc() || end != digits.data() + digits.size() || (!whole && !decimal_allowed) ||
      !(std::abs(number * factor) < 9e18)) {
    return bad();
  }
  return static_cast<int64_t>(std::llround(number * factor));
}

}  // namespace proa
