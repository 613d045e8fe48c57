"""What the supervisor of the gateway and its workers tell each other, and the socket it goes over.

One message is one datagram of a unix socket pair (SOCK_SEQPACKET), so none is ever read in part. What is
large (a configuration) and what only the kernel can pass (listening sockets) travels as descriptors
beside it. The end of the other process is the end of the channel. Linux only.
"""

import asyncio
import logging
import os
import socket
from collections import deque
from collections.abc import Callable, Mapping, Sequence

import msgspec

from roost.proxy import policy

log = logging.getLogger(__name__)

MESSAGE_BYTES = 64 << 10
DESCRIPTORS = 250
"""Most descriptors the kernel passes with one message (SCM_MAX_FD is 253)."""


class Snapshot(msgspec.Struct, frozen=True, kw_only=True):
    """All a worker serves by. Its version rises with every change."""

    version: int
    gateway: policy.Gateway
    workers: int
    """Bounds for all workers together are shared out over so many."""
    obtained: tuple[policy.Certificate, ...] = ()
    """Certificates from an ACME server, beside those of the file."""


class _Message(msgspec.Struct, frozen=True, kw_only=True, tag=True, tag_field="k"):
    pass


class Configure(_Message, frozen=True, kw_only=True, tag="configure"):
    """The first descriptor holds a ``Snapshot``; the others are the sockets of these listeners."""

    version: int
    listeners: tuple[str, ...]


class Health(_Message, frozen=True, kw_only=True, tag="health"):
    """What the active probes found: the descriptor holds a table of ``service/address`` -> up."""


class Challenges(_Message, frozen=True, kw_only=True, tag="challenges"):
    """ACME http-01: token -> answer."""

    tokens: dict[str, str]


class Drain(_Message, frozen=True, kw_only=True, tag="drain"):
    """Accept nothing more, end within ``seconds``.

    ``silenced``: the kernel drops new connections already; those it had accepted are served first.
    """

    seconds: float
    silenced: bool


class Reopen(_Message, frozen=True, kw_only=True, tag="reopen"):
    """The access log was moved away: open it anew."""


class Applied(_Message, frozen=True, kw_only=True, tag="applied"):
    """A worker's answer to ``Configure``; an empty error means that it serves by it."""

    version: int
    error: str = ""


Message = Configure | Health | Challenges | Drain | Reopen | Applied

_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Message).decode
_read_snapshot = msgspec.msgpack.Decoder(Snapshot).decode
_read_table = msgspec.msgpack.Decoder(dict[str, bool]).decode


def stored(content: Snapshot | Mapping[str, bool]) -> int:
    """A descriptor of memory that holds ``content``; the caller closes it."""
    descriptor = os.memfd_create("roost-gateway", os.MFD_CLOEXEC)
    view = memoryview(_encode(content))
    while view:
        view = view[os.write(descriptor, view) :]
    return descriptor


def restored(descriptor: int) -> Snapshot:
    """The snapshot behind a descriptor, which stays open: others read it too."""
    return _read_snapshot(_whole(descriptor))


def restored_table(descriptor: int) -> dict[str, bool]:
    """The table of health behind a descriptor."""
    return _read_table(_whole(descriptor))


def _whole(descriptor: int) -> bytes:
    return os.pread(descriptor, os.fstat(descriptor).st_size, 0)


def pair() -> tuple[socket.socket, socket.socket]:
    """The two ends of a new channel."""
    return socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)


class Channel:
    """One end. ``heard`` gets each message with its descriptors; ``ended`` is called once."""

    def __init__(
        self,
        sock: socket.socket,
        heard: Callable[[Message, list[int]], None],
        ended: Callable[[], None],
    ) -> None:
        self._sock = sock
        self._heard = heard
        self._ended = ended
        self._waiting: deque[tuple[bytes, tuple[int, ...]]] = deque()
        self._loop: asyncio.AbstractEventLoop | None = None
        self.closed = False
        sock.setblocking(False)

    def start(self, loop: asyncio.AbstractEventLoop) -> None:
        """Begin to listen."""
        self._loop = loop
        loop.add_reader(self._sock, self._readable)

    def tell(self, message: Message, descriptors: Sequence[int] = ()) -> None:
        """Send, in order. The descriptors are duplicated: the caller keeps its own."""
        if self.closed:
            return
        self._waiting.append((_encode(message), tuple(os.dup(d) for d in descriptors)))
        self._flush()

    def fileno(self) -> int:
        """The descriptor, for a program that takes this one's place."""
        return self._sock.fileno()

    def close(self) -> None:
        """No more of it; ``ended`` is not called."""
        if self.closed:
            return
        self.closed = True
        if self._loop is not None:
            self._loop.remove_reader(self._sock)
            self._loop.remove_writer(self._sock)
        for _, descriptors in self._waiting:
            _close_all(descriptors)
        self._waiting.clear()
        self._sock.close()

    def _flush(self) -> None:
        assert self._loop is not None
        while self._waiting:
            data, descriptors = self._waiting[0]
            try:
                socket.send_fds(self._sock, [data], descriptors)
            except BlockingIOError:
                self._loop.add_writer(self._sock, self._flush)
                return
            except OSError:
                self._end()
                return
            self._waiting.popleft()
            _close_all(descriptors)
        self._loop.remove_writer(self._sock)

    def _readable(self) -> None:
        try:
            data, descriptors, _, _ = socket.recv_fds(self._sock, MESSAGE_BYTES, DESCRIPTORS)
        except BlockingIOError:
            return
        except OSError:
            self._end()
            return
        if not data:
            self._end()
            return
        try:
            message = _decode(data)
        except msgspec.DecodeError:
            # Another version of the program at the other end knows messages this one does not.
            log.warning("a message of the other side is not understood: ignored")
            _close_all(descriptors)
            return
        self._heard(message, descriptors)

    def _end(self) -> None:
        if not self.closed:
            self.close()
            self._ended()


def _close_all(descriptors: Sequence[int]) -> None:
    for descriptor in descriptors:
        os.close(descriptor)
