"""``roost.ports.kernels.Kernels`` over the agents' control links.

It translates calls into commands and nothing else: it keeps no state and repeats nothing (a command
waits for a host that reconnects; the caller repeats what is worth repeating).
"""

from dataclasses import dataclass

from roost.ports import wire
from roost.ports.errors import Never
from roost.ports.kernels import Checkpoint, KernelOrder, KernelUp
from roost.ports.link import Links


@dataclass(frozen=True, slots=True)
class Timeouts:
    """How long to wait for a host's answer, in seconds."""

    start_s: float = 120.0
    """A fresh kernel that fetches and restores a large checkpoint."""
    fence_s: float = 5.0
    capture_slack_s: float = 2.0
    """Beyond the capture's own budget."""
    stop_s: float = 20.0
    warm_s: float = 120.0
    prefetch_s: float = 600.0
    """A large checkpoint over a slow line; what came until then stays."""


class LinkedKernels:
    """Kernels on connected hosts."""

    def __init__(self, links: Links, timeouts: Timeouts | None = None) -> None:
        self._links = links
        self._timeouts = timeouts or Timeouts()

    async def start(self, host_id: str, order: KernelOrder) -> KernelUp:
        reply = await self._links.call(
            host_id,
            wire.StartKernel(order=order),
            epoch=order.epoch,
            timeout_s=self._timeouts.start_s,
        )
        if not isinstance(reply, wire.Started):
            raise Never(f"{host_id} answered StartKernel with {type(reply).__name__}")
        return reply.up

    async def fence(self, host_id: str, session_id: str, epoch: int) -> None:
        body = wire.Fence(session_id=session_id)
        await self._links.call(host_id, body, epoch=epoch, timeout_s=self._timeouts.fence_s)

    async def capture(
        self, host_id: str, session_id: str, epoch: int, budget_s: float
    ) -> Checkpoint:
        reply = await self._links.call(
            host_id,
            wire.CaptureNow(session_id=session_id, budget_s=budget_s),
            epoch=epoch,
            timeout_s=budget_s + self._timeouts.capture_slack_s,
        )
        if not isinstance(reply, wire.CaptureDone):
            raise Never(f"{host_id} answered CaptureNow with {type(reply).__name__}")
        return reply.checkpoint

    async def stop(self, host_id: str, session_id: str, epoch: int) -> None:
        body = wire.StopKernel(session_id=session_id)
        await self._links.call(host_id, body, epoch=epoch, timeout_s=self._timeouts.stop_s)

    async def warm(self, host_id: str, imports: tuple[str, ...]) -> None:
        body = wire.Warm(imports=imports)
        await self._links.call(host_id, body, epoch=0, timeout_s=self._timeouts.warm_s)

    async def prefetch(self, host_id: str, session_id: str, checkpoint: str) -> None:
        body = wire.Prefetch(session_id=session_id, checkpoint=checkpoint)
        await self._links.call(host_id, body, epoch=0, timeout_s=self._timeouts.prefetch_s)
