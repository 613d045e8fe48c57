"""The front of the bridge: owns the client's ports and a worker, which it replaces when it dies.

Everything that can go wrong (network, disk, moves) is in the worker, so the ports never close: a
client notices nothing of a killed worker. What the worker has not journaled yet is told to the next
one, and how far the client was served is known here. Never speaks to the network.
"""

import logging
import os
import signal
import socket
import subprocess
from collections import OrderedDict
from collections.abc import Callable, Sequence
from contextlib import suppress

import zmq

from roost.kit.retry import RetryPolicy
from roost.notebooks.bridge.pipe import (
    Deliver,
    Delivered,
    Ending,
    FromClient,
    Interrupted,
    Kept,
    Leave,
    Subscribed,
    ToWorker,
    Welcome,
    to_front,
    to_worker,
)
from roost.notebooks.bridge.ports import TICK_MS, ClientPorts, Connection
from roost.ports.frames import HEADER, BadFrame

BIND_PATIENCE_S = 10.0
"""The bridge before us may still hold the ports for a moment."""
ENDING_S = 2.0
BACKLOG_BYTES = 64 << 20
"""Requests a worker has not taken yet; above it the client's wait in its own sockets."""
QUICK_S = 5.0
"""Workers that end sooner than this are started again ever more slowly."""
ABORTED = 70
"""Exit code of a worker that cannot go on; it is started again."""

log = logging.getLogger("roost.bridge")


