"""What must hold of jobs: each is run to its end once, from what was durable, on one host at a time.

As ``checkers``: reads the truth, says what is wrong, repairs nothing.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from roost.jobs.model import Job, JobState
from roost.jobs.plan import hurried, standing
from roost.ports.store import Store, Table
from roost.sim.jobs import SimRun
from roost.sim.world import World

ONCE = "a job is run to its end once"
IN_TIME = "a job does not wait past the last moment for on demand"
PATIENCE_S = 120.0
"""How long the control plane may take to see that moment: it dies, its database is locked."""


@dataclass(slots=True)
class JobScene:
    """What the checkers of jobs remember."""

    world: World
    store: Store
    asked: dict[str, str] = field(default_factory=dict)
    """Job of each token that was answered."""
    stopped: dict[str, None] = field(default_factory=dict)
    """Jobs that a person stopped."""
    run_of: dict[tuple[str, int], SimRun] = field(default_factory=dict)
    ended: dict[str, tuple[JobState, int | None, float | None]] = field(default_factory=dict)
    epochs: dict[str, int] = field(default_factory=dict)
    floor: dict[tuple[str, int], int] = field(default_factory=dict)
    """Steps that were durable when (job, epoch) was reserved."""

    def started(self, run: SimRun) -> None:
        """A host has taken an order."""
        self.world.tally["runs"] += 1
        job_id, epoch = run.order.job_id, run.order.epoch
        if self.run_of.setdefault((job_id, epoch), run).host_id != run.host_id:
            self.world.violate(ONCE, f"{job_id}: a second host runs epoch {epoch}")
        floor = self.floor.get((job_id, epoch), 0)
        if run.began_at < floor:
            what = f"{job_id}: run {epoch} begins at step {run.began_at}, {floor} were durable"
            self.world.violate("saved work is not lost", what)

    async def jobs(self) -> dict[str, Job]:
        """All jobs by id."""
        found = await Table(self.store, "job", Job).find()
        return {s.value.id: s.value for s in found}

    def check(self, jobs: Mapping[str, Job]) -> None:
        """What must hold every second."""
        for job in jobs.values():
            for what in self._once(job):
                self.world.violate(ONCE, what)
            if _waits_too_long(job, self.world.now_s()):
                self.world.violate(IN_TIME, f"{job.id} {job.where}: {job.why}")
            durable = self.world.job_steps.get(job.files, 0)
            self.floor.setdefault((job.id, job.epoch), durable)
        tokens = [job.token for job in jobs.values()]
        if len(set(tokens)) != len(tokens):
            self.world.violate(ONCE, "one request made two jobs")

    def _once(self, job: Job) -> Iterator[str]:
        if job.epoch < self.epochs.get(job.id, 0):
            yield f"{job.id} went from epoch {self.epochs[job.id]} back to {job.epoch}"
        self.epochs[job.id] = job.epoch
        if not job.ended:
            if job.id in self.ended:
                yield f"{job.id} had ended and is {job.state}"
            return
        now = (job.state, job.exit_code, job.ended_s)
        first = self.ended.setdefault(job.id, now)
        if first != now:
            yield f"{job.id} ended as {first} and then as {now}"
        if job.state is JobState.FINISHED:
            run = self.run_of.get((job.id, job.epoch))
            if run is None or not run.complete or self.world.job_steps.get(job.files) != run.total:
                yield f"{job.id} is finished, and its last run was not complete and saved"
        elif job.state is JobState.STOPPED and job.id not in self.stopped:
            yield f"{job.id} was stopped by nobody"

    async def finished_lines(self) -> Iterator[str]:
        """After all: each job's end is told once in its story."""
        found = []
        for job_id, (state, _, _) in self.ended.items():
            events = [line.event for line in await self.store.story(job_id)]
            count = events.count(str(state).capitalize())
            if count != 1:
                found.append(f"{job_id}: its story tells its end {count} times")
        return iter(found)


def _waits_too_long(job: Job, now_s: float) -> bool:
    if job.state is not JobState.ACCEPTED or job.claims or not hurried(job):
        return False
    late = standing(job, now_s).spare_s < -PATIENCE_S
    return late and job.desired != "stopped" and now_s - _idle_since_s(job) > PATIENCE_S


def _idle_since_s(job: Job) -> float:
    """When its last run ended."""
    return job.runs[-1].ended_s if job.runs else job.created_s


def unsettled(jobs: Mapping[str, Job]) -> list[str]:
    """Jobs that are not at their end yet, or still hold hosts."""
    return [
        f"{j.id} is {j.state}, holds {j.claims}" for j in jobs.values() if not j.ended or j.claims
    ]
