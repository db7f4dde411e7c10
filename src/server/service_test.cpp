#include "server/service.h"

#include <gtest/gtest.h>

#include <fstream>
#include <regex>
#include <thread>

#include "server/testing.h"

namespace proa {
namespace {

using Json = nlohmann::ordered_json;

const std::string kChat = "/v1/chat/completions";
const std::string kHi = R"({"messages":[{"role":"user","content":"Hi"}],"temperature":0)";  // and more, and "}"

// --- shapes, byte for byte ---

TEST(Service, ChatCompletion) {
  ScriptedServer server;
  server.say("Hé\"\n");
  const http::Response response = server.post(kChat, kHi + "}");
  EXPECT_EQ(response.status, 200);
  EXPECT_EQ(response.content_type, "application/json");
  EXPECT_EQ(
      settled(response.body),
      R"({"id":"chatcmpl-ID","object":"chat.completion","created":0,"model":"tiny","choices":[{"index":0,"message":{"role":"assistant","content":"Hé\"\n","refusal":null,"annotations":null,"audio":null,"function_call":null,"tool_calls":[],"reasoning":null,"reasoning_content":null},"logprobs":null,"finish_reason":"stop","stop_reason":null,"token_ids":null}],"service_tier":null,"system_fingerprint":null,"usage":{"prompt_tokens":21,"total_tokens":27,"completion_tokens":6,"prompt_tokens_details":{"cached_tokens":0},"completion_tokens_details":{"reasoning_tokens":0}},"prompt_logprobs":null,"prompt_token_ids":null,"kv_transfer_params":null})");
}

TEST(Service, ChatStream) {
  ScriptedServer server;
  server.say("é!");
  const http::Response response =
      server.post(kChat, kHi + R"(,"stream":true,"stream_options":{"include_usage":true}})");
  EXPECT_EQ(response.content_type, "text/event-stream; charset=utf-8");
  const std::string head =
      R"(data: {"id":"chatcmpl-ID","object":"chat.completion.chunk","created":0,"model":"tiny","choices":[)";
  const auto text = [&](const std::string& piece) {
    return head + R"({"index":0,"delta":{"content":")" + piece +
           R"(","reasoning_content":null},"logprobs":null,"finish_reason":null,"token_ids":null}]})" + "\n\n";
  };
  EXPECT_EQ(
      settled(response.body),
      head +
          R"({"index":0,"delta":{"role":"assistant","content":"","reasoning_content":null},"logprobs":null,"finish_reason":null}],"prompt_token_ids":null})"
          "\n\n" +
          text("") + text("é") + text("!") + head +
          R"({"index":0,"delta":{"content":"","reasoning_content":null},"logprobs":null,"finish_reason":"stop","stop_reason":null,"token_ids":null}]})"
          "\n\n" +
          head +
          R"(],"usage":{"prompt_tokens":21,"total_tokens":25,"completion_tokens":4,"prompt_tokens_details":{"cached_tokens":0},"completion_tokens_details":{"reasoning_tokens":0}}})"
          "\n\ndata: [DONE]\n\n");
}

TEST(Service, Completion) {
  ScriptedServer server;
  server.say("abc");
  EXPECT_EQ(
      settled(server.post("/v1/completions", R"({"prompt":"xy","max_tokens":2,"temperature":0})").body),
      R"({"id":"cmpl-ID","object":"text_completion","created":0,"model":"tiny","choices":[{"index":0,"text":"ab","logprobs":null,"finish_reason":"length","stop_reason":null,"token_ids":null,"prompt_logprobs":null,"prompt_token_ids":null}],"service_tier":null,"system_fingerprint":null,"usage":{"prompt_tokens":2,"total_tokens":4,"completion_tokens":2,"prompt_tokens_details":{"cached_tokens":0},"completion_tokens_details":{"reasoning_tokens":0}},"kv_transfer_params":null})");
  const std::string head =
      R"(data: {"id":"cmpl-ID","object":"text_completion","created":0,"model":"tiny","choices":[{"index":0,"text":)";
  EXPECT_EQ(
      settled(server.post("/v1/completions", R"({"prompt":"xy","max_tokens":2,"temperature":0,"stream":true})").body),
      head +
          R"("a","logprobs":null,"finish_reason":null,"stop_reason":null,"prompt_token_ids":null,"token_ids":null}],"usage":null})"
          "\n\n" +
          head +
          R"("b","logprobs":null,"finish_reason":"length","stop_reason":null,"prompt_token_ids":null,"token_ids":null}],"usage":null})"
          "\n\n"
          "data: [DONE]\n\n");
}

TEST(Service, TokensThatWereKnownAreInTheUsage) {
  ScriptedServer server;
  server.say("ab");
  const std::string usage = R"({"prompt_tokens":21,"total_tokens":24,"completion_tokens":3,"prompt_tokens_details":)";
  const auto cached = [&](const std::string& more) {
    const std::string body = server.post(kChat, kHi + more + "}").body;
    const size_t at = body.find(usage);
    return at == std::string::npos ? body : body.substr(at + usage.size(), body.find('}', at) - at - usage.size());
  };
  const std::string none = R"({"cached_tokens":0)", block = R"({"cached_tokens":16)";
  EXPECT_EQ(cached(""), none);
  EXPECT_EQ(cached(""), block) << "a block of the 21 tokens";
  EXPECT_EQ(cached(R"(,"stream":true,"stream_options":{"include_usage":true})"), block);
  EXPECT_EQ(cached(R"(,"cache_salt":"mine")"), none) << "salted requests share nothing";
  const std::string metrics = server.get("/metrics").body;
  for (const char* line : {"vllm:prefix_cache_queries_total{engine=\"0\",model_name=\"tiny\"} 63.0\n",
                           "vllm:prefix_cache_hits_total{engine=\"0\",model_name=\"tiny\"} 32.0\n",
                           "vllm:prompt_tokens_cached_total{engine=\"0\",model_name=\"tiny\"} 32.0\n"}) {
    EXPECT_NE(metrics.find(line), std::string::npos) << line;
  }
}

TEST(Service, PriorityIsTakenWhereItCounts) {
  ServiceConfig config;
  config.policy.priority_scheduling = true;
  ScriptedServer server(config, {.priority_scheduling = true});
  server.say("ab");
  EXPECT_EQ(server.post(kChat, kHi + R"(,"priority":-3})").status, 200);
  EXPECT_EQ(server.post(kChat, kHi + R"(,"priority":"soon"})").status, 400);
}

TEST(Service, Models) {
  ScriptedServer server;
  EXPECT_EQ(
      settled(server.get("/v1/models").body),
      R"({"object":"list","data":[{"id":"tiny","object":"model","created":0,"owned_by":"vllm","root":"org/tiny","parent":null,"max_model_len":512,"permission":[{"id":"modelperm-ID","object":"model_permission","created":0,"allow_create_engine":false,"allow_sampling":true,"allow_logprobs":true,"allow_search_indices":false,"allow_view":true,"allow_fine_tuning":false,"organization":"*","group":null,"is_blocking":false}]},{"id":"alias","object":"model","created":0,"owned_by":"vllm","root":"org/tiny","parent":null,"max_model_len":512,"permission":[{"id":"modelperm-ID","object":"model_permission","created":0,"allow_create_engine":false,"allow_sampling":true,"allow_logprobs":true,"allow_search_indices":false,"allow_view":true,"allow_fine_tuning":false,"organization":"*","group":null,"is_blocking":false}]}]})");
}

TEST(Service, SmallRoutes) {
  ScriptedServer server;
  const struct {
    const char *method, *path, *body;
    int status;
    const char* answer;
  } rows[] = {
      {"GET", "/health", "", 200, ""},
      {"GET", "/ping", "", 200, ""},
      {"POST", "/ping", "", 200, ""},
      {"GET", "/version", "", 200, R"({"version":"0.1.0","compat":"vllm 0.13"})"},
      {"GET", "/load", "", 200, R"({"server_load":0})"},
      {"POST", "/tokenize", R"({"prompt":"hi"})", 200,
       R"({"count":2,"max_model_len":512,"tokens":[104,105],"token_strs":null})"},
      {"POST", "/tokenize", R"({"prompt":"h<think>","return_token_strs":true})", 200,
       R"({"count":2,"max_model_len":512,"tokens":[104,259],"token_strs":["h","<think>"]})"},
      {"POST", "/tokenize", R"({"messages":[{"role":"user","content":"a<|im_end|>"}],"add_generation_prompt":false})",
       200,
       R"({"count":20,"max_model_len":512,"tokens":[257,117,115,101,114,10,97,60,124,105,109,95,101,110,100,124,62,256,10],"token_strs":null})"},
      {"POST", "/detokenize", R"({"tokens":[104,195,169,256]})", 200, R"({"prompt":"hé<|im_end|>"})"},
      {"POST", "/detokenize", R"({"tokens":[]})", 200, R"({"prompt":""})"},
  };
  for (const auto& row : rows) {
    const http::Response response =
        row.method == std::string("GET") ? server.get(row.path) : server.post(row.path, row.body);
    EXPECT_EQ(response.status, row.status) << row.path;
    if (std::string(row.path) == "/tokenize" && std::string(row.body).find("messages") != std::string::npos) {
      const Json tokens = Json::parse(response.body);
      EXPECT_EQ(tokens["tokens"], Json::parse(row.answer)["tokens"]) << "what users write is no control token";
      EXPECT_EQ(tokens["count"], tokens["tokens"].size());
      continue;
    }
    EXPECT_EQ(response.body, row.answer) << row.path;
  }
  EXPECT_TRUE(Json::parse(server.get("/openapi.json").body).contains("paths"));
}

