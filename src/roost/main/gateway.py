"""``roost gateway``: the load balancer on its own. The supervisor process: signals, workers, upgrades.

    SIGHUP   the file and the certificates are read again; a bad file changes nothing
    SIGTERM  nothing new is accepted, what is in flight may take ``drain_s``; a second one ends at once
    SIGUSR1  the access log is opened anew
    SIGUSR2  the program is replaced: new workers take over the same sockets, the old ones drain

It serves no client itself. When it dies the workers let what is in flight end, and end.
"""

import asyncio
import contextlib
import json
import logging
import os
import resource
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

from roost.adapters.clock import SystemClock
from roost.doors.cli.gateway import QuickStart
from roost.gateway import config, sockets
from roost.gateway.channel import Channel, Drain, Snapshot
from roost.gateway.dns import zonefile
from roost.gateway.side import SideServices
from roost.gateway.workers import ROWS, Workers
from roost.ports.errors import Invalid, RoostError
from roost.proxy import policy
from roost.proxy.tls import ServerTls, Tickets, alpn_of

log = logging.getLogger("roost.gateway")

HANDOVER = "ROOST_GATEWAY_HANDOVER"
"""Environment of a supervisor that replaces another one: its sockets and workers."""
TRIAL = "ROOST_GATEWAY_TRIAL"
"""Environment of a program that only says whether it could take over."""
DEFAULT_WORKERS = 4
ANSWER_S = 10.0
"""Longest wait for the workers to take a snapshot over."""
TRIAL_S = 30.0
TRIAL_STEP_S = 0.05
KILL_S = 5.0
"""After ``drain_s``: a worker that has still not ended is killed."""


class Program:
    """Implements ``doors.cli.gateway.GatewayProgram``."""

    def run(self, source: Path | QuickStart) -> int:
        """See ``GatewayProgram``."""
        logging.basicConfig(
            level=logging.INFO, format="%(asctime)s %(name)s %(levelname)s %(message)s"
        )
        if os.environ.pop(TRIAL, None) is not None:
            read(source)
            return 0
        return Supervisor(source).run()

    def check(self, path: Path) -> list[str]:
        """See ``GatewayProgram``."""
        gateway = config.load(path)
        _certificates(gateway, Tickets(len(gateway.listeners)))
        lines = [f"{path}: right"]
        for listener in gateway.listeners:
            secure = " TLS" if listener.tls is not None else ""
            lines.append(
                f"listener {listener.name}: {listener.protocol}{secure} {listener.address}"
            )
        for service in gateway.services:
            lines.append(
                f"service {service.name}: {len(service.backends)} backends, {service.balance}"
            )
        lines += [f"route {route.name}" for route in gateway.routes]
        if gateway.dns is not None:
            loaded = zonefile.load(path.parent / gateway.dns.zone)
            lines.append(f"zone {loaded.data.origin} on {gateway.dns.address}")
        return lines


def read(source: Path | QuickStart) -> policy.Gateway:
    """The configuration. Raises ``Invalid``."""
    if isinstance(source, Path):
        return config.load(source)
    return config.quick(
        source.listen,
        source.backends,
        balance=source.balance,
        workers=source.workers,
        admin=source.admin,
    )


def _certificates(gateway: policy.Gateway, tickets: Tickets) -> None:
    """Read all certificates. ``Invalid`` names the file at fault."""
    for listener in gateway.listeners:
        if listener.tls is not None:
            ServerTls(listener.name, listener.tls, tickets, alpn=alpn_of(listener))


def worker_count(gateway: policy.Gateway) -> int:
    """Processes."""
    cores = len(os.sched_getaffinity(0))
    return min(gateway.workers or min(cores, DEFAULT_WORKERS), ROWS)


