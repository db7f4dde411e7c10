#!/usr/bin/env python3
"""Clients that others wrote against `proa serve`, one command, a table at the end.

  tools/serve_clients.py PROA MODEL [--hybrid FOLDER] [--only NAME,NAME]

MODEL: any with a chat template, SmolLM2 for example. FOLDER: a Nemotron-H with its tokenizer (models/proa-buoy), which is
served with the reasoning and tool parsers of the family. tests/scripts/clients_test.py runs the same as tests.

In this Python: openai (plain, async, streams, tools, errors), langchain-openai, litellm, kanoa, prometheus-client,
schemathesis over /openapi.json, lm-eval (pip install 'lm-eval[api]'). On the PATH: promtool and prometheus (Debian's package
`prometheus`; every expression of kanoa-mlops' dashboards is evaluated while there is work), aiperf (which wants an
environment of its own). KANOA_MLOPS: a checkout of kanoa-mlops, whose test_text_comparison.py is run as it is.
What is not installed is left out, and said. Exit status 1 when a client was not content.
"""
import argparse
import asyncio
import contextlib
import importlib.metadata
import importlib.util
import json
import os
import pathlib
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
import traceback
import urllib.parse
import urllib.request

HYBRID = str(pathlib.Path(__file__).resolve().parent.parent / "models/proa-buoy")
HELLO = [{"role": "user", "content": "Who are you?"}]
TOOLS = [{"type": "function", "function": {"name": "look", "description": "looks",
                                           "parameters": {"type": "object", "properties": {"x": {"type": "integer"}}}}}]


@contextlib.contextmanager
def served(proa, model, *flags):
    with tempfile.TemporaryDirectory() as folder, open(folder + "/log", "wb") as log:
        said = pathlib.Path(folder, "log").read_text
        process = subprocess.Popen([proa, "serve", model, "--host", "127.0.0.1", "--port", "0", "--served-model-name", "m",
                                    "--enable-tokenizer-info-endpoint", "--enable-auto-tool-choice", "--tool-call-parser",
                                    "qwen3_coder", "--max-model-len", "1024", *flags], stdout=subprocess.DEVNULL, stderr=log)
        try:
            while not (found := re.search(r"Uvicorn running on (\S+)", said())):
                if process.poll() is not None:
                    raise AssertionError(said())
                time.sleep(0.05)
            yield found.group(1)
        finally:
            process.terminate()
            if process.wait(timeout=60) != 0:
                raise AssertionError(f"the server ended with {process.returncode}\n" + said()[-3000:])


def run(*command, **options):
    done = subprocess.run(command, capture_output=True, text=True, **options)
    if done.returncode != 0:
        raise AssertionError(f"{command[0]} ended with {done.returncode}\n" + done.stdout[-6000:] + done.stderr[-3000:])
    return done.stdout


class Load:
    """Streams that come one after the other, until it is left."""

    def __init__(self, base):
        self.base, self.stop = base, threading.Event()
        self.threads = [threading.Thread(target=self.ask) for _ in range(4)]

    def ask(self):
        while not self.stop.is_set():
            body = json.dumps({"prompt": "Once upon a time", "max_tokens": 40, "stream": True}).encode()
            urllib.request.urlopen(urllib.request.Request(self.base + "/v1/completions", body,
                                                          {"Content-Type": "application/json"})).read()

    def __enter__(self):
        for thread in self.threads:
            thread.start()

    def __exit__(self, *_):
        self.stop.set()
        for thread in self.threads:
            thread.join()


