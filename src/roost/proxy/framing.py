"""Strict HTTP/1.1 framing: where a head ends, its lines, and where a body ends. Never does I/O.

Whatever two parsers could read differently is refused (RFC 9112 sections 2-7, read strictly): bare LF,
obs-fold, a space before a colon, control characters, odd chunk sizes. Every limit is a constant here.
"""

import re
from typing import Protocol

HEAD_LIMIT = 64 << 10
"""Largest head (request line and fields), in bytes."""
TARGET_LIMIT = 16 << 10
"""Longest request target, in bytes."""
FIELD_LIMIT = 100
"""Most fields in a head."""
CHUNK_LINE_LIMIT = 4 << 10
"""Longest chunk-size line with its extensions, in bytes."""
TRAILER_LIMIT = 16 << 10
"""Largest trailer section, in bytes."""

_TOKEN = rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]"
_VALUE = rb"[\t\x20-\x7e\x80-\xff]"
_REQUEST_LINE = re.compile(rb"(" + _TOKEN + rb"{1,32}+) ([\x21\x22\x24-\x7e]++) HTTP/1\.([01])\r\n")
_STATUS_LINE = re.compile(rb"HTTP/1\.([01]) ([1-5][0-9][0-9])(?: (" + _VALUE + rb"*+))?\r\n")
_FIELDS = re.compile(rb"(?:" + _TOKEN + rb"++:" + _VALUE + rb"*+\r\n)*+\r\n")
FIELD_LINE = re.compile(_TOKEN + rb"++:" + _VALUE + rb"*+")
"""One field, without its line end."""
_CHUNK_LINE = re.compile(rb"([0-9A-Fa-f]{1,15}+)(?:[ \t]*+;" + _VALUE + rb"*+)?\r\n")
_BARE_LF = re.compile(rb"(?<!\r)\n")
_BARE_CR = re.compile(rb"\r(?!\n)")
_CONTROL = re.compile(rb"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")
# Fields that must not arrive after the body: acting on them late is how requests are smuggled.
_NOT_IN_TRAILERS = frozenset(
    (
        b"content-length",
        b"transfer-encoding",
        b"trailer",
        b"te",
        b"upgrade",
        b"host",
        b"connection",
        b"authorization",
        b"cookie",
    )
)

Fields = list[tuple[bytes, bytes]]
"""Lower-case names and stripped values, in order."""


_REASONS = {
    408: "timeout",
    413: "too_large",
    414: "too_large",
    417: "expectation",
    431: "too_large",
    501: "method",
    505: "version",
}


class FramingError(Exception):
    """The peer broke the protocol. ``status`` is what a client is told; the connection must close."""

    def __init__(self, status: int, message: str, *, desync: bool = False) -> None:
        """``desync``: two servers could have read it as different requests."""
        super().__init__(message)
        self.status = status
        self.message = message
        self.reason = "desync" if desync else _REASONS.get(status, "syntax")
        """One of a few, for counters."""


def head_end(buffer: bytes, start: int = 0) -> int:
    """The index after the head's empty line, or -1 when more bytes are needed.

    ``start`` says up to where an earlier call has looked. Raises ``FramingError`` as soon as the head
    can be told to be too large (431, 414) or to use bare line feeds (400).
    """
    at = buffer.find(b"\r\n\r\n", max(0, start - 3))
    if at >= 0 and at + 4 <= HEAD_LIMIT:
        return at + 4
    if at >= 0 or len(buffer) > HEAD_LIMIT:
        raise too_large(buffer, HEAD_LIMIT)
    if _BARE_LF.search(buffer, max(0, start - 1)):
        raise FramingError(400, "a line ends with a bare line feed", desync=True)
    return -1


def too_large(buffer: bytes, limit: int) -> FramingError:
    """Of a head beyond ``limit``: what makes it so."""
    if buffer.find(b"\n", 0, min(limit, TARGET_LIMIT + 64)) < 0:
        return FramingError(414, "the request target is too long")
    return FramingError(431, f"the request head is larger than {limit} bytes")


