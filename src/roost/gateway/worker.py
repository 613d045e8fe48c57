"""One worker of the gateway: a process with one thread that serves clients by the last snapshot it got.

Everything on the way of a request is its own; to the supervisor it speaks over one channel, never in a
request. When the supervisor is gone it lets what is in flight end, and ends.
"""

import asyncio
import contextlib
import gc
import logging
import os
import signal
import socket
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field

from roost.gateway import channel
from roost.gateway.channel import Channel
from roost.gateway.plane import Plane
from roost.gateway.sockets import emptied
from roost.ports.errors import RoostError
from roost.proxy.access import AccessWriter
from roost.proxy.counters import Counters, CounterTable, Sheet
from roost.proxy.plan import Finished, Observer
from roost.proxy.policy import AccessLog
from roost.proxy.slots import SlotRow
from roost.proxy.tls import Tickets

log = logging.getLogger(__name__)

TICK_S = 0.25
"""How often counters are published and log lines handed over."""
ORPHAN_DRAIN_S = 5.0
"""For what is in flight when the supervisor is gone."""
GARBAGE = (10_000, 20, 20)
"""Requests leave no cycles worth looking for every 700 allocations, Python's default."""
EMPTY_S = 1.0
"""Longest wait for an accept queue to be served."""


@dataclass
class Inherited:
    """What a worker has from the process it was forked from."""

    index: int
    end: socket.socket
    """The worker's of the channel."""
    snapshot: channel.Snapshot
    sockets: dict[str, socket.socket]
    tickets: Tickets
    table: CounterTable
    slots: SlotRow
    unix_s: Callable[[], float]
    """The wall clock."""
    health: dict[str, bool] = field(default_factory=dict)
    challenges: dict[str, str] = field(default_factory=dict)


class _Both:
    """Two observers as one."""

    def __init__(self, counters: Counters, writer: AccessWriter) -> None:
        self._count = counters.done
        self._write = writer.done

    def done(self, record: Finished) -> None:
        self._count(record)
        self._write(record)


