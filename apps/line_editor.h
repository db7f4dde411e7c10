// Lines from a person: editing and history on a terminal (libedit), plain reading otherwise.
#pragma once

#include <optional>
#include <string>

namespace proa {

class LineEditor {
 public:
  // `history_file` is read now and rewritten when the editor goes, readable by its owner only; empty: none is kept.
  explicit LineEditor(std::string history_file);
  ~LineEditor();
  LineEditor(const LineEditor&) = delete;
  LineEditor& operator=(const LineEditor&) = delete;

  enum class End { line, interrupted, end_of_input };
  // One line without its newline. Ctrl-C (see InterruptFlag) gives `interrupted` and throws away what was typed; Ctrl-D
  // `end_of_input`.
  End read(const std::string& prompt, std::string& line);
  // Puts an entry (possibly of several lines) into the history.
  void remember(const std::string& entry);

 private:
  struct Edit;
  Edit* edit_;
};

}  // namespace proa
