// For tests: a model whose logits are a hash of everything it must read back, so that a wrong block, slot, position or
// chunk border changes the tokens; a backend that is host memory; and what the model must answer, computed without any
// cache.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <condition_variable>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <new>
#include <span>
#include <string_view>
#include <vector>

#include "models/model.h"
#include "ops/backend.h"

namespace proa {

class HostBackend : public Backend {
 public:
  std::string_view name() const override { return "host"; }
  std::string_view description() const override { return "plain host memory"; }
  std::string_view on_reference() const override { return "all"; }

  // Dirty memory: nobody may count on zeros in a cache or an arena.
  Result<Buffer> allocate(size_t bytes) override {
    if (allocations_until_failure_-- == 0) {
      return Error{.doing = "allocate", .where = "host", .expected = "room", .actual = "none", .hint = ""};
    }
    auto* memory = static_cast<std::byte*>(::operator new(bytes, std::align_val_t{64}));
    std::fill_n(memory, bytes, std::byte{0xFF});  // NaN, and -1
    return Buffer{std::shared_ptr<std::byte>(memory, [](std::byte* p) { ::operator delete(p, std::align_val_t{64}); }),
                  bytes};
  }

  void fail_allocation(int index) { allocations_until_failure_ = index; }

 private:
  int allocations_until_failure_ = -1;
};

namespace fake {

constexpr uint64_t kPrime = 16777213;  // below 2^24: a float holds every residue
constexpr int kVocabSize = 40;

inline uint64_t fold(uint64_t hash, int64_t token, int64_t position, uint64_t salt) {
  return (hash * 1000003 + static_cast<uint64_t>(token) * 31 + static_cast<uint64_t>(position) * 17 + salt) % kPrime;
}

inline float logit(uint64_t hash, int token) {
  uint64_t x = (hash + 1) * 0x9E3779B97F4A7C15u + static_cast<uint64_t>(token) * 0xBF58476D1CE4E5B9u;
  x = (x ^ x >> 31) * 0x94D049BB133111EBu;
  return static_cast<float>((x >> 40) % 8192) / 1024;
}

// What the caches lead to: two recurrent layers, two attention layers, the convolution's last token.
struct Hashes {
  uint64_t state_a = 0, state_b = 0, kv_a = 0, kv_b = 0, previous = 0;
  uint64_t all() const {
    return fold(fold(fold(fold(state_a, 1, 1, state_b), 2, 2, kv_a), 3, 3, kv_b), 4, 4, previous);
  }
};

// [kVocabSize] logits after the last of `tokens`, from the tokens alone.
inline std::vector<float> expected_logits(std::span<const int32_t> tokens) {
  Hashes hashes;
  for (size_t i = 0; i < tokens.size(); ++i) {
    const auto position = static_cast<int64_t>(i);
    hashes.state_a = fold(hashes.state_a, tokens[i], position, 1);
    hashes.state_b = fold(hashes.state_b, tokens[i], position, 2);
    hashes.kv_a = fold(hashes.kv_a, tokens[i], position, 3);
    hashes.kv_b = fold(hashes.kv_b, 2 * tokens[i], position, 4);
    hashes.previous = i > 0 ? static_cast<uint64_t>(tokens[i - 1]) + 1 : 0;
  }
  std::vector<float> logits(kVocabSize);
  for (int v = 0; v < kVocabSize; ++v) logits[static_cast<size_t>(v)] = logit(hashes.all(), v);
  return logits;
}

inline std::vector<int32_t> expected_greedy(std::vector<int32_t> tokens, int count) {
  const size_t prompt = tokens.size();
  for (int i = 0; i < count; ++i) {
    const std::vector<float> logits = expected_logits(tokens);
    tokens.push_back(static_cast<int32_t>(std::max_element(logits.begin(), logits.end()) - logits.begin()));
  }
  return {tokens.begin() + static_cast<ptrdiff_t>(prompt), tokens.end()};
}

}  // namespace fake

class FakeModel : public Model {
 public:
  // The token at absolute position p is script[p] wherever that is set and not -1.
  explicit FakeModel(std::vector<int32_t> script = {}) : script_(std::move(script)) {
    info_.architecture = "FakeForCausalLM";
    info_.vocab_size = fake::kVocabSize;
    info_.max_position_embeddings = 512;
    const CacheSpec kv_a{.kind = CacheSpec::Kind::kv, .num_kv_heads = 1, .head_dim = 2};
    const CacheSpec kv_b{.kind = CacheSpec::Kind::kv, .num_kv_heads = 3, .head_dim = 1};
    const CacheSpec state{.kind = CacheSpec::Kind::state,
                          .conv_dim = 1,
                          .conv_kernel = 2,
                          .num_heads = 1,
                          .ssm_head_dim = 1,
                          .ssm_state_size = 2};
    cache_specs_ = {state, kv_a, CacheSpec{}, kv_b, state};
  }

