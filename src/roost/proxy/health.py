"""Active probes: asks every backend at intervals whether it is well, and tells when that changes.

One prober for all workers (the supervisor runs it, or a single process runs it itself): it publishes a
table of ``service/address`` to up or down, and ``apply`` takes such a table into ``Upstreams``. Probes
use connections of their own and few at a time. Never ejects: it only says what it saw.
"""

import asyncio
import contextlib
import heapq
import ssl
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from random import Random

from roost.proxy import policy
from roost.proxy.address import Contexts, backend_of
from roost.proxy.pool import Backend
from roost.proxy.upstream import Upstreams

CONCURRENT = 64
"""Most probes under way at once."""
JITTER = 0.2
"""Each interval is longer or shorter by up to this share."""
LINE_BYTES = 4096
"""Longest status line."""

Table = Mapping[str, bool]
"""``service/address`` to up."""


def table_key(service: str, address: str) -> str:
    """What a backend is called in the table."""
    return f"{service}/{address}"


def apply(table: Table, services: Iterable[Upstreams], now_s: float) -> None:
    """Take what the prober found into the workers' view."""
    for upstreams in services:
        prefix = upstreams.policy.name + "/"
        size = len(prefix)
        states = {key[size:]: up for key, up in table.items() if key.startswith(prefix)}
        if upstreams.policy.health is None:
            # The probes were taken out of the policy: nobody is down by them any more.
            states = {member.address: True for member in upstreams.members}
        upstreams.set_health(states, now_s)


@dataclass(slots=True)
class _Target:
    """One backend of one service, and what its probes said."""

    service: policy.Service
    address: str
    health: policy.ActiveHealth
    tcp: bool
    backend: Backend
    up: bool = True
    run: int = 0
    """Probes in a row that said the opposite of ``up``."""
    dropped: bool = False

    @property
    def key(self) -> str:
        return table_key(self.service.name, self.address)


