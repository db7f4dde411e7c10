#!/usr/bin/env python3
"""Makes tests/goldens/tokenizer/: what Hugging Face `tokenizers` and llama.cpp say about our texts.

    python tools/goldens/tokenizer.py [--smollm2 SmolLM2-135M-Instruct.gguf]

texts.json       the texts, in the order of every `ids` below
<name>.json      {"tokenizer": a tokenizer.json, "ids": with special tokens matched, "plain_ids": those that
                 differ when they are taken as text, by index, "streams": [{"ids", "text", "text_skipping_special"}]}; without BOS
sentencepiece_gguf.json  {"tokens", "scores", "types", "ids", "plain_ids"}: ids by llama.cpp from a GGUF of these; "no_space_ids" with
                 tokenizer.ggml.add_space_prefix false; "decoded": what it makes of "ids", one by one
classes.json     {"texts": {class: [hexadecimal bytes]}, "ids": {name: {class: [[count, fnv]]}}}: tokenizer_texts.py's kinds of text, and
                 per text how many ids, and FNV-1a (64 bits, hexadecimal) of them as decimals each followed by a space
smollm2.json     {"ids", "plain_ids"} by llama.cpp with the vocabulary of SmolLM2 (the only part that needs a model)

Needs tokenizers, gguf and llama-cpp-python.
"""

import argparse
import json
import pathlib
import random
import sys
import tempfile

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))
from tokenizer_texts import KINDS, made_texts
from tokenizer_vocabularies import write_sentencepiece_gguf

HERE = pathlib.Path(__file__).resolve().parents[2] / "tests" / "goldens" / "tokenizer"

TEKKEN = (r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
          r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
          r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+")
CL100K = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
          r"|\s*[\r\n]+|\s+(?!\S)|\s+")
QWEN2 = CL100K.replace(r"\p{N}{1,3}", r"\p{N}")

