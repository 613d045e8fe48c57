"""One run of a job on this host: fetch its files, start its script, follow it, save it, say how it ended.

Everything that matters is in the run's folder, so that an agent that is restarted goes on where the last
one was; a script is started once. It never decides whether the job runs again.
"""

import asyncio
import logging
import os
import shutil
import signal
import sys
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TypeVar

import msgspec

from roost.agent.jobs.runner import ExitFile, RunFile, write_durably
from roost.agent.jobs.saving import FileSaver, OutputSaver
from roost.agent.tree import restore_tree
from roost.ports import jobs as formats
from roost.ports.blobs import Blobs
from roost.ports.clock import Clock
from roost.ports.driver import Driver, TaskOrder
from roost.ports.errors import RoostError
from roost.ports.jobs import JobOrder, JobOutput, JobReport
from roost.ports.values import TaskReport

log = logging.getLogger(__name__)

LOOK_S = 0.25
FIND_S = 0.05
AGAIN_S = 2.0
"""After something could not be fetched or saved."""
OFTEN_S = 0.5
"""Least time between two saves while the script writes checkpoints."""
SELDOM_S = 15.0
"""Between two looks at the workspace without a new checkpoint."""
SHARE_OFTEN, SHARE_SELDOM = 4.0, 20.0
"""A save that takes longer is made less often: so many times its own duration lies between."""
KILL_S = 5.0
KILL_SHARE = 0.25
"""Before a deadline, when a script that was told and still runs is killed (or this share of its time)."""

T = TypeVar("T")


class RunTools(msgspec.Struct, frozen=True, kw_only=True):
    """What a run needs of its host."""

    driver: Driver
    blobs: Blobs
    clock: Clock
    beat: Callable[[], None]
    runner_argv: tuple[str, ...]
    environment: str = ""


