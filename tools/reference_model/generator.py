"""Windows of a buoy's readings, and questions with exact answers about them.

The weather is simple physics, one formula per effect, named where it stands. Sensors add noise, gaps and faults. Every
answer is computed from the values as they are printed, faulty ones included, so it is exact by construction.

A window is text: a header (station, place, date, interval; units; alarm limits), then one line per reading:

    03:40 pos045 hs03.4 tp07.1 wind12.4 sst18.3 air21.5 baro0998.7 bat12.6

Numbers have a fixed width; a missing value is `--`. Values are kept as integers, in tenths (pos: in whole metres).
Everything follows from (seed, index); held-out stations never appear in training.
"""

import dataclasses
import json
import zlib

import numpy as np
from phrases import ANSWERS, CHANNELS, FURTHER, LANGUAGES, OPENERS, QUESTIONS, SCOPE, SELF, UNMEASURED

KEYS = ("pos", "hs", "tp", "wind", "sst", "air", "baro", "bat")
POS, HS, TP, WIND, SST, AIR, BARO, BAT = range(8)
MISSING = -1
WIDTH = (3, 2, 2, 2, 2, 2, 4, 2)  # digits before the decimal point
LIMITED = ((POS, ">=", 10), (HS, ">=", 5), (WIND, ">=", 10), (BARO, "<", 10), (BAT, "<", 1))  # channel, sense, grid
GRID = (10, 5, 10, 10, 10, 10, 10, 5)  # step of the thresholds people ask for
KINDS = tuple("value last max min first count trend alarms fault summary json self scope".split())
MIX = (0.16, 0.03, 0.12, 0.11, 0.13, 0.10, 0.04, 0.09, 0.08, 0.04, 0.07, 0.015, 0.015)  # how often training asks what
MIX_LATE = (0.08, 0.03, 0.10, 0.08, 0.09, 0.15, 0.03, 0.09, 0.15, 0.08, 0.08, 0.015, 0.025)  # later
TIDES = ((12.4206, 1.0), (12.0, 0.45), (23.9345, 0.5), (25.8193, 0.35))  # M2, S2, K1, O1: period in hours, amplitude

SYLLABLES = tuple(c + v for c in "bdfghjklmnprstvz" for v in "aeiou")
PLACES = ("Bank", "Point", "Bay", "Reef", "Strait", "Shoal", "Cape", "Sound", "Rock", "Channel", "Head", "Deep")


def station_name(rng, held_out):
    """A made-up name; a hash puts a quarter of all names into the held-out set."""
    while True:
        name = "".join(SYLLABLES[i] for i in rng.integers(len(SYLLABLES), size=rng.integers(2, 4))).capitalize()
        if (zlib.crc32(name.encode()) % 4 == 0) == held_out:
            return f"{name} {PLACES[rng.integers(len(PLACES))]}"