TEXTS = [
    # Plain prose, one language after the other.
    "The kettle had been singing for a minute before anyone noticed it.",
    "She wrote three letters that morning and posted none of them.",
    "Der Zug nach Köln fährt heute ausnahmsweise von Gleis zwölf ab.",
    "Übermüdete Füchse überqueren gemütlich die Straße.",
    "Le garçon a oublié son parapluie près de la fenêtre où l'on voit la mer.",
    "¿Cuántos años tiene el niño que pintó aquel árbol en la pared?",
    "A manhã começou fria, mas o pão ainda estava quente.",
    "Il treno delle otto è già partito, perciò prendiamo un caffè.",
    "De fietsen staan al jaren in de schuur achter het huis.",
    "Żółta łódź płynęła powoli wzdłuż brzegu rzeki.",
    "Příští týden pojedeme na chatu, jestli bude hezky.",
    "Az őszi szőlőt kézzel szedték le a domboldalon.",
    "Yağmurdan sonra sokaklar ıslak, gökyüzü ışıl ışıldı. İstanbul'da.",
    "Στο λιμάνι περίμεναν δύο παλιά καράβια και μια γάτα.",
    "Старый маяк на мысе зажигали каждый вечер ровно в шесть.",
    "Ми довго йшли полем, доки не побачили хату під горою.",
    "На пазара продават домати, чушки и пресен хляб.",
    "הספר הישן נמצא על המדף העליון בחדר.",
    "كانت السماء صافية والنجوم قريبة من سطح البيت.",
    "مُدَرِّسَةٌ جَدِيدَةٌ",
    "باران آرام می‌بارید و کسی در خیابان نبود.",
    "बरसात के बाद गाँव की गलियाँ हरी हो गईं।",
    "নদীর ধারে একটি ছোট নৌকা বাঁধা আছে।",
    "மலையின் மேல் ஒரு சிறிய கோயில் இருக்கிறது.",
    "నీలి ఆకాశంలో పక్షులు ఎగురుతున్నాయి",
    "แมวสีดำนอนอยู่บนหลังคาทุกเช้า",
    "ນ້ຳໃນແມ່ນ້ຳໃສຫຼາຍ",
    "ផ្ទះតូចមួយនៅក្បែរវាលស្រែ",
    "გზაზე მოხუცი კაცი და ძაღლი მიდიოდნენ",
    "Գետի վրա հին կամուրջ կա",
    "በተራራው ላይ ትንሽ ቤት አለ",
    "今天下午我们去河边散步,看见了三只白鹭。",
    "圖書館在車站對面,晚上九點關門。",
    "駅前の小さな喫茶店で、コーヒーを二杯飲みました。",
    "カタカナとひらがなと漢字が混ざった文。",
    "비가 그치자 아이들이 골목으로 뛰어나왔다.",
    "Hôm qua trời mưa to nên chúng tôi ở nhà nấu phở.",
    "Mvua ilinyesha usiku kucha lakini asubuhi jua liliwaka.",
    "Ang mga bata ay naglalaro sa ilalim ng puno.",
    # Case, contractions, apostrophes.
    "I'll say it's what they've done, we're sure he'd know I'm right, aren't I?",
    "I'LL SAY IT'S WHAT THEY'VE DONE; WE'RE SURE HE'D KNOW",
    "'There is no 'quoted' word here', she said. 'Tis so. rock'n'roll d'accord l'heure",
    "it’s a curly apostrophe, they’ll differ",
    "camelCase PascalCase HTTPServer getURLFromID snake_case_name SCREAMING_CASE kebab-case iPhone McDonald",
    "ǅ ǈ titlecase ʰ modifier ª º ordinals ß ẞ ﬁ ﬂ",
    "ſtrange 'ſ long s after an apostrophe and K kelvin",
    # Numbers.
    "1", "12", "123", "1234", "12345", "1234567890", "3.14159 and 2,718,281.83 and 1e-9 and 0x1F",
    "½ ¾ ⅓ Ⅳ ⅻ ① ② ٣٤٥ १२३ ๔๕ 一二三 x² H₂O 10⁻³",
    "2026-11-24T03:30:00Z v1.2.3-rc4 192.168.0.1:8080 +49 (0)221 5551234",
    # White space.
    " ", "  ", "   ", "\t", "\t\t", "\n", "\n\n", "\n\n\n", "\r\n", "\r\n\r\n", " \n ", "\n \n\t\n", "a\n", "\na", "a  b   c    d",
    "    indented\n\tand tabbed\n  \n", "trailing spaces   ", "   leading spaces", "tab\tseparated\tvalues\n1\t2\t3",
    "no-break\u00a0space, thin\u2009space, ideographic\u3000space, line\u2028separator, nel\u0085here",
    "mongolian\u180evowel separator, zero\u200bwidth space, word\u2060joiner, \ufeffbyte order mark",
    "\u00a0\u00a0x \u3000\u3000y\u2003\u2003",
    "form\ffeed and vertical\vtab and \x1funit and \x00nul and \x7fdelete",
    # Punctuation and code.
    "Hello, world! (really?) [yes] {no} <maybe> \"quoted\" #tag @name $5 50% a&b a*b a/b a\\b a|b a^b ~x `y`",
    "...!!!???---***___===+++///\\\\\\|||",
    "!\n?/\n//\r\n;/ /\n path/to/file.txt /usr/bin/ https://example.org/a/b?c=d&e=f#g",
    "for (int i = 0; i < n; ++i) {\n  sum += a[i] * b[i];  // dot product\n}\n",
    "def f(x):\n    return {k: v for k, v in x.items() if v is not None}\n",
    "{\"name\": \"get_weather\", \"arguments\": {\"city\": \"Reykjavík\", \"days\": 3}}",
    "SELECT id, name FROM users WHERE age >= 21 ORDER BY name DESC;",
    "<p class=\"x\">a &amp; b</p><!-- comment --><br/>",
    "| a | b |\n|---|---|\n| 1 | 2 |\n", "- item\n* item\n1. item\n\n> quote\n\n```c\nint x;\n```\n",
    "\\frac{1}{2} \\sum_{i=0}^{n} x_i \\le \\infty", "α + β ≈ γ ⇒ ∀x∈ℝ: x² ≥ 0 ∎",
    "€100 £20 ¥3000 ₹500 ₿1 §5 ©2026 ®™ †‡ • … – — “q” ‘q’ «q» 「q」",
    # Emoji, marks, decomposed letters.
    "😀 🚀🚀 👍🏽 👩‍👩‍👧‍👦 🇩🇪🇯🇵 ❤️ ☕️ 1️⃣ ✅", "e\u0301 a\u0308 n\u0303 o\u0302\u0323 \u1100\u1161\u11a8 re\u0301sume\u0301 \u212b \u2126",
    "Z\u0351\u036b\u0343\u0342a\u0489l\u0489g\u0489o\u0489", "\u0301 mark first, then \u0308 another", "q\u0307\u0323 and q\u0323\u0307",
    "𝔘𝔫𝔦𝔠𝔬𝔡𝔢 𐍈𐌰𐌿𐍄 𓂀 𠮷野家 \U0010fffd \ue000",
    # Tokens that are matched whole, and near misses.
    "<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\n", "<|im_start|><|im_end|><|im_end|>", "text<|im_end|>text",
    " <|im_end|> spaces \n<|im_end|>\n around", "<|im_end| <|im_end<|im_end|>> |im_end|> <<|im_end|>", "<think>\nhm\n</think>\n\nYes.",
    "<think><think></think", "a <tool_call>\n{}\n</tool_call> b", "</s><s><unk>[INST] x [/INST]", "<SPECIAL_20><SPECIAL_2>",
    "the mask MASK unmasked _MASK_ MASKED MASK, MASK!", "Café café Cafe\u0301 cafe\u0301", "x <pad> <pad>  y<pad>\n\nz",
    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
    "Donaudampfschifffahrtselektrizitätenhauptbetriebswerkbauunterbeamtengesellschaftsmitgliederversammlungsprotokollführer",
    "",
]


