"""The workers as the supervisor sees them: forked, told of changes, replaced when they end.

Forking happens between two runs of the event loop (``fork_due``): the child never sees the parent's loop,
and all descriptors that are not its own are closed in it. Knows no configuration file and no signal.
"""

import asyncio
import contextlib
import gc
import logging
import os
import signal
import socket
from collections.abc import Callable, Collection
from dataclasses import dataclass, field

from roost.gateway import channel
from roost.gateway.channel import Channel
from roost.gateway.worker import Inherited, serve
from roost.proxy.counters import CounterTable, Summary
from roost.proxy.slots import SlotTable
from roost.proxy.tls import Tickets

log = logging.getLogger(__name__)

ROWS = 64
"""Most workers."""
FAST_DEATH_S = 2.0
"""A worker that lives shorter than this is started again with a pause."""
FIRST_PAUSE_S = 0.05
LONGEST_PAUSE_S = 5.0
KEPT_DESCRIPTORS = (0, 1, 2)
_FAILED = 70


@dataclass
class WorkerProcess:
    """One place for a worker; its process changes."""

    index: int
    pid: int = 0
    channel: Channel | None = None
    since_s: float = 0.0
    pause_s: float = 0.0
    due_s: float = 0.0
    version: int = 0
    error: str = ""
    leaving: bool = False
    starts: int = 0