def check_openai(base):
    import openai
    client = openai.OpenAI(base_url=base + "/v1", api_key="EMPTY", max_retries=0)
    assert [m.id for m in client.models.list().data] == ["m"]
    whole = client.chat.completions.create(model="m", messages=HELLO, temperature=0, max_tokens=20)
    assert whole.choices[0].message.content and whole.usage.total_tokens == whole.usage.prompt_tokens + whole.usage.completion_tokens
    stream = client.chat.completions.create(model="m", messages=HELLO, temperature=0, max_tokens=20, stream=True,
                                            stream_options={"include_usage": True})
    chunks = list(stream)
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == whole.choices[0].message.content
    # The second time its beginning is known.
    counts = [(usage.prompt_tokens, usage.completion_tokens, usage.total_tokens) for usage in (chunks[-1].usage, whole.usage)]
    assert counts[0] == counts[1], counts
    logprobs = client.chat.completions.create(model="m", messages=HELLO, logprobs=True, top_logprobs=3, max_tokens=2)
    assert len(logprobs.choices[0].logprobs.content[0].top_logprobs) == 3
    several = client.chat.completions.create(model="m", messages=HELLO, n=3, seed=1, temperature=1, max_tokens=4)
    assert [c.index for c in several.choices] == [0, 1, 2]
    biased = client.completions.create(model="m", prompt="a", max_tokens=3, temperature=0, logit_bias={"40": 100})
    echoed = client.completions.create(model="m", prompt="Who are you?", max_tokens=1, echo=True, logprobs=1)
    assert biased.choices[0].text and echoed.choices[0].logprobs.token_logprobs[0] is None
    assert all(p <= 0 for p in echoed.choices[0].logprobs.token_logprobs[1:])
    tools = client.chat.completions.create(model="m", messages=HELLO, tools=TOOLS, max_tokens=8)
    assert tools.choices[0].finish_reason in ("stop", "length", "tool_calls")
    with client.chat.completions.stream(model="m", messages=HELLO, temperature=0) as answer:
        for _ in answer:
            pass
        assert answer.get_final_completion().choices[0].message.content
    text = client.completions.create(model="m", prompt=["a", "b"], max_tokens=3, logprobs=2)
    assert len(text.choices) == 2 and len(text.choices[0].logprobs.tokens) == 3
    for wrong, expected in [({"model": "x"}, openai.NotFoundError), ({"temperature": -1}, openai.BadRequestError),
                            ({"max_tokens": 10**6}, openai.BadRequestError)]:
        try:
            client.chat.completions.create(**{"model": "m", "messages": HELLO, **wrong})
            raise AssertionError(f"{wrong} was accepted")
        except expected as error:
            assert error.body["message"], error

    async def many():
        async with openai.AsyncOpenAI(base_url=base + "/v1", api_key="EMPTY") as other:
            async def one():
                parts = await other.chat.completions.create(model="m", messages=HELLO, max_tokens=10, stream=True, temperature=0)
                return [part async for part in parts]
            return await asyncio.gather(*[one() for _ in range(20)])
    assert all(parts[-1].choices[0].finish_reason for parts in asyncio.run(many()))
    return openai.__version__


def check_langchain_openai(base):
    from langchain_openai import ChatOpenAI
    model = ChatOpenAI(base_url=base + "/v1", api_key="EMPTY", model="m", temperature=0, max_tokens=10)
    assert model.invoke("Who are you?").content
    assert "".join(part.content for part in model.stream("Who are you?")) == model.invoke("Who are you?").content
    model.bind_tools([{"name": "look", "description": "looks", "parameters": {"type": "object", "properties": {}}}]).invoke("hi")
    return importlib.metadata.version("langchain-openai")


def check_litellm(base):
    os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"  # no network
    import litellm
    arguments = dict(model="openai/m", api_base=base + "/v1", api_key="EMPTY", messages=HELLO, max_tokens=10, temperature=0)
    whole = litellm.completion(**arguments)
    parts = [part.choices[0].delta.content or "" for part in litellm.completion(**arguments, stream=True)]
    assert "".join(parts) == whole.choices[0].message.content
    return importlib.metadata.version("litellm")


def check_prometheus_client(base):
    from prometheus_client.parser import text_string_to_metric_families
    text = urllib.request.urlopen(base + "/metrics").read().decode()
    families = {family.name: family for family in text_string_to_metric_families(text)}
    assert families["vllm:request_prompt_tokens"].type == "histogram"
    assert families["vllm:generation_tokens"].type == "counter"
    for family in families.values():
        assert family.samples or family.name.startswith("http_"), family
    return importlib.metadata.version("prometheus-client")


