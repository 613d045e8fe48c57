"""What a backend's answer means and what is passed on of it. Never does I/O.

Whole heads are memoised with the bytes that are passed on: most answers differ in their body only.
"""

import re
from typing import Literal

from roost.proxy import framing
from roost.proxy.fields import (
    CODING,
    CONNECTION,
    LENGTH,
    LOAD,
    MEANINGS,
    UPGRADE,
    Names,
    Special,
    content_length,
    is_chunked,
)
from roost.proxy.framing import Body, ChunkedBody, Fields, FramingError, LengthBody, UntilClose
from roost.proxy.heads import Memo

_LOAD = re.compile(rb"active=([0-9]{1,6});\s*slots=([0-9]{1,6})(?:;.*)?")
_names = Names(MEANINGS | {b"roost-load": LOAD})


class ResponseHead:
    """The meaning of a response's head. Shared by all responses that have these very bytes."""

    __slots__ = (
        "chunked",
        "closing",
        "keep",
        "kept",
        "length",
        "load",
        "plain",
        "status",
        "upgrade",
        "whole",
    )

    status: int
    kept: bytes
    """The status line and the fields passed on, without the empty line."""
    whole: bytes
    """All of the head for an HTTP/1.1 client whose connection goes on ..."""
    closing: bytes
    """... and where it ends."""
    length: int | None
    chunked: bool
    keep: bool
    """The backend's connection may be used again."""
    upgrade: bytes
    load: tuple[int, int] | None
    """The backend's own load: requests in flight, slots."""
    plain: bool
    """A final answer with a body of known length (none of the cases that need a closer look)."""

    def body(self, method: bytes, *, decode: bool) -> Body | None:
        """A reader of its body, None when it has none. ``decode``: the client knows no chunks."""
        if method == b"HEAD" or self.status in (204, 304) or self.status < 200:
            return None
        if self.chunked:
            return ChunkedBody(decode=decode)
        if self.length is None:
            return UntilClose(chunk=not decode)
        return LengthBody(self.length) if self.length else None

    def changed(self, changes: tuple[tuple[bytes, bytes], ...]) -> bytes:
        """``kept`` with fields set (empty: removed; ``set-cookie``: added)."""
        names = {name for name, _ in changes if name != b"set-cookie"}
        begin, *lines = self.kept[:-2].split(b"\r\n")
        kept = [line for line in lines if line[: line.index(b":")].lower() not in names]
        kept += [name + b": " + value for name, value in changes if value]
        return b"".join(line + b"\r\n" for line in (begin, *kept))


_memo: Memo[ResponseHead] = Memo()


def read_response(head: bytes) -> ResponseHead:
    """The meaning of a backend's whole head. Raises ``FramingError`` with status 502."""
    memo = _memo
    if not memo.pause:
        found = memo.entries.get(head)
        if found is not None:
            memo.novel = 0
            return found
    else:
        memo.pause -= 1
    found = _response_head(head)
    memo.put(head, found)
    return found


def _response_head(head: bytes) -> ResponseHead:
    try:
        http11, status, reason, begin = framing.status_line(head)
        special = Special(head[begin:], _names)
        values = special.values
        length = chunked = None
        if values:
            length = content_length(values.get(LENGTH, []))
            chunked = is_chunked(values.get(CODING, []), length)
    except FramingError as error:
        raise FramingError(502, f"the backend's answer: {error.message}") from error
    bodiless = status < 200 or status == 204
    out = ResponseHead()
    out.status = status
    out.kept = b"HTTP/1.1 %d %b\r\n" % (status, reason) + special.kept
    if bodiless and length is not None:
        out.kept = _without_length(out.kept)
    out.length = length
    out.chunked = bool(chunked) and not bodiless
    out.keep = http11
    if CONNECTION in values:
        asked = special.options
        out.keep = not asked.close and (http11 or asked.keep_alive)
    out.upgrade = b", ".join(values.get(UPGRADE, ()))
    out.load = _load(values[LOAD]) if LOAD in values else None
    tail = b"Transfer-Encoding: chunked\r\n\r\n" if out.chunked else b"\r\n"
    out.whole = out.kept + tail
    out.closing = out.kept + b"Connection: close\r\n" + tail
    out.plain = 200 <= status < 500 and status not in (204, 304) and length is not None and out.keep
    return out


def _load(values: list[bytes]) -> tuple[int, int] | None:
    match = _LOAD.fullmatch(values[0])
    return (int(match[1]), int(match[2])) if match else None


def _without_length(kept: bytes) -> bytes:
    """RFC 9110 section 8.6: no Content-Length in 1xx and 204."""
    lines = kept.split(b"\r\n")
    return b"\r\n".join(line for line in lines if line[:15].lower() != b"content-length:")


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
    def untouched(self) -> bool:
        """Not a byte of the final answer has arrived."""
        return self.head is None and not self._buffer

    @property
    def rechunked(self) -> bool:
        """The body ends with the backend's connection and is passed on as chunks."""
        return isinstance(self._body, UntilClose) and self._body.chunk

    @property
    def trailers(self) -> Fields:
        """Fields after a chunked body, once the response is done."""
        return self._body.trailers if isinstance(self._body, ChunkedBody) else []

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
