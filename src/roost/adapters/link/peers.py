"""Who is connected to control, which commands wait for an answer, which events are known.

The bookkeeping behind ``LinkServer``; it opens no socket. One object per host: a new connection of a
host replaces its old one, and takes over the commands that still wait.
"""

import asyncio
import contextlib
import logging
from collections.abc import Callable, Iterator

from roost.ports import wire
from roost.ports.errors import Gone, Retry, RoostError
from roost.ports.values import HostReport

log = logging.getLogger(__name__)

QUEUE_FRAMES = 1024
"""Frames waiting for one slow agent; beyond that its connection is dropped (it may come again)."""


class Connection:
    """The sending half of one agent's connection: a bounded queue and its writer."""

    def __init__(self, writer: asyncio.StreamWriter) -> None:
        self._writer = writer
        self._queue: asyncio.Queue[bytes] = asyncio.Queue(QUEUE_FRAMES)

    def send(self, frame: bytes) -> None:
        """Queue a frame; a peer that does not read loses its connection instead of our memory."""
        try:
            self._queue.put_nowait(frame)
        except asyncio.QueueFull:
            self.drop()

    async def send_all(self) -> None:
        """Write queued frames until cancelled or the connection breaks."""
        while True:
            self._writer.write(await self._queue.get())
            await self._writer.drain()

    def drop(self) -> None:
        """Cut the connection; its reader sees the end."""
        self._writer.transport.abort()


class _Peer:
    def __init__(self) -> None:
        self.connection: Connection | None = None
        self.report: HostReport | None = None
        self.calls: dict[str, tuple[bytes, asyncio.Future[wire.Reply]]] = {}
        self.lost: asyncio.TimerHandle | None = None


class Peers:
    """State per host."""

    def __init__(self, *, patience_s: float) -> None:
        self._patience_s = patience_s
        self._peers: dict[str, _Peer] = {}
        self._seen: dict[str, int] = {}
        self._on_event: list[Callable[[str, wire.EventBody], None]] = []
        self._on_change: list[Callable[[str], None]] = []

    def subscribe(
        self, on_event: Callable[[str, wire.EventBody], None], on_change: Callable[[str], None]
    ) -> None:
        self._on_event.append(on_event)
        self._on_change.append(on_change)

    def connection(self, host_id: str) -> Connection | None:
        peer = self._peers.get(host_id)
        return peer.connection if peer else None

    def reports(self) -> dict[str, HostReport]:
        return {
            host_id: peer.report
            for host_id, peer in sorted(self._peers.items())
            if peer.report is not None and peer.connection is not None
        }

    def events_seen(self, host_id: str) -> int:
        return self._seen.get(host_id, 0)

    # --- coming and going ---------------------------------------------------------------------

    def arrive(self, host_id: str, connection: Connection) -> None:
        """A host is there: the newest connection counts, waiting commands are sent (again)."""
        peer = self._peers.setdefault(host_id, _Peer())
        if peer.connection is not None:
            peer.connection.drop()
        peer.connection = connection
        if peer.lost is not None:
            peer.lost.cancel()
            peer.lost = None
        for frame, _ in peer.calls.values():
            connection.send(frame)
        self._changed(host_id)

    def leave(self, host_id: str, connection: Connection) -> None:
        """The connection ended (an already replaced one means nothing)."""
        peer = self._peers.get(host_id)
        if peer is None or peer.connection is not connection:
            return
        peer.connection = None
        peer.report = None
        self._lose(host_id, peer)
        self._changed(host_id)

    def forget(self, host_id: str) -> None:
        """The host will not come back."""
        self._seen.pop(host_id, None)
        peer = self._peers.pop(host_id, None)
        if peer is None:
            return
        if peer.lost is not None:
            peer.lost.cancel()
        if peer.connection is not None:
            peer.connection.drop()
        self._fail(peer, Gone(f"host {host_id} has ended"))

    def close(self) -> None:
        """Cut all connections and fail all calls."""
        for host_id, peer in self._peers.items():
            if peer.lost is not None:
                peer.lost.cancel()
            if peer.connection is not None:
                peer.connection.drop()
            self._fail(peer, Retry(f"the link to {host_id} was closed"))
        self._peers.clear()

    # --- commands -----------------------------------------------------------------------------

    @contextlib.contextmanager
    def calling(
        self, host_id: str, command_id: str, frame: bytes
    ) -> Iterator["asyncio.Future[wire.Reply]"]:
        """Send now or at the next connection; yields the reply to come."""
        peer = self._peers.setdefault(host_id, _Peer())
        answer: asyncio.Future[wire.Reply] = asyncio.get_running_loop().create_future()
        peer.calls[command_id] = (frame, answer)
        if peer.connection is not None:
            peer.connection.send(frame)
        else:
            self._lose(host_id, peer)
        try:
            yield answer
        finally:
            peer.calls.pop(command_id, None)
            self._tidy(host_id, peer)

    def reply(self, host_id: str, reply: wire.Reply) -> None:
        peer = self._peers.get(host_id)
        call = peer.calls.get(reply.id) if peer else None
        if call is not None and not call[1].done():
            call[1].set_result(reply)

    def _lose(self, host_id: str, peer: _Peer) -> None:
        if peer.lost is None:
            loop = asyncio.get_running_loop()
            peer.lost = loop.call_later(self._patience_s, self._give_up, host_id, peer)

    def _give_up(self, host_id: str, peer: _Peer) -> None:
        peer.lost = None
        self._fail(peer, Retry(f"host {host_id} is not connected"))
        self._tidy(host_id, peer)

    def _fail(self, peer: _Peer, error: RoostError) -> None:
        for _, answer in peer.calls.values():
            if not answer.done():
                answer.set_exception(error)

    def _tidy(self, host_id: str, peer: _Peer) -> None:
        if not peer.calls and peer.connection is None and self._peers.get(host_id) is peer:
            if peer.lost is not None:
                peer.lost.cancel()
                peer.lost = None
            del self._peers[host_id]

    # --- reports and events -------------------------------------------------------------------

    def report(self, host_id: str, connection: Connection, report: HostReport) -> None:
        """Keep the newest report; wake subscribers when something they act on is different."""
        peer = self._peers.get(host_id)
        if peer is None or peer.connection is not connection:
            return
        before, peer.report = peer.report, report
        if before is None or _gist(before) != _gist(report):
            self._changed(host_id)

    def event(self, host_id: str, seq: int, body: wire.EventBody) -> None:
        """Deliver an event once; a repeated one is only acknowledged again."""
        if seq <= self._seen.get(host_id, 0):
            return
        self._seen[host_id] = seq
        for listener in self._on_event:
            try:
                listener(host_id, body)
            except Exception:  # one listener must not cost the others the event
                log.exception("a listener failed on %s of %s", type(body).__name__, host_id)

    def _changed(self, host_id: str) -> None:
        for listener in self._on_change:
            try:
                listener(host_id)
            except Exception:  # as above
                log.exception("a listener failed on a change of %s", host_id)


def _gist(report: HostReport) -> tuple[object, ...]:
    tasks = tuple((t.task_id, t.session_id, t.epoch, t.state, t.job) for t in report.tasks)
    replicas = tuple((r.replica_id, r.state, r.detail, r.restarts) for r in report.replicas)
    return report.ready, report.detail, report.notice, tasks, replicas
