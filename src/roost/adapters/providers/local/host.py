"""The host process: it starts the first process of an instance, watches over it and cleans up after it.

    provider ── starts ──> host ── forks ──> first process (first.py) ──> agent, tasks
                            │  heartbeat each second, the deadline of a notice, end.json
                            └─ its death kills the first process, whose death kills everything

It lives outside the instance's namespace, holds a lock so that an instance has one host only, and runs
without threads or asyncio: it must not fail. It never talks to the network.
"""

import contextlib
import fcntl
import os
import select
import shutil
import signal
import sys
from dataclasses import dataclass
from pathlib import Path

from roost.adapters.providers.local import cgroups, namespaces, records
from roost.adapters.providers.local.first import FirstProcess, Serve, Setting
from roost.adapters.providers.local.processes import drain, start_ticks, sweep, wake_on
from roost.adapters.providers.local.records import EndFile, HostFile, Isolation, Record
from roost.ports.clock import Clock
from roost.ports.errors import Invalid

TICK_S = 0.25
GRACE_S = 3.0
"""After SIGTERM the first process has this long; then it is killed."""


def instance_paths(folder: Path) -> tuple[Path, Path]:
    """(the state directory's instances folder, where an instance sees itself) for an instance folder."""
    return folder.parent, folder.parent / "self"


@dataclass(frozen=True, slots=True)
class Options:
    """How the provider wants its hosts to run; handed over as command-line arguments."""

    folder: Path
    """The instance's folder."""
    agent_argv: tuple[str, ...]
    python: str
    uv: str
    uv_cache: str
    force_mark: bool = False
    """Do without namespaces even where they are permitted."""


