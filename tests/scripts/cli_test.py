"""The program from the outside: what it prints, where, and its exit code.

PROA_BINARY names the program (default build/release/apps/proa); PROA_SMOLLM2 the real model, without which the tests that
need a model that speaks are skipped.
"""
import json
import os
import pathlib
import shutil
import struct
import subprocess
import tempfile
import unittest

ROOT = pathlib.Path(__file__).resolve().parents[2]
GOLDENS = ROOT / "tests/goldens"
PROA = os.environ.get("PROA_BINARY", str(ROOT / "build/release/apps/proa"))
SMOLLM2 = os.environ.get("PROA_SMOLLM2", "")
TIMEOUT_S = 120


def proa(*arguments, stdin=""):
    return subprocess.run([PROA, *map(str, arguments)], input=stdin, capture_output=True, text=True, timeout=TIMEOUT_S,
                          env={**os.environ, "NO_COLOR": "1"})


def setUpModule():
    if not os.access(PROA, os.X_OK):
        raise AssertionError(f"{PROA} is not there: build it, or set PROA_BINARY")


# --- bad input ---

def cut(source, target, size):
    target.write_bytes(source.read_bytes()[:size])


def patched(source, target, offset, data):
    content = bytearray(source.read_bytes())
    content[offset:offset + len(data)] = data
    target.write_bytes(content)


def edited_header(source, target, edit):
    """A safetensors file with another header; the data stays as it is."""
    content = source.read_bytes()
    (size,) = struct.unpack("<Q", content[:8])
    header = json.loads(content[8:8 + size])
    edit(header)
    text = json.dumps(header).encode()
    target.write_bytes(struct.pack("<Q", len(text)) + text + content[8 + size:])


def edited_config(folder, edit):
    config = json.loads((folder / "config.json").read_text())
    edit(config)
    (folder / "config.json").write_text(json.dumps(config))


