"""One seed: a world is drawn, things go wrong for a while (safety), then nothing does (liveness).

Returns what happened; never prints.
"""

import asyncio
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any, TypeVar

from roost.adapters.store.sqlite.store import open_store
from roost.fleet.model import Spread
from roost.kit.ids import SeededIds
from roost.kit.story import story_digest
from roost.ports.errors import RoostError
from roost.ports.provider import InstanceState
from roost.ports.store import Store
from roost.ports.values import Ask, Image, Notice, NoticeKind
from roost.sim import checkers, job_checkers
from roost.sim.checkers import Scene
from roost.sim.control import ControlPlane
from roost.sim.edge import SimEdge
from roost.sim.faults import Streams, Swarm, draw_swarm
from roost.sim.groups import GroupScene
from roost.sim.hosts import Hub
from roost.sim.job_checkers import JobScene
from roost.sim.jobs import STEP_S, SimBlobs
from roost.sim.kernels import SimKernel
from roost.sim.loop import run_virtual
from roost.sim.provider import Machine, SimProvider
from roost.sim.user import TypingUser
from roost.sim.world import Life, World

T = TypeVar("T")

SETTLE_S = 1_800.0
"""How long everything may take to settle once nothing goes wrong any more."""
CLOUDS = ("aws", "azure", "gcp")
LAUNCHES_PER_TROUBLE = 6
"""More launches than this per session, loss, refusal and move are thrash."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What one seed showed."""

    seed: int
    hours: float
    faults: tuple[str, ...]
    violations: tuple[str, ...]
    digest: str
    simulated_s: float
    tally: dict[str, int] = field(default_factory=dict)