class HostProcess:
    """One run of an instance, from its boot to its end."""

    def __init__(self, options: Options, *, clock: Clock, serve: Serve) -> None:
        self._options = options
        self._folder = options.folder
        self._clock = clock
        self._serve = serve
        self._limits = cgroups.Limits()
        self._missing: list[str] = []
        self._ending_since: float | None = None
        self._pid = 0

    def run(self) -> int:
        """Boot, watch, clean up. Returns the exit status. A second host of the same instance leaves."""
        record = records.read(self._folder / "instance.json", Record)
        if record is None:
            raise Invalid(f"{self._folder} is not an instance", hint="hosts are started by Roost")
        lock = os.open(self._folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._await_registration()
            return 0
        self._register(record, up=False)
        (self._folder / "heartbeat").touch()
        wakeup = wake_on(signal.SIGCHLD, signal.SIGTERM, on_term=self._told_to_end)
        self._boot(record, lock)
        self._register(record, up=True)
        print(f"host {record.host_id} up, boot {record.boot}", flush=True)
        try:
            reason = self._watch(record, wakeup)
        finally:
            self._end_all(record)
        self._finish(record, reason)
        return 0

    def _await_registration(self) -> None:
        """The other host has the lock; leave when it can be found, so that nobody believes it lost."""
        for _ in range(100):
            if (self._folder / "host.json").exists():
                return
            select.select([], [], [], 0.05)

    def _told_to_end(self) -> None:
        if self._ending_since is None:
            self._ending_since = self._clock.monotonic_s()

    def _boot(self, record: Record, lock: int) -> None:
        """Fork the first process, in namespaces where they are permitted; it waits for its cgroups."""
        base, at = instance_paths(self._folder)
        at.mkdir(mode=0o700, exist_ok=True)
        _prepare_disk(self._folder, Path(record.run_dir))
        refusal = "switched off" if self._options.force_mark else namespaces.permitted(base, at)
        if refusal:
            self._missing.append(f"pid namespace: {refusal}")
        go_reader, go_writer = os.pipe()
        own = os.getpid()
        if not refusal:
            namespaces.separate()
        self._pid = os.fork()
        if self._pid == 0:
            os.close(go_writer)
            os.close(lock)
            self._become_first(record, go_reader, own, isolated=not refusal)
        os.close(go_reader)
        self._limits = cgroups.apply(
            _cgroup_name(self._folder), record.order.offer.resources, self._pid
        )
        self._tell_isolation(isolated=not refusal)
        os.write(go_writer, b"1")
        # The writer stays open for life: its end of file tells the first process that the host died.

    def _become_first(self, record: Record, host_pipe: int, host: int, *, isolated: bool) -> None:
        """In the child: never returns."""
        status = 1
        try:
            namespaces.die_with_parent()
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            if os.read(host_pipe, 1) != b"1":
                return
            _, at = instance_paths(self._folder)
            if isolated:
                namespaces.furnish(self._folder, at)
            else:
                namespaces.adopt_orphans()
            setting = Setting(
                record=record,
                folder=self._folder,
                seen_as=at if isolated else self._folder,
                host_pipe=host_pipe,
                isolated=isolated,
                agent_argv=self._options.agent_argv,
                python=self._options.python,
                uv=self._options.uv,
                uv_cache=self._options.uv_cache,
            )
            status = FirstProcess(setting, clock=self._clock, serve=self._serve).run()
        except BaseException as error:  # a forked child must not run its parent's code
            print(f"first process of {record.host_id}: {error!r}", file=sys.stderr, flush=True)
        finally:
            os._exit(status)

    def _tell_isolation(self, *, isolated: bool) -> None:
        held_by = ["pid-namespace", "mount-namespace"] if isolated else ["mark"]
        missing = (*self._missing, *self._limits.missing)
        for what in missing:
            print(f"not permitted here: {what}", flush=True)
        records.write(
            self._folder / "isolation.json",
            Isolation(
                held_by=(*held_by, *self._limits.held_by),
                missing=missing,
                memory_limit_bytes=self._limits.memory_limit_bytes,
                memory_usage_file=self._limits.memory_usage_file,
                cpu_weight=self._limits.cpu_weight,
                cgroups=tuple(self._limits.folders),
            ),
        )

    def _register(self, record: Record, *, up: bool) -> None:
        own = os.getpid()
        records.write(
            self._folder / "host.json",
            HostFile(
                pid=own,
                started_ticks=start_ticks(own) or 0,
                boot=record.boot,
                first_pid=self._pid,
                first_ticks=(start_ticks(self._pid) or 0) if self._pid else 0,
                up=up,
                cgroups=tuple(self._limits.folders),
            ),
        )

    def _watch(self, record: Record, wakeup: int) -> str:
        """Until the first process ended or the deadline came. Returns why it ended."""
        beaten = 0.0
        while True:
            now = self._clock.now_s()
            if now - beaten >= 1.0 or now < beaten:
                os.utime(self._folder / "heartbeat")
                beaten = now
            deadline = records.deadline_s(self._folder)
            if deadline is not None and now >= deadline:
                return "interrupted"
            if self._ended():
                return self._wanted(record) if self._ending_since is not None else "lost"
            self._push_end()
            wait = TICK_S if deadline is None else min(TICK_S, max(0.0, deadline - now))
            if select.select([wakeup], [], [], wait)[0]:
                drain(wakeup)

    def _push_end(self) -> None:
        """After SIGTERM: pass it on, then kill."""
        if self._ending_since is None:
            return
        late = self._clock.monotonic_s() - self._ending_since >= GRACE_S
        with contextlib.suppress(ProcessLookupError):
            os.kill(self._pid, signal.SIGKILL if late else signal.SIGTERM)

    def _ended(self) -> bool:
        if self._pid:
            pid, _ = os.waitpid(self._pid, os.WNOHANG)
            if pid:
                self._pid = 0
        return not self._pid

    def _end_all(self, record: Record) -> None:
        """Whatever happened: nothing of the instance runs after this."""
        if self._pid:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._pid, signal.SIGKILL)
            os.waitpid(self._pid, 0)
            self._pid = 0
        sweep(record.host_id)
        cgroups.remove(self._limits.folders)

    def _finish(self, record: Record, reason: str) -> None:
        records.write(
            self._folder / "end.json",
            EndFile(boot=record.boot, at_s=self._clock.now_s(), reason=reason),
            durable=True,
        )
        print(f"host {record.host_id} ended: {reason}", flush=True)
        if reason != "stopped":
            erase(self._folder, Path(record.run_dir))

    def _wanted(self, record: Record) -> str:
        """The provider wrote its intent before it sent SIGTERM; a SIGTERM by anybody else is a loss."""
        now = records.read(self._folder / "instance.json", Record) or record
        return "lost" if now.wanted == "running" else now.wanted


def erase(folder: Path, run_dir: Path) -> None:
    """Delete the disk of an ended instance; its record, ledger and end stay, also while the other process
    is writing one. Repeating is fine."""
    with contextlib.suppress(FileNotFoundError):
        for path in folder.iterdir():
            if path.name in records.KEPT or records.unfinished(path):
                continue
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)
    _clear_run_dir(run_dir)


def _prepare_disk(folder: Path, run_dir: Path) -> None:
    """Folders of the instance; ``env`` is made when its packages are in place."""
    for name in records.DISK:
        (folder / name).mkdir(mode=0o700, exist_ok=True)
    _clear_run_dir(run_dir)
    run_dir.mkdir(mode=0o700)


def _clear_run_dir(run_dir: Path) -> None:
    """Its name is known in advance and /tmp is everybody's: what others own there is not touched."""
    with contextlib.suppress(FileNotFoundError):
        if run_dir.lstat().st_uid == os.getuid():
            shutil.rmtree(run_dir, ignore_errors=True)


def _cgroup_name(folder: Path) -> str:
    return f"roost-{folder.name}-{folder.stat().st_ino}"
