#include "engine/teacher_forcing.h"

#include <algorithm>
#include <string>

#include "engine/model_runner.h"

namespace proa {
namespace {

Error bad(const char* where, std::string expected, int64_t actual) {
  return {.doing = "compute logits of given tokens",
          .where = where,
          .expected = std::move(expected),
          .actual = std::to_string(actual),
          .hint = ""};
}

std::string range(int64_t end) { return "a value in [0, " + std::to_string(end) + ")"; }

// Steps that cover num_tokens.
std::vector<int> cut(int num_tokens, std::vector<int> chunks) {
  if (chunks.empty()) chunks = {num_tokens};
  std::vector<int> steps;
  for (int done = 0; done < num_tokens; done += steps.back()) {
    steps.push_back(std::min(chunks[std::min(steps.size(), chunks.size() - 1)], num_tokens - done));
  }
  return steps;
}

}  // namespace

Result<std::vector<float>> forced_logits(const Model& model, Backend& backend, std::span<const int32_t> token_ids,
                                         std::span<const int32_t> rows, const ForcingOptions& options) {
  const int num_tokens = static_cast<int>(token_ids.size());
  const int vocab_size = model.info().vocab_size;
  if (num_tokens == 0) return bad("token_ids", "at least one token", 0);
  if (options.block_size < 1) return bad("block_size", "at least 1", options.block_size);
  for (int32_t id : token_ids) {
    if (id < 0 || id >= vocab_size) return bad("token_ids", range(vocab_size), id);
  }
  for (int32_t row : rows) {
    if (row < 0 || row >= num_tokens) return bad("rows", range(num_tokens), row);
  }
  for (int chunk : options.chunks) {
    if (chunk < 1) return bad("chunks", "at least 1", chunk);
  }

  std::vector<int32_t> wanted(rows.begin(), rows.end());  // each once, ascending
  std::sort(wanted.begin(), wanted.end());
  wanted.erase(std::unique(wanted.begin(), wanted.end()), wanted.end());
  const std::vector<int> steps = cut(num_tokens, options.chunks);

  RunnerLimits limits;
  limits.max_num_batched_tokens = *std::max_element(steps.begin(), steps.end());
  limits.max_num_logit_rows = std::max(1, std::min(limits.max_num_batched_tokens, static_cast<int>(wanted.size())));
  limits.max_blocks_per_seq = limits.num_blocks = (num_tokens + options.block_size - 1) / options.block_size;
  limits.block_size = options.block_size;
  limits.kv_cache_dtype = options.kv_cache_dtype;
  limits.num_slots = 2;
  PROA_ASSIGN(auto runner, ModelRunner::create(model, backend, limits));

  // Neither the first slot nor blocks in order, so that a kernel which ignores its indices is found out.
  const int32_t state_slot = 1;
  std::vector<int32_t> blocks(static_cast<size_t>(limits.num_blocks));
  for (size_t i = 0; i < blocks.size(); ++i) blocks[i] = static_cast<int32_t>(blocks.size() - 1 - i);

  std::vector<float> out(rows.size() * static_cast<size_t>(vocab_size));
  size_t next = 0;  // in wanted
  int done = 0;
  for (int count : steps) {
    runner->begin();
    runner->add({.token_ids = token_ids.subspan(static_cast<size_t>(done), static_cast<size_t>(count)),
                 .num_computed = done,
                 .blocks = blocks,
                 .state_slot = state_slot,
                 .decode = count == 1 && options.decode_single_tokens});
    const size_t first = next;
    for (; next < wanted.size() && wanted[next] < done + count; ++next) {
      runner->want_logits(wanted[next] - done, nullptr);
    }
    PROA_TRY(runner->forward());
    PROA_ASSIGN(const float* logits, runner->logits());
    for (size_t i = 0; i < rows.size(); ++i) {
      const auto found = std::lower_bound(wanted.begin() + static_cast<ptrdiff_t>(first),
                                          wanted.begin() + static_cast<ptrdiff_t>(next), rows[i]);
      if (found == wanted.begin() + static_cast<ptrdiff_t>(next) || *found != rows[i]) continue;
      const size_t row = static_cast<size_t>(found - wanted.begin()) - first;
      std::copy_n(logits + row * static_cast<size_t>(vocab_size), vocab_size,
                  out.begin() + static_cast<ptrdiff_t>(i * static_cast<size_t>(vocab_size)));
    }
    done += count;
  }
  return out;
}

}  // namespace proa