def simulate(rng, rows, step, start):
    """Readings in SI units before faults, [rows, 8]; step and start in minutes."""
    t = (start + step * np.arange(rows)) / 60.0  # hours
    span = max(t[-1] - t[0], 3.0)

    # Storm: a Gaussian pressure dip; wind from the pressure tendency and depth (gradient wind, linearised).
    depth = rng.choice([0.0, 0.3, 1.0], p=[0.3, 0.3, 0.4]) * rng.uniform(8, 45)
    centre, width = t[0] + span * rng.uniform(-0.1, 1.2), span * rng.uniform(0.15, 0.6)
    dip = np.exp(-0.5 * ((t - centre) / width) ** 2)
    tide_of_air = 1.0 * np.cos(2 * np.pi * (t - 10) / 12)  # semidiurnal pressure tide
    baro = rng.uniform(1000, 1030) - depth * dip + tide_of_air + rng.normal(0, 0.25, rows)

    gust = np.zeros(rows)  # AR(1) turbulence
    noise = rng.normal(0, 1, rows)
    for i in range(rows):
        gust[i] = 0.7 * gust[i - 1] + noise[i] if i else noise[i]
    wind = rng.uniform(3, 10) + 0.45 * depth * dip + rng.uniform(0.3, 1.1) * gust + rng.normal(0, 0.3, rows)
    wind = np.clip(wind, 0.2, 39)

    # Waves: relax to the fully developed sea of Pierson and Moskowitz, Hs = 0.21 U^2 / g, on top of a swell.
    sea, now = np.zeros(rows), 0.21 * wind[0] ** 2 / 9.81
    relax = 1 - np.exp(-step / 60.0 / rng.uniform(2, 6))
    for i in range(rows):
        now += relax * (min(0.21 * wind[i] ** 2 / 9.81, 14.0) - now)
        sea[i] = now
    swell = rng.uniform(0.3, 1.8)
    hs = np.clip(np.hypot(0.8 * sea, swell) * (1 + rng.normal(0, 0.06, rows)), 0.1, 18)
    # Period: wind sea at constant steepness (Hs = s g T^2 / 2 pi, s = 1/25), blended with the swell's period.
    share = sea**2 / (sea**2 + swell**2)
    tp = share * np.sqrt(25 * 2 * np.pi * hs / 9.81) + (1 - share) * rng.uniform(6, 14) + rng.normal(0, 0.35, rows)
    tp = np.clip(tp, 1.5, 20)

    # Diurnal cycle, warmest at 14 h; a front cools the air as the storm passes.
    front = 1 / (1 + np.exp(-(t - centre) / (0.1 * width + 0.05)))
    day = np.cos(2 * np.pi * (t - 14) / 24)
    base = rng.uniform(6, 28)
    air = base + rng.uniform(0.5, 5) * day - 0.12 * depth * front + rng.normal(0, 0.25, rows)
    air = np.clip(air, 0.2, 37)
    sst = np.clip(base + rng.uniform(-3, 3), 3, 31) + 0.4 * day - 0.03 * depth * front * dip + rng.normal(0, 0.06, rows)

    # The buoy swings on its mooring with the tidal stream (harmonic constituents) and leans with the wind.
    stream = sum(a * np.cos(2 * np.pi * t / p + rng.uniform(0, 2 * np.pi)) for p, a in TIDES)
    pos = rng.uniform(20, 60) + rng.uniform(10, 35) * np.abs(stream) + 2 * wind + rng.normal(0, 3, rows)
    pos = np.clip(pos, 1, 400)

    # Battery: charged by the sun's height, drained at a constant rate.
    sun = np.clip(np.sin(2 * np.pi * (t - 6) / 24), 0, None)
    charge = np.cumsum(sun * rng.uniform(0.05, 0.25) - 0.05) * step / 60.0
    bat = np.clip(rng.uniform(11.4, 13.2) + charge + rng.normal(0, 0.05, rows), 9.5, 14.6)
    return np.stack([pos, hs, tp, wind, sst, air, baro, bat], axis=1)


@dataclasses.dataclass
class Window:
    station: str
    header: str
    times: list  # "hh:mm" per reading
    values: np.ndarray  # [rows, 8] integers
    units: tuple  # per channel
    limits: dict  # channel -> (sense, limit)
    faults: list  # (what, channel, first row, last row)

    def text(self):
        lines = [self.header]
        for time, row in zip(self.times, self.values.tolist()):
            lines.append(time + "".join(f" {KEYS[c]}{padded(c, v)}" for c, v in enumerate(row)))
        return "\n".join(lines)


def padded(c, v):
    if v == MISSING:
        return "--"
    return f"{v:03d}" if c == POS else f"{v // 10:0{WIDTH[c]}d}.{v % 10}"


def plain(c, v):
    return str(v) if c == POS else f"{v // 10}.{v % 10}"


