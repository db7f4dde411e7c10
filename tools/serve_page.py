#!/usr/bin/env python3
"""The page of `proa serve` in a headless Chromium: asks a question, stops an answer, looks at the plots while other clients
are served, keeps pictures; then a server that asks for a key, and one whose answers begin with thoughts.

    tools/serve_page.py build/release/apps/proa models/proa-buoy --output docs/page.png

Needs `pip install playwright` and a Chromium (--chromium).
"""
import argparse
import contextlib
import json
import pathlib
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request

from playwright.sync_api import expect, sync_playwright

from serve_clients import Load


@contextlib.contextmanager
def served(*command):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    server = subprocess.Popen([*command, "--host", "127.0.0.1", "--port", str(port)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        url = f"http://127.0.0.1:{port}/"
        for _ in range(300):
            try:
                urllib.request.urlopen(url + "health", timeout=1)
                break
            except OSError:
                time.sleep(0.1)
        yield url
    finally:
        server.terminate()
        server.wait(30)


def asks_for_the_key(browser, options):
    with served(options.proa, "serve", options.model, "--api-key", "secret") as url:
        page = browser.new_page()
        page.goto(url)
        expect(page.locator("#key")).to_be_visible()
        page.fill("#key", "secret")
        page.press("#key", "Enter")
        expect(page.locator("#model")).not_to_be_empty()
        expect(page.locator("#key")).to_be_hidden()
        page.fill("#text", "Who are you?")
        page.press("#text", "Enter")
        expect(page.locator("#send")).to_have_text("Send", timeout=60000)
        return bool(page.locator(".turn").nth(1).inner_text().strip()) and page.locator(".error").count() == 0


def folds_thoughts(browser, options):
    """With a template that leaves thoughts open, and a budget that ends them: the model itself need not think."""
    with tempfile.NamedTemporaryFile("w", suffix=".jinja") as template:
        source = pathlib.Path(options.model, "chat_template.jinja").read_text()
        template.write(source.replace("<think></think>", "<think>I"))
        template.flush()
        flags = ["--reasoning-parser", "nemotron_v3", "--chat-template", template.name]
        with served(options.proa, "serve", options.model, *flags) as url:
            page = browser.new_page()
            page.route("**/v1/chat/completions", lambda route: route.continue_(
                post_data=json.dumps({**route.request.post_data_json, "thinking_token_budget": 8, "temperature": 0})))
            page.goto(url)
            expect(page.locator("#model")).not_to_be_empty()
            page.fill("#text", "Who are you?")
            page.press("#text", "Enter")
            expect(page.locator("#send")).to_have_text("Send", timeout=60000)
            thoughts = page.locator(".turn").nth(1).locator("details")
            folded = thoughts.is_visible() and thoughts.get_attribute("open") is None
            return folded and bool(thoughts.locator("div").text_content().strip()) and page.locator(".error").count() == 0


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("proa")
    parser.add_argument("model")
    parser.add_argument("--output", default="page.png", help="the picture; a second one as on a phone beside it")
    parser.add_argument("--chromium", default=shutil.which("chromium"))
    options = parser.parse_args()
    with served(options.proa, "serve", options.model) as url:
        with sync_playwright() as play:
            browser = play.chromium.launch(executable_path=options.chromium, args=["--no-sandbox"])
            page = browser.new_page(viewport={"width": 1100, "height": 700})
            problems, elsewhere = [], []
            page.on("pageerror", lambda error: problems.append(str(error)))
            page.on("console", lambda line: problems.append(line.text) if line.type == "error" else None)
            page.on("request", lambda request: elsewhere.append(request.url)
                    if not request.url.startswith((url, "data:")) else None)
            page.goto(url)
            expect(page.locator("#model")).not_to_be_empty()
            page.fill("#text", "Who are you?")
            page.press("#text", "Enter")
            expect(page.locator("#send")).to_have_text("Stop")
            expect(page.locator("#send")).to_have_text("Send", timeout=60000)
            first = page.locator(".turn").nth(1).inner_text()
            page.fill("#text", "Tell me everything about the sea.")
            page.click("#send")
            expect(page.locator("#send")).to_have_text("Stop")
            page.click("#send")
            expect(page.locator("#send")).to_have_text("Send")
            page.fill("#text", "And what is a buoy?")
            page.press("#text", "Enter")
            expect(page.locator("#send")).to_have_text("Send", timeout=60000)
            with Load(url.rstrip("/")):
                page.wait_for_timeout(12000)
                decode = page.locator("figure").first.inner_text()
                points = page.locator("polyline").first.get_attribute("points") or ""
                page.screenshot(path=options.output)
                page.set_viewport_size({"width": 390, "height": 780})
                wide = page.evaluate("document.documentElement.scrollWidth")
                page.screenshot(path=re.sub(r"(\.\w+)$", r"-phone\1", options.output))
            keyed = asks_for_the_key(browser, options)
            folded = folds_thoughts(browser, options)
            browser.close()
        checks = {"an answer": bool(first.strip()), "plots move": len(set(y for _, y in (p.split(",") for p in points.split()))) >= 2 and "tok/s" in decode,
                  "nothing from elsewhere": not elsewhere, "no error in the browser": not problems,
                  "fits a phone": wide <= 390, "asks for a key where there is one": keyed,
                  "thoughts are folded": folded}
        for name, holds in checks.items():
            print(f"{name}: {'yes' if holds else 'NO'}")
        for problem in problems + elsewhere:
            print(problem, file=sys.stderr)
        return 0 if all(checks.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
