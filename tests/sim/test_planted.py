"""The checkers bite: each planted bug is found within a few seeds."""

from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from roost.fleet import machine as fleet_machine
from roost.fleet.groups.model import MemberState, MemberView
from roost.fleet.groups.snapshot import Snapshot
from roost.fleet.model import Instance, InstanceState
from roost.fleet.service import FleetService
from roost.jobs import machine as job_machine
from roost.jobs import plan as job_plan
from roost.jobs.model import Job
from roost.notebooks import machine
from roost.notebooks.model import Session
from roost.ports.jobs import JobReport
from roost.ports.values import TaskReport
from roost.sim.hosts import SimHost
from roost.sim.provider import SimProvider
from roost.sim.scenario import run_seed

HOURS = 0.25
SEEDS = (2, 4, 7, 6, 3, 5, 1, 8)
"""Those that found them when this was written come first."""

Plant = Callable[[pytest.MonkeyPatch], None]


def no_token(patch: pytest.MonkeyPatch) -> None:
    """Each launch call starts another machine."""
    launch = SimProvider.launch

    async def forgetful(self: SimProvider, order: Any) -> Any:
        self._by_token.clear()
        return await launch(self, order)

    patch.setattr(SimProvider, "launch", forgetful)


def no_fence(patch: pytest.MonkeyPatch) -> None:
    """The old place goes on taking work while and after it is captured."""
    patch.setattr(SimHost, "_fence", lambda self, session_id, epoch: None)


def same_epoch(patch: pytest.MonkeyPatch) -> None:
    """A move does not reserve a new epoch."""
    freeze = machine.freeze

    def stays(session: Session, now_s: float) -> Session:
        return msgspec.structs.replace(freeze(session, now_s), epoch=session.epoch)

    patch.setattr(machine, "freeze", stays)


def checkpoint_forgotten(patch: pytest.MonkeyPatch) -> None:
    """A restore starts with an empty kernel."""
    started = SimHost._begin

    def empty(self: SimHost, order: Any) -> Any:
        return started(self, msgspec.structs.replace(order, checkpoint=""))

    patch.setattr(SimHost, "_begin", empty)


def never_released(patch: pytest.MonkeyPatch) -> None:
    """The hosts of a session that moved on are kept."""

    async def nothing(self: FleetService, claim_id: str, reason: str) -> None:
        return None

    patch.setattr(FleetService, "release", nothing)


def meter_runs_on(patch: pytest.MonkeyPatch) -> None:
    """A meter is closed when its end is noticed, not when it was."""
    end = fleet_machine._end

    def late(instance: Instance, to: InstanceState, at_s: float, reason: str) -> Instance:
        return end(instance, to, at_s + 2.0, reason)

    patch.setattr(fleet_machine, "_end", late)


def told_is_done(patch: pytest.MonkeyPatch) -> None:
    """Whatever a script that was told to end leaves with counts as its own end."""
    ended = job_plan._ended

    def believing(snapshot: job_plan.Snapshot, run: TaskReport) -> job_plan.Instruction:
        untold = msgspec.structs.replace(run, job=None, exit_code=0)
        return ended(snapshot, untold)

    patch.setattr(job_plan, "_ended", believing)


def saves_forgotten(patch: pytest.MonkeyPatch) -> None:
    """Each run of a job begins with the files as they were sent."""

    def forgetful(job: Job, report: JobReport) -> Job:
        return msgspec.structs.replace(job, output=report.output)

    patch.setattr(job_machine, "noted", forgetful)


def booting_forgotten(patch: pytest.MonkeyPatch) -> None:
    """A group counts only what is ready: the same gap is filled again and again."""
    counts = Snapshot.counts

    def ready_ones(self: Snapshot, view: MemberView) -> bool:
        return counts(self, view) and view.member.state is MemberState.SERVING

    patch.setattr(Snapshot, "counts", ready_ones)


@pytest.mark.parametrize(
    ("plant", "finding"),
    [
        (no_token, "wanted|ledger|thrash|settles"),
        (no_fence, "acknowledged|accepts"),
        (same_epoch, "accepts|settles|acknowledged"),
        (checkpoint_forgotten, "acknowledged"),
        (never_released, "wanted|settles"),
        (meter_runs_on, "ledger"),
        (told_is_done, "run to its end"),
        (saves_forgotten, "run to its end"),
        (booting_forgotten, "size|thrash|settles"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_a_planted_bug_is_found(
    plant: Plant, finding: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    plant(monkeypatch)
    for seed in SEEDS:
        violations = run_seed(seed, HOURS).violations
        if violations:
            words = finding.split("|")
            assert any(word in violation for violation in violations for word in words), violations
            return
    raise AssertionError("no seed found it")
