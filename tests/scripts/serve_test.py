"""`proa serve` from the outside: its command line, its log, its clients and its end.

PROA_BINARY names the program (default build/release/apps/proa). The model is models/proa-buoy, a small Nemotron-H.
"""
import concurrent.futures
import http.client
import json
import os
import pathlib
import re
import resource
import shutil
import signal
import socket
import ssl
import subprocess
import tempfile
import time
import unittest

ROOT = pathlib.Path(__file__).resolve().parents[2]
PROA = os.environ.get("PROA_BINARY", str(ROOT / "build/release/apps/proa"))
MODEL = str(ROOT / "models/proa-buoy")
TIMEOUT_S = 60
CHAT = "/v1/chat/completions"
HELLO = {"messages": [{"role": "user", "content": "Hello"}], "temperature": 0, "max_tokens": 8}
LONG = {**HELLO, "ignore_eos": True, "max_tokens": 900}


def setUpModule():
    if not os.access(PROA, os.X_OK):
        raise AssertionError(f"{PROA} is not there: build it, or set PROA_BINARY")


class UnixConnection(http.client.HTTPConnection):
    def __init__(self, path):
        super().__init__("localhost", timeout=TIMEOUT_S)
        self.path = path

    def connect(self):
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.connect(self.path)


class Served:
    """A server on a port of its own, ready when entered; its output is in `stdout` and `stderr` after stop()."""

    def __init__(self, *arguments, model=MODEL, env=None):
        self.command = [PROA, "serve", model, "--host", "127.0.0.1", "--port", "0", "--max-model-len", "1024", *arguments]
        self.env = {**os.environ, **(env or {})}

    def __enter__(self):
        self.folder = tempfile.TemporaryDirectory()
        out = open(self.folder.name + "/out", "wb")
        err = open(self.folder.name + "/err", "wb")
        self.process = subprocess.Popen(self.command, stdin=subprocess.DEVNULL, stdout=out, stderr=err, env=self.env)
        out.close(), err.close()
        deadline = time.monotonic() + TIMEOUT_S
        while not (found := re.search(r"Uvicorn running on (\S+) \(Press CTRL\+C to quit\)", self.read("err"))):
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise AssertionError(f"{self.command}: {self.process.poll()}\n{self.read('err')}")
            time.sleep(0.01)
        self.address = found.group(1)
        self.port = int(self.address.rsplit(":", 1)[1]) if "unix" not in self.address else 0
        return self

    def __exit__(self, *_):
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        self.folder.cleanup()

    def read(self, name):
        return pathlib.Path(self.folder.name, name).read_text(errors="replace")

    def stop(self):
        self.process.send_signal(signal.SIGTERM)
        code = self.process.wait(timeout=TIMEOUT_S)
        self.stdout, self.stderr = self.read("out"), self.read("err")
        return code

    def connection(self):
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=TIMEOUT_S)

    def request(self, method, path, body=None, headers=None, connection=None):
        own = connection is None
        connection = connection or self.connection()
        data = None if body is None else body if isinstance(body, bytes) else json.dumps(body).encode()
        connection.request(method, path, data, {"Content-Type": "application/json", **(headers or {})})
        response = connection.getresponse()
        answer = response.status, response.read().decode()
        if own:
            connection.close()
        return answer

    def chat(self, body, **more):
        status, text = self.request("POST", CHAT, body, **more)
        return status, json.loads(text)


def events(text):
    lines = [line for line in text.split("\n\n") if line]
    assert lines[-1] == "data: [DONE]", lines[-1]
    return [json.loads(line.removeprefix("data: ")) for line in lines[:-1]]


