#include "cache/prefix_cache.h"

#include <algorithm>
#include <cassert>
#include <iterator>
#include <utility>

namespace proa {
namespace {

constexpr size_t kRememberedLosses = 256;

uint64_t mix(uint64_t hash, uint64_t value) {
  uint64_t x = (hash ^ value) * 0x9E3779B97F4A7C15u;
  x = (x ^ x >> 32) * 0xD6E8FEB86659FD93u;
  return x ^ x >> 32;
}

uint64_t hash_of(uint64_t seed, std::span<const int32_t> tokens) {
  for (const int32_t token : tokens) seed = mix(seed, static_cast<uint32_t>(token));
  return seed;
}

uint64_t child_key(int32_t parent, std::span<const int32_t> tokens) {
  return hash_of(static_cast<uint64_t>(parent) + 2, tokens);
}

std::span<const int32_t> block_of(std::span<const int32_t> tokens, size_t index, int block_size) {
  const auto size = static_cast<size_t>(block_size);
  return tokens.subspan(index * size, size);
}

}  // namespace

std::string_view to_string(Lost reason) {
  constexpr std::array<std::string_view, kNumLost> kNames = {"evicted", "too_short", "no_slot", "between"};
  return kNames[static_cast<size_t>(reason)];
}

PrefixCache::PrefixCache(const PrefixCacheLimits& limits)
    : limits_(limits),
      blocks_(limits.num_blocks),
      slots_(limits.num_slots),
      host_blocks_(limits.num_host_blocks),
      host_slots_(limits.num_host_slots),
      users_(static_cast<size_t>(limits.num_blocks), 0) {
  moves_.reserve(64);
  lost_.reserve(kRememberedLosses);
}

// --- blocks and slots ---

void PrefixCache::use(int32_t block) {
  blocks_.retain(block);
  if (users_[static_cast<size_t>(block)]++ == 0) ++num_used_;
}

int32_t PrefixCache::allocate_block() {
  if (available_blocks() == 0) return -1;
  while (blocks_.num_free() == 0) {
    const bool evicted = evict(false);
    assert(evicted && "a block is held by neither a sequence nor an entry");
    (void)evicted;
  }
  const int32_t block = blocks_.allocate();
  users_[static_cast<size_t>(block)] = 1;
  ++num_used_;
  return block;
}

int32_t PrefixCache::allocate_slot() {
  while (slots_.num_free() == 0) {
    if (!evict(true)) return -1;
  }
  return slots_.allocate();
}

void PrefixCache::release_block(int32_t block) {
  assert(users_[static_cast<size_t>(block)] > 0 && "no sequence has this block");
  if (--users_[static_cast<size_t>(block)] == 0) --num_used_;
  blocks_.release(block);
}

// --- the tree ---

std::span<const int32_t> PrefixCache::node_tokens(int32_t node) const {
  return block_of(tokens_, static_cast<size_t>(node), limits_.block_size);
}

int32_t PrefixCache::find_child(int32_t parent, std::span<const int32_t> tokens) const {
  const auto [begin, end] = children_.equal_range(child_key(parent, tokens));
  for (auto at = begin; at != end; ++at) {
    if (nodes_[static_cast<size_t>(at->second)].parent != parent) continue;
    if (std::ranges::equal(node_tokens(at->second), tokens)) return at->second;
  }
  return -1;
}

int32_t PrefixCache::add_child(int32_t parent, std::span<const int32_t> tokens) {
  int32_t id = static_cast<int32_t>(nodes_.size());
  if (free_nodes_.empty()) {
    nodes_.emplace_back();
    tokens_.resize(tokens_.size() + tokens.size());
  } else {
    id = free_nodes_.back();
    free_nodes_.pop_back();
  }
  nodes_[static_cast<size_t>(id)] = {.parent = parent, .key = child_key(parent, tokens)};
  std::ranges::copy(tokens, tokens_.begin() + static_cast<ptrdiff_t>(id) * limits_.block_size);
  children_.emplace(nodes_[static_cast<size_t>(id)].key, id);
  return id;
}

std::vector<int32_t> PrefixCache::path_to(int32_t node) const {
  std::vector<int32_t> path;
  for (; node >= 0; node = nodes_[static_cast<size_t>(node)].parent) path.push_back(node);
  std::ranges::reverse(path);
  return path;
}

std::optional<PrefixCache::Entries::iterator> PrefixCache::entry_at(int32_t node, std::span<const int32_t> tail) const {
  const auto [begin, end] = at_node_.equal_range(node);
  for (auto at = begin; at != end; ++at) {
    if (std::ranges::equal(at->second->tail, tail)) return at->second;
  }
  return std::nullopt;
}

PrefixCache::Match PrefixCache::find(std::span<const int32_t> tokens, int at_most) const {
  Match match;
  at_most = std::min(at_most, static_cast<int>(tokens.size()));
  // As far as blocks are known; what is left of the match is found on the way back.
  const auto full_blocks = static_cast<size_t>(at_most / limits_.block_size);
  int32_t node = -1;
  size_t depth = 0;
  while (depth < full_blocks) {
    const int32_t child = find_child(node, block_of(tokens, depth, limits_.block_size));
    if (child < 0) break;
    node = child;
    ++depth;
  }
  match.known = static_cast<int>(depth) * limits_.block_size;
  match.node = node;
  if (!limits_.has_state) match.length = match.known;
  for (; limits_.has_state; node = nodes_[static_cast<size_t>(node)].parent, --depth) {
    const auto behind =
        tokens.first(static_cast<size_t>(at_most)).subspan(depth * static_cast<size_t>(limits_.block_size));
    const auto [begin, end] = at_node_.equal_range(node);
    for (auto at = begin; at != end; ++at) {
      const Entry& entry = *at->second;
      const size_t tail = entry.tail.size();
      if (tail > behind.size() || entry.length <= match.length) continue;
      if (!std::ranges::equal(entry.tail, behind.first(tail))) continue;
      match.length = entry.length;
      match.node = node;
      match.entry = at->second;
      match.on_host = entry.on_host;
    }
    if (match.entry || node < 0) break;
  }
  match.known = std::max(match.known, match.length);
  if (match.length == 0) return match;

  const auto idle = [this](int32_t block) { return users_[static_cast<size_t>(block)] == 0 ? 1 : 0; };
  for (const int32_t id : path_to(match.node)) {
    const Node& on_path = nodes_[static_cast<size_t>(id)];
    if (on_path.block < 0) {
      match.on_host = true;
      continue;
    }
    ++match.num_blocks;
    match.num_idle += idle(on_path.block);
  }
  if (match.entry && !(*match.entry)->on_host && (*match.entry)->tail_block >= 0) {
    match.num_idle += idle((*match.entry)->tail_block);
  }
  return match;
}

void PrefixCache::pin(int32_t node, bool on_device) {
  Node& pinned = nodes_[static_cast<size_t>(node)];
  ++(on_device ? pinned.device_entries : pinned.host_entries);
}

void PrefixCache::unpin(int32_t node, bool on_device) {
  Node& pinned = nodes_[static_cast<size_t>(node)];
  --(on_device ? pinned.device_entries : pinned.host_entries);
  on_device ? leave_device(node) : leave_host(node);
}

std::optional<PrefixCache::Taken> PrefixCache::take(const Match& match) {
  Taken taken;
  // Allocating gives up entries. What is to be read stays where it is until its copies are in moves(): blocks are
  // pinned, an entry of the host is taken out of the list.
  const std::vector<int32_t> path = match.length > 0 ? path_to(match.node) : std::vector<int32_t>();
  std::vector<bool> on_device;
  for (const int32_t id : path) {
    const int32_t block = nodes_[static_cast<size_t>(id)].block;
    taken.blocks.push_back(block);
    on_device.push_back(block >= 0);
    if (block >= 0) use(block);
    pin(id, block >= 0);
  }
  const auto entry = limits_.has_state ? match.entry : match.length > 0 ? entry_at(match.node, {}) : std::nullopt;
  Entries held;
  int32_t tail_block = -1, slot = -1;
  if (entry) {
    tail_block = (*entry)->tail_block;
    slot = (*entry)->slot;
    if ((*entry)->on_host) {
      held.splice(held.end(), host_, *entry);
    } else {
      device_.splice(device_.end(), device_, *entry);
      if (slot >= 0) slots_.retain(slot);
      if (tail_block >= 0) use(tail_block);
    }
  }

  const auto how = held.empty() ? CacheMove::How::on_device : CacheMove::How::to_device;
  const auto fetch = [&](CacheMove::How from_where, int32_t from) {
    const int32_t to = allocate_block();
    assert(to >= 0 && "a match was taken that memory does not hold");
    move(CacheMove::What::block, from_where, from, to);
    return to;
  };
  taken.state_slot = allocate_slot();
  const bool enough = taken.state_slot >= 0;
  for (size_t i = 0; enough && i < path.size(); ++i) {
    if (on_device[i]) continue;
    taken.blocks[i] = fetch(CacheMove::How::to_device, nodes_[static_cast<size_t>(path[i])].host_block);
  }
  if (enough && tail_block >= 0) taken.blocks.push_back(fetch(how, tail_block));
  taken.read_slot = taken.state_slot;
  if (!held.empty()) {
    if (enough && slot >= 0) move(CacheMove::What::slot, how, slot, taken.state_slot);
    host_.splice(host_.end(), held);
  } else if (entry) {
    if (tail_block >= 0) release_block(tail_block);
    if (enough && slot >= 0) {
      taken.read_slot = slot;
    } else if (slot >= 0) {
      slots_.release(slot);
    }
  }
  for (size_t i = path.size(); i-- > 0;) unpin(path[i], on_device[i]);
  if (enough) return taken;
  for (const int32_t block : taken.blocks) {
    if (block >= 0) release_block(block);
  }
  return std::nullopt;
}

bool PrefixCache::insert(std::span<const int32_t> tokens, std::span<const int32_t> blocks, int32_t slot) {
  const auto full_blocks = tokens.size() / static_cast<size_t>(limits_.block_size);
  const auto tail = tokens.subspan(full_blocks * static_cast<size_t>(limits_.block_size));
  if (!limits_.has_state && full_blocks == 0) return false;  // nothing that could be used again

  int32_t known = -1;
  size_t depth = 0;
  for (; depth < full_blocks; ++depth) {
    const int32_t child = find_child(known, block_of(tokens, depth, limits_.block_size));
    if (child < 0) break;
    known = child;
  }
  if (depth == full_blocks) {
    const auto twin = entry_at(known, limits_.has_state ? tail : std::span<const int32_t>());
    if (twin && !(*twin)->on_host) {
      device_.splice(device_.end(), device_, *twin);
      return false;
    }
    if (twin) drop(*twin, false);  // this one is on the device
  }

  Entry entry{.slot = slot, .length = static_cast<int>(tokens.size()), .hash = hash_of(0, tokens)};
  for (size_t i = 0; i < full_blocks; ++i) {
    const auto in_block = block_of(tokens, i, limits_.block_size);
    int32_t child = find_child(entry.node, in_block);
    if (child < 0) child = add_child(entry.node, in_block);
    Node& node = nodes_[static_cast<size_t>(child)];
    if (node.block < 0) {
      node.block = blocks[i];
      blocks_.retain(blocks[i]);
    }
    ++node.device_entries;
    entry.node = child;
  }
  if (limits_.has_state && !tail.empty()) {
    entry.tail.assign(tail.begin(), tail.end());
    entry.tail_block = blocks[full_blocks];
    blocks_.retain(entry.tail_block);
  }
  if (!limits_.has_state) entry.length = static_cast<int>(full_blocks) * limits_.block_size;
  device_.push_back(std::move(entry));
  at_node_.emplace(device_.back().node, std::prev(device_.end()));
  ++stats_.inserted;
  return true;
}

// --- making room ---

bool PrefixCache::evict(bool for_slot) {
  const auto helps = [&](const Entry& entry) { return entry.slot >= 0 && slots_.references(entry.slot) == 1; };
  const auto oldest = for_slot ? std::ranges::find_if(device_, helps) : device_.begin();
  if (oldest == device_.end()) return false;
  if (!spill(oldest) && !shorten(oldest)) drop(oldest);
  return true;
}

// Without a state the first blocks of an entry are of use without the last.
bool PrefixCache::shorten(Entries::iterator entry) {
  if (limits_.has_state || entry->node < 0) return false;
  const int32_t node = entry->node, parent = nodes_[static_cast<size_t>(node)].parent;
  if (parent < 0 || nodes_[static_cast<size_t>(node)].device_entries > 1 || entry_at(parent, {})) return false;
  if (entry->hash) remember({*entry->hash, entry->length, Lost::evicted});
  forget_place(entry);
  entry->node = parent;
  entry->length -= limits_.block_size;
  entry->hash.reset();
  at_node_.emplace(parent, entry);
  --nodes_[static_cast<size_t>(node)].device_entries;
  leave_device(node);
  return true;
}

// Room on the host for what an entry of the device would take there.
bool PrefixCache::make_host_room(const Entry& entry) {
  for (;;) {
    int needed = entry.tail_block >= 0 ? 1 : 0;
    for (int32_t id = entry.node; id >= 0; id = nodes_[static_cast<size_t>(id)].parent) {
      const Node& node = nodes_[static_cast<size_t>(id)];
      if (node.device_entries == 1 && node.host_block < 0) ++needed;
    }
    if (needed > limits_.num_host_blocks || (entry.slot >= 0 && limits_.num_host_slots == 0)) return false;
    if (needed <= host_blocks_.num_free() && (entry.slot < 0 || host_slots_.num_free() > 0)) return true;
    if (host_.empty()) return false;
    drop(host_.begin());
  }
}

bool PrefixCache::spill(Entries::iterator entry) {
  if (limits_.num_host_blocks == 0 || !make_host_room(*entry)) return false;
  const std::vector<int32_t> path = path_to(entry->node);
  for (const int32_t id : path) {  // in this order, so that neighbours can be copied together
    Node& node = nodes_[static_cast<size_t>(id)];
    ++node.host_entries;
    if (node.device_entries > 1 || node.host_block >= 0) continue;
    node.host_block = host_blocks_.allocate();
    move(CacheMove::What::block, CacheMove::How::to_host, node.block, node.host_block);
  }
  for (auto id = path.rbegin(); id != path.rend(); ++id) {
    --nodes_[static_cast<size_t>(*id)].device_entries;
    leave_device(*id);
  }
  if (entry->tail_block >= 0) {
    const int32_t to = host_blocks_.allocate();
    move(CacheMove::What::block, CacheMove::How::to_host, entry->tail_block, to);
    blocks_.release(std::exchange(entry->tail_block, to));
  }
  if (entry->slot >= 0) {
    const int32_t to = host_slots_.allocate();
    move(CacheMove::What::slot, CacheMove::How::to_host, entry->slot, to);
    slots_.release(std::exchange(entry->slot, to));
  }
  entry->on_host = true;
  host_.splice(host_.end(), device_, entry);
  ++stats_.spilled;
  return true;
}

void PrefixCache::drop(Entries::iterator entry, bool remembered) {
  if (remembered) {
    if (entry->hash) remember({*entry->hash, entry->length, Lost::evicted});
    ++stats_.dropped;
  }
  forget_place(entry);
  const bool on_host = entry->on_host;
  if (entry->tail_block >= 0) (on_host ? host_blocks_ : blocks_).release(entry->tail_block);
  if (entry->slot >= 0) (on_host ? host_slots_ : slots_).release(entry->slot);
  int32_t id = entry->node;
  (on_host ? host_ : device_).erase(entry);
  while (id >= 0) {
    Node& node = nodes_[static_cast<size_t>(id)];
    const int32_t parent = node.parent;
    --(on_host ? node.host_entries : node.device_entries);
    on_host ? leave_host(id) : leave_device(id);
    id = parent;
  }
}

// No entry of the device needs the block any more: perhaps one of the host does.
void PrefixCache::leave_device(int32_t id) {
  if (nodes_[static_cast<size_t>(id)].device_entries > 0) return;
  const auto host_needs = [&] {
    const Node& node = nodes_[static_cast<size_t>(id)];
    return node.host_entries > 0 && node.host_block < 0;
  };
  while (host_needs() && host_blocks_.num_free() == 0) {
    assert(!host_.empty() && "a block of the host is held by no entry of it");
    drop(host_.begin());
  }
  Node& node = nodes_[static_cast<size_t>(id)];
  if (host_needs()) {
    node.host_block = host_blocks_.allocate();
    move(CacheMove::What::block, CacheMove::How::to_host, node.block, node.host_block);
  }
  blocks_.release(std::exchange(node.block, -1));
  erase_if_unused(id);
}

void PrefixCache::leave_host(int32_t id) {
  Node& node = nodes_[static_cast<size_t>(id)];
  if (node.host_entries > 0) return;
  if (node.host_block >= 0) host_blocks_.release(std::exchange(node.host_block, -1));
  erase_if_unused(id);
}

void PrefixCache::erase_if_unused(int32_t id) {
  const Node& node = nodes_[static_cast<size_t>(id)];
  if (node.block >= 0 || node.host_block >= 0) return;
  const auto [begin, end] = children_.equal_range(node.key);
  children_.erase(std::find_if(begin, end, [&](const auto& child) { return child.second == id; }));
  free_nodes_.push_back(id);
}

void PrefixCache::forget_place(Entries::iterator entry) {
  const auto [begin, end] = at_node_.equal_range(entry->node);
  at_node_.erase(std::find_if(begin, end, [&](const auto& at) { return at.second == entry; }));
}

void PrefixCache::clear() {
  while (!host_.empty()) drop(host_.begin(), false);
  while (!device_.empty()) drop(device_.begin(), false);
  lost_.clear();
  next_lost_ = 0;
  moves_.clear();
}

// --- statistics ---

void PrefixCache::remember(const LostPrefix& lost) {
  if (lost_.size() < kRememberedLosses) {
    lost_.push_back(lost);
  } else {
    lost_[next_lost_] = lost;
    next_lost_ = (next_lost_ + 1) % kRememberedLosses;
  }
}

void PrefixCache::note_lost(std::span<const int32_t> tokens, Lost reason) {
  remember({hash_of(0, tokens), static_cast<int>(tokens.size()), reason});
}

void PrefixCache::count(std::span<const int32_t> tokens, const Match& match) {
  stats_.queries += static_cast<int64_t>(tokens.size());
  (match.on_host ? stats_.host_hits : stats_.hits) += match.length;
  std::vector<uint64_t> hashes(1);  // of the first n tokens
  hashes.reserve(tokens.size() + 1);
  for (const int32_t token : tokens) hashes.push_back(hash_of(hashes.back(), {&token, 1}));
  int reach = match.known;
  Lost reason = Lost::between;
  for (const LostPrefix& lost : lost_) {
    const auto length = static_cast<size_t>(lost.length);
    if (lost.length < reach || lost.length <= match.length || length > tokens.size()) continue;
    if (hashes[length] != lost.hash) continue;
    reach = lost.length;
    reason = lost.reason;
  }
  stats_.lost[static_cast<size_t>(reason)] += std::max(reach - match.length, 0);
}

}  // namespace proa
