#include "quantize/gguf_vocabulary.h"

#include "checkpoint/printable.h"
#include "tokenizer/vocabulary.h"

namespace proa {
namespace {

constexpr const char* kDoing = "write the tokenizer of a GGUF file";

std::string_view text_of(const QuantizeSource& source, const std::string& name) {
  const auto found = source.texts.find(name);
  return found == source.texts.end() ? std::string_view() : found->second;
}

Result<nlohmann::ordered_json> json_of(const QuantizeSource& source, const std::string& name) {
  const std::string_view text = text_of(source, name);
  if (text.empty()) return nlohmann::ordered_json::object();
  return parse_json(text, source.path + "/" + name);
}

// The name for how text is cut into words. The vocabulary of Nemotron 3 is called "pixtral" in all its files, because
// its tokens hash like those of that model; others with the same expression are Tekken's.
Result<std::string> pre_name(const Vocabulary& vocabulary, const std::string& where) {
  constexpr size_t kNemotron3 = 131072;
  std::vector<std::string> names = {"tekken", "gpt-2",       "llama-bpe", "qwen2",  "qwen35",
                                    "gpt-4o", "deepseek-v3", "smollm",    "default"};
  if (vocabulary.tokens.size() == kNemotron3) names.insert(names.begin(), "pixtral");
  for (const std::string& name : names) {
    const auto preset = pretokenizer_preset(name);
    if (!preset.ok() || preset->steps.size() != vocabulary.steps.size()) continue;
    bool same = true;
    for (size_t i = 0; same && i < preset->steps.size(); ++i) {
      same = preset->steps[i].expression == vocabulary.steps[i].expression &&
             vocabulary.steps[i].kind == PreTokenizerStep::Kind::split && !vocabulary.steps[i].invert;
    }
    if (same) return name;
  }
  return Error{kDoing, where, "an expression that GGUF has a name for",
               vocabulary.steps.empty() ? "none" : "\"" + printable(vocabulary.steps.front().expression) + "\"", ""};
}

}  // namespace

Result<void> put_gguf_vocabulary(const QuantizeSource& source, int64_t vocab_size, GgufWriter& out) {
  const std::string where = source.path + "/tokenizer.json";
  const std::string_view json = text_of(source, "tokenizer.json");
  if (json.empty()) return Error{kDoing, where, "a tokenizer", "none", ""};
  PROA_ASSIGN(const Vocabulary vocabulary,
              vocabulary_from_tokenizer_json(json, text_of(source, "tokenizer_config.json")));
  if (vocabulary.symbols != Vocabulary::Symbols::bytes) {
    return Error{kDoing, where, "byte-level BPE", "SentencePiece", ""};
  }
  if (static_cast<int64_t>(vocabulary.tokens.size()) > vocab_size) {
    return Error{kDoing, where, "at most " + std::to_string(vocab_size) + " tokens, the rows of the embedding",
                 std::to_string(vocabulary.tokens.size()), ""};
  }
  PROA_ASSIGN(const std::string pre, pre_name(vocabulary, where));

  std::vector<std::string> tokens(vocabulary.tokens.begin(), vocabulary.tokens.end());
  std::vector<int32_t> types;
  for (const TokenType type : vocabulary.types) types.push_back(static_cast<int32_t>(type));
  for (const AddedToken& added : vocabulary.added) {
    if (added.id >= 0 && static_cast<size_t>(added.id) < types.size()) {
      types[static_cast<size_t>(added.id)] =
          static_cast<int32_t>(added.special ? TokenType::control : TokenType::user_defined);
    }
  }
  while (static_cast<int64_t>(tokens.size()) < vocab_size) {
    tokens.push_back("[PAD" + std::to_string(tokens.size()) + "]");
    types.push_back(static_cast<int32_t>(TokenType::unused));
  }
  std::vector<std::string> merges;
  for (const MergeText& merge : vocabulary.merges) {
    merges.push_back(std::string(merge.left) + " " + std::string(merge.right));
  }
  out.put_string("tokenizer.ggml.model", "gpt2");
  out.put_string("tokenizer.ggml.pre", pre);
  out.put_strings("tokenizer.ggml.tokens", tokens);
  out.put_i32s("tokenizer.ggml.token_type", types);
  out.put_strings("tokenizer.ggml.merges", merges);

  PROA_ASSIGN(const auto config, json_of(source, "tokenizer_config.json"));
  const auto id_of = [&](const char* field) -> int64_t {
    const auto found = config.is_object() ? config.find(field) : config.end();
    if (!config.is_object() || found == config.end()) return -1;
    const std::string text = found->is_string()   ? found->get<std::string>()
                             : found->is_object() ? found->value("content", "")
                                                  : "";
    for (size_t id = 0; id < vocabulary.tokens.size(); ++id) {
      if (!text.empty() && vocabulary.tokens[id] == text) return static_cast<int64_t>(id);
    }
    return -1;
  };
  const auto put_id = [&](const char* key, int64_t id) {
    if (id >= 0) out.put_u32(key, static_cast<uint32_t>(id));
  };
  put_id("tokenizer.ggml.bos_token_id", vocabulary.bos_id >= 0 ? vocabulary.bos_id : id_of("bos_token"));
  int64_t eos = id_of("eos_token");
  if (eos < 0 && !vocabulary.eos_ids.empty()) eos = vocabulary.eos_ids.front();
  put_id("tokenizer.ggml.eos_token_id", eos);
  put_id("tokenizer.ggml.unknown_token_id", id_of("unk_token"));
  put_id("tokenizer.ggml.padding_token_id", id_of("pad_token"));
  out.put_bool("tokenizer.ggml.add_bos_token", vocabulary.add_bos);

  std::string chat_template(text_of(source, "chat_template.jinja"));
  if (chat_template.empty() && config.is_object() && config.contains("chat_template") &&
      config["chat_template"].is_string()) {
    chat_template = config["chat_template"].get<std::string>();
  }
  if (!chat_template.empty()) out.put_string("tokenizer.chat_template", chat_template);
  return {};
}

}  // namespace proa
