"""Checks what training relies on.

    python tools/reference_model/check.py phrases      # no held-out phrasing is among those of training; needs nothing
    python tools/reference_model/check.py              # also rounding, tallies and the held-out file; needs torch
"""

import pathlib
import re
import sys
import tempfile

import phrases

BUOY = pathlib.Path(__file__).resolve().parents[2] / "models/proa-buoy"


def words(text):
    """What is left when order, case and punctuation are lost, as training loses them."""
    return tuple(sorted(re.sub(r"[?.!,:;、。¿¡]", " ", text.lower()).split()))


def check_phrases():
    lists = [items for table in phrases.QUESTIONS.values() for items in table.values()]
    lists += [items for table in (phrases.SELF | phrases.SCOPE).values() for items, _ in table.values()]
    held, training = set(), set()
    for items in lists:
        share = len(items) // 4
        assert share, items
        held |= {words(x) for x in items[-share:]}
        training |= {words(x) for x in items[:-share] + phrases.FURTHER.get(items, ())}
    assert len(phrases.FURTHER) == sum(len(t) for t in (phrases.MORE | phrases.MORE_FIXED).values())
    assert not held & training, held & training
    print(f"{len(held)} held-out phrasings, none among the {len(training)} of training")


def check_rounding():
    """The same points as formats_test's, where Proa's rounding is held to the same values, and every BF16."""
    import torch
    from model import e4m3

    codes = torch.arange(0x7F, dtype=torch.uint8).view(torch.float8_e4m3fn).float()
    middle = (codes[1:] + codes[:-1]) / 2
    x = torch.cat([codes, middle, middle.nextafter(codes[1:]), middle.nextafter(codes[:-1])])
    x = torch.cat([x, -x, torch.arange(-(2**15), 2**15).to(torch.int16).view(torch.bfloat16).float()])
    x = x[x.isfinite()]
    wrong = (e4m3(x) != x.clamp(-448, 448).to(torch.float8_e4m3fn).float()).sum().item()
    assert not wrong, f"{wrong} of {len(x)} values are rounded otherwise than torch.float8_e4m3fn"
    print(f"E4M3: {len(x)} values are rounded as torch.float8_e4m3fn")


def check_tallies(windows=200):
    """The last tally of a channel is the answer to how often it was beyond its limit; a reading ends in a digit."""
    import numpy as np
    import tokenizers
    import train
    from generator import KEYS, Asker, make_window

    tokenizer = tokenizers.Tokenizer.from_file(str(BUOY / "tokenizer.json"))
    for i in range(windows):
        rng = np.random.default_rng([3, i])
        window = make_window(rng, rng.integers(10, 73), False)
        text, marks = window.text(), []
        asker = Asker(rng, window, False)
        for end, equal, beyond in train.tallies(text + "\n\n?"):
            assert equal >= 1 and text[end - 1].isdigit()
            c = KEYS.index(re.search(r"([a-z]+)[\d.]+$", text[:end])[1])
            row = text[:end].count("\n") - 3
            column = window.values[: row + 1, c]
            assert (column[-equal:] == column[-1]).all() and (equal > row or column[-equal - 1] != column[-1])
            assert beyond == (int(asker.beyond(c)[: row + 1].sum()) if c in window.limits else None)
        ids, _, _ = train.encode(tokenizer, text, [("value", "en", "?", "1", False)], marks)
        assert len(marks) == (window.values >= 0).sum()
        assert all(tokenizer.decode([ids[token]]).isdigit() for token, _, _ in marks)
    print(f"tallies of {windows} windows are those of their readings")


def check_held_out():
    import evaluate

    with tempfile.NamedTemporaryFile() as file:
        evaluate.write_file(file.name)
        assert pathlib.Path(file.name).read_bytes() == (BUOY / "held_out.jsonl").read_bytes()
    print("held_out.jsonl is what the generator makes")


if __name__ == "__main__":
    check_phrases()
    if sys.argv[1:] != ["phrases"]:
        check_rounding()
        check_tallies()
        check_held_out()
