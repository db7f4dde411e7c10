#include "cache/prefix_cache.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <random>
#include <string>
#include <vector>

#include "cache/prefix_cache_check.h"

namespace proa {
namespace {

using Tokens = std::vector<int32_t>;

Tokens count_up(int n, int from = 0) {
  Tokens tokens(static_cast<size_t>(n));
  for (int i = 0; i < n; ++i) tokens[static_cast<size_t>(i)] = from + i;
  return tokens;
}

// Sequences over a cache, with memory that is made of tokens: a block holds the tokens computed into it, a slot all
// tokens that its state has seen. What a match brings must be what would have been computed.
class Device {
 public:
  struct Running {
    Tokens tokens;  // computed
    std::vector<int32_t> blocks;
    int32_t slot = -1, read_slot = -1;
  };

  explicit Device(const PrefixCacheLimits& limits)
      : limits_(limits),
        cache(limits),
        blocks_(static_cast<size_t>(limits.num_blocks)),
        host_blocks_(static_cast<size_t>(limits.num_host_blocks)),
        slots_(static_cast<size_t>(limits.num_slots)),
        host_slots_(static_cast<size_t>(limits.num_host_slots)) {}

  // Starts a sequence on a prompt and computes all of it; no blocks where memory does not hold it.
  Running start(const Tokens& prompt) {
    Running running;
    const auto match = cache.find(prompt, static_cast<int>(prompt.size()) - 1);
    last_match = match;
    const int wanted = blocks_for(prompt.size());
    if (std::max(wanted - match.num_blocks, 1) > cache.available_blocks() - match.num_idle) return running;
    auto taken = cache.take(match);
    if (!taken) return running;
    cache.count(prompt, match);
    running.blocks = taken->blocks;
    running.slot = taken->state_slot;
    running.read_slot = taken->read_slot;
    while (static_cast<int>(running.blocks.size()) < wanted) running.blocks.push_back(cache.allocate_block());
    do_moves();
    const Tokens known(prompt.begin(), prompt.begin() + match.length);
    for (int i = 0; i < match.length; ++i)
      EXPECT_EQ(at(running, i), prompt[static_cast<size_t>(i)]) << "position " << i;
    if (limits_.has_state && match.length > 0) {
      EXPECT_EQ(slots_[static_cast<size_t>(running.read_slot)], known);
    }
    running.tokens = known;
    compute(running, {prompt.begin() + match.length, prompt.end()});
    return running;
  }

  void compute(Running& running, const Tokens& more) {
    do_moves();
    for (const int32_t token : more) {
      const auto position = static_cast<int>(running.tokens.size());
      while (static_cast<int>(running.blocks.size()) * limits_.block_size <= position) {
        running.blocks.push_back(cache.allocate_block());
        ASSERT_GE(running.blocks.back(), 0);
        do_moves();
      }
      running.tokens.push_back(token);
      Tokens& block = blocks_[static_cast<size_t>(running.blocks[static_cast<size_t>(position / limits_.block_size)])];
      block.resize(static_cast<size_t>(limits_.block_size), -1);
      block[static_cast<size_t>(position % limits_.block_size)] = token;
    }
    slots_[static_cast<size_t>(running.slot)] = running.tokens;
    if (running.read_slot != running.slot) cache.release_slot(running.read_slot);
    running.read_slot = running.slot;
  }

  bool snapshot(Running& running) {
    const int32_t next = cache.allocate_slot();
    if (next < 0) return false;
    if (!cache.insert(running.tokens, running.blocks, running.slot)) {
      cache.release_slot(next);
      return false;
    }
    cache.retain_slot(running.slot);
    running.read_slot = running.slot;
    running.slot = next;
    return true;
  }

  void end(Running& running, bool keep) {
    const bool kept = keep && running.read_slot == running.slot &&
                      cache.insert(running.tokens, running.blocks, limits_.has_state ? running.slot : -1);
    for (const int32_t block : running.blocks) cache.release_block(block);
    if (running.read_slot != running.slot) cache.release_slot(running.read_slot);
    if (!kept || !limits_.has_state) cache.release_slot(running.slot);
    running = {};
  }

  void check(std::span<const Running> all) const {
    PrefixCacheCheck held;
    for (const Running& running : all) {
      held.blocks.insert(held.blocks.end(), running.blocks.begin(), running.blocks.end());
      if (running.slot >= 0) held.slots.push_back(running.slot);
      if (running.read_slot != running.slot) held.slots.push_back(running.read_slot);
    }
    held(cache);
  }

 private:
  const PrefixCacheLimits limits_;

 public:
  PrefixCache cache;
  PrefixCache::Match last_match;

 private:
  int blocks_for(size_t tokens) const {
    return (static_cast<int>(tokens) + limits_.block_size - 1) / limits_.block_size;
  }
  int32_t at(const Running& running, int position) const {
    const Tokens& block =
        blocks_[static_cast<size_t>(running.blocks[static_cast<size_t>(position / limits_.block_size)])];
    return block.empty() ? -1 : block[static_cast<size_t>(position % limits_.block_size)];
  }

