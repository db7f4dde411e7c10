#include "engine/token_rules.h"

#include <algorithm>
#include <limits>

namespace proa {
namespace {

constexpr float kNever = -std::numeric_limits<float>::infinity();

void sort_unique(std::vector<int32_t>& ids) {
  std::sort(ids.begin(), ids.end());
  ids.erase(std::unique(ids.begin(), ids.end()), ids.end());
}

}  // namespace

TokenRules::TokenRules(const SamplingParams& params, std::span<const int32_t> eos_token_ids)
    : bias_(params.logit_bias),
      allowed_(params.allowed_token_ids),
      min_tokens_(params.min_tokens),
      bad_words_(params.bad_words) {
  std::sort(bias_.begin(), bias_.end(), [](const TokenBias& a, const TokenBias& b) { return a.token_id < b.token_id; });
  sort_unique(allowed_);
  if (min_tokens_ > 0) {
    ends_ = params.stop_token_ids;
    if (!params.ignore_eos) ends_.insert(ends_.end(), eos_token_ids.begin(), eos_token_ids.end());
  }
  if (params.thinking_budget) {
    budget_ = *params.thinking_budget;
    thinking_ = true;
  }
}

float TokenRules::standing(int32_t token) const {
  if (!allowed_.empty() && !std::binary_search(allowed_.begin(), allowed_.end(), token)) return kNever;
  const auto found = std::lower_bound(bias_.begin(), bias_.end(), token,
                                      [](const TokenBias& bias, int32_t id) { return bias.token_id < id; });
  return found != bias_.end() && found->token_id == token ? found->bias : 0;
}

// A word of several tokens is banned by its last one, once the others stand there.
void TokenRules::ban(std::span<const int32_t> output) {
  banned_.clear();
  if (static_cast<int64_t>(output.size()) < min_tokens_) banned_ = ends_;
  for (const std::vector<int32_t>& word : bad_words_) {
    const size_t before = word.size() - 1;
    if (before <= output.size() &&
        std::equal(word.begin(), word.end() - 1, output.end() - static_cast<int64_t>(before))) {
      banned_.push_back(word.back());
    }
  }
  sort_unique(banned_);
}

void TokenRules::fill(std::span<const int32_t> output, std::span<float> row) {
  std::fill(row.begin(), row.end(), allowed_.empty() ? 0 : kNever);
  for (const int32_t id : allowed_) row[static_cast<size_t>(id)] = 0;
  for (const TokenBias& bias : bias_) row[static_cast<size_t>(bias.token_id)] += bias.bias;
  ban(output);
  for (const int32_t id : banned_) row[static_cast<size_t>(id)] = kNever;
  banned_before_ = banned_;
}

std::span<const TokenBias> TokenRules::update(std::span<const int32_t> output) {
  ban(output);
  changes_.clear();
  const auto is_in = [](const std::vector<int32_t>& ids, int32_t id) {
    return std::binary_search(ids.begin(), ids.end(), id);
  };
  for (const int32_t id : banned_) {
    if (!is_in(banned_before_, id)) changes_.push_back({id, kNever});
  }
  for (const int32_t id : banned_before_) {
    if (!is_in(banned_, id)) changes_.push_back({id, standing(id)});
  }
  banned_before_ = banned_;
  return changes_;
}

int32_t TokenRules::forced() const {
  if (!thinking_) return -1;
  const bool enough = thought_ >= budget_.tokens && (at_line_end_ || thought_ - budget_.tokens >= budget_.grace);
  return end_given_ > 0 || enough ? budget_.end_token_ids[end_given_] : -1;
}

void TokenRules::accept(int32_t token, std::string_view piece) {
  if (!thinking_) return;
  if (forced() == token) {
    thinking_ = ++end_given_ < budget_.end_token_ids.size();
    return;
  }
  ++thought_;
  at_line_end_ = piece.ends_with('\n');
  said_ += piece;
  size_t longest = 1;
  for (const std::string& closing : budget_.closing_texts) {
    if (said_.find(closing) != std::string::npos) thinking_ = false;
    longest = std::max(longest, closing.size());
  }
  said_.erase(0, said_.size() - std::min(said_.size(), longest - 1));
}

}  // namespace proa
