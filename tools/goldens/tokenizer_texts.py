#!/usr/bin/env python3
"""Texts in many languages and of many kinds, to compare tokenizers on: the same on every run on one machine.

    python tools/goldens/tokenizer_texts.py OUT_FOLDER [--bytes 1100000]

Writes <class>.texts, each a sequence of records: u32 length, bytes. Real text is what the machine has installed (message
catalogues, manual pages, source code) and is never kept; the rest, and all of it where nothing is installed, is made here from
words and ranges of code points. Every class has at least --bytes bytes and 300 texts. Only broken_utf8 is not valid UTF-8.
"""

import argparse
import gettext
import gzip
import pathlib
import random
import re
import struct
import unicodedata

HERE = pathlib.Path(__file__).resolve()
WORDS = {
    "english": "the a we they harbour winter engine letters quiet morning because between answered Tuesday don't it's I'll would've "
               "machine's reading north well-known co-operate naïve café 3rd and of to in that was for on are with as at be this",
    "german": "der die das und nicht Straße Übung größer Mädchen Haus Züge fährt gestern Donaudampfschiff Wörterbuch weiß ist ein "
              "eine zwischen während Bücher Öl Äpfel Fußgängerübergang müssen können geht's Bundesverfassungsgericht",
    "spanish": "el la los niño años pequeño corazón ¿dónde ¡qué mañana canción después también está español lluvia según más árbol "
               "cigüeña vergüenza último de que y en un una por con para como pero",
    "french": "le la les l'eau d'abord qu'il aujourd'hui garçon forêt déjà où çà cœur été élève naïf château être à leçon œuvre "
              "n'est s'appelle de et un une dans pour sur avec plus grand",
    "italian": "il lo la gli l'acqua perché città è così più un'altra università già però caffè dell'anno c'è sull'isola virtù di "
               "che e in per con del una sono come",
    "japanese": "日本語 東京 学校 電車 猫 が は を に で と の です ます した ありがとう コーヒー ニュース プログラム 食べる 行きました 、 。 「新聞」 〜 ー 々 "
                "ｶﾀｶﾅ ㈱ 一二三 今日",
    "chinese": "中国 北京 学习 我们 今天 天气 很好 不是 电脑 圖書館 臺灣 謝謝 早上 喝茶 ， 。 “你好” 《红楼梦》 三百 的 了 在 是 有 和 人 这 他 来 到 说 们 大 地 𠮷 龘",
    "arabic": "السلام عليكم مدينة كتاب مدرسة مُعَلِّم القاهرة الطقس جميل اليوم ، ؟ لا إله أحمد ٣٤٥ شمسٌ قَمَرٌ اللغة العربية من في على "
              "إلى هذا التي كان مع بيت ـــ ﷺ لأنّ",
    "hindi": "नमस्ते भारत दिल्ली विद्यालय किताब पानी अच्छा है नहीं क्या मैं हूँ ज़रूर फ़िल्म क्षत्रिय ज्ञान श्री । ॥ १२३ बच्चों और के में की से को पर यह "
             "वह हिन्दी ड़ाकू",
}
# What pseudo-words are made of; by ranges of code points.
LETTERS = {
    "english": [(0x61, 0x7B)] * 8 + [(0x41, 0x5B)], "german": [(0x61, 0x7B)] * 6 + [(0xDF, 0xFD)],
    "spanish": [(0x61, 0x7B)] * 6 + [(0xE0, 0xF7)], "french": [(0x61, 0x7B)] * 6 + [(0xE0, 0xF7), (0x152, 0x154)],
    "italian": [(0x61, 0x7B)] * 6 + [(0xE0, 0xF7)], "japanese": [(0x3041, 0x3097), (0x30A1, 0x30FF), (0x4E00, 0x9FA6)],
    "chinese": [(0x4E00, 0x9FA6)] * 12 + [(0x3400, 0x4DB6), (0x20000, 0x2A6D7)],
    "arabic": [(0x621, 0x64B)] * 4 + [(0x64B, 0x653), (0x671, 0x6D4), (0xFE70, 0xFE75)],
    "hindi": [(0x905, 0x93A)] * 2 + [(0x93E, 0x94E), (0x900, 0x904), (0x958, 0x962)],
}
CATALOGUES = {"german": "de", "spanish": "es", "french": "fr", "italian": "it", "japanese": "ja", "chinese": "zh_CN", "arabic": "ar",
              "hindi": "hi"}
