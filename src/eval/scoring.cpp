#include "eval/scoring.h"

#include <algorithm>
#include <chrono>
#include <cmath>

namespace proa {
namespace {

using Clock = std::chrono::steady_clock;

double since(Clock::time_point start) { return std::chrono::duration<double>(Clock::now() - start).count(); }

// out [n] = log softmax of logits.
void log_softmax(const float* logits, int n, float* out) {
  float most = logits[0];
  for (int i = 1; i < n; ++i) most = std::max(most, logits[i]);
  double sum = 0;
  for (int i = 0; i < n; ++i) sum += std::exp(static_cast<double>(logits[i] - most));
  const double shift = most + std::log(sum);
  for (int i = 0; i < n; ++i) out[i] = static_cast<float>(logits[i] - shift);
}

// Continuations by group of their questions, and which question each belongs to.
struct Grouped {
  std::vector<std::vector<Continuation>> groups;
  std::vector<std::vector<size_t>> question;
  void add(size_t group, size_t question_index, Continuation what) {
    if (groups.empty() || last_ != group) {
      groups.emplace_back();
      question.emplace_back();
      last_ = group;
    }
    groups.back().push_back(std::move(what));
    question.back().push_back(question_index);
  }

 private:
  size_t last_ = 0;
};

}  // namespace

Result<AnswerPass> answer_questions(const Model& model, Backend& backend, const Tokenizer& tokenizer,
                                    std::span<const Question> questions, std::span<const std::vector<int32_t>> prompts,
                                    const ScoringOptions& options) {
  AnswerPass pass;
  pass.answers.resize(questions.size());
  const auto start = Clock::now();
  size_t done = 0;
  const auto keep_going = [&]() -> Result<void> { return options.progress(done, questions.size()); };

  Grouped drawn, chosen;
  std::vector<std::vector<double>> choice_sum(questions.size());
  for (size_t i = 0; i < questions.size(); ++i) {
    const Question& question = questions[i];
    if (question.match != Match::choice) {
      drawn.add(question.group, i, {.prompt = prompts[i], .max_tokens = options.max_tokens});
      continue;
    }
    for (const std::string& choice : question.choices) {
      Continuation what{.prompt = prompts[i], .forced = tokenizer.encode(choice)};
      choice_sum[i].push_back(0);
      chosen.add(question.group, i, std::move(what));
    }
  }
  if (!drawn.groups.empty()) {
    ContinuationResult result{.keep_going = keep_going};
    result.drawn = [&](size_t group, size_t index, std::span<const int32_t> tokens, bool ended) {
      const size_t i = drawn.question[group][index];
      AnsweredQuestion& answer = pass.answers[i];
      answer.text = tokenizer.decode(tokens, true);
      answer.cut = !ended;
      answer.right = is_right(questions[i], answer.text);
      ++done;
    };
    PROA_ASSIGN(pass.stats, run_continuations(model, backend, options.run, drawn.groups, result));
  }
  if (!chosen.groups.empty()) {
    const int vocab = model.info().vocab_size;
    std::vector<float> log_probs(static_cast<size_t>(vocab));
    // Which choice a continuation is: they stand in order.
    std::vector<std::vector<size_t>> choice;
    for (const auto& group : chosen.question) {
      choice.emplace_back();
      for (size_t c = 0; c < group.size(); ++c) {
        choice.back().push_back(c > 0 && group[c] == group[c - 1] ? choice.back().back() + 1 : 0);
      }
    }
    ContinuationResult result{.keep_going = keep_going};
    result.scored = [&](size_t group, size_t index, size_t position, const float* logits) {
      const size_t i = chosen.question[group][index];
      const auto& forced = chosen.groups[group][index].forced;
      log_softmax(logits, vocab, log_probs.data());
      choice_sum[i][choice[group][index]] += log_probs[static_cast<size_t>(forced[position])];
      if (position + 1 == forced.size() && choice[group][index] + 1 == choice_sum[i].size()) ++done;
    };
    PROA_ASSIGN(const auto stats, run_continuations(model, backend, options.run, chosen.groups, result));
    pass.stats.prompt_tokens += stats.prompt_tokens;
    pass.stats.computed_tokens += stats.computed_tokens;
    pass.stats.num_steps += stats.num_steps;
    for (size_t i = 0; i < questions.size(); ++i) {
      if (choice_sum[i].empty()) continue;
      const auto best = std::max_element(choice_sum[i].begin(), choice_sum[i].end()) - choice_sum[i].begin();
      pass.answers[i].text = questions[i].choices[static_cast<size_t>(best)];
      pass.answers[i].right = best == questions[i].right_choice;
    }
  }
  pass.seconds = since(start);
  return pass;
}

int64_t ForcedText::positions() const {
  int64_t sum = 0;
  for (const auto& group : groups) {
    for (const Continuation& each : group) sum += static_cast<int64_t>(each.forced.size());
  }
  return sum;
}

ForcedText forced_answers(const Tokenizer& tokenizer, std::span<const Question> questions,
                          std::span<const std::vector<int32_t>> prompts, int32_t end_token, double share) {
  Grouped grouped;
  for (size_t i = 0; i < questions.size(); ++i) {
    if (!in_sample(questions[i].group, share)) continue;
    Continuation what{.prompt = prompts[i], .forced = tokenizer.encode(questions[i].answers.front())};
    if (end_token >= 0) what.forced.push_back(end_token);
    if (!what.forced.empty()) grouped.add(questions[i].group, i, std::move(what));
  }
  return {std::move(grouped.groups)};
}

ForcedText forced_text(const Tokenizer& tokenizer, std::string_view text, size_t piece_tokens) {
  const std::vector<int32_t> ids = tokenizer.encode(text);
  const bool bos = tokenizer.adds_bos() && tokenizer.bos_id();
  ForcedText out;
  for (size_t at = 0; at + 1 < ids.size();) {
    Continuation what;
    if (bos) {
      what.prompt = {*tokenizer.bos_id()};
    } else {
      what.prompt = {ids[at++]};
    }
    const size_t end = std::min(ids.size(), at + piece_tokens - 1);
    what.forced.assign(ids.begin() + static_cast<ptrdiff_t>(at), ids.begin() + static_cast<ptrdiff_t>(end));
    at = end;
    if (!what.forced.empty()) out.groups.push_back({std::move(what)});
  }
  return out;
}

Result<BaseProbabilities> BaseProbabilities::measure(const Model& model, Backend& backend, ForcedText text,
                                                     const ScoringOptions& options) {
  BaseProbabilities out;
  out.text_ = std::move(text);
  out.vocab_size_ = model.info().vocab_size;
  size_t positions = 0;
  for (const auto& group : out.text_.groups) {
    out.offsets_.emplace_back();
    for (const Continuation& each : group) {
      out.offsets_.back().push_back(positions);
      positions += each.forced.size();
    }
  }
  const auto vocab = static_cast<size_t>(out.vocab_size_);
  out.log_probs_.resize(positions * vocab);
  const auto start = Clock::now();
  size_t done = 0;
  double nll = 0;
  ContinuationResult result{.keep_going = [&] { return options.progress(done, positions); }};
  result.scored = [&](size_t group, size_t index, size_t position, const float* logits) {
    float* row = out.log_probs_.data() + (out.offsets_[group][index] + position) * vocab;
    log_softmax(logits, out.vocab_size_, row);
    nll -= row[static_cast<size_t>(out.text_.groups[group][index].forced[position])];
    ++done;
  };
  PROA_ASSIGN(const auto stats, run_continuations(model, backend, options.run, out.text_.groups, result));
  (void)stats;
  out.base_ = {.positions = static_cast<int64_t>(positions),
               .mean_nll = positions ? nll / static_cast<double>(positions) : 0,
               .seconds = since(start)};
  return out;
}

Result<Likelihood> BaseProbabilities::compare(const Model& model, Backend& backend,
                                              const ScoringOptions& options) const {
  if (model.info().vocab_size != vocab_size_) {
    return Error{"compare probabilities", "vocabulary", std::to_string(vocab_size_) + " tokens, as the first model has",
                 std::to_string(model.info().vocab_size), ""};
  }
  const auto vocab = static_cast<size_t>(vocab_size_);
  const auto start = Clock::now();
  Likelihood out{.positions = base_.positions};
  size_t done = 0;
  double nll = 0, kl_sum = 0, kl_squares = 0;
  int64_t same = 0;
  std::vector<float> mine(vocab);
  ContinuationResult result{.keep_going = [&] { return options.progress(done, static_cast<size_t>(base_.positions)); }};
  result.scored = [&](size_t group, size_t index, size_t position, const float* logits) {
    const float* base = log_probs_.data() + (offsets_[group][index] + position) * vocab;
    log_softmax(logits, vocab_size_, mine.data());
    double kl = 0;
    for (size_t i = 0; i < vocab; ++i) kl += std::exp(static_cast<double>(base[i])) * (double{base[i]} - mine[i]);
    kl = std::max(kl, 0.0);
    kl_sum += kl;
    kl_squares += kl * kl;
    out.max_kl = std::max(out.max_kl, kl);
    same += std::max_element(base, base + vocab) - base == std::max_element(mine.begin(), mine.end()) - mine.begin();
    nll -= mine[static_cast<size_t>(text_.groups[group][index].forced[position])];
    ++done;
  };
  PROA_ASSIGN(const auto stats, run_continuations(model, backend, options.run, text_.groups, result));
  (void)stats;
  if (const double n = static_cast<double>(base_.positions); n > 0) {
    out.mean_nll = nll / n;
    out.mean_kl = kl_sum / n;
    out.kl_error = std::sqrt(std::max(0.0, kl_squares / n - out.mean_kl * out.mean_kl) / n);
    out.top1 = static_cast<double>(same) / n;
  }
  out.seconds = since(start);
  return out;
}

}  // namespace proa
