// For tests: counts all that a PrefixCache holds anew.
#pragma once

#include <gtest/gtest.h>

#include <map>
#include <set>
#include <span>
#include <vector>

#include "cache/prefix_cache.h"

namespace proa {

struct PrefixCacheCheck {
  // What running sequences hold: blocks, and slots that they write or read.
  std::vector<int32_t> blocks, slots;

  void operator()(const PrefixCache& cache) const {
    std::map<int32_t, int> block_references, slot_references, host_blocks, host_slots, users;
    for (const int32_t block : blocks) ++block_references[block], ++users[block];
    for (const int32_t slot : slots) ++slot_references[slot];

    std::map<int32_t, int> device_entries, host_entries;  // by node
    size_t places = 0;
    for (const auto* list : {&cache.device_, &cache.host_}) {
      for (const PrefixCache::Entry& entry : *list) {
        const bool on_host = list == &cache.host_;
        ASSERT_EQ(entry.on_host, on_host);
        int length = static_cast<int>(entry.tail.size());
        for (int32_t id = entry.node; id >= 0; id = cache.nodes_[static_cast<size_t>(id)].parent) {
          ++(on_host ? host_entries : device_entries)[id];
          length += cache.limits_.block_size;
        }
        ASSERT_EQ(entry.length, length);
        ASSERT_EQ(entry.tail_block >= 0, !entry.tail.empty());
        ASSERT_EQ(entry.slot >= 0, cache.limits_.has_state);
        if (entry.tail_block >= 0) ++(on_host ? host_blocks : block_references)[entry.tail_block];
        if (entry.slot >= 0) ++(on_host ? host_slots : slot_references)[entry.slot];
        ++places;
      }
    }
    ASSERT_EQ(cache.at_node_.size(), places);

    const std::set<int32_t> free(cache.free_nodes_.begin(), cache.free_nodes_.end());
    ASSERT_EQ(free.size(), cache.free_nodes_.size());
    ASSERT_EQ(cache.children_.size() + free.size(), cache.nodes_.size());
    for (size_t i = 0; i < cache.nodes_.size(); ++i) {
      const auto id = static_cast<int32_t>(i);
      if (free.count(id)) continue;
      const PrefixCache::Node& node = cache.nodes_[i];
      ASSERT_EQ(node.device_entries, device_entries[id]);
      ASSERT_EQ(node.host_entries, host_entries[id]);
      ASSERT_EQ(node.block >= 0, node.device_entries > 0) << "a block stays while an entry of the device needs it";
      ASSERT_TRUE(node.host_entries == 0 ? node.host_block < 0 : node.block >= 0 || node.host_block >= 0);
      if (node.block >= 0) ++block_references[node.block];
      if (node.host_block >= 0) ++host_blocks[node.host_block];
    }

    const auto same = [](const BlockPool& pool, std::map<int32_t, int>& references, const char* what) {
      int in_use = 0;
      for (int32_t id = 0; id < pool.num_blocks(); ++id) {
        ASSERT_EQ(pool.references(id), references[id]) << what << " " << id;
        in_use += references[id] > 0 ? 1 : 0;
      }
      ASSERT_EQ(pool.num_free(), pool.num_blocks() - in_use) << what;
    };
    ASSERT_NO_FATAL_FAILURE(same(cache.blocks_, block_references, "block"));
    ASSERT_NO_FATAL_FAILURE(same(cache.slots_, slot_references, "slot"));
    ASSERT_NO_FATAL_FAILURE(same(cache.host_blocks_, host_blocks, "host block"));
    ASSERT_NO_FATAL_FAILURE(same(cache.host_slots_, host_slots, "host slot"));
    int used = 0;
    for (int32_t id = 0; id < cache.limits_.num_blocks; ++id) {
      ASSERT_EQ(cache.users_[static_cast<size_t>(id)], users[id]) << "users of block " << id;
      used += users[id] > 0 ? 1 : 0;
    }
    ASSERT_EQ(cache.available_blocks(), cache.limits_.num_blocks - used);
  }
};

}  // namespace proa
