#include "cache/kv_cache.h"

#include <cstdint>
#include <limits>
#include <string>

namespace proa {
namespace {

// K or V of one block of one layer.
size_t half_block_bytes(const CacheSpec& spec, int block_size, Format format) {
  const size_t elements = static_cast<size_t>(spec.kv_elements_per_token() / 2) * static_cast<size_t>(block_size);
  return elements * info(format).block_bytes;
}

}  // namespace

size_t KvCache::bytes_per_block(std::span<const CacheSpec> specs, int block_size, Format format) {
  size_t bytes = 0;
  for (const CacheSpec& spec : specs) {
    if (spec.kind == CacheSpec::Kind::kv) bytes += 2 * half_block_bytes(spec, block_size, format);
  }
  return bytes;
}

Result<KvCache> KvCache::create(Backend& backend, std::span<const CacheSpec> specs, int num_blocks, int block_size,
                                Format format) {
  if (format != Format::F32 && format != Format::F16 && format != Format::BF16) {
    return Error{.doing = "allocate the KV cache",
                 .where = "kv_cache_dtype",
                 .expected = "F32, F16 or BF16",
                 .actual = std::string(info(format).name),
                 .hint = ""};
  }
  KvCache cache;
  cache.views_.resize(specs.size());
  for (size_t i = 0; i < specs.size(); ++i) {
    if (specs[i].kind != CacheSpec::Kind::kv) continue;
    const size_t per_block = half_block_bytes(specs[i], block_size, format);
    if (per_block > std::numeric_limits<size_t>::max() / 2 / static_cast<size_t>(num_blocks)) {
      return Error{.doing = "allocate the KV cache",
                   .where = "layer " + std::to_string(i),
                   .expected = "a size that fits memory",
                   .actual = std::to_string(num_blocks) + " blocks of " + std::to_string(2 * per_block) + " bytes",
                   .hint = ""};
    }
    const size_t half = per_block * static_cast<size_t>(num_blocks);
    PROA_ASSIGN(Buffer buffer, backend.allocate(2 * half));
    cache.views_[i] = {.k = buffer.data(),
                       .v = buffer.data() + half,
                       .format = format,
                       .num_blocks = num_blocks,
                       .block_size = block_size};
    cache.buffers_.push_back(std::move(buffer));
  }
  return cache;
}

}  // namespace proa
