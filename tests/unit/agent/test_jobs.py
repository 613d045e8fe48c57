"""A run of a job on real processes: output and files saved as they come, agents that are restarted."""

import json
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from roost.adapters.blobs.local import LocalBlobs
from roost.adapters.clock import SystemClock
from roost.adapters.drivers.process import ProcessDriver
from roost.adapters.store.sqlite.store import open_store
from roost.agent.jobs.host import JobHost
from roost.agent.jobs.run import RunTools
from roost.client.jobs import look
from roost.jobs.model import Job, JobState
from roost.jobs.service import JobService
from roost.kit.ids import SystemIds
from roost.ports import jobs as formats
from roost.ports.errors import StaleEpoch
from roost.ports.jobs import JobFiles, JobOrder
from roost.ports.values import Ask, Image, TaskReport
from roost.testing.blobs import digest_of
from tests.unit.agent.fakes import until


class Bench:
    """A host's folder, blobs, and agents that come and go."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.blobs = LocalBlobs(folder / "blobs", sync=False)

    @asynccontextmanager
    async def agent(self, *, end: bool = False) -> AsyncIterator[JobHost]:
        clock = SystemClock()
        tools = RunTools(
            driver=ProcessDriver(self.folder / "tasks", clock=clock),
            blobs=self.blobs,
            clock=clock,
            beat=lambda: None,
            runner_argv=(sys.executable, "-m", "roost.main.runner"),
        )
        jobs = JobHost(self.folder / "jobs", tools)
        jobs.recover()
        try:
            yield jobs
        finally:
            await (jobs.end() if end else jobs.close())

    async def order(self, script: str, *, epoch: int = 1, **more: str) -> JobOrder:
        project = self.folder / "project"
        project.mkdir(exist_ok=True)
        (project / "train.py").write_text(script)
        folder = look(project)
        for digest, (path, _) in folder.places.items():
            await self.blobs.put(digest, (project / path).read_bytes())
        content = formats.encode(JobFiles(workspace=folder.entries))
        digest = digest_of(content)
        await self.blobs.put(digest, content)
        argv = (sys.executable, "train.py", "one")
        return JobOrder(
            job_id="j-1", epoch=epoch, argv=argv, notice_s=30.0, **{"files": digest, **more}
        )

    async def output(self, report: TaskReport) -> str:
        assert report.job is not None
        assert report.job.output is not None
        index = formats.decode_output(await self.blobs.get(report.job.output.digest))
        return b"".join([await self.blobs.get(d) for d, _ in index.pieces]).decode()

    async def files(self, report: TaskReport) -> JobFiles:
        assert report.job is not None
        assert report.job.files is not None
        return formats.decode_files(await self.blobs.get(report.job.files.digest))


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


def only(jobs: JobHost) -> TaskReport:
    (report,) = jobs.reports()
    return report


async def dead(jobs: JobHost) -> TaskReport:
    await until(lambda: only(jobs).state == "dead", seconds=30)
    return only(jobs)


async def test_a_script_runs_and_what_it_leaves_is_kept(bench: Bench) -> None:
    script = (
        "import os, sys, subprocess\n"
        "print('hello', sys.argv[1:], os.environ['ROOST_JOB'], os.environ['ROOST_NOTICE_S'])\n"
        "print('to stderr', file=sys.stderr)\n"
        "open('made.txt', 'w').write('x' * 10)\n"
        "subprocess.Popen(['sleep', '600'])\n"
        "sys.exit(7)\n"
    )
    async with bench.agent(end=True) as jobs:
        order = await bench.order(script)
        await jobs.start(order)
        await jobs.start(order)
        report = await dead(jobs)
        assert (report.exit_code, report.job is not None and report.job.told) == (7, False)
        text = await bench.output(report)
        assert "hello ['one'] j-1 30" in text
        assert "to stderr" in text
        assert set((await bench.files(report)).workspace) == {"train.py", "made.txt"}
        with pytest.raises(StaleEpoch):
            await jobs.start(await bench.order(script, epoch=0))


STEPS = """
import json, os, pathlib, signal, sys, time
state = pathlib.Path(os.environ["ROOST_CHECKPOINTS"], "state.json")
begin = json.loads(state.read_text()) + 1 if state.exists() else 0
if len(sys.argv) > 2:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
for step in range(begin, 10_000):
    with open("steps.txt", "a") as file:
        file.write(f"{step}\\n")
    part = state.with_suffix(".part")
    part.write_text(json.dumps(step))
    part.replace(state)
    print("step", step)
    time.sleep(0.002)
"""


async def test_a_save_taken_in_full_flight_has_every_step_of_its_checkpoint(bench: Bench) -> None:
    async with bench.agent(end=True) as jobs:
        await jobs.start(await bench.order(STEPS))
        for number in range(1, 4):

            def saved(least: int = number) -> bool:
                job = only(jobs).job
                return job is not None and job.files is not None and job.files.number >= least

            await until(saved, seconds=30)
            files = await bench.files(only(jobs))
            steps = b"".join(
                [await bench.blobs.get(d) for d in files.workspace["steps.txt"].digests]
            )
            (digest,) = files.checkpoints["state.json"].digests
            at = json.loads(await bench.blobs.get(digest))
            lines = [int(x) for x in steps.decode().rsplit("\n", 1)[0].split()]
            assert lines == list(range(len(lines)))
            assert at < len(lines)


BY_THE_ENGINE = """
import roost
state = roost.resume() or {"step": 0}
print("begins at", state["step"])
while True:
    with open("steps.txt", "a") as file:
        file.write(f"{state['step']}\\n")
    state["step"] += 1
    roost.checkpoint(state)