def train(pre_tokenizer, vocab_size, special=(), normalizer=None):
    tokenizer = Tokenizer(models.BPE())
    if normalizer:
        tokenizer.normalizer = normalizer
    tokenizer.pre_tokenizer = pre_tokenizer
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=vocab_size, special_tokens=list(special), show_progress=False,
                                  initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()))
    tokenizer.train_from_iterator(TEXTS * 2, trainer)
    return tokenizer


def split(expression, behavior="isolated", invert=False):
    return pre_tokenizers.Split(Regex(expression), behavior, invert)


def byte_level(**options):
    return pre_tokenizers.ByteLevel(add_prefix_space=options.pop("add_prefix_space", False), **options)


def sequence(*steps):
    return pre_tokenizers.Sequence(list(steps))


NEMOTRON = ["<unk>", "<s>", "</s>", "[INST]", "[/INST]", "<|im_start|>", "<|im_end|>", "<tool_call>", "</tool_call>",
            "<SPECIAL_2>", "<SPECIAL_20>"]


def edited(tokenizer, edit):
    description = json.loads(tokenizer.to_str())
    edit(description)
    return Tokenizer.from_str(json.dumps(description))


def make_tokenizers():
    yield "gpt2", train(byte_level(), 420, ["<|endoftext|>", "<|im_end|>"])

    nemotron = train(sequence(split(TEKKEN), byte_level(use_regex=False)), 520, NEMOTRON)
    def whole_words(description):
        # Words that no sequence of merges reaches: with ignore_merges they are single ids, without it they are not.
        description["model"]["ignore_merges"] = True
        for word in ["Ġminute", "Server", "Ġжат", "0", "ĊĊĊ", "camel"]:
            description["model"]["vocab"].setdefault(word, len(description["model"]["vocab"]))

    def finish(tokenizer):
        tokenizer.add_tokens([AddedToken("<think>", special=False, normalized=False),
                              AddedToken("</think>", special=False, normalized=False)])
        tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
        return tokenizer

    yield "nemotron", finish(edited(nemotron, whole_words))

    def keep_merging(description):
        whole_words(description)
        description["model"]["ignore_merges"] = False
        description["model"]["merges"] = [" ".join(pair) for pair in description["model"]["merges"]]

    yield "nemotron_merging", finish(edited(nemotron, keep_merging))

    qwen = train(sequence(split(QWEN2), byte_level(use_regex=False)), 420, ["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
                 normalizers.NFC())
    qwen.add_tokens([AddedToken("<think>", special=False, normalized=False), AddedToken("café", special=False, normalized=True)])
    yield "qwen", qwen

    prefix = train(sequence(pre_tokenizers.Digits(individual_digits=True), byte_level(add_prefix_space=True)), 380, ["<|im_end|>"])
    prefix.add_special_tokens([AddedToken("<pad>", lstrip=True, rstrip=True), AddedToken("<s>", rstrip=True)])
    prefix.add_tokens([AddedToken("MASK", single_word=True), AddedToken("<think>", lstrip=True)])
    yield "prefix", prefix

    yield "olmo", train(sequence(split(CL100K, "removed", True), byte_level(use_regex=False)), 400, ["<|im_end|>"])
    yield "merged_previous", train(sequence(split(r"\s+", "merged_with_previous"), byte_level(use_regex=False)), 330)
    yield "merged_next", train(sequence(split(r"\s", "merged_with_next"), pre_tokenizers.Split(".", "removed"),
                                        byte_level(use_regex=False)), 330)
    yield "contiguous", train(sequence(split(r"\p{L}", "contiguous", True), pre_tokenizers.Digits(individual_digits=False),
                                       byte_level(use_regex=True)), 330)
    for name in ["llama", "metaspace", "gemma"]:
        yield f"sentencepiece_{name}", sentencepiece(name)


SPACE = "\u2581"


def sentencepiece(name):
    """As Llama 2 ("llama"), newer conversions of it ("metaspace") and Gemma ("gemma") have it. A third of the characters have no
    token: their bytes stand for them."""
    replace = normalizers.Replace(" ", SPACE)
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(replacement=SPACE, prepend_scheme="always")
    names = ["<unk>", "<s>", "</s>"] if name != "gemma" else ["<pad>", "<eos>", "<bos>", "<unk>", "<start_of_turn>", "<end_of_turn>"]
    trainer = trainers.BpeTrainer(vocab_size=700, special_tokens=names + [f"<0x{b:02X}>" for b in range(256)], show_progress=False,
                                  limit_alphabet=200, initial_alphabet=[SPACE])
    tokenizer.train_from_iterator(TEXTS * 2, trainer)

    def edit(description):
        description["added_tokens"] = description["added_tokens"][:len(names)]  # byte tokens are no added tokens
        vocab, merges = description["model"]["vocab"], description["model"]["merges"]
        for run in range(2, 5):  # runs of spaces reach across words
            vocab[SPACE * run] = len(vocab)
            merges += [[SPACE * k, SPACE * (run - k)] for k in range(1, run)]
        vocab["a" + SPACE + "b"] = len(vocab)  # and so does one word
        if SPACE + "b" in vocab:
            merges.append(["a", SPACE + "b"])
        vocab["e" + SPACE] = len(vocab)
        merges.append(["e", SPACE])

    tokenizer = edited(tokenizer, edit)
    start, spaces = (0, "never") if name == "gemma" else (1, "first")
    tokenizer.decoder = decoders.Sequence([decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()] +
                                          ([decoders.Strip(" ", 1, 0)] if start else []))
    if name == "llama":
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend(SPACE), replace])
        tokenizer = edited(tokenizer, lambda d: d.update(pre_tokenizer=None))
    elif name == "metaspace":
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(replacement=SPACE, prepend_scheme=spaces, split=False)
        tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace(replacement=SPACE, prepend_scheme=spaces)])
    else:
        tokenizer.normalizer = replace
        tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
        tokenizer.add_tokens([AddedToken(text, special=False, normalized=False) for text in ["\n\n", "\n\n\n", "<table>", SPACE * 2]])
    tokenizer.add_tokens([AddedToken("<think>", special=False, normalized=False)])
    return tokenizer