TEST(Service, TokenizerInfo) {
  EXPECT_EQ(ScriptedServer().get("/tokenizer_info").status, 404) << "only where it is asked for";
  ServiceConfig config;
  config.enable_tokenizer_info = true;
  config.chat_template_text = "{{ 1 }}";
  EXPECT_EQ(
      ScriptedServer(std::move(config)).get("/tokenizer_info").body,
      R"({"tokenizer_class":"PreTrainedTokenizerFast","bos_token":null,"eos_token":"<|im_end|>","add_bos_token":false,)"
      R"("model_max_length":512,"chat_template":"{{ 1 }}"})");
}

// The page needs nothing from elsewhere, and asks only for routes and families that there are.
TEST(Service, ThePageAsksOnlyThisServer) {
  ScriptedServer server;
  const http::Response page = server.get("/");
  EXPECT_EQ(page.status, 200);
  EXPECT_EQ(page.content_type, "text/html; charset=utf-8");
  EXPECT_EQ(page.body.find("src="), std::string::npos);
  EXPECT_EQ(page.body.find("https://"), std::string::npos);
  const std::string metrics = server.get("/metrics").body;
  const std::regex families("'((vllm|process)[a-z_:]+)'");
  int count = 0;
  for (std::sregex_iterator at(page.body.begin(), page.body.end(), families), end; at != end; ++at, ++count) {
    EXPECT_NE(metrics.find("\n" + (*at)[1].str()), std::string::npos) << (*at)[1];
  }
  EXPECT_GE(count, 8);
  EXPECT_EQ(server.post("/", "{}").status, 405);
}

// --- what the fields do ---

// Text, reason and stop_reason of a completion, also when it is streamed.
std::string completed(ScriptedServer& server, const std::string& fields) {
  const Json whole =
      Json::parse(server.post("/v1/completions", R"({"prompt":"p","temperature":0,)" + fields + "}").body);
  if (!whole.contains("choices")) return whole.dump();
  std::string all;
  for (const Json& choice : whole["choices"]) {
    all += choice["text"].get<std::string>() + "|" + choice["finish_reason"].get<std::string>() + "|" +
           choice["stop_reason"].dump() + ";";
  }
  const std::string stream =
      server.post("/v1/completions", R"({"prompt":"p","temperature":0,"stream":true,)" + fields + "}").body;
  std::vector<std::string> texts(whole["choices"].size()), ends(whole["choices"].size());
  for (size_t at = 0; (at = stream.find("data: {", at)) != std::string::npos; ++at) {
    const Json chunk = Json::parse(stream.substr(at + 6, stream.find("\n\n", at) - at - 6));
    for (const Json& choice : chunk["choices"]) {
      const auto index = choice["index"].get<size_t>();
      texts[index] += choice["text"].get<std::string>();
      if (!choice["finish_reason"].is_null()) {
        ends[index] = "|" + choice["finish_reason"].get<std::string>() + "|" + choice["stop_reason"].dump() + ";";
      }
    }
  }
  std::string streamed;
  for (size_t i = 0; i < texts.size(); ++i) streamed += texts[i] + ends[i];
  EXPECT_EQ(streamed, all) << fields;
  return all;
}

TEST(Service, CompletionFields) {
  ScriptedServer server;
  const struct {
    const char *script, *fields, *answer;
  } rows[] = {
      {"0123456789abcdefghij", R"("n":1)", "0123456789abcdef|length|null;"},  // 16 tokens unless told
      {"abc", R"("max_tokens":10)", "abc|stop|null;"},
      {"abcdef", R"("stop":"cd")", "ab|stop|\"cd\";"},
      {"abcdef", R"("stop":["x","de"],"include_stop_str_in_output":true)", "abcde|stop|\"de\";"},
      {"abcdef", R"("stop_token_ids":[100])", "abc|stop|100;"},
      {"abc</s>def", R"("max_tokens":8)", "abc|stop|258;"},  // an end token, but not the first
      {"abc<|im_end|>def", R"("ignore_eos":true,"max_tokens":7)", "abcdef|length|null;"},
      {"abc<|im_end|>def", R"("ignore_eos":true,"max_tokens":7,"skip_special_tokens":false)",
       "abc<|im_end|>def|length|null;"},
      {"abc", R"("echo":true)", "pabc|stop|null;"},
      {"abc", R"("echo":true,"max_tokens":0)", "p|length|null;"},
      {"\xC3", R"("max_tokens":5)", "\uFFFD|stop|null;"},
      {"", R"("max_tokens":5)", "|stop|null;"},
      // what is said about single tokens; a banned token leaves "?", the other one the model knows
      {"abc", R"("logit_bias":{"98":-100},"max_tokens":3)", "a?c|length|null;"},
      {"abc", R"("logit_bias":{"63":0.5},"max_tokens":3)", "???|length|null;"},
      {"abc", R"("allowed_token_ids":[63,98],"max_tokens":3)", "?b?|length|null;"},
      {"abc", R"("bad_words":["b"],"max_tokens":3)", "a?c|length|null;"},
      {"abab", R"("bad_words":["ab"],"max_tokens":4)", "a?a?|length|null;"},
      {"a", R"("min_tokens":3,"max_tokens":4)", "a??|stop|null;"},
      {"a</s>b", R"("min_tokens":3,"max_tokens":4)", "a?b|stop|null;"},
      {"ab", R"("max_tokens":"2","stream_options":null,"user":"u","unknown_field":[1])", "ab|length|null;"},
  };
  for (const auto& row : rows) {
    server.say(row.script);
    EXPECT_EQ(completed(server, row.fields), row.answer) << row.fields;
  }
}

TEST(Service, SeveralPromptsAndChoices) {
  ScriptedServer server;
  server.say("ab");
  EXPECT_EQ(completed(server, R"("n":1,"prompt_":0)"), "ab|stop|null;");
  const auto texts = [&](const std::string& body) {
    std::string all;
    const Json answer = Json::parse(server.post("/v1/completions", body).body);
    for (const Json& choice : answer["choices"])
      all += choice["index"].dump() + choice["text"].get<std::string>() + " ";
    return all + answer["usage"]["prompt_tokens"].dump() + " " + answer["usage"]["completion_tokens"].dump();
  };
  EXPECT_EQ(texts(R"({"prompt":["x","yz"],"echo":true,"temperature":0})"), "0xab 1yzab 3 6");
  EXPECT_EQ(texts(R"({"prompt":[120],"echo":true,"temperature":0})"), "0xab 1 3");
  EXPECT_EQ(texts(R"({"prompt":[[120],[121,122]],"echo":true,"temperature":0})"), "0xab 1yzab 3 6");
  // drawn, so each choice may be another; two prompts of three each
  const Json answer = Json::parse(
      server.post("/v1/completions", R"({"prompt":["x","y"],"n":3,"temperature":1,"max_tokens":1,"seed":7})").body);
  EXPECT_EQ(answer["choices"].size(), 6u);
  EXPECT_EQ(answer["usage"]["prompt_tokens"], 2);
  EXPECT_EQ(answer["usage"]["completion_tokens"], 6);
}

TEST(Service, Logprobs) {
  ScriptedServer server;
  server.say("é");
  const Json chat = Json::parse(server.post(kChat, kHi + R"(,"logprobs":true,"top_logprobs":2,"max_tokens":2})").body);
  const Json& content = chat["choices"][0]["logprobs"]["content"];
  ASSERT_EQ(content.size(), 2u);
  EXPECT_EQ(content[0]["token"], "\uFFFD");
  EXPECT_EQ(content[0]["bytes"], Json({195}));
  EXPECT_NEAR(content[0]["logprob"].get<double>(), -0.693147, 1e-4);
  EXPECT_EQ(content[0]["top_logprobs"].size(), 2u);
  EXPECT_EQ(content[0]["top_logprobs"][1]["token"], "?");
  const Json three = Json::parse(server.post(kChat, kHi + R"(,"logprobs":true,"top_logprobs":3,"max_tokens":1})").body);
  EXPECT_EQ(three["choices"][0]["logprobs"]["content"][0]["top_logprobs"][2]["logprob"], -9999.0);
  server.say("ab");
  const Json text = Json::parse(
      server
          .post("/v1/completions",
                R"({"prompt":"p","logprobs":1,"max_tokens":2,"temperature":0,"return_tokens_as_token_ids":true})")
          .body);
  const Json& logprobs = text["choices"][0]["logprobs"];
  EXPECT_EQ(logprobs["tokens"], Json({"token_id:97", "token_id:98"}));
  EXPECT_EQ(logprobs["text_offset"], Json({0, 11}));
  EXPECT_EQ(logprobs["top_logprobs"][0].size(), 1u);
}

