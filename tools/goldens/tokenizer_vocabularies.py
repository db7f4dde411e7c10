#!/usr/bin/env python3
"""Vocabularies in other containers, so that the same one can be given to us and to Hugging Face `tokenizers` or llama.cpp.

    python tools/goldens/tokenizer_vocabularies.py gguf MODEL.gguf tokenizer.json           byte-level BPE of a GGUF file
    python tools/goldens/tokenizer_vocabularies.py tekken tekken.json tokenizer.json        with the control tokens of Nemotron 3
    python tools/goldens/tokenizer_vocabularies.py sentencepiece MODEL tokenizer.json       a SentencePiece BPE model
    python tools/goldens/tokenizer_vocabularies.py sentencepiece-gguf MODEL vocabulary.gguf the same as llama.cpp takes it

Real Tekken and SentencePiece files are inside the PyPI package `mistral-common` (pip download --no-deps mistral-common).
Needs gguf for what reads or writes GGUF.
"""

import argparse
import base64
import json
import pathlib
import struct

TEKKEN = (r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
          r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
          r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+")
LLAMA3 = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
          r"|\s*[\r\n]+|\s+(?!\S)|\s+")
QWEN2 = LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")
QWEN35 = QWEN2.replace(r"]?\p{L}+", r"]?[\p{L}\p{M}]+").replace(r"[^\s\p{L}\p{N}]+[", r"[^\s\p{L}\p{M}\p{N}]+[")


def split(expression):
    return {"type": "Split", "pattern": {"Regex": expression}, "behavior": "Isolated", "invert": False}