def sentencepiece_gguf():
    """llama.cpp on a GGUF with scores: the merges of "llama" say in which order."""
    description = json.loads(sentencepiece("llama").to_str())
    vocab = sorted(description["model"]["vocab"].items(), key=lambda item: item[1])
    pieces = [(text, 0.0, 2 if i == 0 else 3 if i < 3 else 6 if text.startswith("<0x") else 1) for text, i in vocab]
    for rank, (left, right) in reversed(list(enumerate(description["model"]["merges"]))):
        pieces[description["model"]["vocab"][left + right]] = (left + right, -float(rank), 1)
    pieces = [(text, -1e6 if kind == 1 and len(text) == 1 else score, kind) for text, score, kind in pieces]
    more = [("<think>", 0.0, 4), ("\n\n", 0.0, 4), ("  ", 0.0, 4), ("xyz", -5.0, 5)]  # llama.cpp refuses doubles
    without = [text for text, _, _ in more] + ["<|im_end|>"]  # which it makes a control token whatever its type
    pieces = [p for p in pieces if p[0] not in without] + more
    from llama_cpp import Llama
    with tempfile.TemporaryDirectory() as folder:
        def llama(**flags):
            path = f"{folder}/vocabulary.gguf"
            write_sentencepiece_gguf(None, path, pieces, **flags)
            return Llama(path, vocab_only=True, verbose=False)

        model = llama()
        result = {"tokens": [p[0] for p in pieces], "scores": [p[1] for p in pieces], "types": [p[2] for p in pieces],
                  **both(lambda special: [model.tokenize(t.encode(), add_bos=False, special=special) for t in TEXTS])}
        result["decoded"] = [model.detokenize(ids, special=True).decode() for ids in result["ids"]]
        model = llama(add_space_prefix=False)
        result["no_space_ids"] = [model.tokenize(t.encode(), add_bos=False, special=True) for t in TEXTS]
        return result


