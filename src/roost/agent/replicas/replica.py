"""One replica on this host: started, checked, started again after its ends, stopped; its output.

What matters is in its folder, so that the next agent goes on where this one was. It never decides whether
the replica should be here: the host's set does.
"""

import asyncio
import logging
import os
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import msgspec

from roost.agent.replicas import machine
from roost.agent.replicas.check import check
from roost.agent.replicas.machine import Life
from roost.agent.tree import restore_tree
from roost.ports import jobs as formats
from roost.ports.blobs import Blobs
from roost.ports.clock import Clock
from roost.ports.driver import Driver, TaskLimits, TaskOrder
from roost.ports.errors import Invalid, Never, RoostError
from roost.ports.replicas import ReplicaOrder, ReplicaReport

log = logging.getLogger(__name__)

LOOK_S = 0.1
"""How often a process is looked at ..."""
LOOK_ENGINE_S = 0.5
"""... and a container, which costs a question to its engine."""
STARTING_S = 0.1
"""Between two health checks until it is ready."""
TAIL = 64 << 10
"""Bytes of an ended container's output that are kept."""
IDLE_LOOK_S = 0.05
_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


class ReplicaTools(msgspec.Struct, frozen=True, kw_only=True):
    """What replicas need of their host."""

    processes: Driver
    containers: Driver | None = None
    """None: no container engine here."""
    blobs: Blobs
    clock: Clock
    address: str
    """Where they listen: the host's own address."""
    free_port: Callable[[], int]
    """A port of that address on which nobody listens."""
    beat: Callable[[], None]
    environment: str = ""
    """The virtual environment of processes."""
    unready: Callable[[], str] = lambda: ""
    """Why that environment cannot be used yet; empty = it can."""


class _State(msgspec.Struct, frozen=True, kw_only=True):
    """``state.json``: what the next agent must know."""

    life: Life
    port: int
    image: str = ""


