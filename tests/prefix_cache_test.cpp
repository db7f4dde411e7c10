// What is known is not computed again and changes nothing: answers of the model in this repository, a small Nemotron-H,
// are the same whether the engine knows a prompt's beginning, has swapped it out, was preempted, or computes all of it,
// alone or beside others.
#include <gtest/gtest.h>

#include <cmath>
#include <cstdio>

#include "engine/engine.h"
#include "golden.h"
#include "tokenizer/tokenizer.h"

namespace proa::golden {
namespace {

using Tokens = std::vector<int32_t>;

Tokens operator+(Tokens a, const Tokens& b) {
  a.insert(a.end(), b.begin(), b.end());
  return a;
}

struct Answer {
  Tokens tokens;
  std::vector<float> logprobs;
  int cached_tokens = 0;
};

class Served {
 public:
  Served(const char* device, const std::string& path, const std::function<void(EngineConfig&)>& change) {
    const std::shared_ptr<Backend> backend = must(make_backend(device, {.num_threads = 1}));
    checkpoint_ = std::make_shared<const Checkpoint>(must(Checkpoint::open(path)));
    tokenizer_ = must(Tokenizer::open(*checkpoint_));
    EngineConfig config{.max_num_seqs = 4,
                        .max_num_batched_tokens = 48,
                        .max_model_len = 512,
                        .kv_cache_dtype = Format::F32,
                        .snapshot_interval = 64,
                        .min_snapshot_tokens = 4};
    change(config);
    engine_ = must(Engine::create(must(open_model(checkpoint_, *backend)), backend, *tokenizer_, config));
  }

  Tokens encode(const std::string& text) const { return tokenizer_->encode(text, {}); }
  int32_t end() const { return engine_->config().eos_token_ids.front(); }
  Engine& engine() { return *engine_; }

  std::shared_ptr<Reply> submit(const Tokens& prompt, int max_tokens, bool use_prefix_cache = true) {
    return must(engine_->submit({.prompt_token_ids = prompt,
                                 .params = {.temperature = 0, .max_tokens = max_tokens, .ignore_eos = true},
                                 .use_prefix_cache = use_prefix_cache}));
  }
  static Answer read(Reply& reply) {
    Answer answer;
    std::vector<TokenEvent> events;
    while (reply.next(events) == Reply::Status::events) {
      for (const TokenEvent& event : events) {
        if (event.token_id < 0) continue;
        answer.tokens.push_back(event.token_id);
        answer.logprobs.push_back(event.logprob);
      }
    }
    EXPECT_FALSE(reply.error()) << reply.error()->message();
    answer.cached_tokens = reply.timings().cached_tokens;
    return answer;
  }
  Answer ask(const Tokens& prompt, int max_tokens, bool use_prefix_cache = true) {
    return read(*submit(prompt, max_tokens, use_prefix_cache));
  }