class Worker:
    """Serves until it is told to drain."""

    def __init__(self, inherited: Inherited) -> None:
        self._inherited = inherited
        self._counters = Counters()
        self._writer: AccessWriter | None = None
        self._lost_before = 0
        self._plane = Plane(inherited.tickets, inherited.unix_s, inherited.slots)
        self._channel = Channel(inherited.end, self._heard, self._orphaned)
        self._changes: asyncio.Queue[Callable[[], Coroutine[None, None, None]]] = asyncio.Queue()
        self._ended = asyncio.Event()
        self._version = 0

    async def run(self) -> None:
        """Serve; returns when everything has ended."""
        loop = asyncio.get_running_loop()
        for number in (
            signal.SIGTERM,
            signal.SIGINT,
            signal.SIGHUP,
            signal.SIGUSR1,
            signal.SIGUSR2,
        ):
            # A terminal or a service manager signals the whole group; the supervisor decides.
            signal.signal(number, signal.SIG_IGN)
        start = self._inherited
        self._channel.start(loop)
        await self._apply(start.snapshot, start.sockets)
        self._plane.set_health(start.health)
        self._plane.set_challenges(start.challenges)
        ticking = loop.create_task(self._tick())
        changing = loop.create_task(self._change())
        await self._ended.wait()
        for task in (ticking, changing):
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
        self._publish()
        if self._writer is not None:
            self._writer.close()
        self._channel.close()

    # --- the supervisor's word -------------------------------------------------------------------

    def _heard(self, message: channel.Message, descriptors: list[int]) -> None:
        if isinstance(message, channel.Configure):
            snapshot = channel.restored(descriptors[0])
            os.close(descriptors[0])
            sockets = {
                name: socket.socket(fileno=fd)
                for name, fd in zip(message.listeners, descriptors[1:], strict=True)
            }
            self._changes.put_nowait(lambda: self._apply(snapshot, sockets))
        elif isinstance(message, channel.Health):
            table = channel.restored_table(descriptors[0])
            os.close(descriptors[0])
            self._plane.set_health(table)
        elif isinstance(message, channel.Challenges):
            self._plane.set_challenges(message.tokens)
        elif isinstance(message, channel.Drain):
            self._changes.put_nowait(lambda: self._drain(message.seconds, message.silenced))
        elif isinstance(message, channel.Reopen) and self._writer is not None:
            self._writer.reopen()

    def _orphaned(self) -> None:
        log.error("the supervisor is gone: ending")
        self._changes.put_nowait(lambda: self._drain(ORPHAN_DRAIN_S, False))

    async def _change(self) -> None:
        """One change after the other."""
        while True:
            change = await self._changes.get()
            await change()

    async def _apply(self, snapshot: channel.Snapshot, sockets: dict[str, socket.socket]) -> None:
        """Serve by another snapshot, or say why not and go on by the present one."""
        try:
            await self._plane.apply(snapshot, sockets)
            self._observe(snapshot.gateway.access_log, counted=snapshot.gateway.admin is not None)
        except (RoostError, OSError, ValueError) as error:
            log.error("snapshot %d is not taken over: %s", snapshot.version, error)
            self._channel.tell(channel.Applied(version=snapshot.version, error=str(error)))
            return
        self._version = snapshot.version
        self._counters.settle(self._plane.members())
        self._publish()
        self._channel.tell(channel.Applied(version=snapshot.version))

    def _observe(self, wanted: AccessLog | None, *, counted: bool) -> None:
        """Log and count as the snapshot says. Nobody looking costs nothing."""
        present = self._writer.wanted if self._writer is not None else None
        if wanted != present:
            made = AccessWriter(wanted, self._plane.unix_offset_s) if wanted else None
            if self._writer is not None:
                self._writer.close()
                self._lost_before += self._writer.lost
            self._writer = made
        observer: Observer | None = self._counters if counted else None
        if self._writer is not None:
            observer = _Both(self._counters, self._writer)
        prefix = b"%x-%x-" % (int(self._inherited.unix_s()), os.getpid())
        alone = counted and self._writer is None
        self._plane.observe(
            observer,
            tally=self._counters.tally if alone else None,
            id_prefix=prefix if self._writer is not None else b"",
        )

    async def _drain(self, seconds: float, silenced: bool) -> None:
        if silenced:
            await emptied(self._plane.sockets(), EMPTY_S)
        await self._plane.drain(seconds, at_once=silenced)
        self._ended.set()

    # --- the timer -------------------------------------------------------------------------------

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(TICK_S)
            if self._writer is not None:
                self._writer.flush()
            self._publish()

    def _publish(self) -> None:
        lost = self._lost_before + (self._writer.lost if self._writer is not None else 0)
        totals, gauges = self._plane.numbers()
        totals["access_log_lines_lost"] = lost
        sheet = Sheet(
            version=self._version,
            counts=self._counters.counts(),
            refused=self._refused(),
            totals=totals,
            gauges=gauges,
            backends=self._plane.backends(),
        )
        self._inherited.table.write(self._inherited.index, sheet)

    def _refused(self) -> dict[str, int]:
        found = dict(self._counters.refused)
        for reason, count in self._plane.refused.items():
            found[reason] = found.get(reason, 0) + count
        return found


def event_loop() -> asyncio.AbstractEventLoop:
    """uvloop where there is a wheel for it: 8 % less CPU; nothing depends on it."""
    try:
        import uvloop
    except ImportError:
        return asyncio.new_event_loop()
    return uvloop.new_event_loop()


def serve(inherited: Inherited) -> None:
    """The life of a forked worker."""

    async def run() -> None:
        await Worker(inherited).run()

    gc.set_threshold(*GARBAGE)
    with asyncio.Runner(loop_factory=event_loop) as runner:
        runner.run(run())
