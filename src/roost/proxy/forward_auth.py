"""Asking another server whether a request may pass (forward auth). Fails closed.

Only routes that want it pay for it: one GET over a few kept connections of their own, its time bounded as
a whole. A request's body is never sent there, and nothing of an answer is kept.
"""

import asyncio
import ssl
from urllib.parse import urlsplit

from roost.proxy import policy
from roost.proxy.answers import Answer
from roost.proxy.framing import FramingError, split_fields
from roost.proxy.heads import Request
from roost.proxy.plan import Pairs
from roost.proxy.responses import ResponseHead, ResponseReader

IDLE_CONNECTIONS = 16
IDLE_S = 4.0
"""A connection idle for longer is not used again."""
BODY_LIMIT = 64 << 10
"""Longest body of a refusal that is passed on."""
WAITING_LIMIT = 1000
"""Most questions to one server at once; beyond, requests are refused."""
_READ = 64 << 10

# Not passed on to the auth server: framing, what is about the body, and what would make its answer
# something else than a yes or no.
_NOT_ASKED = frozenset(
    (
        b"host",
        b"connection",
        b"upgrade",
        b"content-length",
        b"content-encoding",
        b"expect",
        b"trailer",
        b"accept-encoding",
        b"range",
        b"if-match",
        b"if-none-match",
        b"if-modified-since",
        b"if-unmodified-since",
        b"if-range",
        b"x-forwarded-method",
        b"x-forwarded-uri",
        b"x-forwarded-for",
        b"x-forwarded-host",
        b"x-forwarded-proto",
        b"forwarded",
    )
)
# Made anew for the client, or about the connection to the auth server.
_NOT_TOLD = frozenset(
    (
        b"connection",
        b"keep-alive",
        b"content-length",
        b"content-type",
        b"transfer-encoding",
        b"trailer",
        b"date",
        b"cache-control",
        b"server",
    )
)


class _Garbage(Exception):
    """The auth server's answer is none."""


class _Stale(Exception):
    """A kept connection had been closed by the other side."""


_Connection = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class AuthServer:
    """One server that is asked for one route."""

    def __init__(self, auth: policy.ForwardAuth) -> None:
        """Raises ``ValueError`` where the URL is none."""
        self._host, self._port, self._tls, authority, self._target = split_url(auth.url)
        self._authority = authority.encode()
        self._context = ssl.create_default_context() if self._tls else None
        self._timeout_s = auth.timeout_s
        self._copied = tuple(name.lower().encode() for name in auth.copy_headers)
        self._idle: list[tuple[float, _Connection]] = []
        self._asking = 0

    async def ask(self, request: Request) -> Answer | Pairs:
        """The refusal, or the fields to set on the request (see ``plan.AdmitLater``)."""
        if self._asking >= WAITING_LIMIT:
            return _unknown("too many requests wait for it")
        self._asking += 1
        try:
            async with asyncio.timeout(self._timeout_s):
                head, body = await self._asked(self._question(request))
        except TimeoutError:
            return _unknown("it did not answer in time")
        except (OSError, EOFError):
            return _unknown("it cannot be reached")
        except (_Garbage, FramingError):
            return Answer(502, "the server that says who may pass gave no valid answer")
        finally:
            self._asking -= 1
        return self._verdict(head, body)

    def close(self) -> None:
        """Let go of kept connections."""
        for _, (_, writer) in self._idle:
            writer.close()
        self._idle.clear()

    # --- the question ------------------------------------------------------------------------------

    def _question(self, request: Request) -> bytes:
        kept = [
            line
            for line in request.fields.kept.split(b"\r\n")
            if line and line.partition(b":")[0].lower().replace(b"_", b"-") not in _NOT_ASKED
        ]
        lines = [
            b"GET " + self._target + b" HTTP/1.1",
            b"Host: " + self._authority,
            *kept,
            b"X-Forwarded-Method: " + request.method,
            b"X-Forwarded-Uri: " + request.target,
            b"X-Forwarded-Host: " + request.fields.host,
            b"X-Forwarded-Proto: " + request.origin.proto,
            b"X-Forwarded-For: " + request.client.encode(),
            b"\r\n",
        ]
        return b"\r\n".join(lines)

    async def _asked(self, question: bytes) -> tuple[ResponseHead, bytes]:
        while True:
            connection = self._kept()
            reused = connection is not None
            if connection is None:
                connection = await asyncio.open_connection(
                    self._host, self._port, ssl=self._context
                )
            keep = False
            try:
                head, body, keep = await _exchange(connection, question)
                return head, body
            except (_Stale, ConnectionError):
                if not reused:
                    raise EOFError from None
            finally:
                if keep and len(self._idle) < IDLE_CONNECTIONS:
                    now_s = asyncio.get_running_loop().time()
                    self._idle.append((now_s, connection))
                else:
                    connection[1].transport.abort()

    def _kept(self) -> _Connection | None:
        now_s = asyncio.get_running_loop().time()
        while self._idle:
            since_s, (reader, writer) = self._idle.pop()
            if now_s - since_s <= IDLE_S and not reader.at_eof() and not writer.is_closing():
                return reader, writer
            writer.transport.abort()
        return None

    # --- the answer ----------------------------------------------------------------------------------

    def _verdict(self, head: ResponseHead, body: bytes) -> Answer | Pairs:
        fields = split_fields(head.kept.partition(b"\r\n")[2] + b"\r\n")
        if 200 <= head.status < 300:
            return self._pairs(fields)
        content_type = b", ".join(value for name, value in fields if name == b"content-type")
        told = [
            (name.decode(), value.decode("latin-1"))
            for name, value in fields
            if name not in _NOT_TOLD
        ]
        return Answer(
            head.status,
            fields=tuple(told),
            body=body,
            content_type=content_type.decode("latin-1") or "text/plain; charset=utf-8",
        )

    def _pairs(self, fields: list[tuple[bytes, bytes]]) -> Pairs:
        """All copied fields: one the server did not send is removed, or a client could send its own."""
        return tuple(
            (name, b", ".join(value for key, value in fields if key == name))
            for name in self._copied
        )


async def _exchange(connection: _Connection, question: bytes) -> tuple[ResponseHead, bytes, bool]:
    reader, writer = connection
    answer = ResponseReader(b"GET", decode=True)
    body = bytearray()
    writer.write(question)
    while not answer.done:
        data = await reader.read(_READ)
        if not data:
            ended = answer.ended()
            if ended == "empty":
                raise _Stale
            if ended == "cut":
                raise _Garbage
            break
        for event in answer.feed(data):
            if isinstance(event, bytes):
                body += event
        if len(body) > BODY_LIMIT:
            raise _Garbage
    head = answer.head
    if head is None or head.status < 200:
        raise _Garbage
    return head, bytes(body), head.keep and answer.done and not answer.rest


def _unknown(why: str) -> Answer:
    return Answer(503, f"the server that says who may pass: {why}", retry_after_s=2)


def split_url(url: str) -> tuple[str, int, bool, str, bytes]:
    """Host, port, whether TLS, authority and target of a URL. Raises ``ValueError``."""
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError(f"{url!r} is not an http or https URL")
    if parts.username or parts.fragment or _has_odd(url):
        raise ValueError(f"{url!r} has parts that are not sent: user names, fragments or spaces")
    port = parts.port or (443 if parts.scheme == "https" else 80)
    target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    return parts.hostname, port, parts.scheme == "https", parts.netloc, target.encode("ascii")


def _has_odd(text: str) -> bool:
    """Whether a URL has what may not stand in a request line."""
    return any(not 0x21 <= ord(letter) <= 0x7E for letter in text)
