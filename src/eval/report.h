// The result of an evaluation: a row per model and kind of cache, the first of which is what the others are compared
// with. As a table, as JSON, as a plot.
#pragma once

#include <cstdint>
#include <map>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

#include "core/result.h"
#include "eval/scoring.h"
#include "eval/statistics.h"

namespace proa {

struct EvalCell {
  int64_t count = 0, right = 0;
};

struct EvalRow {
  std::string model;    // as it was named
  std::string weights;  // "BF16", "NVFP4 + BF16", as the file holds most bytes
  int64_t weight_bytes = 0;
  std::string kv_cache_dtype, ssm_cache_dtype;  // "bfloat16", "fp8"; "float32"
  std::string activation_dtype;                 // "fp8"; empty: not rounded
  std::string arithmetic;                       // Backend::description()

  std::vector<bool> right;                                        // by question
  std::map<std::string, EvalCell> by_kind, by_language, by_cell;  // by_cell: "count/en"
  int64_t cut = 0;                                                // answers without an end
  double seconds = 0;                                             // of the answers
  int64_t prompt_tokens = 0, computed_tokens = 0, drawn_tokens = 0;
  std::optional<Likelihood> answers, text;  // probabilities over right answers, over a text

  std::string name() const;  // "buoy-fp8, KV fp8"
  int64_t num_right() const;
};

struct EvalReport {
  nlohmann::ordered_json machine;  // device, CPU, commit, command, date: as the caller knows them
  std::string questions;           // file, or what was made
  std::string text;                // file
  std::vector<EvalRow> rows;
  std::map<std::string, EvalCell> majority;  // by kind: the most frequent right answer, had it been given always
  bool interrupted = false;
};

// The most frequent right answer of each cell (kind and language), counted by kind; EvalCell::right is how often it is
// right.
std::map<std::string, EvalCell> majority_answers(std::span<const Question> questions);
void count_answers(std::span<const Question> questions, const AnswerPass& pass, EvalRow& row);
// How row `i` did beside row 0.
Paired paired(const EvalReport& report, size_t i);

std::string to_table(const EvalReport& report);
nlohmann::ordered_json to_json(const EvalReport& report);
// Shares of right answers with their intervals, a line per row; what probabilities say stands beside it.
std::string plot_svg(const EvalReport& report);

}  // namespace proa
