#include "models/family.h"

#include <algorithm>
#include <cctype>

namespace proa {
namespace {

std::string lower(std::string_view text) {
  std::string result(text);
  for (char& c : result) c = static_cast<char>(std::tolower(static_cast<unsigned char>(c)));
  return result;
}

}  // namespace

Result<FamilyMember> find_known_model(std::string_view name) {
  std::string wanted = lower(name);
  if (wanted.starts_with("nvidia/")) wanted.erase(0, 7);
  std::string precision;
  for (const std::string_view suffix : {"-bf16", "-fp8", "-nvfp4"}) {
    if (!wanted.ends_with(suffix)) continue;
    wanted.resize(wanted.size() - suffix.size());
    precision = suffix.substr(1);
    break;
  }
  const std::span<const KnownModel> models = known_models();
  const auto found =
      std::find_if(models.begin(), models.end(), [&](const KnownModel& model) { return lower(model.name) == wanted; });
  if (found != models.end()) return FamilyMember{&*found, precision};

  std::string known;
  for (const KnownModel& model : models) known += (known.empty() ? "" : ", ") + std::string(model.name);
  return Error{"find model", std::string(name.substr(0, 200)), "one of " + known, "", ""};
}

}  // namespace proa