class BadInput(unittest.TestCase):
    """One error line that names file, tensor or flag; nothing on standard output; a plain exit code."""

    def setUp(self):
        self.scratch = tempfile.TemporaryDirectory()
        self.addCleanup(self.scratch.cleanup)
        self.folder = pathlib.Path(self.scratch.name)

    def refused(self, *arguments, says=(), lines=1):
        done = proa(*arguments)
        where = f"{arguments}: exit {done.returncode}, stderr:\n{done.stderr}"
        self.assertEqual(done.stdout, "", where)
        self.assertTrue(0 < done.returncode < 128, where)
        if lines:
            self.assertEqual(len(done.stderr.splitlines()), lines, where)
        self.assertTrue(done.stderr.startswith("proa: "), where)
        for word in says:
            self.assertIn(word, done.stderr, where)
        return done.stderr

    def copy(self, name):
        """A checkpoint folder of the goldens that a test may damage."""
        target = self.folder / pathlib.PurePath(name).name
        shutil.copytree(GOLDENS / name, target)
        return target

    def test_flags(self):
        model = GOLDENS / "nemotron_h/dense"
        rows = [
            (["run", model, "--no-such-flag"], "--no-such-flag"),
            (["run", model, "-p", "x", "--temperature", "-1"], "temperature"),
            (["run", model, "-p", "x", "--temperature", "warm"], "temperature"),
            (["run", model, "-p", "x", "--top-p", "2"], "top"),
            (["run", model, "-p", "x", "--max-tokens", "-5"], "max"),
            (["run", model, "-p", "x", "--thinking", "perhaps"], "--thinking"),
            (["run", model, "-p", "x", "--threads", "-1"], "--threads"),
            (["run", model, "-p", "x", "--device", "abacus"], "abacus"),
            (["run", model, "-p", "x", "--device", "cpu", "--cpu-target", "MMX"], "--cpu-target"),
            (["run", model, "-p", "x", "--device", "cpu", "--activation-dtype", "fp8"], "--activation-dtype"),
            (["run", model, "-p", "x", "--device", "cuda:-1"], "found cuda:-1"),
            (["run", model, "-p", "x", "--device", "cuda:99"], "cuda:99"),
            (["run", model, "-p", "x", "--gpu-memory-utilization", "0"], "--gpu-memory-utilization"),
            (["run", model, "-p", "x", "--kv-cache-dtype", "int3"], "--kv-cache-dtype"),
            (["run"], "model"),
            (["fly"], "subcommand"),
            ([], "subcommand"),
        ]
        for arguments, word in rows:
            with self.subTest(arguments[-2:]):
                # A value of a sampling flag is looked at after the model was opened, whose tokenizer these folders lack.
                if word in ("temperature", "top", "max") and "warm" not in arguments:
                    if not SMOLLM2:
                        continue
                    arguments = [a if a != model else SMOLLM2 for a in arguments]
                self.refused(*arguments, says=[word])

    def test_no_such_file(self):
        for name in ("absent.gguf", "absent", "absent/deeper"):
            with self.subTest(name):
                self.refused("run", self.folder / name, "-p", "x", says=[name.split("/")[0]])

    def test_not_a_model(self):
        (self.folder / "text.gguf").write_text("this is not a model\n" * 50)
        (self.folder / "empty.gguf").write_bytes(b"")
        (self.folder / "dir.gguf").mkdir()
        for name in ("text.gguf", "empty.gguf", "dir.gguf"):
            with self.subTest(name):
                self.refused("run", self.folder / name, "-p", "x", says=[name])

    def test_truncated_gguf(self):
        source = GOLDENS / "nemotron_h/dense/model.gguf"
        size = source.stat().st_size
        for length in (3, 8, 23, 24, 100, size // 4, size // 2, size - 1):
            with self.subTest(length=length):
                cut(source, self.folder / "cut.gguf", length)
                self.refused("run", self.folder / "cut.gguf", "-p", "x", says=["cut.gguf"])

    def test_damaged_gguf(self):
        source = GOLDENS / "nemotron_h/dense/model.gguf"
        huge = struct.pack("<Q", 1 << 62)
        rows = [("magic", 0, b"GGUX"), ("version", 4, struct.pack("<I", 77)), ("tensor count", 8, huge),
                ("metadata count", 16, huge), ("length of the first key", 24, huge)]
        for name, offset, data in rows:
            with self.subTest(name):
                patched(source, self.folder / "damaged.gguf", offset, data)
                self.refused("run", self.folder / "damaged.gguf", "-p", "x", says=["damaged.gguf"])

    def test_unknown_architecture(self):
        folder = self.copy("nemotron_h/dense")
        edited_config(folder, lambda c: c.update(architectures=["FancyForCausalLM"], model_type="fancy"))
        self.refused("run", folder, "-p", "x", says=["ancy"])
        content = (GOLDENS / "llama/tied/model.gguf").read_bytes()
        key = b"general.architecture" + struct.pack("<IQ", 8, 5)
        self.assertIn(key + b"llama", content)
        (self.folder / "alien.gguf").write_bytes(content.replace(key + b"llama", key + b"alien", 1))
        self.refused("run", self.folder / "alien.gguf", "-p", "x", says=["alien"])

    def test_broken_config(self):
        rows = [
            ("a wrong type", lambda c: c.update(hidden_size="many"), "hidden_size"),
            ("a negative size", lambda c: c.update(hidden_size=-4), "hidden_size"),
            ("a size beyond reason", lambda c: c.update(vocab_size=1 << 60), "vocab_size"),
            ("a missing size", lambda c: c.pop("hidden_size"), "hidden_size"),
        ]
        for number, (name, edit, word) in enumerate(rows):
            with self.subTest(name):
                folder = self.folder / str(number)
                shutil.copytree(GOLDENS / "nemotron_h/dense", folder)
                edited_config(folder, edit)
                self.refused("run", folder, "-p", "x", says=[word], lines=None)
        folder = self.copy("nemotron_h/dense")
        (folder / "config.json").write_text('{"hidden_size": 16,')
        self.refused("run", folder, "-p", "x", says=["config.json"])

    def test_folder_without_config(self):
        folder = self.copy("nemotron_h/dense")
        (folder / "config.json").unlink()
        self.refused("run", folder, "-p", "x", says=["config.json"])

    def test_folder_without_weights(self):
        folder = self.copy("nemotron_h/attn_only")
        (folder / "model.safetensors").unlink()
        self.refused("run", folder, "-p", "x", says=["safetensors"])

    def test_missing_shard(self):
        folder = self.copy("nemotron_h/lightning")
        (folder / "model-00002-of-00002.safetensors").unlink()
        self.refused("run", folder, "-p", "x", says=["model-00002-of-00002.safetensors"])

    def test_truncated_safetensors(self):
        folder = self.copy("nemotron_h/attn_only")
        source = GOLDENS / "nemotron_h/attn_only/model.safetensors"
        size = source.stat().st_size
        for length in (0, 7, 8, 50, size // 2, size - 1):
            with self.subTest(length=length):
                cut(source, folder / "model.safetensors", length)
                self.refused("run", folder, "-p", "x", says=["model.safetensors"])

    def test_tensors_that_do_not_fit(self):
        source = GOLDENS / "nemotron_h/attn_only/model.safetensors"

        def names(header):
            return sorted(name for name in header if name != "__metadata__" and len(header[name]["shape"]) == 2)

        def reshape(header):
            shape = header[names(header)[0]]["shape"]
            header[names(header)[0]]["shape"] = [shape[0] * 2, shape[1] // 2]

        def rename(header):
            header["another.name"] = header.pop(names(header)[0])

        def retype(header):
            header[names(header)[0]]["dtype"] = "I32"

        def unknown_type(header):
            header[names(header)[0]]["dtype"] = "F7"

        def overlap(header):
            header[names(header)[0]]["data_offsets"] = header[names(header)[1]]["data_offsets"]

        def beyond(header):
            entry = header[names(header)[0]]
            begin, end = entry["data_offsets"]
            entry["data_offsets"] = [begin + (1 << 40), end + (1 << 40)]

        with source.open("rb") as file:
            (size,) = struct.unpack("<Q", file.read(8))
            first = names(json.loads(file.read(size)))[0]
        folder = self.copy("nemotron_h/attn_only")
        for edit in (reshape, rename, retype, unknown_type, overlap, beyond):
            with self.subTest(edit.__name__):
                edited_header(source, folder / "model.safetensors", edit)
                # All differences are reported together, one line each.
                self.refused("run", folder, "-p", "x", says=[first], lines=None)

    def test_help_and_version_are_no_errors(self):
        for arguments in (["--help"], ["--version"], ["run", "--help"]):
            with self.subTest(arguments):
                done = proa(*arguments)
                self.assertEqual((done.returncode, done.stderr), (0, ""))
                self.assertIn("proa", done.stdout.lower())


# --- prompts ---

MESSAGES = [{"role": "system", "content": "S"}, {"role": "user", "content": "Hi <|im_end|> é"}]
TEMPLATE = """{{ bos_token }}{% for m in messages %}<|{{ m.role }}|>{{ m.content }}
{% endfor %}{{ tools | tojson if tools }}{{ effort | default('') }}{{ '<|assistant|>' if add_generation_prompt }}"""


class Render(unittest.TestCase):
    def setUp(self):
        scratch = tempfile.TemporaryDirectory()
        self.addCleanup(scratch.cleanup)
        self.folder = pathlib.Path(scratch.name)
        self.template = self.file("chat.jinja", TEMPLATE)

    def file(self, name, content):
        path = self.folder / name
        path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
        return path

    def render(self, *flags, stdin=MESSAGES, template=None):
        done = proa("render", template or self.template, *flags, stdin=stdin if isinstance(stdin, str) else json.dumps(stdin))
        self.assertEqual((done.returncode, done.stderr), (0, ""), flags)
        return done.stdout

    def refused(self, *flags, says, stdin=MESSAGES, template=None, code=1):
        done = proa("render", template or self.template, *flags, stdin=stdin if isinstance(stdin, str) else json.dumps(stdin))
        self.assertEqual((done.returncode, done.stdout), (code, ""), done.stderr)
        self.assertEqual(len(done.stderr.splitlines()), 1, done.stderr)
        self.assertIn(says, done.stderr)

    def test_text(self):
        body = "<|system|>S\n<|user|>Hi <|im_end|> é\n"
        tools = [{"name": "f"}]
        tools_file = self.file("tools.json", tools)
        request = {"messages": MESSAGES, "tools": tools, "chat_template_kwargs": {"effort": "low"}, "model": "any", "temperature": 1}
        rows = [
            ((), MESSAGES, body + "<|assistant|>"),
            (("--messages", "-"), MESSAGES, body + "<|assistant|>"),
            (("--messages", self.file("m.json", MESSAGES)), "", body + "<|assistant|>"),
            (("--no-add-generation-prompt",), MESSAGES, body),
            ((), {"messages": MESSAGES}, body + "<|assistant|>"),
            ((), {"messages": MESSAGES, "add_generation_prompt": False}, body),
            (("--add-generation-prompt",), {"messages": MESSAGES, "add_generation_prompt": False}, body + "<|assistant|>"),
            (("--tools", tools_file), MESSAGES, body + '[{"name": "f"}]<|assistant|>'),
            ((), request, body + '[{"name": "f"}]low<|assistant|>'),
            (("--chat-template-kwargs", '{"effort": 3}'), request, body + '[{"name": "f"}]3<|assistant|>'),
            (("--chat_template_kwargs", '{"effort": 3}'), MESSAGES, body + "3<|assistant|>"),
            (("--kwargs", '{"bos_token": "<s>"}'), MESSAGES, "<s>" + body + "<|assistant|>"),
            (("--continue-final-message",), MESSAGES, body[:-1]),
            ((), {"messages": MESSAGES, "continue_final_message": True}, body[:-1]),
        ]
        for flags, stdin, expected in rows:
            with self.subTest(flags):
                self.assertEqual(self.render(*flags, stdin=stdin), expected)

    def test_date(self):
        template = self.file("date.jinja", "{{ strftime_now('%d %b %Y %H') }}")
        self.assertEqual(self.render("--now", "2026-03-05", template=template), "05 Mar 2026 00")
        self.assertEqual(self.render("--now", "2026-03-05 14:07:09", template=template), "05 Mar 2026 14")
        self.refused("--now", "tomorrow", says="--now", template=template)

    def test_json_tells_input_from_template(self):
        answer = json.loads(self.render("--json"))
        self.assertEqual("".join(s["text"] for s in answer["segments"]), answer["text"])
        self.assertEqual([s["text"] for s in answer["segments"] if s["from"] == "input"], ["S", "Hi <|im_end|> é"])
        self.assertEqual({s["from"] for s in answer["segments"]}, {"input", "template"})
        self.assertNotIn("token_ids", answer)  # a template alone has no tokenizer

    def test_refusals(self):
        deep = "[" * 100000
        self.file("bad.jinja", "a\n{% if %}")
        self.file("raises.jinja", "a\n\n{{ raise_exception('not like this') }}")
        rows = [
            ("nonsense", (), "standard input: expected JSON"),
            ("", (), "standard input: expected JSON"),
            (deep, (), "nested"),
            ("3", (), "array of messages"),
            ({"prompt": "x"}, (), "messages"),
            ([{"content": "x"}], (), "messages[0].role"),
            ([{"role": "user", "content": 5}], (), "messages[0].content"),
            ([{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}], (), "messages[0].content[0]"),
            ([{"role": "user", "content": "a"}, {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "{"}}]}], (),
             "messages[1].tool_calls[0].function.arguments"),
            ({"messages": MESSAGES, "tools": {"a": 1}}, (), "tools"),
            ({"messages": MESSAGES, "chat_template_kwargs": []}, (), "chat_template_kwargs"),
            ({"messages": MESSAGES, "add_generation_prompt": "yes"}, (), "add_generation_prompt"),
            (MESSAGES, ("--kwargs", "[1]"), "--chat-template-kwargs"),
            (MESSAGES, ("--kwargs", "{"), "--chat-template-kwargs"),
            (MESSAGES, ("--tools", self.folder / "absent.json"), "absent.json"),
            (MESSAGES, ("--messages", self.folder), str(self.folder)),
            (MESSAGES, ("--tokens",), "--tokens"),
            (MESSAGES, ("--continue-final-message", "--add-generation-prompt"), "continue_final_message"),
        ]
        for stdin, flags, says in rows:
            with self.subTest(says=says, flags=flags):
                self.refused(*flags, stdin=stdin, says=says)
        self.refused(template=self.folder / "bad.jinja", says="bad.jinja: line 2: ")
        self.refused(template=self.folder / "raises.jinja", says="raises.jinja: line 3: not like this")
        self.refused(template=self.folder / "absent.jinja", says="absent.jinja")
        self.refused("--thinking", "maybe", says="--thinking", code=2)

    def test_hostile_templates_end_soon_and_small(self):
        rows = [
            "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
            "\n{% set n = namespace(x='ab') %}{% for i in range(99) %}{% set n.x = n.x ~ n.x %}{% endfor %}",
            "\n{% set n = namespace(x=[0]) %}{% for i in range(99) %}{% set n.x = n.x + n.x %}{% endfor %}",
            "\n{% set n = namespace(x=0) %}{% for i in range(99999) %}{% set n.x = [n.x] %}{% endfor %}",
            "\n{% set n = namespace(x=[]) %}{% for i in range(99999) %}{% set n.x = namespace(a=n.x, b=range(99999)) %}{% endfor %}",
            "\n{{ 'x' * 10 ** 9 }}",
            "\n{{ range(10 ** 9) }}",
            "\n{% macro m() %}{{ m() }}{{ m() }}{% endmacro %}{{ m() }}",
            "\n{% for x in [1] recursive %}{{ loop([1, 1]) }}{% endfor %}",
            "\n{% for i in range(99999) %}{% macro m() %}{{ i }}{% endmacro %}{% set k = range(999) | list %}{% endfor %}",
            "\n{{ ('{:>99999}' * 99999).format(*range(99999)) }}",
            "\n{% set t = 'a' * 999999 %}{% for i in range(99999) %}{{ (t ~ i) is in t }}{{ t.find('a' * 99999 ~ 'b') }}{% endfor %}",
        ]
        for number, source in enumerate(rows):
            with self.subTest(source):
                template = self.file(f"{number}.jinja", source)
                with subprocess.Popen([PROA, "render", str(template)], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                      stderr=subprocess.PIPE) as process:
                    process.stdin.write(json.dumps(MESSAGES).encode())
                    process.stdin.close()
                    error = process.stderr.read().decode()
                    self.assertEqual(process.stdout.read(), b"")
                    _, status, usage = os.wait4(process.pid, 0)
                    process.returncode = os.waitstatus_to_exitcode(status)
                self.assertEqual(process.returncode, 1, error)
                self.assertRegex(error, rf"^proa: render chat template: .*{number}\.jinja: line \d+: ")
                if "SANITIZE" not in os.environ:
                    self.assertLess(usage.ru_maxrss, 64 * 1024, "KiB of memory")

    @unittest.skipUnless(SMOLLM2, "PROA_SMOLLM2 is not set")
    def test_tokens_are_those_of_chat(self):
        # User text that spells a control token does not become one: <|im_end|> is 2.
        done = proa("render", SMOLLM2, "--tokens", stdin=json.dumps(MESSAGES))
        ids = json.loads(done.stdout)
        self.assertEqual(ids.count(2), 2)
        self.assertEqual(ids, json.loads(proa("render", SMOLLM2, "--json", stdin=json.dumps(MESSAGES)).stdout)["token_ids"])
        asked = proa("run", SMOLLM2, "-p", MESSAGES[1]["content"], "--system", "S", "--max-tokens", "1", "--json")
        self.assertEqual(ids, json.loads(asked.stdout)["prompt_token_ids"])

    def test_help(self):
        done = proa("render", "--help")
        self.assertEqual(done.returncode, 0)
        self.assertIn("Example: ", done.stdout)


