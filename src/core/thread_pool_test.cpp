#include "core/thread_pool.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <numeric>
#include <vector>

namespace proa {
namespace {

TEST(ThreadPool, RunCallsEveryThreadOnce) {
  for (int threads : {1, 2, 5}) {
    ThreadPool pool(threads);
    ASSERT_EQ(pool.num_threads(), threads);
    for (int round = 0; round < 200; ++round) {
      std::vector<int> calls(static_cast<size_t>(threads));
      pool.run([&](int thread) { ++calls[static_cast<size_t>(thread)]; });
      EXPECT_EQ(calls, std::vector<int>(static_cast<size_t>(threads), 1));
    }
  }
}

TEST(ThreadPool, ParallelForCoversEachValueOnceCutAtTheGrain) {
  for (int threads : {1, 2, 5}) {
    ThreadPool pool(threads);
    for (int64_t count : {0, 1, 3, 4, 5, 64, 1000, 1001}) {
      for (int64_t grain : {1, 4, 7, 2000}) {
        std::vector<int> calls(static_cast<size_t>(count));
        pool.parallel_for(count, grain, [&](int64_t begin, int64_t end, int thread) {
          EXPECT_LT(begin, end);
          EXPECT_EQ(begin % grain, 0);
          EXPECT_TRUE(end % grain == 0 || end == count);
          EXPECT_TRUE(thread >= 0 && thread < threads);
          for (int64_t i = begin; i < end; ++i) ++calls[static_cast<size_t>(i)];
        });
        EXPECT_TRUE(std::all_of(calls.begin(), calls.end(), [](int n) { return n == 1; }));
      }
    }
  }
}

// Loops of both kinds right after each other: what one wrote, the next one reads.
TEST(ThreadPool, LoopsFollowEachOther) {
  ThreadPool pool(3);
  std::vector<int64_t> values(97, 0);
  for (int round = 0; round < 5000; ++round) {
    pool.parallel_for(97, 1, [&](int64_t begin, int64_t end, int) {
      for (int64_t i = begin; i < end; ++i) ++values[static_cast<size_t>(i)];
    });
    if (round % 16 == 0) {
      pool.run([&](int thread) {
        for (size_t i = static_cast<size_t>(thread); i < values.size(); i += 3) ++values[i];
      });
    }
  }
  EXPECT_EQ(std::accumulate(values.begin(), values.end(), int64_t{0}), 97 * (5000 + 313));
}

}  // namespace
}  // namespace proa
