"""A job with a deadline on the simulated cluster: the market turns, and it goes where the rule says."""

import asyncio
from collections.abc import Callable, Sequence
from math import exp

import pytest

from roost.fleet.model import RankedOffer
from roost.jobs.model import Job, JobState
from roost.ports.errors import Invalid
from roost.ports.values import Ask, Image, Offer, PurchaseOption
from roost.sim import market
from roost.sim.faults import CALM
from roost.sim.jobs import STEP_S
from roost.sim.loop import run_virtual
from roost.sim.scenario import Scenario

HOUR = 3600.0
STEPS = 450
WORK_S = STEPS * STEP_S


class Weather:
    """The market as the control plane sees it."""

    def __init__(self) -> None:
        self.hazard = 2.0
        self.spot = True

    async def rank(self, ask: Ask) -> Sequence[RankedOffer]:
        if not self.spot and PurchaseOption.SPOT in ask.purchase_options:
            raise Invalid("no pool is left")
        return await market.rank(ask)

    async def odds(self, offers: Sequence[Offer], hours: float) -> list[float]:
        return [exp(-self.hazard * hours) for _ in offers]


class Stage:
    """A scenario with one job and nobody else."""

    def __init__(self, spare_s: float) -> None:
        self.scenario = Scenario(1, 1.0, CALM)
        self.spare_s = spare_s
        self.job_id = ""

    async def begin(self) -> None:
        self.scenario.control.start()
        made = await self.scenario.control.jobs.submit(
            name="train",
            argv=("python", "train.py", str(STEPS)),
            workspace={},
            ask=Ask(vcpus=4.0, memory_gib=16.0),
            image=Image(name="python", python="3.11"),
            deadline_s=self.scenario.world.now_s() + WORK_S + self.spare_s,
            work_s=WORK_S,
        )
        self.job_id = made.id

    async def job(self) -> Job:
        return await self.scenario.control.jobs.get(self.job_id)

    async def until(self, good: Callable[[Job], bool], within_s: float) -> Job:
        for _ in range(round(within_s)):
            job = await self.job()
            self.scenario.jobs.check({job.id: job})
            assert not self.scenario.world.violations
            if good(job):
                return job
            await asyncio.sleep(1.0)
        raise AssertionError(f"never: {await self.job()}")

    async def take(self) -> None:
        """The machines of the job's host die."""
        for cloud in self.scenario.providers.values():
            for machine in cloud.live():
                await cloud.kill(machine.provider_id)

    @property
    def launches(self) -> int:
        return self.scenario.world.tally["launches"]


def on(option: PurchaseOption) -> Callable[[Job], bool]:
    def there(job: Job) -> bool:
        here = job.offer is not None and job.offer.purchase_option is option
        return here and job.state is JobState.RUNNING

    return there


def played(monkeypatch: pytest.MonkeyPatch, spare_s: float) -> tuple[Weather, Stage]:
    weather = Weather()
    monkeypatch.setattr("roost.sim.control.rank", weather.rank)
    monkeypatch.setattr("roost.sim.control.odds", weather.odds)
    return weather, Stage(spare_s)


def test_it_waits_goes_on_demand_in_time_and_comes_back(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        weather, stage = played(monkeypatch, 2.5 * HOUR)
        await stage.begin()
        await stage.until(lambda job: job.where == "wait", 10.0)
        await asyncio.sleep(600.0)
        waits = await stage.job()
        assert (waits.state, waits.claims, stage.launches) == (JobState.ACCEPTED, (), 0)
        assert "will not last" in waits.why

        weather.hazard = 0.01
        await stage.until(on(PurchaseOption.SPOT), 120.0)
        await asyncio.sleep(100.0)
        weather.spot = False
        await stage.take()
        job = await stage.until(lambda job: job.state is JobState.ACCEPTED, 30.0)
        assert job.deadline_s is not None
        outage_s = stage.scenario.world.now_s()
        job = await stage.until(on(PurchaseOption.ON_DEMAND), 3 * HOUR)
        now_s = stage.scenario.world.now_s()
        assert now_s - outage_s > HOUR, "it waited while it could"
        assert job.deadline_s - now_s - job.left_s(now_s) > 0.0

        weather.spot = True
        await stage.until(on(PurchaseOption.SPOT), 240.0)
        job = await stage.until(lambda job: job.ended, HOUR)
        assert job.state is JobState.FINISHED
        assert job.ended_s is not None
        assert job.deadline_s is not None
        assert job.ended_s <= job.deadline_s
        options = [run.offer.rsplit("/", 1)[1] for run in job.runs]
        assert options == ["spot", "on_demand", "spot"]
        story = [line.event for line in await stage.scenario.store.story(job.id)]
        told = [event for event in story if event in ("Waiting", "Spot", "OnDemand")]
        assert told == ["Waiting", "Spot", "Waiting", "OnDemand", "Spot"]
        await stage.scenario.close()

    run_virtual(main)


def test_without_time_to_spare_it_stays_on_demand_to_the_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def main() -> None:
        weather, stage = played(monkeypatch, 900.0)
        weather.hazard = 0.01
        await stage.begin()
        job = await stage.until(lambda job: job.ended, 1.5 * HOUR)
        assert job.state is JobState.FINISHED
        assert [run.offer.rsplit("/", 1)[1] for run in job.runs] == ["on_demand"]
        assert stage.launches == 1
        await stage.scenario.close()

    run_virtual(main)