@dataclass
class Workers:
    """All of them, with the sockets they accept on."""

    loop: asyncio.AbstractEventLoop
    tickets: Tickets
    unix_s: Callable[[], float]
    changed: Callable[[], None]
    """Something to look at: a worker ended or answered."""
    table: CounterTable = field(default_factory=lambda: CounterTable(ROWS))
    slots: SlotTable = field(default_factory=lambda: SlotTable(ROWS))
    sockets: dict[str, list[socket.socket]] = field(default_factory=dict)
    """By listener; one for each worker."""
    snapshot: channel.Snapshot | None = None
    health: dict[str, bool] = field(default_factory=dict)
    challenges: dict[str, str] = field(default_factory=dict)
    places: dict[int, WorkerProcess] = field(default_factory=dict)
    restarts: int = 0
    stopping: bool = False

    def __post_init__(self) -> None:
        self.summary = Summary(self.table)

    # --- processes -------------------------------------------------------------------------------

    def resize(self, count: int) -> None:
        """So many from now on; those beyond leave."""
        for index in range(count):
            place = self.places.get(index)
            if place is None:
                self.places[index] = WorkerProcess(index)
            else:
                place.leaving = False

    def due(self) -> list[WorkerProcess]:
        """Places without a process that should have one now."""
        if self.stopping or self.snapshot is None:
            return []
        now_s = self.loop.time()
        return [p for p in self.places.values() if not p.pid and now_s >= p.due_s]

    def fork_due(self) -> None:
        """Start what is due. Only between two runs of the loop."""
        for place in self.due():
            self._fork(place)

    def _fork(self, place: WorkerProcess) -> None:
        assert self.snapshot is not None
        ours, theirs = channel.pair()
        inherited = Inherited(
            index=place.index,
            end=theirs,
            snapshot=self.snapshot,
            sockets={name: socks[place.index] for name, socks in self.sockets.items()},
            tickets=self.tickets,
            table=self.table,
            slots=self.slots.row(place.index),
            unix_s=self.unix_s,
            health=self.health,
            challenges=self.challenges,
        )
        pid = os.fork()
        if pid == 0:
            _become(inherited)
        theirs.close()
        place.pid = pid
        place.since_s = self.loop.time()
        place.version, place.error = 0, ""
        place.starts += 1
        place.channel = Channel(
            ours, lambda message, fds: self._heard(place, message), lambda: None
        )
        place.channel.start(self.loop)

    def reap(self) -> None:
        """Look which have ended; their places are due again, later when they live short."""
        for place in list(self.places.values()):
            if not place.pid:
                continue
            try:
                pid, status = os.waitpid(place.pid, os.WNOHANG)
            except ChildProcessError:
                pid, status = place.pid, 0
            if pid:
                self._ended(place, os.waitstatus_to_exitcode(status))

    def _ended(self, place: WorkerProcess, code: int) -> None:
        now_s = self.loop.time()
        lived_s = now_s - place.since_s
        self.summary.retire(place.index)
        self.slots.clear(place.index)
        if place.channel is not None:
            place.channel.close()
        pid, place.pid, place.channel = place.pid, 0, None
        if self.stopping or place.leaving:
            if place.leaving:
                del self.places[place.index]
            self.changed()
            return
        self.restarts += 1
        if lived_s < FAST_DEATH_S:
            place.pause_s = min(LONGEST_PAUSE_S, max(FIRST_PAUSE_S, place.pause_s * 2))
        else:
            place.pause_s = 0.0
        place.due_s = now_s + place.pause_s
        how = f"signal {-code}" if code < 0 else f"status {code}"
        log.error("worker %d (pid %d) ended with %s: starting another", place.index, pid, how)
        self.loop.call_later(place.pause_s, self.changed)

    # --- what they are told ----------------------------------------------------------------------

    def configure(self, snapshot: channel.Snapshot, new: Collection[str]) -> None:
        """Tell all of them; the sockets of ``new`` listeners go with it."""
        self.snapshot = snapshot
        descriptor = channel.stored(snapshot)
        names = tuple(new)
        for place in self._running():
            if place.leaving:
                continue
            message = channel.Configure(version=snapshot.version, listeners=names)
            sockets = [self.sockets[name][place.index].fileno() for name in names]
            _channel(place).tell(message, [descriptor, *sockets])
        os.close(descriptor)

    def tell_health(self, table: dict[str, bool]) -> None:
        """What the active probes found."""
        self.health = table
        descriptor = channel.stored(table)
        for place in self._running():
            _channel(place).tell(channel.Health(), [descriptor])
        os.close(descriptor)

    def tell_challenges(self, tokens: dict[str, str]) -> None:
        """What an ACME server is to be answered."""
        self.challenges = tokens
        self._tell(channel.Challenges(tokens=tokens))

    def reopen_logs(self) -> None:
        """The access log was moved away."""
        self._tell(channel.Reopen())

    def _tell(self, message: channel.Message) -> None:
        for place in self._running():
            _channel(place).tell(message)

    def drain(self, seconds: float, *, silenced: bool, above: int = 0) -> None:
        """Let those with an index from ``above`` on end."""
        for place in self._running():
            if place.index >= above:
                place.leaving = True
                _channel(place).tell(channel.Drain(seconds=seconds, silenced=silenced))

    def kill(self) -> None:
        """End them at once."""
        for place in self._running():
            with contextlib.suppress(ProcessLookupError):
                os.kill(place.pid, signal.SIGKILL)

    def _running(self) -> list[WorkerProcess]:
        return [place for place in self.places.values() if place.channel is not None]

    def _heard(self, place: WorkerProcess, message: channel.Message) -> None:
        if isinstance(message, channel.Applied):
            place.version, place.error = message.version, message.error
            self.changed()

    # --- how they are ----------------------------------------------------------------------------

    @property
    def running(self) -> int:
        """Processes there are."""
        return sum(1 for place in self.places.values() if place.pid)

    def all_at(self, version: int) -> bool:
        """Whether every worker has answered to this version (well or not)."""
        return all(place.version >= version for place in self.places.values() if not place.leaving)


def _channel(place: WorkerProcess) -> Channel:
    assert place.channel is not None
    return place.channel


def _become(inherited: Inherited) -> None:
    """The rest of the life of a forked process; never returns."""
    code = _FAILED
    try:
        signal.set_wakeup_fd(-1)
        for number in (signal.SIGCHLD, signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, signal.SIG_DFL)
        # What the parent's objects hold must not be closed by their end here: they never end.
        gc.freeze()
        keep = {inherited.end.fileno(), *KEPT_DESCRIPTORS}
        keep |= {sock.fileno() for sock in inherited.sockets.values()}
        _close_but(keep)
        serve(inherited)
        code = 0
    except BaseException:
        log.exception("worker %d failed", inherited.index)
    finally:
        os._exit(code)


def _close_but(keep: set[int]) -> None:
    """Close every other descriptor: the parent's loop, channels and the sockets of other workers."""
    low = 0
    for descriptor in sorted(keep):
        if low < descriptor:  # an empty range from 0 would be taken for all there is
            os.closerange(low, descriptor)
        low = descriptor + 1
    os.closerange(low, _highest() + 1)


def _highest() -> int:
    return max(int(name) for name in os.listdir("/proc/self/fd"))  # noqa: PTH208
