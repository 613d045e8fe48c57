"""Tasks as detached processes, found again by a file per task and the start time of the process.

A task is started in a session of its own, so that the death of its starter means nothing to it. Its
file is written before the start and completed after it: a start that a crash left half done is found
by the mark ``ROOST_TASK`` that every process of the task inherits. It never restarts a task.
"""

import asyncio
import contextlib
import hashlib
import os
import re
import signal
import subprocess
from dataclasses import dataclass
from pathlib import Path

import msgspec

from roost.adapters.drivers.process.beside import run_beside
from roost.adapters.drivers.process.limits import Groups, usage_of
from roost.ports.clock import Clock
from roost.ports.driver import TaskHandle, TaskLimits, TaskOrder, TaskUsage
from roost.ports.errors import Gone, Invalid, Never
from roost.ports.replicas import Executed

MARK = "ROOST_TASK"
DRIVER = "ROOST_DRIVER"
"""Beside the mark: whose task it is. Hosts of one machine may have tasks of one name."""
_TASK_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_SECRET = frozenset(("ROOST_JOIN_TOKEN",))
"""Of the starter's environment, what a task must not inherit."""
_POLL_S = 0.02
_SWEEP_ROUNDS = 100
_UNGROUP_ROUNDS = 25


class _TaskFile(msgspec.Struct, frozen=True, kw_only=True):
    """``<folder>/<task id>.json``; pid 0 = about to be started."""

    task_id: str
    argv: tuple[str, ...]
    pid: int = 0
    started_ticks: int = 0
    log_path: str = ""
    limits: TaskLimits = TaskLimits()

    @property
    def grouped(self) -> bool:
        """It has a group of its own."""
        return bool(self.limits.vcpus or self.limits.memory_mib)


@dataclass(frozen=True, slots=True)
class _Process:
    """What /proc says of a process."""

    pid: int
    state: str
    session: int
    started_ticks: int