  void do_moves() {
    for (const CacheMove& move : cache.moves()) {
      const bool from_host = move.how == CacheMove::How::to_device, to_host = move.how == CacheMove::How::to_host;
      const bool block = move.what == CacheMove::What::block;
      const auto& from = from_host ? (block ? host_blocks_ : host_slots_) : (block ? blocks_ : slots_);
      auto& to = to_host ? (block ? host_blocks_ : host_slots_) : (block ? blocks_ : slots_);
      to[static_cast<size_t>(move.to)] = from[static_cast<size_t>(move.from)];
    }
    cache.moves_done();
  }

  std::vector<Tokens> blocks_, host_blocks_, slots_, host_slots_;
};

const PrefixCacheLimits kSmall = {.num_blocks = 16, .block_size = 4, .num_slots = 4};

struct HitCase {
  const char* what;
  std::vector<int> snapshots;  // of a sequence 0, 1, 2 ...: after so many tokens
  Tokens prompt;
  int hit;
  bool has_state = true;
};

Tokens changed(Tokens tokens, size_t at) {
  tokens[at] = 1000;
  return tokens;
}

const HitCase kHits[] = {
    {"nothing was kept", {}, count_up(10), 0},
    {"the same beginning", {8}, count_up(12), 8},
    {"the end of a block that is not full", {6}, count_up(12), 6},
    {"less than a block", {3}, count_up(12), 3},
    {"the longest of several", {3, 6, 8, 10}, count_up(12), 10},
    {"of several in one block", {5, 6, 7}, count_up(12), 7},
    {"one token must be left to compute", {8}, count_up(8), 0},
    {"and is", {7, 8}, count_up(8), 7},
    {"leaves the prefix behind a snapshot", {4, 8}, changed(count_up(12), 6), 4},
    {"leaves it in the block of the snapshot", {6}, changed(count_up(12), 5), 0},
    {"leaves it behind a snapshot in the same block", {6}, changed(count_up(12), 6), 6},
    {"leaves it at once", {4, 8}, changed(count_up(12), 0), 0},
    {"without a state any full block will do", {11}, changed(count_up(12), 9), 8, false},
    {"but the last token is computed", {12}, count_up(12), 8, false},
    {"and a block that is not full does not count", {3}, count_up(12), 0, false},
};

TEST(PrefixCache, FindsTheLongestKnownPrefix) {
  for (const HitCase& row : kHits) {
    SCOPED_TRACE(row.what);
    PrefixCacheLimits limits = kSmall;
    limits.has_state = row.has_state;
    limits.num_slots = 6;
    Device device(limits);
    std::vector<Device::Running> running(2);
    running[0] = device.start({0});
    for (const int length : row.snapshots) {
      device.compute(running[0], count_up(length - static_cast<int>(running[0].tokens.size()),
                                          static_cast<int>(running[0].tokens.size())));
      if (row.has_state) {
        EXPECT_TRUE(device.snapshot(running[0]));
      } else {
        device.cache.insert(running[0].tokens, running[0].blocks, -1);
      }
      device.compute(running[0], {});
    }
    running[1] = device.start(row.prompt);
    EXPECT_EQ(device.last_match.length, row.hit);
    ASSERT_NO_FATAL_FAILURE(device.check(running));
    for (auto& one : running) device.end(one, true);
    ASSERT_NO_FATAL_FAILURE(device.check({}));
    device.cache.clear();
    ASSERT_NO_FATAL_FAILURE(device.check({}));
    EXPECT_EQ(device.cache.num_entries(), 0);
  }
}

TEST(PrefixCache, GivesUpWhatWasUsedLongestAgoAndSaysSo) {
  Device device(kSmall);  // of 4 slots, one for who runs
  const auto run = [&](int from) {
    auto running = device.start(count_up(9, from));
    const int hit = device.last_match.length;
    if (hit == 0) device.end(running, true);
    if (!running.blocks.empty()) device.end(running, false);
    return hit;
  };
  for (const int from : {100, 200, 300}) EXPECT_EQ(run(from), 0);
  auto again = device.start(count_up(12, 100));  // used: now 200 is the oldest
  EXPECT_EQ(device.last_match.length, 9);
  device.end(again, false);
  EXPECT_EQ(run(400), 0);
  EXPECT_EQ(device.cache.stats().dropped, 0) << "a slot was left";
  auto fifth = device.start(count_up(9, 500));
  EXPECT_EQ(device.cache.stats().dropped, 1);
  device.end(fifth, false);
  EXPECT_EQ(device.cache.find(count_up(12, 200), 11).length, 0);
  EXPECT_EQ(device.cache.find(count_up(12, 100), 11).length, 9);
  auto lost = device.start(count_up(12, 200));
  EXPECT_EQ(device.cache.stats().lost[static_cast<size_t>(Lost::evicted)], 9);
  device.end(lost, false);
}

TEST(PrefixCache, CountsWhyTokensWereComputedAgain) {
  Device device(kSmall);
  auto first = device.start(count_up(12));
  device.end(first, true);
  auto other = device.start(changed(count_up(14), 10));
  const PrefixCacheStats& stats = device.cache.stats();
  EXPECT_EQ(stats.lost[static_cast<size_t>(Lost::between)], 8) << "two blocks are known, and no state in them";
  device.cache.note_lost(count_up(3, 50), Lost::too_short);
  device.end(other, false);
  other = device.start(count_up(5, 50));
  EXPECT_EQ(stats.lost[static_cast<size_t>(Lost::too_short)], 3);
  EXPECT_EQ(stats.queries, 12 + 14 + 5);
  EXPECT_EQ(stats.hits, 0);
  device.end(other, false);
}

TEST(PrefixCache, WhatTheDeviceHasNoRoomForComesBackFromTheHost) {
  for (const bool has_state : {true, false}) {
    PrefixCacheLimits limits = kSmall;
    limits.has_state = has_state;
    limits.num_blocks = 8;
    limits.num_slots = 2;
    limits.num_host_blocks = 16;
    limits.num_host_slots = has_state ? 4 : 0;
    Device device(limits);
    auto first = device.start(count_up(22));
    device.end(first, true);
    auto second = device.start(count_up(22, 100));  // takes the blocks of the first
    device.end(second, true);
    EXPECT_EQ(device.cache.stats().spilled, 1);
    EXPECT_EQ(device.cache.num_host_entries(), 1);
    first = device.start(count_up(26));  // and the first those of the second
    EXPECT_EQ(device.last_match.length, has_state ? 22 : 20);
    EXPECT_TRUE(device.last_match.on_host);
    EXPECT_EQ(device.cache.stats().host_hits, device.last_match.length);
    ASSERT_NO_FATAL_FAILURE(device.check({&first, 1}));
    device.end(first, true);
    ASSERT_NO_FATAL_FAILURE(device.check({}));
  }
}

TEST(PrefixCache, HoldsItsInvariantsAndItsTokensWhateverComes) {
  int64_t hits = 0, host_hits = 0, spilled = 0, dropped = 0;
  for (uint32_t seed = 0; seed < 60; ++seed) {
    SCOPED_TRACE("seed " + std::to_string(seed));
    std::mt19937 random(seed);
    const auto below = [&](int n) { return static_cast<int>(random() % static_cast<uint32_t>(n)); };
    PrefixCacheLimits limits{.num_blocks = 10 + below(30),
                             .block_size = 1 + below(5),
                             .num_slots = 3 + below(6),
                             .has_state = seed % 3 != 0};
    if (seed % 2) limits.num_host_blocks = 1 + below(40), limits.num_host_slots = 1 + below(6);
    Device device(limits);
    std::vector<Device::Running> running;
    std::vector<Tokens> history = {{1}};
    for (int round = 0; round < 400; ++round) {
      const int what = below(10);
      if (what < 4 && running.size() < 3) {
        Tokens prompt = history[static_cast<size_t>(below(static_cast<int>(history.size())))];
        prompt.resize(static_cast<size_t>(1 + below(static_cast<int>(prompt.size()))));
        for (int i = below(6); i >= 0; --i) prompt.push_back(below(2));
        if (static_cast<int>(prompt.size()) > limits.num_blocks * limits.block_size / 4) prompt.resize(1);
        auto started = device.start(prompt);
        if (started.slot >= 0) running.push_back(std::move(started));
      } else if (!running.empty()) {
        const auto index = static_cast<size_t>(below(static_cast<int>(running.size())));
        Device::Running& one = running[index];
        if (what < 6 && device.cache.available_blocks() > 2) {
          device.compute(one, {below(2)});
        } else if (what < 8 && limits.has_state && one.read_slot == one.slot) {
          device.snapshot(one);
          device.compute(one, {});
        } else {
          history.push_back(one.tokens);
          device.end(one, below(4) > 0);
          running.erase(running.begin() + static_cast<ptrdiff_t>(index));
        }
      }
      if (below(200) == 0) device.cache.clear();
      ASSERT_NO_FATAL_FAILURE(device.check(running)) << "round " << round;
    }
    for (auto& one : running) device.end(one, false);
    hits += device.cache.stats().hits;
    host_hits += device.cache.stats().host_hits;
    spilled += device.cache.stats().spilled;
    dropped += device.cache.stats().dropped;
  }
  EXPECT_TRUE(hits > 1000 && host_hits > 100 && spilled > 100 && dropped > 100)
      << hits << " " << host_hits << " " << spilled << " " << dropped;
}

}  // namespace
}  // namespace proa