def request_line(head: bytes) -> tuple[bytes, bytes, bool, int]:
    """Method, target, whether the version is 1.1, and where the fields begin."""
    match = _REQUEST_LINE.match(head)
    if match is None:
        raise _bad_start(head)
    method, target, minor = match.groups()
    if len(target) > TARGET_LIMIT:
        raise FramingError(414, f"the request target is longer than {TARGET_LIMIT >> 10} KiB")
    return method, target, minor == b"1", match.end()


def status_line(head: bytes) -> tuple[bool, int, bytes, int]:
    """Whether the version is 1.1, the status, the reason, and where the fields begin."""
    match = _STATUS_LINE.match(head)
    if match is None:
        raise FramingError(502, "the backend's status line is malformed")
    minor, status, reason = match.groups()
    return minor == b"1", int(status), reason or b"", match.end()


def field_lines(block: bytes) -> list[bytes]:
    """The lines of ``block``, which begins after the start line and ends with the empty line."""
    if _FIELDS.fullmatch(block) is None:
        raise bad_fields(block)
    lines = block[:-4].split(b"\r\n") if len(block) > 2 else []
    if len(lines) > FIELD_LIMIT:
        raise FramingError(431, f"more than {FIELD_LIMIT} fields")
    return lines


def split_fields(block: bytes) -> Fields:
    """The fields of ``block``: see ``field_lines``."""
    fields: Fields = []
    for line in field_lines(block):
        name, _, value = line.partition(b":")
        fields.append((name.lower(), value.strip(b" \t")))
    return fields


def _bad_start(head: bytes) -> FramingError:
    line = head.split(b"\n", 1)[0].rstrip(b"\r")
    if _CONTROL.search(line):
        return FramingError(400, "a control character in the request line", desync=True)
    parts = line.split(b" ")
    if len(parts) == 3 and re.fullmatch(rb"HTTP/\d\.\d", parts[2]) and parts[2][:7] != b"HTTP/1.":
        return FramingError(505, "only HTTP/1.0 and HTTP/1.1 are spoken here")
    return FramingError(400, "the request line is malformed")


def bad_fields(block: bytes) -> FramingError:
    """Say which rule was broken (the slow path: only for heads that are refused)."""
    if b"\x00" in block:
        return FramingError(400, "a NUL byte in the head", desync=True)
    if _BARE_LF.search(block) or _BARE_CR.search(block):
        return FramingError(
            400, "a line ends with a bare carriage return or line feed", desync=True
        )
    if _CONTROL.search(block):
        return FramingError(400, "a control character in the head", desync=True)
    for line in block.split(b"\r\n"):
        if line[:1] in (b" ", b"\t"):
            return FramingError(400, "a folded field (obs-fold)", desync=True)
        name, colon, _ = line.partition(b":")
        if colon and name.rstrip(b" \t") != name:
            return FramingError(400, "a space before the colon of a field", desync=True)
    return FramingError(400, "a malformed field")


class Body(Protocol):
    """Finds the end of a body in bytes that arrive in any pieces."""

    done: bool

    def feed(self, data: bytes) -> tuple[bytes, bytes]:
        """What to pass on now, and what lies after the body. Raises ``FramingError``."""


class LengthBody:
    """A body of Content-Length bytes."""

    __slots__ = ("done", "remaining")

    def __init__(self, length: int) -> None:
        self.remaining = length
        self.done = length == 0

    def feed(self, data: bytes) -> tuple[bytes, bytes]:
        size = len(data)
        if size < self.remaining:
            self.remaining -= size
            return data, b""
        cut = self.remaining
        self.remaining = 0
        self.done = True
        return (data, b"") if cut == size else (data[:cut], data[cut:])