"""


async def test_checkpoints_of_the_engine_written_without_a_pause_are_whole(bench: Bench) -> None:
    async with bench.agent(end=True) as jobs:
        await jobs.start(await bench.order(BY_THE_ENGINE))
        for epoch in (2, 3, 4):

            def saved() -> bool:
                job = only(jobs).job
                return job is not None and job.files is not None and job.files.number >= 3

            await until(saved, seconds=60)
            report = only(jobs)
            assert report.job is not None
            assert report.job.files is not None
            files = await bench.files(report)
            parts = [await bench.blobs.get(d) for d in files.workspace["steps.txt"].digests]
            steps = [int(line) for line in b"".join(parts).split()]
            assert sorted(set(steps)) == list(range(len(set(steps))))
            order = await bench.order(BY_THE_ENGINE, epoch=epoch, files=report.job.files.digest)
            await jobs.start(order)

            def begun(now: int = epoch) -> bool:
                report = only(jobs)
                return report.epoch == now and report.job.output is not None  # type: ignore[union-attr]

            await until(begun, seconds=60)
            text = await bench.output(only(jobs))
            assert "is not used" not in text, text
            begins = int(text.split()[2])
            assert begins in (len(set(steps)) - 1, len(set(steps))), "no step is left out"


async def test_an_agent_that_is_restarted_follows_the_same_script(bench: Bench) -> None:
    async with bench.agent() as jobs:
        await jobs.start(await bench.order(STEPS))
        await until(lambda: only(jobs).job.output is not None, seconds=30)  # type: ignore[union-attr]
    async with bench.agent(end=True) as jobs:
        assert only(jobs).state in ("starting", "busy")
        jobs.tell(30.0)
        report = await dead(jobs)
        assert (report.exit_code, report.job is not None and report.job.told) == (-15, True)
        lines = [int(x.split()[1]) for x in (await bench.output(report)).splitlines()]
        assert lines == list(range(len(lines))), "it was started once"
        assert report.job is not None
        assert report.job.files is not None
        # The next run, elsewhere: it goes on behind the last checkpoint.
        order = await bench.order(STEPS, epoch=2, files=report.job.files.digest)
        await jobs.start(order)
        await until(lambda: only(jobs).job.output is not None, seconds=30)  # type: ignore[union-attr]
        first = (await bench.output(only(jobs))).split()[1]
        assert abs(int(first) - len(lines)) <= 1


async def test_a_script_that_does_not_end_is_killed_before_the_deadline(bench: Bench) -> None:
    async with bench.agent(end=True) as jobs:
        order = await bench.order(STEPS)
        deaf = JobOrder(
            job_id="j-2", epoch=1, argv=(*order.argv, "deaf"), files=order.files, notice_s=30.0
        )
        await jobs.start(deaf)
        await until(lambda: only(jobs).job.output is not None, seconds=30)  # type: ignore[union-attr]
        jobs.tell(1.0)
        report = await dead(jobs)
        assert report.exit_code == -signal.SIGKILL
        assert report.job is not None
        assert report.job.told
        assert (await bench.files(report)).workspace["steps.txt"].size > 0


async def test_a_job_told_before_it_began_never_begins(bench: Bench) -> None:
    async with bench.agent(end=True) as jobs:
        await jobs.start(await bench.order("open('begun', 'w')"))
        jobs.tell(None)
        report = await dead(jobs)
        assert report.job is not None
        assert report.job.told
        assert not list(bench.folder.rglob("begun"))


async def test_output_is_read_from_any_offset(bench: Bench) -> None:
    async with bench.agent(end=True) as jobs:
        lines = 60_000
        await jobs.start(await bench.order(f"for i in range({lines}): print(f'{{i:09d}}')"))
        report = await dead(jobs)
    assert report.job is not None
    assert report.job.output is not None
    assert report.job.output.size == lines * 10
    whole = await bench.output(report)
    assert whole.split() == [f"{i:09d}" for i in range(lines)]
    store = open_store(None)
    service = JobService(store, SystemClock(), SystemIds(), bench.blobs, lambda key: None)
    job = Job(
        id="j-1",
        name="train",
        state=JobState.FINISHED,
        epoch=1,
        token="t",
        argv=("python",),
        ask=Ask(),
        image=Image(name="none", python=""),
        files="",
        output=report.job.output,
    )
    for offset, most in ((0, 100), (262_100, 100), (262_144, 7), (599_990, 100), (600_000, 5)):
        part = await service.output(job, offset, most)
        assert part.decode() == whole[offset : offset + most]
    await store.close()
