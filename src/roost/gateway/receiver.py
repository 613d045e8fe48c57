"""The edge's side of the route wire: takes snapshots from control, keeps the last one on disk, tells events.

Routes on disk let an edge start and serve while control is down. Never changes a route by itself.
"""

import asyncio
import logging
import os
from pathlib import Path

import msgspec

from roost.gateway.model import (
    EdgeEvent,
    FromEdge,
    HostDataUp,
    RouteAck,
    RouteSnapshot,
    RouteTable,
    from_edge,
    to_edge,
)
from roost.gateway.router import EdgeRouter
from roost.ports.frames import BadFrame

log = logging.getLogger(__name__)

UNREAD_LIMIT = 1 << 20
"""Bytes of events a control process may leave unread before its connection is dropped."""


class RouteReceiver:
    """Feeds a router from a unix socket and a file."""

    def __init__(self, router: EdgeRouter, socket_path: Path, file: Path) -> None:
        self._router = router
        self._socket_path = socket_path
        self._file = file
        self._writers: set[asyncio.StreamWriter] = set()
        self._server: asyncio.Server | None = None
        self._frames = from_edge()

    def load(self) -> None:
        """Use the routes of the last run, if they can be read."""
        try:
            content = self._file.read_bytes()
            snapshot = msgspec.json.decode(content, type=RouteSnapshot)
        except FileNotFoundError:
            return
        except (OSError, msgspec.DecodeError, msgspec.ValidationError) as error:
            log.warning("%s cannot be used (%s): waiting for control", self._file, error)
            return
        self._router.replace(RouteTable(snapshot.routes, version=snapshot.version))

    async def listen(self) -> None:
        """Accept control."""
        self._socket_path.unlink(missing_ok=True)
        self._server = await asyncio.start_unix_server(self._serve, str(self._socket_path))

    async def close(self) -> None:
        """Stop listening."""
        if self._server is not None:
            self._server.close()
        for writer in list(self._writers):
            writer.transport.abort()
        self._socket_path.unlink(missing_ok=True)

    def tell(self, event: EdgeEvent) -> None:
        """Send an event to control (lost when it is away: events only wake)."""
        for writer in list(self._writers):
            if writer.transport.get_write_buffer_size() > UNREAD_LIMIT:
                writer.transport.abort()
            else:
                self._send(writer, event)

    def _send(self, writer: asyncio.StreamWriter, message: FromEdge) -> None:
        if not writer.transport.is_closing():  # uvloop raises where asyncio ignores
            writer.write(self._frames.encode(message))

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        frames = to_edge()
        self._writers.add(writer)
        try:
            for host_id in self._router.hosts.hosts:
                self._send(writer, HostDataUp(host_id=host_id))
            while (snapshot := await frames.read(reader)) is not None:
                self._apply(snapshot)
                self._send(writer, RouteAck(version=snapshot.version))
        except BadFrame as error:
            log.warning("control's connection: %s", error)
        except OSError:
            pass  # control ended; it dials again
        finally:
            self._writers.discard(writer)
            writer.close()

    def _apply(self, snapshot: RouteSnapshot) -> None:
        table, stale = self._router.table.replaced(snapshot)
        if stale:
            log.warning("older epochs refused for %s", ", ".join(stale))
        self._router.replace(table)
        try:
            self._save(table.snapshot())
        except OSError as error:
            log.error("%s cannot be written: %s", self._file, error.strerror)

    def _save(self, snapshot: RouteSnapshot) -> None:
        """Replace the file in one step. Not synced: after a power loss control is new as well."""
        part = self._file.with_name(f"{self._file.name}.{os.getpid()}")
        with os.fdopen(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
            file.write(msgspec.json.encode(snapshot))
        part.replace(self._file)
