#include "engine/stop.h"

#include <algorithm>
#include <cassert>
#include <utility>

namespace proa {

StopMatcher::StopMatcher(const std::vector<std::string>& stop, bool include_stop_str)
    : include_stop_str_(include_stop_str) {
  for (const std::string& text : stop) {
    assert(!text.empty());
    Automaton automaton{text, std::vector<uint32_t>(text.size(), 0)};
    for (size_t i = 1, length = 0; i < text.size(); ++i) {
      while (length > 0 && text[i] != text[length]) length = automaton.border[length - 1];
      if (text[i] == text[length]) ++length;
      automaton.border[i] = static_cast<uint32_t>(length);
    }
    stops_.push_back(std::move(automaton));
  }
}

bool StopMatcher::Automaton::step(char byte) {
  if (matched == text.size()) matched = border[matched - 1];  // complete before, but it did not count
  while (matched > 0 && text[matched] != byte) matched = border[matched - 1];
  if (text[matched] == byte) ++matched;
  return matched == text.size();
}

std::string StopMatcher::push(std::string_view text, bool may_stop) {
  assert(stopped_by_ < 0);
  if (stops_.empty()) return std::string(text);
  for (char byte : text) {
    held_ += byte;
    for (size_t i = 0; i < stops_.size(); ++i) {
      if (!stops_[i].step(byte) || !may_stop) continue;
      if (stopped_by_ < 0 || stops_[i].text.size() > stops_[static_cast<size_t>(stopped_by_)].text.size()) {
        stopped_by_ = static_cast<int>(i);
      }
    }
    if (stopped_by_ >= 0) {
      if (!include_stop_str_) held_.resize(held_.size() - stops_[static_cast<size_t>(stopped_by_)].text.size());
      return std::exchange(held_, {});
    }
  }
  size_t open = 0;  // bytes that may begin a stop string
  for (const Automaton& stop : stops_) {
    open = std::max(open, stop.matched == stop.text.size() ? stop.border[stop.matched - 1] : stop.matched);
  }
  std::string certain = held_.substr(0, held_.size() - open);
  held_.erase(0, certain.size());
  return certain;
}

std::string StopMatcher::finish() { return std::exchange(held_, {}); }

std::optional<std::string> StopMatcher::stopped() const {
  if (stopped_by_ < 0) return std::nullopt;
  return stops_[static_cast<size_t>(stopped_by_)].text;
}

}  // namespace proa