def write(path, value):
    path.write_text(json.dumps(value, ensure_ascii=False, separators=(",", ":")) + "\n", encoding="utf-8")


def both(encode):
    """`encode(special)` gives the ids of all texts."""
    ids, plain = encode(True), encode(False)
    return {"ids": ids, "plain_ids": {str(i): ids_i for i, ids_i in enumerate(plain) if ids_i != ids[i]}}


def streams(tokenizer):
    rng = random.Random(7)
    size = tokenizer.get_vocab_size()
    if tokenizer.token_to_id("<0x00>") is not None:
        # Of bytes that are no characters `tokenizers` makes one U+FFFD each, where we make one per maximal subpart; so whole texts.
        for length in [1, 2, 3, 5, 8]:
            ids = sum([tokenizer.encode(rng.choice(TEXTS), add_special_tokens=False).ids for _ in range(length)], [])
            yield {"ids": ids, "text": tokenizer.decode(ids, skip_special_tokens=False),
                   "text_skipping_special": tokenizer.decode(ids, skip_special_tokens=True)}
        return
    for length in [1, 2, 3, 5, 8, 20, 60]:
        ids = [rng.randrange(size) for _ in range(length)]
        # "café" as an added token is decoded by `tokenizers` through the byte alphabet, which makes its é an invalid byte.
        ids = [i for i in ids if tokenizer.id_to_token(i) != "café"]
        yield {"ids": ids, "text": tokenizer.decode(ids, skip_special_tokens=False),
               "text_skipping_special": tokenizer.decode(ids, skip_special_tokens=True)}


def fnv(ids):
    value = 0xCBF29CE484222325
    for byte in "".join(f"{i} " for i in ids).encode():
        value = (value ^ byte) * 0x100000001B3 & 0xFFFFFFFFFFFFFFFF
    return f"{value:016x}"


def classes():
    texts = {kind: made_texts(kind, 2000) for kind in KINDS}
    ids = {}
    for name in ["gpt2", "nemotron", "qwen", "prefix", "olmo", "sentencepiece_llama", "sentencepiece_gemma"]:
        # As stored: training with a limited alphabet is not the same twice.
        tokenizer = Tokenizer.from_str(json.dumps(json.loads((HERE / f"{name}.json").read_text(encoding="utf-8"))["tokenizer"]))
        ids[name] = {}
        for kind, made in texts.items():
            encoded = [tokenizer.encode(t.decode("utf-8", "replace"), add_special_tokens=False).ids for t in made]
            ids[name][kind] = [[len(each), fnv(each)] for each in encoded]
    return {"texts": {kind: [t.hex() for t in made] for kind, made in texts.items()}, "ids": ids}


def main():
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--smollm2", help="GGUF file; without it smollm2.json stays as it is")
    arguments.add_argument("--only", help="vocabularies with this in their name")
    arguments = arguments.parse_args()
    HERE.mkdir(parents=True, exist_ok=True)
    write(HERE / "texts.json", TEXTS)
    if not arguments.only or arguments.only in "sentencepiece_gguf":
        write(HERE / "sentencepiece_gguf.json", sentencepiece_gguf())
    for name, tokenizer in make_tokenizers():
        if arguments.only and arguments.only not in name:
            continue

        def encode(special):
            tokenizer.encode_special_tokens = not special
            return [tokenizer.encode(text, add_special_tokens=False).ids for text in TEXTS]

        description = json.loads(tokenizer.to_str())
        write(HERE / f"{name}.json", {"tokenizer": description, **both(encode), "streams": list(streams(tokenizer))})
    if not arguments.only or arguments.only in "classes":
        write(HERE / "classes.json", classes())
    if arguments.smollm2:
        from llama_cpp import Llama
        llama = Llama(arguments.smollm2, vocab_only=True, verbose=False)
        write(HERE / "smollm2.json", both(lambda special: [
            llama.tokenize(text.encode(), add_bos=False, special=special) for text in TEXTS]))


if __name__ == "__main__":
    main()