// The chunks of a stream.
std::vector<Json> chunks_of(const std::string& stream) {
  EXPECT_TRUE(stream.ends_with("data: [DONE]\n\n")) << stream;
  std::vector<Json> chunks;
  for (size_t at = 0; (at = stream.find("data: {", at)) != std::string::npos; ++at) {
    chunks.push_back(Json::parse(stream.substr(at + 6, stream.find("\n\n", at) - at - 6)));
  }
  return chunks;
}

// A prompt of three tokens after which only "?" and what is scripted for the first token are possible.
TEST(Service, LogprobsOfThePrompt) {
  ScriptedServer server;
  server.say("ab");
  const auto choice = [&](const std::string& body) {
    const http::Response response = server.post("/v1/completions", body);
    EXPECT_EQ(response.status, 200) << response.body;
    return Json::parse(response.body)["choices"][0];
  };
  const Json plain = choice(R"({"prompt":"x?z","prompt_logprobs":1,"max_tokens":1,"temperature":0})");
  EXPECT_EQ(plain["text"], "a");
  ASSERT_EQ(plain["prompt_logprobs"].size(), 3u);
  EXPECT_TRUE(plain["prompt_logprobs"][0].is_null());
  EXPECT_EQ(plain["prompt_logprobs"][1].size(), 2u);
  EXPECT_EQ(plain["prompt_logprobs"][1]["63"]["decoded_token"], "?");
  EXPECT_EQ(plain["prompt_logprobs"][1]["63"]["rank"], 2) << "an end is a little likelier";
  EXPECT_NEAR(plain["prompt_logprobs"][1]["63"]["logprob"].get<double>(), -0.693147, 1e-4);
  EXPECT_EQ(plain["prompt_logprobs"][2].dump().find(R"({"122":{"logprob":-9999.0,"rank":)"), 0u)
      << "itself first: " << plain["prompt_logprobs"][2];
  EXPECT_EQ(plain["prompt_logprobs"][2].size(), 2u);

  const Json echoed = choice(R"({"prompt":"x?z","echo":true,"logprobs":1,"max_tokens":1,"temperature":0})");
  EXPECT_EQ(echoed["text"], "x?za");
  EXPECT_EQ(echoed["logprobs"]["tokens"], Json({"x", "?", "z", "a"}));
  EXPECT_EQ(echoed["logprobs"]["text_offset"], Json({0, 1, 2, 3}));
  EXPECT_TRUE(echoed["logprobs"]["token_logprobs"][0].is_null());
  EXPECT_TRUE(echoed["logprobs"]["top_logprobs"][0].is_null());
  EXPECT_EQ(echoed["logprobs"]["token_logprobs"][2], -9999.0);
  EXPECT_EQ(echoed["logprobs"]["top_logprobs"].size(), 4u);

  // what a scorer asks for
  const std::string score = R"({"prompt":[[120,63],[120,63,122]],"echo":true,"logprobs":1,"max_tokens":0)";
  const Json scored = Json::parse(server.post("/v1/completions", score + "}").body);
  EXPECT_EQ(scored["choices"][1]["text"], "x?z");
  EXPECT_EQ(scored["choices"][1]["logprobs"]["tokens"].size(), 3u);
  EXPECT_EQ(scored["choices"][0]["finish_reason"], "length");
  EXPECT_EQ(scored["usage"]["completion_tokens"], 0);
  std::string streamed;
  for (const Json& chunk : chunks_of(server.post("/v1/completions", score + R"(,"stream":true})").body)) {
    if (chunk["choices"][0]["index"] == 1) streamed += chunk["choices"][0]["logprobs"]["tokens"].dump();
  }
  EXPECT_EQ(streamed, R"(["x","?","z"])");

  const Json chat = Json::parse(server.post(kChat, kHi + R"(,"prompt_logprobs":0,"max_tokens":1})").body);
  EXPECT_EQ(chat["prompt_logprobs"].size(), 21u);
  EXPECT_EQ(chat["prompt_logprobs"][20].size(), 1u);
}

// A budget ends thoughts that do not end by themselves; what the model says then goes on where its script is.
TEST(Service, ThinkingHasABudget) {
  ServiceConfig config;
  config.policy.reasoning_parser = "nemotron_v3";
  ScriptedServer server(std::move(config));
  server.say("abcdefghij");
  const auto answer = [&](const std::string& fields) {
    const Json message =
        Json::parse(server.post(kChat, kHi + R"(,"max_tokens":8)" + fields + "}").body)["choices"][0]["message"];
    const auto text = [](const Json& value) { return value.is_string() ? value.get<std::string>() : "null"; };
    return text(message["reasoning"]) + "|" + text(message["content"]);
  };
  EXPECT_EQ(answer(""), "abcdefgh|null");
  EXPECT_EQ(answer(R"(,"thinking_token_budget":2)"), "ab|fgh") << "three tokens are forced";
  EXPECT_EQ(answer(R"(,"thinking_token_budget":0)"), "null|defgh");
  EXPECT_EQ(answer(R"(,"thinking_token_budget":-1)"), "abcdefgh|null");
  EXPECT_EQ(answer(R"(,"chat_template_kwargs":{"reasoning_budget":2})"), "abcdefgh|null") << "no line ends";
  EXPECT_EQ(answer(R"(,"thinking_token_budget":2,"chat_template_kwargs":{"enable_thinking":false})"), "ab|fgh")
      << "this template has no thinking to switch off";
  server.say("ab\ncdefghij");
  EXPECT_EQ(answer(R"(,"chat_template_kwargs":{"reasoning_budget":2})"), "ab|fg");
  EXPECT_EQ(answer(R"(,"chat_template_kwargs":{"reasoning_budget":-1})"), "ab\ncdefg|null");
  server.say("a</think>bcdef");
  EXPECT_EQ(answer(R"(,"thinking_token_budget":3)"), "a|bcdef");
  const http::Response wrong = server.post(kChat, kHi + R"(,"chat_template_kwargs":{"reasoning_budget":"x"}})");
  EXPECT_EQ(wrong.status, 400);
  EXPECT_NE(wrong.body.find("reasoning_budget must be"), std::string::npos) << wrong.body;
}

TEST(Service, StreamsCarryLogprobsAndUsage) {
  ServiceConfig config;
  config.policy.reasoning_parser = "nemotron_v3";
  ScriptedServer server(std::move(config));
  server.say("a</think>bc");
  const auto chunks =
      chunks_of(server
                    .post(kChat, kHi + R"(,"logprobs":true,"stream":true,"return_token_ids":true,)"
                                       R"("stream_options":{"include_usage":true,"continuous_usage_stats":true}})")
                    .body);
  std::string tokens;
  std::vector<int> ids, completion_tokens;
  for (const Json& chunk : chunks) {
    completion_tokens.push_back(chunk["usage"]["completion_tokens"]);
    if (chunk["choices"].empty()) continue;
    const Json& choice = chunk["choices"][0];
    if (choice["logprobs"].is_object()) {
      for (const Json& entry : choice["logprobs"]["content"]) tokens += entry["token"].get<std::string>() + " ";
    }
    for (const Json& id : choice.value("token_ids", Json::array())) ids.push_back(id);
  }
  EXPECT_EQ(tokens, "a </think> b c <|im_end|> ") << "also of what the parser held back";
  EXPECT_EQ(ids, (std::vector<int>{'a', 260, 'b', 'c', kEos}));
  EXPECT_EQ(chunks[0]["prompt_token_ids"].size(), 21u);
  EXPECT_EQ(completion_tokens, (std::vector<int>{0, 1, 3, 4, 5, 5}));
}

TEST(Service, EventsOfSeveralTokens) {
  ScriptedServer server;
  server.say("abcdefg");
  for (const auto& [path, prompt] :
       {std::pair<std::string, std::string>{kChat, R"("messages":[{"role":"user","content":"x"}])"},
        {"/v1/completions", R"("prompt":"x")"}}) {
    std::vector<std::string> texts;
    for (const Json& chunk :
         chunks_of(server.post(path, "{" + prompt + R"(,"stream":true,"stream_interval":3,"temperature":0})").body)) {
      const Json& choice = chunk["choices"][0];
      const std::string text =
          (choice.contains("text") ? choice : choice["delta"]).value(choice.contains("text") ? "text" : "content", "");
      if (!text.empty()) texts.push_back(text);
    }
    EXPECT_EQ(texts, (std::vector<std::string>{"a", "bcd", "efg"})) << path;
  }
}

TEST(Service, ChoicesOfAStreamAreApart) {
  ScriptedServer server;
  server.say("abc");
  const auto chunks = chunks_of(
      server
          .post(kChat, R"({"messages":[{"role":"user","content":"x"}],"n":3,"temperature":0.5,"seed":1,"stream":true})")
          .body);
  std::map<int, int> roles, ends;
  for (const Json& chunk : chunks) {
    const Json& choice = chunk["choices"][0];
    roles[choice["index"]] += choice["delta"].contains("role") ? 1 : 0;
    EXPECT_EQ(roles[choice["index"]], 1) << "the role comes first, and once";
    EXPECT_EQ(ends[choice["index"]], 0) << "nothing follows the end";
    ends[choice["index"]] += choice["finish_reason"].is_null() ? 0 : 1;
  }
  EXPECT_EQ(ends, (std::map<int, int>{{0, 1}, {1, 1}, {2, 1}}));
}

