"""Fakes at the ports of an agent: keepers (their socket protocol), a driver, blobs, notices."""

import asyncio
import contextlib
import itertools
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

from blake3 import blake3

from roost.adapters.clock import SystemClock
from roost.adapters.drivers.process import ProcessDriver
from roost.agent.balancer import Balancer
from roost.agent.captures import Captures
from roost.agent.checkpoints import Checkpoints
from roost.agent.environment import Environment
from roost.agent.jobs.host import JobHost
from roost.agent.jobs.run import RunTools
from roost.agent.kernels import KernelStarter
from roost.agent.memory import Memory
from roost.agent.model import Places, Task
from roost.agent.replicas.host import ReplicaHost
from roost.agent.replicas.replica import ReplicaTools
from roost.agent.restore import Restorer
from roost.agent.service import Agent, prepare
from roost.agent.services import Services
from roost.agent.tasks import Tasks
from roost.kit.ids import SystemIds
from roost.main.agent import free_port
from roost.ports import keeper as k
from roost.ports import wire
from roost.ports.driver import TaskHandle, TaskOrder, TaskUsage
from roost.ports.errors import Gone, Invalid, Retry, RoostError, StaleEpoch, to_wire
from roost.ports.kernels import Checkpoint, RestoreReport, VariableReport
from roost.ports.replicas import Executed
from roost.ports.values import Notice
from roost.runtime.kernel import format as engine


def digest_of(content: bytes) -> str:
    return blake3(content).hexdigest()


class MemoryBlobs:
    """Blobs in memory; may be full, and may be slow."""

    def __init__(self) -> None:
        self.content: dict[str, bytes] = {}
        self.full = False
        self.puts: list[str] = []
        self.gate: asyncio.Event | None = None

    async def missing(self, digests: Sequence[str]) -> list[str]:
        return [d for d in digests if d not in self.content]

    async def put(self, digest: str, content: bytes) -> None:
        if self.gate is not None:
            await self.gate.wait()
        if self.full:
            raise Retry("the disk of the blob store is full", after_s=0.01)
        if digest_of(content) != digest:
            raise Invalid("another digest")
        self.puts.append(digest)
        self.content[digest] = content

    async def get(self, digest: str) -> bytes:
        if digest not in self.content:
            raise Gone(f"no blob {digest[:12]}")
        return self.content[digest]

    async def delete(self, digests: Sequence[str]) -> None:
        for digest in digests:
            self.content.pop(digest, None)


