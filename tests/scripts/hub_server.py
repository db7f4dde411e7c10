"""A hub for tests, on 127.0.0.1: answers as Hugging Face's does, and misbehaves on request.

    with Hub({"config.json": b"{}"}) as hub: ...

Large files (`lfs`) are redirected to a second server on another port, the store. What goes wrong is a list of faults per
path: each is used once, in order, then the file is served as it should be. A fault is a function of (handler, content).
Every request is kept in `hub.requests`, as (method, path, headers, port).
"""
import hashlib
import http.server
import json
import re
import threading
import time
import urllib.parse

COMMIT = "c0ffee" + "0" * 34
ID = "org/name"


def sha256(content):
    return hashlib.sha256(content).hexdigest()


def git_sha1(content):
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


# --- faults ---

def status(code, **headers):
    def fault(handler, content):
        handler.head(code, {"Content-Length": "5", **{k.replace("_", "-"): v for k, v in headers.items()}})
        handler.wfile.write(b"oops\n")
    return fault


def drop_after(size):
    """Promises everything from the asked offset, sends `size` bytes and hangs up."""
    def fault(handler, content):
        start = handler.start_of_range()
        handler.head(206 if start else 200, {"Content-Length": str(len(content) - start), **handler.range_header(start, content)})
        handler.wfile.write(content[start:start + size])
        handler.close_connection = True
    return fault


def ignore_range(handler, content):
    handler.head(200, {"Content-Length": str(len(content))})
    handler.wfile.write(content)


def wrong_range(handler, content):
    start = handler.start_of_range()
    handler.head(206, {"Content-Length": str(len(content)), "Content-Range": f"bytes 0-{len(content) - 1}/{len(content)}"})
    handler.wfile.write(content)
    assert start


def wrong_then_drop(handler, content):
    handler.head(200, {"Content-Length": str(len(content))})
    handler.wfile.write(b"wrong")
    handler.close_connection = True


def wrong_content(handler, content):
    handler.serve(bytes(byte ^ 1 for byte in content))


def shorter(handler, content):
    handler.head(200, {"Content-Length": str(len(content) - 7)})
    handler.wfile.write(content[:-7])


def longer(handler, content):
    handler.head(200, {"Content-Length": str(len(content) + 7)})
    handler.wfile.write(content + b"surplus")


def without_length(handler, content):
    handler.head(200, {"Connection": "close"})
    handler.wfile.write(content)
    handler.close_connection = True


def trickle(handler, content):
    handler.head(200, {"Content-Length": str(len(content))})
    try:
        for i in range(80):
            handler.wfile.write(content[i:i + 1])
            handler.wfile.flush()
            time.sleep(0.1)
    except OSError:
        pass
    handler.close_connection = True


def silent(handler, content):
    time.sleep(3)
    handler.close_connection = True


def redirect(location, code=302):
    def fault(handler, content):
        handler.head(code, {"Location": location, "Content-Length": "0"})
    return fault


def endless_headers(handler, content):
    handler.send_response(200)
    for i in range(2000):
        handler.send_header(f"X-Filler-{i}", "y" * 60)
    handler.end_headers()
    handler.close_connection = True


def slowly(seconds):
    def fault(handler, content):
        time.sleep(seconds)
        handler.serve(content)
    return fault


# --- the servers ---

class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *args):
        pass

    def head(self, code, headers):
        self.send_response(code)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()

    def start_of_range(self):
        match = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        return int(match.group(1)) if match else 0

    def range_header(self, start, content):
        return {"Content-Range": f"bytes {start}-{len(content) - 1}/{len(content)}"} if start else {}

    def serve(self, content, extra=()):
        start = self.start_of_range()
        if start >= len(content) and start:
            return self.head(416, {"Content-Length": "0", "Content-Range": f"bytes */{len(content)}"})
        body = content[start:]
        self.head(206 if start else 200,
                  {"Content-Length": str(len(body)), **self.range_header(start, content), **dict(extra)})
        if self.command != "HEAD":
            self.wfile.write(body)

    def do_HEAD(self):
        self.answer()

    def do_GET(self):
        self.answer()

    def answer(self):
        hub = self.server.hub
        path = urllib.parse.unquote(self.path.split("?")[0])
        with hub.lock:
            hub.requests.append((self.command, self.path, dict(self.headers), self.server.server_port))
            fault = None
            for key in (f"{self.command} {path}", path):
                if hub.faults.get(key):
                    fault = hub.faults[key].pop(0)
                    break
        try:
            (hub.answer_store if self.server is hub.store else hub.answer_hub)(self, path, fault)
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True