TEST(Service, MoreSequencesThanTheQueueHolds) {
  ScriptedServer server({}, {.max_queue = 4});
  server.say("a");
  EXPECT_EQ(server.post("/v1/completions", R"({"prompt":["a","b","c"],"n":2,"temperature":1})").status, 400);
  EXPECT_EQ(server.post("/v1/completions", R"({"prompt":["a","b"],"n":2,"temperature":1})").status, 200);
}

TEST(Service, TokenIds) {
  ScriptedServer server;
  server.say("a");
  const Json answer =
      Json::parse(server.post("/v1/completions", R"({"prompt":"p","temperature":0,"return_token_ids":true})").body);
  EXPECT_EQ(answer["choices"][0]["token_ids"], Json({97, kEos}));
  EXPECT_EQ(answer["choices"][0]["prompt_token_ids"], Json({112}));
}

// Content, reasoning and calls of a chat answer; the deltas of a stream put together.
struct ChatText {
  std::string content, reasoning, calls, finish_reason;
  bool operator==(const ChatText&) const = default;
};
std::ostream& operator<<(std::ostream& out, const ChatText& text) {
  return out << text.content << " / " << text.reasoning << " / " << text.calls << " / " << text.finish_reason;
}

ChatText chat_whole(ScriptedServer& server, const std::string& body) {
  const http::Response response = server.post(kChat, body);
  const Json choice = Json::parse(response.body)["choices"][0];
  const Json& message = choice["message"];
  ChatText text;
  if (message["content"].is_string()) text.content = message["content"];
  if (message["reasoning"].is_string()) text.reasoning = message["reasoning"];
  EXPECT_EQ(message["reasoning"], message["reasoning_content"]);
  for (const Json& call : message["tool_calls"]) {
    EXPECT_TRUE(call["id"].get<std::string>().starts_with("chatcmpl-tool-"));
    text.calls += call["function"]["name"].get<std::string>() + call["function"]["arguments"].get<std::string>() + ";";
  }
  text.finish_reason = choice["finish_reason"];
  return text;
}

ChatText chat_streamed(ScriptedServer& server, const std::string& body) {
  const std::string stream = server.post(kChat, body.substr(0, body.size() - 1) + R"(,"stream":true})").body;
  ChatText text;
  std::map<int, std::string> calls;
  for (size_t at = 0; (at = stream.find("data: {", at)) != std::string::npos; ++at) {
    const Json choice = Json::parse(stream.substr(at + 6, stream.find("\n\n", at) - at - 6))["choices"][0];
    const Json& delta = choice["delta"];
    EXPECT_LE(delta.contains("content") + delta.contains("reasoning") + delta.contains("tool_calls"), 1) << delta;
    if (delta.contains("content")) text.content += delta["content"].get<std::string>();
    if (delta.contains("reasoning")) text.reasoning += delta["reasoning"].get<std::string>();
    for (const Json& call : delta.value("tool_calls", Json::array())) {
      std::string& all = calls[call["index"].get<int>()];
      EXPECT_EQ(call.contains("id"), all.empty());
      EXPECT_EQ(call.contains("type"), all.empty());
      all += call["function"].value("name", "") + call["function"]["arguments"].get<std::string>();
    }
    if (!choice["finish_reason"].is_null()) {
      EXPECT_TRUE(text.finish_reason.empty()) << "once";
      text.finish_reason = choice["finish_reason"];
    }
  }
  for (const auto& [index, call] : calls) text.calls += call + ";";
  return text;
}

const std::string kTools =
    R"(,"tools":[{"type":"function","function":{"name":"f","parameters":{"type":"object","properties":{"x":{"type":"integer"}}}}}])";

TEST(Service, ReasoningAndTools) {
  const std::string call = "<tool_call>\n<function=f>\n<parameter=x>\n1\n</parameter>\n</function>\n</tool_call>";
  const struct {
    const char* reasoning_parser;
    std::string script, fields;
    ChatText expected;
  } rows[] = {
      // no parser: everything is content
      {"", "a</think>b", "", {"a</think>b", "", "", "stop"}},
      {"nemotron_v3", "a\n</think>\n\nb", "", {"b", "a", "", "stop"}},
      {"nano_v3", "<think>a</think>b", "", {"b", "a", "", "stop"}},
      {"deepseek_r1", "a\n</think>\nb", "", {"\nb", "a\n", "", "stop"}},
      {"nemotron_v3", "never closed", "", {"", "never closed", "", "stop"}},
      {"nemotron_v3", "a</think>b", R"(,"include_reasoning":false)", {"b", "", "", "stop"}},
      {"nemotron_v3", "a</think>b", R"(,"max_tokens":1)", {"", "a", "", "length"}},
      // tools
      {"", "Well. " + call, kTools, {"Well.", "", "f{\"x\": 1};", "tool_calls"}},
      {"nemotron_v3",
       "think</think>" + call + "\n" + call,
       kTools,
       {"", "think", "f{\"x\": 1};f{\"x\": 1};", "tool_calls"}},
      {"nemotron_v3", "think\n" + call, kTools, {"", "think", "f{\"x\": 1};", "tool_calls"}},
      {"", call + call, kTools + R"(,"parallel_tool_calls":false)", {"", "", "f{\"x\": 1};", "tool_calls"}},
      {"", call, kTools + R"(,"tool_choice":"none")", {call, "", "", "stop"}},
      {"", "no call", kTools, {"no call", "", "", "stop"}},
      {"", "a <tool", kTools, {"a <tool", "", "", "stop"}},
  };
  for (const auto& row : rows) {
    ServiceConfig config;
    config.policy.reasoning_parser = row.reasoning_parser;
    config.policy.tool_parser = "qwen3_coder";
    config.policy.enable_auto_tool_choice = true;
    ScriptedServer server(std::move(config));
    server.say(row.script);
    const std::string body = kHi + R"(,"skip_special_tokens":false)" + row.fields + "}";
    EXPECT_EQ(chat_whole(server, body), row.expected) << row.script;
    EXPECT_EQ(chat_streamed(server, body), row.expected) << row.script << " streamed";
  }
}

TEST(Service, AnAnswerOfThoughtsBecomesContent) {
  ServiceConfig config;
  config.policy.reasoning_parser = "nemotron_v3";
  ScriptedServer server(std::move(config));
  server.say("all thoughts");
  const std::string off = kHi + R"(,"chat_template_kwargs":{"enable_thinking":false}})";
  EXPECT_EQ(chat_whole(server, off), (ChatText{"all thoughts", "", "", "stop"}));
  const std::string force = kHi + R"(,"chat_template_kwargs":{"force_nonempty_content":true}})";
  EXPECT_EQ(chat_whole(server, force), (ChatText{"all thoughts", "", "", "stop"}));
  EXPECT_EQ(chat_streamed(server, force), (ChatText{"all thoughts", "all thoughts", "", "stop"}));
}

TEST(Service, ReasoningTokensAreCounted) {
  ServiceConfig config;
  config.policy.reasoning_parser = "nemotron_v3";
  ScriptedServer server(std::move(config));
  server.say("abc</think>de");
  const Json usage = Json::parse(server.post(kChat, kHi + "}").body)["usage"];
  EXPECT_EQ(usage["completion_tokens"], 7);
  EXPECT_EQ(usage["completion_tokens_details"]["reasoning_tokens"], 4);
}

TEST(Service, MessagesOfEveryShape) {
  ScriptedServer server;
  server.say("ok");
  for (
      const char* messages : {
          R"([{"role":"developer","content":"d"},{"role":"user","content":[{"type":"text","text":"a"},{"type":"input_text","text":"b"},"c"],"name":null}])",
          R"([{"role":"user","content":"x"},{"role":"assistant","content":null,"tool_calls":[{"id":"1","type":"function","function":{"name":"f","arguments":"{\"x\":1}"}}]},{"role":"tool","tool_call_id":"1","content":"2"}])",
          R"([{"role":"user","content":"x"},{"role":"assistant","content":"y","reasoning":"r","tool_calls":[]},{"role":"user","content":"z\u0000"}])",
      }) {
    EXPECT_EQ(server.post(kChat, R"({"messages":)" + std::string(messages) + "}").status, 200) << messages;
  }
  // Without content, as history with tool calls has it, templates see the empty text.
  for (const char* content : {"", R"(,"content":null)", R"(,"content":"")"}) {
    const std::string messages = R"({"messages":[{"role":"user")" + std::string(content) + "}]";
    EXPECT_EQ(server.post("/tokenize", messages + "}").body,
              server.post("/tokenize", R"({"messages":[{"role":"user","content":[]}]})").body)
        << content;
    EXPECT_EQ(server.post(kChat, messages + "}").status, 200) << content;
  }
  const Json echo = Json::parse(
      server
          .post(kChat,
                R"({"messages":[{"role":"user","content":"x"},{"role":"assistant","content":"I am"}],"echo":true,)"
                R"("add_generation_prompt":false,"continue_final_message":true,"temperature":0})")
          .body);
  EXPECT_EQ(echo["choices"][0]["message"]["content"], "I amok");
}

