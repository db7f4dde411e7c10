#include "server/json_text.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdio>

#include "telemetry/metrics.h"
#include "tokenizer/utf8.h"

namespace proa {

void JsonText::separate() {
  if (comma_) text_ += ',';
  comma_ = true;
}

JsonText& JsonText::open(char bracket) {
  separate();
  text_ += bracket;
  comma_ = false;
  return *this;
}

JsonText& JsonText::close(char bracket) {
  text_ += bracket;
  comma_ = true;
  return *this;
}

JsonText& JsonText::key(std::string_view name) {
  string(name);
  text_ += ':';
  comma_ = false;
  return *this;
}

JsonText& JsonText::string(std::string_view text) {
  separate();
  std::string valid;
  if (std::any_of(text.begin(), text.end(), [](char c) { return static_cast<unsigned char>(c) >= 0x80; })) {
    append_replacing_invalid(valid, text);
    text = valid;
  }
  text_ += '"';
  for (const char c : text) {
    switch (c) {
      // clang-format off
      case '"': text_ += "\\\""; break;
      case '\\': text_ += "\\\\"; break;
      case '\b': text_ += "\\b"; break;
      case '\f': text_ += "\\f"; break;
      case '\n': text_ += "\\n"; break;
      case '\r': text_ += "\\r"; break;
      case '\t': text_ += "\\t"; break;
      // clang-format on
      default:
        if (static_cast<unsigned char>(c) < 0x20) {
          std::array<char, 8> escape{};
          std::snprintf(escape.data(), escape.size(), "\\u%04x", static_cast<unsigned>(c));
          text_ += escape.data();
        } else {
          text_ += c;
        }
    }
  }
  text_ += '"';
  return *this;
}

JsonText& JsonText::integer(int64_t value) {
  separate();
  text_ += std::to_string(value);
  return *this;
}

JsonText& JsonText::number(double value) {
  if (!std::isfinite(value)) return null();
  separate();
  text_ += python_float(value);
  return *this;
}

JsonText& JsonText::boolean(bool value) { return raw(value ? "true" : "false"); }
JsonText& JsonText::null() { return raw("null"); }

JsonText& JsonText::raw(std::string_view json) {
  separate();
  text_ += json;
  return *this;
}

}  // namespace proa