class Prober:
    """Probes the backends of all services that ask for it."""

    def __init__(
        self,
        changed: Callable[[dict[str, bool]], None],
        *,
        rng: Random | None = None,
        contexts: Contexts | None = None,
    ) -> None:
        """``changed`` gets the whole table at each change; ``contexts`` is needed for TLS to backends."""
        self._changed = changed
        self._rng = rng or Random()
        self._contexts = contexts
        self._made: dict[policy.TlsOrigin, ssl.SSLContext] = {}
        self._targets: dict[str, _Target] = {}
        self._due: list[tuple[float, int, _Target]] = []
        self._serial = 0
        self._wake = asyncio.Event()
        self._running: set[asyncio.Task[None]] = set()

    @property
    def table(self) -> dict[str, bool]:
        """Every probed backend: up or down. New ones count as up until proven otherwise."""
        return {key: target.up for key, target in self._targets.items()}

    def watch(
        self, services: Iterable[policy.Service], *, tcp: Iterable[str] = (), now_s: float
    ) -> None:
        """Probe these services from now on; backends already known keep their state.

        ``tcp`` names the services behind TCP listeners: a connect is enough there. Raises
        ``ValueError``, or what ``contexts`` raises, before anything has changed.
        """
        connect_only = frozenset(tcp)
        services = [service for service in services if service.health is not None]
        made: dict[policy.TlsOrigin, ssl.SSLContext] = {}
        for service in services:
            if service.tls is not None and service.name not in connect_only:
                if self._contexts is None:
                    raise ValueError(f"service {service.name!r}: probes by TLS need contexts")
                made[service.tls] = self._contexts(service.tls)
        self._made = made
        before, self._targets = self._targets, {}
        for service in services:
            for spec in service.backends:
                address = spec if isinstance(spec, str) else spec.address
                if not isinstance(spec, str) and spec.state == "gone":
                    continue
                self._add(service, address, service.name in connect_only, before, now_s)
        for key, target in before.items():
            target.dropped = self._targets.get(key) is not target
        self._wake.set()
        if self.table != {key: target.up for key, target in before.items()}:
            self._changed(self.table)

    def _add(
        self,
        service: policy.Service,
        address: str,
        tcp: bool,
        before: dict[str, _Target],
        now_s: float,
    ) -> None:
        assert service.health is not None
        known = before.get(table_key(service.name, address))
        if known is not None and (known.health, known.tcp) == (service.health, tcp):
            known.service = service
            self._targets[known.key] = known
            return
        target = _Target(service, address, service.health, tcp, backend_of(address))
        if known is not None:
            target.up = known.up
        self._targets[target.key] = target
        # The first probe comes soon, but not all of them in the same moment.
        self._schedule(target, now_s + self._rng.random() * min(1.0, target.health.interval_s))

    def _schedule(self, target: _Target, due_s: float) -> None:
        self._serial += 1
        heapq.heappush(self._due, (due_s, self._serial, target))

    async def run(self) -> None:
        """Probe until cancelled."""
        loop = asyncio.get_running_loop()
        try:
            while True:
                self._wake.clear()
                self._start_due(loop.time())
                wait_s = None
                if self._due and len(self._running) < CONCURRENT:
                    wait_s = max(0.0, self._due[0][0] - loop.time())
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(wait_s):
                        await self._wake.wait()
        finally:
            for task in self._running:
                task.cancel()
            await asyncio.gather(*self._running, return_exceptions=True)

    def _start_due(self, now_s: float) -> None:
        while self._due and self._due[0][0] <= now_s and len(self._running) < CONCURRENT:
            _, _, target = heapq.heappop(self._due)
            if target.dropped:
                continue
            task = asyncio.get_running_loop().create_task(self._probe(target))
            self._running.add(task)
            task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._running.discard(task)
        self._wake.set()

    async def _probe(self, target: _Target) -> None:
        health = target.health
        try:
            async with asyncio.timeout(health.timeout_s):
                good = await self._ask(target)
        except (OSError, TimeoutError, ssl.SSLError, ValueError):
            good = False
        if target.dropped:
            return
        spread = 1.0 + JITTER * (2.0 * self._rng.random() - 1.0)
        self._schedule(target, asyncio.get_running_loop().time() + health.interval_s * spread)
        self._judge(target, good)

    def _judge(self, target: _Target, good: bool) -> None:
        if good is target.up:
            target.run = 0
            return
        target.run += 1
        needed = target.health.healthy_after if good else target.health.unhealthy_after
        if target.run >= needed:
            target.up = good
            target.run = 0
            self._changed(self.table)

    async def _ask(self, target: _Target) -> bool:
        backend = target.backend
        tls = None if target.tcp else target.service.tls
        context = self._made.get(tls) if tls is not None else None
        name = None
        if tls is not None and context is not None:
            name = tls.server_name or backend.host or "localhost"
        if backend.path:
            reader, writer = await asyncio.open_unix_connection(
                backend.path, ssl=context, server_hostname=name, limit=LINE_BYTES
            )
        else:
            reader, writer = await asyncio.open_connection(
                backend.host, backend.port, ssl=context, server_hostname=name, limit=LINE_BYTES
            )
        try:
            if target.tcp:
                return True
            writer.write(_request(target))
            line = await reader.readline()
            return _good(line, target.health.statuses)
        finally:
            writer.transport.abort()


def _request(target: _Target) -> bytes:
    host = "localhost" if target.backend.path else target.address
    return (
        f"GET {target.health.path} HTTP/1.1\r\nHost: {host}\r\n"
        "User-Agent: roost-health\r\nAccept: */*\r\nConnection: close\r\n\r\n"
    ).encode()


def _good(line: bytes, statuses: tuple[int, int]) -> bool:
    parts = line.split(b" ", 2)
    if len(parts) < 2 or not parts[0].startswith(b"HTTP/1.") or not parts[1].isdigit():
        return False
    return statuses[0] <= int(parts[1]) <= statuses[1]