// --- errors ---

TEST(Service, EveryErrorHasItsStatusTypeAndParam) {
  ServiceConfig config;
  config.policy.enable_auto_tool_choice = false;
  ScriptedServer server(std::move(config));
  server.say("ok");
  const std::string deep = std::string(300, '[') + std::string(300, ']');
  const struct {
    std::string body;  // of a chat completion, or of a completion where it has no messages
    int status;
    const char *type, *message;
    const char* param = "";
  } rows[] = {
      {"", 400, "Bad Request", "1 validation error:", "body"},
      {"{", 400, "Bad Request", "JSON decode error", "body"},
      {"nonsense", 400, "Bad Request", "JSON decode error", "body"},
      {"[]", 400, "Bad Request", "valid dictionary", "body"},
      {R"({"messages":[],"x":)" + deep + "}", 400, "Bad Request", "levels of nesting", "body"},
      {"{\"messages\":\"\xff\"}", 400, "Bad Request", "JSON decode error", "body"},
      {R"({"messages":"\ud800"})", 400, "Bad Request", "JSON decode error", "body"},
      {std::string("{\"messages\":\"a\0b\"}", 18), 400, "Bad Request", "JSON decode error", "body"},
      {R"({"messages":[],"temperature":1e999})", 400, "Bad Request", "JSON decode error", "body"},
      {R"({"model":"tiny"})", 400, "Bad Request",
       "1 validation error:\n  {'type': 'missing', 'loc': ('body', 'messages'), 'msg': 'Field required'}",
       "body.messages"},
      {R"({"messages":"hi"})", 400, "Bad Request", "Input should be a valid list", "body.messages"},
      {R"({"messages":null})", 400, "Bad Request", "Input should be a valid list", "body.messages"},
      {R"({"messages":[5]})", 400, "Bad Request", "valid dictionary", "body.messages[0]"},
      {R"({"messages":[{"content":"x"}]})", 400, "Bad Request", "Field required", "body.messages[0].role"},
      {R"({"messages":[{"role":5}]})", 400, "Bad Request", "valid string", "body.messages[0].role"},
      {R"({"messages":[{"role":"user","content":5}]})", 400, "BadRequestError", "a string, an array of parts, or null",
       "messages[0].content"},
      {R"({"messages":[]})", 400, "BadRequestError", "must not be an empty array", "messages"},
      {R"({"messages":[{"role":"user","content":[{"type":"image_url","image_url":{"url":"data:"}}]}]})", 400,
       "BadRequestError", "is not a multimodal model", "messages[0].content[0]"},
      {R"({"messages":[{"role":"user","content":[{"type":"hologram"}]}]})", 400, "BadRequestError", "Unknown part type",
       "messages[0].content[0]"},
      {kHi + R"(,"temperature":"warm"})", 400, "Bad Request", "once", "body"},  // twice in the body
      {R"({"messages":[{"role":"user","content":"x"}],"temperature":"warm","n":"x"})", 400, "Bad Request",
       "2 validation errors:", "body.temperature"},
      {R"({"messages":[{"role":"user","content":"x"}],"temperature":-1})", 400, "BadRequestError",
       "temperature must be non-negative, got -1.0.", "temperature"},
      {R"({"messages":[{"role":"user","content":"x"}],"temperature":"NaN"})", 400, "BadRequestError",
       "temperature must be", "temperature"},
      {R"({"messages":[{"role":"user","content":"x"}],"temperature":Infinity})", 400, "BadRequestError",
       "temperature must be a finite", "temperature"},
      {kHi + R"(,"top_p":0})", 400, "BadRequestError", "top_p must be in (0, 1], got 0.0.", "top_p"},
      {kHi + R"(,"top_p":1.5})", 400, "BadRequestError", "top_p must be in (0, 1], got 1.5.", "top_p"},
      {kHi + R"(,"top_k":-2})", 400, "BadRequestError", "top_k must be 0 (disable), or at least 1, got -2.", "top_k"},
      {kHi + R"(,"top_k":99999999999})", 400, "Bad Request", "less than or equal", "body.top_k"},
      {kHi + R"(,"min_p":2})", 400, "BadRequestError", "min_p must be in [0, 1], got 2.0.", "min_p"},
      {kHi + R"(,"presence_penalty":3})", 400, "BadRequestError", "presence_penalty must be in [-2, 2], got 3.0.",
       "presence_penalty"},
      {kHi + R"(,"frequency_penalty":-3})", 400, "BadRequestError", "frequency_penalty must be in [-2, 2], got -3.0.",
       "frequency_penalty"},
      {kHi + R"(,"repetition_penalty":0})", 400, "BadRequestError",
       "repetition_penalty must be greater than zero, got 0.0.", "repetition_penalty"},
      {kHi + R"(,"max_tokens":0})", 400, "BadRequestError", "max_tokens must be at least 1, got 0.", "max_tokens"},
      {kHi + R"(,"max_completion_tokens":-5})", 400, "BadRequestError", "max_tokens must be at least 1, got -5.",
       "max_tokens"},
      {kHi + R"(,"max_tokens":2,"min_tokens":3})", 400, "BadRequestError",
       "min_tokens must be less than or equal to max_tokens=2, got 3.", "min_tokens"},
      {kHi + R"(,"min_tokens":600})", 400, "BadRequestError", "min_tokens must be", "min_tokens"},
      {kHi + R"(,"n":0})", 400, "BadRequestError", "n must be at least 1, got 0.", "n"},
      {kHi + R"(,"n":2})", 400, "BadRequestError", "n must be 1 when using greedy sampling, got 2.", "n"},
      {kHi + R"(,"n":100000})", 400, "BadRequestError", "n must be at most 128", "n"},
      {kHi + R"(,"logprobs":true,"top_logprobs":21})", 400, "BadRequestError",
       "Requested sample logprobs of 21, which is greater than max allowed: 20", "logprobs"},
      {kHi + R"(,"top_logprobs":2})", 400, "BadRequestError",
       "when using `top_logprobs`, `logprobs` must be set to true.", "top_logprobs"},
      {kHi + R"(,"stream_options":{"include_usage":true}})", 400, "BadRequestError",
       "Stream options can only be defined when `stream=True`.", "stream_options"},
      {kHi + R"(,"stream":true,"prompt_logprobs":1})", 400, "BadRequestError",
       "`prompt_logprobs` are not available when `stream=True`.", "prompt_logprobs"},
      {kHi + R"(,"tools":[]})", 400, "BadRequestError", "`tools` must not be an empty array", "tools"},
      {kHi + R"(,"tools":[{"type":"function"}]})", 400, "Bad Request", "Field required", "body.tools[0].function"},
      {kHi + R"(,"tools":"f"})", 400, "Bad Request", "valid list", "body.tools"},
      {kHi + R"(,"tool_choice":"auto"})", 400, "BadRequestError", "When using `tool_choice`, `tools` must be set.",
       "tool_choice"},
      {kHi + kTools + "}", 400, "BadRequestError",
       "\"auto\" tool choice requires --enable-auto-tool-choice and --tool-call-parser to be set", "tool_choice"},
      {kHi + kTools + R"(,"tool_choice":{"type":"function","function":{"name":"g"}}})", 400, "BadRequestError",
       "The tool specified in `tool_choice` does not match any of the specified `tools`", "tool_choice"},
      {kHi + kTools + R"(,"tool_choice":"required"})", 400, "BadRequestError", "not supported", "tool_choice"},
      {kHi + kTools + R"(,"tool_choice":"maybe"})", 400, "BadRequestError", "Invalid value for `tool_choice`",
       "tool_choice"},
      {kHi + R"(,"stop":["a",""]})", 400, "BadRequestError", "stop cannot contain an empty string.", "stop"},
      {kHi + R"(,"stop":[5]})", 400, "Bad Request", "valid string", "body.stop"},
      {kHi + R"(,"stop_token_ids":[999]})", 400, "BadRequestError", "stop_token_ids", "stop_token_ids"},
      {kHi + R"(,"seed":18446744073709551615})", 400, "Bad Request", "valid integer", "body.seed"},
      {kHi + R"(,"chat_template":"x"})", 400, "BadRequestError", "--trust-request-chat-template", "chat_template"},
      {kHi + R"(,"continue_final_message":true})", 400, "BadRequestError", "Cannot set both", "continue_final_message"},
      {kHi + R"(,"response_format":{"type":"json_object"}})", 400, "BadRequestError", "`response_format`",
       "response_format"},
      {kHi + R"(,"guided_json":{"type":"object"}})", 400, "BadRequestError", "`guided_json` is not supported",
       "guided_json"},
      {kHi + R"(,"structured_outputs":{"json":{},"regex":null}})", 400, "BadRequestError",
       "`structured_outputs` is not supported", "structured_outputs"},
      {kHi + R"(,"structured_outputs":{"json":{},"regex":"a"}})", 400, "BadRequestError",
       "You can only use one kind of", "structured_outputs"},
      {kHi + R"(,"guided_choice":["a"],"guided_regex":"a"})", 400, "BadRequestError", "You can only use one kind of",
       "structured_outputs"},
      {kHi + R"(,"logit_bias":[5]})", 400, "Bad Request", "valid dictionary", "body.logit_bias"},
      {kHi + R"(,"logit_bias":{"x":1}})", 400, "BadRequestError",
       "Found token_id `x` in logit_bias but token_id must be an integer or string representing an integer",
       "logit_bias"},
      {kHi + R"(,"logit_bias":{"5":"much"}})", 400, "Bad Request", "valid number", "body.logit_bias.5"},
      {kHi + R"(,"logit_bias":{"5":"nan"}})", 400, "Bad Request", "valid number", "body.logit_bias.5"},
      {kHi + R"(,"logit_bias":{"1":1,"262":1,"999":1}})", 400, "BadRequestError",
       "token_id(s) [262, 999] in logit_bias contain out-of-vocab token ids.", "logit_bias"},
      {kHi + R"(,"logit_bias":{"99999999999":1}})", 400, "BadRequestError", "out-of-vocab", "logit_bias"},
      {kHi + R"(,"allowed_token_ids":[]})", 400, "BadRequestError", "allowed_token_ids is not None and empty!",
       "allowed_token_ids"},
      {kHi + R"(,"allowed_token_ids":[5,-1]})", 400, "BadRequestError",
       "allowed_token_ids contains out-of-vocab token id!", "allowed_token_ids"},
      {kHi + R"(,"allowed_token_ids":"all"})", 400, "Bad Request", "valid list", "body.allowed_token_ids"},
      {kHi + R"(,"bad_words":["x",""]})", 400, "BadRequestError", "bad_words cannot contain an empty string.",
       "bad_words"},
      {kHi + R"(,"bad_words":"x"})", 400, "Bad Request", "valid list", "body.bad_words"},
      {kHi + R"(,"bad_words":[5]})", 400, "Bad Request", "valid string", "body.bad_words"},
      {kHi + R"(,"bad_words":[")" + std::string(300, 'x') + R"("]})", 400, "BadRequestError",
       "words of 1 to 256 tokens", "bad_words"},
      {kHi + R"(,"prompt_logprobs":21})", 400, "BadRequestError",
       "Requested prompt logprobs of 21, which is greater than max allowed: 20", "prompt_logprobs"},
      {kHi + R"(,"prompt_logprobs":-1})", 400, "BadRequestError", "which is greater than max allowed: 20",
       "prompt_logprobs"},
      {kHi + R"(,"prompt_logprobs":-2})", 400, "BadRequestError", "`prompt_logprobs` must be a positive value or -1.",
       "prompt_logprobs"},
      {kHi + R"(,"thinking_token_budget":5})", 400, "BadRequestError", "--reasoning-parser", "thinking_token_budget"},
      {kHi + R"(,"thinking_token_budget":-2})", 400, "BadRequestError",
       "thinking_token_budget must be a non-negative integer or -1, got -2.", "thinking_token_budget"},
      {kHi + R"(,"thinking_token_budget":"some"})", 400, "Bad Request", "valid integer", "body.thinking_token_budget"},
      {kHi + R"(,"logprob_token_ids":[1]})", 400, "BadRequestError", "`logprob_token_ids` is not supported",
       "logprob_token_ids"},
      {kHi + R"(,"use_beam_search":true})", 400, "BadRequestError", "`use_beam_search` is not supported",
       "use_beam_search"},
      {kHi + R"(,"priority":3})", 400, "BadRequestError", "Got priority 3", "priority"},
      {kHi + R"(,"model":"other"})", 404, "NotFoundError", "The model `other` does not exist."},
      {kHi + R"(,"max_tokens":1000})", 400, "BadRequestError",
       "'max_tokens' or 'max_completion_tokens' is too large: 1000. This model's maximum context length is 512 tokens "
       "and your request has 21 input tokens (1000 > 512 - 21).",
       "max_tokens"},
      {R"({"messages":[{"role":"user","content":")" + std::string(600, 'x') + R"("}]})", 400, "BadRequestError",
       "This model's maximum context length is 512 tokens. However, your request has 619 input tokens. Please reduce "
       "the length of the input messages.",
       "input_tokens"},
      {R"({"prompt":""})", 400, "BadRequestError", "non-empty", "prompt"},
      {R"({"prompt":[]})", 400, "BadRequestError", "non-empty", "prompt"},
      {R"({"prompt":[[]]})", 400, "BadRequestError", "non-empty", "prompt"},
      {R"({"prompt":[1,-1]})", 400, "BadRequestError", "Token id -1 is out of vocabulary", "prompt"},
      {R"({"prompt":[1,999]})", 400, "BadRequestError", "Token id 999 is out of vocabulary", "prompt"},
      {R"({"prompt":[1,"x"]})", 400, "Bad Request", "Input should be a string", "body.prompt"},
      {R"({"prompt":5})", 400, "Bad Request", "Input should be a string", "body.prompt"},
      {R"({"prompt":"x","suffix":"y"})", 400, "BadRequestError", "suffix is not currently supported", "suffix"},
      {R"({"prompt":"x","logprobs":-1})", 400, "BadRequestError", "`logprobs` must be a positive value.", "logprobs"},
      {R"({"prompt":"x","echo":true,"logprobs":21})", 400, "BadRequestError", "greater than max allowed", "logprobs"},
      {R"({"prompt":"x","stream":true,"prompt_logprobs":1})", 400, "BadRequestError",
       "`prompt_logprobs` are not available when `stream=True`.", "prompt_logprobs"},
      {R"({"prompt":"x","thinking_token_budget":5})", 400, "BadRequestError", "chat completions",
       "thinking_token_budget"},
  };
  http::TestClient one(server.port());  // every bad request leaves the connection usable
  const auto expect_error = [&](const std::string& path, const std::string& body, const auto& row) {
    one.post(path, body);
    const http::Response response = one.read();
    EXPECT_EQ(response.status, row.status) << body;
    const Json error = Json::parse(response.body, nullptr, false);
    ASSERT_TRUE(error.is_object() && error.contains("error")) << response.body;
    EXPECT_EQ(error["error"]["code"], row.status) << body;
    EXPECT_EQ(error["error"]["type"], row.type) << body << response.body;
    EXPECT_NE(error["error"]["message"].get<std::string>().find(row.message), std::string::npos)
        << body << response.body;
    EXPECT_EQ(error["error"]["param"].is_null() ? "" : error["error"]["param"].get<std::string>(), row.param) << body;
  };
  // What is said of a field that both have is the same.
  const auto chat_alone = [](const std::string& fields) {
    const auto names = {"max_tokens\":0",  "max_tokens\":1000", "max_completion_tokens",
                        "logprobs\":true", "top_logprobs",      "tool",
                        "chat_template",   "continue_final",    "thinking"};
    return std::any_of(names.begin(), names.end(),
                       [&](const char* name) { return fields.find(name) != std::string::npos; });
  };
  const http::Response bomb = server.post(kChat, std::string(4 << 20, '['));
  EXPECT_EQ(bomb.status, 400);
  EXPECT_NE(bomb.body.find("levels of nesting"), std::string::npos) << bomb.body;
  for (const auto& row : rows) {
    const bool completion = row.body.find("\"prompt\"") != std::string::npos;
    expect_error(completion ? "/v1/completions" : kChat, row.body, row);
    if (row.body.starts_with(kHi) && !chat_alone(row.body.substr(kHi.size()))) {
      expect_error("/v1/completions", R"({"prompt":"Hi","temperature":0)" + row.body.substr(kHi.size()), row);
    }
  }
  one.post(kChat, kHi + "}");
  EXPECT_EQ(one.read().status, 200);
}