class ProcessDriver:
    """Implements ``ports.driver.Driver``. ``folder`` holds the task files and lives as long as the host."""

    def __init__(self, folder: Path, *, clock: Clock, groups: Groups | None = None) -> None:
        """``groups``: what holds tasks to their limits."""
        self._folder = folder
        mine = hashlib.blake2b(str(folder.absolute()).encode(), digest_size=4).hexdigest()
        self._mine = mine
        self._groups = groups or Groups(mine)
        self._clock = clock
        self._children: dict[str, subprocess.Popen[bytes]] = {}
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)

    async def start(self, order: TaskOrder) -> TaskHandle:
        if not _TASK_ID.fullmatch(order.task_id):
            raise Invalid(f"{order.task_id!r} cannot name a task")
        if order.image:
            raise Invalid(
                f"task {order.task_id} wants image {order.image}, but this runs processes only",
                hint="a host with a container engine runs images",
            )
        if not order.argv:
            raise Invalid(f"task {order.task_id} has no command")
        running = self._find(order.task_id)
        if running is not None:
            return running
        file = _TaskFile(
            task_id=order.task_id, argv=order.argv, log_path=order.log_path, limits=order.limits
        )
        self._write(file)
        try:
            child = self._spawn(order)
        except OSError as error:
            self._path(order.task_id).unlink(missing_ok=True)
            raise Never(f"task {order.task_id} cannot be started: {error}") from error
        self._children[order.task_id] = child
        if file.grouped:
            self._groups.hold(order.task_id, order.limits, child.pid)
        # Not reaped yet, so /proc still has it even if it has ended already.
        found = _process(child.pid)
        ticks = found.started_ticks if found is not None else 0
        self._write(msgspec.structs.replace(file, pid=child.pid, started_ticks=ticks))
        return TaskHandle(task_id=order.task_id, pid=child.pid, started_ticks=ticks)

    async def recover(self) -> list[TaskHandle]:
        names = sorted(path.stem for path in self._folder.glob("*.json"))
        found = [self._find(name) for name in names]
        return [handle for handle in found if handle is not None]

    async def stop(self, task_id: str, *, grace_s: float) -> None:
        handle = self._find(task_id) if _TASK_ID.fullmatch(task_id) else None
        if handle is not None:
            _signal(handle.pid, signal.SIGTERM)
            until = self._clock.monotonic_s() + grace_s
            while self._runs(handle) and self._clock.monotonic_s() < until:  # noqa: ASYNC110
                await asyncio.sleep(_POLL_S)
        if self._path(task_id).exists():
            await self._sweep(task_id, handle)
            await self._ungroup(task_id)
            self._path(task_id).unlink(missing_ok=True)

    async def alive(self, task_id: str) -> bool:
        return self._find(task_id) is not None

    async def ended(self, task_id: str) -> int | None:
        if self._find(task_id) is not None:
            return None
        code = self.exit_code(task_id)
        if code is None:
            return -1  # another driver's child: the system told its status to nobody who lives
        return 128 - code if code < 0 else code

    async def usage(self, task_id: str) -> TaskUsage:
        handle, file = self._find(task_id), self._read(task_id)
        if handle is None or file is None:
            return TaskUsage()
        found = self._groups.usage(task_id) if file.grouped else TaskUsage()
        if found.cpu_s is None or found.memory_mib is None:
            seen = usage_of(handle.pid)
            found = TaskUsage(
                cpu_s=seen.cpu_s if found.cpu_s is None else found.cpu_s,
                memory_mib=seen.memory_mib if found.memory_mib is None else found.memory_mib,
            )
        return found

    async def logs(self, task_id: str, *, tail_bytes: int) -> str:
        file = self._read(task_id) if _TASK_ID.fullmatch(task_id) else None
        if file is None or not file.log_path or tail_bytes <= 0:
            return ""
        try:
            with Path(file.log_path).open("rb") as log:
                log.seek(max(0, log.seek(0, os.SEEK_END) - tail_bytes))
                text = log.read(tail_bytes).decode(errors="replace")
        except OSError:
            return ""
        if file.grouped and self._groups.overran(task_id):
            text += f"the system ended it: it used more than its {file.limits.memory_mib:g} MiB\n"
        return text

    async def execute(self, task_id: str, argv: tuple[str, ...], *, timeout_s: float) -> Executed:
        handle = self._find(task_id) if _TASK_ID.fullmatch(task_id) else None
        if handle is None:
            raise Gone(f"task {task_id} does not run")
        return await run_beside(handle.pid, argv, timeout_s=timeout_s)

    @property
    def held(self) -> tuple[str, ...]:
        return self._groups.held

    def exit_code(self, task_id: str) -> int | None:
        """Exit status of an ended task that this very driver started; None while it runs or unknown."""
        child = self._children.get(task_id)
        return None if child is None else child.poll()

    async def _ungroup(self, task_id: str) -> None:
        file = self._read(task_id)
        if file is None or not file.grouped:
            return
        for _ in range(_UNGROUP_ROUNDS):
            if self._groups.remove(task_id):
                return
            await asyncio.sleep(_POLL_S)

    def _path(self, task_id: str) -> Path:
        return self._folder / f"{task_id}.json"

    def _write(self, file: _TaskFile) -> None:
        path = self._path(file.task_id)
        part = path.with_suffix(f".{os.getpid()}.part")
        part.write_bytes(msgspec.json.encode(file))
        part.replace(path)

    def _spawn(self, order: TaskOrder) -> subprocess.Popen[bytes]:
        own = {name: value for name, value in os.environ.items() if name not in _SECRET}
        where = {"HOST": order.address, "PORT": str(order.port)} if order.port else {}
        environ = {**own, **where, **order.env, MARK: order.task_id, DRIVER: self._mine}
        with contextlib.ExitStack() as stack:
            output = subprocess.DEVNULL
            if order.log_path:
                Path(order.log_path).parent.mkdir(mode=0o700, parents=True, exist_ok=True)
                output = stack.enter_context(Path(order.log_path).open("ab")).fileno()
            return subprocess.Popen(
                order.argv,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=environ,
                cwd=order.cwd or None,
                start_new_session=True,
            )

    def _read(self, task_id: str) -> _TaskFile | None:
        try:
            return msgspec.json.decode(self._path(task_id).read_bytes(), type=_TaskFile)
        except (OSError, msgspec.DecodeError):
            return None

    def _find(self, task_id: str) -> TaskHandle | None:
        """The handle of the running task."""
        file = self._read(task_id)
        if file is None:
            return None
        if not file.pid:
            return self._adopt_unrecorded(file)
        handle = TaskHandle(task_id=task_id, pid=file.pid, started_ticks=file.started_ticks)
        return handle if self._runs(handle) else None

    def _adopt_unrecorded(self, file: _TaskFile) -> TaskHandle | None:
        """The starter died between the start and its record: the oldest session leader with the mark."""
        leaders = [
            found for found in _marked(file.task_id, self._mine) if found.session == found.pid
        ]
        if not leaders:
            return None
        first = min(leaders, key=lambda found: found.started_ticks)
        self._write(msgspec.structs.replace(file, pid=first.pid, started_ticks=first.started_ticks))
        return TaskHandle(task_id=file.task_id, pid=first.pid, started_ticks=first.started_ticks)

    def _runs(self, handle: TaskHandle) -> bool:
        child = self._children.get(handle.task_id)
        if child is not None and child.pid == handle.pid:
            # A child of ours stays until it is asked about. /proc would call it a zombie as soon as
            # its first thread has ended, while others of its threads are still on their way.
            return child.poll() is None
        found = _process(handle.pid)
        return (
            found is not None
            and found.state not in ("Z", "X")
            and found.started_ticks == handle.started_ticks
        )

    async def _sweep(self, task_id: str, handle: TaskHandle | None) -> None:
        """Kill all that bears the task's mark: a kernel's own children have sessions of their own."""
        for _ in range(_SWEEP_ROUNDS):
            rest = [found.pid for found in _marked(task_id, self._mine)]
            if handle is not None and self._runs(handle):
                rest.append(handle.pid)
            if not rest:
                return
            for pid in rest:
                _signal(pid, signal.SIGKILL)
            await asyncio.sleep(_POLL_S)


def _process(pid: int) -> _Process | None:
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    except (OSError, IndexError):
        return None
    return _Process(pid, fields[0], int(fields[3]), int(fields[19]))


def _marked(task_id: str, driver: str = "") -> list[_Process]:
    """Living processes with the task's mark, and of ``driver`` where they say whose they are."""
    mark, own, whose = f"{MARK}={task_id}".encode(), f"{DRIVER}={driver}".encode(), DRIVER.encode()
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        with contextlib.suppress(OSError):
            said = (entry / "environ").read_bytes().split(b"\0")
            if mark not in said:
                continue
            if driver and own not in said and any(one.startswith(whose + b"=") for one in said):
                continue
            process = _process(int(entry.name))
            if process is not None and process.state not in ("Z", "X"):
                found.append(process)
    return found


def _signal(pid: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.kill(pid, number)
