"""Tasks as containers of a Docker engine, found again by the labels the engine keeps.

The engine is the parent and the record: an agent that dies means nothing to a container, and the next
agent asks for those that bear its host's label. It never restarts a container and never touches one
that Roost did not make.
"""

import asyncio
import math
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any
from weakref import WeakValueDictionary

import msgspec

from roost.adapters.drivers.docker.config import OWNER, TASK, container_config, container_name
from roost.adapters.drivers.docker.engine import CALL_S, CONFLICT, Engine, told
from roost.adapters.drivers.docker.usage import from_cgroup, from_engine
from roost.ports.clock import Clock
from roost.ports.driver import TaskHandle, TaskOrder, TaskUsage
from roost.ports.errors import Gone, Invalid, Never, Retry
from roost.ports.replicas import EXECUTED_MOST, Executed

if TYPE_CHECKING:
    from aiodocker.containers import DockerContainer

KEEP_ENDED_S = 600.0
"""What a lost host left behind on this engine, ended, is removed after this."""
_TASK_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_LOG_LINES_LEAST = 100
_LOG_LINE_BYTES = 16
"""The engine counts lines, we count bytes: lines shorter than this on average are cut short."""
_STARTS = 3
_OVER = 124
"""Exit status of a command whose time was over. The engine cannot end it: it ends with its container."""


