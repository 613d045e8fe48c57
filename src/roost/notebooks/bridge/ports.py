"""The five client-facing ZMQ sockets of a connection file. Sends what it is given, in order.

iopub is held until somebody subscribed: a subscriber that comes a moment late loses nothing. A reply
to a client that is reconnecting is kept until its identity is known again. Never blocks.
"""

from collections import deque
from collections.abc import Callable
from pathlib import Path

import msgspec
import zmq

from roost.notebooks.bridge.pipe import Deliver
from roost.ports.errors import Invalid

SUBSCRIPTION_PAUSE_S = 0.1
"""After the first subscription, so that other subscribers that reconnect are there too."""
NOBODY_LISTENS_S = 3.0
"""A client that asks but never subscribes does not want iopub."""
UNROUTED_S = 60.0
"""How long a reply waits for a client to come back."""
IOPUB_HIGH_WATER = 100_000
"""Messages queued for one slow subscriber before it loses some, as with a plain kernel (1000)."""
TICK_MS = 50
ROUTERS = ("shell", "control", "stdin")


class Connection(msgspec.Struct, frozen=True):
    """A Jupyter connection file."""

    shell_port: int
    iopub_port: int
    stdin_port: int
    control_port: int
    hb_port: int
    ip: str = "127.0.0.1"
    key: str = ""
    transport: str = "tcp"

    @classmethod
    def load(cls, path: Path) -> "Connection":
        """Read the file; raises ``Invalid``."""
        try:
            return msgspec.json.decode(path.read_bytes(), type=cls)
        except (OSError, msgspec.MsgspecError) as error:
            raise Invalid(f"not a connection file: {path}: {error}") from error

    def address(self, channel: str) -> str:
        """The ZMQ address of a channel."""
        port = getattr(self, f"{channel}_port")
        return f"{self.transport}://{self.ip}{'-' if self.transport == 'ipc' else ':'}{port}"


class ClientPorts:
    """Bound sockets. ``on_request(channel, frames)`` and ``on_subscribed(topic)`` tell what comes."""

    def __init__(
        self,
        connection: Connection,
        monotonic: Callable[[], float],
        on_request: Callable[[str, tuple[bytes, ...]], None],
        on_subscribed: Callable[[bytes], None],
    ) -> None:
        self._connection = connection
        self._now = monotonic
        self._on_request = on_request
        self._on_subscribed = on_subscribed
        self._context = zmq.Context()
        self._sockets: dict[str, zmq.Socket[bytes]] = {}
        self._held: deque[Deliver] = deque()
        self._unrouted: deque[tuple[float, Deliver]] = deque()
        self._release_at: float | None = None
        self.position = (0, 0)
        """Everything numbered up to here is in the client's sockets."""
        self._sent = (0, 0)

    def bind(self) -> None:
        """Bind all five; raises ``zmq.ZMQError`` when a port is taken."""
        kinds = {"iopub": zmq.XPUB, "hb": zmq.ROUTER} | dict.fromkeys(ROUTERS, zmq.ROUTER)
        try:
            for channel, kind in kinds.items():
                socket = self._context.socket(kind)
                self._sockets[channel] = socket
                socket.linger = 1000
                socket.sndhwm = IOPUB_HIGH_WATER if channel == "iopub" else 0
                if channel == "iopub":
                    socket.setsockopt(zmq.XPUB_VERBOSE, 1)
                elif channel != "hb":
                    socket.setsockopt(zmq.ROUTER_MANDATORY, 1)
                    socket.setsockopt(zmq.ROUTER_HANDOVER, 1)
                socket.bind(self._connection.address(channel))
        except zmq.ZMQError:
            self.close()
            raise

    def register(self, poller: zmq.Poller) -> None:
        """Have ``poller`` watch the sockets."""
        for socket in self._sockets.values():
            poller.register(socket, zmq.POLLIN)

    def pause(self, poller: zmq.Poller, *, paused: bool) -> None:
        """Leave requests with the client (back-pressure), or take them again."""
        for channel in ROUTERS:
            poller.register(self._sockets[channel], 0 if paused else zmq.POLLIN)

    def close(self) -> None:
        """Close everything; what is queued still goes out (at most a second)."""
        for socket in self._sockets.values():
            socket.close()
        self._sockets.clear()
        self._context.term()

    def read(self) -> None:
        """Take what came in on all sockets, a bounded share of each."""
        for channel, socket in self._sockets.items():
            for _ in range(64):
                try:
                    frames = tuple(socket.recv_multipart(zmq.NOBLOCK))
                except zmq.Again:
                    break
                self._take(channel, frames)

    def deliver(self, message: Deliver) -> None:
        """Give a message to the client, or hold it until that is possible."""
        if message.channel == "iopub":
            if self._held or not self._listening():
                self._held.append(message)
                return
            self._sockets["iopub"].send_multipart(message.frames)
        elif message.channel:
            self._route(message, self._now() + UNROUTED_S)
        self._note(message)

    def tick(self) -> None:
        """Send what was held and may go now."""
        while self._held and self._listening():
            message = self._held.popleft()
            self._sockets["iopub"].send_multipart(message.frames)
            self._note(message)
        now = self._now()
        for _ in range(len(self._unrouted)):
            until, message = self._unrouted.popleft()
            if until > now:
                self._route(message, until)

    def _note(self, message: Deliver) -> None:
        # Numbers come in order; those behind a held one count only when it is gone.
        if message.epoch:
            self._sent = max(self._sent, (message.epoch, message.seq))
        first = next((held for held in self._held if held.epoch), None)
        self.position = (
            self._sent if first is None else min(self._sent, (first.epoch, first.seq - 1))
        )

    def _listening(self) -> bool:
        return self._release_at is not None and self._now() >= self._release_at

    def _release_in(self, seconds: float) -> None:
        at = self._now() + seconds
        if self._release_at is None or at < self._release_at:
            self._release_at = at

    def _route(self, message: Deliver, until: float) -> None:
        try:
            self._sockets[message.channel].send_multipart(message.frames, zmq.NOBLOCK)
        except zmq.ZMQError:  # EHOSTUNREACH: this client is not connected at the moment
            self._unrouted.append((until, message))

    def _take(self, channel: str, frames: tuple[bytes, ...]) -> None:
        if channel == "hb":
            self._sockets["hb"].send_multipart(frames)
        elif channel == "iopub":
            if frames and frames[0][:1] == b"\x01":
                self._release_in(SUBSCRIPTION_PAUSE_S)
                self._on_subscribed(frames[0][1:])
        else:
            self._release_in(NOBODY_LISTENS_S)
            self._on_request(channel, frames)
