"""Puts the tables of docs/accuracy.md in place from what `proa eval --output` wrote.

    python tools/accuracy_tables.py [--weights weights.json] [--caches caches.json...] [--needles needles.json] [--docs docs/accuracy.md]

needles.json is a report or a list of them; of each the first row counts. Where there are several reports of caches the first
row of each is the same one, against which its others were compared.
"""

import argparse
import json
import pathlib

DOCS = pathlib.Path(__file__).resolve().parents[1] / "docs/accuracy.md"
NAMES = {"fp8": "FP8 (ModelOpt)", "nvfp4": "NVFP4 (ModelOpt)", "mxfp4": "MXFP4 experts, Q8_0", "buoy": "BF16"}
HEAD = ("| | weights, MB | right, % (95 %) | kept, % | lost / won | difference, % (95 %) | p | KL, nats "
        "| same likeliest token, % |\n|---|--:|--:|--:|--:|--:|--:|--:|--:|\n")  # fmt: skip


def name(row):
    key = row["model"].removesuffix(".gguf").split("-")[-1]
    return NAMES.get(key, key.upper())


def percent(value, digits=2, sign=""):
    return f"{100 * value:{sign}.{digits}f}"


def table(rows, label):
    out = HEAD
    for row in rows:
        low, high = (percent(x, 1) for x in row["interval95"])
        cells = [label(row), f"{row['weight_bytes'] / 1e6:.1f}", f"{percent(row['exact'])} ({low} to {high})"]
        if beside := row.get("beside_first"):
            low, high = (percent(x, 2, "+") for x in beside["difference_interval95"])
            cells += [percent(beside["kept"]), f"{beside['only_first_right']} / {beside['only_this_right']}"]
            cells += [f"{percent(beside['difference'], 2, '+')} ({low} to {high})", f"{beside['mcnemar_p']:.2g}"]
            answers = row.get("answers", {})
            cells += [f"{answers['kl']:.2g}", percent(answers["top1_agreement"])] if "kl" in answers else ["", ""]
        else:
            cells += ["100", "", "", "", "", ""]
        out += "".join(f"| {cell} " if cell else "| " for cell in cells) + "|\n"
    return out


def kinds(rows):
    out = "| | " + " | ".join(name(row).split(" ")[0] for row in rows) + " |\n|---|" + "--:|" * len(rows) + "\n"
    for kind in rows[0]["by_kind"]:
        out += f"| {kind} | " + " | ".join(percent(row["by_kind"][kind]["exact"], 1) for row in rows) + " |\n"
    return out


def needles(reports):
    """Found and counted by length, in the order of the reports."""
    cells = {}
    for report in reports:
        for kind, cell in report["rows"][0]["by_kind"].items():
            what, length = kind.split(" ")
            cells.setdefault(length, {})[what] = f"{cell['right']} of {cell['questions']}"
    size = {"K": 2**10, "M": 2**20}
    lengths = sorted(cells, key=lambda length: int(length[:-1]) * size[length[-1]])
    out = "| | " + " | ".join(lengths) + " |\n|---|" + "--:|" * len(lengths) + "\n"
    for label, what in (("found", "needle"), ("counted right", "count")):
        out += f"| {label} | " + " | ".join(cells[length].get(what, "") for length in lengths) + " |\n"
    return out


def put(text, section, begins, new):
    """Replaces the first table after `section` whose first line begins so."""
    at = text.index(begins, text.index(section))
    end = text.index("\n\n", at) + 1
    return text[:at] + new + text[end:]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", type=pathlib.Path)
    parser.add_argument("--caches", type=pathlib.Path, nargs="+")
    parser.add_argument("--needles", type=pathlib.Path)
    parser.add_argument("--docs", type=pathlib.Path, default=DOCS)
    args = parser.parse_args()
    text = args.docs.read_text()
    if args.weights:
        rows = json.loads(args.weights.read_text())["rows"]
        text = put(text, "\n## Weights", "| | weights, MB", table(rows, name))
        text = put(text, "\n## Weights", "| | BF16", kinds(rows))
    if args.caches:
        reports = [json.loads(path.read_text())["rows"] for path in args.caches]
        rows = reports[0] + [row for report in reports[1:] for row in report[1:]]
        label = "KV {kv_cache_dtype}, state {mamba_ssm_cache_dtype}".format_map
        text = put(text, "\n## Caches", "| | weights, MB", table(rows, label))
    if args.needles:
        reports = json.loads(args.needles.read_text())
        text = put(text, "\n## Beyond the training length", "| | ", needles(reports if isinstance(reports, list) else [reports]))
    args.docs.write_text(text)


if __name__ == "__main__":
    main()