class CommandLine(unittest.TestCase):
    """Arguments are read before the model is looked for: what fails only for the model was understood."""

    def run_serve(self, *arguments, env=None):
        return subprocess.run([PROA, "serve", *arguments], capture_output=True, text=True, timeout=TIMEOUT_S,
                              env={**os.environ, **(env or {})})

    def understood(self, *arguments, warns=()):
        done = self.run_serve(*arguments)
        self.assertEqual(done.returncode, 1, f"{arguments}: {done.stderr}")
        error = [line for line in done.stderr.splitlines() if line.startswith("proa: ")]
        self.assertEqual(len(error), 1, done.stderr)
        self.assertIn("/nowhere/model", error[0])
        for word in warns:
            self.assertIn(word, done.stderr)

    def refused(self, *arguments, says):
        done = self.run_serve(*arguments)
        self.assertEqual(done.returncode, 2, f"{arguments}: {done.stderr}")
        self.assertEqual(len(done.stderr.splitlines()), 1, done.stderr)
        self.assertIn(says, done.stderr)

    def test_what_others_start_vllm_with(self):
        model = "/nowhere/model"
        template = ["--model", model, "--host", "0.0.0.0", "--port", "8000", "--served-model-name", model,
                    "--trust-remote-code", "--mamba-ssm-cache-dtype", "float32", "--max-model-len", "131072",
                    "--max-num-seqs", "5", "--gpu-memory-utilization", "0.8", "--kv-cache-dtype", "fp8",
                    "--enable-chunked-prefill"]
        rows = [
            [model],
            ["--model", model],
            ["vllm", "serve", "--model", model],
            template + ["--quantization", "fp8"],
            ["vllm", "serve", *template, "--dtype", "bfloat16"],
            ["--model", model, "--host", "0.0.0.0", "--port", "8000", "--served-model-name", model,
             "--trust-remote-code", "--max-model-len", "8192", "--gpu-memory-utilization", "0.9"],
            ["--model", model, "--max-model-len", "8192", "--max-num-seqs", "5", "--kv-cache-dtype", "auto",
             "--enforce-eager", "--enable-prefix-caching", "--max-num-batched-tokens", "8192", "--dtype", "float16",
             "--quantization", "awq", "--tensor-parallel-size", "1"],
            [model, "--trust-remote-code", "--async-scheduling", "--kv-cache-dtype", "fp8", "--tensor-parallel-size", "1",
             "--max-num-seqs", "8", "--max-model-len", "262144", "--enable-auto-tool-choice", "--tool-call-parser",
             "qwen3_coder", "--reasoning-parser-plugin", "nano_v3_reasoning_parser.py", "--reasoning-parser", "nano_v3"],
            [model, "--mamba_ssm_cache_dtype=float32", "--max_model_len=128k", "--no-enable-prefix-caching",
             "--speculative-config", '{"method":"mtp","num_speculative_tokens":3}', "--moe-backend", "auto"],
            [model, "-tp", "1", "-pp=1", "-O3", "-cc", "{}", "--compilation_config.mode", "3", "--port=1", "--port=2"],
            [model, "--dtype", "auto", "--dtype", "half", "--served-model-name", "a", "b", "--served-model-name", "c"],
            [model, "--max-model-len", "auto", "--default_chat_template_kwargs.enable_thinking", "false",
             "--override-generation-config", '{"temperature": 0.6}', "--allowed-origins", '["http://a"]'],
        ]
        for row in rows:
            with self.subTest(row=row):
                self.understood(*row)

    # Every option that vLLM 0.13 and its successors document for serving text, by what it takes.
    SWITCHES = """trust-remote-code enable-mamba-cache-stochastic-rounding enable-chunked-prefill enable-prefix-caching enforce-eager
        async-scheduling enable-expert-parallel allow-credentials enable-sleep-mode disable-log-stats enable-log-requests
        kv-cache-metrics language-model-only disable-uvicorn-access-log disable-fastapi-docs enable-request-id-headers
        trust-request-chat-template exclude-tools-when-tool-choice-none return-tokens-as-token-ids enable-prompt-tokens-details
        enable-force-include-usage enable-per-request-metrics enable-server-load-tracking enable-tokenizer-info-endpoint
        enable-log-outputs enable-log-deltas headless enable-mfu-metrics""".split()
    OPTIONS = """host=1.2.3.4 port=1 served-model-name=a dtype=auto dtype=half dtype=float16 dtype=bfloat16 dtype=float dtype=float32
        quantization=awq quantization=gptq quantization=gptq_marlin quantization=awq_marlin quantization=fp8 quantization=fbgemm_fp8
        quantization=modelopt quantization=modelopt_fp4 quantization=compressed-tensors quantization=bitsandbytes quantization=gguf
        quantization=mxfp4 quantization=torchao quantization=experts_int8 quantization=modelopt_mixed quantization=modelopt_mxfp8
        quantization=fp8_per_tensor quantization=fp8_per_block quantization=fp8_per_channel load-format=auto
        load-format=safetensors load-format=fastsafetensors load-format=bitsandbytes kv-cache-dtype=auto kv-cache-dtype=float16
        kv-cache-dtype=bfloat16 kv-cache-dtype=fp8 kv-cache-dtype=fp8_e4m3 kv-cache-dtype=fp8_e5m2 mamba-cache-dtype=float32
        mamba-ssm-cache-dtype=auto mamba-ssm-cache-dtype=float32 mamba-ssm-cache-dtype=float16 mamba-ssm-cache-dtype=bfloat16
        mamba-cache-mode=all mamba-block-size=64 mamba-backend=triton mamba-cache-philox-rounds=10 max-model-len=131072
        max-model-len=128k max-model-len=25.6k max-model-len=auto max-model-len=-1 max-num-seqs=5 max-num-batched-tokens=8K
        gpu-memory-utilization=0.8 kv-cache-memory-bytes=1.5g block-size=16 tensor-parallel-size=1 pipeline-parallel-size=1
        data-parallel-size=1 api-key=k chat-template=t.jinja tool-call-parser=qwen3_coder tool-call-parser=qwen3_xml
        tool-call-parser=hermes reasoning-parser=nano_v3 reasoning-parser=nemotron_v3 reasoning-parser=deepseek_r1
        reasoning-parser-plugin=p.py moe-backend=auto speculative-config={} root-path=/p allowed-origins=["*"]
        allowed-methods=["*"] allowed-headers=["*"] seed=0 generation-config=auto generation-config=vllm
        override-generation-config={} max-logprobs=20 max-logprobs=-1 logprobs-mode=raw_logprobs scheduling-policy=fcfs
        scheduling-policy=priority stream-interval=1 structured-outputs-config={} structured-outputs-config.backend=auto revision=main
        tokenizer=t tokenizer-revision=main hf-overrides={} download-dir=d hf-token=t swap-space=4 cpu-offload-gb=0
        shutdown-timeout=5 otlp-traces-endpoint=u show-hidden-metrics-for-version=0.12 limit-mm-per-prompt={} uds=/s
        uvicorn-log-level=info disable-access-log-for-endpoints=/a,/b ssl-certfile=c ssl-ca-certs=c ssl-cert-reqs=0
        response-role=assistant chat-template-content-format=auto default-chat-template-kwargs={} tool-parser-plugin=p.py
        max-log-len=10 log-config-file=f fingerprint-mode=hash lora-modules=a=b h11-max-incomplete-event-size=4194304
        h11-max-header-count=256 api-server-count=1""".split()

    def test_every_flag_in_every_spelling(self):
        """All of them in each command line, which differ in the values and in how they are written."""
        values = {}
        for option in self.OPTIONS:
            name, value = option.split("=", 1)
            values.setdefault(name, []).append(value)
        for i in range(max(map(len, values.values()))):
            chosen = {name: given[i % len(given)] for name, given in values.items()}
            dashes = [word for name, value in chosen.items() for word in ("--" + name, value)]
            lines = ["--" + ".".join([name.split(".")[0].replace("-", "_"), *name.split(".")[1:]]) + "=" + value
                     for name, value in chosen.items()]
            for row in (dashes + ["--" + name for name in self.SWITCHES],
                        lines + ["--" + name.replace("-", "_") for name in self.SWITCHES],
                        lines + ["--no-" + name for name in self.SWITCHES]):
                done = self.run_serve("/nowhere/model", *row)
                self.assertEqual(done.returncode, 1, f"{row}: {done.stderr}")
                self.assertIn("/nowhere/model", done.stderr)

    def test_what_has_no_effect_is_said_once(self):
        self.understood("/nowhere/model", "--trust-remote-code", "--dtype", "auto", "--kv-cache-dtype", "fp8_e4m3",
                        warns=["without effect here: --dtype --trust-remote-code"])
        self.understood("/nowhere/model", "--kv-cache-dtype", "fp8_e5m2", warns=["--kv-cache-dtype fp8_e5m2: keys and values are kept as fp8_e4m3"])

    def test_what_is_overruled_is_said_with_its_reason(self):
        self.understood("/nowhere/model", "--tokenizer", "org/name", "--hf-overrides", "{}", "--lora-modules", "a=b", "--headless",
                        warns=["--tokenizer: the checkpoint's own is used", "--hf-overrides: config.json is taken as it is",
                               "--lora-modules: adapters are not loaded", "--headless: the API is served nonetheless"])

    def test_of_two_values_the_last_counts(self):
        self.understood("/nowhere/model", "--port=2", "--port", "1", "--max-num-seqs=2", "--max_num_seqs", "3",
                        "--served-model-name", "a", "--served-model-name", "b",
                        warns=["given more than once, the last one counts: --max-num-seqs --port\n"])

    def test_what_cannot_be_honoured_is_refused(self):
        for says, row in [
            ("--no-such-flag", ["--no-such-flag"]),
            ("MODEL", []),
            ("--port", ["m", "--port", "70000"]),
            ("--tensor-parallel-size", ["m", "--tensor-parallel-size", "2"]),
            ("--reasoning-parser", ["m", "--reasoning-parser", "qwen3"]),
            ("--tool-call-parser", ["m", "--tool-call-parser", "mistral"]),
            ("--tool-call-parser", ["m", "--enable-auto-tool-choice"]),
            ("--quantization", ["m", "--quantization", "int1"]),
            ("--kv-cache-dtype", ["m", "--kv-cache-dtype", "int8"]),
            ("--mamba-ssm-cache-dtype", ["m", "--mamba-ssm-cache-dtype", "int8"]),
            ("--max-model-len", ["m", "--max-model-len", "12.5"]),
            ("--max-model-len", ["m", "--max-model-len", "many"]),
            ("--middleware", ["m", "--middleware", "x.y"]),
            ("--enable-lora", ["m", "--enable-lora", "--lora-modules", "a=b"]),
            ("--allowed-origins", ["m", "--allowed-origins", "http://a"]),
            ("--override-generation-config", ["m", "--override-generation-config", "{"]),
            ("--generation-config", ["m", "--generation-config", "/nowhere.json"]),
            ("--ssl-keyfile", ["m", "--ssl-keyfile", "k"]),
            ("--config /nowhere.yaml", ["m", "--config", "/nowhere.yaml"]),
        ]:
            with self.subTest(row=row):
                self.refused(*row, says=says)

    def test_weights_are_made_smaller_while_they_are_loaded(self):
        """With the answers that what `proa quantize` writes gives."""
        with tempfile.TemporaryDirectory() as folder:
            for flags, precision, name, warns in [
                (["--quantization", "fp8"], "fp8", "fp8", ""),
                (["--quantization", "bitsandbytes", "--load-format", "bitsandbytes"], "q4_0", "q4_0.gguf",
                 "--quantization bitsandbytes: weights become Q4_0"),
            ]:
                written = f"{folder}/{name}"
                subprocess.run([PROA, "quantize", MODEL, written, "--to", precision, *(["--calibration", "none"] if precision == "fp8" else [])],
                               check=True, capture_output=True, timeout=TIMEOUT_S)
                answers = []
                for server in (Served(*flags), Served(model=written)):
                    with server:
                        _, answer = server.chat({**HELLO, "max_tokens": 40, "logprobs": True})
                        answers.append(answer["choices"])
                        server.stop()
                        self.assertIn(warns if len(answers) == 1 else "", server.stderr)
                        answers.append(re.search(r"memory: weights (\S+ \S+) ", server.stderr).group(1))
                self.assertEqual(answers[:2], answers[2:], flags)

    def test_quantization_is_what_the_checkpoint_is(self):
        with tempfile.TemporaryDirectory() as folder:
            subprocess.run([PROA, "quantize", MODEL, folder + "/q.gguf", "--to", "q8_0"], check=True, capture_output=True, timeout=TIMEOUT_S)
            done = subprocess.run([PROA, "serve", folder + "/q.gguf", "--quantization", "bitsandbytes"], capture_output=True, text=True,
                                  timeout=TIMEOUT_S)
            self.assertEqual(done.returncode, 1)
            self.assertIn("in Q4_0 or Q4_K_M", done.stderr)
        done = subprocess.run([PROA, "serve", MODEL, "--quantization", "awq", "--port", "0"], capture_output=True, text=True,
                              timeout=TIMEOUT_S)
        self.assertEqual(done.returncode, 1)
        self.assertIn("does not match the quantization method specified in the `quantization` argument (awq)", done.stderr)

    def test_a_file_of_flags(self):
        with tempfile.TemporaryDirectory() as folder:
            path = pathlib.Path(folder, "c.yaml")
            path.write_text("# comment\nmodel: /nowhere/model\nmax_model_len: 4k  # tokens\ntrust-remote-code: true\n"
                            "enable-prefix-caching: false\nserved-model-name:\n  - a\n  - \"b c\"\nport: 70000\n")
            self.refused("--config", str(path), says="--port")
            self.understood("--config", str(path), "--port", "1", warns=["without effect here: --trust-remote-code"])
            self.understood("/nowhere/model", f"--config={path}", "--port", "1")
            path.write_text("a:\n  b: c\n")
            self.refused("--config", str(path), says="line 2")
            path.write_text("no_such_flag: 1\n")
            self.refused("m", "--config", str(path), says="--no-such-flag")


