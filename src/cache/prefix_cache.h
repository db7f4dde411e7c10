// What was computed once and can be used again: KV blocks of token prefixes, shared by counting, and where the model
// has a recurrent state, snapshots of it. Hands out blocks and state slots, and makes room by giving up what was used
// longest ago: first on the device, where it goes to the host's memory if there is some, then there.
//
// It knows tokens alone: whoever shares one shares the model and the formats of its caches.
//
// Pure bookkeeping: what has to be copied is left in moves(), which somebody does in this order before the next step.
//
// Prefixes are a tree of full blocks, compared by their tokens, so that no collision of hashes can give a wrong answer.
// An entry is the end of a prefix: a recurrence cannot be rewound, so a sequence goes on exactly where a snapshot was
// taken. The entry keeps the blocks before it, a last block that may not be full, and the slot that holds the state.
// Blocks are only appended to, so the sequence that fills the last one can share it; who goes on from the entry gets a
// copy. A model without state can go on behind any full block.
#pragma once

#include <array>
#include <cstdint>
#include <list>
#include <optional>
#include <span>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "cache/block_pool.h"
#include "cache/cache_move.h"

namespace proa {

struct PrefixCacheLimits {
  int num_blocks = 1;   // on the device
  int block_size = 16;  // tokens
  int num_slots = 1;    // on the device, of running sequences and of snapshots
  bool has_state = true;
  int num_host_blocks = 0;
  int num_host_slots = 0;
};

// Why tokens that were computed before had to be computed again.
enum class Lost : uint8_t {
  evicted,    // room was needed
  too_short,  // a snapshot would have saved too little
  no_slot,    // every slot was in use when the snapshot was due
  between,    // the prompt leaves the known prefix between two snapshots
};
constexpr size_t kNumLost = 4;
std::string_view to_string(Lost reason);  // "no_slot"

struct PrefixCacheStats {
  // Tokens of prompts: looked up, found on the device, found on the host, and computed again for each reason.
  int64_t queries = 0, hits = 0, host_hits = 0;
  std::array<int64_t, kNumLost> lost = {};
  // Entries: made, moved to the host, given up.
  int64_t inserted = 0, spilled = 0, dropped = 0;
};

class PrefixCache {
  struct Entry;

 public:
  explicit PrefixCache(const PrefixCacheLimits& limits);

  // Blocks and slots of running sequences. Room is made by giving up entries; -1: running sequences hold all there are.
  int32_t allocate_block();
  int32_t allocate_slot();
  void release_block(int32_t block);
  void release_slot(int32_t slot) { slots_.release(slot); }
  void retain_slot(int32_t slot) { slots_.retain(slot); }  // of an entry, to be read

  // The longest prefix of `tokens` that is known, of at most `at_most` tokens.
  struct Match {
    int length = 0;      // tokens that need not be computed
    int num_blocks = 0;  // of them on the device, full: these need no new block
    int num_idle = 0;    // blocks of it that available_blocks() counts
    int known = 0;       // tokens whose blocks are known: beyond `length` a snapshot is missing
    bool on_host = false;

   private:
    friend class PrefixCache;
    int32_t node = -1;
    std::optional<std::list<Entry>::iterator> entry;
  };
  Match find(std::span<const int32_t> tokens, int at_most) const;

  // What a sequence starts with.
  struct Taken {
    std::vector<int32_t> blocks;  // those of the match; its own now, to be released
    int32_t state_slot = -1;      // takes the sequence's state
    int32_t read_slot = -1;       // holds it until the first step is done; the same slot, or one more to release
  };
  // Takes what find() has just returned, and a slot for the state. Nothing, if running sequences hold all slots. The
  // caller has seen to it that available_blocks() - num_idle is enough for all blocks of the match that are no
  // num_blocks.
  std::optional<Taken> take(const Match& match);

