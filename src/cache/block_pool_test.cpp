#include "cache/block_pool.h"

#include <gtest/gtest.h>

#include <map>
#include <random>

namespace proa {
namespace {

TEST(BlockPool, HandsOutEveryIdOnceAndTheLastFreedFirst) {
  BlockPool pool(3);
  EXPECT_EQ(pool.allocate(), 0);
  EXPECT_EQ(pool.allocate(), 1);
  EXPECT_EQ(pool.allocate(), 2);
  EXPECT_EQ(pool.allocate(), -1);
  pool.release(1);
  pool.release(0);
  EXPECT_EQ(pool.num_free(), 2);
  EXPECT_EQ(pool.allocate(), 0);
  EXPECT_EQ(pool.allocate(), 1);
}

TEST(BlockPool, ASharedBlockIsFreedByItsLastOwner) {
  BlockPool pool(1);
  const int32_t id = pool.allocate();
  pool.retain(id);
  pool.release(id);
  EXPECT_EQ(pool.num_free(), 0);
  EXPECT_EQ(pool.references(id), 1);
  pool.release(id);
  EXPECT_EQ(pool.num_free(), 1);
}

TEST(BlockPool, AnEmptyPoolHasNothing) { EXPECT_EQ(BlockPool(0).allocate(), -1); }

TEST(BlockPool, RandomUseLosesNothing) {
  std::mt19937 random(1);
  BlockPool pool(50);
  std::map<int32_t, int> owners;
  for (int i = 0; i < 20000; ++i) {
    const uint32_t action = random() % 3;
    if (action == 0) {
      const int32_t id = pool.allocate();
      ASSERT_EQ(id < 0, owners.size() == 50);
      if (id >= 0) {
        ASSERT_TRUE(owners.emplace(id, 1).second) << "handed out twice";
      }
    } else if (!owners.empty()) {
      const auto it = std::next(owners.begin(), static_cast<ptrdiff_t>(random() % owners.size()));
      if (action == 1 && it->second < 4) {
        pool.retain(it->first), ++it->second;
      } else {
        pool.release(it->first);
        if (--it->second == 0) owners.erase(it);
      }
    }
    ASSERT_EQ(pool.num_free(), 50 - static_cast<int>(owners.size()));
  }
}

}  // namespace
}  // namespace proa
