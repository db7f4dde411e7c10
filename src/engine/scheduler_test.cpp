#include "engine/scheduler.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <random>
#include <set>
#include <string>

#include "cache/prefix_cache_check.h"

namespace proa {
namespace {

std::unique_ptr<Sequence> make_sequence(const Scheduler& scheduler, int num_prompt_tokens, int max_tokens) {
  auto sequence = std::make_unique<Sequence>();
  sequence->token_ids.assign(static_cast<size_t>(num_prompt_tokens), 7);
  sequence->num_prompt_tokens = num_prompt_tokens;
  sequence->max_total_tokens = scheduler.fits(num_prompt_tokens, max_tokens).value();
  return sequence;
}

// Does what a runner does; returns the sequences that have all their tokens.
std::vector<Sequence*> compute(Scheduler& scheduler, std::span<const ScheduledSequence> step) {
  std::vector<Sequence*> done;
  scheduler.cache().moves_done();
  for (const ScheduledSequence& scheduled : step) {
    Sequence& sequence = *scheduled.sequence;
    scheduler.computed(sequence, scheduled.num_tokens);
    if (sequence.num_computed == sequence.num_tokens()) sequence.token_ids.push_back(7);
    if (sequence.num_tokens() == sequence.max_total_tokens) done.push_back(&sequence);
  }
  return done;
}

TEST(Scheduler, DecodesFirstThenPrefillsWithinTheBudget) {
  Scheduler scheduler({.max_num_seqs = 4,
                       .max_num_batched_tokens = 8,
                       .max_model_len = 64,
                       .max_queue = 8,
                       .num_blocks = 16,
                       .block_size = 4});
  ASSERT_TRUE(scheduler.add(make_sequence(scheduler, 3, 5)).ok());
  ASSERT_TRUE(scheduler.add(make_sequence(scheduler, 12, 5)).ok());
  ASSERT_TRUE(scheduler.add(make_sequence(scheduler, 2, 5)).ok());
  const auto lengths = [](std::span<const ScheduledSequence> step) {
    std::string text;
    for (const auto& s : step) text += (s.decode ? "d" : "p") + std::to_string(s.num_tokens) + " ";
    return text;
  };
  const char* const expected[] = {"p3 p5 ", "d1 p7 ", "d1 d1 p2 ", "d1 d1 d1 "};
  for (const char* text : expected) {
    const auto step = scheduler.schedule();
    EXPECT_EQ(lengths(step), text);
    compute(scheduler, step);
  }
}

TEST(Scheduler, TakesBlocksForThePromptAndThenAsTheyAreNeeded) {
  const struct {
    int prompt, max_tokens, at_first, at_the_end;
  } rows[] = {{1, 1, 1, 1}, {4, 1, 1, 1}, {4, 2, 2, 2}, {3, 2, 1, 1}, {5, 1, 2, 2}, {8, 9, 3, 4}, {1, 40, 1, 10}};
  for (const auto& row : rows) {
    Scheduler scheduler({.max_num_seqs = 1,
                         .max_num_batched_tokens = 8,
                         .max_model_len = 64,
                         .max_queue = 8,
                         .num_blocks = 16,
                         .block_size = 4});
    ASSERT_TRUE(scheduler.add(make_sequence(scheduler, row.prompt, row.max_tokens)).ok());
    auto done = compute(scheduler, scheduler.schedule());
    EXPECT_EQ(scheduler.cache().available_blocks(), 16 - row.at_first) << row.prompt << " + " << row.max_tokens;
    while (done.empty()) done = compute(scheduler, scheduler.schedule());
    EXPECT_EQ(scheduler.cache().available_blocks(), 16 - row.at_the_end) << row.prompt << " + " << row.max_tokens;
    scheduler.remove(*done[0], true);
    EXPECT_EQ(scheduler.cache().available_blocks(), 16);
  }
}

TEST(Scheduler, RefusesWhatCanNeverRun) {
  const Scheduler scheduler({.max_num_seqs = 1,
                             .max_num_batched_tokens = 8,
                             .max_model_len = 40,
                             .max_queue = 1,
                             .num_blocks = 8,
                             .block_size = 4});
  const struct {
    int64_t prompt;
    std::optional<int> max_tokens;
    const char* where;  // "": fits
    int total;
  } rows[] = {
      {30, 3, "", 33},  // 32 tokens are computed: 8 blocks
      {30, 4, "kv_cache_bytes", 0},
      {30, 11, "max_model_len", 0},
      {30, std::nullopt, "", 33},  // as many as fit
      {32, std::nullopt, "", 33},
      {33, std::nullopt, "kv_cache_bytes", 0},
      {40, std::nullopt, "max_model_len", 0},
      {int64_t{1} << 40, 1 << 30, "max_model_len", 0},
  };
  for (const auto& row : rows) {
    const auto total = scheduler.fits(row.prompt, row.max_tokens);
    EXPECT_EQ(total.ok() ? "" : total.error().where, row.where) << row.prompt;
    if (total.ok()) {
      EXPECT_EQ(*total, row.total) << row.prompt;
    } else {
      EXPECT_NE(total.error().actual.find(std::to_string(row.prompt)), std::string::npos) << total.error().message();
    }
  }
}

TEST(Scheduler, RefusesEarlyWhenTheQueueIsFull) {
  Scheduler scheduler({.max_num_seqs = 1,
                       .max_num_batched_tokens = 1,
                       .max_model_len = 8,
                       .max_queue = 2,
                       .num_blocks = 8,
                       .block_size = 4});
  EXPECT_TRUE(scheduler.add(make_sequence(scheduler, 1, 1)).ok());
  EXPECT_TRUE(scheduler.add(make_sequence(scheduler, 1, 1)).ok());
  const auto full = scheduler.add(make_sequence(scheduler, 1, 1));
  ASSERT_FALSE(full.ok());
  EXPECT_EQ(full.error().where, "max_queue");
  scheduler.schedule();  // one is admitted: one may wait again
  EXPECT_TRUE(scheduler.add(make_sequence(scheduler, 1, 1)).ok());
}

TEST(Scheduler, AnOldLargeRequestIsNotOvertaken) {
  Scheduler scheduler({.max_num_seqs = 4,
                       .max_num_batched_tokens = 8,
                       .max_model_len = 33,
                       .max_queue = 8,
                       .num_blocks = 8,
                       .block_size = 4});
  ASSERT_TRUE(scheduler.add(make_sequence(scheduler, 4, 5)).ok());   // 2 blocks
  ASSERT_TRUE(scheduler.add(make_sequence(scheduler, 27, 6)).ok());  // 7 blocks
  ASSERT_TRUE(scheduler.add(make_sequence(scheduler, 1, 1)).ok());   // 1 block: would fit
  scheduler.schedule();
  EXPECT_EQ(scheduler.running().size(), 1u);
  scheduler.remove(*scheduler.running()[0], false);
  scheduler.schedule();
  ASSERT_EQ(scheduler.running().size(), 1u);
  EXPECT_EQ(scheduler.running()[0]->num_prompt_tokens, 27);
}

TEST(Scheduler, TheLastInOrderIsPreemptedAndGoesOnWithWhatItHad) {
  for (const bool prefix_caching : {true, false}) {
    Scheduler scheduler({.max_num_seqs = 2,
                         .max_num_batched_tokens = 8,
                         .max_model_len = 33,
                         .max_queue = 8,
                         .num_blocks = 4,
                         .block_size = 4,
                         .prefix_caching = prefix_caching,
                         .num_snapshots = 1,
                         .num_host_blocks = 4,
                         .num_host_slots = 1});
    ASSERT_TRUE(scheduler.add(make_sequence(scheduler, 3, 9)).ok());
    ASSERT_TRUE(scheduler.add(make_sequence(scheduler, 3, 9)).ok());
    Sequence* second = nullptr;
    std::vector<Sequence*> done;
    int steps = 0;
    while (scheduler.num_preemptions() == 0) {
      done = compute(scheduler, scheduler.schedule());
      if (scheduler.running().size() == 2) second = scheduler.running()[1].get();
      ASSERT_LT(++steps, 20);
    }
    EXPECT_EQ(second->seat, -1);
    EXPECT_EQ(second->num_tokens(), 3 + 6) << "8 tokens are computed, in 2 blocks each; it drew the next";
    ASSERT_EQ(scheduler.waiting().size(), 1u);
    while (done.empty()) done = compute(scheduler, scheduler.schedule());
    scheduler.remove(*done[0], false);
    const auto step = scheduler.schedule();
    ASSERT_EQ(step.size(), 1u);
    EXPECT_EQ(step[0].sequence, second);
    EXPECT_EQ(step[0].num_tokens, prefix_caching ? 1 : 8);
    EXPECT_EQ(step[0].decode, prefix_caching);
    EXPECT_EQ(second->num_admissions, 2);
  }
}

TEST(Scheduler, APromptThatIsBeingComputedIsWaitedFor) {
  for (const bool has_state : {true, false}) {
    Scheduler scheduler({.max_num_seqs = 4,
                         .max_num_batched_tokens = 10,
                         .max_model_len = 64,
                         .max_queue = 8,
                         .num_blocks = 64,
                         .block_size = 4,
                         .prefix_caching = true,
                         .has_state = has_state,
                         .num_snapshots = 4,
                         .min_snapshot_tokens = 5});
    for (int i = 0; i < 3; ++i) {
      auto sequence = make_sequence(scheduler, 26, 9);
      sequence->turn_ends = {0, 24};
      if (i == 2) sequence->token_ids[3] = 8;
      ASSERT_TRUE(scheduler.add(std::move(sequence)).ok());
    }
    std::string steps;
    while (scheduler.running().size() < 3) {
      const auto step = scheduler.schedule();
      for (const auto& s : step) steps += (s.decode ? "d" : "p") + std::to_string(s.num_tokens) + " ";
      steps += "| ";
      compute(scheduler, step);
    }
    EXPECT_EQ(steps, has_state ? "p10 | p10 | p4 | p2 p2 p6 | " : "p10 | p10 | p6 | d1 p2 p7 | ");
    EXPECT_EQ(scheduler.running()[1]->num_cached, 24);
    EXPECT_EQ(scheduler.running()[2]->num_cached, 0);
  }
}

TEST(Scheduler, AllThatTheMemoryWasPlannedForRunAtOnce) {
  for (const int max_tokens : {1, 2, 20}) {
    const int blocks = (16 + max_tokens - 1 + 3) / 4;
    Scheduler scheduler({.max_num_seqs = 8,
                         .max_num_batched_tokens = 128,
                         .max_model_len = 16 + max_tokens,
                         .max_queue = 8,
                         .num_blocks = 8 * blocks,
                         .block_size = 4});
    for (int i = 0; i < 8; ++i) ASSERT_TRUE(scheduler.add(make_sequence(scheduler, 16, max_tokens)).ok());
    EXPECT_EQ(scheduler.schedule().size(), 8u) << max_tokens;
  }
}

TEST(Scheduler, PriorityComesBeforeArrival) {
  Scheduler scheduler({.max_num_seqs = 2,
                       .max_num_batched_tokens = 8,
                       .max_model_len = 33,
                       .max_queue = 8,
                       .num_blocks = 16,
                       .block_size = 4});
  const auto add = [&](const char* id, int priority) {
    auto sequence = make_sequence(scheduler, 2, 4);
    sequence->id = id;
    sequence->priority = priority;
    ASSERT_TRUE(scheduler.add(std::move(sequence)).ok());
  };
  const auto running = [&] {
    compute(scheduler, scheduler.schedule());
    std::string ids;
    for (const auto& sequence : scheduler.running()) ids += sequence->id;
    return ids;
  };
  add("a", 5);
  add("b", 5);
  EXPECT_EQ(running(), "ab");
  add("c", 5);
  EXPECT_EQ(running(), "ab") << "the same priority waits";
  add("d", 1);
  add("e", 1);
  EXPECT_EQ(running(), "ad") << "the last of the lowest makes way";
  EXPECT_EQ(running(), "de");
  scheduler.remove(*scheduler.running()[0], false);
  EXPECT_EQ(running(), "ea") << "and is the first to come back";
  EXPECT_EQ(scheduler.num_preemptions(), 2);
}

TEST(Scheduler, SnapshotsCutAPrefillWhereTheyPay) {
  const struct {
    const char* what;
    int prompt, first_turn, last_turn, cached;
    const char* steps;
  } rows[] = {
      {"no turns", 10, 0, 0, 0, "10 "},
      {"the end of the turn", 18, 0, 15, 0, "15 3 "},
      {"too little before it", 10, 0, 4, 0, "10 "},
      {"two turns", 38, 12, 35, 0, "12 8 15 3 "},
      {"two turns too close", 18, 10, 14, 0, "14 4 "},
      {"a turn shortly behind the 20 tokens", 30, 0, 24, 0, "24 6 "},
      {"shortly before them", 30, 0, 18, 0, "18 12 "},
      {"every 20 tokens", 50, 0, 49, 0, "20 20 9 1 "},
      {"nothing before what is cached", 50, 12, 45, 30, "10 5 5 "},
  };
  for (const auto& row : rows) {
    SCOPED_TRACE(row.what);
    Scheduler scheduler({.max_num_seqs = 1,
                         .max_num_batched_tokens = 100,
                         .max_model_len = 100,
                         .max_queue = 8,
                         .num_blocks = 100,
                         .block_size = 4,
                         .prefix_caching = true,
                         .num_snapshots = 8,
                         .snapshot_interval = 20,
                         .min_snapshot_tokens = 5});
    if (row.cached > 0) {
      ASSERT_TRUE(scheduler.add(make_sequence(scheduler, row.cached, 1)).ok());
      std::vector<Sequence*> done;
      while (done.empty()) done = compute(scheduler, scheduler.schedule());
      scheduler.remove(*done[0], true);
    }
    auto sequence = make_sequence(scheduler, row.prompt, 1);
    sequence->turn_ends = {row.first_turn, row.last_turn};
    ASSERT_TRUE(scheduler.add(std::move(sequence)).ok());
    std::string steps;
    std::vector<Sequence*> done;
    while (done.empty()) {
      const auto step = scheduler.schedule();
      steps += std::to_string(step[0].num_tokens) + " ";
      done = compute(scheduler, step);
    }
    EXPECT_EQ(steps, row.steps);
    EXPECT_EQ(done[0]->num_cached, row.cached);
  }
}

void check_invariants(const Scheduler& scheduler, const SchedulerLimits& limits,
                      std::span<const ScheduledSequence> step) {
  int tokens = 0;
  bool prefills = false;
  std::set<Sequence*> in_step;
  for (const ScheduledSequence& s : step) {
    tokens += s.num_tokens;
    ASSERT_GT(s.num_tokens, 0);
    ASSERT_LE(s.sequence->num_computed + s.num_tokens, s.sequence->num_tokens());
    ASSERT_EQ(s.decode, s.sequence->decoding());
    ASSERT_TRUE(!s.decode || (s.num_tokens == 1 && !prefills)) << "decodes come first, with one token";
    prefills |= !s.decode;
    ASSERT_TRUE(in_step.insert(s.sequence).second) << "a sequence stands in a step once";
    ASSERT_GE(static_cast<int>(s.sequence->blocks.size()) * limits.block_size, s.sequence->num_computed + s.num_tokens);
  }
  ASSERT_LE(tokens, limits.max_num_batched_tokens);
  ASSERT_TRUE(!step.empty() || (scheduler.running().empty() && scheduler.waiting().empty())) << "no standstill";

  PrefixCacheCheck held;
  std::set<int32_t> written, seats;
  for (const auto& sequence : scheduler.running()) {
    if (sequence->decoding()) {
      ASSERT_TRUE(in_step.count(sequence.get())) << "no decode is left out";
    }
    held.blocks.insert(held.blocks.end(), sequence->blocks.begin(), sequence->blocks.end());
    held.slots.push_back(sequence->state_slot);
    if (sequence->read_slot != sequence->state_slot) held.slots.push_back(sequence->read_slot);
    ASSERT_TRUE(written.insert(sequence->state_slot).second) << "no state has two writers";
    ASSERT_TRUE(seats.insert(sequence->seat).second);
  }
  for (const auto& sequence : scheduler.running()) {
    ASSERT_TRUE(sequence->read_slot == sequence->state_slot || !written.count(sequence->read_slot));
  }
  for (const auto& sequence : scheduler.waiting()) ASSERT_TRUE(!sequence->runs() && sequence->blocks.empty());
  ASSERT_NO_FATAL_FAILURE(held(scheduler.cache()));
}

TEST(Scheduler, KeepsItsInvariantsUnderRandomArrivalsAndCancels) {
  int64_t preemptions = 0, hits = 0;
  for (uint32_t seed = 0; seed < 60; ++seed) {
    std::mt19937 random(seed);
    const auto below = [&](int n) { return static_cast<int>(random() % static_cast<uint32_t>(n)); };
    SchedulerLimits limits{.max_num_seqs = 1 + below(6),
                           .max_model_len = 40,
                           .max_queue = 1 + below(8),
                           .num_blocks = 12 + below(20),
                           .block_size = 1 + below(5),
                           .prefix_caching = seed % 4 != 0,
                           .has_state = seed % 3 != 0,
                           .num_snapshots = below(6),
                           .snapshot_interval = 1 + below(10),
                           .min_snapshot_tokens = 1 + below(4)};
    limits.max_num_batched_tokens = limits.max_num_seqs + below(20);
    if (seed % 5 == 1) limits.num_host_blocks = 20, limits.num_host_slots = 3;
    const bool priorities = seed % 2 == 1;
    Scheduler scheduler(limits);
    int arrivals = 0, last_admitted = -1;
    for (int round = 0; round < 400 || !scheduler.running().empty() || !scheduler.waiting().empty(); ++round) {
      ASSERT_LT(round, 20000) << "everything that runs comes to an end";
      if (round < 400 && below(3) > 0) {
        const int prompt = 1 + below(20), max_tokens = 1 + below(20);
        if (scheduler.fits(prompt, max_tokens).ok()) {
          auto sequence = make_sequence(scheduler, prompt, max_tokens);
          sequence->id = std::to_string(arrivals);
          for (int32_t& token : sequence->token_ids) token = below(8) == 0 ? 8 : 7;
          sequence->turn_ends = {below(prompt), below(prompt)};
          if (priorities) sequence->priority = below(3);
          if (scheduler.add(std::move(sequence)).ok()) {
            ++arrivals;
          } else {
            ASSERT_GE(scheduler.waiting().size(), static_cast<size_t>(limits.max_queue));
          }
        }
      }
      if (below(10) == 0 && !scheduler.running().empty()) {
        scheduler.remove(*scheduler.running()[static_cast<size_t>(below(static_cast<int>(scheduler.running().size())))],
                         below(2) == 0);
      }
      if (below(10) == 0 && !scheduler.waiting().empty()) {
        scheduler.remove(*scheduler.waiting()[static_cast<size_t>(below(static_cast<int>(scheduler.waiting().size())))],
                         true);
      }
      const auto step = scheduler.schedule();
      ASSERT_NO_FATAL_FAILURE(check_invariants(scheduler, limits, step)) << "seed " << seed << ", round " << round;
      for (const auto& sequence : scheduler.admitted()) {
        if (priorities || sequence->num_admissions > 1) continue;
        ASSERT_GT(std::stoi(sequence->id), last_admitted) << "first come, first served";
        last_admitted = std::stoi(sequence->id);
      }
      if (below(100) == 0) {  // a step failed
        while (!scheduler.running().empty()) scheduler.remove(*scheduler.running().back(), false);
        scheduler.forget_cache();
        continue;
      }
      for (Sequence* sequence : compute(scheduler, step)) scheduler.remove(*sequence, true);
    }
    EXPECT_TRUE(priorities || last_admitted > 10);
    EXPECT_EQ(scheduler.cache().available_blocks(), limits.num_blocks);
    preemptions += scheduler.num_preemptions();
    hits += scheduler.cache().stats().hits;
  }
  EXPECT_TRUE(preemptions > 100 && hits > 100) << preemptions << " " << hits;
}

}  // namespace
}  // namespace proa
