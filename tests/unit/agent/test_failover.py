"""Two real agents behind a real edge, under load: agents, replicas and hosts go, no request fails."""

import asyncio
import os
import signal
import socket
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from roost.adapters.clock import SystemClock
from roost.adapters.link.server import LinkServer
from roost.gateway.model import HostMember, Hosts, Route
from roost.kit.ids import SystemIds
from roost.main.processes import marked
from roost.ports import wire
from roost.ports.replicas import HostReplicas
from tests.unit.gateway.conftest import SECRET, EdgeSetup, edge_running

from .fakes import until
from .replicas import end_replicas, orders
from .test_process import Book, agent, end_host, short

__all__ = ["short"]

pytestmark = pytest.mark.e2e


class Two:
    """Control's links, an edge, and hosts h-1 and h-2."""

    def __init__(self, edge: EdgeSetup, folder: Path) -> None:
        self.edge = edge
        self.folder = folder
        self.links = LinkServer(
            clock=SystemClock(),
            ids=SystemIds(),
            book=Book(),
            data_secret=SECRET,
            data_addresses=lambda: (f"127.0.0.1:{edge.data}",),
            heartbeat_s=0.2,
        )
        self.link_address = ""
        self.generation = 0
        self.statuses: Counter[int] = Counter()
        self.by: Counter[str] = Counter()
        self.asking = True

    async def start(self) -> None:
        sock = socket.create_server(("127.0.0.1", 0))
        self.link_address = f"127.0.0.1:{sock.getsockname()[1]}"
        await self.links.serve(sock)

    def names(self, host_id: str) -> list[str]:
        return [f"r-{self.folder.name}-{host_id}-{n}" for n in (1, 2)]

    async def tell(self, host_id: str, *names: str, draining: tuple[str, ...] = ()) -> None:
        self.generation += 1
        found = HostReplicas(generation=self.generation, replicas=orders(*names, draining=draining))
        body = wire.SetReplicas(replicas=found)
        await self.links.call(host_id, body, epoch=0, timeout_s=20)

    def route(self, *draining: str) -> None:
        members = tuple(HostMember(host_id=h, draining=h in draining) for h in ("h-1", "h-2"))
        target = Hosts(service="svc/s-1", members=members)
        self.edge.routes(
            Route(name="svc/s-1", prefix="/s/web", target=target, strip=True, hold_s=20.0)
        )

    def ready(self, host_id: str) -> list[str]:
        report = self.links.reports().get(host_id)
        if report is None:
            return []
        return [r.replica_id for r in report.replicas if r.state == "ready"]

    async def load(self) -> None:
        while self.asking:
            status, head, body = await self.edge.ask("/s/web/sleep=0.03")
            self.statuses[status] += 1
            if status != 200:
                print(status, head, body)
            for line in head.decode().split("\r\n"):
                if line.lower().startswith("replica: "):
                    self.by[line[9:]] += 1

    async def served(self, host_id: str) -> None:
        """Until its replicas have answered something new."""
        before = sum(self.by[name] for name in self.names(host_id))
        await until(
            lambda: sum(self.by[name] for name in self.names(host_id)) > before + 3, seconds=30
        )


@asynccontextmanager
async def two(folder: Path) -> AsyncIterator[Two]:
    async with edge_running(folder) as edge:
        made = Two(edge, folder)
        await made.start()
        for host_id in ("h-1", "h-2"):
            (folder / host_id).mkdir()
            (folder / host_id / "env.json").write_text('{"ready": true}')
        try:
            yield made
        finally:
            await made.links.close()
            for host_id in ("h-1", "h-2"):
                end_host(folder / host_id, host_id)
                await end_replicas(folder / host_id, *made.names(host_id))


def kill(name: str) -> None:
    for pid in marked("ROOST_TASK", name):
        os.kill(pid, signal.SIGKILL)


async def test_agents_replicas_and_hosts_go_under_load(short: Path) -> None:
    async with two(short) as made, agent(short / "h-2", "h-2", made):
        async with agent(short / "h-1", "h-1", made) as process:
            await until(lambda: len(made.links.reports()) == 2, seconds=30)
            for host_id in ("h-1", "h-2"):
                await made.tell(host_id, *made.names(host_id))
            for host_id in ("h-1", "h-2"):
                await until(lambda h=host_id: made.ready(h) == made.names(h), seconds=30)
            made.route()
            load = [asyncio.create_task(made.load()) for _ in range(6)]
            await made.served("h-1")
            await made.served("h-2")
            kill(made.names("h-2")[0])  # a replica
            await made.served("h-2")
            await until(lambda: made.ready("h-2") == made.names("h-2"), seconds=30)
            process.send_signal(signal.SIGKILL)  # an agent
            await process.wait()
            await made.served("h-2")
        async with agent(short / "h-1", "h-1", made):
            await made.served("h-1")  # its replicas have run on
            made.route("h-2")  # a host under notice: drained at both levels
            names = made.names("h-2")
            await made.tell("h-2", *names, draining=tuple(names))
            await until(
                lambda: not any(s.in_flight for s in made.links.reports()["h-2"].services),
                seconds=30,
            )
            await made.tell("h-2")
            await until(lambda: not made.links.reports()["h-2"].replicas, seconds=30)
            await made.served("h-1")
            made.asking = False
            await asyncio.gather(*load)
            assert set(made.statuses) == {200}, made.statuses
            assert made.statuses[200] > 20