class Serving(unittest.TestCase):
    def test_log_and_names(self):
        with Served("--served-model-name", "buoy", "other") as served:
            status, answer = served.chat(HELLO)
            self.assertEqual((status, answer["model"]), (200, "buoy"))
            self.assertEqual(served.chat({**HELLO, "model": "other"})[0], 200)
            self.assertEqual(served.chat({**HELLO, "model": MODEL})[0], 404)
            served.request("POST", CHAT, {**HELLO, "stream": True})
            served.request("GET", "/health?x=\"1\"")
            self.assertEqual(served.stop(), 0)
            for line in ["Started server process [", "Waiting for application startup.", "Available routes are:",
                         "Application startup complete.", f"Uvicorn running on http://127.0.0.1:{served.port} (Press CTRL+C to quit)",
                         "Shutting down", "Finished server process ["]:
                self.assertIn(line, served.stderr)
            self.assertRegex(served.stdout, r'INFO:     127\.0\.0\.1:\d+ - "POST /v1/chat/completions HTTP/1.1" 200 OK')
            self.assertEqual(len(re.findall(r'"(POST|GET) /v1/(chat/completions|completions|models)"', served.stdout)), 5,
                             "one for each answer, and one more for a stream: " + served.stdout)
            self.assertIn('404 Not Found', served.stdout)

    def test_a_stream_is_the_answer_in_pieces(self):
        with Served() as served:
            _, whole = served.chat(HELLO)
            _, text = served.request("POST", CHAT, {**HELLO, "stream": True, "stream_options": {"include_usage": True}})
            chunks = events(text)
            self.assertEqual(chunks[0]["choices"][0]["delta"]["role"], "assistant")
            joined = "".join(c["choices"][0]["delta"].get("content", "") for c in chunks[:-1])
            self.assertEqual(joined, whole["choices"][0]["message"]["content"])
            usage = {**whole["usage"], "prompt_tokens_details": chunks[-1]["usage"]["prompt_tokens_details"]}
            self.assertEqual((chunks[-1]["choices"], chunks[-1]["usage"]), ([], usage))
            self.assertEqual([c["choices"][0]["finish_reason"] for c in chunks[-3:-1]], [None, whole["choices"][0]["finish_reason"]])
            _, completion = served.request("POST", "/completions", {"prompt": "Hello", "temperature": 0, "echo": True, "n": 1})
            self.assertTrue(json.loads(completion)["choices"][0]["text"].startswith("Hello"))
            seeds = [served.chat({**HELLO, "temperature": 1, "seed": s, "n": 2})[1]["choices"] for s in (1, 1, 2)]
            self.assertEqual(seeds[0], seeds[1])

    def test_a_conversation_computes_only_what_is_new(self):
        messages = [{"role": "user", "content": "How are you? " * 60}]
        with Served("--scheduling-policy", "priority") as served:
            _, first = served.chat({**HELLO, "messages": messages})
            self.assertEqual(first["usage"]["prompt_tokens_details"]["cached_tokens"], 0)
            messages += [{"role": "assistant", "content": "Well."}, {"role": "user", "content": "And now? " * 60}]
            _, second = served.chat({**HELLO, "messages": messages, "priority": 1})
            known = second["usage"]["prompt_tokens_details"]["cached_tokens"]
            self.assertTrue(first["usage"]["prompt_tokens"] - 10 < known < first["usage"]["prompt_tokens"], known)
        with Served("--no-enable-prefix-caching") as served:
            _, alone = served.chat({**HELLO, "messages": messages})
            self.assertEqual(alone["choices"][0]["message"], second["choices"][0]["message"])
            _, again = served.chat({**HELLO, "messages": messages})
            self.assertEqual(again["usage"]["prompt_tokens_details"]["cached_tokens"], 0)

    def test_many_at_once(self):
        with Served("--max-num-seqs", "4", "--max-queue", "100") as served:
            expected = served.chat(HELLO)[1]["choices"]
            with concurrent.futures.ThreadPoolExecutor(24) as pool:
                answers = list(pool.map(lambda i: served.chat({**HELLO, "max_tokens": 4 + i % 5}), range(24)))
                self.assertEqual({status for status, _ in answers}, {200})
            self.assertEqual(served.chat(HELLO)[1]["choices"], expected)
            _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
            resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
            idle = [socket.create_connection(("127.0.0.1", served.port)) for _ in range(1000 if most >= 2000 else 300)]
            self.assertEqual(served.request("GET", "/health")[0], 200)
            for connection in idle:
                connection.close()

    def test_a_full_queue(self):
        with Served("--max-num-seqs", "1", "--max-queue", "1") as served:
            with concurrent.futures.ThreadPoolExecutor(8) as pool:
                answers = list(pool.map(lambda _: served.chat(LONG), range(8)))
            statuses = sorted(status for status, _ in answers)
            self.assertEqual(set(statuses), {200, 429}, statuses)
            refused = [answer for status, answer in answers if status == 429]
            self.assertEqual(refused[0]["error"]["type"], "Too Many Requests")

    def test_sampling_defaults(self):
        with tempfile.TemporaryDirectory() as folder:
            pathlib.Path(folder, "generation_config.json").write_text('{"temperature": 2, "top_k": 1, "eos_token_id": 2}')
            body = {k: v for k, v in HELLO.items() if k != "temperature"}
            with Served("--generation-config", folder) as served:  # the likeliest token, however hot
                answers = [served.chat(body)[1]["choices"] for _ in range(3)]
                self.assertEqual(answers, [served.chat(HELLO)[1]["choices"]] * 3)
            with Served("--generation-config", folder, "--override-generation-config", '{"top_k": 0}') as served:
                answers = {served.chat(body)[1]["choices"][0]["message"]["content"] for _ in range(20)}
                self.assertGreater(len(answers), 1)
            with Served("--override-generation-config", '{"max_new_tokens": 3}') as served:
                for asked in ({}, {"max_tokens": 5}, {"max_tokens": 2}):
                    usage = served.chat({"messages": HELLO["messages"], "ignore_eos": True, **asked})[1]["usage"]
                    self.assertEqual(usage["completion_tokens"], min(3, asked.get("max_tokens", 3)))

    def test_keys(self):
        with Served("--open-metrics", env={"VLLM_API_KEY": "k"}) as served:
            self.assertEqual(served.request("GET", "/v1/models"), (401, '{"error":"Unauthorized"}'))
            self.assertEqual(served.request("GET", "/v1/models", headers={"Authorization": "Bearer k"})[0], 200)
            self.assertEqual(served.request("GET", "/metrics")[0], 200)
            self.assertEqual(served.request("GET", "/health")[0], 200)

    def test_unix_socket(self):
        with tempfile.TemporaryDirectory() as folder, Served("--uds", folder + "/s") as served:
            connection = UnixConnection(folder + "/s")
            self.assertEqual(served.request("GET", "/health", connection=connection)[0], 200)
            connection.close()
            self.assertEqual(served.stop(), 0)
            self.assertEqual(os.listdir(folder), [])

    @unittest.skipUnless(shutil.which("openssl"), "openssl makes the certificate")
    def test_tls(self):
        with tempfile.TemporaryDirectory() as folder:
            subprocess.run(["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1", "-subj", "/CN=localhost",
                            "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1", "-keyout", folder + "/key", "-out",
                            folder + "/cert"], check=True, capture_output=True)
            with Served("--ssl-certfile", folder + "/cert", "--ssl-keyfile", folder + "/key") as served:
                self.assertTrue(served.address.startswith("https://"))
                context = ssl.create_default_context(cafile=folder + "/cert")
                connection = http.client.HTTPSConnection("127.0.0.1", served.port, timeout=TIMEOUT_S, context=context)
                for _ in range(2):
                    self.assertEqual(served.chat(HELLO, connection=connection)[0], 200)
                status, text = served.request("POST", CHAT, {**LONG, "stream": True}, connection=connection)
                self.assertEqual(len(events(text)), 901)
                connection.close()
                with socket.create_connection(("127.0.0.1", served.port)) as plain:
                    plain.sendall(b"GET /health HTTP/1.1\r\nHost: t\r\n\r\n")
                    self.assertNotIn(b"200", plain.recv(100))
                self.assertEqual(served.stop(), 0)
            # Who must show a certificate: the server's own is its authority here.
            with Served("--ssl-certfile", folder + "/cert", "--ssl-keyfile", folder + "/key", "--ssl-ca-certs", folder + "/cert",
                        "--ssl-cert-reqs", "2") as served:
                def ask(context):
                    connection = http.client.HTTPSConnection("127.0.0.1", served.port, timeout=TIMEOUT_S, context=context)
                    try:
                        return served.request("GET", "/health", connection=connection)[0]
                    except OSError:
                        return None
                    finally:
                        connection.close()
                nobody = ssl.create_default_context(cafile=folder + "/cert")
                somebody = ssl.create_default_context(cafile=folder + "/cert")
                somebody.load_cert_chain(folder + "/cert", folder + "/key")
                self.assertEqual((ask(nobody), ask(somebody)), (None, 200))

    def test_load_and_origins(self):
        with Served("--enable-server-load-tracking", "--allowed-origins", '["http://a"]', "--allow-credentials") as served:
            connection = served.connection()
            connection.request("POST", CHAT, json.dumps({**LONG, "stream": True}), {"Content-Type": "application/json",
                                                                                    "Origin": "http://a"})
            response = connection.getresponse()
            self.assertEqual(response.headers["Access-Control-Allow-Origin"], "http://a")
            response.read(1)
            self.assertEqual(served.request("GET", "/load"), (200, '{"server_load":1}'))
            response.close()
            connection.close()
            deadline = time.monotonic() + TIMEOUT_S
            while served.request("GET", "/load")[1] != '{"server_load":0}':
                self.assertLess(time.monotonic(), deadline)
                time.sleep(0.02)
            self.assertEqual(served.request("GET", "/v1/models", headers={"Origin": "http://b"})[0], 200)