def check_schemathesis(base):
    text = run(sys.executable, "-m", "schemathesis.cli", "run", base + "/openapi.json", "--url", base,
               "--max-examples", "30", "--request-timeout", "600", "--seed", "1",
               "--checks", "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance",
               cwd=tempfile.gettempdir(), env={**os.environ, "NO_COLOR": "1"})
    counted = re.search(r"(\d+) generated", text)
    return importlib.metadata.version("schemathesis") + (f", {counted.group(1)} requests" if counted else "")


def check_kanoa(base):
    from kanoa.backends.openai import OpenAIBackend
    backend = OpenAIBackend(api_base=base + "/v1", model="m", max_tokens=40)
    chunks = list(backend.interpret(None, {"a": [1, 2, 3]}, "a test", None, None, "Say what you see."))
    text = "".join(chunk.content for chunk in chunks if chunk.type == "text")
    usage = [chunk.usage for chunk in chunks if chunk.type == "usage"][-1]
    assert text and usage.input_tokens > 0 and 0 < usage.output_tokens <= 40, chunks
    try:
        import matplotlib.pyplot
        list(backend.interpret(matplotlib.pyplot.figure(), None, None, None, None, "What is this?"))
        raise AssertionError("a picture was accepted")
    except Exception as error:
        assert "multimodal" in str(error), error
    return importlib.metadata.version("kanoa")


def check_kanoa_mlops(base):
    folder = pathlib.Path(os.environ["KANOA_MLOPS"])
    with tempfile.TemporaryDirectory() as results:
        run(sys.executable, str(folder / "tests/integration/test_text_comparison.py"), cwd=results,
            env={**os.environ, "MODEL_NAME": "m", "API_URL": base + "/v1/chat/completions"})
        report = json.loads(pathlib.Path(results, "benchmark_results.json").read_text())
    assert len(report["tests"]) == 5 and all(test["tokens_generated"] > 0 for test in report["tests"])
    return f"text comparison, {report['summary']['avg_tokens_per_second']:.0f} tok/s"


def check_promtool(base):
    text = urllib.request.urlopen(base + "/metrics").read().decode()
    done = subprocess.run([shutil.which("promtool"), "check", "metrics"], input=text, capture_output=True, text=True)
    # Names are vLLM's: colons, and one histogram that ends in _total.
    ours = [line for line in (done.stdout + done.stderr).splitlines() if line and "should not contain ':'" not in line
            and not re.match(r"vllm:(iteration_tokens_total|avg_(prompt|generation)_throughput_toks_per_s) ", line)]
    assert done.returncode in (0, 3) and not ours, ours
    return re.search(r"version (\S+)", run("promtool", "--version")).group(1)


# What kanoa-mlops' dashboards ask. Not among them: bare names of histograms, which no exposition has, and DCGM's own.
EXPRESSIONS = ["vllm:kv_cache_usage_perc", "rate(vllm:num_requests_running[1m])", "rate(vllm:num_requests_waiting[1m])",
               "vllm:num_requests_running", "vllm:num_requests_waiting", "vllm:avg_generation_throughput_toks_per_s",
               "vllm:avg_prompt_throughput_toks_per_s", "vllm:cpu_cache_usage_perc", "vllm:gpu_cache_usage_perc",
               "vllm:num_preemptions_total", "rate(vllm:num_preemptions_total[5m])", "vllm:request_prompt_tokens_sum",
               "vllm:request_prompt_tokens_count", "vllm:request_generation_tokens_sum",
               "vllm:request_generation_tokens_sum / vllm:request_prompt_tokens_count",
               *[f"histogram_quantile({q}, rate(vllm:{name}_seconds_bucket[1m]))" for q in (.5, .9, .95, .99)
                 for name in ("time_to_first_token", "time_per_output_token")]]


