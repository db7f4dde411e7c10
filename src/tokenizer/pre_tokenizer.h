// Cuts text into the words that are merged on their own, with the regular expressions the model was trained with.
#pragma once

#include <functional>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "core/result.h"
#include "tokenizer/vocabulary.h"

namespace proa {

class PreTokenizer {
 public:
  static constexpr size_t kMaxSteps = 16;
  static constexpr size_t kMaxExpressionBytes = 1 << 16;

  // Errors name the expression and where in it the trouble is.
  static Result<PreTokenizer> create(std::span<const PreTokenizerStep> steps);

  // Working memory of cut(), for one thread and one encoding; belongs to the PreTokenizer that made it.
  class Scratch {
   public:
    Scratch(Scratch&&) noexcept;
    ~Scratch();

   private:
    friend class PreTokenizer;
    Scratch();
    struct State;
    std::unique_ptr<State> state_;
  };
  Scratch make_scratch(size_t text_size) const;  // bytes of all texts it will cut: what its limits grow with

  // Calls `word` for each word of `text` (valid UTF-8) in order; words are not empty and live until the call returns.
  // An expression that exceeds its limits of steps or time leaves the rest of the text as one word. `at_start`: nothing
  // came before `text`.
  void cut(std::string_view text, bool at_start, Scratch& scratch,
           const std::function<void(std::string_view)>& word) const;

 private:
  struct Step;
  void cut_from(size_t step, std::string_view text, bool at_start, Scratch& scratch,
                const std::function<void(std::string_view)>& word) const;

  std::vector<std::shared_ptr<const Step>> steps_;
};

}  // namespace proa
