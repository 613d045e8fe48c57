"""The sample web service: each connected client costs half of its container's CPU; and it ends in order."""

import asyncio
import json
import os
import secrets
import signal
import socket
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import httpx
import psutil
import pytest

from roost.adapters.clock import SystemClock
from roost.adapters.drivers.docker import DockerDriver
from roost.ports.driver import TaskLimits, TaskOrder
from tests.support.docker import need_web

WEB = Path(__file__).parents[3] / "examples" / "web" / "web.py"
LIMIT_S = 20.0
SAMPLE_S = 1.0


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class Running:
    """A process of it."""

    def __init__(self, **env: str) -> None:
        self.port = free_port()
        self.env = {**os.environ, "HOST": "127.0.0.1", "PORT": str(self.port), "CPUS": "0.4", **env}
        self.process: asyncio.subprocess.Process | None = None

    async def start(self) -> None:
        self.process = await asyncio.create_subprocess_exec(sys.executable, str(WEB), env=self.env)

    def cpu_s(self) -> float:
        assert self.process is not None
        used = psutil.Process(self.process.pid).cpu_times()
        return float(used.user + used.system)


@pytest.fixture
async def web() -> AsyncIterator[Running]:
    running = Running()
    await running.start()
    yield running
    assert running.process is not None
    if running.process.returncode is None:
        running.process.kill()
    await running.process.wait()


@pytest.fixture
async def client(web: Running) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{web.port}") as made:
        await ready(made)
        yield made


async def ready(client: httpx.AsyncClient) -> None:
    async with asyncio.timeout(LIMIT_S):
        while True:
            try:
                (await client.get("/health")).raise_for_status()
            except httpx.HTTPError:
                await asyncio.sleep(0.05)
            else:
                return


async def until(seen: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(LIMIT_S):
        while not await seen():  # noqa: ASYNC110
            await asyncio.sleep(0.05)


async def connected(client: httpx.AsyncClient) -> int:
    clients: int = (await client.get("/who")).json()["clients"]
    return clients


async def test_each_connected_client_burns_half(web: Running, client: httpx.AsyncClient) -> None:
    """Seen in its processor time, which load elsewhere only makes slower to come."""
    idle = web.cpu_s()
    async with client.stream("GET", "/connect") as first:
        assert first.status_code == 200
        await until(lambda: _grown(web, idle + 0.3))
        async with client.stream("GET", "/connect"):
            assert await connected(client) == 2
        await until(lambda: _are(client, 1))
    await until(lambda: _are(client, 0))
    before = web.cpu_s()
    await asyncio.sleep(SAMPLE_S)
    assert web.cpu_s() - before < 0.1  # nobody is connected: 0.2 with one client


async def _grown(web: Running, cpu_s: float) -> bool:
    return web.cpu_s() >= cpu_s


async def _are(client: httpx.AsyncClient, number: int) -> bool:
    return await connected(client) == number


async def test_a_request_costs_what_it_was_asked(web: Running, client: httpx.AsyncClient) -> None:
    before = web.cpu_s()
    said = (await client.get("/work", params={"ms": 300})).json()
    assert said["spent_ms"] >= 300 and web.cpu_s() - before >= 0.25
    assert (await client.get("/wait", params={"ms": 1})).status_code == 200
    assert (await client.get("/fail")).status_code == 500
    assert (await client.get("/nothing")).status_code == 404
    assert "half of its container" in (await client.get("/")).text


async def test_told_to_end_it_lets_what_is_in_flight_end(
    web: Running, client: httpx.AsyncClient
) -> None:
    assert web.process is not None
    waiting = asyncio.create_task(client.get("/wait", params={"ms": 600}))
    streaming = asyncio.create_task(client.get("/connect"))
    await until(lambda: _are(client, 1))
    web.process.send_signal(signal.SIGTERM)
    assert (await waiting).status_code == 200
    assert (await streaming).text.endswith(f"connected to process {web.process.pid}\n")
    assert await web.process.wait() == 0


async def test_a_broken_release_and_a_crash(web: Running, client: httpx.AsyncClient) -> None:
    with pytest.raises(httpx.HTTPError):
        await client.get("/crash")
    assert web.process is not None and await web.process.wait() == 1
    web.env["BROKEN"] = "1"
    await web.start()

    async def ill() -> bool:
        try:
            return (await client.get("/health")).status_code == 500
        except httpx.HTTPError:
            return False

    await until(ill)


async def test_in_a_container_half_is_half_of_its_limit() -> None:
    image, name, port = need_web(), f"test-{secrets.token_hex(4)}", free_port()
    driver = DockerDriver(name, clock=SystemClock())
    order = TaskOrder(
        task_id="a",
        argv=(),
        image=image,
        limits=TaskLimits(vcpus=0.2, memory_mib=64),
        address="127.0.0.1",
        port=port,
    )
    await driver.start(order)
    try:
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}") as client:
            await ready(client)
            assert json.loads((await client.get("/who")).text)["clients"] == 0
            assert "0.2 CPUs" in await driver.logs("a", tail_bytes=1000)
            async with client.stream("GET", "/connect"):
                before = (await driver.usage("a")).cpu_s
                assert before is not None

                async def grown() -> bool:
                    now = (await driver.usage("a")).cpu_s
                    return now is not None and now >= before + 0.1

                await until(grown)
    finally:
        await driver.stop("a", grace_s=5.0)
        await driver.close()