class DockerDriver:
    """Implements ``ports.driver.Driver``. ``owner``: the host whose containers these are."""

    def __init__(
        self,
        owner: str,
        *,
        clock: Clock,
        url: str = "",
        marks: Mapping[str, str] | None = None,
        true_path: Mapping[str, str] | None = None,
        pull_s: float = 600.0,
    ) -> None:
        """``marks``: variables that every container gets, by which the host's end sweeps them.

        ``true_path``: the names the engine has for folders as the agent sees them.
        """
        self._owner = owner
        self._clock = clock
        self._engine = Engine(url, pull_s=pull_s)
        self._marks = dict(marks or {})
        self._true_path = dict(true_path or {})
        self._tidied = False
        self._starting: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        """Two starts of one id would each remove what the other has just made."""

    async def close(self) -> None:
        """End the connection to the engine; containers run on."""
        await self._engine.close()

    @property
    def held(self) -> tuple[str, ...]:
        return self._engine.held

    async def start(self, order: TaskOrder) -> TaskHandle:
        if not _TASK_ID.fullmatch(order.task_id):
            raise Invalid(f"{order.task_id!r} cannot name a task")
        async with self._starting.setdefault(order.task_id, asyncio.Lock()):
            await self._tidy()
            for _ in range(_STARTS):
                running = await self._running(order.task_id)
                if running is not None:
                    return running
                if await self._create(order):
                    await self._begin(order.task_id)
                    found = await self._look(order.task_id)
                    if found is not None:
                        # It may have ended already: its handle is that of the task that ran.
                        return _handle(order.task_id, found)
        raise Retry(f"container of task {order.task_id} is being made or removed by another")

    async def recover(self) -> list[TaskHandle]:
        handles = []
        for container in await self._list(f"{OWNER}={self._owner}"):
            if container["State"] in ("running", "paused"):
                running = await self._running(container["Labels"][TASK])
                handles += [running] if running is not None else []
        return sorted(handles, key=lambda handle: handle.task_id)

    async def stop(self, task_id: str, *, grace_s: float) -> None:
        found = await self._look(task_id)
        if found is None:
            return
        container = await self._container(task_id)
        try:
            with told(f"stop of {task_id}"):
                if found["State"]["Running"]:
                    async with asyncio.timeout(grace_s + CALL_S):
                        await container.stop(t=math.ceil(grace_s))
                async with asyncio.timeout(CALL_S):
                    await container.delete(force=True, v=True)
        except Never:
            return  # somebody else removed it
        except Retry:
            if await self._look(task_id) is not None:
                raise

    async def alive(self, task_id: str) -> bool:
        return await self._running(task_id) is not None

    async def ended(self, task_id: str) -> int | None:
        found = await self._look(task_id)
        if found is None:
            return -1
        state = found["State"]
        return None if state["Running"] else int(state["ExitCode"])

    async def usage(self, task_id: str) -> TaskUsage:
        found = await self._look(task_id)
        if found is None or not found["State"]["Running"]:
            return TaskUsage()
        read = from_cgroup(found["Id"])
        if read.cpu_s is not None:
            return read
        container = await self._container(task_id)
        try:
            with told(f"usage of {task_id}"):
                async with asyncio.timeout(CALL_S):
                    samples = await container.stats(stream=False)
        except (Never, Retry):
            return TaskUsage()
        return from_engine(samples[-1])

    async def logs(self, task_id: str, *, tail_bytes: int) -> str:
        found = await self._look(task_id)
        if found is None or tail_bytes <= 0:
            return ""
        container = await self._container(task_id)
        lines = max(_LOG_LINES_LEAST, tail_bytes // _LOG_LINE_BYTES)
        try:
            with told(f"output of {task_id}"):
                async with asyncio.timeout(CALL_S):
                    parts = await container.log(stdout=True, stderr=True, tail=str(lines))
        except Never:
            return ""
        if found["State"]["OOMKilled"]:
            parts = [*parts, "the engine ended it: it used more memory than its limit\n"]
        return "".join(parts).encode()[-tail_bytes:].decode(errors="ignore")

    async def execute(self, task_id: str, argv: tuple[str, ...], *, timeout_s: float) -> Executed:
        found = await self._look(task_id)
        if found is None or not found["State"]["Running"]:
            raise Gone(f"task {task_id} does not run")
        container = await self._container(task_id)
        kept = bytearray()
        with told(f"command in {task_id}"):
            command = await container.exec(list(argv))
            try:
                async with asyncio.timeout(timeout_s), command.start() as stream:
                    while (part := await stream.read_out()) is not None:
                        kept += part.data
                        del kept[:-EXECUTED_MOST]
            except TimeoutError:
                return Executed(exit_code=_OVER, output=kept.decode(errors="replace"))
            async with asyncio.timeout(CALL_S):
                code = (await command.inspect())["ExitCode"]
        return Executed(exit_code=int(code or 0), output=kept.decode(errors="replace"))

    # --- one container -----------------------------------------------------------------------------

    async def _container(self, task_id: str) -> "DockerContainer":
        client = await self._engine.connect()
        return client.containers.container(container_name(self._owner, task_id))

    async def _look(self, task_id: str) -> dict[str, Any] | None:
        """What the engine says of the container of a task."""
        if not _TASK_ID.fullmatch(task_id):
            return None
        container = await self._container(task_id)
        try:
            with told(f"look at {task_id}"):
                async with asyncio.timeout(CALL_S):
                    return await container.show()
        except Never:
            return None

    async def _running(self, task_id: str) -> TaskHandle | None:
        found = await self._look(task_id)
        return None if found is None or not found["State"]["Running"] else _handle(task_id, found)

    async def _create(self, order: TaskOrder) -> bool:
        """Make the container, in place of an ended one. False when another call was faster."""
        await self._engine.connect()
        config = container_config(
            order,
            owner=self._owner,
            marks=self._marks,
            cpus=self._engine.cpus,
            true_path=self._true_path,
        )
        await self._engine.need_image(order.image)
        await self._remove(order.task_id)
        client = await self._engine.connect()
        name = container_name(self._owner, order.task_id)
        try:
            with told(f"container of task {order.task_id}"):
                async with asyncio.timeout(CALL_S):
                    await client.containers.create(config, name=name)
        except Retry as error:
            if getattr(error.__cause__, "status", None) == CONFLICT:
                return False
            raise
        return True

    async def _begin(self, task_id: str) -> None:
        container = await self._container(task_id)
        try:
            with told(f"start of task {task_id}"):
                async with asyncio.timeout(CALL_S):
                    await container.start()
        except (Never, Invalid, Retry):
            await self._remove(task_id)
            raise

    async def _remove(self, task_id: str) -> None:
        """Remove a container that does not run."""
        container = await self._container(task_id)
        try:
            with told(f"removal of {task_id}"):
                async with asyncio.timeout(CALL_S):
                    await container.delete(v=True)
        except (Never, Gone):
            return
        except Retry as error:
            if getattr(error.__cause__, "status", None) != CONFLICT:
                raise  # a conflict is one that runs, or is being removed by another

    async def _list(self, label: str) -> list["DockerContainer"]:
        client = await self._engine.connect()
        filters = msgspec.json.encode({"label": [label]}).decode()
        with told("list of containers"):
            async with asyncio.timeout(CALL_S):
                return await client.containers.list(all=True, filters=filters)

    async def _tidy(self) -> None:
        """Remove what other hosts left here, ended long ago: they have no agent that would."""
        if self._tidied:
            return
        self._tidied = True
        for container in await self._list(TASK):
            theirs = container["Labels"].get(OWNER) != self._owner
            if theirs and container["State"] in ("exited", "dead"):
                await self._forget_old(container)

    async def _forget_old(self, container: "DockerContainer") -> None:
        try:
            with told("look at a container of another host"):
                async with asyncio.timeout(CALL_S):
                    state = (await container.show())["State"]
                if self._clock.now_s() - _seconds(state["FinishedAt"]) > KEEP_ENDED_S:
                    async with asyncio.timeout(CALL_S):
                        await container.delete(v=True)
        except (Never, Retry):
            return


def _handle(task_id: str, found: Mapping[str, Any]) -> TaskHandle:
    state = found["State"]
    ticks = int(_seconds(state["StartedAt"]) * 1e6)
    return TaskHandle(task_id=task_id, pid=int(state["Pid"]), started_ticks=ticks)


def _seconds(text: str) -> float:
    """The engine's RFC 3339 with nanoseconds; Python takes microseconds."""
    at = datetime.strptime(f"{text[:19]}", "%Y-%m-%dT%H:%M:%S").replace(tzinfo=UTC)
    fraction = text[19:].rstrip("Z")
    return at.timestamp() + (float(f"0{fraction}") if fraction.startswith(".") else 0.0)
