"""A hub on this machine: an HTTP server with the addresses that huggingface_hub asks for."""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"
# Larger files have a SHA-256, as with Git LFS; smaller ones git's own checksum.
LARGE = 100_000


class HubServer:
    """Serves folders as repositories.

    Attributes:
        url: address, for `--endpoint` and `HF_ENDPOINT`.
        requests: method, path and Range header of every request.
        break_at: bytes of a large file after which the connection breaks and the server refuses more; None: none.
        falsify: whether large files come with a changed last byte.
    """

    def __init__(self, repositories: dict[str, Path]) -> None:
        self.repositories = repositories
        self.requests: list[tuple[str, str, str | None]] = []
        self.break_at: int | None = None
        self.falsify = False
        hub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:  # noqa: N802
                hub.answer(self)

            do_HEAD = do_GET  # noqa: N815

            def log_message(self, *args: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"

    def paths(self, method: str = "GET") -> list[str]:
        return [path for each, path, _ in self.requests if each == method]

    def answer(self, handler: BaseHTTPRequestHandler) -> None:
        path = urlsplit(handler.path).path
        self.requests.append((handler.command, path, handler.headers.get("Range")))
        listing = re.fullmatch(r"/api/models/([^/]+/[^/]+)(/revision/[^/]+)?", path)
        file = re.fullmatch(r"(?:/stored)?/([^/]+/[^/]+)/resolve/[^/]+/(.+)", path)
        if listing and listing[1] in self.repositories:
            self._send(handler, json.dumps(self._info(listing[1])).encode())
        elif file and file[1] in self.repositories and (self.repositories[file[1]] / file[2]).is_file():
            self._send_file(handler, self.repositories[file[1]] / file[2], path)
        else:
            known = any(f"/{name}/" in path for name in self.repositories)
            self._send(handler, b"{}", 404, {"X-Error-Code": "EntryNotFound" if known else "RepoNotFound"})

    def _info(self, name: str) -> dict:
        folder = self.repositories[name]
        siblings = []
        for file in sorted(path for path in folder.rglob("*") if path.is_file()):
            content = file.read_bytes()
            entry = {"rfilename": str(file.relative_to(folder)), "size": len(content), "blobId": git_sha1(content)}
            if len(content) > LARGE:
                entry["lfs"] = {"sha256": sha256(content), "size": len(content), "pointerSize": 130}
            siblings.append(entry)
        return {"id": name, "sha": COMMIT, "siblings": siblings}

    def _send_file(self, handler: BaseHTTPRequestHandler, file: Path, path: str) -> None:
        """Large files are on another address, as on the hub."""
        content = file.read_bytes()
        etag = sha256(content) if len(content) > LARGE else git_sha1(content)
        large = len(content) > LARGE
        if large and not path.startswith("/stored"):
            location = {"Location": f"/stored{path}", "X-Linked-Size": str(len(content)), "X-Linked-ETag": f'"{etag}"'}
            self._send(handler, b"", 302, location | {"ETag": f'"{etag}"', "X-Repo-Commit": COMMIT})
            return
        if large and self.falsify:
            content = content[:-1] + bytes([content[-1] ^ 1])
        total, status = len(content), 200
        headers = {"ETag": f'"{etag}"', "X-Repo-Commit": COMMIT, "Accept-Ranges": "bytes"}
        if range_header := handler.headers.get("Range"):
            start = int(re.match(r"bytes=(\d+)-", range_header)[1])
            content, status = content[start:], 206
            headers["Content-Range"] = f"bytes {start}-{total - 1}/{total}"
        if large and handler.command == "GET" and self.break_at is not None:
            if range_header:
                self._send(handler, b"", 503)
                return
            content = content[: self.break_at]
            headers["Content-Length"] = str(total)
            handler.close_connection = True
        self._send(handler, content, status, headers)

    def _send(
        self, handler: BaseHTTPRequestHandler, content: bytes, status: int = 200, headers: dict[str, str] | None = None
    ) -> None:
        handler.send_response(status)
        for name, value in ({"Content-Length": str(len(content))} | (headers or {})).items():
            handler.send_header(name, value)
        handler.end_headers()
        if handler.command == "GET":
            handler.wfile.write(content)


@contextlib.contextmanager
def running_hub(repositories: dict[str, Path]) -> Iterator[HubServer]:
    """Runs a hub in a thread, without a proxy in between."""
    hub = HubServer(repositories)
    thread = threading.Thread(target=hub.server.serve_forever, args=(0.05,))
    thread.start()
    try:
        yield hub
    finally:
        hub.server.shutdown()
        thread.join()
        hub.server.server_close()


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def git_sha1(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
