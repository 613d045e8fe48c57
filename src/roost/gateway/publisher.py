"""Control's side of the route wire: keeps a connection to every edge and gives each the latest snapshot.

Edges are found by their sockets (``<run>/edge-<n>.sock``). Never waits for an edge that is away: it is
sent the latest snapshot when it is back.
"""

import asyncio
import contextlib
import logging
from collections.abc import Callable
from pathlib import Path

from roost.gateway.model import EdgeEvent, FromEdge, RouteAck, RouteSnapshot, from_edge, to_edge
from roost.ports.frames import BadFrame, Frames

log = logging.getLogger(__name__)

LOOK_S = 0.25
"""How often sockets of edges not connected are looked for."""


class _EdgeLink:
    """The connection to one edge, dialled again whenever it ends."""

    def __init__(
        self, path: Path, latest: Callable[[], RouteSnapshot | None], on_frame: "OnFrame"
    ) -> None:
        self._path = path
        self._latest = latest
        self._on_frame = on_frame
        self._to: Frames[RouteSnapshot] = to_edge()
        self._writer: asyncio.StreamWriter | None = None
        self.acked = -1
        self.task = asyncio.get_running_loop().create_task(self._run())

    @property
    def connected(self) -> bool:
        return self._writer is not None

    def send(self, snapshot: RouteSnapshot) -> None:
        if self._writer is not None and not self._writer.transport.is_closing():
            self._writer.write(self._to.encode(snapshot))

    async def _run(self) -> None:
        while True:
            with contextlib.suppress(OSError, BadFrame):
                await self._talk()
            await asyncio.sleep(LOOK_S)

    async def _talk(self) -> None:
        reader, writer = await asyncio.open_unix_connection(str(self._path))
        frames = from_edge()
        self._writer = writer
        try:
            latest = self._latest()
            if latest is not None:
                self.send(latest)
            while (message := await frames.read(reader)) is not None:
                if isinstance(message, RouteAck):
                    self.acked = message.version
                self._on_frame(message)
        finally:
            self._writer = None
            self.acked = -1
            writer.close()
            self._on_frame(None)


OnFrame = Callable[[FromEdge | None], None]


class Publisher:
    """Publishes snapshots to all edges; gives their events to ``on_event``."""

    def __init__(self, run_dir: Path, on_event: Callable[[EdgeEvent], None] | None = None) -> None:
        self._run_dir = run_dir
        self._on_event = on_event
        self._links: dict[Path, _EdgeLink] = {}
        self._latest: RouteSnapshot | None = None
        self._acks: asyncio.Future[None] | None = None
        self._looker: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to look for edges."""
        self._find()
        self._looker = asyncio.get_running_loop().create_task(self._look())

    async def close(self) -> None:
        """Close all connections."""
        tasks = [link.task for link in self._links.values()]
        if self._looker is not None:
            tasks.append(self._looker)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._links.clear()

    @property
    def connected(self) -> int:
        """Edges connected now."""
        return sum(link.connected for link in self._links.values())

    async def publish(self, snapshot: RouteSnapshot, wait_s: float = 2.0) -> int:
        """Give all edges ``snapshot``; the number that acknowledged it within ``wait_s`` seconds."""
        if self._latest is None or snapshot.version >= self._latest.version:
            self._latest = snapshot
            for link in self._links.values():
                link.send(snapshot)
        loop = asyncio.get_running_loop()
        end_s = loop.time() + wait_s
        while any(self._lags(link, snapshot) for link in self._links.values()):
            if self._acks is None:
                self._acks = loop.create_future()
            left_s = end_s - loop.time()
            if left_s <= 0:
                log.warning("an edge has not acknowledged routes %d", snapshot.version)
                break
            await asyncio.wait((self._acks,), timeout=left_s)
        return sum(link.acked >= snapshot.version for link in self._links.values())

    @staticmethod
    def _lags(link: _EdgeLink, snapshot: RouteSnapshot) -> bool:
        return link.connected and link.acked < snapshot.version

    async def _look(self) -> None:
        while True:
            await asyncio.sleep(LOOK_S)
            self._find()

    def _find(self) -> None:
        for path in sorted(self._run_dir.glob("edge-*.sock")):
            if path not in self._links:
                self._links[path] = _EdgeLink(path, lambda: self._latest, self._received)

    def _received(self, message: FromEdge | None) -> None:
        if message is None or isinstance(message, RouteAck):
            if self._acks is not None and not self._acks.done():
                self._acks.set_result(None)
            self._acks = None
        elif self._on_event is not None:
            self._on_event(message)
