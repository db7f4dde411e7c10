// For tests: a model that says what it is told to, one byte a token, behind the real engine, service and HTTP server.
#pragma once

#include <gtest/gtest.h>

#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "chat/chat_template.h"
#include "engine/engine.h"
#include "engine/fake_model.h"
#include "http/server.h"
#include "http/testing.h"
#include "server/service.h"
#include "tokenizer/bpe.h"
#include "tokenizer/tokenizer.h"
#include "tokenizer/vocabulary.h"

namespace proa {

// 256 bytes (ids 0 to 255), then these.
inline const std::vector<std::string>& added_texts() {
  static const std::vector<std::string> texts = {"<|im_end|>", "<|im_start|>", "</s>",
                                                 "<think>",    "</think>",     "<tool_call>"};
  return texts;
}
constexpr int kEos = 256, kSecondEos = 258, kScriptedVocab = 262;

inline Tokenizer make_byte_tokenizer() {
  static std::vector<std::string> texts;
  if (texts.empty()) {
    for (int b = 0; b < 256; ++b) texts.push_back(to_byte_alphabet(std::string(1, static_cast<char>(b))));
    texts.insert(texts.end(), added_texts().begin(), added_texts().end());
  }
  Vocabulary vocabulary;
  vocabulary.tokens.assign(texts.begin(), texts.end());
  vocabulary.types.assign(texts.size(), TokenType::normal);
  for (size_t id = 256; id < texts.size(); ++id) {
    const bool special = id < 259;
    vocabulary.types[id] = special ? TokenType::control : TokenType::user_defined;
    vocabulary.added.push_back({.id = static_cast<int32_t>(id), .content = texts[id], .special = special});
  }
  vocabulary.eos_ids = {kEos, kSecondEos};
  auto tokenizer = Tokenizer::create(vocabulary);
  EXPECT_TRUE(tokenizer.ok()) << tokenizer.error().message();
  return *std::move(tokenizer);
}

// Says `script`, whatever it is asked, then ends; the same to every sequence.
class ScriptedModel final : public Model {
 public:
  ScriptedModel() {
    info_.architecture = "ScriptedForCausalLM";
    info_.vocab_size = kScriptedVocab;
    info_.max_position_embeddings = 1024;
    cache_specs_ = {CacheSpec{.kind = CacheSpec::Kind::kv, .num_kv_heads = 1, .head_dim = 2}};
  }

  void say(std::vector<int32_t> script) {
    std::lock_guard lock(mutex_);
    script_ = std::move(script);
  }
  std::function<void()> on_step;  // on the engine's thread

  size_t workspace_bytes(int) const override { return 64; }
  void forward(Backend&, const Batch& batch, std::span<const LayerCache>, Arena&, float* logits) const override {
    if (on_step) on_step();
    std::lock_guard lock(mutex_);
    for (int s = batch.num_decodes; s < batch.num_seqs; ++s) {  // the last part of a prompt
      prompt_size_[batch.block_table[int64_t{s} * batch.block_table_stride]] = batch.seq_lens[s];
    }
    for (int r = 0; r < batch.num_logit_rows; ++r) {
      const int token = batch.logit_rows[r];
      int s = 0;
      while (batch.query_start[s + 1] <= token) ++s;
      const int prompt = prompt_size_[batch.block_table[int64_t{s} * batch.block_table_stride]];
      const auto next = static_cast<size_t>(batch.positions[token] + 1 - prompt);
      float* row = logits + int64_t{r} * kScriptedVocab;
      std::fill_n(row, kScriptedVocab, -INFINITY);
      row[int{'?'}] = 0;  // as likely as the token itself
      row[next < script_.size() ? script_[next] : kEos] = 1e-6f;
    }
  }

 private:
  mutable std::mutex mutex_;
  mutable std::map<int, int> prompt_size_;  // by a sequence's first block
  std::vector<int32_t> script_;
};

// All of it, listening.
class ScriptedServer {
 public:
  explicit ScriptedServer(ServiceConfig config = {}, EngineConfig engine_config = {},
                          std::shared_ptr<Backend> backend = std::make_shared<HostBackend>())
      : tokenizer(make_byte_tokenizer()), model(std::make_shared<ScriptedModel>()) {
    engine_config.kv_cache_dtype = Format::F32;
    engine_config.max_prompt_logits = 8;
    if (engine_config.max_model_len == 0) engine_config.max_model_len = 512;
    auto made = Engine::create(model, std::move(backend), tokenizer, engine_config);
    EXPECT_TRUE(made.ok()) << made.error().message();
    engine = *std::move(made);
    auto parsed = ChatTemplate::create(chatml_template(), {.eos_token = "<|im_end|>"});
    EXPECT_TRUE(parsed.ok());
    chat_template.emplace(*std::move(parsed));
    if (config.model_names.empty()) config.model_names = {"tiny", "alias"};
    config.model_root = "org/tiny";
    config.version = "0.1.0";
    config.policy.model = "tiny";
    config.policy.defaults.temperature = 0;
    service.emplace(std::move(config), *engine, tokenizer, &*chat_template);
    http::ServerConfig http{.host = "127.0.0.1", .port = 0};
    http.handler = [this](http::Exchange& exchange) { service->handle(exchange); };
    http.is_quick = Service::is_quick;
    http.error_response = Service::error_response;
    http.max_handlers = 8;
    auto started = http::Server::start(std::move(http));
    EXPECT_TRUE(started.ok()) << started.error().message();
    server = *std::move(started);
  }

  void say(std::string_view text) { model->say(tokenizer.encode(text, {.parse_special = true})); }
  int port() const { return server->port(); }

  http::Response get(const std::string& path) const {
    http::TestClient client(port());
    client.get(path);
    return client.read();
  }
  http::Response post(const std::string& path, std::string_view body, const std::string& headers = "") const {
    http::TestClient client(port());
    client.post(path, body, headers);
    return client.read();
  }

  Tokenizer tokenizer;
  std::shared_ptr<ScriptedModel> model;
  std::unique_ptr<Engine> engine;
  std::optional<ChatTemplate> chat_template;
  std::optional<Service> service;
  std::unique_ptr<http::Server> server;  // last: it goes first
};

// The same text with what differs from run to run by fixed values: random ids and times.
inline std::string settled(std::string text) {
  for (const std::string_view before : {"chatcmpl-tool-", "chatcmpl-", "cmpl-", "modelperm-"}) {
    for (size_t at = 0; (at = text.find(before, at)) != std::string::npos;) {
      at += before.size();
      size_t end = at;
      while (end < text.size() && std::isxdigit(static_cast<unsigned char>(text[end]))) ++end;
      if (end - at == 32) text.replace(at, 32, "ID");
    }
  }
  constexpr std::string_view kCreated = "\"created\":";
  for (size_t at = 0; (at = text.find(kCreated, at)) != std::string::npos;) {
    at += kCreated.size();
    size_t end = at;
    while (end < text.size() && std::isdigit(static_cast<unsigned char>(text[end]))) ++end;
    text.replace(at, end - at, "0");
  }
  return text;
}

}  // namespace proa
