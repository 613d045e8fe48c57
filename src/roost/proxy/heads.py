"""What a head means and what is passed on of it: hop-by-hop rules, framing fields, forwarding fields.

Heads repeat, so their meaning is memoised by their bytes: this makes the Python part of a request two
to four times cheaper. Never does I/O; never keeps more than ``MEMO_ENTRIES`` heads of ``MEMO_KEY`` bytes.
"""

import re
from dataclasses import dataclass
from typing import Literal

from roost.proxy import framing
from roost.proxy.framing import Body, ChunkedBody, Fields, FramingError, LengthBody, UntilClose

MEMO_ENTRIES = 1024
MEMO_KEY = 2 << 10

_HOST = re.compile(rb"[A-Za-z0-9.\-_~%!$&'()*+,;=\[\]:]*")
_ABSOLUTE = re.compile(rb"https?://([^/?#]+)([/?].*)?", re.IGNORECASE)
_HOP_BY_HOP = frozenset(
    (
        b"connection",
        b"keep-alive",
        b"proxy-connection",
        b"proxy-authenticate",
        b"proxy-authorization",
        b"te",
        b"transfer-encoding",
        b"upgrade",
        b"http2-settings",
    )
)
# Set by this proxy: a client's own claim is dropped.
_OURS = frozenset(
    (
        b"x-forwarded-for",
        b"x-forwarded-proto",
        b"x-forwarded-host",
        b"x-forwarded-port",
        b"x-real-ip",
        b"forwarded",
    )
)
# A Connection field naming one of these must not make it disappear on the way.
_END_TO_END = frozenset((b"host", b"content-length", b"authorization", b"cookie", b"expect"))
# Servers that map fields to CGI-style names read `content_length` as Content-Length.
_TWINS = frozenset((b"content-length", b"transfer-encoding", b"host", b"connection")) | _OURS
_IDEMPOTENT = frozenset((b"GET", b"HEAD", b"OPTIONS", b"PUT", b"DELETE"))
_REFUSED_METHODS = frozenset((b"CONNECT", b"TRACE"))


@dataclass(frozen=True, slots=True)
class RequestFields:
    """The meaning of a request's field block."""

    kept: bytes
    """The lines passed on, each with its line end."""
    host: bytes
    length: int
    """Content-Length; 0 when absent."""
    chunked: bool
    close: bool
    keep_alive: bool
    """``Connection: keep-alive`` was asked for (matters to HTTP/1.0)."""
    upgrade: bytes
    """The protocols offered, empty when no upgrade is asked for."""
    authorization: bytes
    accept: bytes
    has_host: bool


@dataclass(frozen=True, slots=True)
class Request:
    """A request whose head has been read."""

    method: bytes
    target: bytes
    """Origin form: path and query."""
    http11: bool
    fields: RequestFields
    client: str
    """The peer's address."""
    size: int
    """Bytes of the head."""

    @property
    def path(self) -> str:
        """The path, not decoded."""
        return self.target.split(b"?", 1)[0].decode("latin-1")

    @property
    def idempotent(self) -> bool:
        """Whether sending it twice has the effect of sending it once (RFC 9110 section 9.2.2)."""
        return self.method in _IDEMPOTENT

    @property
    def upgrade(self) -> bytes:
        """The protocols offered, empty when no upgrade is asked for."""
        return self.fields.upgrade if self.http11 else b""

    @property
    def closes(self) -> bool:
        """Whether the client's connection ends with the answer."""
        fields = self.fields
        return fields.close or not (self.http11 or fields.keep_alive)

    def body(self) -> Body | None:
        """A reader of its body, None when it has none."""
        if self.fields.chunked:
            return ChunkedBody()
        return LengthBody(self.fields.length) if self.fields.length else None

    def forward(self, proto: bytes = b"http") -> bytes:
        """The head a backend is sent."""
        fields = self.fields
        parts = [
            self.method,
            b" ",
            self.target,
            b" HTTP/1.1\r\n",
            fields.kept,
            b"" if fields.has_host else b"Host: localhost\r\n",
            b"X-Forwarded-For: ",
            self.client.encode(),
            b"\r\nX-Forwarded-Proto: ",
            proto,
            b"\r\nX-Forwarded-Host: ",
            fields.host,
        ]
        if fields.chunked:
            parts.append(b"\r\nTransfer-Encoding: chunked")
        if self.upgrade:
            parts += (b"\r\nConnection: Upgrade\r\nUpgrade: ", fields.upgrade)
        parts.append(b"\r\n\r\n")
        return b"".join(parts)


