#include "engine/scheduler.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <random>
#include <set>
#include <string>

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
std::vector<Sequence*> compute(std::span<const ScheduledSequence> step) {
  std::vector<Sequence*> done;
  for (const ScheduledSequence& scheduled : step) {
    Sequence& sequence = *scheduled.sequence;
    sequence.num_computed += scheduled.num_tokens;
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
    compute(step);
  }
}

TEST(Scheduler, ReservesExactlyWhatASequenceCanNeed) {
  const struct {
    int prompt, max_tokens, blocks;
  } rows[] = {{1, 1, 1}, {4, 1, 1}, {4, 2, 2}, {3, 2, 1}, {5, 1, 2}, {8, 9, 4}};
  for (const auto& row : rows) {
    Scheduler scheduler({.max_num_seqs = 1,
                         .max_num_batched_tokens = 8,
                         .max_model_len = 64,
                         .max_queue = 8,
                         .num_blocks = 16,
                         .block_size = 4});
    ASSERT_TRUE(scheduler.add(make_sequence(scheduler, row.prompt, row.max_tokens)).ok());
    scheduler.schedule();
    EXPECT_EQ(scheduler.blocks().num_free(), 16 - row.blocks) << row.prompt << " + " << row.max_tokens;
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
  ASSERT_TRUE(scheduler.add(make_sequence(scheduler, 4, 5)).ok());    // 2 blocks
  ASSERT_TRUE(scheduler.add(make_sequence(scheduler, 20, 13)).ok());  // 8 blocks
  ASSERT_TRUE(scheduler.add(make_sequence(scheduler, 1, 1)).ok());    // 1 block: would fit
  scheduler.schedule();
  EXPECT_EQ(scheduler.running().size(), 1u);
  scheduler.remove(*scheduler.running()[0]);
  scheduler.schedule();
  ASSERT_EQ(scheduler.running().size(), 1u);
  EXPECT_EQ(scheduler.running()[0]->num_prompt_tokens, 20);
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
  }
  ASSERT_LE(tokens, limits.max_num_batched_tokens);
  ASSERT_TRUE(!step.empty() || (scheduler.running().empty() && scheduler.waiting().empty())) << "no standstill";

  std::set<int32_t> blocks, slots;
  size_t owned = 0;
  for (const auto& sequence : scheduler.running()) {
    if (sequence->decoding()) {
      ASSERT_TRUE(in_step.count(sequence.get())) << "no decode is left out";
    }
    owned += sequence->blocks.size();
    blocks.insert(sequence->blocks.begin(), sequence->blocks.end());
    slots.insert(sequence->state_slot);
    ASSERT_GE(static_cast<int>(sequence->blocks.size()) * limits.block_size, sequence->max_total_tokens - 1);
  }
  ASSERT_EQ(blocks.size(), owned) << "no block has two owners";
  ASSERT_EQ(slots.size(), scheduler.running().size());
  ASSERT_EQ(scheduler.blocks().num_free(), limits.num_blocks - static_cast<int>(owned)) << "no block is lost";
  ASSERT_EQ(scheduler.slots().num_free(), limits.max_num_seqs - static_cast<int>(slots.size())) << "no slot is lost";
}

TEST(Scheduler, KeepsItsInvariantsUnderRandomArrivalsAndCancels) {
  for (uint32_t seed = 0; seed < 30; ++seed) {
    std::mt19937 random(seed);
    const auto below = [&](int n) { return static_cast<int>(random() % static_cast<uint32_t>(n)); };
    SchedulerLimits limits{.max_num_seqs = 1 + below(6),
                           .max_model_len = 40,
                           .max_queue = 1 + below(8),
                           .num_blocks = 12 + below(20),
                           .block_size = 1 + below(5)};
    limits.max_num_batched_tokens = limits.max_num_seqs + below(20);
    Scheduler scheduler(limits);
    int arrivals = 0, last_admitted = -1;
    for (int round = 0; round < 400 || !scheduler.running().empty() || !scheduler.waiting().empty(); ++round) {
      ASSERT_LT(round, 20000) << "everything that runs comes to an end";
      if (round < 400 && below(3) > 0) {
        const int prompt = 1 + below(20), max_tokens = 1 + below(20);
        if (scheduler.fits(prompt, max_tokens).ok()) {
          auto sequence = make_sequence(scheduler, prompt, max_tokens);
          sequence->id = std::to_string(arrivals);
          if (scheduler.add(std::move(sequence)).ok()) {
            ++arrivals;
          } else {
            ASSERT_EQ(scheduler.waiting().size(), static_cast<size_t>(limits.max_queue));
          }
        }
      }
      if (below(10) == 0 && !scheduler.running().empty()) {
        scheduler.remove(
            *scheduler.running()[static_cast<size_t>(below(static_cast<int>(scheduler.running().size())))]);
      }
      if (below(10) == 0 && !scheduler.waiting().empty()) {
        scheduler.remove(
            *scheduler.waiting()[static_cast<size_t>(below(static_cast<int>(scheduler.waiting().size())))]);
      }
      const auto step = scheduler.schedule();
      ASSERT_NO_FATAL_FAILURE(check_invariants(scheduler, limits, step)) << "seed " << seed << ", round " << round;
      for (const auto& sequence : scheduler.admitted()) {
        ASSERT_GT(std::stoi(sequence->id), last_admitted) << "first come, first served";
        last_admitted = std::stoi(sequence->id);
      }
      for (Sequence* sequence : compute(step)) scheduler.remove(*sequence);
    }
    EXPECT_GT(last_admitted, 10);
    EXPECT_EQ(scheduler.blocks().num_free(), limits.num_blocks);
    EXPECT_EQ(scheduler.slots().num_free(), limits.max_num_seqs);
  }
}

}  // namespace
}  // namespace proa