// What a template refuses is said in its own words.
TEST(Service, ATemplateThatRaises) {
  ServiceConfig config;
  config.policy.trust_request_chat_template = true;
  ScriptedServer server(std::move(config));
  const http::Response response =
      server.post(kChat, kHi + R"(,"chat_template":"{{ raise_exception('roles must alternate') }}"})");
  EXPECT_EQ(response.status, 400);
  EXPECT_EQ(response.body,
            R"({"error":{"message":"roles must alternate","type":"BadRequestError","param":null,"code":400}})");
}

// A body near the limit that is all tools: read, rendered, and found too long, in bounded memory.
TEST(Service, AMillionTools) {
  ServiceConfig config;
  config.policy.tool_parser = "qwen3_coder";
  config.policy.enable_auto_tool_choice = true;
  ScriptedServer server(std::move(config));
  server.say("ok");
  std::string body = R"({"messages":[{"role":"user","content":"x"}],"tools":[)";
  for (int i = 0; i < 1'000'000; ++i) body += R"({"type":"function","function":{"name":"f"}},)";
  body.back() = ']';
  const http::Response response = server.post(kChat, body + "}");
  EXPECT_EQ(response.status, 400);
  EXPECT_LT(response.body.size(), 2000u) << "no echo of it";
  EXPECT_EQ(server.post(kChat, kHi + "}").status, 200);
}