CODE = ["*.py", "*.h", "*.hpp", "*.c", "*.cpp", "*.js", "*.css", "*.html", "*.sh", "*.cmake", "*.pl", "*.pm", "*.json", "*.xml", "*.txt"]


def code_point(rng, ranges):
    while True:
        c = rng.randrange(*rng.choice(ranges))
        if not 0xD800 <= c < 0xE000 and unicodedata.category(chr(c)) != "Cn":
            return chr(c)


def catalogue(language):
    """Messages of installed programs, or for English what they translate."""
    roots = [pathlib.Path("/usr/share/locale"), pathlib.Path("/usr/lib/python3/dist-packages")]
    seen = {}
    for path in sorted(p for root in roots for p in root.glob(f"**/{language or 'de'}/LC_MESSAGES/*.mo")):
        try:
            messages = gettext.GNUTranslations(path.open("rb"))._catalog
        except (OSError, ValueError, LookupError, SyntaxError, struct.error):  # what nobody reads any more
            continue
        for key, text in messages.items():
            seen[text if language else (key if isinstance(key, str) else key[0])] = None
    return [text for text in seen if text.strip()]


def manual_pages(language):
    texts = []
    for path in sorted(pathlib.Path("/usr/share/man", language).glob("man*/*.gz")):
        text = gzip.decompress(path.read_bytes()).decode("utf-8", "replace")
        texts += [p for p in re.split(r"\n(?=\.(?:SH|PP|TP|P)\b)", text) if len(p) > 40]
    return texts


def code_files():
    roots = [HERE.parents[2] / "src", HERE.parents[2] / "tools", pathlib.Path("/usr/lib/python3.11"), pathlib.Path("/usr/include"),
             pathlib.Path("/usr/share/perl"), pathlib.Path("/usr/share/cmake-3.25"), pathlib.Path("/usr/lib/python3/dist-packages")]
    for root in roots:
        for pattern in CODE:
            for path in sorted(root.glob("**/" + pattern))[:60]:
                if not path.is_file() or path.stat().st_size > 200_000:
                    continue
                lines = path.read_text(encoding="utf-8", errors="ignore").splitlines(keepends=True)
                for i in range(0, len(lines), 60):
                    yield "".join(lines[i:i + 60])


def sentences(rng, language):
    words, gap = WORDS[language].split(), "" if language in ("japanese", "chinese") else " "
    marks = {"japanese": "。！？", "chinese": "。！？", "arabic": ".؟!", "hindi": "।?!"}.get(language, ".?!:;")
    while True:
        text = []
        for _ in range(rng.randrange(4, 30)):
            word = rng.choice(words)
            if rng.random() < 0.25:
                word = "".join(code_point(rng, LETTERS[language]) for _ in range(rng.randrange(1, 11)))
            word = rng.choice([str, str, str, str, str.upper, str.title, lambda w: f"({w})", lambda w: w + ",", lambda w: f"«{w}»",
                               lambda w: unicodedata.normalize("NFD", w)])(word)
            text.append(word if rng.random() > 0.04 else str(rng.randrange(10 ** rng.randrange(1, 9))))
        yield gap.join(text) + rng.choice(marks) + rng.choice(["", " ", "\n", "\n\n", "\r\n", ""])


def language_texts(rng, language):
    real = catalogue(CATALOGUES.get(language))
    real += manual_pages(CATALOGUES.get(language, "."))
    rng.shuffle(real)
    made = sentences(rng, language)
    while True:  # real text mostly, as long as there is some
        parts = [real.pop() if real and rng.random() < 0.9 else next(made) for _ in range(rng.randrange(1, 16))]
        yield rng.choice(["\n", " ", "", "\n\n"]).join(parts)


def code(rng, _):
    yield from code_files()
    yield from made_code(rng)


def made_code(rng):
    names = "count index value buffer request getURL HTTPServer snake_case kMax __init__ x i n self this".split()
    while True:
        yield "\n".join("    " * rng.randrange(5) + rng.choice([
            "for (int {0} = 0; {0} < {1}; ++{0}) {{", "}}", "if {0}.{1}({2}) is None:", "return {0}[{1}] + {2} * 0x{3:X};",
            "// {0} {1}: {2}", "\t{0} = \"{1}\\n\";", "def {0}({1}, *{2}):", "<{0} class=\"{1}\">{2}</{0}>", "", "{0}->{1}<{2}>();"
        ]).format(*rng.choices(names, k=3), rng.randrange(1 << 20)) for _ in range(40))


