"""Draws the training curve of a log as SVG: python tools/reference_model/plot.py training_log.csv training_curve.svg"""

import csv
import math
import sys

WIDTH, HEIGHT, LEFT, TOP = 720, 320, 60, 30
RIGHT, BOTTOM = WIDTH - 20, HEIGHT - 45
LOW, HIGH = -2.5, 1.0  # log10 of the loss


def main(source, target):
    with open(source) as file:
        rows = list(csv.DictReader(file))
    most = float(rows[-1]["tokens"])

    def points(column):
        for row in rows:
            x = LEFT + float(row["tokens"]) / most * (RIGHT - LEFT)
            y = (HIGH - math.log10(float(row[column]))) / (HIGH - LOW) * (BOTTOM - TOP) + TOP
            yield f"{x:.1f},{y:.1f}"

    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif" '
        f'font-size="12"><rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>'
    ]
    for loss in (0.01, 0.1, 1, 10):
        y = (HIGH - math.log10(loss)) / (HIGH - LOW) * (BOTTOM - TOP) + TOP
        out.append(f'<line x1="{LEFT}" x2="{RIGHT}" y1="{y:.1f}" y2="{y:.1f}" stroke="#ddd"/>')
        out.append(f'<text x="{LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{loss:g}</text>')
    for tokens in range(0, int(most) + 1, 100_000_000):
        x = LEFT + tokens / most * (RIGHT - LEFT)
        out.append(f'<text x="{x:.1f}" y="{BOTTOM + 18}" text-anchor="middle">{tokens // 1_000_000}</text>')
    for column, colour, name in (("answer_loss", "#b03", "answers"), ("rest_loss", "#069", "questions and readings")):
        out.append(f'<polyline fill="none" stroke="{colour}" stroke-width="1.5" points="{" ".join(points(column))}"/>')
        out.append(f'<text x="{RIGHT - 180}" y="{TOP + (10 if column == "answer_loss" else 26)}" '
                   f'fill="{colour}">{name}</text>')  # fmt: skip
    out.append(f'<text x="{LEFT}" y="18">loss (nats per token)</text>')
    out.append(f'<text x="{RIGHT}" y="{HEIGHT - 8}" text-anchor="end">million tokens</text></svg>')
    with open(target, "w") as file:
        file.write("\n".join(out) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
