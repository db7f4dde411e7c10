// Renders templates for tools/goldens/jinja_differential.py: one JSON object per line in, {"source": ..., "context":
// {}}, one per line out, {"output": ...} or {"error": ...}.
#include <iostream>
#include <nlohmann/json.hpp>
#include <string>

#include "chat/jinja.h"

int main() {
  using Json = nlohmann::ordered_json;
  proa::jinja::RenderOptions options;  // the same moment as in chat_templates.py
  options.now.tm_year = 126;
  options.now.tm_mon = 2;
  options.now.tm_mday = 5;
  options.now.tm_hour = 14;
  options.now.tm_min = 7;
  options.now.tm_sec = 9;
  options.now.tm_wday = 4;
  options.now.tm_yday = 63;
  for (std::string line; std::getline(std::cin, line);) {
    const Json input = Json::parse(line);
    const auto parsed = proa::jinja::Template::parse(input["source"].get<std::string>());
    Json answer;
    if (parsed.ok()) {
      const auto text = parsed->render(input["context"], options);
      answer = text.ok() ? Json{{"output", *text}} : Json{{"error", text.error().message()}};
    } else {
      answer = Json{{"error", parsed.error().message()}};
    }
    std::cout << answer.dump(-1, ' ', true, Json::error_handler_t::replace) << std::endl;
  }
}
