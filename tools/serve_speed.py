#!/usr/bin/env python3
"""What HTTP costs: decode through `proa serve` beside `proa bench` at the same number of sequences, one after the other.

  tools/serve_speed.py PROA MODEL [--streams 1,8] [--output-len 256] [--rounds 3] [FLAGS OF BOTH COMMANDS...]
  tools/serve_speed.py PROA NVIDIA-Nemotron-3-Nano-30B-A3B --streams 1,8,32 --load-format dummy -q q4_0 --device cuda:0

Through HTTP: N streams at once, each of its own prompt; the tokens that come after every stream has had its first.
Prints tok/s of both, round by round, and the ratio of the medians; exit status 1 below 0.95.
"""
import argparse
import json
import re
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time


def bench(proa, model, flags, streams, output_len):
    with tempfile.NamedTemporaryFile(suffix=".json") as report:
        subprocess.run([proa, "bench", model, "--input-len", "8", "--output-len", str(output_len), "--batch-size",
                        ",".join(map(str, streams)), "--num-iters", "1", "--no-check", "--probe-seconds", "0", "--json-file",
                        report.name, *flags], check=True, capture_output=True)
        rows = json.load(open(report.name))["rows"]
    return {row["batch"]: row["batch"] * row["num_tokens"] / statistics.median(row["seconds"])
            for row in rows if row["what"] == "decode"}


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


def through_http(proa, model, flags, streams, output_len):
    speeds = {}
    with tempfile.TemporaryDirectory() as folder, open(folder + "/log", "wb") as log:
        process = subprocess.Popen([proa, "serve", model, "--host", "127.0.0.1", "--port", "0", "--max-model-len",
                                    str(output_len + 64), "--max-num-seqs", str(max(streams)), *flags],
                                   stdout=subprocess.DEVNULL, stderr=log)
        try:
            while not (found := re.search(r"Uvicorn running on \S+:(\d+) ", open(folder + "/log").read())):
                if process.poll() is not None:
                    sys.exit(open(folder + "/log").read())
                time.sleep(0.05)
            for count in [streams[0], *streams]:  # the first once more: it warms up
                times = [[] for _ in range(count)]
                threads = [threading.Thread(target=stream, args=(int(found.group(1)), i, output_len, times)) for i in range(count)]
                for thread in threads:
                    thread.start()
                for thread in threads:
                    thread.join()
                begin = max(min(when for when, events in one if events) for one in times)
                end = max(when for one in times for when, events in one if events)
                speeds[count] = sum(events for one in times for when, events in one if when > begin) / (end - begin)
        finally:
            process.terminate()
            process.wait(timeout=60)
    return speeds


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("proa")
    parser.add_argument("model")
    parser.add_argument("--streams", default="1,8", type=lambda text: [int(n) for n in text.split(",")])
    parser.add_argument("--output-len", default=256, type=int)
    parser.add_argument("--rounds", default=3, type=int)
    options, flags = parser.parse_known_args()
    arguments = (options.proa, options.model, flags, options.streams, options.output_len)
    rounds = [(bench(*arguments), through_http(*arguments)) for _ in range(options.rounds)]
    worst = 1.0
    for count in options.streams:
        alone = [inside[count] for inside, _ in rounds]
        served = [outside[count] for _, outside in rounds]
        ratio = statistics.median(served) / statistics.median(alone)
        worst = min(worst, ratio)
        print(f"{count:3} streams: bench {' '.join(f'{x:.0f}' for x in alone)}, HTTP {' '.join(f'{x:.0f}' for x in served)} tok/s, "
              f"ratio of the medians {ratio:.3f}")
    sys.exit(worst < 0.95)


if __name__ == "__main__":
    main()
