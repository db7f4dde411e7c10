// What a model makes of questions and texts: its answers, its choices, and how its probabilities compare with those of
// another model on the same tokens.
#pragma once

#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "core/result.h"
#include "eval/continuations.h"
#include "eval/questions.h"
#include "models/model.h"
#include "tokenizer/tokenizer.h"

namespace proa {

struct ScoringOptions {
  ContinuationOptions run;
  int max_tokens = 256;  // of an answer
  // Called as questions are done; an error ends the run.
  std::function<Result<void>(size_t done, size_t of)> progress;
};

struct AnsweredQuestion {
  std::string text;  // what the model said; of choices the one it took
  bool right = false;
  bool cut = false;  // no end within max_tokens
};

struct AnswerPass {
  std::vector<AnsweredQuestion> answers;  // in the order of the questions
  ContinuationStats stats;
  double seconds = 0;
};

// `prompts` are those of `questions`, in their order. Questions of one group share what their prompts begin with.
Result<AnswerPass> answer_questions(const Model& model, Backend& backend, const Tokenizer& tokenizer,
                                    std::span<const Question> questions, std::span<const std::vector<int32_t>> prompts,
                                    const ScoringOptions& options);

// Tokens whose probabilities are compared: prompts with what follows, by group.
struct ForcedText {
  std::vector<std::vector<Continuation>> groups;
  int64_t positions() const;
};

// The right answers after their prompts, with the end token; of a share of the groups.
ForcedText forced_answers(const Tokenizer& tokenizer, std::span<const Question> questions,
                          std::span<const std::vector<int32_t>> prompts, int32_t end_token, double share);
// A text in pieces of so many tokens, each begun anew (with BOS where the tokenizer wants one).
ForcedText forced_text(const Tokenizer& tokenizer, std::string_view text, size_t piece_tokens);

// Of one model over a ForcedText; the comparison is with the base.
struct Likelihood {
  int64_t positions = 0;
  double mean_nll = 0;  // nats per token; exp() of it is the perplexity
  double mean_kl = 0;   // nats, KL(base || model)
  double max_kl = 0;
  double kl_error = 0;  // standard error of mean_kl
  double top1 = 1;      // how often the likeliest token is the base's
  double seconds = 0;
};

// Log probabilities of the base at every position, in memory: positions · vocab_size · 4 bytes.
class BaseProbabilities {
 public:
  // The first model: only its likelihood.
  static Result<BaseProbabilities> measure(const Model& model, Backend& backend, ForcedText text,
                                           const ScoringOptions& options);
  const Likelihood& base() const { return base_; }
  // Another one with the same vocabulary.
  Result<Likelihood> compare(const Model& model, Backend& backend, const ScoringOptions& options) const;

 private:
  ForcedText text_;
  std::vector<std::vector<size_t>> offsets_;  // of a continuation's first position
  int vocab_size_ = 0;
  std::vector<float> log_probs_;
  Likelihood base_;
};

}  // namespace proa
