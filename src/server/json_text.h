// Writes JSON in the order of the calls, compact, UTF-8 as it is: as vLLM's answers look, byte for byte.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

namespace proa {

class JsonText {
 public:
  JsonText& begin_object() { return open('{'); }
  JsonText& end_object() { return close('}'); }
  JsonText& begin_array() { return open('['); }
  JsonText& end_array() { return close(']'); }
  JsonText& key(std::string_view name);

  JsonText& string(std::string_view text);  // invalid UTF-8 becomes U+FFFD
  JsonText& integer(int64_t value);
  JsonText& number(double value);  // as Python writes it; not finite: null
  JsonText& boolean(bool value);
  JsonText& null();
  JsonText& raw(std::string_view json);  // a value that is JSON already

  // A member of the object.
  JsonText& member(std::string_view name, std::string_view text) { return key(name).string(text); }
  JsonText& member(std::string_view name, const char* text) { return key(name).string(text); }
  JsonText& member(std::string_view name, int64_t value) { return key(name).integer(value); }
  JsonText& member(std::string_view name, int value) { return key(name).integer(value); }
  JsonText& member(std::string_view name, bool value) { return key(name).boolean(value); }
  JsonText& null_member(std::string_view name) { return key(name).null(); }

  const std::string& text() const { return text_; }
  std::string take() { return std::move(text_); }

 private:
  void separate();
  JsonText& open(char bracket);
  JsonText& close(char bracket);

  std::string text_;
  bool comma_ = false;  // the next value needs one before it
};

}  // namespace proa