class UntilClose:
    """A response body that ends with the connection.

    ``chunk``: passed on as chunks, so that a body that was cut cannot look whole to the client.
    """

    __slots__ = ("chunk", "done")

    def __init__(self, *, chunk: bool = False) -> None:
        self.chunk = chunk
        self.done = False

    def feed(self, data: bytes) -> tuple[bytes, bytes]:
        return (b"%x\r\n%b\r\n" % (len(data), data) if self.chunk else data), b""


class ChunkedBody:
    """A chunked body: passed on as it is once checked, or (``decode``) as its payload only.

    No byte of a size line or trailer is passed on before the whole line is known to be good; at most
    one such line (or the trailers, up to ``TRAILER_LIMIT``) is kept.
    """

    __slots__ = ("_decode", "_line", "_need", "_state", "done", "trailers")

    _SIZE, _DATA, _DATA_END, _TRAILERS = range(4)

    def __init__(self, *, decode: bool = False) -> None:
        self.done = False
        self._decode = decode
        self._state = self._SIZE
        self._need = 0
        self._line = b""
        self.trailers: Fields = []
        """Fields after the body, once it is done."""

    def feed(self, data: bytes) -> tuple[bytes, bytes]:
        if self._line:
            data = self._line + data
            self._line = b""
        at = 0
        good = 0
        payload: list[bytes] = []
        size = len(data)
        while not self.done and at < size:
            if self._state == self._DATA:
                step = min(self._need, size - at)
                if self._decode:
                    payload.append(data[at : at + step])
                at = good = at + step
                self._need -= step
                if self._need == 0:
                    self._state = self._DATA_END
                continue
            end = self._line_end(data, at)
            if end < 0:
                self._line = data[at:]
                break
            at = good = end
        out = b"".join(payload) if self._decode else data if good == size else data[:good]
        return out, data[at:] if self.done else b""

    def _line_end(self, data: bytes, at: int) -> int:
        """Read the structural line at ``at``; the index after it, or -1 when it is incomplete."""
        if self._state == self._DATA_END:
            return self._data_end(data, at)
        if self._state == self._TRAILERS:
            return self._trailers(data, at)
        match = _CHUNK_LINE.match(data, at, at + CHUNK_LINE_LIMIT)
        if match is None:
            line_end = data.find(b"\n", at)
            if line_end >= 0 or len(data) - at >= CHUNK_LINE_LIMIT:
                raise FramingError(400, "a malformed chunk size", desync=True)
            if re.match(rb"[0-9A-Fa-f]{1,15}(?![0-9A-Fa-f])|[0-9A-Fa-f]{0,15}$", data[at:]) is None:
                raise FramingError(400, "a malformed chunk size", desync=True)
            return -1
        self._need = int(match[1], 16)
        self._state = self._DATA if self._need else self._TRAILERS
        return match.end()

    def _data_end(self, data: bytes, at: int) -> int:
        end = data[at : at + 2]
        if end == b"\r\n":
            self._state = self._SIZE
            return at + 2
        if end == b"\r":
            return -1
        raise FramingError(400, "a chunk does not end where its size says", desync=True)

    def _trailers(self, data: bytes, at: int) -> int:
        if data.startswith(b"\r\n", at):
            self.done = True
            return at + 2
        end = data.find(b"\r\n\r\n", at)
        if end < 0:
            if len(data) - at > TRAILER_LIMIT:
                raise FramingError(431, f"trailers larger than {TRAILER_LIMIT >> 10} KiB")
            if _BARE_LF.search(data, at):
                raise FramingError(400, "a trailer line ends with a bare line feed", desync=True)
            return -1
        if end + 4 - at > TRAILER_LIMIT:
            raise FramingError(431, f"trailers larger than {TRAILER_LIMIT >> 10} KiB")
        self.trailers = split_fields(data[at : end + 4])
        for name, _ in self.trailers:
            if name in _NOT_IN_TRAILERS:
                raise FramingError(400, f"{name.decode()} in the trailers", desync=True)
        self.done = True
        return end + 4