@dataclass(frozen=True, slots=True)
class ResponseHead:
    """The meaning of a response's head."""

    status: int
    kept: bytes
    """The status line and the fields passed on, without the empty line."""
    length: int | None
    chunked: bool
    keep: bool
    """The backend's connection may be used again."""
    upgrade: bytes

    def body(self, method: bytes, *, decode: bool) -> Body | None:
        """A reader of its body, None when it has none."""
        if method == b"HEAD" or self.status in (204, 304) or self.status < 200:
            return None
        if self.chunked:
            return ChunkedBody(decode=decode)
        if self.length is None:
            return UntilClose()
        return LengthBody(self.length) if self.length else None


_request_memo: dict[bytes, RequestFields] = {}
_response_memo: dict[bytes, ResponseHead] = {}


def read_request(head: bytes, client: str) -> Request:
    """The request of a whole head. Raises ``FramingError``."""
    method, target, http11, begin = framing.request_line(head)
    block = head[begin:]
    fields = _request_memo.get(block)
    if fields is None:
        fields = _request_fields(framing.split_fields(block))
        if len(block) <= MEMO_KEY:
            if len(_request_memo) >= MEMO_ENTRIES:
                _request_memo.clear()
            _request_memo[block] = fields
    if method in _REFUSED_METHODS:
        raise FramingError(501, f"{method.decode()} is not served here")
    if http11 and not fields.has_host:
        raise FramingError(400, "an HTTP/1.1 request needs a Host field")
    if fields.chunked and not http11:
        raise FramingError(400, "Transfer-Encoding in an HTTP/1.0 request")
    if target[:1] != b"/":
        target = _origin_form(method, target)
    return Request(method, target, http11, fields, client, len(head))


def read_response(head: bytes) -> ResponseHead:
    """The meaning of a backend's whole head. Raises ``FramingError`` with status 502."""
    known = _response_memo.get(head)
    if known is None:
        known = _response_head(head)
        if len(head) <= MEMO_KEY:
            if len(_response_memo) >= MEMO_ENTRIES:
                _response_memo.clear()
            _response_memo[head] = known
    return known


def _origin_form(method: bytes, target: bytes) -> bytes:
    absolute = _ABSOLUTE.fullmatch(target)
    if absolute is not None:
        rest: bytes = absolute[2] or b"/"
        return rest if rest[:1] == b"/" else b"/" + rest
    if target == b"*" and method == b"OPTIONS":
        return b"/*"
    raise FramingError(400, "the request target is neither a path nor an http URL")


def _values(fields: Fields, name: bytes) -> list[bytes]:
    return [value for key, value in fields if key == name]


def _tokens(fields: Fields, name: bytes) -> list[bytes]:
    """The comma-separated members of all fields called ``name``, lower case."""
    members = b",".join(_values(fields, name)).lower().split(b",")
    return [member.strip(b" \t") for member in members if member.strip(b" \t")]


def _length(fields: Fields) -> int | None:
    values = _values(fields, b"content-length")
    if not values:
        return None
    if len(values) > 1:
        raise FramingError(400, "Content-Length is given more than once")
    if not values[0].isdigit() or len(values[0]) > 18:
        raise FramingError(400, "Content-Length is not a plain number")
    return int(values[0])


def _chunked(fields: Fields, length: int | None) -> bool:
    values = _values(fields, b"transfer-encoding")
    if not values:
        return False
    if length is not None:
        raise FramingError(400, "both Content-Length and Transfer-Encoding")
    if len(values) > 1 or values[0].lower() != b"chunked":
        raise FramingError(400, "the only transfer coding served is chunked")
    return True


def _is_dropped(name: bytes, nominated: frozenset[bytes], ours: frozenset[bytes]) -> bool:
    if name in _HOP_BY_HOP or name in ours:
        return True
    if name in nominated and name not in _END_TO_END:
        return True
    return b"_" in name and name.replace(b"_", b"-") in _TWINS


