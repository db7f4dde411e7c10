#!/usr/bin/env python3
"""What HTTP costs: decode through `proa serve` beside `proa bench` at the same number of sequences, one after the other.

  tools/serve_speed.py PROA MODEL [--streams 1,8] [--output-len 128] [--rounds 1] [--limit 45] [FLAGS OF BOTH COMMANDS...]
  tools/serve_speed.py PROA NVIDIA-Nemotron-3-Nano-30B-A3B --streams 1,8,32 --load-format dummy -q q4_0 --device cuda:0

Through HTTP: N streams at once, each of its own prompt; the tokens that come after every stream has had its first. Each number
is printed when it is known, with the seconds since the start, the share of a step that the engine spends outside the
backend, and the processor time of all other threads beside the engine's. At the end tok/s of both, round by round, and the ratio of the medians; exit status 1 below 0.95, 2 when --limit
seconds are over (what is known by then is printed, and the end of the server's log).
"""
import argparse
import json
import os
import pathlib
import re
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request

STARTED = time.monotonic()
running = []  # processes


def say(text):
    print(f"{time.monotonic() - STARTED:6.1f} s  {text}", flush=True)


def bench(proa, model, flags, streams, output_len):
    with tempfile.NamedTemporaryFile(suffix=".json") as report:
        process = subprocess.Popen([proa, "bench", model, "--input-len", "8", "--output-len", str(output_len), "--batch-size",
                                    ",".join(map(str, streams)), "--num-iters", "1", "--no-check", "--probe-seconds", "0",
                                    "--json-file", report.name, *flags], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        running.append(process)
        _, errors = process.communicate()
        if process.returncode != 0:
            sys.exit(errors)
        rows = json.load(open(report.name))["rows"]
    speeds = {row["batch"]: row["batch"] * row["num_tokens"] / statistics.median(row["seconds"])
              for row in rows if row["what"] == "decode"}
    for count, speed in speeds.items():
        say(f"bench, batch {count}: {speed:.1f} tok/s")
    return speeds


def stream(port, index, output_len, times):
    body = json.dumps({"prompt": f"Number {index}:", "temperature": 0, "max_tokens": output_len, "ignore_eos": True,
                       "stream": True}).encode()
    with socket.create_connection(("127.0.0.1", port)) as client:
        client.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: t\r\nContent-Type: application/json\r\nConnection: close\r\n"
                       b"Content-Length: %d\r\n\r\n" % len(body) + body)
        parts = []
        while part := client.recv(1 << 16):
            parts.append((time.monotonic(), part))
    assert parts and b"[DONE]" in parts[-1][1] + parts[-2][1], parts[-1:]
    times[index] = [(when, part.count(b"finish_reason")) for when, part in parts]  # one in each token's event


def step_seconds(port):
    """Seconds of all steps so far: (host, device)."""
    text = urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics").read().decode()
    return [float(re.search(rf"^proa:step_{part}_seconds_sum\S* (\S+)$", text, re.M).group(1)) for part in ("host", "device")]


def thread_seconds(pid):
    """Processor time of each thread so far, by its number."""
    tasks = pathlib.Path(f"/proc/{pid}/task")
    return {task.name: int((task / "schedstat").read_text().split()[0]) / 1e9 for task in tasks.iterdir()}


def through_http(proa, model, flags, streams, output_len, log):
    speeds = {}
    process = subprocess.Popen([proa, "serve", model, "--host", "127.0.0.1", "--port", "0", "--max-model-len",
                                str(output_len + 64), "--max-num-seqs", str(max(streams)), *flags],
                               stdout=subprocess.DEVNULL, stderr=open(log, "wb"))
    running.append(process)
    try:
        while not (found := re.search(r"Uvicorn running on \S+:(\d+) ", open(log).read())):
            if process.poll() is not None:
                sys.exit(open(log).read())
            time.sleep(0.05)
        port = int(found.group(1))
        say("the server is ready")
        for position, count in enumerate([streams[0], *streams]):  # the first once more: it warms up
            times = [[] for _ in range(count)]
            before, busy_before = step_seconds(port), thread_seconds(process.pid)
            threads = [threading.Thread(target=stream, args=(port, i, output_len, times)) for i in range(count)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            # The engine's thread, and what HTTP takes beside it: other than the speeds these hold on a busy machine too.
            engine, *others = sorted((seconds - busy_before.get(thread, 0) for thread, seconds in thread_seconds(process.pid).items()),
                                     reverse=True)
            host, device = (after - early for after, early in zip(step_seconds(port), before))
            begin = max(min(when for when, events in one if events) for one in times)
            end = max(when for one in times for when, events in one if events)
            speeds[count] = sum(events for one in times for when, events in one if when > begin) / (end - begin)
            if position > 0:
                say(f"HTTP, {count} streams: {speeds[count]:.1f} tok/s, {100 * host / (host + device):.2f} % of a step on the host, "
                    f"all other threads {100 * sum(others) / engine:.2f} % of the engine's processor time")
    finally:
        process.terminate()
        process.wait(timeout=60)
    return speeds


def summary(streams, rounds):
    worst = 1.0
    for count in streams:
        alone = [inside[count] for inside, outside in rounds if count in inside and count in outside]
        served = [outside[count] for inside, outside in rounds if count in inside and count in outside]
        if not alone:
            continue
        ratio = statistics.median(served) / statistics.median(alone)
        worst = min(worst, ratio)
        print(f"{count:3} streams: bench {' '.join(f'{x:.0f}' for x in alone)}, HTTP {' '.join(f'{x:.0f}' for x in served)} tok/s, "
              f"ratio of the medians {ratio:.3f}", flush=True)
    return worst


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("proa")
    parser.add_argument("model")
    parser.add_argument("--streams", default="1,8", type=lambda text: [int(n) for n in text.split(",")])
    parser.add_argument("--output-len", default=128, type=int)
    parser.add_argument("--rounds", default=1, type=int)
    parser.add_argument("--limit", default=0, type=float, help="seconds for all of it; 0: none")
    options, flags = parser.parse_known_args()
    rounds = []

    def give_up():
        say(f"given up after {options.limit:.0f} s; the server said:\n" + (open(log).read()[-2000:] if os.path.exists(log) else ""))
        summary(options.streams, rounds)
        for process in running:
            process.kill()
        os._exit(2)

    with tempfile.TemporaryDirectory() as folder:
        log = folder + "/log"
        timer = threading.Timer(options.limit, give_up)
        timer.daemon = True
        if options.limit:
            timer.start()
        for _ in range(options.rounds):
            served = through_http(options.proa, options.model, flags, options.streams, options.output_len, log)
            rounds.append((bench(options.proa, options.model, flags, options.streams, options.output_len), served))
        timer.cancel()
    sys.exit(summary(options.streams, rounds) < 0.95)


if __name__ == "__main__":
    main()
