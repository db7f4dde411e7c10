#include "engine/engine.h"

#include <gtest/gtest.h>

#include <atomic>
#include <cstdlib>
#include <future>
#include <new>
#include <random>
#include <sstream>
#include <string>
#include <thread>
#include <tuple>

#include "engine/fake_model.h"
#include "tokenizer/vocabulary.h"

// Counts what a thread allocates, for the promise that a step allocates nothing.
namespace {
thread_local int64_t allocations = 0;

void* counted(size_t bytes, size_t alignment) {
  ++allocations;
  const size_t rounded = (std::max<size_t>(bytes, 1) + alignment - 1) / alignment * alignment;
  if (void* memory = std::aligned_alloc(alignment, rounded)) return memory;
  throw std::bad_alloc();
}
}  // namespace

void* operator new(size_t bytes) { return counted(bytes, alignof(std::max_align_t)); }
void* operator new(size_t bytes, std::align_val_t alignment) { return counted(bytes, static_cast<size_t>(alignment)); }
void* operator new(size_t bytes, const std::nothrow_t&) noexcept {
  return counted(bytes, alignof(std::max_align_t));  // the tests have memory
}
void operator delete(void* memory) noexcept { std::free(memory); }
void operator delete(void* memory, const std::nothrow_t&) noexcept { std::free(memory); }
void operator delete(void* memory, size_t) noexcept { std::free(memory); }
void operator delete(void* memory, std::align_val_t) noexcept { std::free(memory); }
void operator delete(void* memory, size_t, std::align_val_t) noexcept { std::free(memory); }

namespace proa {
namespace {

enum : int32_t { kEos = 0, kEnd = 1, kA = 2, kSpace = 28, kE_acute_1 = 29, kE_acute_2 = 30 };
constexpr int32_t letter(char c) { return kA + (c - 'a'); }

Tokenizer make_tokenizer() {
  // "Ã" and "©" are how the byte alphabet spells 0xC3 and 0xA9, the two bytes of é; "Ġ" is a space.
  static const std::vector<std::string_view> tokens = {"</s>", "<|end|>", "a",  "b",   "c", "d",  "e",  "f",  "g", "h",
                                                       "i",    "j",       "k",  "l",   "m", "n",  "o",  "p",  "q", "r",
                                                       "s",    "t",       "u",  "v",   "w", "x",  "y",  "z",  "Ġ", "Ã",
                                                       "©",    "st",      "op", "Ġst", "E", "ND", "ab", "bc", "1", "2"};
  Vocabulary vocabulary;
  vocabulary.tokens = tokens;
  vocabulary.types.assign(tokens.size(), TokenType::normal);
  for (int32_t id : {kEos, kEnd}) {
    vocabulary.types[static_cast<size_t>(id)] = TokenType::control;
    vocabulary.added.push_back({.id = id, .content = tokens[static_cast<size_t>(id)]});
  }
  vocabulary.eos_ids = {kEos, kEnd};
  auto tokenizer = Tokenizer::create(vocabulary);
  EXPECT_TRUE(tokenizer.ok()) << tokenizer.error().message();
  return *std::move(tokenizer);
}

std::unique_ptr<Engine> make_engine(EngineConfig config, std::shared_ptr<FakeModel> model = nullptr,
                                    std::shared_ptr<Backend> backend = nullptr) {
  config.kv_cache_dtype = Format::F32;  // the fake model keeps integers in it
  if (!model) model = std::make_shared<FakeModel>();
  if (!backend) backend = std::make_shared<HostBackend>();
  auto engine = Engine::create(std::move(model), std::move(backend), make_tokenizer(), std::move(config));
  EXPECT_TRUE(engine.ok()) << engine.error().message();
  return *std::move(engine);
}

struct Answer {
  std::vector<int32_t> tokens;
  std::string text;
  std::vector<TokenEvent> events;