class Run:
    """A job at one epoch."""

    def __init__(self, order: JobOrder, folder: Path, tools: RunTools) -> None:
        self.order = order
        self._folder = folder
        self._tools = tools
        self._task_id = f"{order.job_id}-{order.epoch}"
        self._state = "starting"
        self._exit_code: int | None = None
        self._told = False
        self._asked = False
        """It shall end: a script that has not begun never does."""
        self._script = 0
        """The script's process group."""
        self._trouble = ""
        self._files = FileSaver(
            self._work, self._checkpoints, tools.blobs, tools.clock, self._still
        )
        self._output: OutputSaver | None = None
        self._killer: asyncio.Task[None] | None = None
        self.job = asyncio.get_running_loop().create_task(self._live())
        self.job.add_done_callback(self._over)

    @property
    def _work(self) -> Path:
        return self._folder / "work"

    @property
    def _checkpoints(self) -> Path:
        return self._folder / "checkpoints"

    def report(self) -> TaskReport:
        """As control sees it."""
        return TaskReport(
            task_id=self._task_id,
            kind="job",
            session_id=self.order.job_id,
            epoch=self.order.epoch,
            state=self._state,
            exit_code=self._exit_code,
            job=JobReport(
                told=self._told,
                files=self._files.saved,
                output=self._output.saved if self._output is not None else None,
                trouble=self._trouble,
            ),
        )

    def tell(self, left_s: float | None) -> None:
        """Send the script SIGTERM, once; it is killed when ``left_s`` seconds are nearly over."""
        if self._killer is None and not self.job.done():
            self._asked = True
            self._killer = asyncio.get_running_loop().create_task(self._tell(left_s))

    async def close(self) -> None:
        """Let go of it; the script runs on."""
        tasks = [task for task in (self.job, self._killer) if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def remove(self) -> None:
        """End it for good, with its files."""
        await self.close()
        await self._tools.driver.stop(self._task_id, grace_s=0.0)
        await asyncio.to_thread(shutil.rmtree, self._folder, ignore_errors=True)

    # --- its life -----------------------------------------------------------------------------

    async def _live(self) -> None:
        before = await self._insist(self._fetch)
        self._output = OutputSaver(self._folder / "output.log", self._tools.blobs, before)
        if not self._asked:
            await self._insist(self._start)
            self._set("busy")
            if self._asked:  # while it was being started
                await self._terminate()
        await self._follow()
        await self._tools.driver.stop(self._task_id, grace_s=0.0)  # also what it left running
        if self._killer is not None:
            self._killer.cancel()
        self._read_exit()
        await self._insist(self._save_all)
        log.info("%s ended: exit code %s, told %s", self._task_id, self._exit_code, self._told)
        self._set("dead")

    def _over(self, job: asyncio.Task[None]) -> None:
        error = None if job.cancelled() else job.exception()
        if error is not None:  # a fault of ours: control is told that the run is lost
            log.error("%s cannot be followed", self._task_id, exc_info=error)
            self._set("dead")

    async def _fetch(self) -> JobOutput:
        """The files it begins with, once; what earlier runs printed."""
        blobs = self._tools.blobs
        before = JobOutput()
        if self.order.output:
            before = formats.decode_output(await blobs.get(self.order.output))
        ready = self._folder / "ready"
        if not ready.exists():
            files = formats.decode_files(await blobs.get(self.order.files))
            await restore_tree(self._work, files.workspace, blobs.get)
            await restore_tree(self._checkpoints, files.checkpoints, blobs.get)
            write_durably(ready, b"")
        return before

    async def _start(self) -> None:
        started = self._folder / "started"
        if started.exists():
            return  # by an earlier agent, whether or not it runs still
        file = RunFile(
            argv=self.order.argv,
            env=self._environment(),
            cwd=str(self._work),
            output=str(self._folder / "output.log"),
        )
        write_durably(self._folder / "run.json", msgspec.json.encode(file))
        write_durably(started, b"")
        argv = (*self._tools.runner_argv, "--folder", str(self._folder))
        log_path = str(self._folder / "runner.log")
        order = TaskOrder(
            task_id=self._task_id, argv=argv, cwd=str(self._folder), log_path=log_path
        )
        await self._tools.driver.start(order)

    def _environment(self) -> dict[str, str]:
        own = self._tools.environment
        folder = f"{own}/bin" if own else str(Path(sys.executable).parent)
        return {
            "PATH": f"{folder}:{os.environ.get('PATH', os.defpath)}",
            **({"VIRTUAL_ENV": own} if own else {}),
            "PYTHONUNBUFFERED": "1",
            "PYTHONHASHSEED": "0",
            "ROOST_JOB": self.order.job_id,
            "ROOST_RUN": str(self.order.epoch),
            "ROOST_CHECKPOINTS": str(self._checkpoints),
            "ROOST_NOTICE_S": f"{self.order.notice_s:g}",
            "ROOST_NOTICE": str(self._folder / "notice"),
        }

    async def _follow(self) -> None:
        """Until the script has ended: its output as it comes, its files as they are worth it."""
        await self._find_script()
        self._signal(signal.SIGCONT)  # an earlier agent may have ended in the middle of a look
        clock = self._tools.clock
        saved_s, cost_s, seen = clock.monotonic_s(), 0.0, self._signature()
        while await self._runs():
            if self._output is not None and await self._try(self._output.save):
                self._tools.beat()
            now_s, signature = clock.monotonic_s(), self._signature()
            often_s = max(OFTEN_S, SHARE_OFTEN * cost_s)
            wait_s = often_s if signature != seen else max(SELDOM_S, SHARE_SELDOM * cost_s)
            if now_s - saved_s >= wait_s:
                seen = signature
                if await self._try(self._files.save):
                    self._tools.beat()
                saved_s = clock.monotonic_s()
                cost_s = saved_s - now_s
            await asyncio.sleep(LOOK_S)

    async def _runs(self) -> bool:
        if (self._folder / "exit.json").exists() or not (self._folder / "started").exists():
            return False
        return await self._tools.driver.alive(self._task_id)

    def _signature(self) -> tuple[tuple[str, int, int], ...]:
        """What can be seen of the checkpoints without reading them."""
        found = []
        with suppress(OSError), os.scandir(self._checkpoints) as listing:
            for item in listing:
                with suppress(OSError):
                    info = item.stat(follow_symlinks=False)
                    found.append((item.name, info.st_mtime_ns, info.st_size))
        return tuple(sorted(found))

    def _read_exit(self) -> None:
        try:
            content = (self._folder / "exit.json").read_bytes()
        except OSError:  # the runner was killed, or nothing was started
            self._told = self._asked
            self._exit_code = -signal.SIGKILL if self._asked else None
            return
        found = msgspec.json.decode(content, type=ExitFile)
        self._exit_code, self._told = found.exit_code, found.told

    # --- told to end --------------------------------------------------------------------------

    async def _tell(self, left_s: float | None) -> None:
        notice = self._folder / "notice"
        if not notice.exists():
            until = "" if left_s is None else f"{self._tools.clock.now_s() + left_s:.3f}\n"
            write_durably(notice, until.encode())
            await self._terminate()
        if left_s is None:
            return
        await asyncio.sleep(max(0.0, left_s - min(KILL_S, left_s * KILL_SHARE)))
        log.warning("%s was told and runs on: killed", self._task_id)
        await self._tools.driver.stop(self._task_id, grace_s=0.0)

    async def _find_script(self) -> None:
        """The runner's one child, once it is there; 0 when it has ended before it was seen."""
        while not self._script and await self._runs():
            for handle in await self._tools.driver.recover():
                if handle.task_id == self._task_id:
                    self._script = _child(handle.pid)
            if not self._script:
                await asyncio.sleep(FIND_S)

    def _signal(self, number: int) -> None:
        """To the script and its children, unless it has ended."""
        if self._script and not (self._folder / "exit.json").exists():
            with suppress(ProcessLookupError):
                os.killpg(self._script, number)

    @contextmanager
    def _still(self) -> Iterator[None]:
        self._signal(signal.SIGSTOP)
        try:
            yield
        finally:
            self._signal(signal.SIGCONT)

    async def _terminate(self) -> None:
        handles = await self._tools.driver.recover()
        for handle in handles:
            if handle.task_id == self._task_id:
                with suppress(ProcessLookupError):
                    os.kill(handle.pid, signal.SIGTERM)

    # --- trying -------------------------------------------------------------------------------

    async def _save_all(self) -> None:
        if self._output is not None:
            await self._output.save()
        if (self._folder / "ready").exists():
            await self._files.save()

    async def _insist(self, work: Callable[[], Awaitable[T]]) -> T:
        """``work`` until it is done; meanwhile the report says what is in its way."""
        while True:
            try:
                done = await work()
            except (RoostError, OSError) as error:
                self._say(str(error))
                await asyncio.sleep(AGAIN_S)
            else:
                self._say("")
                return done

    async def _try(self, work: Callable[[], Awaitable[bool]]) -> bool:
        """``work`` once; what is in its way is told and tried again with the next look."""
        try:
            done = await work()
        except (RoostError, OSError) as error:
            self._say(str(error))
            return False
        self._say("")
        return done

    def _say(self, trouble: str) -> None:
        if trouble != self._trouble:
            self._trouble = trouble
            self._tools.beat()

    def _set(self, state: str) -> None:
        self._state = state
        self._tools.beat()


def _child(pid: int) -> int:
    """The first child of a process; 0 when it has none."""
    try:
        found = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:
        return 0
    return int(found[0]) if found else 0
