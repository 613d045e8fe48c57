"""Simulated runs of jobs: a script is a count of steps, its files are how many it has done.

A run saves now and then, ends by itself when all steps are done, and is told by its agent when the host
goes away. Nothing here decides anything.
"""

import asyncio
from collections.abc import Sequence

from roost.ports.errors import Gone, StaleEpoch
from roost.ports.jobs import JobOrder, JobReport, SavedFiles, SavedOutput
from roost.ports.values import TaskReport
from roost.sim.kernels import Machinery

STEP_S = 4.0
"""Mean duration of a step."""
AGAIN_S = 2.0
"""After a save that failed."""


class SimBlobs:
    """Implements ``ports.blobs.Blobs`` in memory; it outlives the control plane."""

    def __init__(self) -> None:
        self._blobs: dict[str, bytes] = {}

    async def missing(self, digests: Sequence[str]) -> list[str]:
        return [digest for digest in digests if digest not in self._blobs]

    async def put(self, digest: str, content: bytes) -> None:
        self._blobs[digest] = content

    async def get(self, digest: str) -> bytes:
        if digest not in self._blobs:
            raise Gone(f"blob {digest[:12]} is not stored")
        return self._blobs[digest]

    async def delete(self, digests: Sequence[str]) -> None:
        for digest in digests:
            self._blobs.pop(digest, None)


class SimRun:
    """A job at one epoch on one host."""

    def __init__(self, machinery: Machinery, host_id: str, order: JobOrder) -> None:
        self._machinery = machinery
        self._world = machinery.world
        self._rng = self._world.stream("runs")
        self.host_id = host_id
        self.order = order
        self.total = int(order.argv[-1])
        self.began_at = self._world.job_steps.get(order.files, 0)
        self.steps = self.began_at
        self.complete = False
        """The script did all its steps and ended by itself."""
        self._removed = False
        self._asked = False
        self._told = False
        self._state = "starting"
        self._exit_code: int | None = None
        self._files: SavedFiles | None = None
        self._output: SavedOutput | None = None
        self._world.spawn(self._live(), f"run {order.job_id}")

    @property
    def alive(self) -> bool:
        """Whether its host is there and has not replaced it."""
        return self._machinery.alive and not self._removed

    def tell(self) -> None:
        """The script is to end."""
        self._asked = True

    def remove(self) -> None:
        """A newer run takes its place on the host."""
        self._removed = True

    def report(self) -> TaskReport:
        """As its host reports it."""
        return TaskReport(
            task_id=f"{self.order.job_id}-{self.order.epoch}",
            kind="job",
            session_id=self.order.job_id,
            epoch=self.order.epoch,
            state=self._state,
            exit_code=self._exit_code,
            job=JobReport(told=self._told, files=self._files, output=self._output),
        )

    async def _live(self) -> None:
        await asyncio.sleep(self._rng.uniform(0.5, 10.0))  # its files are fetched
        self._state = "busy"
        self._world.spawn(self._save_often(), f"saves {self.order.job_id}")
        dies_s = self._rng.expovariate(1.0) * self._world.swarm.kernel_death_mean_s
        worked_s = 0.0
        while self.alive and not self._asked and self.steps < self.total and worked_s < dies_s:
            step_s = self._rng.expovariate(1 / STEP_S)
            await asyncio.sleep(step_s)
            worked_s += step_s
            self.steps += 1
        if self._asked and self.steps < self.total:
            self._told = True
            self._exit_code = -15
        elif self.steps >= self.total:
            self._exit_code = 0
        else:
            self._world.tally["scripts failed"] += 1
            self._exit_code = 1
        while self.alive:
            if await self._save():
                break
            await asyncio.sleep(AGAIN_S)
        if self.alive:
            self.complete = self._exit_code == 0
            self._state = "dead"

    async def _save_often(self) -> None:
        while self.alive and self._state == "busy":
            await asyncio.sleep(self._rng.uniform(2.0, 15.0))
            if self.alive and self._state == "busy":
                await self._save()

    async def _save(self) -> bool:
        steps = self.steps
        await asyncio.sleep(self._rng.uniform(0.05, 2.0))
        if not self.alive or self._rng.random() < self._world.swarm.capture_fail:
            return False
        if self._files is not None and self._world.job_steps[self._files.digest] > steps:
            return True  # a save that began later was done first
        number = self._files.number + 1 if self._files else 1
        digest = f"{self.order.job_id}/{self.order.epoch}/{self.host_id}/{number}"
        self._world.job_steps[digest] = steps
        self._files = SavedFiles(digest=digest, number=number, at_s=self._world.now_s())
        self._output = SavedOutput(digest=f"{digest}/output", size=steps)
        return True


class SimRuns:
    """The runs of one host, as its agent keeps them."""

    def __init__(self, machinery: Machinery, host_id: str) -> None:
        self._machinery = machinery
        self._host_id = host_id
        self.by_job: dict[str, SimRun] = {}

    def start(self, order: JobOrder) -> SimRun | None:
        """Take the order; the new run, or None when it is known."""
        known = self.by_job.get(order.job_id)
        if known is not None:
            if known.order.epoch > order.epoch:
                raise StaleEpoch(f"{order.job_id} is at epoch {known.order.epoch} here")
            if known.order.epoch == order.epoch:
                return None
            known.remove()
        run = SimRun(self._machinery, self._host_id, order)
        self.by_job[order.job_id] = run
        return run

    def stop(self, job_id: str, epoch: int) -> None:
        """Tell the run to end."""
        run = self.by_job.get(job_id)
        if run is not None and run.order.epoch > epoch:
            raise StaleEpoch(f"{job_id} is at epoch {run.order.epoch} here")
        if run is not None:
            run.tell()

    def tell(self) -> None:
        """The host goes away."""
        for run in self.by_job.values():
            run.tell()

    def reports(self) -> list[TaskReport]:
        """Every run, ordered by job."""
        return [self.by_job[job_id].report() for job_id in sorted(self.by_job)]
