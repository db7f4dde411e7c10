#!/usr/bin/env python3
"""Clients that others wrote against `proa serve`: openai (plain, async, streams, tools, errors), LangChain, LiteLLM, the
parser of Prometheus' Python client, schemathesis over /openapi.json.

  tools/serve_clients.py PROA MODEL          needs openai langchain-openai litellm prometheus-client schemathesis

What is not installed is left out, and said. Exit status 1 when a client was not content.
"""
import asyncio
import contextlib
import importlib.metadata
import importlib.util
import os
import re
import subprocess
import sys
import tempfile
import time
import traceback
import urllib.request

HELLO = [{"role": "user", "content": "Who are you?"}]
TOOLS = [{"type": "function", "function": {"name": "look", "description": "looks",
                                           "parameters": {"type": "object", "properties": {"x": {"type": "integer"}}}}}]


@contextlib.contextmanager
def served(proa, model):
    with tempfile.TemporaryDirectory() as folder, open(folder + "/log", "wb") as log:
        process = subprocess.Popen([proa, "serve", model, "--host", "127.0.0.1", "--port", "0", "--served-model-name", "m",
                                    "--enable-auto-tool-choice", "--tool-call-parser", "qwen3_coder", "--max-model-len", "2048"],
                                   stdout=subprocess.DEVNULL, stderr=log)
        try:
            while not (found := re.search(r"Uvicorn running on (\S+)", open(folder + "/log").read())):
                if process.poll() is not None:
                    sys.exit(open(folder + "/log").read())
                time.sleep(0.05)
            yield found.group(1)
        finally:
            process.terminate()
            if process.wait(timeout=30) != 0:
                print("the server ended with", process.returncode)


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
    assert chunks[-1].usage == whole.usage
    logprobs = client.chat.completions.create(model="m", messages=HELLO, logprobs=True, top_logprobs=3, max_tokens=2)
    assert len(logprobs.choices[0].logprobs.content[0].top_logprobs) == 3
    several = client.chat.completions.create(model="m", messages=HELLO, n=3, seed=1, temperature=1, max_tokens=4)
    assert [c.index for c in several.choices] == [0, 1, 2]
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
    done = subprocess.run([sys.executable, "-m", "schemathesis.cli", "run", base + "/openapi.json", "--url", base,
                           "--max-examples", "30", "--request-timeout", "60", "--seed", "1",
                           "--checks", "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance"],
                          capture_output=True, text=True, cwd=tempfile.gettempdir(), env={**os.environ, "NO_COLOR": "1"})
    if done.returncode != 0:
        raise AssertionError(done.stdout[-6000:] + done.stderr[-2000:])
    return importlib.metadata.version("schemathesis")


def main():
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    failed = False
    with served(*sys.argv[1:]) as base:
        for name, check in list(globals().items()):
            if not name.startswith("check_"):
                continue
            module = name.removeprefix("check_")
            if not importlib.util.find_spec(module):
                print(f"{module}: not installed, left out")
                continue
            try:
                print(f"{module} {check(base)}: content")
            except Exception:
                failed = True
                print(f"{module}: {traceback.format_exc()}")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
