#!/usr/bin/env python3
"""`proa serve` at more than it can take, with clients that vanish, stall, send garbage and come back.

  tools/serve_soak.py PROA MODEL SECONDS [CLIENTS] [FLAGS OF proa serve...]
                       CLIENTS: default 24, twice what a server of 4 sequences and a queue of 8 takes

Prints a line a minute; at the end how many requests ended how, the slope of the server's memory after the first quarter, p99
of /health, how many answers a greedy request had that was asked again and again, and how it ended. Exit status 1 if a
request got neither an answer nor an error, memory grew by more than 1 MB a minute, p99 of /health was above 100 ms, or
anything was left running or open after the last client.
"""
import collections
import http.client
import json
import os
import random
import re
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request

# Seconds a client waits for a byte. A server that lost a request is found after them, one on a busy machine is not.
PATIENCE = 900

BODY = {"messages": [{"role": "user", "content": "Who are you?"}], "max_tokens": 200, "ignore_eos": True, "temperature": 1}


class Soak:
    def __init__(self, port, seconds):
        self.port, self.end = port, time.monotonic() + seconds
        self.outcomes, self.lock = collections.Counter(), threading.Lock()
        self.lost = []
        self.answers = collections.Counter()  # to the same greedy question

    def count(self, what):
        with self.lock:
            self.outcomes[what] += 1

    def request(self, body):
        data = json.dumps(body).encode()
        return (b"POST /v1/chat/completions HTTP/1.1\r\nHost: t\r\nContent-Type: application/json\r\n"
                b"Content-Length: %d\r\n\r\n" % len(data)) + data

    def connect(self):
        return socket.create_connection(("127.0.0.1", self.port), timeout=PATIENCE)

    def good(self, rng):
        stream = rng.random() < 0.5
        body = {**BODY, "max_tokens": rng.randrange(1, 300), "stream": stream, "n": rng.choice([1, 1, 1, 2])}
        if rng.random() < 0.2:
            body["messages"] = [{"role": "user", "content": "x " * rng.randrange(1, 400)}]
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE)
        connection.request("POST", "/v1/chat/completions", json.dumps(body), {"Content-Type": "application/json"})
        response = connection.getresponse()
        text = response.read().decode()
        connection.close()
        complete = text.endswith("data: [DONE]\n\n") if stream and response.status == 200 else json.loads(text)
        if not complete:
            self.lost.append(text[-200:])
        self.count(f"good {response.status}")
        if response.status in (429, 503):
            time.sleep(0.05)

    def canary(self, rng):
        body = {**BODY, "temperature": 0, "max_tokens": 24, "ignore_eos": False}
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE)
        connection.request("POST", "/v1/chat/completions", json.dumps(body), {"Content-Type": "application/json"})
        response = connection.getresponse()
        answer = json.loads(response.read())
        connection.close()
        if response.status == 200:
            with self.lock:
                self.answers[answer["choices"][0]["message"]["content"]] += 1
        self.count(f"canary {response.status}")

    def dawdle(self, rng):
        """A byte of a header now and then, or the body's end never."""
        with self.connect() as client:
            request = self.request(BODY)
            for byte in request[:rng.randrange(4, 40)]:
                client.sendall(bytes([byte]))
                time.sleep(rng.random() * 0.05)
            if rng.random() < 0.5:
                client.sendall(request[40:-3])
                client.shutdown(socket.SHUT_WR)
                while client.recv(65536):
                    pass
        self.count("dawdled")

    def vanish(self, rng):
        with self.connect() as client:
            client.sendall(self.request({**BODY, "stream": True})[:rng.choice([10, 200, 10**6])])
            if rng.random() < 0.5:
                client.recv(rng.randrange(1, 2000))
        self.count("vanished")

    def stall(self, rng):
        with self.connect() as client:
            client.sendall(self.request({**BODY, "stream": True}))
            time.sleep(rng.random() * 2)
        self.count("stalled")

    def garbage(self, rng):
        with self.connect() as client:
            try:
                client.sendall(rng.randbytes(rng.randrange(1, 20000)))
                client.shutdown(socket.SHUT_WR)
                while client.recv(65536):
                    pass
            except OSError:
                pass  # closed by the server while it was sent
        self.count("garbage")

    def bad(self, rng):
        body = rng.choice([b"{", b"[" * 5000, b'{"messages":[]}', b'{"messages":[{"role":"user","content":"x"}],"n":-1}',
                           b'{"messages":[{"role":"user","content":"' + b"x" * 100000 + b'"}]}'])
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE)
        connection.request("POST", "/v1/chat/completions", body, {"Content-Type": "application/json"})
        self.count(f"bad {connection.getresponse().status}")
        connection.close()

    def client(self, seed):
        rng = random.Random(seed)
        while time.monotonic() < self.end:
            act = rng.choice([self.good] * 6 + [self.vanish, self.vanish, self.stall, self.garbage, self.bad, self.dawdle, self.canary])
            try:
                act(rng)
            except (OSError, http.client.HTTPException) as error:
                self.lost.append(f"{act.__name__}: {error!r}")


