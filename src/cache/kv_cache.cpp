#include "cache/kv_cache.h"

#include <algorithm>
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
                                Format format, bool on_host) {
  if (format != Format::F32 && format != Format::F16 && format != Format::BF16 && format != Format::F8_E4M3) {
    return Error{.doing = "allocate the KV cache",
                 .where = "kv_cache_dtype",
                 .expected = "F32, F16, BF16 or F8_E4M3",
                 .actual = std::string(info(format).name),
                 .hint = ""};
  }
  KvCache cache;
  cache.format_ = format;
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
    PROA_ASSIGN(Buffer buffer, on_host ? backend.allocate_pinned(2 * half) : backend.allocate(2 * half));
    cache.views_[i] = {.k = buffer.data(),
                       .v = buffer.data() + half,
                       .format = format,
                       .num_blocks = num_blocks,
                       .block_size = block_size};
    cache.buffers_.push_back(std::move(buffer));
    cache.block_bytes_.push_back(per_block);
  }
  return cache;
}

void KvCache::copy(Backend& backend, CacheMove::How how, const KvCache& from, int32_t first, const KvCache& to,
                   int32_t to_first, int count) {
  for (size_t i = 0; i < from.buffers_.size(); ++i) {
    const size_t half = from.buffers_[i].bytes / 2, to_half = to.buffers_[i].bytes / 2;
    const size_t per_block = from.block_bytes_[i];
    for (const size_t part : {0, 1}) {  // keys, values
      carry(backend, how, to.buffers_[i].data() + part * to_half + static_cast<size_t>(to_first) * per_block,
            from.buffers_[i].data() + part * half + static_cast<size_t>(first) * per_block,
            static_cast<size_t>(count) * per_block);
    }
  }
}

void KvCache::fill_with_noise(Backend& backend) {
  std::vector<float> noise(65521);  // a prime: blocks do not begin at the same place of it
  uint32_t state = 1;
  for (float& value : noise) {
    state = state * 1664525u + 1013904223u;
    value = (static_cast<float>(state >> 8) / 0x1p24f - 0.5f) * 3.4641016f;
  }
  const size_t bytes = noise.size() * info(format_).block_bytes;
  std::vector<std::byte> encoded(bytes);
  encode_row(format_, noise.data(), static_cast<int64_t>(noise.size()), encoded.data());
  for (const Buffer& buffer : buffers_) {
    for (size_t at = 0; at < buffer.bytes; at += bytes) {
      backend.upload(buffer.data() + at, encoded.data(), std::min(bytes, buffer.bytes - at));
    }
  }
}

}  // namespace proa