 private:
  std::shared_ptr<const Checkpoint> checkpoint_;
  std::optional<Tokenizer> tokenizer_;
  std::unique_ptr<Engine> engine_;
};

const std::string kBuoy = PROA_SOURCE_DIR "/models/proa-buoy";

const char* const kTexts[] = {
    "You watch over a buoy. Say what you see in its readings, in one sentence, and whether anybody has to act. "
    "Temperatures are in degrees Celsius, heights in metres, wind in metres per second.",
    "The water has 14.2 degrees, the waves are 1.3 metres high, the wind blows with 7 metres per second.",
    "And an hour later: 14.1 degrees, waves of 2.9 metres, wind of 16 metres per second, the battery at 41 percent.",
    "Now 13.9 degrees, waves of 4.4 metres, wind of 24 metres per second, the battery at 17 percent."};

TEST(PrefixCache, AConversationSaysTheSameWhetherItIsKnownOrNot) {
  for (const char* device : {"reference", "cpu", "cuda:0"}) {
    if (std::string(device) == "cuda:0" && !make_backend(device).ok()) continue;
    const bool slow = std::string(device) == "reference";
    for (const bool swapped : {false, true}) {
      SCOPED_TRACE(std::string(device) + (swapped ? ", swapped" : ""));
      Served served(device, kBuoy, [&](EngineConfig& config) {
        config.max_num_seqs = 2;  // room for one that runs and one that is known
        if (!swapped) return;
        config.max_num_seqs = 1;
        config.snapshot_bytes = 0;  // one slot, which every request takes from the last
        config.kv_offloading_bytes = int64_t{64} << 20;
      });
      const Tokens begin = served.encode("Answer: ");
      Tokens history;
      int known = 0;
      for (const char* text : kTexts) {
        Tokens turn = served.encode(text);
        if (slow && text == kTexts[3]) break;
        if (slow) turn.resize(6);
        history = history + turn + Tokens{served.end()};
        const int length = slow ? 6 : 24;
        const Answer alone = served.ask(history + begin, length, false);
        const Answer answer = served.ask(history + begin, length);
        EXPECT_EQ(answer.tokens, alone.tokens);
        EXPECT_EQ(answer.cached_tokens, swapped ? 0 : known) << "with no slot nothing is kept but the answer's end";
        const Tokens further = history + begin + answer.tokens + begin;
        if (!slow || swapped) {
          EXPECT_EQ(served.ask(further, length).tokens, served.ask(further, length, false).tokens);
        }
        known = static_cast<int>(history.size());
        // As history it is written without its first half.
        history = history + Tokens(answer.tokens.begin() + length / 2, answer.tokens.end()) + Tokens{served.end()};
      }
      EXPECT_EQ(served.engine().stats().free_blocks, served.engine().memory_plan().num_blocks);
      if (swapped) {
        EXPECT_GT(served.engine().stats().prefix_cache.host_hits, 0);
      }
    }
  }
}

TEST(PrefixCache, PreemptedRequestsSayTheSame) {
  for (const int64_t host_bytes : {int64_t{0}, int64_t{64} << 20}) {
    Served served("cpu", kBuoy, [&](EngineConfig& config) {
      config.max_model_len = 200;
      config.block_size = 8;
      config.kv_offloading_bytes = host_bytes;
      // Blocks for one request of full length: three that run need more before they end.
      const auto model = must(open_model(std::make_shared<const Checkpoint>(must(Checkpoint::open(kBuoy))),
                                         *must(make_backend("reference", {}))));
      config.kv_cache_bytes = static_cast<int64_t>(25 * KvCache::bytes_per_block(model->cache_specs(), 8, Format::F32));
    });
    std::vector<Tokens> prompts;
    std::vector<std::shared_ptr<Reply>> replies;
    for (int i = 1; i < 4; ++i) {
      Tokens prompt = served.encode(kTexts[i]);
      prompt.resize(std::min<size_t>(prompt.size(), 40));
      prompts.push_back(prompt);
      replies.push_back(served.submit(prompt, 48));
    }
    std::vector<Tokens> answers;
    for (const auto& reply : replies) answers.push_back(Served::read(*reply).tokens);
    EXPECT_GT(served.engine().stats().num_preemptions, 0);
    for (size_t i = 0; i < prompts.size(); ++i) EXPECT_EQ(answers[i], served.ask(prompts[i], 48, false).tokens);
  }
}

// On the reference path tokens depend on nothing but their own sequence. What neighbours change is the order of sums:
// where a prompt is cut into chunks, and on fast paths how products are shared out. How far that reaches is printed.
TEST(Neighbours, AnAnswerIsTheSameBesideOthers) {
  for (const char* device : {"reference", "cpu", "cuda:0"}) {
    if (std::string(device) == "cuda:0" && !make_backend(device).ok()) continue;
    const bool exact = std::string(device) == "reference";
    Served served(device, kBuoy, [](EngineConfig& config) { config.max_num_batched_tokens = 16; });
    std::vector<Tokens> prompts;
    for (const char* text : kTexts) {
      prompts.push_back(served.encode(text));
      if (exact) prompts.back().resize(3 + 2 * prompts.size());  // of another length each
    }
    const auto length = [&](size_t i) { return (exact ? 3 : 40) + static_cast<int>(i); };
    std::vector<Answer> alone;
    for (size_t i = 0; i < prompts.size(); ++i) alone.push_back(served.ask(prompts[i], length(i), false));
    std::vector<std::shared_ptr<Reply>> replies;
    for (size_t i = 0; i < prompts.size(); ++i) replies.push_back(served.submit(prompts[i], length(i), false));
    int differ = 0;
    float most = 0;
    for (size_t i = 0; i < prompts.size(); ++i) {
      const Answer beside = Served::read(*replies[i]);
      ASSERT_EQ(beside.tokens.size(), alone[i].tokens.size());
      differ += beside.tokens == alone[i].tokens ? 0 : 1;
      for (size_t t = 0; t < beside.tokens.size() && beside.tokens[t] == alone[i].tokens[t]; ++t) {
        most = std::max(most, std::abs(beside.logprobs[t] - alone[i].logprobs[t]));
      }
    }
    if (exact) {
      EXPECT_EQ(differ, 0);
    }
    std::printf("  on %s %d of %zu answers differ beside others, log probabilities by at most %.1e\n", device, differ,
                prompts.size(), most);
  }
}

}  // namespace
}  // namespace proa::golden
