"""A whole agent with replicas, over its real links: opened by an edge, killed, adopted."""

import asyncio
import signal
from pathlib import Path

import pytest

from roost.ports import wire
from roost.ports.errors import Gone, StaleEpoch
from roost.ports.replicas import HostReplicas, ReplicaOrder, ServiceReport

from .fakes import until
from .replicas import Answer, Client, end_replicas, orders
from .test_process import Cell, agent, cell, end_host, short

__all__ = ["cell", "short"]

pytestmark = pytest.mark.e2e


class DataClient(Client):
    """A client on an opened data connection, as the edge has it."""

    @classmethod
    async def open(cls, cell: Cell, host_id: str, service: str) -> "DataClient":
        async with asyncio.timeout(30):
            while (connection := cell.data.take(host_id)) is None:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        first = await connection.open(service, 0, "st")
        reader = asyncio.StreamReader()
        reader.feed_data(first)
        protocol = asyncio.StreamReaderProtocol(reader)
        connection.transport.set_protocol(protocol)
        loop = asyncio.get_running_loop()
        writer = asyncio.StreamWriter(connection.transport, protocol, reader, loop)
        return cls(reader, writer)


async def ask(cell: Cell, path: str) -> Answer:
    client = await DataClient.open(cell, "h-1", "svc/s-1")
    try:
        return await client.ask(path)
    finally:
        client.close()


async def tell(cell: Cell, generation: int, *found: ReplicaOrder) -> None:
    body = wire.SetReplicas(replicas=HostReplicas(generation=generation, replicas=found))
    await cell.links.call("h-1", body, epoch=0, timeout_s=20)


def ready(cell: Cell) -> list[str]:
    report = cell.links.reports().get("h-1")
    if report is None:
        return []
    return [r.replica_id for r in report.replicas if r.state == "ready"]


async def test_replicas_over_the_links_outlive_their_agent(short: Path, cell: Cell) -> None:
    folder = short / "h"
    folder.mkdir()
    (folder / "env.json").write_text('{"ready": true}')
    names = [f"r-{folder.parent.name}-{n}" for n in (1, 2)]
    try:
        async with agent(folder, "h-1", cell) as process:
            await until(lambda: "h-1" in cell.links.reports(), seconds=30)
            with pytest.raises(Gone, match="no replica"):
                await DataClient.open(cell, "h-1", "svc/s-1")
            await tell(cell, 3, *orders(*names))
            with pytest.raises(StaleEpoch):
                await tell(cell, 2)
            await until(lambda: ready(cell) == names, seconds=30)
            assert cell.links.reports()["h-1"].replicas_generation == 3
            assert {(await ask(cell, "/")).text for _ in range(4)} == set(names)
            logs = wire.ReadReplicaLogs(replica_id=names[0], tail_bytes=1000)
            answer = await cell.links.call("h-1", logs, epoch=0, timeout_s=20)
            assert isinstance(answer, wire.ReplicaLogs)
            assert f"hello from {names[0]}" in answer.text
            pids = {(await ask(cell, "/pid")).text for _ in range(4)}
            client = await DataClient.open(cell, "h-1", "svc/s-1")
            under_way = asyncio.create_task(client.ask("/sleep=20"))
            await until(lambda: [(s.requests, s.in_flight) for s in _services(cell)] == [(8, 1)])
            process.send_signal(signal.SIGKILL)
            with pytest.raises((asyncio.IncompleteReadError, ConnectionError)):
                await under_way  # the edge learns it at once and asks another host
            await until(lambda: not cell.links.connected("h-1"))
        async with agent(folder, "h-1", cell):
            await until(lambda: ready(cell) == names, seconds=30)
            client = await DataClient.open(cell, "h-1", "svc/s-1")
            assert {(await client.ask("/pid")).text for _ in range(6)} == pids
            client.close()
            assert all(not r.restarts for r in cell.links.reports()["h-1"].replicas)
            (service,) = await _counted(cell, 6)
            assert service.errors == 0
            await cell.links.call("h-1", wire.Drain(), epoch=0, timeout_s=20)
            await until(lambda: not any(Path("/proc", pid).exists() for pid in pids))
    finally:
        end_host(folder, "h-1")
        await end_replicas(folder, *names)


def _services(cell: Cell) -> tuple[ServiceReport, ...]:
    report = cell.links.reports().get("h-1")
    return () if report is None else report.services


async def _counted(cell: Cell, requests: int) -> tuple[ServiceReport, ...]:
    await until(lambda: sum(s.requests for s in _services(cell)) == requests)
    return _services(cell)
