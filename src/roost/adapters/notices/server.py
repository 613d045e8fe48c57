"""The metadata service of one instance, on its own loopback address, in the dialect of its cloud.

Runs in daemon threads of the instance's first process. It only ever answers from the notices it is
given a reader for; it never decides when an instance ends.
"""

import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from socketserver import TCPServer
from urllib.parse import parse_qsl, urlsplit

import msgspec

from roost.adapters.notices.model import Answer, Dialect, ReadNotices, Request
from roost.ports.clock import Clock

LONGEST_BODY = 64 << 10
_LOOK_S = 0.1
"""A waiting long poll looks for changes this often."""


class MetadataServer:
    """Serves on a free port of ``address`` until the process ends or ``close``."""

    def __init__(self, address: str, dialect: Dialect, read: ReadNotices, *, clock: Clock) -> None:
        self._server = _Server(address, dialect, read, clock)
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()

    @property
    def url(self) -> str:
        """Its base address, ``http://<address>:<port>``."""
        host, port = self._server.server_address[:2]
        return f"http://{host!s}:{port}"

    def close(self) -> None:
        """Stop; waiting polls are answered."""
        self._server.closing.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, address: str, dialect: Dialect, read: ReadNotices, clock: Clock) -> None:
        self._dialect = dialect
        self._read = read
        self._clock = clock
        self.closing = threading.Event()
        super().__init__((address, 0), _Handler)

    def server_bind(self) -> None:
        """Without the base class's look-up of a domain name, which may take seconds."""
        TCPServer.server_bind(self)
        self.server_name, self.server_port = str(self.server_address[0]), self.server_address[1]

    def decide(self, request: Request) -> Answer:
        """The answer, after waiting for a change where the request asks for it."""
        began = self._clock.monotonic_s()
        while True:
            found = self._dialect.answer(request, self._read())
            if isinstance(found, Answer):
                return found
            late = self._clock.monotonic_s() - began >= found.seconds
            if late or self.closing.wait(_LOOK_S):
                request = msgspec.structs.replace(request, final=True)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server_version = "Metadata"
    sys_version = ""
    timeout = 60.0
    server: _Server

    def do_GET(self) -> None:
        self._answer()

    def do_PUT(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        self._answer()

    def log_message(self, format: str, *args: object) -> None:
        """Polls once a second are not worth a log."""

    def _answer(self) -> None:
        length = self.headers.get("Content-Length", "0")
        known = length.isascii() and length.isdigit() and "Transfer-Encoding" not in self.headers
        if not known or int(length) > LONGEST_BODY:
            self.close_connection = True
            self._send(Answer(status=413, body="too large"))
            return
        target = urlsplit(self.path)
        request = Request(
            method=self.command,
            path=target.path,
            query=dict(parse_qsl(target.query, keep_blank_values=True)),
            headers={name.lower(): value for name, value in self.headers.items()},
            body=self.rfile.read(int(length)),
        )
        self._send(self.server.decide(request))

    def _send(self, answer: Answer) -> None:
        body = answer.body.encode()
        self.send_response(answer.status)
        self.send_header("Content-Type", answer.content_type)
        self.send_header("Content-Length", str(len(body)))
        for name, value in answer.headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)
