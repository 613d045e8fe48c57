"""``Blobs`` over data connections to an edge: blocking sockets in threads of its own.

A chunk is hashed, framed and sent outside the event loop, so that a large upload never delays a
heartbeat. Nothing is cached and nothing is retried here: the caller knows what is worth it.
"""

import asyncio
import queue
import socket
import ssl
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from blake3 import blake3

from roost.adapters.link.streams import split_address, watch_peer
from roost.ports import wire
from roost.ports.errors import Invalid, Never, Retry, from_wire
from roost.ports.frames import HEADER, STREAM_LIMIT, BadFrame, Frames

CONNECTIONS = 4
TIMEOUT_S = 30.0
"""Without a byte moving for this long a connection is given up."""
MISSING_BATCH = 20_000
"""Digests per question: well below the frame limit."""

T = TypeVar("T")


class _Wire:
    """One blocking ``blobs`` connection."""

    def __init__(
        self, address: str, host_id: str, credential: str, tls: ssl.SSLContext | None
    ) -> None:
        host, port = split_address(address)
        self._in: Frames[wire.DataToAgent] = wire.data_to_agent()
        self._out: Frames[wire.DataToEdge] = wire.data_to_edge()
        sock = socket.create_connection((host, port), timeout=TIMEOUT_S)
        try:
            watch_peer(sock)
            self._sock = tls.wrap_socket(sock, server_hostname=host) if tls else sock
            challenge = self._receive()
            if not isinstance(challenge, wire.Challenge):
                raise Retry(f"the edge at {address} did not begin a handshake")
            hello = wire.DataHello(host_id=host_id, credential=credential, purpose="blobs")
            self._sock.sendall(self._out.encode(hello))
        except BaseException:
            sock.close()
            raise

    def ask(self, message: wire.DataToEdge) -> wire.DataToAgent:
        """One request, one answer. Errors of the edge are raised as their type."""
        self._sock.sendall(self._out.encode(message))
        answer = self._receive()
        if isinstance(answer, wire.Failed):
            raise from_wire(answer.error)
        if isinstance(answer, wire.Refused):
            raise Retry(f"the edge refused: {answer.reason}", hint=answer.hint)
        return answer

    def close(self) -> None:
        self._sock.close()

    def _receive(self) -> wire.DataToAgent:
        size = int.from_bytes(self._exactly(HEADER), "big")
        if size > STREAM_LIMIT:
            raise BadFrame(f"frame of {size} bytes is over the limit")
        return self._in.decode(self._exactly(size))

    def _exactly(self, size: int) -> bytes:
        body = bytearray(size)
        view, done = memoryview(body), 0
        while done < size:
            got = self._sock.recv_into(view[done:])
            if got == 0:
                raise ConnectionError("the edge closed the connection")
            done += got
        return bytes(body)


class LinkedBlobs:
    """Blobs of the cell, reached through its edges. Implements ``roost.ports.blobs.Blobs``."""

    def __init__(
        self,
        host_id: str,
        *,
        tls: Callable[[], ssl.SSLContext | None] = lambda: None,
        connections: int = CONNECTIONS,
    ) -> None:
        self._host_id = host_id
        self._tls = tls
        self._addresses: tuple[str, ...] = ()
        self._credential = ""
        self._turn = 0
        self._idle: queue.LifoQueue[_Wire] = queue.LifoQueue()
        self._lock = threading.Lock()
        self._threads = ThreadPoolExecutor(connections, thread_name_prefix="blobs")

    def welcome(self, addresses: tuple[str, ...], credential: str) -> None:
        """Where the edges are from now on."""
        self._addresses, self._credential = addresses, credential

    async def missing(self, digests: Sequence[str]) -> list[str]:
        """Those of ``digests`` that the cell does not store. ``Retry`` when no edge answers."""
        absent: list[str] = []
        for start in range(0, len(digests), MISSING_BATCH):
            batch = tuple(digests[start : start + MISSING_BATCH])
            answer = await self._ask(wire.BlobsMissing(digests=batch))
            if not isinstance(answer, wire.BlobsAnswer):
                raise Retry("the edge gave no list")
            absent.extend(answer.digests)
        return absent

    async def put(self, digest: str, content: bytes) -> None:
        """Store durably off this host."""
        answer = await self._ask(wire.BlobPut(digest=digest, content=content))
        if not isinstance(answer, wire.BlobsAnswer):
            raise Retry("the edge did not confirm")

    async def get(self, digest: str) -> bytes:
        """The content, verified. ``Gone`` when it is not stored, ``Never`` when it is damaged."""
        return await self._in_thread(lambda: self._get(digest))

    async def delete(self, digests: Sequence[str]) -> None:
        """Hosts do not delete: the cell collects what no checkpoint names."""
        raise Invalid("a host cannot delete blobs", hint="the control plane does")

    def close(self) -> None:
        """Close idle connections; threads end with their current transfer."""
        self._threads.shutdown(wait=False, cancel_futures=True)
        while True:
            try:
                self._idle.get_nowait().close()
            except queue.Empty:
                return

    def _get(self, digest: str) -> bytes:
        answer = self._ask_blocking(wire.BlobGet(digest=digest))
        if not isinstance(answer, wire.BlobBytes):
            raise Retry("the edge gave no bytes")
        if blake3(answer.content).hexdigest() != digest:
            raise Never(f"blob {digest[:12]} is damaged")
        return answer.content

    async def _ask(self, message: wire.DataToEdge) -> wire.DataToAgent:
        return await self._in_thread(lambda: self._ask_blocking(message))

    async def _in_thread(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._threads, work)

    def _ask_blocking(self, message: wire.DataToEdge) -> wire.DataToAgent:
        # An idle connection may be a dead one (its edge was restarted): such a one is only dropped,
        # the question is repeated on the next and, at last, on a fresh connection.
        while True:
            connection, fresh = self._take()
            try:
                answer = connection.ask(message)
            except (OSError, BadFrame) as error:
                connection.close()
                if fresh:
                    raise Retry(f"the edge: {error or type(error).__name__}") from error
                continue
            except BaseException:
                self._idle.put(connection)
                raise
            self._idle.put(connection)
            return answer

    def _take(self) -> tuple[_Wire, bool]:
        try:
            return self._idle.get_nowait(), False
        except queue.Empty:
            pass
        if not self._addresses:
            raise Retry("no edge is known yet")
        with self._lock:
            self._turn += 1
            turn = self._turn
        addresses = self._addresses
        failure: Exception | None = None
        for offset in range(len(addresses)):
            address = addresses[(turn + offset) % len(addresses)]
            try:
                return _Wire(address, self._host_id, self._credential, self._tls()), True
            except (OSError, BadFrame) as error:
                failure = error
        raise Retry(f"no edge answers: {failure}") from failure
