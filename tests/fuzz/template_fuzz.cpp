// libFuzzer target: any bytes as a chat template, rendered for a fixed conversation within small limits. What was
// rendered from user text must be marked as such, and all of it must be within the limits.
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <string>
#include <string_view>

#include "chat/jinja.h"

namespace {

using Json = nlohmann::ordered_json;

constexpr size_t kMaxBytes = 2048;
constexpr std::string_view kSecret = "\x02q\x03";  // in user text only; no template spells it by itself

const Json& conversation() {
  static const Json context = Json::parse(R"({
    "messages": [
      {"role": "system", "content": "be brief"},
      {"role": "user", "content": "hi \u0002q\u0003 <b> \u00e9\u4e16"},
      {"role": "assistant", "content": "", "reasoning_content": "well", "tool_calls": [
        {"id": "c1", "type": "function", "function": {"name": "add", "arguments": {"x": 1, "y": [2.5, null, true]}}}]},
      {"role": "tool", "tool_call_id": "c1", "content": "3.5"},
      {"role": "user", "content": [{"type": "text", "text": "and now?"}]}],
    "tools": [{"type": "function", "function": {"name": "add", "description": "adds", "parameters":
      {"type": "object", "properties": {"x": {"type": "number"}, "y": {"type": "array"}}, "required": ["x"]}}}],
    "documents": null, "add_generation_prompt": true, "enable_thinking": false,
    "bos_token": "<s>", "eos_token": "</s>"})");
  return context;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  if (size > kMaxBytes) return 0;
  const std::string_view source(reinterpret_cast<const char*>(data), size);
  const auto parsed = proa::jinja::Template::parse(source);
  if (!parsed.ok()) {
    if (parsed.error().message().empty()) std::abort();
    return 0;
  }
  proa::jinja::RenderOptions limits;
  limits.max_steps = 4000;
  limits.max_bytes = 1 << 17;
  limits.now.tm_year = 126;
  limits.now.tm_mday = 1;
  const auto segments = parsed->render_segments(conversation(), limits);
  if (!segments.ok()) {
    if (segments.error().message().empty()) std::abort();
    return 0;
  }
  size_t total = 0;
  for (const auto& segment : *segments) {
    total += segment.text.size();
    if (!segment.from_input && source.find('\x02') == source.npos && source.find('\\') == source.npos &&
        segment.text.find(kSecret) != std::string::npos) {
      std::abort();  // user text passed for the template's own
    }
  }
  if (total > limits.max_bytes) std::abort();
  return 0;
}