class FakeKeeper:
    """A keeper's socket with no kernel behind it: what is captured is ``variables``."""

    def __init__(self, run: str, task_id: str) -> None:
        self.task_id = task_id
        self.path = Path(run, f"k-{task_id}.sock")
        self.status = k.KeeperStatus(task_id=task_id, state="standby")
        self.order: k.Adopt | None = None
        self.variables: dict[str, bytes] = {}
        self.asked: list[k.AskBody] = []
        self.durable: list[int] = []
        self.adopting: asyncio.Event | None = None
        self.refuse_adopt: RoostError | None = None
        self.stopped = asyncio.Event()
        self.last: k.KeeperCapture | None = None
        """Sent again to every new connection, before its first answer."""
        self._numbers = itertools.count(1)
        self._writers: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None

    async def start(self) -> None:
        self._server = await asyncio.start_unix_server(self._accept, str(self.path))

    async def die(self) -> None:
        """As by SIGKILL: no word."""
        if self._server is not None:
            self._server.close()
        self.path.unlink(missing_ok=True)
        for writer in list(self._writers):
            writer.transport.abort()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self.stopped.set()

    def tell(self, event: k.KeeperEvent) -> None:
        for writer in self._writers:
            writer.write(k.from_keeper().encode(event))

    def set_state(self, state: str) -> None:
        self.status = k.KeeperStatus(
            task_id=self.task_id,
            session_id=self.status.session_id,
            epoch=self.status.epoch,
            state=state,
            imports=self.status.imports,
        )
        self.tell(k.StateChanged(status=self.status))

    def make_capture(self) -> k.KeeperCapture:
        """Write ``variables`` as the engine would: a chunk each, a manifest over them."""
        assert self.order is not None
        folder = Path(self.order.captures_dir)
        (folder / "chunks").mkdir(parents=True, exist_ok=True)
        groups = []
        for name, content in sorted(self.variables.items()):
            digest = digest_of(content)
            engine.chunk_path(folder, digest).write_bytes(content)
            extent = engine.Extent(digest, 0, len(content))
            groups.append(engine.Group((name,), digest, (extent,)))
        number = next(self._numbers)
        manifest = engine.Manifest(
            number, "3.11", "x86_64", groups=tuple(groups), imports=("json",)
        )
        path = engine.manifest_path(folder, number)
        path.write_bytes(engine.dumps(manifest))
        return k.KeeperCapture(
            manifest_path=str(path),
            number=number,
            epoch=self.status.epoch,
            spool=(wire.Output(epoch=1, seq=1, channel="iopub", frames=(b"out",)),),
            finished=("m-1",),
            bytes_total=sum(map(len, self.variables.values())),
        )

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        first = await k.first_frame().read(reader)
        if isinstance(first, wire.Attach):  # a session stream: echo from here on
            with contextlib.suppress(OSError):
                while data := await reader.read(1 << 18):
                    writer.write(data)
                    await writer.drain()
            writer.close()
            return
        self._writers.add(writer)
        message: k.FirstFrame | None = first
        if self.last is not None:
            writer.write(k.from_keeper().encode(k.CaptureReady(capture=self.last)))
        try:
            while isinstance(message, k.Ask):
                answer = await self._answered(message)
                writer.write(k.from_keeper().encode(answer))
                message = await k.first_frame().read(reader)
        finally:
            self._writers.discard(writer)
            writer.close()

    async def _answered(self, ask: k.Ask) -> k.Answer:
        self.asked.append(ask.body)
        try:
            return k.Answer(id=ask.id, body=await self._do(ask.body))
        except RoostError as error:
            return k.Answer(id=ask.id, error=to_wire(error))

    async def _do(self, body: k.AskBody) -> k.AnswerBody:
        match body:
            case k.GetStatus():
                return self.status
            case k.WarmKernel(imports=imports):
                self._show(imports=imports)
                return k.Warmed(imports=imports)
            case k.Adopt():
                return await self._adopt(body)
            case k.FenceOff(epoch=epoch):
                if epoch < self.status.epoch:
                    raise StaleEpoch("older")
                self.set_state("fenced")
            case k.CaptureKernel():
                return self.make_capture()
            case k.Durable(number=number):
                self.durable.append(number)
            case k.StopKeeper():
                self.stopped.set()
        return k.DoneAsked()

    async def _adopt(self, order: k.Adopt) -> k.Adopted:
        if self.adopting is not None:
            await self.adopting.wait()
        if self.refuse_adopt is not None:
            raise self.refuse_adopt
        self.order = order
        if order.restore_manifest:
            manifest = engine.read(Path(order.restore_manifest))
            folder = Path(order.captures_dir)
            for group in manifest.groups:
                path = engine.chunk_path(folder, group.extents[0].chunk)
                self.variables[group.names[0]] = path.read_bytes()
        self._show(session_id=order.session_id, epoch=order.epoch, state="ready")
        kept = tuple(VariableReport(name=n, outcome="kept") for n in self.variables)
        return k.Adopted(report=RestoreReport(variables=kept))

    def _show(self, **changes: object) -> None:
        fields = {
            "session_id": self.status.session_id,
            "epoch": self.status.epoch,
            "state": self.status.state,
            "imports": self.status.imports,
        }
        fields.update(changes)  # type: ignore[arg-type]
        self.status = k.KeeperStatus(task_id=self.task_id, **fields)  # type: ignore[arg-type]
        self.tell(k.StateChanged(status=self.status))


class FakeDriver:
    """Runs fake keepers. It outlives agents, as processes do."""

    def __init__(self, run: str) -> None:
        self._run = run
        self.keepers: dict[str, FakeKeeper] = {}

    async def start(self, order: TaskOrder) -> TaskHandle:
        keeper = FakeKeeper(self._run, order.task_id)
        self.keepers[order.task_id] = keeper
        await keeper.start()
        return TaskHandle(task_id=order.task_id, pid=0, started_ticks=0)

    async def recover(self) -> list[TaskHandle]:
        return [TaskHandle(task_id=t, pid=0, started_ticks=0) for t in sorted(self.keepers)]

    async def stop(self, task_id: str, *, grace_s: float) -> None:
        keeper = self.keepers.pop(task_id, None)
        if keeper is not None:
            await keeper.die()

    async def alive(self, task_id: str) -> bool:
        keeper = self.keepers.get(task_id)
        return keeper is not None and not keeper.stopped.is_set()

    async def ended(self, task_id: str) -> int | None:
        return None if await self.alive(task_id) else -1

    async def usage(self, task_id: str) -> TaskUsage:
        return TaskUsage()

    async def logs(self, task_id: str, *, tail_bytes: int) -> str:
        return ""

    async def execute(self, task_id: str, argv: tuple[str, ...], *, timeout_s: float) -> Executed:
        return Executed(exit_code=0)

    @property
    def held(self) -> tuple[str, ...]:
        return ()

    async def kill(self, task_id: str) -> None:
        """SIGKILL by somebody."""
        await self.stop(task_id, grace_s=0.0)

    def of(self, session_id: str) -> FakeKeeper:
        found = [x for x in self.keepers.values() if x.status.session_id == session_id]
        assert len(found) == 1, f"{len(found)} kernels of {session_id}"
        return found[0]