  size_t workspace_bytes(int max_num_tokens) const override { return Arena::padded<float>(max_num_tokens); }

  void forward(Backend&, const Batch& batch, std::span<const LayerCache> caches, Arena& arena,
               float* logits) const override {
    if (on_forward) on_forward(batch);
    check(batch, caches);
    Arena::Scope scope(arena);
    auto* hashes = arena.take<float>(batch.num_tokens);  // all() of each token: below 2^24
    for (int s = 0; s < batch.num_seqs; ++s) sequence(batch, s, caches, hashes);
    for (int r = 0; r < batch.num_logit_rows; ++r) {
      const int token = batch.logit_rows[r];
      float* row = logits + int64_t{r} * fake::kVocabSize;
      for (int v = 0; v < fake::kVocabSize; ++v) row[v] = fake::logit(static_cast<uint64_t>(hashes[token]), v);
      const size_t next = static_cast<size_t>(batch.positions[token]) + 1;
      if (next < script_.size() && script_[next] >= 0) row[script_[next]] = 100;
    }
  }

  std::function<void(const Batch&)> on_forward;  // called on the engine's thread, before anything else

 private:
  static float& k_at(const LayerCache& cache, int heads, int head, int dim, int64_t slot, int d) {
    const int64_t block = slot / cache.kv.block_size, offset = slot % cache.kv.block_size;
    return reinterpret_cast<float*>(cache.kv.k)[((block * heads + head) * cache.kv.block_size + offset) * dim + d];
  }
  static float& v_at(const LayerCache& cache, int heads, int head, int dim, int64_t slot, int d) {
    const int64_t block = slot / cache.kv.block_size, offset = slot % cache.kv.block_size;
    return reinterpret_cast<float*>(cache.kv.v)[((block * heads + head) * cache.kv.block_size + offset) * dim + d];
  }

