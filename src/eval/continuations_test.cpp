#include "eval/continuations.h"

#include <gtest/gtest.h>

#include <cmath>
#include <map>

#include "backends/backends.h"
#include "checkpoint/checkpoint.h"
#include "engine/teacher_forcing.h"
#include "eval/rounding_backend.h"
#include "models/dummy.h"
#include "models/family.h"
#include "models/model.h"

namespace proa {
namespace {

// Nano in small with dummy weights: Mamba-2, experts and attention.
std::shared_ptr<const Model> small_model(Backend& backend) {
  const auto config = nlohmann::ordered_json::parse(find_known_model("NVIDIA-Nemotron-3-Nano-30B-A3B")->model->config);
  const auto small = scale_config(config, 7, 32);
  const auto dummy = make_dummy("small", *small, **find_precision("f32"), {.gguf = true});
  auto model = open_model(std::make_shared<const Checkpoint>(*Checkpoint::dummy(*dummy)), backend);
  return *std::move(model);
}

std::vector<int32_t> tokens(int count, int seed) {
  std::vector<int32_t> ids;
  for (int i = 0; i < count; ++i) ids.push_back(20 + (i * 37 + seed * 101 + i * i * 7) % 1900);
  return ids;
}

std::vector<int32_t> joined(std::vector<int32_t> a, const std::vector<int32_t>& b) {
  a.insert(a.end(), b.begin(), b.end());
  return a;
}

const std::function<Result<void>()> kGoOn = []() -> Result<void> { return {}; };

// Greedy tokens one at a time, each prompt by itself and from its beginning.
std::vector<int32_t> alone(const Model& model, Backend& backend, std::vector<int32_t> ids, int count) {
  std::vector<int32_t> drawn;
  for (int i = 0; i < count; ++i) {
    const int32_t last[] = {static_cast<int32_t>(ids.size()) - 1};
    const auto logits = forced_logits(model, backend, ids, last);
    drawn.push_back(static_cast<int32_t>(std::max_element(logits->begin(), logits->end()) - logits->begin()));
    ids.push_back(drawn.back());
  }
  return drawn;
}

class Continuations : public testing::Test {
 protected:
  std::unique_ptr<Backend> backend_ = *make_backend("cpu", {.num_threads = 1});
  std::shared_ptr<const Model> model_ = small_model(*backend_);
};

TEST_F(Continuations, AreThoseOfEachPromptAlone) {
  const std::vector<int32_t> window = tokens(41, 1), other = tokens(70, 2);
  std::vector<std::vector<Continuation>> groups = {
      {{.prompt = joined(window, tokens(5, 3)), .max_tokens = 6},
       {.prompt = joined(window, tokens(17, 4)), .max_tokens = 3},
       {.prompt = window, .max_tokens = 4}},  // nothing of its own: the last token is never shared
      {{.prompt = tokens(3, 5), .max_tokens = 5}},
      {},
      {{.prompt = joined(other, tokens(1, 6)), .max_tokens = 1},
       {.prompt = joined(other, tokens(1, 6)), .max_tokens = 2},  // the same twice
       {.prompt = joined(other, tokens(40, 7)), .max_tokens = 2}},
  };
  struct Row {
    const char* what;
    int seqs, batched, block;
  };
  for (const Row& row : {Row{"all at once", 8, 512, 16}, Row{"one at a time", 1, 512, 16},
                         Row{"small steps, odd blocks", 3, 7, 5}, Row{"blocks longer than prompts", 8, 64, 128}}) {
    SCOPED_TRACE(row.what);
    std::map<std::pair<size_t, size_t>, std::vector<int32_t>> drawn;
    const auto stats = run_continuations(
        *model_, *backend_,
        {.max_num_seqs = row.seqs,
         .max_num_batched_tokens = row.batched,
         .block_size = row.block,
         .kv_cache_dtype = Format::F32},
        groups,
        {.drawn =
             [&](size_t group, size_t index, std::span<const int32_t> ids, bool ended) {
               EXPECT_FALSE(ended);
               EXPECT_TRUE(drawn.emplace(std::pair(group, index), std::vector(ids.begin(), ids.end())).second);
             },
         .scored = {},
         .keep_going = kGoOn});
    ASSERT_TRUE(stats.ok()) << stats.error().message();
    for (size_t g = 0; g < groups.size(); ++g) {
      for (size_t i = 0; i < groups[g].size(); ++i) {
        const auto& what = groups[g][i];
        EXPECT_EQ((drawn[{g, i}]), alone(*model_, *backend_, what.prompt, what.max_tokens)) << g << ", " << i;
      }
    }
    if (row.block == 16) {
      EXPECT_LT(stats->computed_tokens, stats->prompt_tokens - 150);
    }
  }
}

TEST_F(Continuations, EndAtAnEndToken) {
  const auto ids = tokens(20, 8);
  const auto free_run = alone(*model_, *backend_, ids, 4);
  bool called = false;
  const auto stats =
      run_continuations(*model_, *backend_, {.kv_cache_dtype = Format::F32, .eos_token_ids = {free_run[2]}},
                        {{{.prompt = ids, .max_tokens = 9}}},
                        {.drawn =
                             [&](size_t, size_t, std::span<const int32_t> drawn, bool ended) {
                               called = true;
                               EXPECT_TRUE(ended);
                               EXPECT_TRUE(std::equal(drawn.begin(), drawn.end(), free_run.begin()));
                             },
                         .scored = {},
                         .keep_going = kGoOn});
  EXPECT_TRUE(stats.ok() && called);
}

TEST_F(Continuations, GivenTokensHaveTheLogitsOfTeacherForcing) {
  const std::vector<int32_t> window = tokens(37, 1);
  const std::vector<std::vector<Continuation>> groups = {
      {{.prompt = joined(window, tokens(4, 2)), .forced = tokens(9, 3)},
       {.prompt = joined(window, tokens(2, 4)), .forced = tokens(1, 5)},
       {.prompt = window, .forced = tokens(30, 6)}},
      {{.prompt = tokens(1, 7), .forced = tokens(50, 8)}}};
  for (const bool decodes : {false, true}) {
    int seen = 0;
    const auto stats = run_continuations(
        *model_, *backend_,
        {.max_num_seqs = 3,
         .max_num_batched_tokens = 19,
         .block_size = 4,
         .kv_cache_dtype = Format::F32,
         .forced_as_decodes = decodes},
        groups,
        {.drawn = {},
         .scored =
             [&](size_t group, size_t index, size_t position, const float* logits) {
               ++seen;
               const Continuation& what = groups[group][index];
               const auto all = joined(what.prompt, what.forced);
               const int32_t row[] = {static_cast<int32_t>(what.prompt.size() + position) - 1};
               const auto expected = forced_logits(*model_, *backend_, all, row);
               double squares = 0, off = 0;
               for (size_t i = 0; i < expected->size(); ++i) {
                 squares += double{(*expected)[i]} * (*expected)[i];
                 off += std::pow(double{(*expected)[i]} - logits[i], 2);
               }
               // Sums in another order, as in the goldens of whole models.
               EXPECT_LE(std::sqrt(off / squares), 2e-5) << group << ", " << index << ", " << position;
             },
         .keep_going = kGoOn});
    ASSERT_TRUE(stats.ok()) << stats.error().message();
    EXPECT_EQ(seen, 9 + 1 + 30 + 50);
  }
}

TEST_F(Continuations, RefusesWhatIsNoToken) {
  const auto stats = run_continuations(*model_, *backend_, {}, {{{.prompt = {1, 1 << 20}, .max_tokens = 1}}},
                                       {.drawn = {}, .scored = {}, .keep_going = kGoOn});
  ASSERT_FALSE(stats.ok());
  EXPECT_NE(stats.error().message().find("1048576"), std::string::npos);
}

TEST_F(Continuations, StopWhenAsked) {
  int steps = 0;
  const auto stats = run_continuations(*model_, *backend_, {}, {{{.prompt = tokens(5, 1), .max_tokens = 50}}},
                                       {.drawn = {}, .scored = {}, .keep_going = [&]() -> Result<void> {
                                          if (++steps < 5) return {};
                                          return Error{"run", "", "", "interrupted", ""};
                                        }});
  ASSERT_FALSE(stats.ok());
  EXPECT_EQ(steps, 5);
}

// Rounding shows in the logits, each kind by about its own precision, and none changes nothing.
TEST_F(Continuations, CachesOfFewerBits) {
  const auto ids = tokens(60, 9);
  const int32_t rows[] = {40, 50, 59};
  const std::shared_ptr<Backend> shared = *make_backend("cpu", {.num_threads = 1});
  const auto run = [&](Format kv, Rounding state) {
    RoundingBackend rounding(shared, state);
    const auto model = small_model(rounding);
    return *forced_logits(*model, rounding, ids, rows, {.chunks = {20, 1}, .kv_cache_dtype = kv});
  };
  const auto exact = run(Format::F32, Rounding::none);
  const auto plain = *forced_logits(*model_, *backend_, ids, rows, {.chunks = {20, 1}});
  EXPECT_EQ(exact, plain);
  const auto off = [&](const std::vector<float>& logits) {
    double squares = 0, sum = 0;
    for (size_t i = 0; i < exact.size(); ++i) {
      squares += double{exact[i]} * exact[i];
      sum += std::pow(double{exact[i]} - logits[i], 2);
    }
    return std::sqrt(sum / squares);
  };
  const double kv8 = off(run(Format::F8_E4M3, Rounding::none)), kv16 = off(run(Format::BF16, Rounding::none));
  const double state16 = off(run(Format::F32, Rounding::f16)), state_bf16 = off(run(Format::F32, Rounding::bf16));
  EXPECT_GT(kv8, 4 * kv16);
  EXPECT_LT(kv8, 0.1);
  EXPECT_GT(kv16, 1e-6);
  EXPECT_GT(state_bf16, 3 * state16);
  EXPECT_GT(state16, 1e-7);
  EXPECT_LT(state_bf16, 0.1);
}

}  // namespace
}  // namespace proa
