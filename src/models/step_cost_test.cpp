// Sums that can be done in the head, on a model of round numbers. Full-size checkpoints: tests/family_test.cpp.
#include "models/step_cost.h"

#include <gtest/gtest.h>

namespace proa {
namespace {

class Stated final : public Model {
 public:
  Stated(std::vector<WeightUse> weights, std::vector<CacheSpec> caches) {
    info_.vocab_size = 10;
    info_.n_routed_experts = 8;
    info_.num_experts_per_tok = 2;
    info_.num_attention_heads = 4;
    cache_specs_ = std::move(caches);
    set_weights(std::move(weights));
  }
  size_t workspace_bytes(int) const override { return 0; }
  void forward(Backend&, const Batch&, std::span<const LayerCache>, Arena&, float*) const override {}
};

const WeightUse kEmbedding = {.kind = WeightKind::embedding, .parameters = 100, .bytes = 200};
const WeightUse kNorm = {.kind = WeightKind::vector, .parameters = 5, .bytes = 20};
const WeightUse kMatrix = {.kind = WeightKind::mamba, .parameters = 1000, .bytes = 500};
const WeightUse kExperts = {
    .kind = WeightKind::expert, .parameters = 8000, .bytes = 4000, .num_experts = 8, .experts_per_token = 2};
const WeightUse kLmHead = {.kind = WeightKind::lm_head, .parameters = 100, .bytes = 110};
const CacheSpec kFull = {.kind = CacheSpec::Kind::kv, .num_kv_heads = 2, .head_dim = 8};
const CacheSpec kWindow = {.kind = CacheSpec::Kind::kv, .num_kv_heads = 2, .head_dim = 8, .window = 3};
const CacheSpec kState = {.kind = CacheSpec::Kind::state,
                          .conv_dim = 10,
                          .conv_kernel = 4,
                          .num_heads = 2,
                          .ssm_head_dim = 5,
                          .ssm_state_size = 10};

TEST(StepCost, CountsParametersThatATokenUses) {
  struct Row {
    const char* what;
    std::vector<WeightUse> weights;
    int64_t total, active;
  };
  const Row rows[] = {
      {"base", {kEmbedding, kNorm, kMatrix, kLmHead}, 1205, 1105},
      {"tied: the embedding multiplies", {kEmbedding, kNorm, kMatrix}, 1105, 1105},
      {"2 of 8 experts", {kEmbedding, kNorm, kMatrix, kExperts, kLmHead}, 9205, 3105},
  };
  for (const Row& row : rows) {
    const ParameterCount count = count_parameters(Stated(row.weights, {}));
    EXPECT_EQ(count.total, row.total) << row.what;
    EXPECT_EQ(count.active, row.active) << row.what;
    EXPECT_EQ(count.embedding, 100) << row.what;
  }
}

TEST(StepCost, ReadsEachWeightOncePerStepAndARowOfTheEmbeddingPerToken) {
  struct Row {
    const char* what;
    std::vector<WeightUse> weights;
    int64_t num_tokens;
    double distinct_experts, bytes;
  };
  const Row rows[] = {
      {"base", {kEmbedding, kNorm, kMatrix, kLmHead}, 1, 0, 20 + 20 + 500 + 110},
      {"three tokens", {kEmbedding, kNorm, kMatrix, kLmHead}, 3, 0, 60 + 20 + 500 + 110},
      {"tied", {kEmbedding, kNorm, kMatrix}, 1, 0, 20 + 200 + 20 + 500},
      {"experts", {kEmbedding, kExperts, kLmHead}, 1, 2, 20 + 1000 + 110},
      {"an average of experts", {kEmbedding, kExperts, kLmHead}, 4, 5.5, 80 + 2750 + 110},
      {"more experts than there are", {kEmbedding, kExperts, kLmHead}, 1, 99, 20 + 4000 + 110},
  };
  for (const Row& row : rows) {
    EXPECT_DOUBLE_EQ(weight_bytes_of_step(Stated(row.weights, {}), row.num_tokens, row.distinct_experts), row.bytes)
        << row.what;
  }
  EXPECT_DOUBLE_EQ(weight_bytes_per_token(Stated({kEmbedding, kExperts, kLmHead}, {})), 20 + 1000 + 110);
}

TEST(StepCost, ExpertsMeetByChance) {
  const Stated model({kExperts}, {});
  EXPECT_DOUBLE_EQ(expected_distinct_experts(model, 0), 0);
  EXPECT_DOUBLE_EQ(expected_distinct_experts(model, 1), 2);
  EXPECT_DOUBLE_EQ(expected_distinct_experts(model, 2), 8 * (1 - 0.75 * 0.75));
  EXPECT_NEAR(expected_distinct_experts(model, 1000), 8, 1e-9);
}

TEST(StepCost, ReadsStateAndKeysOfWhatIsVisible) {
  const Stated model({kMatrix}, {kFull, kWindow, kState, CacheSpec{}});
  EXPECT_EQ(state_bytes(model).ssm, 4 * 100);
  EXPECT_EQ(state_bytes(model).conv, 4 * 30);
  EXPECT_EQ(kv_bytes_per_token(model, Format::BF16), 2 * (2 * 32));
  EXPECT_EQ(kv_bytes_per_token(model, Format::F32), 2 * (4 * 32));
  EXPECT_EQ(kv_bytes_read(model, Format::BF16, 0), 0);
  EXPECT_EQ(kv_bytes_read(model, Format::BF16, 100), 64 * (100 + 3));
  EXPECT_DOUBLE_EQ(decode_bytes(model, 5, 0, Format::BF16, 100), 500 + 5 * (2 * 520 + 64 * 103));
}

TEST(StepCost, CountsOperations) {
  const std::vector<WeightUse> weights = {kEmbedding, kNorm, kMatrix, kExperts, kLmHead};
  const double layers = 2 * (1000 + 2000), head = 2 * 100, attention = 4 * 4 * 8, state = 5 * 100 + 2 * 4 * 10;
  EXPECT_DOUBLE_EQ(decode_flops(Stated(weights, {}), 50), layers + head);
  EXPECT_DOUBLE_EQ(decode_flops(Stated(weights, {kState}), 50), layers + head + state);
  EXPECT_DOUBLE_EQ(decode_flops(Stated(weights, {kFull, kWindow}), 50), layers + head + attention * (50 + 3));
  EXPECT_DOUBLE_EQ(prefill_flops(Stated(weights, {}), 7), 7 * layers + head);
  EXPECT_DOUBLE_EQ(prefill_flops(Stated(weights, {kState}), 7), 7 * (layers + state) + head);
  EXPECT_DOUBLE_EQ(prefill_flops(Stated(weights, {kFull}), 7), 7 * layers + head + attention * 28);
  EXPECT_DOUBLE_EQ(prefill_flops(Stated(weights, {kWindow}), 7), 7 * layers + head + attention * (1 + 2 + 3 * 5));
}

}  // namespace
}  // namespace proa