  const TokenEvent& last() const { return events.back(); }
};

Answer read(Reply& reply) {
  Answer answer;
  std::vector<TokenEvent> events;
  while (reply.next(events) == Reply::Status::events) {
    for (TokenEvent& event : events) {
      EXPECT_TRUE(answer.events.empty() || !answer.last().finish_reason) << "nothing follows the last event";
      if (event.token_id >= 0) answer.tokens.push_back(event.token_id);
      answer.text += event.text;
      answer.events.push_back(std::move(event));
    }
  }
  EXPECT_TRUE(!answer.events.empty() && answer.last().finish_reason) << "the last event says why";
  EXPECT_EQ(reply.next(events), Reply::Status::end);
  return answer;
}

Answer ask(Engine& engine, Request request) {
  auto reply = engine.submit(std::move(request));
  EXPECT_TRUE(reply.ok()) << reply.error().message();
  return read(**reply);
}

std::vector<int32_t> prompt(int length, uint32_t seed) {
  std::mt19937 random(seed);
  std::vector<int32_t> tokens(static_cast<size_t>(length));
  for (int32_t& token : tokens) token = static_cast<int32_t>(random() % fake::kVocabSize);
  return tokens;
}

SamplingParams greedy(int max_tokens) {
  SamplingParams params;
  params.temperature = 0;
  params.max_tokens = max_tokens;
  params.ignore_eos = true;
  return params;
}

TEST(Engine, SameTokensHoweverThePromptIsCut) {
  const std::vector<int32_t> tokens = prompt(45, 1);
  const std::vector<int32_t> expected = fake::expected_greedy(tokens, 20);
  for (int chunk : {1, 2, 3, 7, 16, 44, 45, 46, 512}) {
    for (int block_size : {1, 5, 16}) {
      auto engine = make_engine({.max_num_seqs = 1, .max_num_batched_tokens = chunk, .block_size = block_size});
      EXPECT_EQ(ask(*engine, {.prompt_token_ids = tokens, .params = greedy(20)}).tokens, expected)
          << chunk << ", " << block_size;
      EXPECT_EQ(ask(*engine, {.prompt_token_ids = tokens, .params = greedy(20)}).tokens, expected) << "reused memory";
    }
  }
}

TEST(Engine, ConcurrentRequestsGetTheSameTokensAsAlone) {
  for (const auto& [max_num_seqs, budget] : {std::pair{2, 2}, {3, 5}, {5, 64}, {16, 512}}) {
    auto engine = make_engine({.max_num_seqs = max_num_seqs, .max_num_batched_tokens = budget, .block_size = 4});
    std::vector<std::pair<std::vector<int32_t>, std::shared_ptr<Reply>>> requests;
    for (int i = 0; i < 24; ++i) {
      const std::vector<int32_t> tokens = prompt(1 + i * 7 % 30, static_cast<uint32_t>(i));
      auto reply = engine->submit({.prompt_token_ids = tokens, .params = greedy(1 + i * 5 % 23)});
      ASSERT_TRUE(reply.ok());
      if (i % 5 == 3) (*reply)->cancel();
      requests.emplace_back(tokens, *reply);
    }
    for (size_t i = 0; i < requests.size(); ++i) {
      const Answer answer = read(*requests[i].second);
      const int expected_count = 1 + static_cast<int>(i) * 5 % 23;
      std::vector<int32_t> expected = fake::expected_greedy(requests[i].first, expected_count);
      if (answer.last().finish_reason == FinishReason::cancelled) {
        EXPECT_EQ(i % 5, 3u);
        expected.resize(answer.tokens.size());
      }
      EXPECT_EQ(answer.tokens, expected) << "request " << i;
    }
    const EngineStats stats = engine->stats();
    EXPECT_EQ(stats.free_blocks, engine->memory_plan().num_blocks);
    EXPECT_EQ(stats.free_slots, max_num_seqs);
  }
}

// What must be drawn: the reference of the op, told seed, absolute position and counts by hand.
Answer expected_draws(std::vector<int32_t> tokens, const SamplingParams& params) {
  std::vector<TokenCount> counts(fake::kVocabSize, 0);
  for (int32_t token : tokens) counts[static_cast<size_t>(token)] = kInPrompt;
  Answer answer;
  for (int i = 0; i < *params.max_tokens; ++i) {
    const std::vector<float> logits = fake::expected_logits(tokens);
    SamplingRow row{.temperature = params.temperature,
                    .top_p = params.top_p,
                    .min_p = params.min_p,
                    .repetition_penalty = params.repetition_penalty,
                    .presence_penalty = params.presence_penalty,
                    .frequency_penalty = params.frequency_penalty,
                    .top_k = std::max(params.top_k, 0),
                    .counts_slot = 0,
                    .seed = *params.seed,
                    .position = static_cast<uint32_t>(tokens.size())};
    const int top = params.logprobs.value_or(0);
    TokenEvent event;
    std::vector<int32_t> top_ids(static_cast<size_t>(top));
    std::vector<float> top_logprobs(static_cast<size_t>(top));
    sample_reference({.num_rows = 1,
                      .vocab_size = fake::kVocabSize,
                      .num_top_logprobs = top,
                      .logits = logits.data(),
                      .rows = &row,
                      .counts = counts.data(),
                      .tokens = &event.token_id,
                      .logprobs = &event.logprob,
                      .top_ids = top_ids.data(),
                      .top_logprobs = top_logprobs.data()});
    for (size_t t = 0; t < top_ids.size(); ++t) event.top_logprobs.push_back({top_ids[t], top_logprobs[t]});
    tokens.push_back(event.token_id);
    answer.tokens.push_back(event.token_id);
    answer.events.push_back(event);
  }
  return answer;
}

TEST(Engine, DrawsFollowSeedPositionAndCounts) {
  const auto params = [](int i) {
    SamplingParams p;
    p.temperature = static_cast<float>(i % 4);
    p.top_k = i % 4 == 1 ? 5 : -1;
    p.top_p = i % 5 == 2 ? 0.7f : 1;
    p.min_p = i % 5 == 3 ? 0.1f : 0;
    p.seed = static_cast<uint64_t>(i / 2) << 33;
    p.max_tokens = 12;
    p.ignore_eos = true;
    p.logprobs = i % 3;
    if (i % 3 == 1) p.repetition_penalty = 1.7f;
    if (i % 3 == 2) p.frequency_penalty = 1.5f, p.presence_penalty = 1;
    return p;
  };
  for (int max_num_seqs : {1, 4}) {
    auto engine = make_engine({.max_num_seqs = max_num_seqs, .max_num_batched_tokens = 7});
    std::vector<std::shared_ptr<Reply>> replies;
    const auto tokens = [](int i) { return prompt(9, static_cast<uint32_t>(i % 4)); };
    for (int i = 0; i < 24; ++i) {
      replies.push_back(engine->submit({.prompt_token_ids = tokens(i), .params = params(i)}).value());
    }
    for (int i = 0; i < 24; ++i) {
      const Answer answer = read(*replies[static_cast<size_t>(i)]);
      const Answer expected = expected_draws(tokens(i), params(i));
      ASSERT_EQ(answer.tokens, expected.tokens) << "request " << i;
      for (size_t t = 0; t < answer.events.size(); ++t) {
        const auto& got = answer.events[t].top_logprobs;
        const auto& want = expected.events[t].top_logprobs;
        EXPECT_EQ(answer.events[t].logprob, expected.events[t].logprob);
        ASSERT_EQ(got.size(), want.size());
        for (size_t k = 0; k < got.size(); ++k) {
          EXPECT_EQ(std::pair(got[k].token_id, got[k].logprob), std::pair(want[k].token_id, want[k].logprob));
        }
      }
    }
  }
}

TEST(Engine, AnUnsetSeedIsRandom) {
  auto engine = make_engine({.max_num_seqs = 1});
  const Request request{.prompt_token_ids = {5}, .params = {.max_tokens = 40, .ignore_eos = true}};
  EXPECT_NE(ask(*engine, request).tokens, ask(*engine, request).tokens);
}

// The model says `script` after a prompt of one token.
struct EndCase {
  const char* what;
  std::vector<int32_t> script;
  std::function<void(SamplingParams&)> change;
  size_t num_tokens;
  const char* text;
  FinishReason reason;
  std::optional<int32_t> stop_token = std::nullopt;
  std::optional<std::string> stop_string = std::nullopt;
};

const int32_t a = letter('a'), b = letter('b'), c = letter('c'), d = letter('d');
const int32_t kSt = 31, kOp = 32, kSpaceSt = 33, kUpperE = 34, kNd = 35;

const EndCase kEndCases[] = {
    {"max_tokens", {a, b, c, d}, [](auto& p) { p.max_tokens = 3; }, 3, "abc", FinishReason::length},
    {"one token", {a, b}, [](auto& p) { p.max_tokens = 1; }, 1, "a", FinishReason::length},
    {"end token", {a, b, kEos, d}, [](auto&) {}, 3, "ab", FinishReason::stop, kEos},
    {"the other end token", {a, b, kEnd, d}, [](auto&) {}, 3, "ab", FinishReason::stop, kEnd},
    {"end token as the last of max_tokens",
     {a, kEos},
     [](auto& p) { p.max_tokens = 2; },
     2,
     "a",
     FinishReason::stop,
     kEos},
    {"end token at once", {kEos}, [](auto&) {}, 1, "", FinishReason::stop, kEos},
    {"ignore_eos",
     {a, kEos, b, kEnd},
     [](auto& p) { p.ignore_eos = true, p.max_tokens = 4; },
     4,
     "ab",
     FinishReason::length},
    {"stop token",
     {a, b, c},
     [](auto& p) {
       p.stop_token_ids = {d, c};
     },
     3,
     "ab",
     FinishReason::stop,
     c},
    {"stop token kept",
     {a, b, c},
     [](auto& p) { p.stop_token_ids = {c}, p.include_stop_str_in_output = true; },
     3,
     "abc",
     FinishReason::stop,
     c},
    {"stop token despite ignore_eos",
     {a, kEos},
     [](auto& p) { p.ignore_eos = true, p.stop_token_ids = {kEos}; },
     2,
     "a",
     FinishReason::stop,
     kEos},
    {"end token kept",
     {a, kEos},
     [](auto& p) { p.include_stop_str_in_output = true, p.skip_special_tokens = false; },
     2,
     "a</s>",
     FinishReason::stop,
     kEos},
    {"special tokens shown",
     {a, kEos, b},
     [](auto& p) { p.ignore_eos = true, p.skip_special_tokens = false, p.max_tokens = 3; },
     3,
     "a</s>b",
     FinishReason::length},
    {"stop string in one token",
     {a, kSt, b},
     [](auto& p) { p.stop = {"st"}; },
     2,
     "a",
     FinishReason::stop,
     std::nullopt,
     "st"},
    {"stop string over tokens",
     {a, kSpaceSt, kOp, b},
     [](auto& p) { p.stop = {"stop"}; },
     3,
     "a ",
     FinishReason::stop,
     std::nullopt,
     "stop"},
    {"stop string kept",
     {a, kSpaceSt, kOp, b},
     [](auto& p) { p.stop = {"stop"}, p.include_stop_str_in_output = true; },
     3,
     "a stop",
     FinishReason::stop,
     std::nullopt,
     "stop"},
    {"stop string ends inside a token",
     {a, kSt, kOp, b},
     [](auto& p) { p.stop = {"sto"}; },
     3,
     "a",
     FinishReason::stop,
     std::nullopt,
     "sto"},
    {"stop string of several",
     {kUpperE, kNd},
     [](auto& p) {
       p.stop = {"stop", "END"};
     },
     2,
     "",
     FinishReason::stop,
     std::nullopt,
     "END"},
    {"a stop string that does not come",
     {a, kUpperE, b, kEos},
     [](auto& p) { p.stop = {"END"}; },
     4,
     "aEb",
     FinishReason::stop,
     kEos},
    {"held back at max_tokens",
     {a, kUpperE},
     [](auto& p) { p.stop = {"END"}, p.max_tokens = 2; },
     2,
     "aE",
     FinishReason::length},
    {"held back at the end token",
     {a, kUpperE, kEos},
     [](auto& p) { p.stop = {"END"}; },
     3,
     "aE",
     FinishReason::stop,
     kEos},
    {"character over tokens", {kE_acute_1, kE_acute_2, kEos}, [](auto&) {}, 3, "é", FinishReason::stop, kEos},
    {"half a character at the end",
     {a, kE_acute_1},
     [](auto& p) { p.max_tokens = 2; },
     2,
     "a\uFFFD",
     FinishReason::length},
    {"stop string of a split character",
     {a, kE_acute_1, kE_acute_2},
     [](auto& p) { p.stop = {"é"}; },
     3,
     "a",
     FinishReason::stop,
     std::nullopt,
     "é"},
    {"min_tokens bans the end token",
     {kEos, kEos, a, kEos},
     [](auto& p) {
       p.min_tokens = 3;
       p.stop_token_ids = {};
     },
     4,
     nullptr,
     FinishReason::stop,
     kEos},
    {"min_tokens outlasts the second end token",
     {kEnd, kEnd, kEnd, kEnd},
     [](auto& p) { p.min_tokens = 3; },
     4,
     nullptr,  // three others first
     FinishReason::stop,
     kEnd},
    {"min_tokens outlasts a stop string",
     {kSt, kSt, kSt, a},
     [](auto& p) { p.min_tokens = 2, p.stop = {"st"}; },
     3,
     "stst",
     FinishReason::stop,
     std::nullopt,
     "st"},
    {"min_tokens equals max_tokens",
     {kEnd, kEnd, kEnd},
     [](auto& p) { p.min_tokens = p.max_tokens.emplace(2); },
     2,
     nullptr,
     FinishReason::length},
    {"a bias against the end token",
     {kEos, a, kEos},
     [](auto& p) {
       p.logit_bias = {{kEos, -100}};
       p.max_tokens = 3;
     },
     3,
     nullptr,
     FinishReason::length},
    {"only one token is allowed",
     {kSt, kEos, kSt, kEos},
     [](auto& p) { p.allowed_token_ids = {a}, p.max_tokens = 3; },
     3,
     "aaa",
     FinishReason::length},
    {"a word of two tokens is not finished",
     {a, a, kEos},
     [](auto& p) {
       p.bad_words = {{a, a}}, p.allowed_token_ids = {a, kSt}, p.max_tokens = 2;
     },
     2,
     "ast",
     FinishReason::length},
    {"thinking is ended",
     {a, a, a, kEos},
     [](auto& p) {
       p.thinking_budget = ThinkingBudget{.tokens = 1, .end_token_ids = {kSt, kUpperE}, .closing_texts = {}};
     },
     4,
     "astE",
     FinishReason::stop,
     kEos},
    {"thinking ends by itself",
     {a, kUpperE, a, a, kEos},
     [](auto& p) { p.thinking_budget = ThinkingBudget{.tokens = 2, .end_token_ids = {kSt}, .closing_texts = {"E"}}; },
     5,
     "aEaa",
     FinishReason::stop,
     kEos},
};

TEST(Engine, EndsWhereItShould) {
  for (const EndCase& row : kEndCases) {
    std::vector<int32_t> script = row.script;
    script.insert(script.begin(), -1);  // the prompt's token
    auto engine = make_engine({.max_num_seqs = 1}, std::make_shared<FakeModel>(script));
    SamplingParams params{.temperature = 0, .max_tokens = 12};
    row.change(params);
    const Answer answer = ask(*engine, {.prompt_token_ids = {5}, .params = params});
    EXPECT_EQ(answer.tokens.size(), row.num_tokens) << row.what;
    if (row.text) {
      EXPECT_EQ(answer.text, row.text) << row.what;
    }
    EXPECT_EQ(*answer.last().finish_reason, row.reason) << row.what << ": " << to_string(*answer.last().finish_reason);
    EXPECT_EQ(answer.last().stop_token, row.stop_token) << row.what;
    EXPECT_EQ(answer.last().stop_string, row.stop_string) << row.what;
    EXPECT_EQ(engine->stats().free_blocks, engine->memory_plan().num_blocks) << row.what;
  }
}

// Whatever the prompt is cut into, and beside other sequences that decode.
TEST(Engine, LogProbabilitiesOfAPrompt) {
  for (const int rows : {1, 3, 16}) {
    auto engine =
        make_engine({.max_num_seqs = 3, .max_num_batched_tokens = 9, .block_size = 4, .max_prompt_logits = rows});
    auto other = engine->submit({.prompt_token_ids = prompt(5, 9), .params = greedy(40)});
    const std::vector<int32_t> ids = prompt(14, 3);
    SamplingParams params = greedy(2);
    params.prompt_logprobs = 2;
    params.logprobs = 1;
    const Answer answer = ask(*engine, {.prompt_token_ids = ids, .params = params});
    EXPECT_EQ(answer.tokens, fake::expected_greedy(ids, 2));
    const std::vector<PromptLogprob>& prompt_logprobs = answer.events.at(0).prompt_logprobs;
    ASSERT_EQ(prompt_logprobs.size(), ids.size() - 1);
    EXPECT_TRUE(answer.events.at(1).prompt_logprobs.empty());
    for (size_t i = 0; i + 1 < ids.size(); ++i) {
      const std::vector<float> logits = fake::expected_logits(std::span(ids).first(i + 1));
      const SamplingRow row{.forced = ids[i + 1]};
      int32_t token, rank, top_ids[2];
      float logprob, top_logprobs[2];
      sample_reference({.num_rows = 1,
                        .vocab_size = fake::kVocabSize,
                        .num_top_logprobs = 2,
                        .logits = logits.data(),
                        .rows = &row,
                        .tokens = &token,
                        .logprobs = &logprob,
                        .top_ids = top_ids,
                        .top_logprobs = top_logprobs,
                        .ranks = &rank});
      EXPECT_EQ(prompt_logprobs[i].token_id, ids[i + 1]);
      EXPECT_FLOAT_EQ(prompt_logprobs[i].logprob, logprob);
      EXPECT_EQ(prompt_logprobs[i].rank, rank);
      ASSERT_EQ(prompt_logprobs[i].top_logprobs.size(), 2u);
      EXPECT_EQ(prompt_logprobs[i].top_logprobs[1].token_id, top_ids[1]);
      EXPECT_FLOAT_EQ(prompt_logprobs[i].top_logprobs[1].logprob, top_logprobs[1]);
    }
    EXPECT_EQ(read(**other).tokens, fake::expected_greedy(prompt(5, 9), 40));
  }
}

// A sequence that gets the slot of another one has nothing of its biases.
TEST(Engine, BiasesEndWithTheirRequest) {
  auto engine = make_engine({.max_num_seqs = 1});
  SamplingParams biased = greedy(4);
  biased.allowed_token_ids = {7};
  EXPECT_EQ(ask(*engine, {.prompt_token_ids = prompt(3, 1), .params = biased}).tokens,
            (std::vector<int32_t>{7, 7, 7, 7}));
  EXPECT_EQ(ask(*engine, {.prompt_token_ids = prompt(3, 1), .params = greedy(4)}).tokens,
            fake::expected_greedy(prompt(3, 1), 4));
  biased.allowed_token_ids = {};
  biased.logit_bias = {{fake::expected_greedy(prompt(3, 1), 1)[0], -20}};
  EXPECT_NE(ask(*engine, {.prompt_token_ids = prompt(3, 1), .params = biased}).tokens[0],
            fake::expected_greedy(prompt(3, 1), 1)[0]);
}

// What a watchdog and a page of metrics see while a step hangs.
TEST(Engine, AStepThatHangsIsSeen) {
  Gate gate;
  auto model = std::make_shared<FakeModel>();
  model->on_forward = [&](const Batch&) { gate.pass(); };
  auto engine = make_engine({.max_num_seqs = 1}, model);
  EXPECT_FALSE(engine->step_age());
  auto running = engine->submit({.prompt_token_ids = {1, 2}, .params = greedy(2)});
  gate.wait_for_arrival(1);
  ASSERT_TRUE(engine->step_age());
  EXPECT_GE(engine->step_age()->count(), 0);
  auto waiting = engine->submit({.prompt_token_ids = {1}, .params = greedy(1)});
  EXPECT_EQ(engine->stats().num_waiting, 1);
  gate.open();
  read(**running);
  read(**waiting);
  EXPECT_EQ(engine->metrics().iteration_tokens.sum(), 4);  // a prompt of two, one of one, and a decode
}

TEST(Engine, FillsTheContextWhenMaxTokensIsUnset) {
  auto engine = make_engine({.max_num_seqs = 1, .max_model_len = 21, .block_size = 4});
  SamplingParams params = greedy(1);
  params.max_tokens.reset();
  const Answer answer = ask(*engine, {.prompt_token_ids = prompt(9, 1), .params = params});
  EXPECT_EQ(answer.tokens, fake::expected_greedy(prompt(9, 1), 12));
  EXPECT_EQ(answer.last().finish_reason, FinishReason::length);
}

TEST(Engine, RefusesAtOnceWhatCannotRun) {
  auto engine = make_engine({.max_num_seqs = 1, .max_model_len = 32});
  const struct {
    Request request;
    const char* where;
  } rows[] = {
      {{.prompt_token_ids = {}}, "prompt_token_ids"},
      {{.prompt_token_ids = {1, -1}}, "prompt_token_ids"},
      {{.prompt_token_ids = {fake::kVocabSize}}, "prompt_token_ids"},
      {{.prompt_token_ids = prompt(30, 1), .params = {.max_tokens = 3}}, "max_model_len"},
      {{.prompt_token_ids = prompt(32, 1)}, "max_model_len"},
      {{.prompt_token_ids = {1}, .params = {.max_tokens = 2147483647}}, "max_model_len"},
      {{.prompt_token_ids = {1}, .params = {.top_p = 2}}, "top_p"},
      {{.prompt_token_ids = {1}, .params = {.stop_token_ids = {fake::kVocabSize}}}, "stop_token_ids"},
      {{.prompt_token_ids = {1}, .params = {.prompt_logprobs = 1}}, "prompt_logprobs"},
  };
  for (const auto& row : rows) {
    const auto reply = engine->submit(row.request);
    ASSERT_FALSE(reply.ok()) << row.where;
    EXPECT_EQ(reply.error().where, row.where);
  }
  EXPECT_EQ(ask(*engine, {.prompt_token_ids = prompt(30, 1), .params = greedy(2)}).tokens.size(), 2u) << "and lives on";
}

TEST(Engine, RefusesWhenTheQueueIsFullAndTakesMoreLater) {
  Gate gate;
  auto model = std::make_shared<FakeModel>();
  model->on_forward = [&](const Batch&) { gate.pass(); };
  auto engine = make_engine({.max_num_seqs = 1, .max_queue = 2}, model);
  const Request request{.prompt_token_ids = {3, 4}, .params = greedy(2)};
  auto running = engine->submit(request).value();
  gate.wait_for_arrival(1);
  auto first = engine->submit(request).value();
  auto second = engine->submit(request).value();
  const auto refused = engine->submit(request);
  ASSERT_FALSE(refused.ok());
  EXPECT_EQ(refused.error().where, "max_queue");
  first->cancel();
  second->cancel();
  gate.open();
  EXPECT_EQ(read(*running).tokens, fake::expected_greedy({3, 4}, 2));
  for (auto& reply : {first, second}) {
    const Answer cancelled = read(*reply);
    EXPECT_TRUE(cancelled.tokens.empty());
    EXPECT_EQ(cancelled.last().finish_reason, FinishReason::cancelled);
  }
  for (int i = 0; i < 5; ++i) EXPECT_EQ(ask(*engine, request).tokens.size(), 2u);
}

TEST(Engine, CancelsBetweenSteps) {
  Gate gate;
  auto model = std::make_shared<FakeModel>();
  model->on_forward = [&](const Batch&) { gate.pass(); };
  auto engine = make_engine({.max_num_seqs = 1}, model);
  auto reply = engine->submit({.prompt_token_ids = {3, 4}, .params = greedy(500)}).value();
  gate.permit(3);
  gate.wait_for_arrival(4);  // three tokens are out, the fourth is being computed
  std::vector<TokenEvent> events;
  ASSERT_EQ(reply->next(events), Reply::Status::events);
  EXPECT_EQ(events.size(), 3u);
  EXPECT_EQ(reply->next(events, std::chrono::nanoseconds(1)), Reply::Status::timeout);
  EXPECT_TRUE(events.empty());
  reply->cancel();
  gate.open();
  const Answer rest = read(*reply);
  EXPECT_EQ(rest.tokens.size(), 1u);
  EXPECT_EQ(rest.last().finish_reason, FinishReason::cancelled);
  EXPECT_EQ(reply->timings().completion_tokens, 4);
  EXPECT_EQ(reply->timings().prompt_tokens, 2);
  EXPECT_GE(reply->timings().first_token_seconds, reply->timings().prefill_seconds);
  EXPECT_EQ(engine->stats().free_slots, 1);
}

TEST(Engine, AClientThatLeftIsCancelled) {
  Gate gate;
  auto model = std::make_shared<FakeModel>();
  std::atomic<int> steps{0};
  model->on_forward = [&](const Batch&) { gate.pass(), ++steps; };
  auto engine = make_engine({.max_num_seqs = 1}, model);
  auto reply = engine->submit({.prompt_token_ids = {3}, .params = greedy(500)}).value();
  gate.permit(1);
  gate.wait_for_arrival(2);
  reply.reset();
  gate.open();
  EXPECT_EQ(ask(*engine, {.prompt_token_ids = {3}, .params = greedy(4)}).tokens.size(), 4u);
  EXPECT_EQ(steps, 2 + 4);
}

TEST(Engine, ADeadlineEndsARequestWithAnError) {
  auto engine = make_engine({.max_num_seqs = 1});
  auto reply = engine
                   ->submit({.id = "late",
                             .prompt_token_ids = {3},
                             .params = greedy(5),
                             .deadline = std::chrono::steady_clock::now()})
                   .value();
  const Answer answer = read(*reply);
  EXPECT_TRUE(answer.tokens.empty());
  EXPECT_EQ(answer.last().finish_reason, FinishReason::error);
  ASSERT_TRUE(reply->error());
  EXPECT_NE(reply->error()->message().find("late"), std::string::npos);
}

// --- prefix cache and preemption ---

std::vector<int32_t> operator+(std::vector<int32_t> first, const std::vector<int32_t>& second) {
  first.insert(first.end(), second.begin(), second.end());
  return first;
}

EngineConfig chat_config() {
  return {.max_num_seqs = 2, .block_size = 4, .snapshot_interval = 32, .min_snapshot_tokens = 4};
}

// A turn as a chat template writes it: text without end tokens, then one.
std::vector<int32_t> turn(int length, uint32_t seed) {
  std::vector<int32_t> tokens = prompt(length, seed);
  for (int32_t& token : tokens) token = std::max<int32_t>(token, kA);
  tokens.push_back(kEnd);
  return tokens;
}

struct Cached {
  std::vector<int32_t> tokens;
  int cached_tokens;
};

Cached ask_cached(Engine& engine, Request request) {
  auto reply = engine.submit(std::move(request)).value();
  const Answer answer = read(*reply);
  return {answer.tokens, reply->timings().cached_tokens};
}

TEST(EnginePrefixCache, AConversationComputesOnlyWhatIsNew) {
  const auto system = turn(20, 1), user_1 = turn(10, 2), user_2 = turn(13, 3), user_3 = turn(9, 4);
  const std::vector<int32_t> generate = {letter('x'), letter('y')};  // begins an answer, thinking
  for (const bool thinking_stays : {true, false}) {
    auto engine = make_engine(chat_config());
    std::vector<int32_t> history = system;
    int last_turn_end = 0, last_end = 0;
    for (const auto& user : {user_1, user_2, user_3}) {
      history = history + user;
      const int turn_end = static_cast<int>(history.size());
      const std::vector<int32_t> full = history + generate;
      const Cached answer = ask_cached(*engine, {.prompt_token_ids = full, .params = greedy(12)});
      EXPECT_EQ(answer.tokens, fake::expected_greedy(full, 12));
      EXPECT_EQ(answer.cached_tokens, thinking_stays ? last_end : last_turn_end);
      last_turn_end = turn_end;
      last_end = static_cast<int>(full.size()) + 11;  // the last token was drawn, not computed
      // The template writes the answer without what was thought.
      history = thinking_stays ? full + answer.tokens : history + turn(5, 9);
    }
    const EngineStats stats = engine->stats();
    EXPECT_GT(stats.cached_tokens, 0);
    EXPECT_EQ(stats.prefix_cache.hits, stats.cached_tokens);
    for (const int64_t lost : stats.prefix_cache.lost) EXPECT_EQ(lost, 0);
  }
}

struct ReuseCase {
  const char* what;
  std::function<void(EngineConfig&)> change;
  std::function<void(Request&)> change_second;
  int cached;
};

const ReuseCase kReuseCases[] = {
    {"the same prompt", [](auto&) {}, [](auto&) {}, 59},
    {"a longer one", [](auto&) {}, [](auto& r) { r.prompt_token_ids.push_back(7); }, 59},
    {"another in its second half", [](auto&) {}, [](auto& r) { r.prompt_token_ids[40] ^= 1; },
     32},  // what every 32 tokens leave
    {"another at once", [](auto&) {}, [](auto& r) { r.prompt_token_ids[0] ^= 1; }, 0},
    {"a request that wants all computed", [](auto&) {}, [](auto& r) { r.use_prefix_cache = false; }, 0},
    {"off", [](auto& config) { config.enable_prefix_caching = false; }, [](auto&) {}, 0},
    // The answer's end has the slot, and is no beginning of the prompt.
    {"no slot for snapshots", [](auto& config) { config.snapshot_bytes = 0, config.max_num_seqs = 1; }, [](auto&) {},
     0},
    {"one slot", [](auto& config) { config.snapshot_bytes = 24, config.max_num_seqs = 1; }, [](auto&) {}, 59},
};

TEST(EnginePrefixCache, AnAnswerIsTheSameWithAHit) {
  for (const ReuseCase& row : kReuseCases) {
    for (const int chunk : {5, 64}) {
      SCOPED_TRACE(row.what);
      EngineConfig config = chat_config();
      config.max_num_batched_tokens = chunk;
      row.change(config);
      auto engine = make_engine(config);
      Request request{.prompt_token_ids = prompt(60, 1), .params = greedy(20)};
      for (int32_t& token : request.prompt_token_ids) token = std::max<int32_t>(token, kA);  // no turns
      ask_cached(*engine, request);
      row.change_second(request);
      const Cached answer = ask_cached(*engine, request);
      EXPECT_EQ(answer.tokens, fake::expected_greedy(request.prompt_token_ids, 20));
      EXPECT_EQ(answer.cached_tokens, row.cached);
      EXPECT_EQ(engine->stats().free_blocks, engine->memory_plan().num_blocks);
    }
  }
}

TEST(EnginePrefixCache, WhatWasNotKeptIsCountedByReason) {
  const struct {
    const char* what;
    std::function<void(EngineConfig&)> change;
    int first_turn;  // tokens of the turn both prompts begin with
    std::array<int64_t, kNumLost> lost;
  } rows[] = {
      {"nothing", [](auto&) {}, 20, {0, 0, 0, 0}},
      {"too short", [](auto& config) { config.min_snapshot_tokens = 25; }, 20, {0, 20, 0, 0}},
      {"no slot", [](auto& config) { config.snapshot_bytes = 0, config.max_num_seqs = 1; }, 20, {0, 0, 20, 0}},
      {"between", [](auto& config) { config.snapshot_interval = 512; }, 0, {0, 0, 0, 16}},
  };
  for (const auto& row : rows) {
    SCOPED_TRACE(row.what);
    EngineConfig config = chat_config();
    row.change(config);
    auto engine = make_engine(config);
    // One begins with a turn, or with text that goes on; what follows differs.
    std::vector<int32_t> begin = turn(19, 1);
    if (row.first_turn == 0) begin.pop_back();
    for (const uint32_t seed : {2u, 3u}) {
      std::vector<int32_t> rest = prompt(8, seed);
      for (int32_t& token : rest) token = std::max<int32_t>(token, kA);
      rest[0] = letter(seed == 2 ? 'x' : 'y');
      ask_cached(*engine, {.prompt_token_ids = begin + rest, .params = greedy(2)});
    }
    const PrefixCacheStats stats = engine->stats().prefix_cache;
    EXPECT_EQ(stats.lost, row.lost);
    EXPECT_EQ(stats.hits, row.what == std::string("nothing") ? 20 : 0);
  }
}

TEST(EnginePrefixCache, ComesBackFromTheHost) {
  EngineConfig config = chat_config();
  config.max_num_seqs = 1;
  config.kv_cache_bytes = 12 * 4 * 40;  // blocks
  config.max_model_len = 49;
  config.snapshot_bytes = 48;
  config.kv_offloading_bytes = 1 << 22;
  auto engine = make_engine(config);
  for (int round = 0; round < 3; ++round) {
    for (uint32_t i = 0; i < 4; ++i) {
      std::vector<int32_t> tokens = turn(24, i);
      tokens.push_back(letter('x'));
      const Cached answer = ask_cached(*engine, {.prompt_token_ids = tokens, .params = greedy(20)});
      EXPECT_EQ(answer.tokens, fake::expected_greedy(tokens, 20));
      EXPECT_EQ(answer.cached_tokens, round == 0 ? 0 : 25);
    }
  }
  EXPECT_GT(engine->stats().prefix_cache.host_hits, 0);
  EXPECT_GT(engine->stats().prefix_cache.spilled, 0);
}

TEST(Engine, PreemptedRequestsDrawTheSameTokens) {
  for (const bool prefix_caching : {true, false}) {
    for (const int64_t host_bytes : {0, 1 << 20}) {
      // 20 blocks for six sequences that end with 10 to 13 each.
      auto engine = make_engine({.max_num_seqs = 4,
                                 .max_num_batched_tokens = 32,
                                 .max_model_len = 60,
                                 .block_size = 4,
                                 .kv_cache_bytes = 20 * 4 * 40,
                                 .enable_prefix_caching = prefix_caching,
                                 .min_snapshot_tokens = 4,
                                 .kv_offloading_bytes = host_bytes});
      std::vector<std::shared_ptr<Reply>> replies;
      std::vector<Request> requests;
      for (int i = 0; i < 6; ++i) {
        SamplingParams params = greedy(30 + i);
        params.seed = 5;
        params.temperature = static_cast<float>(i % 2);
        if (i % 3 == 0) params.frequency_penalty = 1.5f;
        requests.push_back({.prompt_token_ids = prompt(10 + i, static_cast<uint32_t>(i)), .params = params});
      }
      replies = engine->submit(requests).value();
      for (size_t i = 0; i < requests.size(); ++i) {
        EXPECT_EQ(read(*replies[i]).tokens, expected_draws(requests[i].prompt_token_ids, requests[i].params).tokens)
            << "request " << i;
      }
      EXPECT_GT(engine->stats().num_preemptions, 0);
      EXPECT_EQ(engine->stats().free_blocks, 20);
    }
  }
}

TEST(Engine, PriorityPreemptsAndIsRefusedWhereItDoesNotCount) {
  auto plain = make_engine({.max_num_seqs = 1});
  const auto refused = plain->submit({.prompt_token_ids = {3}, .params = greedy(1), .priority = 1});
  ASSERT_FALSE(refused.ok());
  EXPECT_EQ(refused.error().where, "priority");

  Gate gate;
  auto model = std::make_shared<FakeModel>();
  model->on_forward = [&](const Batch&) { gate.pass(); };
  auto engine = make_engine({.max_num_seqs = 1, .priority_scheduling = true}, model);
  auto low = engine->submit({.prompt_token_ids = {3, 4}, .params = greedy(20), .priority = 2}).value();
  gate.permit(5);
  gate.wait_for_arrival(6);
  auto high = engine->submit({.prompt_token_ids = {5, 6}, .params = greedy(20), .priority = 1}).value();
  gate.permit(21);
  EXPECT_EQ(read(*high).tokens, fake::expected_greedy({5, 6}, 20));
  std::vector<TokenEvent> events;
  ASSERT_EQ(low->next(events), Reply::Status::events);
  EXPECT_EQ(events.size(), 6u);
  gate.open();
  const Answer rest = read(*low);
  const auto expected = fake::expected_greedy({3, 4}, 20);
  EXPECT_EQ(rest.tokens, std::vector<int32_t>(expected.begin() + 6, expected.end()));
  EXPECT_EQ(engine->stats().num_preemptions, 1);
}

TEST(Engine, SequencesOfOneSeedDrawTheirOwn) {
  auto engine = make_engine({.max_num_seqs = 4});
  std::vector<std::vector<int32_t>> drawn;
  for (const uint32_t index : {0u, 1u, 2u, 1u}) {
    SamplingParams params{.seed = 3, .max_tokens = 20, .ignore_eos = true};
    drawn.push_back(ask(*engine, {.prompt_token_ids = {5}, .params = params, .sequence_index = index}).tokens);
  }
  EXPECT_NE(drawn[0], drawn[1]);
  EXPECT_NE(drawn[1], drawn[2]);
  EXPECT_EQ(drawn[1], drawn[3]);
}

// Requests that come, go, share beginnings, are preempted and swapped: each gets what it would get alone.
TEST(Engine, WhateverComesEveryAnswerIsItsOwn) {
  int64_t hits = 0, host_hits = 0;
  for (uint32_t seed = 0; seed < 12; ++seed) {
    SCOPED_TRACE("seed " + std::to_string(seed));
    std::mt19937 random(seed);
    const auto below = [&](int n) { return static_cast<int>(random() % static_cast<uint32_t>(n)); };
    EngineConfig config{.max_num_seqs = 1 + below(5),
                        .max_num_batched_tokens = 8 + below(40),
                        .max_model_len = 80,
                        .block_size = 1 + below(6),
                        .snapshot_interval = 4 + below(20),
                        .min_snapshot_tokens = 1 + below(6),
                        .snapshot_bytes = 24 * below(6),
                        .kv_offloading_bytes = seed % 2 ? 1 << 20 : 0,
                        .priority_scheduling = true};
    config.kv_cache_bytes = 40 * (81 + below(120) / config.block_size * config.block_size) + 40 * config.block_size;
    auto engine = make_engine(config);
    std::vector<std::pair<std::vector<int32_t>, std::shared_ptr<Reply>>> requests;
    std::vector<std::vector<int32_t>> known = {turn(6, seed)};
    for (int i = 0; i < 40; ++i) {
      std::vector<int32_t> tokens = known[static_cast<size_t>(below(static_cast<int>(known.size())))];
      tokens.resize(static_cast<size_t>(1 + below(static_cast<int>(tokens.size()))));
      tokens = tokens + turn(below(12), seed * 100 + static_cast<uint32_t>(i));
      if (tokens.size() > 50) tokens.resize(50);
      auto reply = engine->submit({.prompt_token_ids = tokens, .params = greedy(1 + below(30)), .priority = below(3)});
      ASSERT_TRUE(reply.ok());
      requests.emplace_back(tokens, *reply);
      if (below(8) == 0) (*reply)->cancel();
      if (below(3) == 0) known.push_back(tokens + read(**reply).tokens), requests.pop_back();
    }
    for (const auto& [tokens, reply] : requests) {
      const Answer answer = read(*reply);
      EXPECT_EQ(answer.tokens, fake::expected_greedy(tokens, static_cast<int>(answer.tokens.size())));
    }
    const EngineStats stats = engine->stats();
    EXPECT_EQ(stats.free_blocks, engine->memory_plan().num_blocks);
    EXPECT_EQ(stats.free_slots, config.max_num_seqs);
    hits += stats.prefix_cache.hits;
    host_hits += stats.prefix_cache.host_hits;
  }
  EXPECT_TRUE(hits > 0 && host_hits > 0) << hits << " " << host_hits;
}

TEST(Engine, CanBeDestroyedWithWorkInFlight) {
  for (int round = 0; round < 20; ++round) {
    auto engine = make_engine({.max_num_seqs = 3, .max_num_batched_tokens = 16});
    std::vector<std::shared_ptr<Reply>> replies;
    for (int i = 0; i < 12; ++i) {
      replies.push_back(
          engine->submit({.prompt_token_ids = prompt(20, static_cast<uint32_t>(i)), .params = greedy(490)}).value());
    }
    std::vector<std::future<Answer>> answers;
    for (auto& reply : replies) answers.push_back(std::async(std::launch::async, [&reply] { return read(*reply); }));
    if (round % 2) replies[0]->timings();
    engine.reset();
    for (size_t i = 0; i < answers.size(); ++i) {
      const Answer answer = answers[i].get();
      std::vector<int32_t> expected =
          fake::expected_greedy(prompt(20, static_cast<uint32_t>(i)), static_cast<int>(answer.tokens.size()));
      EXPECT_EQ(answer.tokens, expected);
    }
  }
}

TEST(Engine, ManyThreadsMaySubmit) {
  auto engine = make_engine({.max_num_seqs = 4, .max_num_batched_tokens = 8});
  std::vector<std::thread> clients;
  for (uint32_t t = 0; t < 6; ++t) {
    clients.emplace_back([&, t] {
      for (uint32_t i = 0; i < 10; ++i) {
        const std::vector<int32_t> tokens = prompt(1 + static_cast<int>(i), t * 100 + i);
        EXPECT_EQ(ask(*engine, {.prompt_token_ids = tokens, .params = greedy(6)}).tokens,
                  fake::expected_greedy(tokens, 6));
      }
    });
  }
  for (std::thread& client : clients) client.join();
}

// Greedy, without the allocations that the reference allows itself.
class GreedyBackend : public HostBackend {
 public:
  void sample(const Sample& op) override {
    for (int r = 0; r < op.num_rows; ++r) {
      const float* row = op.logits + int64_t{r} * op.vocab_size;
      op.tokens[r] = static_cast<int32_t>(std::max_element(row, row + op.vocab_size) - row);
      op.logprobs[r] = 0;
    }
  }
};

TEST(Engine, AStepAllocatesNothing) {
  constexpr int kSteps = 60;
  std::vector<int64_t> at_step;  // allocations of the engine's thread when a step begins
  at_step.reserve(1000);
  auto model = std::make_shared<FakeModel>();
  model->on_forward = [&](const Batch&) { at_step.push_back(allocations); };
  auto engine = make_engine({.max_num_seqs = 2, .max_num_batched_tokens = 8, .block_size = 4}, model,
                            std::make_shared<GreedyBackend>());
  SamplingParams params = greedy(kSteps);
  params.stop = {"never to be seen"};
  auto first = engine->submit({.prompt_token_ids = prompt(40, 1), .params = params}).value();
  EXPECT_EQ(read(*first).tokens, fake::expected_greedy(prompt(40, 1), kSteps));
  engine.reset();
  ASSERT_EQ(at_step.size(), 40u / 8 + kSteps - 1);
  for (size_t i = 1; i < at_step.size(); ++i) EXPECT_EQ(at_step[i], at_step[1]) << "step " << i;
}

TEST(EngineConfig, ErrorsNameTheField) {
  const struct {
    EngineConfig config;
    const char* where;
  } rows[] = {
      {{.max_num_seqs = 0}, "max_num_seqs"},
      {{.max_num_seqs = 8, .max_num_batched_tokens = 7}, "max_num_batched_tokens"},
      {{.max_model_len = 1}, "max_model_len"},
      {{.max_model_len = -1}, "max_model_len"},
      {{.max_queue = 0}, "max_queue"},
      {{.block_size = 0}, "block_size"},
      {{.kv_cache_bytes = -1}, "kv_cache_bytes"},
      {{.kv_cache_bytes = 10}, "kv_cache_bytes"},                          // less than a block
      {{.max_model_len = 400, .kv_cache_bytes = 5000}, "kv_cache_bytes"},  // 40 bytes a token
      {{.gpu_memory_utilization = 0}, "gpu_memory_utilization"},
      {{.gpu_memory_utilization = 1.01}, "gpu_memory_utilization"},
      {{.uncounted_weight_bytes = -1}, "uncounted_weight_bytes"},
      {{.kv_cache_dtype = Format::Q4_0}, "kv_cache_dtype"},
      {{.eos_token_ids = {fake::kVocabSize}}, "eos_token_ids"},
  };
  for (const auto& row : rows) {
    const auto engine =
        Engine::create(std::make_shared<FakeModel>(), std::make_shared<HostBackend>(), make_tokenizer(), row.config);
    ASSERT_FALSE(engine.ok()) << row.where;
    EXPECT_EQ(engine.error().where, row.where) << engine.error().message();
  }
}

TEST(EngineConfig, MemoryFollowsFromLengthAndLengthFromMemory) {
  // The fake model keeps (2 · 1 · 2 + 2 · 3 · 1) floats per token and 2 · 3 per sequence.
  auto by_length = make_engine({.max_num_seqs = 3, .max_model_len = 100, .block_size = 16});
  EXPECT_EQ(by_length->memory_plan().num_blocks, 3 * 7);
  EXPECT_EQ(by_length->memory_plan().bytes_per_block, 16u * 40);
  EXPECT_EQ(by_length->memory_plan().kv_bytes, 21u * 16 * 40);
  EXPECT_EQ(by_length->memory_plan().num_snapshots, 3 + 8);
  EXPECT_EQ(by_length->memory_plan().state_bytes, (3u + 3 + 8) * 2 * 3 * 4);
  auto without = make_engine({.max_num_seqs = 3, .enable_prefix_caching = false});
  EXPECT_EQ(without->memory_plan().state_bytes, 3u * 2 * 3 * 4);
  auto by_memory = make_engine({.max_num_seqs = 3, .block_size = 16, .kv_cache_bytes = 5 * 16 * 40 + 7});
  EXPECT_EQ(by_memory->memory_plan().num_blocks, 5);
  EXPECT_EQ(by_memory->config().max_model_len, 81);
  auto by_model = make_engine({.max_num_seqs = 1});
  EXPECT_EQ(by_model->config().max_model_len, 512);
  EXPECT_EQ(by_model->config().eos_token_ids, (std::vector<int32_t>{kEos, kEnd}));
}

// A device of a size of our own, whose ops need scratch.
class SmallDevice : public HostBackend {
 public:
  SmallDevice(DeviceMemory memory, bool host) : memory_(memory), host_(host) {}
  std::string_view name() const override { return host_ ? "cpu" : "cuda:0"; }
  bool shares_memory() const override { return host_; }
  DeviceMemory memory() override { return memory_; }
  Result<Buffer> allocate(size_t bytes) override {
    EXPECT_TRUE(reserved_) << "scratch comes first: what is left is the KV cache's";
    return HostBackend::allocate(bytes);
  }
  Result<size_t> scratch_bytes(FunctionRef<void()>) override { return size_t{100'000}; }
  Result<void> reserve(FunctionRef<void()>) override { return reserved_ = true, Result<void>(); }

 private:
  DeviceMemory memory_;
  bool host_, reserved_ = false;
};

// 640 bytes a block of 16 tokens, 24 bytes a state slot, 100 kB of scratch, a few kB for a step.
struct FitCase {
  const char* what;
  DeviceMemory memory;
  EngineConfig change;
  int64_t room;           // bytes for the engine
  bool whole = false;     // all that max_num_seqs sequences can use is there
  const char* flag = "";  // of the hint where it is refused
};

const DeviceMemory kGpu = {.total = 2'000'000, .free = 1'900'000, .maps_files = false};
constexpr size_t kGiB = size_t{1} << 30;

const FitCase kFitCases[] = {
    {"what is left at 0.9", kGpu, {.max_num_seqs = 128}, 1'700'000},
    {"a smaller part", kGpu, {.max_num_seqs = 128, .gpu_memory_utilization = 0.5}, 900'000},
    {"all of it", kGpu, {.max_num_seqs = 128, .gpu_memory_utilization = 1}, 1'900'000},
    {"never more than can be used", kGpu, {.max_num_seqs = 4}, 1'700'000, true},
    {"weights to come", kGpu, {.max_num_seqs = 128, .uncounted_weight_bytes = 700'000}, 1'000'000},
    {"scratch of an earlier engine",
     {.total = 2'000'000, .free = 1'800'000, .scratch = 100'000},
     {.max_num_seqs = 128},
     1'700'000},
    {"a length that just fits",
     kGpu,
     {.max_num_seqs = 4, .max_model_len = 512, .uncounted_weight_bytes = 1'560'000},
     140'000},
    {"a length that does not fit",
     kGpu,
     {.max_num_seqs = 1, .max_model_len = 512, .uncounted_weight_bytes = 1'580'000},
     120'000,
     false,
     "--max-model-len"},
    {"a length nobody asked for is shortened", kGpu, {.max_num_seqs = 1, .uncounted_weight_bytes = 1'580'000}, 120'000},
    {"weights that fit at a larger part",
     kGpu,
     {.max_num_seqs = 1, .uncounted_weight_bytes = 1'700'000},
     0,
     false,
     "--gpu-memory-utilization"},
    {"weights larger than the device", kGpu, {.uncounted_weight_bytes = 3'000'000}, 0, false, "a smaller format"},
    {"many sequences", kGpu, {.max_num_seqs = 4096, .max_num_batched_tokens = 4096}, 0, false, "--max-num-seqs"},
    {"a host, whose weights may stay in their file",
     {.total = kGiB, .free = (kGiB >> 1) + 1'000'000},
     {.max_num_seqs = 128, .uncounted_weight_bytes = 3'000'000},
     1'000'000},
    {"a host with nothing left",
     {.total = kGiB, .free = kGiB >> 1},
     {.max_num_seqs = 1},
     0,
     false,
     "less memory in use"},
    {"a device that does not say", {}, {.max_num_seqs = 128}, 1 << 30, true},
};

TEST(EngineMemory, TheKvCacheGetsWhatIsLeftAndWhatDoesNotFitIsRefused) {
  for (FitCase row : kFitCases) {
    SCOPED_TRACE(row.what);
    const bool host = row.memory.total == kGiB;
    const auto backend = std::make_shared<SmallDevice>(row.memory, host);
    row.change.max_num_batched_tokens = std::max(row.change.max_num_batched_tokens, row.change.max_num_seqs);
    row.change.kv_cache_dtype = Format::F32;
    const auto engine = Engine::create(std::make_shared<FakeModel>(), backend, make_tokenizer(), row.change);
    const auto plan = Engine::plan(FakeModel(), *backend, row.change);
    ASSERT_EQ(plan.ok(), engine.ok());
    ASSERT_EQ(engine.ok(), *row.flag == 0)
        << (engine.ok() ? engine.value()->memory_plan().text() : engine.error().message());
    if (!engine.ok()) {
      EXPECT_EQ(engine.error().where, backend->name());
      const std::string& hint = engine.error().hint;
      EXPECT_NE(hint.find(row.flag), std::string::npos) << engine.error().message();
      // What it says fits, fits.
      EngineConfig smaller = row.change;
      std::istringstream words(hint);
      int flags = 0;
      for (std::string name; words >> name && name.starts_with("--"); ++flags) {
        double value = 0;
        words >> value;
        if (name == "--max-model-len") smaller.max_model_len = static_cast<int64_t>(value);
        if (name == "--max-num-batched-tokens") smaller.max_num_batched_tokens = static_cast<int>(value);
        if (name == "--max-num-seqs") smaller.max_num_seqs = static_cast<int>(value);
        if (name == "--gpu-memory-utilization") smaller.gpu_memory_utilization = value;
      }
      if (flags == 0) continue;
      const auto fits = Engine::plan(FakeModel(), *backend, smaller);
      EXPECT_TRUE(fits.ok()) << fits.error().message();
      continue;
    }
    const MemoryPlan& memory = (*engine)->memory_plan();
    EXPECT_EQ(memory.num_blocks, plan->num_blocks);
    EXPECT_EQ(memory.scratch_bytes, 100'000u);
    EXPECT_LE(memory.engine_bytes(), static_cast<size_t>(row.room));
    EXPECT_EQ(memory.num_blocks == 32 * row.change.max_num_seqs, row.whole);
    EXPECT_EQ(memory.weights_stay, !host);
    if (!row.whole && memory.max_model_len == 512) {
      EXPECT_GT(memory.engine_bytes() + memory.bytes_per_block, static_cast<size_t>(row.room))
          << "no block is left out";
    }
    EXPECT_EQ(ask(**engine, {.prompt_token_ids = prompt(9, 1), .params = greedy(5)}).tokens,
              fake::expected_greedy(prompt(9, 1), 5));
  }
}

// A device that fails in one step.
class FlakyBackend : public HostBackend {
 public:
  Result<void> synchronize() override {
    if (steps_until_failure_-- == 0) return Error{"compute", "cuda:0", "", "out of memory", ""};
    return {};
  }
  void fail_in(int steps) { steps_until_failure_ = steps; }

 private:
  std::atomic<int> steps_until_failure_{-1};
};

TEST(Engine, AFailedStepEndsWhatRanInItAndNothingElse) {
  Gate gate;
  auto model = std::make_shared<FakeModel>();
  model->on_forward = [&](const Batch&) { gate.pass(); };
  auto backend = std::make_shared<FlakyBackend>();
  auto engine = make_engine({.max_num_seqs = 1}, model, backend);
  auto running = engine->submit({.prompt_token_ids = {3, 4}, .params = greedy(20)}).value();
  gate.wait_for_arrival(1);
  auto waiting = engine->submit({.prompt_token_ids = {5, 6}, .params = greedy(20)}).value();
  backend->fail_in(3);
  gate.open();
  const Answer failed = read(*running);
  EXPECT_EQ(failed.tokens, fake::expected_greedy({3, 4}, 3));
  EXPECT_EQ(failed.last().finish_reason, FinishReason::error);
  ASSERT_TRUE(running->error());
  EXPECT_EQ(running->error()->message(), "compute: cuda:0: out of memory");
  EXPECT_EQ(read(*waiting).tokens, fake::expected_greedy({5, 6}, 20));
  EXPECT_EQ(engine->stats().free_blocks, engine->memory_plan().num_blocks);
}

TEST(Engine, AfterAFailedStepNothingThatWasComputedIsUsedAgain) {
  auto backend = std::make_shared<FlakyBackend>();
  auto engine = make_engine(chat_config(), nullptr, backend);
  const std::vector<int32_t> tokens = turn(30, 1) + std::vector<int32_t>{5};
  const Request request{.prompt_token_ids = tokens, .params = greedy(10)};
  ask_cached(*engine, request);
  EXPECT_EQ(ask_cached(*engine, request).cached_tokens, 31);
  backend->fail_in(0);
  EXPECT_EQ(ask(*engine, request).last().finish_reason, FinishReason::error);
  const Cached after = ask_cached(*engine, request);
  EXPECT_EQ(after.cached_tokens, 0);
  EXPECT_EQ(after.tokens, fake::expected_greedy(tokens, 10));
  EXPECT_EQ(ask_cached(*engine, request).cached_tokens, 31);
}

TEST(EngineConfig, EveryFailedAllocationIsAnError) {
  int failures = 0;
  for (int index = 0; index < 100; ++index) {
    auto backend = std::make_shared<HostBackend>();
    backend->fail_allocation(index);
    const auto engine = Engine::create(std::make_shared<FakeModel>(), backend, make_tokenizer(), {.max_num_seqs = 1});
    if (engine.ok()) break;
    EXPECT_EQ(engine.error().doing, "allocate");
    ++failures;
  }
  EXPECT_EQ(failures,
            2 + 2 + 5);  // KV layers, state layers; workspace, inputs, results, block table, what stays on the device
}

}  // namespace
}  // namespace proa