  void sequence(const Batch& batch, int s, std::span<const LayerCache> caches, float* hashes) const {
    const int in = batch.state_slot_in[s], out = batch.state_slot_out[s];
    fake::Hashes state;
    if (in >= 0) {
      state.state_a = static_cast<uint64_t>(caches[0].state.ssm[2 * in]);
      state.state_b = static_cast<uint64_t>(caches[4].state.ssm[2 * in + 1]);
      state.previous = static_cast<uint64_t>(caches[4].state.conv[in]);
    }
    const int32_t* table = batch.block_table + int64_t{s} * batch.block_table_stride;
    for (int t = batch.query_start[s]; t < batch.query_start[s + 1]; ++t) {
      const int token = batch.token_ids[t], position = batch.positions[t];
      k_at(caches[1], 1, 0, 2, batch.slot_mapping[t], 1) = static_cast<float>(token);
      v_at(caches[1], 1, 0, 2, batch.slot_mapping[t], 0) = static_cast<float>(position);
      k_at(caches[3], 3, 2, 1, batch.slot_mapping[t], 0) = static_cast<float>(2 * token);
      v_at(caches[3], 3, 1, 1, batch.slot_mapping[t], 0) = static_cast<float>(position);
      state.kv_a = state.kv_b = 0;
      for (int j = 0; j <= position; ++j) {
        const int64_t slot =
            int64_t{table[j / caches[1].kv.block_size]} * caches[1].kv.block_size + j % caches[1].kv.block_size;
        state.kv_a = fake::fold(state.kv_a, static_cast<int64_t>(k_at(caches[1], 1, 0, 2, slot, 1)),
                                static_cast<int64_t>(v_at(caches[1], 1, 0, 2, slot, 0)), 3);
        state.kv_b = fake::fold(state.kv_b, static_cast<int64_t>(k_at(caches[3], 3, 2, 1, slot, 0)),
                                static_cast<int64_t>(v_at(caches[3], 3, 1, 1, slot, 0)), 4);
      }
      state.state_a = fake::fold(state.state_a, token, position, 1);
      state.state_b = fake::fold(state.state_b, token, position, 2);
      hashes[t] = static_cast<float>(state.all());
      state.previous = static_cast<uint64_t>(token) + 1;
    }
    if (out < 0) return;
    caches[0].state.ssm[2 * out] = static_cast<float>(state.state_a);
    caches[4].state.ssm[2 * out + 1] = static_cast<float>(state.state_b);
    caches[4].state.conv[out] = static_cast<float>(state.previous);
  }

  // What ops/batch.h promises.
  static void check(const Batch& batch, std::span<const LayerCache> caches) {
    ASSERT_EQ(caches.size(), 5u);
    ASSERT_GT(batch.num_tokens, 0);
    ASSERT_EQ(batch.query_start[0], 0);
    ASSERT_EQ(batch.query_start[batch.num_seqs], batch.num_tokens);
    for (int s = 0; s < batch.num_seqs; ++s) {
      const int first = batch.query_start[s], end = batch.query_start[s + 1];
      ASSERT_GT(end, first);
      if (s < batch.num_decodes) {
        ASSERT_EQ(end - first, 1);
      }
      for (int t = first; t < end; ++t) {
        const int position = batch.positions[t];
        ASSERT_EQ(position, batch.seq_lens[s] - (end - t));
        const int block = batch.block_table[int64_t{s} * batch.block_table_stride + position / caches[1].kv.block_size];
        ASSERT_TRUE(block >= 0 && block < caches[1].kv.num_blocks);
        ASSERT_EQ(batch.slot_mapping[t], block * caches[1].kv.block_size + position % caches[1].kv.block_size);
      }
      ASSERT_EQ(batch.state_slot_in[s] < 0, batch.positions[first] == 0);
      ASSERT_LT(batch.state_slot_in[s], caches[0].state.num_slots);
      ASSERT_TRUE(batch.state_slot_out[s] >= 0 && batch.state_slot_out[s] < caches[0].state.num_slots);
      for (int other = 0; other < batch.num_seqs; ++other) {
        if (other == s) continue;
        ASSERT_NE(batch.state_slot_out[s], batch.state_slot_out[other]);
        ASSERT_NE(batch.state_slot_out[s], batch.state_slot_in[other]);
      }
    }
    for (int r = 0; r < batch.num_logit_rows; ++r) {
      ASSERT_TRUE(batch.logit_rows[r] >= 0 && batch.logit_rows[r] < batch.num_tokens);
    }
  }

  std::vector<int32_t> script_;
};

// Lets a test hold the engine inside a step.
class Gate {
 public:
  void pass() {  // engine thread
    std::unique_lock lock(mutex_);
    ++arrived_;
    changed_.notify_all();
    changed_.wait(lock, [&] { return permits_ > 0; });
    --permits_;
  }
  void permit(int steps) {
    std::lock_guard lock(mutex_);
    permits_ += steps;
    changed_.notify_all();
  }
  void open() { permit(1 << 20); }
  void wait_for_arrival(int count) {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [&] { return arrived_ >= count; });
  }

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  int permits_ = 0;
  int arrived_ = 0;
};

}  // namespace proa
