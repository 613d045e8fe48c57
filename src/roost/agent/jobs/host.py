"""All jobs of this host: orders taken note of before they are answered, found again after a restart.

One run per job, at its newest epoch; older orders are refused. It decides nothing about jobs.
"""

import asyncio
import logging
from pathlib import Path

import msgspec

from roost.agent.jobs.run import Run, RunTools
from roost.agent.jobs.runner import write_durably
from roost.ports.errors import StaleEpoch
from roost.ports.jobs import JobOrder
from roost.ports.values import TaskReport

log = logging.getLogger(__name__)


class JobHost:
    """Runs of jobs; ``folder`` lives as long as the host."""

    def __init__(self, folder: Path, tools: RunTools) -> None:
        self._folder = folder
        self._tools = tools
        self._runs: dict[str, Run] = {}
        self._changing = asyncio.Lock()

    def recover(self) -> None:
        """Go on with what an earlier agent was told to run."""
        for path in sorted(self._folder.glob("*/*/order.json")):
            order = msgspec.json.decode(path.read_bytes(), type=JobOrder)
            known = self._runs.get(order.job_id)
            if known is None or known.order.epoch < order.epoch:
                if known is not None:
                    known.job.cancel()
                log.info("adopted run %d of %s", order.epoch, order.job_id)
                self._runs[order.job_id] = Run(order, path.parent, self._tools)

    def reports(self) -> tuple[TaskReport, ...]:
        """Every run, ordered by job."""
        return tuple(self._runs[job_id].report() for job_id in sorted(self._runs))

    async def start(self, order: JobOrder) -> None:
        """Take the order; an older epoch gets ``StaleEpoch``, the same one changes nothing."""
        async with self._changing:
            known = self._runs.get(order.job_id)
            if known is not None:
                if known.order.epoch > order.epoch:
                    raise StaleEpoch(f"{order.job_id} is at epoch {known.order.epoch} here")
                if known.order.epoch == order.epoch:
                    return
                await known.remove()
            folder = self._folder / order.job_id / str(order.epoch)
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            write_durably(folder / "order.json", msgspec.json.encode(order))
            self._runs[order.job_id] = Run(order, folder, self._tools)
        self._tools.beat()

    def stop(self, job_id: str, epoch: int, grace_s: float) -> None:
        """Tell the run to end; an unknown job is fine. ``StaleEpoch`` when a newer one runs."""
        run = self._runs.get(job_id)
        if run is None:
            return
        if run.order.epoch > epoch:
            raise StaleEpoch(f"{job_id} is at epoch {run.order.epoch} here")
        run.tell(grace_s)

    def tell(self, left_s: float | None) -> None:
        """The host goes away in ``left_s`` seconds: every script is told."""
        for run in self._runs.values():
            run.tell(left_s)

    async def end(self) -> None:
        """End every run, without a last save."""
        runs, self._runs = self._runs, {}
        await asyncio.gather(*(run.remove() for run in runs.values()))

    async def close(self) -> None:
        """Let go; scripts run on."""
        await asyncio.gather(*(run.close() for run in self._runs.values()))