class Front:
    """Runs until the client (or the session's end) ends it; ``run`` returns the exit code.

    ``worker_argv`` starts a worker; the number of its end of the socket pair is appended.
    """

    def __init__(
        self, connection: Connection, worker_argv: Sequence[str], monotonic: Callable[[], float]
    ) -> None:
        self._argv = tuple(worker_argv)
        self._now = monotonic
        self._ports = ClientPorts(connection, monotonic, self._on_request, self._on_subscribed)
        self._encode = to_worker()
        self._decode = to_front()
        self._poller = zmq.Poller()
        self._worker: subprocess.Popen[bytes] | None = None
        self._pipe: socket.socket | None = None
        self._inbox = bytearray()
        self._backlog = bytearray()
        self._kept: OrderedDict[int, ToWorker] = OrderedDict()
        self._number = 0
        self._told = (0, 0)
        self._failures = 0
        self._worker_at = 0.0
        self._started_at = 0.0
        self._retry = RetryPolicy(first_s=0.05, ceiling_s=3.0)
        self._signals, self._signalled = socket.socketpair()
        self._code: int | None = None
        self._ending_at: float | None = None

    def run(self) -> int:
        """Bind, serve, end."""
        self._bind()
        self._ports.register(self._poller)
        self._catch_signals()
        try:
            while self._code is None:
                self._turn()
        finally:
            self._end_worker()
            self._ports.close()
        return self._code

    def _bind(self) -> None:
        until = self._now() + BIND_PATIENCE_S
        while True:
            try:
                return self._ports.bind()
            except zmq.ZMQError:
                if self._now() > until:
                    raise
                self._poller.poll(200)

    def _catch_signals(self) -> None:
        self._signals.setblocking(False)
        self._signalled.setblocking(False)
        signal.set_wakeup_fd(self._signalled.fileno())
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGCHLD):
            signal.signal(number, lambda *_: None)
        self._poller.register(self._signals, zmq.POLLIN)

    def _turn(self) -> None:
        """One round of the loop."""
        if self._worker is None and self._now() >= self._worker_at:
            self._start_worker()
        if self._pipe is not None:
            wanted = zmq.POLLIN | (zmq.POLLOUT if self._backlog else 0)
            self._poller.register(self._pipe, wanted)
        self._ports.pause(self._poller, paused=len(self._backlog) > BACKLOG_BYTES)
        self._poller.poll(TICK_MS)
        self._read_signals()
        if len(self._backlog) <= BACKLOG_BYTES:
            self._ports.read()
        self._exchange()
        self._ports.tick()
        self._tell_position()
        self._watch_worker()
        if self._ending_at is not None and self._now() >= self._ending_at:
            self._code = 0

    def _read_signals(self) -> None:
        with suppress(BlockingIOError):
            for number in self._signals.recv(64):
                if number == signal.SIGINT:
                    self._say(Interrupted())
                elif number in (signal.SIGTERM, signal.SIGHUP) and self._ending_at is None:
                    self._ending_at = self._now() + ENDING_S
                    self._say(Ending())

    # --- the client --------------------------------------------------------------------------------

    def _on_request(self, channel: str, frames: tuple[bytes, ...]) -> None:
        self._number += 1
        self._keep(FromClient(number=self._number, channel=channel, frames=frames))

    def _on_subscribed(self, topic: bytes) -> None:
        self._number += 1
        self._keep(Subscribed(number=self._number, topic=topic))

    def _keep(self, message: FromClient | Subscribed) -> None:
        self._kept[message.number] = message
        self._say(message)

    # --- the worker --------------------------------------------------------------------------------

    def _start_worker(self) -> None:
        self._started_at = self._now()
        ours, theirs = socket.socketpair()
        with theirs:
            self._worker = subprocess.Popen(
                [*self._argv, str(theirs.fileno())],
                pass_fds=(theirs.fileno(),),
                stdin=subprocess.DEVNULL,
                process_group=0,  # a signal to our group is ours to interpret
            )
        ours.setblocking(False)
        self._pipe = ours
        self._inbox.clear()
        self._backlog.clear()
        epoch, seq = self._ports.position
        self._told = self._ports.position
        self._say(Welcome(epoch=epoch, seq=seq))
        for message in self._kept.values():
            self._say(message)

    def _watch_worker(self) -> None:
        if self._worker is None or self._worker.poll() is None:
            return
        code = self._worker.returncode
        self._exchange()
        self._drop_pipe()
        self._worker = None
        quick = self._now() - self._started_at < QUICK_S
        self._failures = self._failures + 1 if quick or code == ABORTED else 0
        if self._ending_at is not None:
            self._code = 0
        elif self._code is None:
            log.warning("the worker ended with %d: starting another", code)
            self._worker_at = self._now() + self._retry.delay_s(self._failures or 1)

    def _exchange(self) -> None:
        """Write what waits for the worker, read and do what it says."""
        if self._pipe is None:
            return
        self._flush()
        try:
            for _ in range(64):
                piece = self._pipe.recv(1 << 20)
                if not piece:
                    break
                self._inbox += piece
        except OSError:
            pass
        self._parse()

    def _flush(self) -> None:
        try:
            while self._pipe is not None and self._backlog:
                sent = self._pipe.send(memoryview(self._backlog)[: 1 << 20].tobytes())
                del self._backlog[:sent]
        except OSError:  # full, or the worker is gone: both are seen elsewhere
            pass

    def _tell_position(self) -> None:
        """At once: were this process killed now, the client would get untold outputs again."""
        if self._ports.position > self._told:
            self._told = self._ports.position
            self._say(Delivered(epoch=self._told[0], seq=self._told[1]))
            self._flush()

    def _parse(self) -> None:
        at = 0
        while len(self._inbox) - at >= HEADER:
            size = int.from_bytes(self._inbox[at : at + HEADER], "big")
            if len(self._inbox) - at - HEADER < size:
                break
            body = bytes(self._inbox[at + HEADER : at + HEADER + size])
            at += HEADER + size
            with suppress(BadFrame):
                self._do(self._decode.decode(body))
        del self._inbox[:at]

    def _do(self, message: Deliver | Kept | Leave) -> None:
        match message:
            case Deliver():
                self._ports.deliver(message)
                self._tell_position()
            case Kept():
                while self._kept and next(iter(self._kept)) <= message.number:
                    self._kept.popitem(last=False)
            case Leave():
                self._code = message.code

    def _say(self, message: ToWorker) -> None:
        if self._pipe is not None:
            self._backlog += self._encode.encode(message)

    def _drop_pipe(self) -> None:
        if self._pipe is not None:
            with suppress(KeyError):
                self._poller.unregister(self._pipe)
            self._pipe.close()
            self._pipe = None

    def _end_worker(self) -> None:
        self._drop_pipe()
        if self._worker is None:
            return
        with suppress(subprocess.TimeoutExpired):
            self._worker.wait(0.5)
            return
        with suppress(ProcessLookupError):
            os.kill(self._worker.pid, signal.SIGKILL)
        self._worker.wait()