DIGITS = [0x30, 0x660, 0x6F0, 0x966, 0x9E6, 0xE50, 0xFF10, 0x1D7CE]
OTHER_NUMBERS = "½¾⅓Ⅳⅻ①②㉈²³⁴₂一二三〇〡㊀𐄇𒐕"


def numbers(rng, _):
    def digits(n, zero=0x30):
        return "".join(chr(zero + rng.randrange(10)) for _ in range(n))

    def number():
        n = rng.randrange(1, 13)
        return rng.choice([
            lambda: digits(n), lambda: digits(n) + "." + digits(n), lambda: f"{rng.randrange(10 ** n):,}", lambda: "-" + digits(n),
            lambda: f"{rng.random() * 10 ** n:e}", lambda: hex(rng.randrange(16 ** n)), lambda: digits(n, rng.choice(DIGITS)),
            lambda: f"20{digits(2)}-{digits(2)}-{digits(2)}T{digits(2)}:{digits(2)}Z", lambda: ".".join(digits(3) for _ in range(4)),
            lambda: f"+49 (0) {digits(4)}/{digits(5)}", lambda: rng.choice("€$£¥₹₿") + digits(n), lambda: digits(2) + "%",
            lambda: rng.choice(OTHER_NUMBERS) * rng.randrange(1, 5), lambda: "x" + rng.choice("²³⁴") + digits(n) + "th",
            lambda: "v" + ".".join(digits(rng.randrange(1, 3)) for _ in range(3))])()

    while True:
        yield "".join(number() + rng.choice([" ", " ", "  ", ", ", "\t", "\n", " + ", "=", "", "/", " | "]) for _ in range(rng.randrange(1, 60)))


PEOPLE = "👩👨🧑👧👦👴👵🧔"
SKIN = ["\U0001F3FB", "\U0001F3FD", "\U0001F3FF", "", "", ""]
EMOJI = [(0x1F300, 0x1F650), (0x1F680, 0x1F700), (0x1F900, 0x1FA00), (0x2600, 0x27C0)]


def emoji(rng, _):
    def one():
        person = lambda: rng.choice(PEOPLE) + rng.choice(SKIN)
        return rng.choice([
            lambda: code_point(rng, EMOJI), lambda: code_point(rng, EMOJI) + "\uFE0F",
            lambda: "\u200D".join(person() for _ in range(rng.randrange(2, 5))), lambda: person() + "\u200D" + rng.choice("💻🚀🍳♂♀") + "\uFE0F",
            lambda: "".join(chr(0x1F1E6 + rng.randrange(26)) for _ in range(rng.randrange(1, 5))), lambda: rng.choice("0123456789#*") + "\uFE0F\u20E3",
            lambda: "🏴" + "".join(chr(0xE0061 + rng.randrange(26)) for _ in range(5)) + "\U000E007F", lambda: "❤️\u200D🔥", person,
            lambda: rng.choice([":)", "<3", "¯\\_(ツ)_/¯", "(╯°□°)╯", "ʕ•ᴥ•ʔ", "wow", " so cool", "!!", "日本", "да"])])()

    while True:
        yield "".join(one() + rng.choice(["", "", "", " ", "\n", "  ", "."]) for _ in range(rng.randrange(1, 50)))


SPACES = [" "] * 8 + ["\t"] * 3 + ["\n"] * 5 + ["\r\n", "\r", "\u00A0", "\u3000", "\u2003", "\u2009", "\u2028", "\u2029", "\u0085", "\u1680", "\u202F",
                                               "\u205F", "\x0B", "\x0C", "\u180E", "\u200B", "\uFEFF"]


def whitespace(rng, _):
    words = ["a", "word", "Two", "3", ".", "#", "{", "}", "it's", "é", "日本", "return", "\u0301", "-", "//", "", ""]
    while True:
        yield "".join(rng.choice(words) + "".join(rng.choice(SPACES) * rng.choice([1, 1, 1, 2, 3, 4, 7, 8, 16, 40]) for _ in range(rng.randrange(1, 5)))
                      for _ in range(rng.randrange(1, 60)))


CONTROL = [(0, 0x20)] * 4 + [(0x7F, 0xA0)] * 2 + [(0x200B, 0x2010), (0x202A, 0x202F), (0x2060, 0x2070), (0xFFF9, 0xFFFC), (0xFE00, 0xFE10), (0xE000, 0xE100),
                                                 (0xE0020, 0xE0080), (0x10FF00, 0x10FFFE), (0x300, 0x370), (0xAD, 0xAE), (0x61C, 0x61D), (0xFEFF, 0xFF00)]