def runs(flags):
    """First and last index of every run of true values."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], flags.astype(np.int8), [0]])))
    return list(zip(edges[::2].tolist(), (edges[1::2] - 1).tolist()))


def make_window(rng, rows, held_out):
    rows = int(rows)
    step = int(rng.choice([s for s in (10, 15, 20, 30, 60) if s * rows <= 24 * 60]))
    start = int(rng.integers(0, 1440 // step)) * step
    x = simulate(rng, rows, step, start)

    feet, knots, fahrenheit = rng.random(3) < (0.2, 0.3, 0.2)
    units = ("m", "ft" if feet else "m", "s", "kn" if knots else "m/s", *["°F" if fahrenheit else "°C"] * 2, "hPa", "V")
    if feet:
        x[:, HS] /= 0.3048
    if knots:
        x[:, WIND] /= 0.514444
    if fahrenheit:
        x[:, [SST, AIR]] = x[:, [SST, AIR]] * 1.8 + 32

    # Training sees more stuck sensors than the held-out set, and long ones among them, which are easier to notice.
    shares = [0.3, 0.2, 0.2, 0.1, 0.2] if held_out else [0.2, 0.4, 0.15, 0.1, 0.15]
    fault = rng.choice(["", "stuck", "spike", "drift", "unit"], p=shares)
    channel = None
    if fault == "stuck":
        channel, at = int(rng.choice([HS, TP, WIND, AIR, BARO])), int(rng.integers(min(3, rows - 9), rows - 8))
        length = int(rng.integers(8, 17))
        if not held_out and rng.random() < 0.5:
            length = int(rng.integers(8, rows))
        x[at : at + length, channel] = x[at, channel]
    elif fault == "spike":
        channel, at = int(rng.integers(8)), int(rng.integers(1, rows - 1))
        spikes = {POS: (0, 999), HS: (0, 65), TP: (0, 60), WIND: (99.9,), SST: (0, 99.9), AIR: (0, 99.9)}
        x[at, channel] = rng.choice(spikes.get(channel, {BARO: (800, 1100), BAT: (0, 24)}.get(channel)))
    elif fault == "drift":
        channel, at = SST, int(rng.integers(min(3, rows - 9), rows - 8))
        steady = np.round(x[at - 1, SST] * 10) / 10
        x[at:, SST] = steady + rng.choice([0.4, 0.5]) * np.arange(1, rows - at + 1)
        x[:, SST] = np.minimum(x[:, SST], 99.9)
    elif fault == "unit":
        channel, at = int(rng.choice([HS, AIR])), int(rng.integers(4, rows - 4))
        part = x[at:, channel]
        if channel == HS:
            x[at:, HS] = part * 0.3048 if feet else part / 0.3048
        else:
            x[at:, AIR] = np.maximum((part - 32) / 1.8, 0) if fahrenheit else part * 1.8 + 32

    scale = np.where(np.arange(8) == POS, 1, 10)
    values = np.clip(np.round(x * scale), 0, [999, 999, 999, 999, 999, 999, 19999, 999]).astype(np.int64)
    faults = []
    if fault == "stuck":  # as printed, the run may begin earlier or end later than the sensor did
        same = np.flatnonzero(np.diff(values[:, channel]) != 0)
        first = int(same[same < at].max() + 1) if (same < at).any() else 0
        after = same[same >= at]
        faults.append((fault, channel, first, int(after.min()) if len(after) else rows - 1))
    elif fault:
        faults.append((fault, channel, at, at if fault == "spike" else rows - 1))
    if rng.random() < 0.4:
        c = int(rng.choice([c for c in range(8) if c != channel]))
        n = int(rng.integers(1, 5))
        at = int(rng.integers(0, rows - n + 1))
        values[at : at + n, c] = MISSING
        faults.append(("gap", c, at, at + n - 1))

    limits = {}
    for c, sense, grid in LIMITED:
        seen = np.sort(values[:, c][values[:, c] != MISSING])
        k = int(min(rng.geometric(0.25 if held_out else 0.12) - 1, len(seen) - 1))  # training counts further
        if sense == ">=":
            broken = seen[-1 - k] // grid * grid
            limit = broken if rng.random() < 0.42 and broken > 0 else (seen[-1] // grid + rng.integers(1, 6)) * grid
            limit = min(int(limit), 999)
        else:
            broken = (seen[k] // grid + 1) * grid
            limit = int(broken if rng.random() < 0.42 else max(seen[0] // grid - rng.integers(0, 6), 0) * grid)
        limits[c] = (sense, limit)

    times = [f"{m // 60 % 24:02d}:{m % 60:02d}" for m in range(start, start + rows * step, step)]
    name = station_name(rng, held_out)
    lat, lon = rng.uniform(0, 66), rng.uniform(0, 180)
    place = f"{lat:.2f}{'NS'[rng.integers(2)]} {lon:.2f}{'EW'[rng.integers(2)]}"
    date = f"{rng.integers(2015, 2035)}-{rng.integers(1, 13):02d}-{rng.integers(1, 29):02d}"
    kind = ("Buoy", "Station")[rng.integers(2)]
    header = (
        f"{kind} {name}, {place}, {date}, {rows} readings every {step} min\n"
        f"units {' '.join(f'{k} {u}' for k, u in zip(KEYS, units))}\n"
        f"limits {' '.join(f'{KEYS[c]}{s}{padded(c, v)}' for c, (s, v) in limits.items())}"
    )
    return Window(name, header, times, values, units, limits, faults)


class Asker:
    """Asks questions about one window (or none) in one language at a time."""

    def __init__(self, rng, window, held_out, loose=False):
        self.rng, self.w, self.held_out, self.loose = rng, window, held_out, loose

    def pick(self, items):
        return items[self.rng.integers(len(items))]

    def phrase(self, items):
        """A phrasing. Training never sees the last quarter of a list; the held-out set draws from all of it."""
        count = len(items) if self.held_out else len(items) - len(items) // 4
        further = () if self.held_out else FURTHER.get(items, ())
        if further and self.rng.random() < len(further) / (count + len(further)):
            template = self.pick(further)
            return self.loosen(template) if self.loose and self.rng.random() < 0.35 else template
        index = int(self.rng.integers(count))
        self.unseen |= index >= len(items) - len(items) // 4
        return self.loosen(items[index]) if self.loose and self.rng.random() < 0.35 else items[index]

    def loosen(self, template):
        """Other order, other case: the words shall count, not their places."""
        words = template.rstrip("?.!。").split(" ")
        if self.rng.random() < 0.5:
            words = [words[i] for i in self.rng.permutation(len(words))]
        text = " ".join(words)
        return text.lower() if self.rng.random() < 0.6 else text

    def ask(self, kind, language):
        """Returns (question, answer)."""
        self.unseen = False
        self.language, self.say = language, ANSWERS[language]
        question, answer = getattr(self, kind)()
        if kind not in ("json",):
            question = self.dress(question)
        return question, answer

    def dress(self, question):
        """An opening, now and then; in training also lost words and lost punctuation, as people type."""
        opener = self.pick(OPENERS[self.language])
        if not self.held_out and self.rng.random() < 0.25:
            words = question.split(" ")
            short = [i for i, w in enumerate(words) if 1 < len(w) <= 4 and w.isalpha() and w not in ("max", "min")]
            kana = [i for i, letter in enumerate(question) if "ぁ" <= letter <= "ん"]
            if len(short) > 1:
                del words[self.pick(short)]
                question = " ".join(words)
            elif len(kana) > 3:
                i = self.pick(kana)
                question = question[:i] + question[i + 1 :]
            if self.rng.random() < 0.5:
                question = question.rstrip(" ?.?。")
        return opener + question if opener else question[:1].upper() + question[1:]

    def name(self, c):
        return CHANNELS[self.language][c]

    def fill(self, template, c=None, **slots):
        if c is not None:
            name = self.name(c)
            slots |= {"c": name, "C": name[:1].upper() + name[1:]}
        return template.format(**slots)

    def measure(self, c, v):
        return f"{plain(c, int(v))} {self.w.units[c]}"

    def valid(self, c):
        return np.flatnonzero(self.w.values[:, c] != MISSING)

    # One method per kind. Each returns (question, answer).

    def value(self):
        c, row = int(self.rng.integers(8)), int(self.rng.integers(len(self.w.times)))
        gaps = [f for f in self.w.faults if f[0] == "gap"]
        if gaps and self.rng.random() < 0.15:
            c, row = gaps[0][1], gaps[0][2]
        time, v = self.w.times[row], self.w.values[row, c]
        said = self.say["missing"] if v == MISSING else self.measure(c, v)
        question = self.fill(self.phrase(QUESTIONS["value"][self.language]), c, t=time)
        return question, self.fill(self.say["value"], c, t=time, v=said)

    def find_last(self):
        c = int(self.rng.integers(8))
        row = int(self.valid(c)[-1])
        return c, row, self.w.values[row, c]

    def last(self):
        c, row, v = self.find_last()
        question = self.fill(self.phrase(QUESTIONS["last"][self.language]), c)
        return question, self.fill(self.say["last"], c, v=self.measure(c, v), t=self.w.times[row])

    def find_extreme(self, kind, c=None):
        c = int(self.rng.integers(8)) if c is None else c
        rows = self.valid(c)
        seen = self.w.values[rows, c]
        row = int(rows[np.argmax(seen) if kind == "max" else np.argmin(seen)])  # the first of equals
        return c, row, self.w.values[row, c]

    def extreme(self, kind):
        c, row, v = self.find_extreme(kind)
        question = self.fill(self.phrase(QUESTIONS[kind][self.language]), c)
        return question, self.fill(self.say[kind], c, v=self.measure(c, v), t=self.w.times[row])

    def max(self):
        return self.extreme("max")

    def min(self):
        return self.extreme("min")

    def first(self):
        """First reading at or beyond a threshold; thresholds are drawn so that every record is equally likely."""
        for _ in range(6):
            up = bool(self.rng.random() < 0.5)
            c = int(self.pick([POS, HS, TP, WIND, SST, AIR] if up else [HS, TP, WIND, SST, AIR, BARO, BAT]))
            rows, grid = self.valid(c), GRID[c]
            seen = self.w.values[rows, c]
            # In grid cells: at or above Y means cell >= Y / grid; below Y means cell < Y / grid.
            cells = seen // grid if up else -(seen // grid)
            records = np.maximum.accumulate(cells)
            jumps = np.flatnonzero(np.diff(records)) + 1
            if len(jumps):
                break
        draw = self.rng.random()
        if draw < 0.12 or not len(jumps):
            level, row = records[-1] + int(self.rng.integers(1, 4)), None
        elif draw < 0.2:
            level, row = cells[0] - int(self.rng.integers(0, 3)), int(rows[0])
        else:
            j = int(self.pick(jumps))
            level, row = int(self.rng.integers(records[j - 1] + 1, records[j] + 1)), int(rows[j])
        y = int((level if up else 1 - level) * grid)
        if y <= 0:
            return self.first()
        shown = plain(c, y).removesuffix(".0") + " " + self.w.units[c]
        question = self.phrase(QUESTIONS["first_up" if up else "first_down"][self.language])
        bound = f"{'≥' if up else '<'} {shown}"
        if row is None:
            return self.fill(question, c, y=shown), self.fill(self.say["never"], c, y=bound)
        return self.fill(question, c, y=shown), self.fill(self.say["first"], c, y=bound, t=self.w.times[row])

    def beyond(self, c):
        sense, limit = self.w.limits[c]
        v = self.w.values[:, c]
        return (v != MISSING) & ((v >= limit) if sense == ">=" else (v < limit))

    def count(self):
        if self.rng.random() < 0.25:
            question = self.phrase(QUESTIONS["count_missing"][self.language])
            return question, self.say["count_missing"].format(n=int((self.w.values == MISSING).sum()))
        counts = {c: int(self.beyond(c).sum()) for c in self.w.limits}
        some = [c for c, n in counts.items() if n]
        c = int(self.pick(some) if some and self.rng.random() < 0.8 else self.pick(list(counts)))
        sense, limit = self.w.limits[c]
        y = f"{'≥' if sense == '>=' else '<'} {plain(c, limit)} {self.w.units[c]}"
        question = self.fill(self.phrase(QUESTIONS["count_limit"][self.language]), c)
        return question, self.fill(self.say["count"], c, y=y, n=counts[c])

    def change(self, c):
        rows = self.valid(c)
        a, b = (int(self.w.values[r, c]) for r in (rows[0], rows[-1]))
        word = "rising" if b > a else "falling" if b < a else "steady"
        return f"{plain(c, a)} → {plain(c, b)} {self.w.units[c]}", self.say[word]

    def trend(self):
        c = int(self.rng.integers(8))
        v, w = self.change(c)
        return self.fill(self.phrase(QUESTIONS["trend"][self.language]), c), self.fill(self.say["trend"], c, v=v, w=w)

    def alarm_starts(self):
        """Channels that were beyond their limit, each with the time of the first such reading."""
        rows = {c: np.flatnonzero(self.beyond(c)) for c in self.w.limits}
        return [(c, self.w.times[r[0]]) for c, r in rows.items() if len(r)]

    def listing(self, items, some, none):
        mark = "、" if self.language == "ja" else "; "
        return self.say[some].format(l=mark.join(items)) if items else self.say[none]

    def alarms(self):
        items = [self.fill(self.say["alarm"], c, t=t) for c, t in self.alarm_starts()]
        return self.phrase(QUESTIONS["alarms"][self.language]), self.listing(items, "alarms", "no_alarms")

    def fault(self):
        items = []
        for what, c, first, last in self.w.faults:
            key = "gap1" if what == "gap" and first == last else what
            items.append(self.fill(self.say[key], c, t=self.w.times[first], u=self.w.times[last]))
        return self.phrase(QUESTIONS["fault"][self.language]), self.listing(items, "faults", "no_faults")

    def summary(self):
        w = self.w
        _, _, a = self.find_extreme("max", WIND)
        _, _, b = self.find_extreme("max", HS)
        p, word = self.change(BARO)
        answer = self.say["summary"].format(
            s=w.station, n=len(w.times), t=w.times[0], u=w.times[-1], a=self.measure(WIND, a), b=self.measure(HS, b),
            p=p, w=word, i=len(self.alarm_starts()), j=len(w.faults),
        )  # fmt: skip
        return self.phrase(QUESTIONS["summary"][self.language]), answer

    def json(self):
        kind = self.pick(("last", "max", "min", "alarms", "fault", "summary"))
        slot = None
        w = self.w
        if kind in ("last", "max", "min"):
            slot, row, v = self.find_last() if kind == "last" else self.find_extreme(kind)
            out = {"channel": KEYS[slot], kind: json_number(slot, v), "unit": w.units[slot], "time": w.times[row]}
        elif kind == "alarms":
            out = [{"channel": KEYS[c], "from": t} for c, t in self.alarm_starts()]
        elif kind == "fault":
            out = [
                {"channel": KEYS[c], "fault": what, "from": w.times[i], "to": w.times[j]} for what, c, i, j in w.faults
            ]
        else:
            out = {"station": w.station, "from": w.times[0], "to": w.times[-1], "readings": len(w.times)}
            out |= {"max_wind": json_number(WIND, self.find_extreme("max", WIND)[2])}
            out |= {"max_hs": json_number(HS, self.find_extreme("max", HS)[2]), "alarms": len(self.alarm_starts())}
            out |= {"faults": len(w.faults)}
        question = self.dress(self.fill(self.phrase(QUESTIONS[kind][self.language]), slot))
        gap = "" if self.language == "ja" else " "
        return question + gap + self.phrase(QUESTIONS["json"][self.language]), json.dumps(out, ensure_ascii=False)

    def fixed(self, topics):
        phrasings, answer = topics[self.pick(list(topics))][self.language]
        return self.phrase(phrasings), answer

    def self(self):
        return self.fixed(SELF)

    def scope(self):
        draw = self.rng.random()
        if draw < 0.2:
            if not self.w or self.rng.random() < 0.4:
                return self.fixed(SCOPE) if self.w else self.without_window()
            x = self.pick(UNMEASURED[self.language])
            question = self.phrase(QUESTIONS["unmeasured"][self.language]).format(x=x)
            return question, self.say["unmeasured"].format(x=x)
        if draw < 0.4:
            return self.outside() if self.w else self.without_window()
        return self.fixed(SCOPE)

    def outside(self):
        """A time that has no reading."""
        c, time = int(self.rng.integers(8)), self.w.times[0]
        while time in self.w.times:
            time = f"{self.rng.integers(24):02d}:{self.rng.integers(12) * 5:02d}"
        question = self.fill(self.phrase(QUESTIONS["value"][self.language]), c, t=time)
        return question, self.say["outside"].format(q=time, t=self.w.times[0], u=self.w.times[-1])

    def without_window(self):
        kind = self.pick(("last", "max", "min", "trend", "alarms", "fault", "summary"))
        question = self.fill(self.phrase(QUESTIONS[kind][self.language]), int(self.rng.integers(8)))
        return question, self.say["no_window"]


def json_number(c, v):
    return int(v) if c == POS else int(v) / 10


SYSTEMS = ("", "", "You read buoy telemetry.", "You are proa-buoy.", "Answer questions about the readings.")


def conversation(rng, rows, turns, held_out=False, kinds=None, language=None, before=None, late=False):
    """A system text and turns of (kind, language, question, answer, unseen phrasing); the window is where it belongs.

    `turns` is a number of questions about the window. `before`: questions asked before there is a window. `late`: the
    mix and the loose phrasings of the second half of training.
    """
    window = make_window(rng, rows, held_out)
    main = language or LANGUAGES[rng.integers(6)]
    system, out = SYSTEMS[rng.integers(len(SYSTEMS))], []
    in_system = rng.random() < 0.2
    if before is None:
        before = int(rng.integers(1, 5)) if rng.random() < 0.12 and not in_system else 0
    mix = MIX_LATE if late else MIX
    asker = Asker(rng, None, held_out, late)
    for _ in range(before):
        kind = ("self", "scope")[rng.integers(2)]
        out.append((kind, main, *asker.ask(kind, main), asker.unseen))
    asker = Asker(rng, window, held_out, late)
    if in_system:
        system = f"{system}\n\n{window.text()}" if system else window.text()
    for i in range(turns):
        kind = kinds[i] if kinds else KINDS[rng.choice(len(KINDS), p=mix)]
        tongue = main if language or rng.random() < 0.85 else LANGUAGES[rng.integers(6)]
        question, answer = asker.ask(kind, tongue)
        if i == 0 and not in_system:
            question = f"{window.text()}\n\n{question}"
        out.append((kind, tongue, question, answer, asker.unseen))
    return system, out


def pieces(system, turns):
    """The rendered conversation in pieces: (text, kind or None, language); pieces with a kind are answers."""
    text = f"<|im_start|>system\n{system}<|im_end|>\n"
    for kind, language, question, answer, _ in turns:
        yield f"{text}<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n<think></think>", None, None
        yield f"{answer}<|im_end|>", kind, language
        text = "\n"


if __name__ == "__main__":
    import sys

    rng = np.random.default_rng(int(sys.argv[1]) if len(sys.argv) > 1 else 0)
    for text, _, _ in pieces(*conversation(rng, 24, 14)):
        print(text, end="")
    print()