class FakeNotices:
    """A metadata service."""

    def __init__(self) -> None:
        self.notice: Notice | None = None

    async def poll(self) -> Notice | None:
        return self.notice


class Host:
    """One host with one agent at a time."""

    def __init__(self, folder: Path, blobs: MemoryBlobs, environment: str = "") -> None:
        (folder / "i").mkdir(parents=True, exist_ok=True)
        (folder / "r").mkdir(exist_ok=True)
        self.places = Places(
            instance=str(folder / "i"), run=str(folder / "r"), environment=environment
        )
        prepare(self.places)
        self.folder = folder / "i"
        (self.folder / "env.json").write_bytes(b'{"ready": true}')
        self.driver = FakeDriver(self.places.run)
        self.blobs = blobs
        self.notices = FakeNotices()
        self.events: list[wire.EventBody] = []
        self.beats = 0

    @asynccontextmanager
    async def agent(self) -> AsyncIterator[Agent]:
        """An agent, from its start to its (sudden) end."""
        late: list[Agent] = []
        clock = SystemClock()
        memory = Memory(self.folder / "agent" / "sessions")
        environment = Environment(self.places.environment)
        checkpoints = Checkpoints(
            places=self.places, blobs=self.blobs, environment=environment, clock=clock
        )

        async def on_durable(checkpoint: Checkpoint) -> None:
            await late[0].on_durable(checkpoint)

        def on_event(task: Task, event: k.KeeperEvent) -> None:
            late[0].on_keeper_event(task, event)

        tasks = Tasks(
            places=self.places,
            driver=self.driver,
            ids=SystemIds(),
            keeper_argv=("keeper",),
            on_event=on_event,
            on_end=lambda task: late[0].on_task_end(task),
            on_change=self._beat,
        )
        balancer = Balancer(clock.now_s)
        agent = Agent(
            "h-1",
            places=self.places,
            tasks=tasks,
            starter=KernelStarter(
                places=self.places,
                tasks=tasks,
                memory=memory,
                restorer=Restorer(self.places, self.blobs, environment),
                checkpoints=checkpoints,
            ),
            captures=Captures(checkpoints, memory, self.events.append, on_durable),
            memory=memory,
            services=Services(
                self.places, tasks, balancer, address="127.0.0.1", home=self.places.instance
            ),
            replicas=ReplicaHost(
                self.folder / "replicas",
                ReplicaTools(
                    processes=ProcessDriver(self.folder / "agent" / "replicas", clock=clock),
                    blobs=self.blobs,
                    clock=clock,
                    address="127.0.0.1",
                    free_port=free_port,
                    beat=self._beat,
                ),
                balancer,
            ),
            jobs=JobHost(
                self.folder / "jobs",
                RunTools(
                    driver=self.driver,
                    blobs=self.blobs,
                    clock=clock,
                    beat=self._beat,
                    runner_argv=("runner",),
                ),
            ),
            notices=self.notices,
            clock=clock,
            emit=self.events.append,
            beat=self._beat,
        )
        late.append(agent)
        await agent.start()
        running = asyncio.create_task(agent.run())
        try:
            yield agent
        finally:
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)
            await agent.close()

    async def end(self) -> None:
        for task_id in list(self.driver.keepers):
            await self.driver.stop(task_id, grace_s=0)

    def workspace(self, session_id: str = "s-1") -> Path:
        return Path(self.places.workspace(session_id))

    def heard(self, kind: type) -> list[wire.EventBody]:
        return [event for event in self.events if isinstance(event, kind)]

    def _beat(self) -> None:
        self.beats += 1


async def until(condition: Callable[[], object], *, seconds: float = 10.0) -> None:
    """Poll with a deadline."""
    async with asyncio.timeout(seconds):
        while not condition():  # noqa: ASYNC110 - conditions are plain values
            await asyncio.sleep(0.005)
