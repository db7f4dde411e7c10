// tokenizer.json and tokenizer_config.json with one thing wrong.
#include <functional>
#include <utility>

#include "hostile.h"

namespace proa::hostile {
namespace {

Fixture piece(std::string what, std::string from, std::string to, std::vector<std::string> said) {
  return {std::move(what), [=](Files& files) { replace(files["tokenizer.json"], from, to); }, std::move(said)};
}
Fixture whole(std::string what, std::string text, std::vector<std::string> said) {
  return {std::move(what), [=](Files& files) { files["tokenizer.json"] = text; }, std::move(said)};
}
Fixture config(std::string what, std::string text, std::vector<std::string> said) {
  return {std::move(what), [=](Files& files) { files["tokenizer_config.json"] = text; }, std::move(said)};
}

std::string numbered(size_t count, const std::function<std::string(size_t)>& item) {
  std::string text;
  for (size_t i = 0; i < count; ++i) text += (i ? "," : "") + item(i);
  return text;
}

}  // namespace

std::vector<Fixture> tokenizer_fixtures() {
  const std::string vocab = R"("a":2,)", merges = R"(["Ġ a","a b"])", file = "F/tokenizer.json: ";
  const std::string regex = R"(\\s+|\\w+)", added = R"({"id":0,"content":"<s>","special":true})";
  const auto in = [=](const std::string& what) { return std::vector<std::string>{file + what}; };
  return {
      // as JSON
      whole("nothing", "", in("the text: expected JSON, found nothing")),
      whole("a list", "[]", in("the text: expected an object, found an array")),
      whole("cut short", R"({"model":{"vocab":{"a)", in("the text: expected JSON, found ")),
      whole("broken UTF-8", "{\"a\":\"\xff\"}", in("the text: expected JSON, found ")),
      whole("100,000 brackets", repeat("[", 100'000),
            in("offset 256: expected at most 256 levels of nesting, found more")),
      whole("100,000 objects", repeat("{\"a\":", 100'000), in("offset ")),
      whole("30 MB of numbers", "{\"a\":[" + repeat("1,", 15 << 20) + "1]}", {"F/tokenizer.json: ", "expected "}),
      whole("30 MB of lists", "{\"a\":[" + repeat("[],", 10 << 20) + "1]}", {"F/tokenizer.json: ", "expected "}),
      whole("30 MB of one string", "{\"a\":\"" + std::string(30 << 20, 'x') + "\"}",
            {"F/tokenizer.json: ", "expected "}),
      whole("no model", "{}", in("model.vocab: expected an object of token to id, found nothing")),
      whole("a model that is a list", R"({"model":[]})",
            in("model.vocab: expected an object of token to id, found nothing")),
      // the model
      piece("another kind", R"("type":"BPE")", R"("type":"Unigram\u001b")",
            in("model.type: expected BPE, found 'Unigram\\x1b'")),
      piece("a vocabulary that is a list", R"("vocab":{"a":2,"b":3,"Ġ":4,"Ġa":5,"ab":6,"Ċ":7})", R"("vocab":["a"])",
            in("model.vocab: expected an object of token to id, found an array")),
      piece("an empty vocabulary", R"({"a":2,"b":3,"Ġ":4,"Ġa":5,"ab":6,"Ċ":7})", "{}", {"F/tokenizer.json", "merge"}),
      piece("an id that is text", vocab, R"("a":"2",)", in("model.vocab.a: expected a token id, found '2'")),
      piece("an id that is a fraction", vocab, R"("a":2.5,)", in("model.vocab.a: expected a token id, found a number")),
      piece("a negative id", vocab, R"("a":-2,)", in("model.vocab.a: expected a token id, found -2")),
      piece("an id of 2^31", vocab, R"("a":2147483648,)", in("model.vocab.a: expected a token id, found 2147483648")),
      piece("an id of 2^64", vocab, R"("a":18446744073709551616,)", {file}),
      piece("an id far beyond the number of tokens", vocab, R"("a":500000,)",
            in("model.vocab.a: expected an id below 2")),
      piece("an id twice", vocab, R"("a":3,)",
            in("model.vocab.b: expected an id of its own, found 3, which is 'a' too")),
      piece("a name that steers the terminal", vocab, R"("\u001b[2J":-1,"a":2,)",
            in("model.vocab.\\x1b[2J: expected a token id, found -1")),
      piece("merges that are an object", merges, "{}", in("model.merges: expected an array, found an object")),
      piece("a merge of one token", merges, R"(["Ġ a","ab"])",
            in("model.merges[1]: expected 'left right' or ['left', 'right'], found 'ab'")),
      piece("a merge of three tokens", merges, R"([["a","b","a"]])",
            in("model.merges[0]: expected 'left right' or ['left', 'right'], found an array")),
      piece("a merge of numbers", merges, "[[1,2]]",
            in("model.merges[0]: expected 'left right' or ['left', 'right'], found an array")),
      piece("a merge of unknown tokens", merges, R"(["q r"])",
            {"F/tokenizer.json: ", "merge 0: expected tokens of the vocabulary, found 'q'"}),
      piece("a merge into nothing", merges, R"(["b a"])",
            {"F/tokenizer.json: ", "merge 0: expected tokens of the vocabulary, found 'ba'"}),
      piece("merges in a circle", merges, R"(["a b","ab a"])",
            {"merge 1: expected tokens of the vocabulary, found 'aba'"}),
      piece("a merge of nothing", merges, R"([["",""]])", {"F/tokenizer.json: ", "merge 0"}),
      piece("700,000 times the same merge and one that is wrong", merges,
            "[" + repeat(R"("a b",)", 700'000) + R"("q r"])",
            {"merge 700000: expected tokens of the vocabulary, found 'q'"}),
      piece("a merge of 10 MB", merges, "[\"" + std::string(10 << 20, 'a') + " b\"]",
            {"F/tokenizer.json: ", "expected "}),
      piece("dropout", R"("type":"BPE")", R"("type":"BPE","dropout":0.1)",
            in("model.dropout: expected null or 0, found a number")),
      piece("a prefix inside words", R"("type":"BPE")", R"("type":"BPE","continuing_subword_prefix":"##")",
            in("model.continuing_subword_prefix: expected null or '', found '##'")),
      piece("a flag that is a number", R"("type":"BPE")", R"("type":"BPE","ignore_merges":1)",
            in("model.ignore_merges: expected a boolean, found a number")),
      piece("an unknown token that is unknown", R"("type":"BPE")", R"("type":"BPE","unk_token":"<?>")",
            in("model.unk_token: expected a token of the vocabulary, found '<?>'")),
      piece("byte fallback in a byte-level model", R"("type":"BPE")", R"("type":"BPE","byte_fallback":true)",
            in("model.byte_fallback: expected false, as pre_tokenizer has ByteLevel, found true")),
      // added tokens
      piece("added tokens that are an object", R"("added_tokens":[)", R"("added_tokens":{},"x":[)",
            in("added_tokens: expected an array, found an object")),
      piece("an added token without an id", added, R"({"content":"<s>"})",
            in("added_tokens[0].id: expected a token id, found nothing")),
      piece("an added token without content", added, R"({"id":0})",
            in("added_tokens[0].content: expected a string, found nothing")),
      piece("an added token at another's id", added, R"({"id":2,"content":"<s>"})",
            in("added_tokens[0]: expected an id of its own for '<s>', found 2, which is 'a' in model.vocab")),
      piece("an added token of id 500,000", added, R"({"id":500000,"content":"<s>"})",
            in("added_tokens[0].id: expected an id below 2")),
      piece("an added token of 100,000 bytes", added,
            added + ",{\"id\":8,\"content\":\"" + std::string(100'000, 's') + "\"}",
            {"F/tokenizer.json: ", "added token", "1024"}),
      piece("a flag of an added token that is text", added, R"({"id":0,"content":"<s>","lstrip":"yes"})",
            in("added_tokens[0].lstrip: expected a boolean, found 'yes'")),
      // how text is cut
      piece("an unknown step", R"("type":"Split")", R"("type":"Chop\n")",
            in("pre_tokenizer.pretokenizers[0].type: expected Split, Digits, Metaspace, ByteLevel or a Sequence of "
               "them, found 'Chop\\x0a'")),
      piece("an unknown behaviour", "Isolated", "Eaten",
            in("pre_tokenizer.pretokenizers[0].behavior: expected Isolated, Removed, MergedWithPrevious, "
               "MergedWithNext or Contiguous, found 'Eaten'")),
      piece("an expression without an end", regex, "(a",
            {"compile pre-tokenizer",
             "expected a regular expression that PCRE2 takes, found missing closing parenthesis"}),
      piece("an expression of 100 KB", regex, std::string(100'000, 'a'),
            {"expected an expression of at most 65536 bytes, found 100000"}),
      piece("brackets 10,000 deep", regex, repeat("(", 10'000) + repeat(")", 10'000),
            {"compile pre-tokenizer", "PCRE2"}),
      piece("a quantifier of a quantifier of a quantifier", regex, "((((a{1,999}){1,999}){1,999}){1,999})",
            {"compile pre-tokenizer", "PCRE2"}),
      piece("code within an expression", regex, "(?C1)\\\\C", {"compile pre-tokenizer"}),
      piece("an expression that is a number", R"("Regex":"\\s+|\\w+")", R"("Regex":7)",
            in("pre_tokenizer.pretokenizers[0].pattern.Regex: expected a string, found a number")),
      piece("an empty text to split at", R"("Regex":"\\s+|\\w+")", R"("String":"")",
            in("pre_tokenizer.pretokenizers[0].pattern.String: expected a text that is not empty, found ''")),
      piece("300 steps", R"({"type":"ByteLevel","add_prefix_space":false,"use_regex":false}])",
            numbered(300, [](size_t) { return std::string(R"({"type":"Digits"})"); }) + "]",
            in("pre_tokenizer.pretokenizers: expected at most 256 items, found 301")),
      piece("100 steps", R"({"type":"ByteLevel","add_prefix_space":false,"use_regex":false}])",
            numbered(100, [](size_t) { return std::string(R"({"type":"Digits"})"); }) + "]",
            {file, "expected at most 64 steps"}),
      piece("a sequence in a sequence, 300 times", R"("normalizer":null)",
            "\"normalizer\":" + repeat(R"({"type":"Sequence","normalizers":[)", 300) + repeat("]}", 300),
            {file, "levels of nesting"}),
      piece("a normaliser that makes texts longer and longer", R"("normalizer":null)",
            R"("normalizer":{"type":"Sequence","normalizers":[)" +
                numbered(16,
                         [](size_t) {
                           return std::string(R"({"type":"Replace","pattern":{"String":"a"},"content":"aaaa"})");
                         }) +
                "]}",
            {file, "expected "}),
      piece("an unknown normaliser", R"("normalizer":null)", R"("normalizer":{"type":"Lowercase"})",
            in("normalizer.type: expected NFC, Prepend, Replace, a Sequence of them, or null, found 'Lowercase'")),
      piece("an unknown decoder", R"("decoder":{"type":"ByteLevel"})", R"("decoder":{"type":"WordPiece"})",
            in("decoder.type: expected ")),
      piece("an unknown post-processor", R"("post_processor":null)", R"("post_processor":{"type":"BertProcessing"})",
            in("post_processor.type: expected TemplateProcessing, ByteLevel, a Sequence or null, found "
               "'BertProcessing'")),
      piece(
          "a BOS of no ids", R"("post_processor":null)",
          R"("post_processor":{"type":"TemplateProcessing","single":[{"SpecialToken":{"id":"<s>"}},{"Sequence":{"id":"A"}}],"special_tokens":{"<s>":{"ids":[]}}})",
          in("post_processor.special_tokens.<s>.ids: expected one id, found 0")),
      // tokenizer_config.json
      config("a config cut short", "{", {"tokenizer_config.json: parse error at line 1, column 2"}),
      config("a config that is a list", "[]", {"tokenizer_config.json: the file: expected an object"}),
      config("an EOS that is no token", R"({"eos_token":"<end>"})",
             {"tokenizer_config.json: eos_token: expected a token of tokenizer.json, not '<end>'"}),
      config("an EOS that is a number", R"({"eos_token":1})",
             {"tokenizer_config.json: eos_token: expected a token's text, or an object with its content"}),
      config("a flag that is text", R"({"add_bos_token":"yes"})",
             {"tokenizer_config.json: add_bos_token: expected a boolean"}),
      config("a config nested deeply", repeat("[", 100'000),
             {"tokenizer_config.json: offset 128: expected at most 128 levels of nesting"}),
  };
}

}  // namespace proa::hostile
