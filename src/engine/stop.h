// Finds stop strings in text that comes in pieces, and holds back what could still become one.
//
// The result does not depend on how the text is cut: the stop string that is complete first ends the text; of several
// that are complete with the same byte, the longest. Each string is followed byte by byte with the automaton of Knuth,
// Morris and Pratt, so a byte costs constant time per string, whatever the strings are.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace proa {

class StopMatcher {
 public:
  // Strings must not be empty.
  explicit StopMatcher(const std::vector<std::string>& stop = {}, bool include_stop_str = false);

  // Takes the next piece of text and returns what is certain: no stop string can begin in it. With may_stop off a stop
  // string that would be complete in this piece does not count (min_tokens). Not to be called once stopped().
  std::string push(std::string_view text, bool may_stop = true);
  // What was held back, at the end of a text that did not stop.
  std::string finish();

  // The string that ended the text; what followed it in the same piece is dropped.
  std::optional<std::string> stopped() const;

 private:
  struct Automaton {
    std::string text;
    std::vector<uint32_t> border;  // [text.size()] length of the longest proper prefix of text[0..i] that is its suffix
    size_t matched = 0;            // length of the longest prefix of text that the input ends with

    bool step(char byte);  // true: text is complete
  };

  std::vector<Automaton> stops_;
  bool include_stop_str_;
  std::string held_;     // as long as the longest begun stop string
  int stopped_by_ = -1;  // index in stops_
};

}  // namespace proa