class Replica:
    """A replica as it lives here."""

    def __init__(
        self,
        order: ReplicaOrder,
        folder: Path,
        tools: ReplicaTools,
        *,
        changed: Callable[[], None],
        taken: Callable[[int], str],
        work: Callable[[], tuple[int, int]] = lambda: (0, 0),
    ) -> None:
        """``changed``: its state or address is another. ``taken(port)``: the replica that has a port.
        ``work``: its requests in flight, and how many it has answered."""
        self.order = order
        self.life = Life()
        self.port = 0
        self.leaving = False
        """It is being removed."""
        self._folder = folder
        self._tools = tools
        self._changed = changed
        self._taken = taken
        self._work = work
        self._answered = 0
        self._heard_s = 0.0
        """When it was last seen to answer anything."""
        self._condemned = ""
        self._task: asyncio.Task[None] | None = None

    @staticmethod
    def check_id(replica_id: str) -> None:
        """``Invalid`` for what cannot name a folder and a task."""
        if not _ID.fullmatch(replica_id):
            raise Invalid(f"{replica_id!r} cannot name a replica", hint="letters, digits, . _ -")

    @property
    def id(self) -> str:
        return self.order.replica_id

    @property
    def driver(self) -> Driver:
        """Who runs it. ``Never`` where nobody here can."""
        if not self.order.spec.image:
            return self._tools.processes
        if self._tools.containers is None:
            raise Never(
                f"image {self.order.spec.image}: this host has no container engine",
                hint="a host with Docker runs images; a command without an image runs anywhere",
            )
        return self._tools.containers

    @property
    def draining(self) -> bool:
        """It gets nothing new, and is not started again."""
        return self.order.draining or self.leaving

    @property
    def takes(self) -> bool:
        """It may get requests."""
        return self.life.state == "ready" and not self.draining

    def report(self) -> ReplicaReport:
        """As control sees it, without its usage."""
        life, clock = self.life, self._tools.clock
        to_utc = clock.now_s() - clock.monotonic_s()
        return ReplicaReport(
            replica_id=self.id,
            service_id=self.order.service_id,
            revision=self.order.revision,
            state=machine.shown(life, draining=self.draining),
            detail=life.detail,
            restarts=life.restarts,
            failures=life.failures,
            exit_code=life.exit_code,
            started_s=None if life.began_s is None else life.began_s + to_utc,
            ready_s=None if life.ready_s is None else life.ready_s + to_utc,
        )

    # --- from outside -----------------------------------------------------------------------------

    async def begin(self, *, adopt: bool = False) -> None:
        """Live from now on. ``adopt``: its process may run already."""
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if adopt:
            await self._adopt()
        self._go_on()

    def update(self, order: ReplicaOrder) -> None:
        """The same replica, to be drained or not."""
        if order == self.order:
            return
        self.order = order
        if self.life.state == "ended" and not order.draining:
            self.life = Life(restarts=self.life.restarts, began_s=self.life.began_s)
            self._go_on()
        self._changed()

    def condemn(self, why: str) -> None:
        """It broke a limit that nobody but us watches: it is ended and started again."""
        self._condemned = why

    async def close(self) -> None:
        """Let go of it; it runs on."""
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def remove(self, idle: Callable[[], bool], part: Callable[[], None]) -> None:
        """Nothing new; what is in flight may end within its grace; then it is ended with its files."""
        self.leaving = True
        self._changed()
        grace_s = self.order.spec.stop_grace_s
        until_s = self._now_s() + grace_s
        part()
        while self.life.up and not idle() and self._now_s() < until_s:  # noqa: ASYNC110
            await asyncio.sleep(IDLE_LOOK_S)
        await self.end(grace_s)

    async def end(self, grace_s: float) -> None:
        """End its process and forget it."""
        self.leaving = True
        await self.close()
        try:
            await self.driver.stop(self.id, grace_s=grace_s)
        except (RoostError, OSError) as error:
            log.warning("replica %s could not be stopped: %s", self.id, error)
        await asyncio.to_thread(shutil.rmtree, self._folder, ignore_errors=True)

    async def logs(self, tail_bytes: int) -> str:
        """Its newest output, over its restarts."""
        try:
            text = await self.driver.logs(self.id, tail_bytes=tail_bytes)
        except RoostError as error:
            text = f"[{error}]\n"
        missing = tail_bytes - len(text.encode())
        if missing > 0 and self._last.exists():
            text = self._last.read_bytes()[-missing:].decode(errors="replace") + text
        return text

    def trim(self, most: int, keep: int) -> None:
        """Bound its output: it is appended to, so the file can be cut under it."""
        path = self._output
        try:
            if path.stat().st_size <= most:
                return
            with path.open("r+b") as file:
                file.seek(-keep, os.SEEK_END)
                tail = file.read()
                file.truncate(0)
            with path.open("ab") as file:
                file.write(b"[earlier output was dropped]\n" + tail)
        except OSError as error:
            log.warning("output of %s: %s", self.id, error)

    # --- its life ---------------------------------------------------------------------------------

    @property
    def _output(self) -> Path:
        return self._folder / "output.log"

    @property
    def _last(self) -> Path:
        return self._folder / "last.log"

    def _go_on(self) -> None:
        if self._task is None or self._task.done():
            self._task = asyncio.get_running_loop().create_task(self._live())
            self._task.add_done_callback(self._fault)

    def _fault(self, task: asyncio.Task[None]) -> None:
        error = None if task.cancelled() else task.exception()
        if error is not None:  # a fault of ours must not make the replica invisible
            log.error("replica %s cannot be followed", self.id, exc_info=error)
            self._set(machine.over(self.life, f"the agent failed: {error}", None))

    def _now_s(self) -> float:
        return self._tools.clock.monotonic_s()

    async def _adopt(self) -> None:
        try:
            content = (self._folder / "state.json").read_bytes()
            state = msgspec.json.decode(content, type=_State)
        except (OSError, msgspec.DecodeError):
            return
        self.life, self.port = state.life, state.port
        try:
            alive = await self.driver.alive(self.id)
        except RoostError:
            return
        if alive and not self.life.up:  # the agent died between the start and its record
            self.life = machine.launched(self.life, self._now_s())
        elif not alive and self.life.up:
            why = machine.exit_reason(None, self.order.spec.memory_mib)
            self.life = machine.ended(self.life, why, self._now_s())

    async def _live(self) -> None:
        while True:
            if not self.life.up:
                if self.draining and self.life.state != "ended":
                    self._set(machine.over(self.life, self.life.detail, self.life.exit_code))
                if self.life.state == "ended":
                    return
                await self._launch()
            if self.life.up:
                await self._watch()

    async def _launch(self) -> None:
        while (wait_s := self.life.again_s - self._now_s()) > 0:
            await asyncio.sleep(min(wait_s, 1.0))
            if self.draining:
                return
        try:
            order = await self._prepared()
            self._write()
            self._condemned = ""
            driver = self.driver
            if self.life.began_s is not None and not order.image:
                await driver.stop(self.id, grace_s=0.0)  # also what it left running
            await driver.start(order)
        except (RoostError, OSError) as error:
            self._set(machine.ended(self.life, str(error), self._now_s()))
        else:
            self._set(machine.launched(self.life, self._now_s()))

    async def _prepared(self) -> TaskOrder:
        """What to start, once all it needs is here."""
        spec, tools = self.order.spec, self._tools
        work = self._folder / "work"
        if not spec.image:
            while why := tools.unready():
                self._set(machine.pulled(self.life, why))
                await asyncio.sleep(2 * LOOK_S)
        if spec.files and not (self._folder / "fetched").exists():
            self._set(machine.pulled(self.life, "fetching its files"))
            files = formats.decode_files(await tools.blobs.get(spec.files))
            await restore_tree(work, files.workspace, tools.blobs.get)
            (self._folder / "fetched").touch()
        if spec.image:
            self._set(machine.pulled(self.life, f"image {spec.image}"))
        work.mkdir(mode=0o700, exist_ok=True)
        self.port = self._pick_port()
        cwd = str(work / spec.cwd) if not spec.image or spec.files else spec.cwd
        return TaskOrder(
            task_id=self.id,
            argv=spec.command,
            env=self._environment(),
            cwd=cwd,
            mounts=(str(work),) if spec.image and spec.files else (),
            log_path=str(self._output),
            image=spec.image,
            limits=TaskLimits(vcpus=spec.vcpus, memory_mib=spec.memory_mib, gpus=spec.gpus),
            address=tools.address,
            port=self.port,
            listens=spec.port if spec.image else 0,
        )

    def _pick_port(self) -> int:
        spec = self.order.spec
        if spec.image or not spec.port:
            return self._tools.free_port()
        other = self._taken(spec.port)
        if other:
            raise Invalid(
                f"port {spec.port} of this host is replica {other}'s",
                hint="listen on $PORT instead of a fixed port, or run one replica a host",
            )
        return spec.port

    def _environment(self) -> dict[str, str]:
        order, own = self.order, self._tools.environment
        said = {
            "ROOST_SERVICE": order.service_id,
            "ROOST_REPLICA": order.replica_id,
            "ROOST_REVISION": str(order.revision),
        }
        if not order.spec.image:
            folder = f"{own}/bin" if own else str(Path(sys.executable).parent)
            said["PATH"] = f"{folder}:{os.environ.get('PATH', os.defpath)}"
            said["PYTHONUNBUFFERED"] = "1"
            if own:
                said["VIRTUAL_ENV"] = own
        return {**said, **order.spec.env}

    async def _watch(self) -> None:
        """Until it has ended, by itself or because it is unwell."""
        spec = self.order.spec
        look_s = LOOK_ENGINE_S if spec.image else LOOK_S
        next_s = 0.0
        while True:
            if await self._has_ended():
                return
            if self._condemned:
                await self._put_down(self._condemned)
                return
            if self._now_s() >= next_s:
                await self._check()
                if self.life.state == "unhealthy":
                    await self._put_down(self.life.detail)
                    return
                starting = self.life.state == "starting"
                next_s = self._now_s() + (STARTING_S if starting else spec.health.interval_s)
            await asyncio.sleep(min(look_s, max(0.01, next_s - self._now_s())))

    async def _check(self) -> None:
        health = self.order.spec.health
        found = await check(self._tools.address, self.port, health)
        now_s, (in_flight, answered) = self._now_s(), self._work()
        if not found.bad or answered != self._answered:
            self._heard_s, self._answered = now_s, answered
        silent_s = now_s - self._heard_s
        if found.slow and machine.excused(self.life, in_flight=in_flight, silent_s=silent_s):
            return
        self._set(machine.checked(self.life, health, found.bad, now_s))

    async def _has_ended(self) -> bool:
        try:
            code = await self.driver.ended(self.id)
        except RoostError as error:  # no news is no death
            log.info("replica %s: %s", self.id, error)
            return False
        if code is None:
            return False
        why = machine.exit_reason(code, self.order.spec.memory_mib)
        said = await self._last_words() if code else ""
        await self._ended(f"{why}: {said}" if said else why, code if code >= 0 else None)
        return True

    async def _put_down(self, why: str) -> None:
        """End a process that is there but of no use."""
        try:
            await self.driver.stop(self.id, grace_s=min(2.0, self.order.spec.stop_grace_s))
        except RoostError as error:
            log.warning("replica %s: %s", self.id, error)
        await self._ended(why, None)

    async def _ended(self, why: str, code: int | None) -> None:
        log.info("replica %s of %s: %s", self.id, self.order.service_id, why)
        if self.draining:
            self._set(machine.over(self.life, why, code))
        else:
            self._set(machine.ended(self.life, why, self._now_s(), exit_code=code))

    async def _last_words(self) -> str:
        """The last line it wrote; of a container all of its output is kept."""
        try:
            text = await self.driver.logs(self.id, tail_bytes=TAIL)
        except RoostError:
            return ""
        if self.order.spec.image:
            self._last.write_text(text)
        lines = [line.strip() for line in text.splitlines() if line.strip()]
        return lines[-1][-120:] if lines else ""

    def _set(self, life: Life) -> None:
        before, self.life = self.life, life
        if life == before:
            return
        if (life.state, life.began_s) != (before.state, before.began_s):
            self._write()
            self._changed()
        elif life.detail != before.detail:
            self._tools.beat()

    def _write(self) -> None:
        part = self._folder / "state.part"
        try:
            part.write_bytes(
                msgspec.json.encode(
                    _State(life=self.life, port=self.port, image=self.order.spec.image)
                )
            )
            part.replace(self._folder / "state.json")
        except OSError as error:
            log.warning("replica %s is not remembered: %s", self.id, error)


def image_of(folder: Path) -> str:
    """The image of a replica that was here; empty = it was a process."""
    try:
        return msgspec.json.decode((folder / "state.json").read_bytes(), type=_State).image
    except (OSError, msgspec.DecodeError):
        return ""