class BadClients(unittest.TestCase):
    """Each does something wrong; the server answers or closes, and goes on."""

    def test_all_of_them(self):
        with Served("--max-body-bytes", "1000000") as served:
            def raw(data, half_close=False, read=True):
                with socket.create_connection(("127.0.0.1", served.port), timeout=TIMEOUT_S) as client:
                    try:
                        client.sendall(data)
                        if half_close:
                            client.shutdown(socket.SHUT_WR)
                    except OSError:
                        pass  # refused before all was sent
                    answer = b""
                    try:
                        while read and (part := client.recv(65536)):
                            answer += part
                            if b"Connection" not in data and b"\r\n\r\n" in answer:
                                break
                    except OSError:
                        pass
                    return answer

            head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: t\r\nContent-Type: application/json\r\n"
            body = json.dumps({**LONG, "stream": True}).encode()
            stream = head + b"Content-Length: %d\r\n\r\n" % len(body) + body
            bomb = b'{"messages":' + b"[" * 100000
            tools = json.dumps({**HELLO, "tools": [{"type": "function", "function": {"name": "f"}}] * 8000}).encode()
            for name, data, status in [
                ("nothing", b"", None),
                ("garbage", os.urandom(2000).replace(b"\n", b"") + b"\r\n\r\n", 400),
                ("both lengths", head + b"Content-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400),
                ("a body of 1 GB", head + b"Content-Length: 1000000000\r\n\r\n" + b"x" * 2000000, 413),
                ("nesting", head + b"Content-Length: %d\r\n\r\n" % len(bomb) + bomb, 400),
                ("tools", head + b"Content-Length: %d\r\n\r\n" % len(tools) + tools, 400),
                ("headers", b"GET / HTTP/1.1\r\n" + b"A: b\r\n" * 100000, 431),
            ]:
                with self.subTest(name=name):
                    answer = raw(data, read=status is not None)
                    if status:
                        self.assertTrue(answer.startswith(b"HTTP/1.1 %d " % status), answer[:200])
            raw(stream, half_close=True)
            for cut in (10, len(head), len(stream) - 5, len(stream)):  # clients that vanish at some point
                raw(stream[:cut], read=False)
            for value in (-1, 0, 1e300, -(2 ** 63), 2 ** 64, "x", [], {}, True):
                for field in ("max_tokens", "temperature", "n", "top_k", "seed", "stop", "logprobs", "top_logprobs", "min_tokens",
                              "messages", "tools", "stream_options", "model", "chat_template_kwargs"):
                    status, answer = served.chat({**HELLO, field: value})
                    self.assertIn(status, (200, 400, 404), f"{field}={value}: {answer}")
            deadline = time.monotonic() + TIMEOUT_S
            while not re.search(r'vllm:num_requests_running\{.*\} 0\.0', served.request("GET", "/metrics")[1]):
                self.assertLess(time.monotonic(), deadline, "places of clients that left are free again")
                time.sleep(0.02)
            self.assertEqual(served.chat(HELLO)[0], 200)
            self.assertEqual(served.stop(), 0)


class TheEnd(unittest.TestCase):
    def streaming(self, served):
        connection = served.connection()
        self.addCleanup(connection.close)
        connection.request("POST", CHAT, json.dumps({**LONG, "stream": True}), {"Content-Type": "application/json"})
        response = connection.getresponse()
        self.addCleanup(response.close)
        return response, response.read(1)

    def test_a_running_request_is_finished(self):
        with Served("--shutdown-timeout", "60") as served:
            response, first = self.streaming(served)
            self.assertEqual(served.stop(), 0)
            self.assertEqual(len(events((first + response.read()).decode())), 901)
            with self.assertRaises(OSError):
                served.request("GET", "/health")

    def test_no_time_to_finish(self):
        with Served("--shutdown-timeout", "0", "--max-num-seqs", "64") as served:
            with concurrent.futures.ThreadPoolExecutor(64) as pool:
                def ask(_):
                    try:
                        return served.chat(LONG)
                    except (OSError, http.client.HTTPException):
                        return None
                asked = [pool.submit(ask, i) for i in range(64)]
                while "num_requests_running" in (text := served.request("GET", "/metrics")[1]):
                    if not re.search(r"vllm:num_requests_running\{.*\} 0\.0", text):
                        break
                self.assertEqual(served.stop(), 0)
                for one in asked:
                    one.result()

    def test_a_second_signal_ends_at_once(self):
        with Served("--shutdown-timeout", "600") as served:
            self.streaming(served)
            stuck = [socket.create_connection(("127.0.0.1", served.port)) for _ in range(3)]
            for client in stuck:
                self.addCleanup(client.close)
            for client in stuck:  # a request that never comes to its end
                client.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: t\r\nContent-Length: 100\r\n\r\n{")
            time.sleep(0.05)
            served.process.send_signal(signal.SIGINT)
            while "Shutting down" not in served.read("err"):
                time.sleep(0.01)
            served.process.send_signal(signal.SIGINT)
            self.assertEqual(served.process.wait(timeout=TIMEOUT_S), -signal.SIGINT)


if __name__ == "__main__":
    unittest.main()
