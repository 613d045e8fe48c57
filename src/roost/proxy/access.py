"""The access log of one worker: a line for each finished exchange, JSON or combined.

The hot path appends a record to a list. A timer renders them, a thread of its own writes them, so that a
slow disk or a reader that has stopped reading a pipe never holds a request up: then lines are lost, and
counted. Several workers append to one file, whole lines at a time.
"""

import contextlib
import logging
import os
import queue
import threading
from collections.abc import Callable
from functools import lru_cache
from time import gmtime, strftime

import msgspec

from roost.ports.errors import Invalid
from roost.proxy.plan import Finished
from roost.proxy.policy import AccessLog

log = logging.getLogger(__name__)

PENDING_BYTES = 8 << 20
"""Rendered lines that wait for the disk; more are lost."""
RECORDS = 50_000
"""Records that wait for the timer; more are lost."""
STANDARD_OUTPUT = "-"
_JSON = msgspec.json.Encoder().encode
_NO_ANSWER = 499
"""What logs traditionally say when the client left first."""


class Line(msgspec.Struct, omit_defaults=True):
    """One line of the JSON format."""

    time: str
    client: str
    method: str
    host: str
    target: str
    status: int
    bytes_in: int
    bytes_out: int
    ms: float
    route: str
    outcome: str
    backend: str = ""
    retries: int = 0
    hedged: bool = False
    request_id: str = ""
    refused: str = ""


@lru_cache(maxsize=4)
def _second(unix_s: int, pattern: str) -> str:
    return strftime(pattern, gmtime(unix_s))


def _stamp(unix_s: float) -> str:
    return f"{_second(int(unix_s), '%Y-%m-%dT%H:%M:%S')}.{int(unix_s % 1 * 1000):03d}Z"


def as_json(record: Finished, unix_s: float) -> bytes:
    """A line without its end."""
    upstream = record.upstream
    return _JSON(
        Line(
            time=_stamp(unix_s),
            client=record.client,
            method=record.method.decode("latin-1"),
            host=record.host.decode("latin-1"),
            target=record.target.decode("latin-1"),
            status=record.status,
            bytes_in=record.bytes_in,
            bytes_out=record.bytes_out,
            ms=round(record.seconds * 1000, 3),
            route=record.route,
            outcome=record.outcome,
            backend=upstream.address if upstream is not None else "",
            retries=record.retries,
            hedged=record.hedged,
            request_id=record.request_id.decode("latin-1"),
            refused=record.refused,
        )
    )


def _quoted(text: bytes) -> bytes:
    """Nothing a client sends may end the field or the line, or speak to a terminal."""
    if text.isascii() and b'"' not in text and b"\\" not in text and text.decode().isprintable():
        return text
    plain = (chr(b) if 32 <= b < 127 and b not in b'"\\' else f"\\x{b:02x}" for b in text)
    return "".join(plain).encode()


def as_combined(record: Finished, unix_s: float) -> bytes:
    """The format most tools read; referrer and user agent are not kept ("-")."""
    line = b"%b %b HTTP/1.1" % (_quoted(record.method), _quoted(record.target))
    when = _second(int(unix_s), "%d/%b/%Y:%H:%M:%S +0000")
    return b'%b - - [%b] "%b" %d %d "-" "-"' % (
        _quoted(record.client.encode()),
        when.encode(),
        line if record.method else b"-",
        record.status or _NO_ANSWER,
        record.bytes_out,
    )


class AccessWriter:
    """An observer that writes. Call ``flush`` a few times a second, ``close`` at the end."""

    def __init__(self, wanted: AccessLog, unix_offset_s: float) -> None:
        """``unix_offset_s``: Unix time minus the loop's clock. Raises ``Invalid``."""
        self.wanted = wanted
        self.lost = 0
        """Lines that could not be written."""
        self._offset_s = unix_offset_s
        self._render: Callable[[Finished, float], bytes]
        self._render = as_json if wanted.format == "json" else as_combined
        self._records: list[Finished] = []
        self._lines: queue.SimpleQueue[tuple[bytes, int] | None] = queue.SimpleQueue()
        self._pending = 0
        self._written = 0
        """Only the thread adds to it; ``_pending`` minus it waits for the disk."""
        self._file = self._open()
        self._thread = threading.Thread(target=self._write, name="access log", daemon=True)
        self._thread.start()

    def _open(self) -> int:
        if self.wanted.path == STANDARD_OUTPUT:
            return os.dup(1)
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
        try:
            return os.open(self.wanted.path, flags, 0o640)
        except OSError as error:
            raise Invalid(
                f"the access log {self.wanted.path} cannot be opened: {error.strerror}"
            ) from None

    def done(self, record: Finished) -> None:
        """See ``Observer``."""
        if len(self._records) < RECORDS:
            self._records.append(record)
        else:
            self.lost += 1

    def flush(self) -> None:
        """Render what has come and hand it to the thread."""
        if not self._records:
            return
        records, self._records = self._records, []
        if self._pending - self._written > PENDING_BYTES:
            self.lost += len(records)
            return
        render, offset_s = self._render, self._offset_s
        lines = [render(record, record.began_s + offset_s) for record in records]
        data = b"\n".join(lines) + b"\n"
        self._pending += len(data)
        self._lines.put((data, len(lines)))

    def reopen(self) -> None:
        """The file was moved away (logrotate): what comes from now on goes to a new one."""
        self.flush()
        self._lines.put((b"", 0))

    def close(self, limit_s: float = 1.0) -> None:
        """Write what is left, as far as that is possible at once."""
        self.flush()
        self._lines.put(None)
        self._thread.join(limit_s)

    # --- the thread --------------------------------------------------------------------------------

    def _write(self) -> None:
        while (item := self._lines.get()) is not None:
            data, lines = item
            if not data:
                self._replace_file()
            elif not self._written_whole(data):
                self.lost += lines
            self._written += len(data)
        os.close(self._file)

    def _replace_file(self) -> None:
        try:
            file = self._open()
        except Invalid as error:
            log.error("%s: the old file is kept", error.message)
            return
        os.close(self._file)
        self._file = file

    def _written_whole(self, data: bytes) -> bool:
        view = memoryview(data)
        with contextlib.suppress(OSError):  # a full disk, a closed pipe
            while view:
                view = view[os.write(self._file, view) :]
        return not view
