"""``roost.ports.jobs.Jobs`` over the agents' control links: one method, one command. It keeps no state."""

from roost.ports import wire
from roost.ports.jobs import JobOrder
from roost.ports.link import Links

ANSWER_S = 5.0
"""Both commands are only taken note of before they are answered."""


class LinkedJobs:
    """Jobs on connected hosts."""

    def __init__(self, links: Links) -> None:
        self._links = links

    async def start(self, host_id: str, order: JobOrder) -> None:
        body = wire.StartJob(order=order)
        await self._links.call(host_id, body, epoch=order.epoch, timeout_s=ANSWER_S)

    async def stop(self, host_id: str, job_id: str, epoch: int, grace_s: float) -> None:
        body = wire.StopJob(job_id=job_id, grace_s=grace_s)
        await self._links.call(host_id, body, epoch=epoch, timeout_s=ANSWER_S)