  // Makes an entry of computed tokens: `blocks` hold them, `slot` the state after the last, which is the entry's from
  // now on. False: there is such an entry, which counts as used; the slot stays the caller's.
  bool insert(std::span<const int32_t> tokens, std::span<const int32_t> blocks, int32_t slot);

  // Notes for the statistics that a prefix could have been kept.
  void note_lost(std::span<const int32_t> tokens, Lost reason);
  // Counts a prompt that begins with `match`.
  void count(std::span<const int32_t> tokens, const Match& match);

  // Gives up every entry; what running sequences hold is theirs. For when memory is not to be trusted.
  void clear();

  // Blocks that allocate_block() can give: free ones and those that only entries hold.
  int available_blocks() const { return limits_.num_blocks - num_used_; }
  int num_entries() const { return static_cast<int>(device_.size()); }
  int num_host_entries() const { return static_cast<int>(host_.size()); }
  const PrefixCacheStats& stats() const { return stats_; }

  std::span<const CacheMove> moves() const { return moves_; }
  void moves_done() { moves_.clear(); }

 private:
  friend struct PrefixCacheCheck;  // of the tests

  // A full block of tokens behind its parent's. On the device while an entry there, at it or below it, needs it; else
  // on the host, likewise; else gone.
  struct Node {
    int32_t parent = -1;  // -1: the first block
    uint64_t key = 0;
    int32_t block = -1, host_block = -1;  // the host's copy may outlive the block's return to the device
    int device_entries = 0, host_entries = 0;
  };
  struct Entry {
    int32_t node = -1;          // its last full block
    std::vector<int32_t> tail;  // tokens behind it, fewer than a block
    int32_t tail_block = -1;    // of the device or the host, as the slot
    int32_t slot = -1;
    bool on_host = false;
    int length = 0;                // tokens
    std::optional<uint64_t> hash;  // of all its tokens, for statistics; unset once it was shortened
  };
  using Entries = std::list<Entry>;  // the one used longest ago first

  std::span<const int32_t> node_tokens(int32_t node) const;
  int32_t find_child(int32_t parent, std::span<const int32_t> tokens) const;
  int32_t add_child(int32_t parent, std::span<const int32_t> tokens);
  std::vector<int32_t> path_to(int32_t node) const;  // from the first block on
  std::optional<Entries::iterator> entry_at(int32_t node, std::span<const int32_t> tail) const;

  void use(int32_t block);    // one more sequence has it
  bool evict(bool for_slot);  // gives up something on the device
  bool shorten(Entries::iterator entry);
  void pin(int32_t node, bool on_device);  // keeps its block where it is
  void unpin(int32_t node, bool on_device);
  bool spill(Entries::iterator entry);
  bool make_host_room(const Entry& entry);
  void drop(Entries::iterator entry, bool remembered = true);
  void leave_device(int32_t node);
  void leave_host(int32_t node);
  void erase_if_unused(int32_t node);
  void forget_place(Entries::iterator entry);
  void move(CacheMove::What what, CacheMove::How how, int32_t from, int32_t to) {
    moves_.push_back({what, how, from, to});
  }

  const PrefixCacheLimits limits_;
  BlockPool blocks_, slots_, host_blocks_, host_slots_;
  std::vector<int> users_;  // [num_blocks] sequences that have the block
  int num_used_ = 0;        // blocks that any has

  std::vector<Node> nodes_;
  std::vector<int32_t> tokens_;  // [nodes_.size(), block_size]
  std::vector<int32_t> free_nodes_;
  std::unordered_multimap<uint64_t, int32_t> children_;  // by key, a hash of parent and tokens
  Entries device_, host_;
  std::unordered_multimap<int32_t, Entries::iterator> at_node_;

  struct LostPrefix {
    uint64_t hash;
    int length;
    Lost reason;
  };
  void remember(const LostPrefix& lost);
  std::vector<LostPrefix> lost_;  // the last ones, a ring
  size_t next_lost_ = 0;

  PrefixCacheStats stats_;
  std::vector<CacheMove> moves_;
};

}  // namespace proa