def control(rng, _):
    words = ["a", "word", " the", "Two", "42", ".", "<", "\n", " ", "é", "日", "ж", "Ab", "'s"]
    while True:
        yield "".join("".join(code_point(rng, CONTROL) for _ in range(rng.randrange(1, 5))) + rng.choice(words) for _ in range(rng.randrange(1, 80)))


def scripts(rng, _):
    """Every assigned character somewhere, in runs from one part of the table."""
    while True:
        start = rng.randrange(0x10000) if rng.random() < 0.75 else rng.choice([0x10000, 0x1B000, 0x1D000, 0x1E000, 0x1F000, 0x20000, 0x30000]) + rng.randrange(0x2000)
        runs = [[(start, start + 0x80)], [(0x20, 0x7F)], [(0xA0, 0x250)]]
        yield "".join(code_point(rng, rng.choice(runs)) + rng.choice(["", "", "", " "]) for _ in range(rng.randrange(1, 200))
                      ) if any(unicodedata.category(chr(c)) not in ("Cn", "Cs") for c in range(start, start + 0x80)) else "x"


def broken_utf8(rng, makers):
    bad = [b"\x80", b"\xBF", b"\xC0\xAF", b"\xC1", b"\xE0\x80\x80", b"\xED\xA0\x80", b"\xED\xBF\xBF", b"\xF0\x80\x80\x80", b"\xF4\x90\x80\x80", b"\xF5", b"\xFF",
           b"\xFE", b"\xE2\x82", b"\xF0\x9F\x98", b"\xC3", b"\xE2\x28\xA1", b"\xF0\x9F", b"\xF8\x88\x80\x80\x80"]
    while True:
        text = bytearray(next(rng.choice(makers)).encode()[:rng.randrange(1, 3000)])
        for _ in range(rng.randrange(1, 20)):
            at = rng.randrange(len(text) + 1)
            how = rng.randrange(4)
            if how == 0:
                text[at:at] = rng.choice(bad)
            elif how == 1:
                del text[at:at + rng.randrange(1, 4)]
            elif how == 2 and at < len(text):
                text[at] = rng.randrange(256)
            else:
                text[at:at] = bytes(rng.randrange(0x80, 0x100) for _ in range(rng.randrange(1, 6)))
        yield bytes(text)


KINDS = {**dict.fromkeys(WORDS, language_texts), "code": code, "numbers": numbers, "emoji": emoji, "whitespace": whitespace, "control": control,
         "scripts": scripts, "broken_utf8": broken_utf8}


def maker(name, seed):
    rng = random.Random(f"{name} {seed}")
    if name == "broken_utf8":
        return broken_utf8(rng, [maker(kind, f"{seed} broken") for kind in KINDS if kind != name])
    return KINDS[name](rng, name)


def texts(name, size, seed=1):
    """Texts as bytes, at least 300 and at least `size` bytes together."""
    total, result = 0, []
    for text in maker(name, seed):
        text = text if isinstance(text, bytes) else text.encode("utf-8", "ignore")
        text = text[:20_000] if name == "broken_utf8" else text[:20_000].decode("utf-8", "ignore").encode()
        result.append(text)
        total += len(text)
        if total >= size and len(result) >= 300:
            return result


def made_texts(name, size):
    """At least `size` bytes of texts without a word of what the machine has installed, in pieces of at most 300 bytes."""
    rng = random.Random(f"{name} made")
    makers = {**{language: sentences(rng, language) for language in WORDS}, "code": made_code(rng)}
    others = [makers.get(kind) or KINDS[kind](rng, kind) for kind in KINDS if kind != "broken_utf8"]
    source = broken_utf8(rng, others) if name == "broken_utf8" else makers.get(name) or KINDS[name](rng, name)
    result = []
    while sum(map(len, result)) < size:
        text = next(source)
        result.append(text[:300] if isinstance(text, bytes) else text.encode("utf-8", "ignore")[:300].decode("utf-8", "ignore").encode())
    return result


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=pathlib.Path)
    parser.add_argument("--bytes", type=int, default=1_100_000)
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    for name in KINDS:
        made = texts(name, arguments.bytes)
        (arguments.out / f"{name}.texts").write_bytes(b"".join(struct.pack("<I", len(t)) + t for t in made))
        print(f"{name:12} {len(made):6} texts {sum(map(len, made)):9} bytes")


if __name__ == "__main__":
    main()