TEST(Service, ErrorsAreShortWhateverWasSent) {
  ScriptedServer server;
  const std::string huge(1 << 20, 'x');
  std::string many = R"({"messages":[0)";
  for (int i = 0; i < 500'000; ++i) many += ",0";
  for (const std::string& body : {kHi + R"(,"model":")" + huge + "\"}", kHi + R"(,"logit_bias":{")" + huge + "\":1}}",
                                  kHi + R"(,"tool_choice":")" + huge + R"(","tools":[{"function":{"name":"f"}}]})",
                                  R"({"messages":[{"role":"user","content":[{"type":")" + huge + "\"}]}]}",
                                  kHi + R"(,"logit_bias":{")" + std::string(8000, '1') + "\":[]}}", many + "]}"}) {
    const http::Response response = server.post(kChat, body);
    EXPECT_GE(response.status, 400) << body.substr(0, 200);
    EXPECT_LT(response.body.size(), 10'000u) << body.substr(0, 200);
    EXPECT_TRUE(Json::accept(response.body));
  }
  const Json all = Json::parse(server.post(kChat, many + "]}").body);
  EXPECT_TRUE(all["error"]["message"].get<std::string>().starts_with("500001 validation errors:"));
}

TEST(Service, RoutesThatAreNone) {
  ScriptedServer server;
  http::TestClient client(server.port());
  const struct {
    const char* request;
    int status;
    const char* type;
  } rows[] = {
      {"GET /nothing", 404, "Not Found"},
      {"POST /v1/embeddings", 404, "Not Found"},
      {"GET /v1/chat/completions", 405, "Method Not Allowed"},
      {"POST /v1/models", 405, "Method Not Allowed"},
      {"DELETE /v1/models", 405, "Method Not Allowed"},
      {"PUT /v1/completions", 405, "Method Not Allowed"},
  };
  for (const auto& row : rows) {
    client.send(std::string(row.request) + " HTTP/1.1\r\nHost: t\r\nContent-Length: 0\r\n\r\n");
    const http::Response response = client.read();
    EXPECT_EQ(response.status, row.status) << row.request;
    EXPECT_EQ(Json::parse(response.body)["error"]["type"], row.type) << row.request;
  }
  client.send("HEAD /v1/models HTTP/1.1\r\nHost: t\r\n\r\n");
  EXPECT_EQ(client.read(true).status, 405);
  client.send("POST /v1/completions HTTP/1.1\r\nHost: t\r\nContent-Type: text/plain\r\nContent-Length: 2\r\n\r\n{}");
  const http::Response response = client.read();
  EXPECT_EQ(response.status, 400);
  EXPECT_NE(response.body.find("Unsupported Media Type: Only 'application/json' is allowed"), std::string::npos);
}

// --- keys, names, load ---

TEST(Service, KeysAreAskedFor) {
  ServiceConfig config;
  config.api_keys = {"secret"};
  ScriptedServer server(std::move(config));
  server.say("ok");
  EXPECT_EQ(server.get("/health").status, 200);
  EXPECT_EQ(server.get("/ping").status, 200);
  EXPECT_EQ(server.get("/").status, 200) << "the page, which asks for the key";
  for (const char* path : {"/v1/models", "/metrics", "/version", "/nothing"}) {
    const http::Response response = server.get(path);
    EXPECT_EQ(response.status, 401) << path;
    EXPECT_EQ(response.body, R"({"error":"Unauthorized"})") << path;
  }
  EXPECT_EQ(server.post(kChat, kHi + "}").status, 401);
  EXPECT_EQ(server.post(kChat, kHi + "}", "Authorization: Bearer wrong\r\n").status, 401);
  EXPECT_EQ(server.post(kChat, kHi + "}", "Authorization: Bearer secret\r\n").status, 200);
  http::TestClient browser(server.port());
  browser.send(
      "OPTIONS /v1/models HTTP/1.1\r\nHost: t\r\nOrigin: http://a\r\nAccess-Control-Request-Method: GET\r\n\r\n");
  EXPECT_EQ(browser.read().status, 200) << "a preflight carries no key";
}

TEST(Service, NamesAndHeaders) {
  ServiceConfig config;
  config.enable_request_id_headers = true;
  config.root_path = "/proxy";
  ScriptedServer server(std::move(config));
  server.say("ok");
  const http::Response response = server.post("/proxy" + kChat, kHi + R"(,"model":"alias","request_id":"mine"})",
                                              "X-Request-Id: theirs\r\nOrigin: http://a\r\n");
  const Json answer = Json::parse(response.body);
  EXPECT_EQ(answer["model"], "tiny") << "the first name, whichever was asked for";
  EXPECT_EQ(answer["id"], "chatcmpl-theirs");
  http::Request view;
  view.headers = response.headers;
  EXPECT_EQ(view.header("x-request-id"), "theirs");
  EXPECT_EQ(view.header("access-control-allow-origin"), "*");
  EXPECT_EQ(Json::parse(server.post(kChat, kHi + R"(,"request_id":"mine"})").body)["id"], "chatcmpl-mine");
  EXPECT_EQ(settled(Json::parse(server.post(kChat, kHi + R"(,"request_id":"no good\n"})").body)["id"]), "chatcmpl-ID");
}

// Streams are not bounded by threads.
TEST(Service, ManyStreamsAtOnce) {
  constexpr int kStreams = 300;
  Gate gate;
  ScriptedServer server({}, {.max_num_seqs = 64, .max_queue = kStreams});
  server.model->on_step = [&] { gate.pass(); };
  server.say("abcdefgh");
  std::vector<std::unique_ptr<http::TestClient>> clients;
  for (int i = 0; i < kStreams; ++i) {
    clients.push_back(std::make_unique<http::TestClient>(server.port()));
    clients.back()->post("/v1/completions", R"({"prompt":"p","temperature":0,"stream":true})");
  }
  while (server.server->load().requests < kStreams) std::this_thread::sleep_for(std::chrono::milliseconds(1));
  std::ifstream status("/proc/self/status");
  std::string text((std::istreambuf_iterator<char>(status)), std::istreambuf_iterator<char>());
  EXPECT_LT(std::atoi(text.c_str() + text.find("Threads:") + 8), 40);
  gate.open();
  for (const auto& client : clients) {
    std::string all;
    for (const Json& chunk : chunks_of(client->read().body)) all += chunk["choices"][0]["text"].get<std::string>();
    EXPECT_EQ(all, "abcdefgh");
  }
}

TEST(Service, AFullQueueSaysSo) {
  Gate gate;
  ScriptedServer server({}, {.max_num_seqs = 1, .max_queue = 1});
  server.model->on_step = [&] { gate.pass(); };
  server.say("abc");
  http::TestClient running(server.port());
  running.post(kChat, kHi + "}");
  gate.wait_for_arrival(1);
  const auto waiting = server.engine->submit(Request{.prompt_token_ids = {1}, .params = {.temperature = 0}});
  ASSERT_TRUE(waiting.ok());
  const http::Response response = server.post(kChat, kHi + "}");
  EXPECT_EQ(response.status, 429);
  http::Request view;
  view.headers = response.headers;
  EXPECT_EQ(view.header("retry-after"), "1");
  EXPECT_EQ(server.get("/health").status, 200) << "whatever the engine does";
  gate.open();
  EXPECT_EQ(running.read().status, 200);
}

TEST(Service, AClientThatLeavesFreesItsPlace) {
  Gate gate;
  ScriptedServer server({}, {.max_num_seqs = 1});
  server.model->on_step = [&] { gate.pass(); };
  server.say(std::string(400, 'x'));
  {
    http::TestClient client(server.port());
    client.post(kChat, kHi + R"(,"stream":true})");
    gate.permit(3);
    client.fill();
  }
  while (server.server->load().requests > 0) std::this_thread::sleep_for(std::chrono::milliseconds(1));
  gate.open();
  while (server.engine->stats().num_running > 0) std::this_thread::sleep_for(std::chrono::milliseconds(1));
  EXPECT_LE(server.engine->stats().generated_tokens, 4);
  server.say("next");
  EXPECT_EQ(Json::parse(server.post(kChat, kHi + "}").body)["choices"][0]["message"]["content"], "next");
  const std::string metrics = server.get("/metrics").body;
  for (const char* reason : {"stop", "abort"}) {
    EXPECT_NE(metrics.find("vllm:request_success_total{engine=\"0\",finished_reason=\"" + std::string(reason) +
                           "\",model_name=\"tiny\"} 1.0"),
              std::string::npos)
        << metrics;
  }
}

