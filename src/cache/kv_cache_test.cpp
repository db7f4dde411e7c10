#include "cache/kv_cache.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "cache/ssm_state_cache.h"
#include "engine/fake_model.h"

namespace proa {
namespace {

const std::vector<CacheSpec> kSpecs = {
    {.kind = CacheSpec::Kind::kv, .num_kv_heads = 2, .head_dim = 8},
    {},
    {.kind = CacheSpec::Kind::state,
     .conv_dim = 5,
     .conv_kernel = 4,
     .num_heads = 3,
     .ssm_head_dim = 2,
     .ssm_state_size = 7},
    {.kind = CacheSpec::Kind::kv, .num_kv_heads = 1, .head_dim = 4},
    {.kind = CacheSpec::Kind::state,
     .conv_dim = 1,
     .conv_kernel = 2,
     .num_heads = 1,
     .ssm_head_dim = 1,
     .ssm_state_size = 1},
};

TEST(KvCache, LayersHaveRoomOfTheirOwn) {
  const struct {
    Format format;
    size_t bytes;
  } rows[] = {{Format::F32, 4}, {Format::F16, 2}, {Format::BF16, 2}};
  for (const auto& row : rows) {
    HostBackend backend;
    EXPECT_EQ(KvCache::bytes_per_block(kSpecs, 16, row.format), 16 * (2 * 16 + 2 * 4) * row.bytes);
    const auto cache = KvCache::create(backend, kSpecs, 3, 16, row.format);
    ASSERT_TRUE(cache.ok());
    for (size_t layer : {0u, 3u}) {
      const KvCacheView view = cache->view(layer);
      const size_t half = 3 * 16 * static_cast<size_t>(kSpecs[layer].kv_elements_per_token() / 2) * row.bytes;
      std::memset(view.k, static_cast<int>(layer + 1), half);  // the sanitizer sees a byte too many
      std::memset(view.v, static_cast<int>(layer + 2), half);
      EXPECT_EQ(view.num_blocks, 3);
      EXPECT_EQ(view.block_size, 16);
      EXPECT_EQ(view.format, row.format);
    }
    EXPECT_EQ(cache->view(0).k[3 * 16 * 16 * row.bytes - 1], std::byte{1});
    EXPECT_EQ(cache->view(0).v[0], std::byte{2});
    for (size_t layer : {1u, 2u, 4u}) EXPECT_EQ(cache->view(layer).k, nullptr);
  }
}

TEST(KvCache, BlocksAndSlotsAreCopiedWhole) {
  HostBackend backend;
  const auto device = KvCache::create(backend, kSpecs, 5, 16, Format::F16);
  const auto host = KvCache::create(backend, kSpecs, 3, 16, Format::F16, true);
  ASSERT_TRUE(device.ok() && host.ok());
  for (const size_t layer : {0u, 3u}) {
    const size_t half = 16 * static_cast<size_t>(kSpecs[layer].kv_elements_per_token() / 2) * 2;  // K or V of a block
    const KvCacheView on_device = device->view(layer), on_host = host->view(layer);
    for (int block = 0; block < 5; ++block) {
      std::memset(on_device.k + half * static_cast<size_t>(block), block, half);
      std::memset(on_device.v + half * static_cast<size_t>(block), 10 + block, half);
    }
    KvCache::copy(backend, CacheMove::How::to_host, *device, 2, *host, 1, 2);
    for (const size_t at : {size_t{0}, half - 1}) {
      EXPECT_EQ(on_host.k[half + at], std::byte{2});
      EXPECT_EQ(on_host.k[2 * half + at], std::byte{3});
      EXPECT_EQ(on_host.v[half + at], std::byte{12});
      EXPECT_EQ(on_host.v[2 * half + at], std::byte{13});
    }
    EXPECT_EQ(on_host.k[half - 1], std::byte{0xFF}) << "the block before is as it was";
  }
  const auto states = SsmStateCache::create(backend, kSpecs, 4);
  const auto swapped = SsmStateCache::create(backend, kSpecs, 2, true);
  ASSERT_TRUE(states.ok() && swapped.ok());
  for (const size_t layer : {2u, 4u}) {
    const size_t ssm = static_cast<size_t>(kSpecs[layer].ssm_state_elements());
    const size_t conv = static_cast<size_t>(kSpecs[layer].conv_state_elements());
    for (size_t slot = 0; slot < 4; ++slot) {
      std::fill_n(states->view(layer).ssm + slot * ssm, ssm, static_cast<float>(slot));
      std::fill_n(states->view(layer).conv + slot * conv, conv, static_cast<float>(10 + slot));
    }
    SsmStateCache::copy(backend, CacheMove::How::to_host, *states, 3, *swapped, 1);
    for (size_t i = 0; i < ssm; ++i) EXPECT_EQ(swapped->view(layer).ssm[ssm + i], 3);
    for (size_t i = 0; i < conv; ++i) EXPECT_EQ(swapped->view(layer).conv[conv + i], 13);
    EXPECT_TRUE(std::isnan(swapped->view(layer).ssm[ssm - 1]));
  }
}

TEST(KvCache, ErrorsNameThePlace) {
  HostBackend backend;
  const auto format = KvCache::create(backend, kSpecs, 3, 16, Format::Q8_0);
  ASSERT_FALSE(format.ok());
  EXPECT_EQ(format.error().where, "kv_cache_dtype");
  const std::vector<CacheSpec> huge = {{.kind = CacheSpec::Kind::kv, .num_kv_heads = 1 << 30, .head_dim = 1 << 16}};
  const auto size = KvCache::create(backend, huge, 1 << 30, 16, Format::F32);
  ASSERT_FALSE(size.ok());
  EXPECT_EQ(size.error().where, "layer 0");
  backend.fail_allocation(1);
  EXPECT_FALSE(KvCache::create(backend, kSpecs, 3, 16, Format::F32).ok());
}

TEST(SsmStateCache, LayersHaveRoomOfTheirOwn) {
  HostBackend backend;
  EXPECT_EQ(SsmStateCache::bytes_per_slot(kSpecs), (5 * 3 + 3 * 2 * 7 + 1 + 1) * sizeof(float));
  const auto cache = SsmStateCache::create(backend, kSpecs, 4);
  ASSERT_TRUE(cache.ok());
  const StateCacheView view = cache->view(2);
  std::fill_n(view.conv, 4 * 5 * 3, 1.0f);
  std::fill_n(view.ssm, 4 * 3 * 2 * 7, 2.0f);
  EXPECT_EQ(view.conv[0], 1.0f);
  EXPECT_EQ(view.conv[4 * 5 * 3 - 1], 1.0f);
  EXPECT_EQ(view.num_slots, 4);
  EXPECT_EQ(cache->view(0).ssm, nullptr);
  EXPECT_NE(cache->view(4).ssm, nullptr);
  backend.fail_allocation(0);
  EXPECT_FALSE(SsmStateCache::create(backend, kSpecs, 4).ok());
}

}  // namespace
}  // namespace proa
