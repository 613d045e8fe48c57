"""Services through a real edge process: control's routes and events, two hosts by the agents' data pools."""

import asyncio
import contextlib
import json
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from roost.adapters.link.data import DataPool
from roost.adapters.store.sqlite.store import open_store
from roost.gateway.model import HostMember, Seen, ServiceSeen
from roost.gateway.publisher import Publisher
from roost.gateway.service import GatewayService
from roost.gateway.service_routes import EdgeEvents, ServiceRoutes
from roost.gateway.streams import data_credential
from roost.ports import wire

SECRET = b"the data secret"


async def until(condition: Callable[[], bool], seconds: float = 20.0) -> None:
    loop = asyncio.get_running_loop()
    end = loop.time() + seconds
    while not condition():
        assert loop.time() < end, "not in time"
        await asyncio.sleep(0.01)


class Cell:
    """Control's end, one edge process, and hosts that are only data pools."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.woken: list[str] = []
        self.seen: dict[str, ServiceSeen] = {}
        self.reports: list[Seen] = []
        self.store = open_store(folder / "control.sqlite")
        self.gateway = GatewayService(self.store)
        self.routes = ServiceRoutes(self.gateway)
        self.publisher = Publisher(folder / "run", EdgeEvents(self.woken.append, self._seen))
        self.gateway.attach(self.publisher.publish)
        argv = (sys.executable, "-m", "roost.main.edge", "--state", str(folder))
        self.edge = subprocess.Popen(argv, stdout=subprocess.PIPE)
        self.pools: dict[str, DataPool] = {}
        self.slow_s = 0.0
        self.http: httpx.AsyncClient
        self.addresses: dict[str, str] = {}

    def _seen(self, seen: Seen) -> None:
        self.reports.append(seen)
        self.seen.update({service.service_id: service for service in seen.services})

    async def start(self) -> None:
        assert self.edge.stdout is not None
        line = await asyncio.to_thread(self.edge.stdout.readline)
        self.addresses = json.loads(line)["serving"]
        self.http = httpx.AsyncClient(
            base_url=f"http://{self.addresses['public']}", trust_env=False, timeout=30
        )
        self.publisher.start()
        await until(lambda: self.publisher.connected == 1)

    async def stop(self) -> None:
        await self.http.aclose()
        for host_id in list(self.pools):
            await self.kill(host_id)
        await self.publisher.close()
        await self.store.close()
        self.edge.send_signal(signal.SIGTERM)
        assert await asyncio.to_thread(self.edge.wait, 15) == 0
        assert self.edge.stdout is not None
        self.edge.stdout.close()

    def host(self, host_id: str) -> None:
        async def open_service(request: wire.Open) -> Any:
            assert request.service == "svc/v-1"

            async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
                while await reader.readuntil(b"\r\n\r\n"):
                    await asyncio.sleep(self.slow_s)
                    head = b"HTTP/1.1 200 OK\r\nRoost-Load: active=1; slots=4\r\n"
                    writer.write(head + b"Content-Length: 3\r\n\r\n" + host_id.encode())
                    await writer.drain()

            async def served(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
                with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
                    await serve(reader, writer)

            return served

        pool = DataPool(host_id, open_service=open_service, draw=lambda: 0.5)
        pool.welcome((self.addresses["data"],), data_credential(SECRET, host_id))
        self.pools[host_id] = pool

    async def kill(self, host_id: str) -> None:
        await self.pools.pop(host_id).close()

    async def point(self, *host_ids: str) -> None:
        members = [HostMember(host_id=host_id) for host_id in host_ids]
        await self.routes.point("v-1", members, name="web", bound_s=5.0)


@pytest.fixture
async def cell() -> AsyncIterator[Cell]:
    folder = Path(tempfile.mkdtemp(prefix="rt-", dir="/tmp"))
    (folder / "run").mkdir()
    (folder / "data.secret").write_bytes(SECRET)
    made = Cell(folder)
    try:
        await made.start()
        yield made
        await made.stop()
    finally:
        if made.edge.poll() is None:
            made.edge.kill()
            made.edge.wait()
        shutil.rmtree(folder)


async def test_from_zero_over_two_hosts_and_a_killed_one_back_to_zero(cell: Cell) -> None:
    await cell.point()
    first = asyncio.create_task(cell.http.get("/s/web/"))
    await until(lambda: cell.woken[:1] == ["v-1"])
    await until(lambda: cell.seen.get("v-1", ServiceSeen(service_id="v-1")).held == 1)
    cell.host("i-1")
    cell.host("i-2")
    await cell.point("i-1", "i-2")
    answer = await first
    assert answer.status_code == 200
    assert "roost-load" not in answer.headers
    by_name = await cell.http.get("/", headers={"host": "web.localhost"})
    assert by_name.status_code == 200
    cell.slow_s = 0.02
    answered: list[tuple[int, str]] = []

    async def client(n: int) -> None:
        for _ in range(n):
            found = await cell.http.get("/s/web/x")
            answered.append((found.status_code, found.text))

    clients = [asyncio.create_task(client(20)) for _ in range(10)]
    await until(lambda: len(answered) > 50)
    await cell.kill("i-1")
    await asyncio.gather(*clients)
    assert {status for status, _ in answered} == {200}
    assert {text for _, text in answered} == {"i-1", "i-2"}
    await until(lambda: cell.seen["v-1"].finished == 202)
    counted = cell.seen["v-1"]
    assert (counted.arrived, counted.errors, counted.held, counted.in_flight) == (202, 0, 0, 0)
    assert counted.held_finished >= 1
    await cell.point()
    assert (await cell.gateway.load()).routes[0].state == "hold"
    again = asyncio.create_task(cell.http.get("/s/web/"))
    await until(lambda: cell.seen["v-1"].held == 1)
    await cell.routes.remove("v-1")
    assert (await again).status_code == 404


async def test_the_edge_counts_on_without_control(cell: Cell) -> None:
    cell.host("i-1")
    await cell.point("i-1")
    assert (await cell.http.get("/s/web/")).status_code == 200
    await until(lambda: "v-1" in cell.seen and cell.seen["v-1"].finished == 1)
    began_s = cell.reports[-1].began_s
    await cell.publisher.close()
    for _ in range(3):
        assert (await cell.http.get("/s/web/")).status_code == 200
    cell.publisher.start()
    await until(lambda: cell.seen["v-1"].finished == 4)
    assert cell.reports[-1].began_s == began_s
