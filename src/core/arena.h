// A bump allocator over memory that somebody else owns: activations of a step live here, nothing is freed one by one.
#pragma once

#include <cassert>
#include <cstddef>
#include <cstdint>

namespace proa {

class Arena {
 public:
  static constexpr size_t kAlignment = 64;  // bytes: one cache line, one AVX-512 vector

  Arena() = default;
  // `memory` must be aligned to kAlignment and outlive the arena.
  Arena(std::byte* memory, size_t bytes) : memory_(memory), capacity_(bytes) {}

  // Uninitialised room for `count` elements of T, valid until the enclosing Scope ends. The plan that sized the arena
  // (Model::workspace_bytes) is an invariant of ours, so running out is an assert.
  template <typename T>
  T* take(int64_t count) {
    T* result = reinterpret_cast<T*>(memory_ + used_);
    used_ += padded<T>(count);
    assert(used_ <= capacity_ && "the workspace plan is too small");
    return result;
  }

  // Bytes that take<T>(count) uses: plans are sums of these.
  template <typename T>
  static size_t padded(int64_t count) {
    return (static_cast<size_t>(count) * sizeof(T) + kAlignment - 1) / kAlignment * kAlignment;
  }

  // Gives back at its end what was taken since its beginning.
  class Scope {
   public:
    explicit Scope(Arena& arena) : arena_(arena), mark_(arena.used_) {}
    ~Scope() { arena_.used_ = mark_; }
    Scope(const Scope&) = delete;
    Scope& operator=(const Scope&) = delete;

   private:
    Arena& arena_;
    size_t mark_;
  };

  size_t capacity() const { return capacity_; }
  size_t used() const { return used_; }

 private:
  std::byte* memory_ = nullptr;
  size_t capacity_ = 0;
  size_t used_ = 0;
};

}  // namespace proa