# --- answers ---

class Inspect(unittest.TestCase):
    """proa inspect on small checkpoints. Those of full size are in family_test."""

    def setUp(self):
        self.scratch = tempfile.TemporaryDirectory()
        self.addCleanup(self.scratch.cleanup)
        self.folder = pathlib.Path(self.scratch.name) / "model"

    def inspect(self, model, *flags):
        done = proa("inspect", model, "--json", *flags)
        self.assertEqual((done.returncode, done.stderr), (0, ""))
        return json.loads(done.stdout)

    def copy(self, name, **files):
        shutil.copytree(GOLDENS / name, self.folder)
        for file, text in files.items():
            (self.folder / file.replace("__", ".")).write_text(text)
        return self.folder

    def test_json(self):
        report = self.inspect(GOLDENS / "nemotron_h/lightning")
        self.assertEqual(report["container"], "huggingface")
        self.assertEqual((report["files"], report["architecture"]), (2, "NemotronHForCausalLM"))
        self.assertEqual(sum(report["layers"].values()), report["num_hidden_layers"])
        self.assertEqual(sum(row["parameters"] for row in report["weights"]), report["parameters"]["total"])
        self.assertLess(report["parameters"]["active"], report["parameters"]["total"])
        self.assertEqual([row["what"] for row in report["unused"]], ["multi-token prediction"])
        self.assertGreater(report["unused"][0]["count"], 0)
        for context in report["memory"]["contexts"]:
            parts = [context[part] for part in ("weights", "kv", "state", "workspace", "step")]
            self.assertEqual(sum(parts), context["total"])
        self.assertEqual(report["backend"]["on_reference"], [])
        self.assertGreater(report["backend"]["memory_total"], report["backend"]["memory_free"])
        for target in report["backend"]["cuda_architectures"]:  # none in a program without CUDA
            self.assertEqual(target["has_run"], target["name"] == "sm_90a")

    def test_a_folder_and_its_gguf_are_the_same_model(self):
        folder = self.inspect(GOLDENS / "nemotron_h/m_e_attn")
        gguf = self.inspect(GOLDENS / "nemotron_h/m_e_attn/model.gguf")
        for key in ("layer_pattern", "parameters", "step", "hidden_size", "n_routed_experts"):
            self.assertEqual(folder[key], gguf[key], key)

    def test_quantised(self):
        report = self.inspect(GOLDENS / "nemotron_h_quantised/nvfp4")
        self.assertEqual(report["quantization"], "NVFP4, KV cache FP8")
        experts = [row for row in report["weights"] if row["kind"] == "expert"]
        self.assertEqual([row["format"] for row in experts], ["NVFP4"])
        self.assertGreater(experts[0]["bits_per_weight"], 4.5)

    def test_memory_follows_the_flags(self):
        model = GOLDENS / "nemotron_h/m_e_attn"
        (one,) = self.inspect(model, "--max-model-len", 257)["memory"]["contexts"]
        (four,) = self.inspect(model, "--max-model-len", 257, "--max-num-seqs", 4)["memory"]["contexts"]
        (wide,) = self.inspect(model, "--max-model-len", 257, "--kv-cache-dtype", "float32")["memory"]["contexts"]
        self.assertEqual((one["max_model_len"], four["kv"], four["state"]), (257, 4 * one["kv"], 4 * one["state"]))
        self.assertEqual(wide["kv"], 2 * one["kv"])

    def test_ops_on_the_reference(self):
        ops = self.inspect(GOLDENS / "llama/tied", "--device", "reference")["backend"]["on_reference"]
        self.assertIn("attend", ops)
        self.assertEqual(len(ops), len(set(ops)))

    def test_what_is_missing_or_broken_is_said(self):
        report = self.inspect(GOLDENS / "nemotron_h/dense")
        self.assertIn("tokenizer.json", report["tokenizer"]["error"])
        self.assertIsNone(report["chat_template"])
        broken = self.copy("nemotron_h/dense", tokenizer__json="{", chat_template__jinja="{% if %}",
                           generation_config__json='{"temperature": "hot"}')
        report = self.inspect(broken)
        for key, word in (("tokenizer", "tokenizer.json"), ("chat_template", "line 1"), ("generation", "temperature")):
            self.assertIn(word, report[key]["error"], key)
        text = proa("inspect", broken)
        self.assertEqual((text.returncode, text.stderr), (0, ""))
        self.assertEqual(text.stdout.count("not usable: "), 3, text.stdout)

    def test_template(self):
        turns = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"
        rows = [  # template, system, tools, thinking
            (turns, True, False, "no"),
            ("{{ messages[-1].content }}", False, False, "no"),
            (turns + "{% for t in tools or [] %}{{ t.function.name }}{% endfor %}", True, True, "no"),
            (turns + "<think>", True, False, "always"),
            (turns + "{% if enable_thinking is defined and enable_thinking %}<think>{% endif %}", True, False, "off"),
            (turns + "{% if enable_thinking is not defined or enable_thinking %}<think>{% endif %}", True, False, "on"),
        ]
        self.copy("nemotron_h/dense")
        for source, system, tools, thinking in rows:
            (self.folder / "chat_template.jinja").write_text(source)
            found = self.inspect(self.folder)["chat_template"]
            self.assertEqual((found["system"], found["tools"], found["thinking"]), (system, tools, thinking), source)

    def test_text(self):
        done = proa("inspect", GOLDENS / "nemotron_h/m_e_attn/model.gguf")
        self.assertEqual((done.returncode, done.stderr), (0, ""))
        for word in ("model.gguf", "GGUF", "Mamba-2", "experts", "active per token", "bits/weight", "a token reads",
                     "memory for 1 sequence"):
            self.assertIn(word, done.stdout)

    def test_dummy_weights_are_not_made(self):
        report = self.inspect("NVIDIA-Nemotron-3-Super-120B-A12B", "--load-format", "dummy", "-q", "q4_0")
        self.assertEqual(report["parameters"]["total"], 120_668_707_840)
        self.assertGreater(report["tensor_bytes"], 60e9)

    def test_what_is_no_model_is_an_error(self):
        done = proa("inspect", GOLDENS / "quant")
        self.assertEqual((done.returncode, done.stdout), (1, ""))
        self.assertEqual(len(done.stderr.splitlines()), 1)
        self.assertIn("config.json", done.stderr)