class Supervisor:
    """Owns the sockets, forks the workers and obeys the signals."""

    def __init__(self, source: Path | QuickStart) -> None:
        self._source = source
        self._gateway = read(source)
        self._loop = asyncio.SelectorEventLoop()
        self._clock = SystemClock()
        self._workers = Workers(
            loop=self._loop,
            tickets=Tickets(),
            unix_s=self._clock.now_s,
            changed=self._look,
        )
        self._addresses: dict[str, str] = {}
        """By listener: the address its sockets were bound for."""
        self._handed_over = json.loads(os.environ.pop(HANDOVER, "{}"))
        self._old: dict[int, Channel] = {}
        """Workers of the program this one replaces, by pid."""
        self._pulse = asyncio.Event()
        self._stop = asyncio.Event()
        self._at_once = False
        self._changes = asyncio.Lock()
        self._tasks: set[asyncio.Task[None]] = set()
        self._facts: dict[str, Any] = {"reloads": 0, "reload_failures": 0, "config_ok": True}
        self._error = ""
        self._version = 0
        self._side = SideServices(
            self._workers.summary,
            facts=self.facts,
            health=self._workers.tell_health,
            challenges=self._workers.tell_challenges,
            obtained=self._obtained,
            clock=self._clock,
            folder=source.parent if isinstance(source, Path) else Path(),
        )

    def run(self) -> int:
        """Serve until told to stop; the exit status."""
        _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
        self._adopt()
        serving = self._loop.create_task(self._serve())
        serving.add_done_callback(lambda _: self._loop.stop())
        while not serving.done():
            self._workers.fork_due()
            self._loop.run_forever()
        return serving.result()

    def _look(self) -> None:
        """Something happened to the workers."""
        self._pulse.set()
        if self._workers.due():
            self._loop.stop()  # to fork, see ``run``

    async def _serve(self) -> int:
        self._signals()
        try:
            await self._take_over(self._gateway)
        except RoostError as error:
            self._workers.stopping = True
            self._workers.kill()
            print(f"roost gateway: {error.message}", file=sys.stderr, flush=True)
            return 2
        self._say_what_is_served()
        self._dismiss_old()
        await self._stop.wait()
        await self._drain()
        return 0

    # --- signals ---------------------------------------------------------------------------------

    def _signals(self) -> None:
        add = self._loop.add_signal_handler
        add(signal.SIGCHLD, self._reap)
        add(signal.SIGTERM, self._terminate)
        add(signal.SIGINT, self._terminate)
        add(signal.SIGHUP, lambda: self._start(self._reload()))
        add(signal.SIGUSR1, self._workers.reopen_logs)
        add(signal.SIGUSR2, lambda: self._start(self._upgrade()))
        self._reap()  # what ended before

    def _start(self, work: Any) -> None:
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _terminate(self) -> None:
        if self._stop.is_set():
            self._at_once = True
            self._pulse.set()
        self._stop.set()

    def _reap(self) -> None:
        self._workers.reap()
        for pid in list(self._old):
            with contextlib.suppress(ChildProcessError):
                if os.waitpid(pid, os.WNOHANG)[0] == 0:
                    continue
            self._old.pop(pid).close()
            log.info("old worker %d has ended", pid)
        self._look()

    # --- configurations --------------------------------------------------------------------------

    async def _reload(self) -> None:
        """Read the file again; a bad one changes nothing."""
        async with self._changes:
            if self._stop.is_set():
                return
            try:
                await self._take_over(read(self._source))
            except (RoostError, OSError) as error:
                self._facts["reload_failures"] += 1
                self._facts["config_ok"] = False
                self._error = str(error)
                log.error("the configuration is not taken over, the old one goes on: %s", error)
                return
            self._facts["reloads"] += 1
            self._facts["config_ok"] = True
            self._error = ""
            log.info("configuration %d is in use", self._version)

    def _obtained(self) -> None:
        """ACME has other certificates: workers read them with their next snapshot."""
        self._start(self._reload())

    async def _take_over(self, gateway: policy.Gateway) -> None:
        """Sockets, then workers. ``Invalid``: nothing has changed."""
        _certificates(gateway, Tickets(len(gateway.listeners)))
        count = worker_count(gateway)
        present = self._workers.sockets
        made, new = self._bind(gateway, count)
        try:
            await self._side.apply(gateway)
        except (RoostError, OSError):
            for name, socks in made.items():
                for sock in socks:
                    if sock not in present.get(name, ()):
                        sock.close()
            raise
        unused = [
            s for name, socks in present.items() for s in socks if s not in made.get(name, ())
        ]
        self._workers.sockets = made
        self._addresses = {each.name: each.address for each in gateway.listeners}
        self._version += 1
        self._gateway = gateway
        snapshot = Snapshot(
            version=self._version,
            gateway=gateway,
            workers=count,
            obtained=self._side.certificates(gateway),
        )
        surplus = [p for p in self._workers.places if p >= count]
        if surplus:
            for socks in present.values():
                for sock in socks[count:]:
                    sockets.silence(sock)
            self._workers.drain(gateway.drain_s, silenced=True, above=count)
        self._workers.configure(snapshot, new)
        self._workers.resize(count)
        self._look()
        await self._answered(snapshot.version)
        for sock in unused:
            sock.close()

    def _bind(
        self, gateway: policy.Gateway, count: int
    ) -> tuple[dict[str, list[socket.socket]], list[str]]:
        """The sockets of every listener, one a worker; and which listeners are new."""
        made: dict[str, list[socket.socket]] = {}
        fresh: list[socket.socket] = []
        new = []
        try:
            for listener in gateway.listeners:
                name = listener.name
                known = self._workers.sockets.get(name, [])
                if not known or self._addresses.get(name) != listener.address:
                    known = sockets.bind(listener.address, count, f"listener {name}")
                    fresh += known
                    new.append(name)
                elif len(known) < count:
                    added = sockets.more(known[0], count - len(known))
                    fresh += added
                    known = [*known, *added]
                made[name] = known[:count]
        except RoostError:
            for sock in fresh:
                sock.close()
            raise
        return made, new

    async def _answered(self, version: int) -> None:
        """Wait until every worker serves by a version."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(ANSWER_S):
                while not self._workers.all_at(version) and not self._stop.is_set():
                    self._pulse.clear()
                    await self._pulse.wait()
        errors = {p.error for p in self._workers.places.values() if p.error}
        if errors:
            raise Invalid(f"a worker does not take it over: {'; '.join(sorted(errors))}")

    def _say_what_is_served(self) -> None:
        for name, socks in self._workers.sockets.items():
            where = sockets.shown(socks[0])
            print(f"serving {name} on {where} ({len(socks)} workers)", flush=True)
        if self._side.admin_address:
            print(f"serving admin on {self._side.admin_address}", flush=True)

    # --- upgrades --------------------------------------------------------------------------------

    async def _upgrade(self) -> None:
        """Become the program as it is installed now, after it has said that it can read the file."""
        async with self._changes:
            trial = subprocess.Popen(
                [sys.executable, *sys.orig_argv[1:]], env={**os.environ, TRIAL: "1"}
            )
            end_s = self._loop.time() + TRIAL_S
            while trial.poll() is None and self._loop.time() < end_s:  # noqa: ASYNC110
                await asyncio.sleep(TRIAL_STEP_S)
            if trial.poll() != 0:
                trial.kill()
                trial.wait()
                log.error("the new program does not start: this one goes on")
                return
            if self._stop.is_set():
                return
            await self._side.close()
            self._replace()

    def _replace(self) -> None:
        """The same process, another program: what it inherits is in its environment."""
        workers = [
            (place.pid, place.channel.fileno())
            for place in self._workers.places.values()
            if place.channel is not None
        ]
        workers += [(pid, channel.fileno()) for pid, channel in self._old.items()]
        listeners = {
            name: (self._addresses[name], [sock.fileno() for sock in socks])
            for name, socks in self._workers.sockets.items()
        }
        for _, descriptor in workers:
            os.set_inheritable(descriptor, True)
        for _, descriptors in listeners.values():
            for descriptor in descriptors:
                os.set_inheritable(descriptor, True)
        handover = json.dumps({"listeners": listeners, "workers": workers})
        for number in (signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2):
            # Until the new program has its own handlers they would end it.
            signal.signal(number, signal.SIG_IGN)
        sys.stdout.flush()
        log.info("the program is replaced")
        os.execve(
            sys.executable, [sys.executable, *sys.orig_argv[1:]], {**os.environ, HANDOVER: handover}
        )

    def _adopt(self) -> None:
        """Take over what the program before left in the environment."""
        for name, (address, descriptors) in self._handed_over.get("listeners", {}).items():
            self._addresses[name] = address
            self._workers.sockets[name] = [socket.socket(fileno=fd) for fd in descriptors]
            for descriptor in descriptors:
                os.set_inheritable(descriptor, False)
        for pid, descriptor in self._handed_over.get("workers", ()):
            os.set_inheritable(descriptor, False)
            channel = Channel(
                socket.socket(fileno=descriptor), lambda message, fds: None, lambda: None
            )
            channel.start(self._loop)
            self._old[pid] = channel

    def _dismiss_old(self) -> None:
        for channel in self._old.values():
            channel.tell(Drain(seconds=self._gateway.drain_s, silenced=False))

    # --- the end ---------------------------------------------------------------------------------

    async def _drain(self) -> None:
        """Nothing new, what is in flight ends, what does not end in time is ended."""
        seconds = self._gateway.drain_s
        self._workers.stopping = True
        for socks in self._workers.sockets.values():
            for sock in socks:
                sockets.silence(sock)
        self._workers.drain(seconds, silenced=True)
        for channel in self._old.values():
            channel.tell(Drain(seconds=seconds, silenced=True))
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds + KILL_S):
                while (self._workers.running or self._old) and not self._at_once:
                    self._pulse.clear()
                    await self._pulse.wait()
        self._workers.kill()
        for pid in self._old:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        await self._side.close()

    # --- what is to be seen ----------------------------------------------------------------------

    def facts(self) -> dict[str, Any]:
        """See ``gateway.admin.Facts``."""
        workers = self._workers
        return {
            **self._facts,
            "pid": os.getpid(),
            "version": self._version,
            "error": self._error,
            "running": workers.running,
            "stopping": workers.stopping,
            "worker_restarts": workers.restarts,
            "workers": [
                {"index": p.index, "pid": p.pid, "version": p.version, "starts": p.starts}
                for p in workers.places.values()
            ],
            "listeners": {n: sockets.shown(s[0]) for n, s in workers.sockets.items() if s},
        }