class Server(http.server.ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64

    def __init__(self, hub):
        super().__init__(("127.0.0.1", 0), Handler)
        self.hub = hub
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()

    def handle_error(self, request, client_address):
        pass  # clients that hang up are part of the tests


class Hub:
    def __init__(self, files, lfs=(), token="", blobs=True, id=ID, commit=COMMIT):
        """`blobs`: the listing tells sizes and hashes, as the real one does when asked to; else HEAD requests must."""
        self.files, self.lfs, self.token, self.blobs, self.id, self.commit = dict(files), set(lfs), token, blobs, id, commit
        self.revisions = {"main": commit, commit: commit}
        self.faults, self.requests, self.lock = {}, [], threading.Lock()
        self.listing = None  # to be sent in place of the true one: a JSON value, or bytes
        self.server, self.store = Server(self), Server(self)

    url = property(lambda self: f"http://127.0.0.1:{self.server.server_port}")
    store_url = property(lambda self: f"http://127.0.0.1:{self.store.server_port}")

    def __enter__(self):
        return self

    def __exit__(self, *args):
        for server in (self.server, self.store):
            server.shutdown()
            server.server_close()

    def fail(self, path, *faults):
        """Faults for a file of the hub, in order; "store:FILE" for what the store answers, "HEAD:FILE" for HEAD requests."""
        if path.startswith("store:"):
            key = "/store/" + sha256(self.files[path[6:]])
        elif path == "listing":
            key = f"/api/models/{self.id}/revision/main"
        else:
            method, _, name = path.rpartition(":")
            key = (method + " " if method else "") + f"/{self.id}/resolve/{self.commit}/{name}"
        self.faults.setdefault(key, []).extend(faults)

    def etag(self, name):
        return sha256(self.files[name]) if name in self.lfs else git_sha1(self.files[name])

    def sibling(self, name):
        content = self.files[name]
        entry = {"rfilename": name}
        if self.blobs:
            entry |= {"size": len(content), "blobId": git_sha1(content if name not in self.lfs else b"pointer of " + content)}
            if name in self.lfs:
                entry["lfs"] = {"sha256": sha256(content), "size": len(content), "pointerSize": 130}
        return entry

    def tree_entry(self, name):
        sibling = self.sibling(name)
        entry = {"type": "file", "path": name, "size": sibling["size"], "oid": sibling["blobId"]}
        if "lfs" in sibling:
            entry["lfs"] = {"oid": sibling["lfs"]["sha256"], "size": sibling["size"], "pointerSize": 130}
        return entry

    def true_listing(self):
        return {"id": self.id, "sha": self.commit, "siblings": [self.sibling(name) for name in sorted(self.files)]}

    def gets(self, name):
        """GET requests that reached the content of a file."""
        return [r for r in self.requests if r[0] == "GET" and (
            r[1].endswith("/store/" + sha256(self.files[name])) if name in self.lfs
            else urllib.parse.unquote(r[1]).endswith(f"/{self.commit}/{name}"))]

    def answer_hub(self, handler, path, fault):
        if fault:
            return fault(handler, self.files.get(path.rpartition(f"/{self.commit}/")[2], b""))
        if self.token and handler.headers.get("Authorization") != f"Bearer {self.token}":
            return handler.head(401, {"Content-Length": "0", "X-Error-Code": "GatedRepo",
                                      "X-Error-Message": "Access is restricted."})
        if path.startswith(f"/api/models/{self.id}/revision/"):
            if path.rpartition("/revision/")[2] not in self.revisions:
                return handler.head(404, {"Content-Length": "0", "X-Error-Code": "RevisionNotFound"})
            listing = self.true_listing() if self.listing is None else self.listing
            return handler.serve(listing if isinstance(listing, bytes) else json.dumps(listing).encode())
        if path == f"/api/models/{self.id}/tree/{self.commit}":  # huggingface_hub's way to the same
            return handler.serve(json.dumps([self.tree_entry(name) for name in sorted(self.files)]).encode())
        name = path.removeprefix(f"/{self.id}/resolve/{self.commit}/")
        if name not in self.files:
            return handler.head(404, {"Content-Length": "0", "X-Error-Code": "EntryNotFound"})
        content = self.files[name]
        if name in self.lfs:
            return handler.head(302, {"Location": f"{self.store_url}/store/{sha256(content)}", "Content-Length": "0",
                                      "X-Repo-Commit": self.commit, "X-Linked-Etag": f'"{sha256(content)}"',
                                      "X-Linked-Size": str(len(content))})
        return handler.serve(content, {"ETag": f'"{git_sha1(content)}"', "X-Repo-Commit": self.commit}.items())

    def answer_store(self, handler, path, fault):
        for content in self.files.values():
            if path == "/store/" + sha256(content):
                return fault(handler, content) if fault else handler.serve(content, {"ETag": '"of-the-store"'}.items())
        return fault(handler, b"") if fault else handler.head(404, {"Content-Length": "0"})