class Memory(unittest.TestCase):
    """The plan that is shown before loading, and what is refused by it."""

    def test_the_plan_is_shown_when_asked_for(self):
        model = ROOT / "models/proa-buoy"
        verbose = proa("run", model, "-p", "x", "--max-tokens", "1", "--max-model-len", "64", "-v", "--device", "cpu")
        self.assertEqual(verbose.returncode, 0, verbose.stderr)
        first = verbose.stderr.splitlines()[0]
        self.assertRegex(first, r"^memory: weights .* \+ KV .* \(4 blocks, 64 tokens\) \+ state .* \(1 slot, 9 snapshots\) \+ workspace .* = ")
        self.assertIn("; cpu has ", first)
        quiet = proa("run", model, "-p", "x", "--max-tokens", "1", "--device", "cpu")
        self.assertEqual((quiet.returncode, quiet.stderr), (0, ""))

    @unittest.skipIf(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") > 200e9, "it fits here")
    def test_what_does_not_fit_is_refused_at_once(self):
        done = proa("run", "NVIDIA-Nemotron-3-Super-120B-A12B", "--load-format", "dummy", "-q", "bf16", "-p", "x",
                    "--device", "cpu")
        self.assertEqual((done.returncode, done.stdout), (1, ""))
        self.assertRegex(done.stderr, r"^proa: plan memory: cpu: expected at most .*: weights 241 GB, .*\n$")


@unittest.skipUnless(SMOLLM2, "PROA_SMOLLM2 is not set")
class Answers(unittest.TestCase):
    def ask(self, prompt, *flags, stdin=""):
        arguments = [] if prompt is None else ["-p", prompt]
        done = proa("run", SMOLLM2, *arguments, *flags, stdin=stdin)
        self.assertEqual(done.returncode, 0, done.stderr)
        return done

    def ask_json(self, prompt, *flags):
        return json.loads(self.ask(prompt, "--json", *flags).stdout)

    def test_only_the_answer_is_printed(self):
        flags = ("--temperature", "0", "--max-tokens", "24")
        done = self.ask("What is gravity?", *flags)
        answer = self.ask_json("What is gravity?", *flags)
        self.assertEqual(done.stderr, "")
        self.assertEqual(done.stdout, answer["text"] + "\n")
        self.assertIn("ravity", done.stdout)

    def test_prompt_on_standard_input(self):
        flags = ("--temperature", "0", "--max-tokens", "16")
        self.assertEqual(self.ask(None, *flags, stdin="What is gravity?").stdout, self.ask("What is gravity?", *flags).stdout)

    def test_json(self):
        answer = self.ask_json("Count to five.", "--temperature", "0", "--max-tokens", "12", "--logprobs", "3")
        self.assertEqual(answer["usage"]["completion_tokens"], len(answer["token_ids"]))
        self.assertEqual(answer["usage"]["prompt_tokens"], len(answer["prompt_token_ids"]))
        self.assertEqual([entry["token_id"] for entry in answer["logprobs"]], answer["token_ids"])
        self.assertIn(answer["finish_reason"], ("stop", "length"))
        for entry in answer["logprobs"]:
            self.assertLessEqual(entry["logprob"], 0)
            self.assertEqual(len(entry["top_logprobs"]), 3)
            # Greedy: what was taken is the likeliest.
            self.assertEqual(entry["top_logprobs"][0]["token_id"], entry["token_id"])
            self.assertAlmostEqual(entry["top_logprobs"][0]["logprob"], entry["logprob"], places=5)
        timings = answer["timings"]
        self.assertEqual(timings["prefill_tokens"], answer["usage"]["prompt_tokens"])
        self.assertEqual(timings["decode_tokens"], len(answer["token_ids"]) - 1)
        for name in ("load_s", "first_token_s", "prefill_s", "decode_s"):
            self.assertGreater(timings[name], 0, name)

    def test_max_tokens(self):
        for count in (1, 2, 17):
            with self.subTest(count):
                answer = self.ask_json("Tell me a story.", "--temperature", "0", "--max-tokens", count, "--ignore-eos")
                self.assertEqual((len(answer["token_ids"]), answer["finish_reason"]), (count, "length"))

    def test_stop(self):
        flags = ("--raw", "--temperature", "0", "--max-tokens", "40")
        prompt = "1, 2, 3, 4, 5, 6, 7, 8,"
        whole = self.ask_json(prompt, *flags)["text"]
        self.assertIn("11", whole)
        stopped = self.ask_json(prompt, *flags, "--stop", "11")
        self.assertEqual(stopped["finish_reason"], "stop")
        self.assertEqual(stopped["text"], whole[:whole.index("11")])
        # The first of several that comes.
        either = self.ask_json(prompt, *flags, "--stop", "11", "--stop", "10")
        self.assertEqual(either["text"], whole[:min(whole.index("11"), whole.index("10"))])

    def test_seed(self):
        def sample(seed):
            return self.ask_json("Invent a name for a boat.", "--temperature", "1.2", "--max-tokens", "24", "--seed", seed)["text"]

        first = sample(7)
        self.assertEqual(sample(7), first)
        self.assertTrue(any(sample(seed) != first for seed in (8, 9)))

    def test_underscores_in_flags(self):
        plain = self.ask("Hello", "--temperature", "0", "--max-tokens", "8").stdout
        self.assertEqual(self.ask("Hello", "--temperature", "0", "--max_tokens", "8").stdout, plain)

    def test_values_keep_their_underscores(self):
        flags = ("--raw", "--temperature", "0", "--max-tokens", "1")
        comment = self.ask_json("-- snake_case", *flags)["prompt_token_ids"]
        self.assertNotEqual(comment, self.ask_json("-- snake-case", *flags)["prompt_token_ids"])

    def test_system_message_is_used(self):
        answer = self.ask_json("Hi", "--temperature", "0", "--max-tokens", "1", "--system", "Answer in French, please.")
        other = self.ask_json("Hi", "--temperature", "0", "--max-tokens", "1")
        self.assertNotEqual(answer["prompt_token_ids"], other["prompt_token_ids"])

    def test_multibyte_text_is_whole(self):
        done = subprocess.run([PROA, "run", SMOLLM2, "--raw", "-p", "昔々、あるところに、", "--temperature", "0", "--max-tokens", "32"],
                              capture_output=True, timeout=TIMEOUT_S)
        self.assertEqual(done.returncode, 0)
        done.stdout.decode("utf-8")  # raises on half a character
        self.assertTrue(any(ord(c) > 0x3000 for c in done.stdout.decode()))

    def test_prompt_too_long(self):
        done = proa("run", SMOLLM2, "--max-model-len", "64", "-p", "word " * 200)
        self.assertEqual(done.stdout, "")
        self.assertTrue(0 < done.returncode < 128, done.stderr)
        self.assertEqual(len(done.stderr.splitlines()), 1, done.stderr)

    def test_greedy_as_the_golden(self):
        """The program's own path (template, tokenizer, engine) gives llama.cpp's tokens, up to the first near tie."""
        goldens = json.loads((GOLDENS / "smollm2/goldens.json").read_text())
        noise = max(pair["logit_diff_max"] for pair in goldens["noise"]["weights"].values())
        for prompt in goldens["prompts"]:
            with self.subTest(prompt["name"]):
                golden = prompt["greedy"]["weights"]
                answer = self.ask_json(prompt["text"], "--raw", "--temperature", "0", "--max-tokens", "64", "--ignore-eos",
                                       "--kv-cache-dtype", "float32")
                self.assertEqual(answer["prompt_token_ids"], prompt["token_ids"])
                for ours, theirs, best, second in zip(answer["token_ids"], golden["token_ids"], golden["best_logits"],
                                                      golden["second_logits"]):
                    if best - second <= noise:
                        break  # either may come, and what follows depends on it
                    self.assertEqual(ours, theirs)

    def test_chat_template_as_written_out(self):
        """-p TEXT is the same prompt as the golden that spells the template out."""
        goldens = json.loads((GOLDENS / "smollm2/goldens.json").read_text())
        (spelled,) = [p for p in goldens["prompts"] if p["name"] == "chat_short"]
        answer = self.ask_json("What is gravity?", "--temperature", "0", "--max-tokens", "1")
        self.assertEqual(answer["prompt_token_ids"], spelled["token_ids"])


if __name__ == "__main__":
    unittest.main()