class Scenario:
    """Typing users, disturbers, a control plane that dies, and the checkers."""

    def __init__(self, seed: int, hours: float, swarm: Swarm) -> None:
        self.seed = seed
        self.hours = hours
        self.swarm = swarm
        self.world = World(seed, swarm)
        self.hub = Hub(self.world, self._kernel_started, lambda run: self.jobs.started(run))
        self.edge = SimEdge(self.world)
        self.providers = {
            name: SimProvider(self.world, name, self._booted, self.hub.end) for name in CLOUDS
        }
        self.store: Store = open_store(None)
        self.scene = Scene(self.world, self.hub, self.edge, self.providers, self.store)
        self.jobs = JobScene(self.world, self.store)
        self.groups = GroupScene(self.world, self.store)
        self.blobs = SimBlobs()
        self.servers: dict[str, None] = {}
        self.standby: dict[str, bool] = {}
        self._ids = SeededIds(f"{seed}/ids")
        self._rng = self.world.stream("scenario")
        self.control = self._new_control()

    async def run(self) -> Outcome:
        """Both phases."""
        self.control.start()
        self.world.arm_crash()
        self.world.spawn(self._resurrect(), "supervisor")
        for number in range(self._rng.randrange(1, 4)):
            self.world.spawn(self._session(number), f"session {number}")
        for number in range(self.world.stream("jobs").choice((0, 0, 1, 2))):
            self.world.spawn(self._job(number), f"job {number}")
        for number in range(self.world.stream("groups").choice((0, 0, 1))):
            scaler = self.groups.scale(number, lambda: self.control.groups, self._insist)
            self.world.spawn(scaler, f"group {number}")
        await self._watch(self.hours * 3600.0)
        if not self.world.violations:
            self.world.calm()
            await self._settle()
        lines = await self._story()
        return Outcome(
            seed=self.seed,
            hours=self.hours,
            faults=self.swarm.names(),
            violations=tuple(str(v) for v in self.world.violations),
            digest=story_digest(lines),
            simulated_s=self.world.clock.monotonic_s(),
            tally=dict(sorted(self.world.tally.items())),
        )

    async def close(self) -> None:
        """End the control plane and drop its database."""
        await self.control.kill()
        await self.store.close()

    # --- phases ------------------------------------------------------------------------------------

    async def _watch(self, seconds: float) -> None:
        end_s = self.world.clock.monotonic_s() + seconds
        second = 0
        while self.world.clock.monotonic_s() < end_s and not self.world.violations:
            await asyncio.sleep(1.0)
            second += 1
            await self._check(second)

    async def _check(self, second: int) -> None:
        sessions = await self.scene.sessions()
        for name, check in checkers.EVERY_SECOND:
            for what in check(self.scene, sessions):
                self.world.violate(name, what)
        self.jobs.check(await self.jobs.jobs())
        if second % 10 == 0:
            for what in checkers.live_instances_are_wanted(self.scene, await self.scene.rows()):
                self.world.violate("every live instance is wanted or being ended", what)
            grouped = await self.groups.groups(), await self.groups.members()
            for what in self.groups.check(*grouped):
                self.world.violate("a group has its size", what)
        if second % 120 == 0:
            for what in await checkers.metered_equals_ledger(self.scene, settled=False):
                self.world.violate("metered equals the ledger", what)

    async def _settle(self) -> None:
        """The liveness phase: nothing fails, people stop typing, everything must come to rest."""
        for user in self.scene.users.values():
            user.typing = False
        self.groups.scaling = False
        calm_since_s = self.world.clock.monotonic_s()
        quiet = 0
        while quiet < 10 and not self.world.violations:
            await self._watch(1.0)
            missing = await checkers.unsettled(self.scene, self.standby, self.groups)
            missing += job_checkers.unsettled(await self.jobs.jobs())
            quiet = 0 if missing else quiet + 1
            if missing and self.world.clock.monotonic_s() - calm_since_s > SETTLE_S:
                self.world.violate("everything settles", "; ".join(missing))
        if self.world.violations:
            return
        settled_s = self.world.clock.monotonic_s() - calm_since_s
        self.world.tally["settled after (s)"] = round(settled_s)
        for what in await checkers.metered_equals_ledger(self.scene, settled=True):
            self.world.violate("metered equals the ledger", what)
        for user in self.scene.users.values():
            self._all_cells(user)
        for what in await self.jobs.finished_lines():
            self.world.violate(job_checkers.ONCE, what)
        self._no_thrash()

    def _all_cells(self, user: TypingUser) -> None:
        if user.stream is not None and user.stream.kernel.cells != tuple(range(user.asked)):
            self.world.violate(
                "acknowledged state is durable or live",
                f"{user.session_id} ends with {len(user.stream.kernel.cells)} of {user.asked} cells",
            )

    def _no_thrash(self) -> None:
        tally = self.world.tally
        troubles = ("notices", "deaths", "boots that hang", "moves asked", "kernel deaths", "cuts")
        allowed = LAUNCHES_PER_TROUBLE * (
            2 * len(self.standby)
            + len(self.jobs.asked)
            + self.groups.changes
            + sum(tally[name] for name in troubles)
        )
        if tally["launches"] > allowed:
            self.world.violate("no thrash", f"{tally['launches']} launches, {allowed} allowed")

    async def _story(self) -> list[tuple[str, str, str]]:
        lines: list[tuple[str, str, str]] = []
        after = 0
        while page := await self.store.story(after=after):
            lines += [(line.object_id, line.event, line.reason) for line in page]
            after = page[-1].seq
        return lines

    # --- people ------------------------------------------------------------------------------------

    async def _session(self, number: int) -> None:
        rng = self.world.stream(f"session {number}")
        standby = rng.random() < 0.8
        spread = rng.choice(list(Spread))
        stops = rng.random() < 0.25
        # Some change their mind at once, while nothing is up yet.
        stop_after_s = rng.choice(
            (rng.uniform(0.0, 60.0), rng.uniform(0.1, 0.9) * self.hours * 3600)
        )
        await asyncio.sleep(rng.uniform(0.0, 60.0))
        name = f"notebook-{number}"
        session_id = await self._start(name, spread, standby)
        self.standby[session_id] = standby
        self.scene.users[session_id] = TypingUser(
            self.world, self.hub, self.edge, session_id, self.scene
        )
        self.world.spawn(self._asks(session_id), f"asker {number}")
        if stops:
            await asyncio.sleep(stop_after_s)
            await self._insist(lambda: self.control.notebooks.stop(session_id))
            self.scene.users[session_id].typing = False

    async def _start(self, name: str, spread: Spread, standby: bool) -> str:
        """A door's call: it may be answered with an error, then the person looks and asks again."""
        ask = Ask(vcpus=4.0, memory_gib=16.0)
        image = Image(name="python", python="3.11", imports=("numpy",))

        async def start() -> str:
            known = [s for s in await self.control.notebooks.list_all() if s.name == name]
            if known:
                return known[0].id
            made = await self.control.notebooks.start(
                name=name, ask=ask, image=image, spread=spread, standby=standby
            )
            return made.id

        return await self._insist(start)

    async def _insist(self, ask: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """Ask again until it is answered, by whichever life of the control plane listens."""
        while True:
            task = asyncio.get_running_loop().create_task(ask())
            life = self.control.life
            while not task.done() and not life.dead:
                await asyncio.wait({task}, timeout=0.5)
            if task.done() and not task.cancelled() and task.exception() is None:
                return task.result()
            if task.done() and not task.cancelled():
                error = task.exception()
                if not isinstance(error, RoostError):
                    self.world.violate("doors answer typed errors", repr(error))
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            await asyncio.sleep(1.0)

    async def _asks(self, session_id: str) -> None:
        """A person moves the session now and then."""
        while self.scene.users[session_id].typing:
            await self.world.pause(f"asks {session_id}", lambda: self.world.swarm.asked_mean_s)
            if not self.scene.users[session_id].typing:
                return
            self.world.tally["moves asked"] += 1
            try:
                await self.control.notebooks.move(session_id, "a person asked")
            except (RoostError, asyncio.CancelledError):
                continue

    async def _job(self, number: int) -> None:
        """A person submits a job, and may stop it."""
        rng = self.world.stream(f"job {number}")
        steps = rng.randrange(1, 60)
        stops = rng.random() < 0.2
        work_s, spare_s = self._hurry(number, steps)
        await asyncio.sleep(rng.uniform(0.0, 60.0))
        asked_s = self.world.now_s()

        async def submit() -> str:
            made = await self.control.jobs.submit(
                name=f"job-{number}",
                argv=("python", "train.py", str(steps)),
                workspace={},
                ask=Ask(vcpus=4.0, memory_gib=16.0),
                image=Image(name="python", python="3.11"),
                retries=1000,
                token=f"asked-{number}",
                deadline_s=None if spare_s is None else asked_s + work_s + spare_s,
                work_s=work_s,
            )
            return made.id

        job_id = await self._insist(submit)
        self.jobs.asked[f"asked-{number}"] = job_id
        self.world.tally["jobs"] += 1
        if stops:
            await asyncio.sleep(rng.uniform(0.0, 200.0))
            self.jobs.stopped[job_id] = None
            await self._insist(lambda: self.control.jobs.stop(job_id))

    def _hurry(self, number: int, steps: int) -> tuple[float, float | None]:
        """How long a job takes by its owner's word, and its time to spare; None without a deadline."""
        rng = self.world.stream(f"deadline {number}")
        work_s = steps * STEP_S * rng.uniform(0.8, 1.5)
        return work_s, rng.choice((None, rng.uniform(900.0, 2_400.0)))

    # --- disturbers --------------------------------------------------------------------------------

    def _kernel_started(self, kernel: SimKernel) -> None:
        self.world.tally["kernels started"] += 1
        self.scene.started(kernel)

    def _booted(self, machine: Machine) -> None:
        self.hub.boot(machine)
        for disturb in (self._notice, self._rebalance, self._kill):
            self.world.spawn(disturb(machine), f"{disturb.__name__} {machine.provider_id}")

    async def _notice(self, machine: Machine) -> None:
        await self.world.pause("notices", lambda: self.world.swarm.notice_mean_s)
        if machine.state is InstanceState.RUNNING:
            self.world.tally["notices"] += 1
            now_s = self.world.now_s()
            offer = machine.order.offer
            notice = Notice(
                kind=NoticeKind.INTERRUPTION,
                seen_s=now_s,
                deadline_s=now_s + offer.notice_s,
                source=f"{offer.provider} metadata",
            )
            await self.providers[offer.provider].interrupt(machine.provider_id, notice)

    async def _rebalance(self, machine: Machine) -> None:
        await self.world.pause("rebalances", lambda: self.world.swarm.rebalance_mean_s)
        if machine.state is InstanceState.RUNNING and machine.notice is None:
            self.world.tally["notices"] += 1
            offer = machine.order.offer
            notice = Notice(
                kind=NoticeKind.REBALANCE,
                seen_s=self.world.now_s(),
                source=f"{offer.provider} metadata",
            )
            await self.providers[offer.provider].interrupt(machine.provider_id, notice)

    async def _kill(self, machine: Machine) -> None:
        await self.world.pause("deaths", lambda: self.world.swarm.death_mean_s)
        if machine.state is InstanceState.RUNNING:
            self.world.tally["deaths"] += 1
            await self.providers[machine.order.offer.provider].kill(machine.provider_id)

    # --- the control plane's lives -----------------------------------------------------------------

    def _new_control(self) -> ControlPlane:
        return ControlPlane(
            self.world,
            self.hub,
            self.edge,
            self.providers,
            self.store,
            self._ids,
            self.servers,
            self.blobs,
        )

    async def _resurrect(self) -> None:
        """The supervisor: a control plane that died is started again a little later."""
        rng = self.world.stream("supervisor")
        while True:
            await self.world.crash_asked.wait()
            self.world.crash_asked.clear()
            self.world.tally["crashes"] += 1
            await self.control.kill()
            await asyncio.sleep(rng.uniform(0.5, 10.0))
            self.world.life = Life(self.world.life.number + 1)
            self.control = self._new_control()
            self.control.start()
            self.world.arm_crash()


def run_seed(seed: int, hours: float = 0.5, swarm: Swarm | None = None) -> Outcome:
    """Run one seed to its end (on virtual time, in this thread)."""
    drawn = swarm if swarm is not None else draw_swarm(Streams(seed)("swarm"))

    async def main() -> Outcome:
        scenario = Scenario(seed, hours, drawn)
        try:
            return await scenario.run()
        finally:
            await scenario.close()

    return run_virtual(main)
