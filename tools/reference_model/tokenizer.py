"""Trains the byte-level BPE tokenizer of proa-buoy on generator text and writes it with its chat template.

    python tools/reference_model/tokenizer.py --out models/proa-buoy

Special tokens have Nemotron's names and ids; the pre-tokenizer is the v2 expression (every digit alone).
"""

import argparse
import json
import pathlib

import numpy as np
import tokenizers
from generator import conversation
from tokenizers import decoders, models, pre_tokenizers, trainers

VOCAB_SIZE = 1536
SPECIALS = (
    "<unk> <s> </s> [INST] [/INST] [AVAILABLE_TOOLS] [/AVAILABLE_TOOLS] [TOOL_RESULTS] [/TOOL_RESULTS] [TOOL_CALLS] "
    "<|im_start|> <|im_end|> <think> </think> <tool_call> </tool_call> <tool_response> </tool_response>"
).split()
PATTERN = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)

# Nemotron's format without tools. The checkpoint does not think, so the reasoning of every turn is empty.
CHAT_TEMPLATE = """\
{%- set first = 1 if messages and messages[0].role == 'system' else 0 -%}
{{- '<|im_start|>system\\n' + (messages[0].content if first else '') + '<|im_end|>\\n' -}}
{%- for message in messages[first:] -%}
  {%- if message.role == 'assistant' -%}
    {%- set answer = message.content or '' -%}
    {%- if '</think>' in answer -%}
      {%- set answer = answer.split('</think>')[-1] -%}
    {%- endif -%}
    {{- '<|im_start|>assistant\\n<think></think>' + answer | trim + '<|im_end|>\\n' -}}
  {%- else -%}
    {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' -}}
  {%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}
  {{- '<|im_start|>assistant\\n<think></think>' -}}
{%- endif -%}
"""


def texts(count, seed=7):
    for i in range(count):
        rng = np.random.default_rng([seed, i])
        # Few readings and many questions: merges are wanted for words, digits stand alone anyway.
        system, turns = conversation(rng, 24, 30)
        yield system
        for _, _, question, answer, _ in turns:
            yield question.rpartition("\n\n")[2]
            yield answer
        if i % 10 == 0:
            yield turns[-1][2] if len(turns) == 1 else "\n".join(t[2] for t in turns[:6])


def train(count=6000):
    tok = tokenizers.Tokenizer(models.BPE(ignore_merges=True))
    tok.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(tokenizers.Regex(PATTERN), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tok.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        special_tokens=SPECIALS,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
        max_token_length=24,
    )
    tok.train_from_iterator(texts(count), trainer)
    return tok


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=pathlib.Path, required=True)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    train().save(str(args.out / "tokenizer.json"))
    (args.out / "chat_template.jinja").write_text(CHAT_TEMPLATE)
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<s>",
        "eos_token": "<|im_end|>",
        "unk_token": "<unk>",
        "pad_token": "<unk>",
        "add_bos_token": False,
        "clean_up_tokenization_spaces": False,
        "model_max_length": 4096,
    }
    (args.out / "tokenizer_config.json").write_text(json.dumps(config, indent=1) + "\n")


if __name__ == "__main__":
    main()
