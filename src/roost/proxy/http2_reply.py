"""Reads back the HTTP/1.1 answer that a ``ClientConnection`` writes, for HTTP/2 to send. Pure.

The bytes are our own, checked when they came from the backend: here they only change their form. Heads
repeat, so what they mean is remembered by their bytes.
"""

from dataclasses import dataclass

from roost.proxy.framing import (
    Body,
    ChunkedBody,
    Fields,
    LengthBody,
    head_end,
    split_fields,
    status_line,
)

MEMO_ENTRIES = 1024
MEMO_KEY = 2 << 10

# RFC 9113 section 8.2.2: these speak of the HTTP/1.1 connection.
_HOP_BY_HOP = frozenset(
    (b"connection", b"proxy-connection", b"keep-alive", b"transfer-encoding", b"upgrade")
)


@dataclass(frozen=True, slots=True)
class ReplyHead:
    """A head as HTTP/2 has it."""

    status: int
    fields: Fields
    """``:status`` and the lower-case fields. Shared: not to be changed."""
    length: int | None
    chunked: bool

    def body(self, method: bytes) -> Body | None:
        """A reader of its body, None when it has none."""
        if method == b"HEAD" or self.status in (204, 304):
            return None
        if self.chunked:
            return ChunkedBody(decode=True)
        return LengthBody(self.length) if self.length else None


_memo: dict[bytes, ReplyHead] = {}


def _read_head(head: bytes) -> ReplyHead:
    known = _memo.get(head)
    if known is None:
        _, status, _, begin = status_line(head)
        fields = [(b":status", b"%d" % status)]
        length = None
        chunked = False
        for name, value in split_fields(head[begin:]):
            if name == b"content-length":
                length = int(value)
            elif name == b"transfer-encoding":
                chunked = True
            if name not in _HOP_BY_HOP:
                fields.append((name, value))
        known = ReplyHead(status, fields, length, chunked)
        if len(head) <= MEMO_KEY:
            if len(_memo) >= MEMO_ENTRIES:
                _memo.clear()
            _memo[head] = known
    return known


class ReplyReader:
    """One answer, interim heads included."""

    __slots__ = ("_body", "_buffer", "_method", "done", "head")

    def __init__(self, method: bytes) -> None:
        self._method = method
        self._buffer = b""
        self._body: Body | None = None
        self.head: ReplyHead | None = None
        """The final head, once read."""
        self.done = False

    def feed(self, data: bytes) -> list[ReplyHead | bytes]:
        """Heads and pieces of the body, in order. Raises ``FramingError``."""
        events: list[ReplyHead | bytes] = []
        while self.head is None:
            self._buffer += data
            data = b""
            end = head_end(self._buffer)
            if end < 0:
                return events
            head = _read_head(self._buffer[:end])
            self._buffer = self._buffer[end:]
            events.append(head)
            if head.status >= 200 or head.status == 101:
                self.head = head
                self._body = head.body(self._method)
                self.done = self._body is None
                data, self._buffer = self._buffer, b""
        if self._body is not None and data and not self.done:
            out, _ = self._body.feed(data)
            self.done = self._body.done
            if out:
                events.append(out)
        return events

    @property
    def trailers(self) -> Fields:
        """Fields after a chunked body, once done."""
        return self._body.trailers if isinstance(self._body, ChunkedBody) else []