TEST(Service, Metrics) {
  ScriptedServer server;
  server.say("abc");
  server.post(kChat, kHi + "}");
  server.get("/v1/models");
  server.get("/nothing");
  const http::Response response = server.get("/metrics");
  EXPECT_EQ(response.content_type, "text/plain; version=0.0.4; charset=utf-8");
  const std::string labels = "{engine=\"0\",model_name=\"tiny\"}";
  for (const std::string& line : {
           "vllm:num_requests_running" + labels + " 0.0\n",
           "vllm:kv_cache_usage_perc" + labels + " 0.0\n",
           "# TYPE vllm:prompt_tokens_total counter\nvllm:prompt_tokens_total" + labels + " 21.0\n",
           "vllm:generation_tokens_total" + labels + " 4.0\n",
           std::string("vllm:request_success_total{engine=\"0\",finished_reason=\"stop\",model_name=\"tiny\"} 1.0\n"),
           std::string("vllm:request_prompt_tokens_bucket{engine=\"0\",le=\"20.0\",model_name=\"tiny\"} 0.0\n"),
           std::string("vllm:request_prompt_tokens_bucket{engine=\"0\",le=\"50.0\",model_name=\"tiny\"} 1.0\n"),
           "vllm:request_prompt_tokens_sum" + labels + " 21.0\n",
           "vllm:time_to_first_token_seconds_count" + labels + " 1.0\n",
           "vllm:inter_token_latency_seconds_count" + labels + " 3.0\n",
           "vllm:time_per_output_token_seconds_count" + labels + " 3.0\n",
           std::string("vllm:cache_config_info{block_size=\"16\""),
           // the prompt in one step, then three decodes
           std::string("# TYPE vllm:iteration_tokens_total histogram\n"),
           "vllm:iteration_tokens_total_sum" + labels + " 24.0\n",
           std::string("vllm:iteration_tokens_total_bucket{engine=\"0\",le=\"1.0\",model_name=\"tiny\"} 3.0\n"),
           "proa:steps_total" + labels + " 4.0\n",
           "proa:step_device_seconds_count" + labels + " 4.0\n",
           "proa:queue_age_seconds" + labels + " 0.0\n",
           std::string("proa:state_slots{engine=\"0\",model_name=\"tiny\",state=\"used\"} 0.0\n"),
           std::string("proa:memory_plan_bytes{engine=\"0\",model_name=\"tiny\",part=\"kv_cache\"} "),
           std::string(
               "proa:prefix_cache_lost_tokens_total{engine=\"0\",model_name=\"tiny\",reason=\"no_slot\"} 0.0\n"),
           "vllm:avg_generation_throughput_toks_per_s" + labels + " 0.0\n",
           std::string("http_requests_total{handler=\"/v1/chat/completions\",method=\"POST\",status=\"2xx\"} 1.0\n"),
           std::string("http_requests_total{handler=\"/v1/models\",method=\"GET\",status=\"2xx\"} 1.0\n"),
           std::string("process_resident_memory_bytes "),
       }) {
    EXPECT_NE(response.body.find(line), std::string::npos) << line << "\n" << response.body;
  }
}

// Dashboards and scrapers ask by name, label and bound. Not here: families that vLLM has only where LoRA, speculation,
// NaN checks, --kv-cache-metrics or --enable-mfu-metrics are on.
TEST(Service, FamiliesAreThoseOfVllm) {
  ScriptedServer server;
  server.say("abc");
  server.post(kChat, kHi + "}");
  const std::string text = server.get("/metrics").body;
  const auto bounds = [&](const std::string& name) {
    std::string all;
    for (size_t at = 0; (at = text.find("\n" + name + "_bucket{", at)) != std::string::npos; ++at) {
      const size_t begin = text.find("le=\"", at) + 4;
      all += text.substr(begin, text.find('"', begin) - begin) + " ";
    }
    return all;
  };
  const char* tokens = "1.0 2.0 5.0 10.0 20.0 50.0 100.0 200.0 500.0 +Inf ";  // up to max_model_len
  const char* between = "0.01 0.025 0.05 0.075 0.1 0.15 0.2 0.3 0.4 0.5 0.75 1.0 2.5 5.0 7.5 10.0 20.0 40.0 80.0 +Inf ";
  const char* whole =
      "0.3 0.5 0.8 1.0 1.5 2.0 2.5 5.0 10.0 15.0 20.0 30.0 40.0 50.0 60.0 120.0 240.0 480.0 960.0 1920.0 7680.0 +Inf ";
  const struct {
    const char *name, *type, *bounds = "", *label = "";
  } rows[] = {
      {"vllm:num_requests_running", "gauge"},
      {"vllm:num_requests_waiting", "gauge"},
      {"vllm:num_requests_waiting_by_reason", "gauge", "", "reason=\"capacity\""},
      {"vllm:num_requests_waiting_by_reason", "gauge", "", "reason=\"deferred\""},
      {"vllm:kv_cache_usage_perc", "gauge"},
      {"vllm:engine_sleep_state", "gauge", "", "sleep_state=\"awake\""},
      {"vllm:engine_sleep_state", "gauge", "", "sleep_state=\"weights_offloaded\""},
      {"vllm:engine_sleep_state", "gauge", "", "sleep_state=\"discard_all\""},
      {"vllm:cache_config_info", "gauge", "", "mamba_ssm_cache_dtype=\"float32\""},
      {"vllm:prefix_cache_queries_total", "counter"},
      {"vllm:prefix_cache_hits_total", "counter"},
      {"vllm:external_prefix_cache_queries_total", "counter"},
      {"vllm:external_prefix_cache_hits_total", "counter"},
      {"vllm:mm_cache_queries_total", "counter"},
      {"vllm:mm_cache_hits_total", "counter"},
      {"vllm:num_preemptions_total", "counter"},
      {"vllm:prompt_tokens_total", "counter"},
      {"vllm:generation_tokens_total", "counter"},
      {"vllm:prompt_tokens_by_source_total", "counter", "", "source=\"local_compute\""},
      {"vllm:prompt_tokens_by_source_total", "counter", "", "source=\"local_cache_hit\""},
      {"vllm:prompt_tokens_by_source_total", "counter", "", "source=\"external_kv_transfer\""},
      {"vllm:prompt_tokens_cached_total", "counter"},
      {"vllm:request_success_total", "counter", "", "finished_reason=\"stop\""},
      {"vllm:request_success_total", "counter", "", "finished_reason=\"length\""},
      {"vllm:request_success_total", "counter", "", "finished_reason=\"abort\""},
      {"vllm:request_success_total", "counter", "", "finished_reason=\"error\""},
      {"vllm:request_prompt_tokens", "histogram", tokens},
      {"vllm:request_generation_tokens", "histogram", tokens},
      {"vllm:request_max_num_generation_tokens", "histogram", tokens},
      {"vllm:request_params_max_tokens", "histogram", tokens},
      {"vllm:request_prefill_kv_computed_tokens", "histogram", tokens},
      {"vllm:request_params_n", "histogram", "1.0 2.0 5.0 10.0 20.0 +Inf "},
      {"vllm:iteration_tokens_total", "histogram",
       "1.0 8.0 16.0 32.0 64.0 128.0 256.0 512.0 1024.0 2048.0 4096.0 8192.0 16384.0 +Inf "},
      {"vllm:time_to_first_token_seconds", "histogram",
       "0.001 0.005 0.01 0.02 0.04 0.06 0.08 0.1 0.25 0.5 0.75 1.0 2.5 5.0 7.5 10.0 20.0 40.0 80.0 160.0 640.0 2560.0 "
       "+Inf "},
      {"vllm:inter_token_latency_seconds", "histogram", between},
      {"vllm:request_time_per_output_token_seconds", "histogram", between},
      {"vllm:time_per_output_token_seconds", "histogram", between},
      {"vllm:e2e_request_latency_seconds", "histogram", whole},
      {"vllm:request_queue_time_seconds", "histogram", whole},
      {"vllm:request_inference_time_seconds", "histogram", whole},
      {"vllm:request_prefill_time_seconds", "histogram", whole},
      {"vllm:request_decode_time_seconds", "histogram", whole},
      {"vllm:avg_generation_throughput_toks_per_s", "gauge"},
      {"vllm:avg_prompt_throughput_toks_per_s", "gauge"},
      {"vllm:gpu_cache_usage_perc", "gauge"},
      {"vllm:cpu_cache_usage_perc", "gauge"},
      {"http_requests_total", "counter", "", "status=\"2xx\""},
      {"http_request_size_bytes", "summary", "", "handler=\"/v1/chat/completions\""},
      {"http_response_size_bytes", "summary", "", "handler=\"/v1/chat/completions\""},
      {"http_request_duration_seconds", "histogram", "", "method=\"POST\""},
      {"http_request_duration_highr_seconds", "histogram"},
      {"process_cpu_seconds_total", "counter"},
      {"process_resident_memory_bytes", "gauge"},
      {"process_virtual_memory_bytes", "gauge"},
      {"process_start_time_seconds", "gauge"},
      {"process_open_fds", "gauge"},
      {"process_max_fds", "gauge"},
  };
  for (const auto& row : rows) {
    const std::string name = row.name;
    const size_t family = text.find("# TYPE " + name + " " + row.type + "\n");
    ASSERT_NE(family, std::string::npos) << name;
    const std::string samples = text.substr(family, text.find("# HELP", family) - family);
    EXPECT_NE(samples.find("\n" + name), std::string::npos) << name << " has a sample";
    EXPECT_NE(samples.find(row.label), std::string::npos) << samples;
    if (name.starts_with("vllm:")) {
      EXPECT_NE(samples.find("engine=\"0\""), std::string::npos) << samples;
    }
    if (*row.bounds != '\0') {
      EXPECT_EQ(bounds(name), row.bounds) << name;
    }
  }
}

TEST(Service, DrainingIsSeen) {
  ScriptedServer server;
  server.service->begin_draining();
  EXPECT_EQ(server.get("/health").status, 503);
}

}  // namespace
}  // namespace proa
