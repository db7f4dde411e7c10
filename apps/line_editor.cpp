#include "apps/line_editor.h"

#include <histedit.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cstdio>
#include <filesystem>

#include "apps/interrupt.h"

namespace proa {
namespace {

char* prompt_text(EditLine* editor) {
  void* prompt = nullptr;
  el_get(editor, EL_CLIENTDATA, &prompt);
  return const_cast<char*>(static_cast<const std::string*>(prompt)->c_str());
}

}  // namespace

struct LineEditor::Edit {
  EditLine* editor = nullptr;  // null: standard input is not a terminal
  History* history = nullptr;
  HistEvent event = {};
  std::string file;
  std::string prompt;
};

LineEditor::LineEditor(std::string history_file) : edit_(new Edit) {
  if (!isatty(STDIN_FILENO)) return;
  edit_->file = std::move(history_file);
  edit_->history = history_init();
  history(edit_->history, &edit_->event, H_SETSIZE, 1000);
  history(edit_->history, &edit_->event, H_SETUNIQUE, 1);
  if (!edit_->file.empty()) history(edit_->history, &edit_->event, H_LOAD, edit_->file.c_str());
  edit_->editor = el_init("proa", stdin, stdout, stderr);
  el_set(edit_->editor, EL_CLIENTDATA, &edit_->prompt);
  el_set(edit_->editor, EL_PROMPT, &prompt_text);
  el_set(edit_->editor, EL_EDITOR, "emacs");
  el_set(edit_->editor, EL_HIST, history, edit_->history);
  el_set(edit_->editor, EL_BIND, "^R", "em-inc-search-prev", nullptr);
  el_source(edit_->editor, nullptr);  // the user's ~/.editrc
}

LineEditor::~LineEditor() {
  if (edit_->editor) {
    if (!edit_->file.empty()) {
      std::error_code ignored;
      std::filesystem::create_directories(std::filesystem::path(edit_->file).parent_path(), ignored);
      history(edit_->history, &edit_->event, H_SAVE, edit_->file.c_str());
      chmod(edit_->file.c_str(), S_IRUSR | S_IWUSR);
    }
    el_end(edit_->editor);
    history_end(edit_->history);
  }
  delete edit_;
}

LineEditor::End LineEditor::read(const std::string& prompt, std::string& line) {
  line.clear();
  InterruptFlag::clear();
  if (edit_->editor) {
    edit_->prompt = prompt;
    int length = 0;
    const char* text = el_gets(edit_->editor, &length);
    if (InterruptFlag::interrupted()) {
      InterruptFlag::clear();
      el_reset(edit_->editor);
      std::fputs("\n", stdout);
      return End::interrupted;
    }
    if (!text || length <= 0) return End::end_of_input;
    line.assign(text, static_cast<size_t>(length));
  } else {
    for (int c; (c = std::getchar()) != EOF;) {
      line.push_back(static_cast<char>(c));
      if (c == '\n') break;
    }
    if (line.empty()) return End::end_of_input;
  }
  while (!line.empty() && (line.back() == '\n' || line.back() == '\r')) line.pop_back();
  return End::line;
}

void LineEditor::remember(const std::string& entry) {
  if (edit_->editor && !entry.empty()) history(edit_->history, &edit_->event, H_ENTER, entry.c_str());
}

}  // namespace proa
