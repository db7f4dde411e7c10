#include "registry/model_name.h"

#include <algorithm>
#include <cctype>

#include "checkpoint/gguf.h"
#include "checkpoint/printable.h"

namespace proa {
namespace {

constexpr size_t kMaxNamePart = 96;  // as the hub has it
constexpr size_t kMaxRevision = 200;
constexpr size_t kMaxPath = 512;
constexpr size_t kMaxListed = 40;

bool is_word(char c) { return std::isalnum(static_cast<unsigned char>(c)) || c == '_'; }

std::string upper(std::string_view text) {
  std::string out(text);
  for (char& c : out) c = static_cast<char>(std::toupper(static_cast<unsigned char>(c)));
  return out;
}

// "org" or "name": the hub's own rule.
bool is_name_part(std::string_view part) {
  if (part.empty() || part.size() > kMaxNamePart || !is_word(part.front()) || !is_word(part.back())) return false;
  if (part.find("--") != part.npos || part.find("..") != part.npos) return false;
  return std::all_of(part.begin(), part.end(), [](char c) { return is_word(c) || c == '-' || c == '.'; });
}

bool looks_like_quantization(std::string_view text) {
  std::string tag = upper(text);
  if (tag.starts_with("UD-")) tag.erase(0, 3);
  for (const std::string_view prefix : {"Q", "IQ", "TQ", "F", "FP", "BF", "MXFP", "NVFP"}) {
    if (tag.size() > prefix.size() && tag.starts_with(prefix) &&
        std::isdigit(static_cast<unsigned char>(tag[prefix.size()]))) {
      return tag.size() <= 32 && std::all_of(tag.begin(), tag.end(), is_word);
    }
  }
  return false;
}

Error bad_name(std::string_view text, std::string expected) {
  return {.doing = "find model",
          .where = printable(text),
          .expected = std::move(expected),
          .actual = "another name",
          .hint = "there is no file or folder of that name either"};
}

}  // namespace

bool is_safe_relative_path(std::string_view path) {
  if (path.empty() || path.size() > kMaxPath) return false;
  for (size_t begin = 0; begin <= path.size();) {
    const size_t end = std::min(path.find('/', begin), path.size());
    const std::string_view part = path.substr(begin, end - begin);
    if (part.empty() || part == "." || part == ".." || part.size() > 255) return false;
    begin = end + 1;
  }
  for (size_t i = 0; i < path.size(); ++i) {
    const auto c = static_cast<unsigned char>(path[i]);
    const auto next = static_cast<unsigned char>(i + 1 < path.size() ? path[i + 1] : 0);
    if (c < 0x20 || c == 0x7f || c == '\\' || (c == 0xc2 && next < 0xa0)) return false;  // U+0080 to U+009F too
  }
  return true;
}

bool is_safe_revision(std::string_view revision) {
  return revision.size() <= kMaxRevision && is_safe_relative_path(revision) && revision.front() != '.' &&
         revision.find("/.") == revision.npos && std::all_of(revision.begin(), revision.end(), [](char c) {
           return is_word(c) || c == '-' || c == '.' || c == '/';
         });
}

Result<ModelName> parse_model_name(std::string_view text) {
  const size_t slash = text.find('/');
  if (slash == text.npos || !is_name_part(text.substr(0, slash))) {
    return bad_name(text, "a folder, a GGUF file, or org/name on a hub");
  }
  ModelName name;
  const size_t end = std::min(text.find_first_of("/:@", slash + 1), text.size());
  const std::string_view rest = text.substr(end);
  if (!is_name_part(text.substr(slash + 1, end - slash - 1))) {
    return bad_name(text, "letters, digits and ._- in org/name");
  }
  name.id = text.substr(0, end);
  if (rest.starts_with('/')) {
    name.file = rest.substr(1);
    if (const size_t at = name.file.find('@'); at != name.file.npos) {
      name.revision = name.file.substr(at + 1);
      name.file.resize(at);
      if (!is_safe_revision(name.revision)) return bad_name(text, "a branch, tag or commit after @");
    }
    if (!is_safe_relative_path(name.file) || !name.file.ends_with(".gguf")) {
      return bad_name(text, "org/name or org/name/file.gguf");
    }
  } else if (!rest.empty()) {
    const std::string_view word = rest.substr(1);
    if (rest[0] == ':' && looks_like_quantization(word)) {
      name.tag = word;
    } else if (is_safe_revision(word)) {
      name.revision = word;
    } else {
      return bad_name(text, "a branch, tag or commit after " + std::string(1, rest[0]));
    }
  }
  return name;
}

std::vector<std::string> gguf_models(const std::vector<std::string>& files) {
  std::vector<std::string> models;
  for (const std::string& file : files) {
    const std::string base = upper(file.substr(file.rfind('/') + 1));
    if (!base.ends_with(".GGUF") || base.find("MMPROJ") != base.npos) continue;
    const auto part = parse_gguf_part_name(file);
    if (!part || part->number == 1) models.push_back(file);
  }
  std::sort(models.begin(), models.end());
  return models;
}

bool has_quantization_tag(std::string_view file, std::string_view tag) {
  const std::string text = upper(file), wanted = upper(tag);
  for (size_t at = text.find(wanted); at != text.npos; at = text.find(wanted, at + 1)) {
    const size_t end = at + wanted.size();
    if ((at == 0 || !is_word(text[at - 1])) && (end == text.size() || !is_word(text[end]))) return true;
  }
  return false;
}

Result<std::string> choose_gguf(const std::vector<std::string>& models, const ModelName& name) {
  std::vector<std::string> chosen;
  for (const std::string& model : models) {
    if (!name.file.empty() ? model == name.file : name.tag.empty() || has_quantization_tag(model, name.tag)) {
      chosen.push_back(model);
    }
  }
  if (chosen.size() == 1) return chosen[0];
  const std::vector<std::string>& listed = chosen.empty() ? models : chosen;
  std::string list;
  for (size_t i = 0; i < std::min(listed.size(), kMaxListed); ++i) list += (i ? ", " : "") + printable(listed[i]);
  if (listed.size() > kMaxListed) list += " and " + std::to_string(listed.size() - kMaxListed) + " more";
  return Error{.doing = "choose GGUF file",
               .where = name.id + (name.tag.empty() ? "" : ":" + name.tag),
               .expected = name.file.empty() ? "one file" : printable(name.file),
               .actual = list.empty() ? "no GGUF file" : list,
               .hint = list.empty() ? "" : "add /FILE to the name, or :Q4_0 where one file is of that quantization"};
}

}  // namespace proa