def rss(pid):
    return int(re.search(r"VmRSS:\s+(\d+) kB", open(f"/proc/{pid}/status").read()).group(1)) * 1024


def slope(samples):
    """Bytes a minute, by least squares."""
    mean_t = sum(t for t, _ in samples) / len(samples)
    mean_m = sum(m for _, m in samples) / len(samples)
    spread = sum((t - mean_t) ** 2 for t, _ in samples)
    return 60 * sum((t - mean_t) * (m - mean_m) for t, m in samples) / spread if spread else 0.0


def left_open(port):
    """What the server still has: (running, waiting) after at most ten seconds."""
    for _ in range(100):
        text = urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics").read().decode()
        left = [int(float(re.search(rf"^vllm:num_requests_{what}{{.*}} (\S+)$", text, re.M).group(1))) for what in ("running", "waiting")]
        if left == [0, 0]:
            break
        time.sleep(0.1)
    return left


def main():
    if len(sys.argv) < 4:
        sys.exit(__doc__)
    flags = sys.argv[4:]
    seconds, clients = float(sys.argv[3]), int(flags.pop(0)) if flags and flags[0].isdigit() else 24
    with tempfile.TemporaryDirectory() as folder, open(folder + "/log", "wb") as log:
        process = subprocess.Popen([sys.argv[1], "serve", sys.argv[2], "--host", "127.0.0.1", "--port", "0", "--max-num-seqs", "4",
                                    "--max-queue", "8", "--max-model-len", "1024", "--disable-uvicorn-access-log", *flags],
                                   stdout=subprocess.DEVNULL, stderr=log)
        while not (found := re.search(r"Uvicorn running on \S+:(\d+) ", open(folder + "/log").read())):
            if process.poll() is not None:
                sys.exit(open(folder + "/log").read())
            time.sleep(0.05)
        soak = Soak(int(found.group(1)), seconds)
        threads = [threading.Thread(target=soak.client, args=(seed,)) for seed in range(clients)]
        for thread in threads:
            thread.start()
        started, memory, health, minute = time.monotonic(), [], [], 0
        while time.monotonic() < soak.end:
            if time.monotonic() - started >= 60 * minute:
                print(f"minute {minute}: {rss(process.pid) / 1e6:.1f} MB, {sum(soak.outcomes.values())} requests, "
                      f"{len(os.listdir(f'/proc/{process.pid}/task'))} threads, {len(os.listdir(f'/proc/{process.pid}/fd'))} files, "
                      f"lost {len(soak.lost)}", flush=True)
                minute += 1
            began = time.monotonic()
            connection = http.client.HTTPConnection("127.0.0.1", soak.port, timeout=10)
            connection.request("GET", "/health")
            assert connection.getresponse().read() == b""
            connection.close()
            health.append(time.monotonic() - began)
            memory.append((time.monotonic() - started, rss(process.pid)))
            time.sleep(0.1)
        for thread in threads:
            thread.join()
        left = left_open(soak.port)
        process.send_signal(signal.SIGTERM)
        code = process.wait(timeout=60)
        print(*sorted(soak.outcomes.items()), sep="\n")
        growth = slope([(t, m) for t, m in memory if t > seconds / 4])
        p99 = sorted(health)[int(len(health) * 0.99)]
        print(f"memory {memory[0][1] / 1e6:.1f} to {memory[-1][1] / 1e6:.1f} MB, {growth / 1e6:+.3f} MB a minute; "
              f"/health p99 {p99 * 1e3:.1f} ms of {len(health)}; exit code {code}; lost {len(soak.lost)}; left running and waiting {left}; {len(soak.answers)} different answers to the same "
              f"greedy request in {sum(soak.answers.values())}", *soak.lost[:5], sep="\n")
        sys.exit(bool(code or soak.lost or growth > 1e6 or p99 > 0.1 or any(left)))


if __name__ == "__main__":
    main()
