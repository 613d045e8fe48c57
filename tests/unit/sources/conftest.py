"""A vendor to ask: a real HTTP server on this machine that says what a test tells it to say."""

import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest


@dataclass
class Answer:
    """What the server says.

    ``cut``: it promises the whole body and hangs up after so many bytes; ``hold``: it says nothing before.
    """

    body: bytes = b""
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    etag: str = ""
    cut: int | None = None
    hold: threading.Event | None = None


@dataclass
class Asked:
    """What the server was asked."""

    method: str
    path: str
    query: dict[str, list[str]]
    headers: dict[str, str]
    body: Any


class Vendor:
    """Paths and their answers; of several answers each is given once, the last for ever."""

    def __init__(self) -> None:
        self.answers: dict[str, list[Answer]] = {}
        self.asked: list[Asked] = []
        vendor = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def _serve(self) -> None:
                length = int(self.headers.get("Content-Length", "0"))
                content = self.rfile.read(length)
                vendor.serve(self, content)

            do_GET = do_POST = _serve

            def log_message(self, format: str, *args: object) -> None:
                """Quiet."""

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True)
        self.thread.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server.server_port}"

    def on(self, path: str, *answers: Answer | bytes | str | dict[str, Any] | list[Any]) -> None:
        self.answers[path] = [_answer(one) for one in answers]

    def serve(self, handler: BaseHTTPRequestHandler, content: bytes) -> None:
        parts = urlsplit(handler.path)
        try:
            body = json.loads(content) if content else None
        except ValueError:
            body = content.decode()
        query = parse_qs(parts.query)
        headers = {name.lower(): value for name, value in handler.headers.items()}
        self.asked.append(Asked(handler.command, parts.path, query, headers, body))
        left = self.answers.get(parts.path)
        if left is None:
            said = Answer(status=404, body=b"no such path")
        else:
            said = left.pop(0) if len(left) > 1 else left[0]
        if said.etag and headers.get("if-none-match") == said.etag:
            said = Answer(status=304, etag=said.etag)
        if said.hold is not None:
            said.hold.wait(60)
        handler.send_response(said.status)
        for name, value in said.headers.items():
            handler.send_header(name, value)
        if said.etag:
            handler.send_header("ETag", said.etag)
        if said.status != 304:
            handler.send_header("Content-Length", str(len(said.body)))
        handler.end_headers()
        if said.cut is None:
            if said.status != 304:
                handler.wfile.write(said.body)
        else:
            handler.wfile.write(said.body[: said.cut])
            handler.close_connection = True

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()
        self.thread.join(5)


def _answer(one: Answer | bytes | str | dict[str, Any] | list[Any]) -> Answer:
    if isinstance(one, Answer):
        return one
    if isinstance(one, bytes):
        return Answer(one)
    return Answer(one.encode() if isinstance(one, str) else json.dumps(one).encode())


@pytest.fixture
def vendor() -> Iterator[Vendor]:
    made = Vendor()
    yield made
    made.close()