def byte_level(use_regex=False):
    return {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": use_regex}


# By tokenizer.ggml.pre: what the model's own tokenizer.json has.
PRE = {
    "gpt-2": dict(steps=[byte_level(True)]),
    "smollm": dict(steps=[{"type": "Digits", "individual_digits": True}, byte_level(True)]),
    "llama-bpe": dict(steps=[split(LLAMA3), byte_level()], ignore_merges=True),
    "qwen2": dict(steps=[split(QWEN2), byte_level()], normalizer={"type": "NFC"}),
    "qwen35": dict(steps=[split(QWEN35), byte_level()]),
    "pixtral": dict(steps=[split(TEKKEN), byte_level()], ignore_merges=True),
}

NEMOTRON_CONTROL = ["<unk>", "<s>", "</s>", "[INST]", "[/INST]", "[AVAILABLE_TOOLS]", "[/AVAILABLE_TOOLS]", "[TOOL_RESULTS]",
                    "[/TOOL_RESULTS]", "[TOOL_CALLS]", "<|im_start|>", "<|im_end|>", "<think>", "</think>", "<tool_call>",
                    "</tool_call>", "<tool_response>", "</tool_response>"]


def byte_alphabet():
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [b for b in range(256) if b not in printable]
    return {**{b: chr(b) for b in printable}, **{b: chr(256 + i) for i, b in enumerate(others)}}


def added(token_id, content, special):
    return {"id": token_id, "content": content, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False,
            "special": special}


def tokenizer_json(vocab, merges, added_tokens, pre):
    return {
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": added_tokens,
        "normalizer": pre.get("normalizer"), "pre_tokenizer": {"type": "Sequence", "pretokenizers": pre["steps"]},
        "post_processor": None, "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
        "model": {"type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None, "end_of_word_suffix": None,
                  "fuse_unk": False, "byte_fallback": False, "ignore_merges": pre.get("ignore_merges", False),
                  "vocab": vocab, "merges": merges}}


def from_gguf(path):
    from gguf import GGUFReader
    fields = GGUFReader(path).fields

    def values(key):
        return fields["tokenizer.ggml." + key].contents()

    tokens, types = values("tokens"), values("token_type")
    # As in published tokenizer.json: what is matched whole stands in added_tokens, too.
    vocab, added_tokens = {}, []
    for i, (token, kind) in enumerate(zip(tokens, types)):
        vocab.setdefault(token, i)
        if kind in (3, 4):
            added_tokens.append(added(i, token, kind == 3))
    return tokenizer_json(vocab, [m.split(" ") for m in values("merges")], added_tokens, PRE[values("pre")])


def from_tekken(path):
    """131,072 entries: the control tokens of Nemotron 3, reserved ones up to id 999, then Tekken's by rank."""
    tekken = json.loads(pathlib.Path(path).read_text(encoding="utf-8"))
    size, control = tekken["config"]["default_vocab_size"], tekken["config"]["default_num_special_tokens"]
    ranks = {base64.b64decode(entry["token_bytes"]): entry["rank"] for entry in tekken["vocab"] if entry["rank"] < size - control}
    alphabet = byte_alphabet()
    spelt = {token: "".join(alphabet[b] for b in token) for token in ranks}
    merges = []
    for token, rank in ranks.items():
        halves = [(token[:i], token[i:]) for i in range(1, len(token)) if token[:i] in ranks and token[i:] in ranks]
        merges += [(rank, ranks[left], ranks[right], [spelt[left], spelt[right]]) for left, right in halves]
    merges.sort(key=lambda merge: merge[:3])
    names = NEMOTRON_CONTROL + [f"<SPECIAL_{i}>" for i in range(len(NEMOTRON_CONTROL), control)]
    added_tokens = [added(i, name, i < 12) for i, name in enumerate(names)]
    vocab = {name: i for i, name in enumerate(names)}
    vocab.update({spelt[token]: rank + control for token, rank in ranks.items()})
    return tokenizer_json(vocab, [merge[3] for merge in merges], added_tokens, PRE["pixtral"])


def protobuf(data):
    """(field number, value) of a message; values are ints, 4-byte strings or byte strings."""
    def varint(at):
        value = shift = 0
        while True:
            value |= (data[at] & 0x7F) << shift
            shift, at = shift + 7, at + 1
            if data[at - 1] < 0x80:
                return value, at

    at = 0
    while at < len(data):
        key, at = varint(at)
        if key & 7 == 0:
            value, at = varint(at)
        else:
            size, at = varint(at) if key & 7 == 2 else ({5: 4, 1: 8}[key & 7], at)
            value, at = data[at:at + size], at + size
        yield key >> 3, value


def sentencepiece_pieces(path):
    """[(text, score, type)]; types are numbered as tokenizer.ggml.token_type."""
    pieces = []
    for field, value in protobuf(pathlib.Path(path).read_bytes()):
        if field == 1:
            piece = {1: b"", 2: b"\0\0\0\0", 3: 1, **dict(protobuf(value))}
            pieces.append((piece[1].decode(), struct.unpack("<f", piece[2])[0], piece[3]))
    return pieces


def from_sentencepiece(path):
    """As the published tokenizer.json of Llama 2 and Mistral 7B: ▁ by the normaliser, merges by score."""
    pieces = sentencepiece_pieces(path)
    vocab = {text: i for i, (text, _, _) in enumerate(pieces)}
    merges = []
    for i, (text, score, kind) in enumerate(pieces):
        if kind == 1:
            merges += [(-score, i, [text[:k], text[k:]]) for k in range(1, len(text)) if text[:k] in vocab and text[k:] in vocab]
    merges.sort(key=lambda merge: merge[:2])
    return {
        "version": "1.0", "truncation": None, "padding": None,
        "added_tokens": [added(i, text, kind != 4) for i, (text, _, kind) in enumerate(pieces) if kind in (2, 3, 4)],
        "normalizer": {"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "▁"},
                                                           {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}]},
        "pre_tokenizer": None,
        "post_processor": {"type": "TemplateProcessing",
                           "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
                           "pair": [], "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}}},
        "decoder": {"type": "Sequence", "decoders": [{"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
                                                     {"type": "ByteFallback"}, {"type": "Fuse"},
                                                     {"type": "Strip", "content": " ", "start": 1, "stop": 0}]},
        "model": {"type": "BPE", "dropout": None, "unk_token": "<unk>", "continuing_subword_prefix": None, "end_of_word_suffix": None,
                  "fuse_unk": True, "byte_fallback": True, "ignore_merges": False, "vocab": vocab,
                  "merges": [merge[2] for merge in merges]}}


def write_sentencepiece_gguf(path, out, pieces=None, **flags):
    """`flags`: add_bos_token and add_space_prefix; what is left out is left out of the file."""
    from gguf import GGUFWriter
    pieces = pieces or sentencepiece_pieces(path)
    writer = GGUFWriter(out, "llama")
    writer.add_tokenizer_model("llama")
    writer.add_tokenizer_pre("default")
    writer.add_token_list([text for text, _, _ in pieces])
    writer.add_token_scores([score for _, score, _ in pieces])
    writer.add_token_types([kind for _, _, kind in pieces])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    for key, value in flags.items():
        writer.add_bool("tokenizer.ggml." + key, value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kind", choices=["gguf", "tekken", "sentencepiece", "sentencepiece-gguf"])
    parser.add_argument("source")
    parser.add_argument("out")
    arguments = parser.parse_args()
    if arguments.kind == "sentencepiece-gguf":
        return write_sentencepiece_gguf(arguments.source, arguments.out)
    make = {"gguf": from_gguf, "tekken": from_tekken, "sentencepiece": from_sentencepiece}[arguments.kind]
    pathlib.Path(arguments.out).write_text(json.dumps(make(arguments.source), ensure_ascii=False), encoding="utf-8")


if __name__ == "__main__":
    main()