def _request_fields(fields: Fields) -> RequestFields:
    length = _length(fields)
    chunked = _chunked(fields, length)
    hosts = _values(fields, b"host")
    if len(hosts) > 1:
        raise FramingError(400, "Host is given more than once")
    host = hosts[0] if hosts else b""
    if _HOST.fullmatch(host) is None:
        raise FramingError(400, "Host is not a host name")
    if [v for v in _values(fields, b"expect") if v.lower() != b"100-continue"]:
        raise FramingError(417, "the only expectation served is 100-continue")
    connection = frozenset(_tokens(fields, b"connection"))
    upgrade = b", ".join(_values(fields, b"upgrade")) if b"upgrade" in connection else b""
    if length or chunked or b"h2c" in upgrade.lower():
        upgrade = b""
    kept = b"".join(
        name + b": " + value + b"\r\n"
        for name, value in fields
        if not _is_dropped(name, connection, _OURS)
    )
    return RequestFields(
        kept=kept,
        host=host,
        length=length or 0,
        chunked=chunked,
        close=b"close" in connection,
        keep_alive=b"keep-alive" in connection,
        upgrade=upgrade,
        authorization=next(iter(_values(fields, b"authorization")), b""),
        accept=b",".join(_values(fields, b"accept")),
        has_host=bool(hosts),
    )


def _response_head(head: bytes) -> ResponseHead:
    try:
        http11, status, reason, begin = framing.status_line(head)
        fields = framing.split_fields(head[begin:])
        length = _length(fields)
        chunked = _chunked(fields, length)
    except FramingError as error:
        raise FramingError(502, f"the backend's answer: {error.message}") from error
    connection = frozenset(_tokens(fields, b"connection"))
    bodiless = status < 200 or status == 204
    parts = [b"HTTP/1.1 %d " % status, reason, b"\r\n"]
    for name, value in fields:
        if _is_dropped(name, connection, frozenset()) or (bodiless and name == b"content-length"):
            continue
        parts += (name, b": ", value, b"\r\n")
    return ResponseHead(
        status=status,
        kept=b"".join(parts),
        length=length,
        chunked=chunked and not bodiless,
        keep=b"close" not in connection and (http11 or b"keep-alive" in connection),
        upgrade=b", ".join(_values(fields, b"upgrade")),
    )


class ResponseReader:
    """Reads one response (interim heads included) out of a backend's bytes."""

    __slots__ = ("_body", "_buffer", "_decode", "_method", "done", "head", "rest")

    def __init__(self, method: bytes, *, decode: bool) -> None:
        self._method = method
        self._decode = decode
        self._buffer = b""
        self._body: Body | None = None
        self.head: ResponseHead | None = None
        """The final head, once read."""
        self.done = False
        self.rest = b""
        """Bytes after the response: the tunnel's first, or a protocol error."""

    def feed(self, data: bytes) -> list[ResponseHead | bytes]:
        """Heads and pieces of the body, in order. Raises ``FramingError`` with status 502."""
        events: list[ResponseHead | bytes] = []
        while self.head is None:
            self._buffer += data
            data = b""
            try:
                end = framing.head_end(self._buffer)
            except FramingError as error:
                raise FramingError(502, f"the backend's answer: {error.message}") from error
            if end < 0:
                return events
            head = read_response(self._buffer[:end])
            self._buffer = self._buffer[end:]
            events.append(head)
            if head.status >= 200 or head.status == 101:
                self._begin(head)
                data, self._buffer = self._buffer, b""
        self._feed_body(data, events)
        return events

    def ended(self) -> Literal["clean", "cut", "empty"]:
        """What the end of the backend's connection means now."""
        if self.head is None:
            return "empty"
        return "clean" if self.done or isinstance(self._body, UntilClose) else "cut"

    @property
    def trailers(self) -> Fields:
        """Fields after a chunked body, once the response is done."""
        return self._body.trailers if isinstance(self._body, ChunkedBody) else []

    @property
    def untouched(self) -> bool:
        """Not a byte of the answer has arrived."""
        return self.head is None and not self._buffer

    def _begin(self, head: ResponseHead) -> None:
        self.head = head
        self._body = head.body(self._method, decode=self._decode)
        self.done = self._body is None

    def _feed_body(self, data: bytes, events: list[ResponseHead | bytes]) -> None:
        if self._body is None or self.done:
            self.rest += data
            return
        if not data:
            return
        try:
            out, self.rest = self._body.feed(data)
        except FramingError as error:
            raise FramingError(502, f"the backend's answer: {error.message}") from error
        self.done = self._body.done
        if out:
            events.append(out)
