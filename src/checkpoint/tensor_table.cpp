#include "checkpoint/tensor_table.h"

#include <algorithm>
#include <set>

#include "checkpoint/checkpoint.h"
#include "checkpoint/differences.h"
#include "checkpoint/printable.h"
#include "quant/formats.h"

namespace proa {
namespace {

std::vector<int64_t> squeezed(const std::vector<int64_t>& shape) {
  std::vector<int64_t> sizes;
  std::copy_if(shape.begin(), shape.end(), std::back_inserter(sizes), [](int64_t size) { return size != 1; });
  return sizes;
}

std::string names(const std::vector<Format>& formats) {
  std::string text;
  for (Format format : formats) text += (text.empty() ? "" : " or ") + std::string(info(format).name);
  return text;
}

// What is wrong with an entry that has the right name; empty when it fits.
std::string difference(const TensorSpec& spec, const TensorEntry& entry) {
  if (squeezed(spec.shape) != squeezed(entry.shape)) {
    return "expected shape " + to_string(spec.shape) + ", found " + to_string(entry.shape);
  }
  if (!entry.format) {
    return "expected " + (spec.formats.empty() ? "a known format" : "format " + names(spec.formats)) + ", found type " +
           printable(entry.type);
  }
  if (!spec.formats.empty() &&
      std::find(spec.formats.begin(), spec.formats.end(), *entry.format) == spec.formats.end()) {
    return "expected format " + names(spec.formats) + ", found " + entry.type;
  }
  const int block = info(*entry.format).block_elements;
  if (!spec.shape.empty() && spec.shape.back() % block != 0) {
    return "expected rows of whole blocks of " + std::to_string(block) + ", found " + entry.type + " for shape " +
           to_string(spec.shape);
  }
  return "";
}

}  // namespace

// Linear backtracking: only the last star moves.
bool is_ignored(std::string_view pattern, std::string_view text) {
  size_t p = 0, t = 0;
  size_t star = pattern.npos, resume = 0;
  while (p < pattern.size()) {
    if (pattern[p] == '*') {
      star = p++;
      resume = t;
    } else if (t < text.size() && pattern[p] == text[t]) {
      ++p;
      ++t;
    } else if (star != pattern.npos && resume < text.size()) {
      p = star + 1;
      t = ++resume;
    } else {
      return false;
    }
  }
  return true;
}

Result<TensorMap> check_tensors(const std::map<std::string, TensorEntry, std::less<>>& entries, const std::string& path,
                                std::span<const TensorSpec> specs, std::span<const std::string> ignored) {
  TensorMap tensors;
  Differences differences;
  std::set<std::string_view> used;
  for (const TensorSpec& spec : specs) {
    auto found = entries.find(spec.name);
    for (size_t i = 0; found == entries.end() && i < spec.aliases.size(); ++i) found = entries.find(spec.aliases[i]);
    if (found == entries.end()) {
      if (!spec.optional) differences.add(printable(spec.name) + ": missing, shape " + to_string(spec.shape));
      continue;
    }
    const TensorEntry& entry = found->second;
    used.insert(found->first);
    if (std::string text = difference(spec, entry); !text.empty()) {
      differences.add(printable(entry.name) + ": " + text);
      continue;
    }
    TensorEntry reshaped = entry;
    reshaped.shape = spec.shape;
    auto tensor = to_tensor(reshaped);
    if (!tensor.ok()) {
      differences.add(printable(entry.name) + ": expected " + tensor.error().expected + ", found " +
                      tensor.error().actual);
      continue;
    }
    tensors.insert_or_assign(spec.name, *tensor);
  }
  for (const auto& [name, entry] : entries) {
    if (used.contains(name)) continue;
    const bool known = std::any_of(ignored.begin(), ignored.end(),
                                   [&](const std::string& pattern) { return is_ignored(pattern, name); });
    if (!known)
      differences.add(printable(name) + ": not expected, " + printable(entry.type) + " " + to_string(entry.shape));
  }
  if (!differences.any()) return tensors;

  return Error{.doing = "compare tensors",
               .where = path,
               .expected = "the " + std::to_string(specs.size()) + " tensors of the model",
               .actual = differences.text()};
}

Result<TensorMap> check_tensors(const Checkpoint& checkpoint, std::span<const TensorSpec> specs,
                                std::span<const std::string> ignored) {
  return check_tensors(checkpoint.tensors(), checkpoint.path(), specs, ignored);
}

}  // namespace proa