def check_prometheus(base):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with tempfile.TemporaryDirectory() as folder:
        config = {"global": {"scrape_interval": "1s"},
                  "scrape_configs": [{"job_name": "vllm-local", "static_configs": [{"targets": [base.removeprefix("http://")]}]}]}
        pathlib.Path(folder, "prometheus.yml").write_text(json.dumps(config))
        process = subprocess.Popen(["prometheus", f"--config.file={folder}/prometheus.yml", f"--storage.tsdb.path={folder}/data",
                                    f"--web.listen-address=127.0.0.1:{port}"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            def ask(expression):
                url = f"http://127.0.0.1:{port}/api/v1/query?" + urllib.parse.urlencode({"query": expression})
                return json.load(urllib.request.urlopen(url))["data"]["result"]
            with Load(base):
                for _ in range(40):  # rates want a few scrapes
                    time.sleep(1)
                    with contextlib.suppress(OSError):
                        answers = {expression: ask(expression) for expression in EXPRESSIONS}
                        wrong = [expression for expression, answer in answers.items()
                                 if len(answer) != 1 or answer[0]["value"][1] == "NaN"]
                        if not wrong:
                            break
        finally:
            process.terminate()
            process.wait()
    assert not wrong, wrong
    return f"{len(EXPRESSIONS)} dashboard expressions"


def check_aiperf(base):
    with tempfile.TemporaryDirectory() as folder:
        run("aiperf", "profile", "--model", "m", "--url", base, "--endpoint-type", "chat", "--streaming", "--tokenizer", HYBRID,
            "--concurrency", "4", "--request-count", "12", "--prompt-input-tokens-mean", "60", "--prompt-output-tokens-mean", "20",
            "--extra-inputs", "ignore_eos:true", "--ui", "simple", "--output-artifact-dir", folder,
            env={name: value for name, value in os.environ.items() if not name.endswith("_OFFLINE")})
        report = json.loads(next(pathlib.Path(folder).rglob("profile_export_aiperf.json")).read_text())
    assert report["request_count"]["avg"] == 12 and not report.get("error_summary"), report.get("error_summary")
    assert report["time_to_first_token"]["avg"] > 0 and report["inter_token_latency"]["avg"] > 0
    return (f"{report['output_token_throughput']['avg']:.0f} tok/s, first token {report['time_to_first_token']['avg']:.0f} ms, "
            f"between tokens {report['inter_token_latency']['avg']:.1f} ms")


LM_EVAL_TASK = """\
task: buoy
dataset_path: json
dataset_kwargs: {data_files: {test: TASKDIR/buoy.jsonl}}
test_split: test
output_type: OUTPUT
doc_to_text: "{{question}}"
doc_to_target: TARGET
"""


def check_lm_eval(base):
    """A task of choices, which echoes prompts for their log probabilities, and one that generates; the server tokenizes."""
    questions = [{"question": f"{n} plus {n} is", "choices": [f" {2 * n}", f" {2 * n + 1}"], "answer": 0} for n in range(1, 9)]
    results = {}
    for kind, output, target in (("choices", "multiple_choice", '"{{answer}}"\ndoc_to_choice: "{{choices}}"'),
                                 ("generate", "generate_until",
                                  '"{{choices[0]}}"\ngeneration_kwargs: {until: ["."], max_gen_toks: 8}\nmetric_list: [{metric: exact_match}]')):
        with tempfile.TemporaryDirectory() as folder:
            pathlib.Path(folder, "buoy.jsonl").write_text("".join(json.dumps(q) + "\n" for q in questions))
            pathlib.Path(folder, "buoy.yaml").write_text(
                LM_EVAL_TASK.replace("TASKDIR", folder).replace("OUTPUT", output).replace("TARGET", target))
            environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_HOME": folder}
            arguments = f"model=m,base_url={base}/v1/completions,num_concurrent=2,max_retries=1,tokenizer_backend=remote"
            run(sys.executable, "-m", "lm_eval", "--model", "local-completions", "--model_args", arguments, "--tasks", "buoy",
                "--include_path", folder, "--output_path", folder + "/out", env=environment)
            report = json.loads(next(pathlib.Path(folder, "out").rglob("*.json")).read_text())
            results[kind] = {name: value for name, value in report["results"]["buoy"].items() if isinstance(value, float)}
    assert results["choices"] and results["generate"], results
    return f"{importlib.metadata.version('lm-eval')}, accuracy {results['choices'].get('acc,none')}"


def check_hybrid(base):
    """Tools, reasoning and budgets with a Nemotron-H."""
    import openai
    client = openai.OpenAI(base_url=base + "/v1", api_key="EMPTY", max_retries=0)
    conversation = [*HELLO, {"role": "assistant", "content": None, "reasoning": "hm",
                             "tool_calls": [{"id": "1", "type": "function", "function": {"name": "look", "arguments": '{"x": 1}'}}]},
                    {"role": "tool", "tool_call_id": "1", "content": "a buoy"}, {"role": "user", "content": "And now?"}]
    for messages in (HELLO, conversation):
        arguments = dict(model="m", messages=messages, tools=TOOLS, temperature=0, max_tokens=60)
        whole = client.chat.completions.create(**arguments).choices[0]
        chunks = [c for c in client.chat.completions.create(**arguments, stream=True) if c.choices]
        assert "".join(c.choices[0].delta.content or "" for c in chunks) == (whole.message.content or "")
        assert "".join(getattr(c.choices[0].delta, "reasoning", None) or "" for c in chunks) == (whole.message.reasoning or "")
        assert chunks[-1].choices[0].finish_reason == whole.finish_reason
    short = client.chat.completions.create(model="m", messages=HELLO, temperature=0, max_tokens=60,
                                           extra_body={"thinking_token_budget": 3, "ignore_eos": True})
    assert short.usage.completion_tokens_details.reasoning_tokens <= 12 and short.choices[0].message.content, short
    return "reasoning, tools, budget"


NEEDS = {"hybrid": "openai", "promtool": None, "prometheus": None, "aiperf": None, "kanoa_mlops": "requests"}
EVERY = ["openai", "langchain_openai", "litellm", "prometheus_client", "promtool", "prometheus", "lm_eval", "aiperf"]
# What schemathesis draws asks for up to 128 answers and rarely says how long they may be.
SHORT = ["--max-model-len", "192", "--override-generation-config", '{"max_new_tokens": 16}']
PARSED = ["--reasoning-parser", "nemotron_v3"]


def servers(model, hybrid):
    """(what is served, model, flags, clients) of each server."""
    yield "SmolLM2", model, [], [*EVERY, "kanoa", "kanoa_mlops"]  # what kanoa-mlops looks for in answers wants a model that knows it
    yield "SmolLM2", model, SHORT, ["schemathesis"]
    yield "Nemotron-H", hybrid, PARSED, [*EVERY, "hybrid"]
    yield "Nemotron-H", hybrid, [], ["kanoa"]  # its template names no parser, and it reads no thoughts
    yield "Nemotron-H", hybrid, [*PARSED, *SHORT], ["schemathesis"]


def missing(name):
    """Why the client cannot run here, or None."""
    if name == "kanoa_mlops" and not os.environ.get("KANOA_MLOPS"):
        return "KANOA_MLOPS is not set"
    module = NEEDS.get(name, name)
    if module is None:
        return None if shutil.which(name) else "not on the PATH"
    return None if importlib.util.find_spec(module) else f"{module} is not installed"


def check(name, base):
    """Runs the client; returns what there is to say, raises where it was not content."""
    return globals()["check_" + name](base)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("proa")
    parser.add_argument("model")
    parser.add_argument("--hybrid", default=HYBRID)
    parser.add_argument("--only", type=lambda text: text.split(","))
    options = parser.parse_args()
    failed = False
    for served_as, model, flags, names in servers(options.model, options.hybrid):
        names = [name for name in names if not options.only or name in options.only]
        ready = [name for name in names if not missing(name)]
        with served(options.proa, model, *flags) if ready else contextlib.nullcontext() as base:
            for name in names:
                began, outcome, said = time.monotonic(), "left out", missing(name)
                if name in ready:
                    try:
                        outcome, said = "content", check(name, base)
                    except Exception:
                        print(f"{name}: {traceback.format_exc()}", file=sys.stderr)
                        outcome, said, failed = "FAILED", "", True
                print(f"{served_as:10}  {name:18} {outcome:9} {time.monotonic() - began:6.1f} s  {said}", flush=True)
    sys.exit(failed)


if __name__ == "__main__":
    main()
