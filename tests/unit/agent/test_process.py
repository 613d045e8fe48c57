"""Agents as processes, with real keepers and kernels: killed, adopted, a session moved."""

import asyncio
import os
import signal
import socket
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from roost.adapters.blobs.local import LocalBlobs
from roost.adapters.clock import SystemClock
from roost.adapters.kernels import LinkedKernels
from roost.adapters.link.server import LinkServer
from roost.gateway.streams import DataHosts
from roost.gateway.transfer import BlobTransfer
from roost.kit.ids import SystemIds
from roost.main.processes import marked
from roost.ports import wire
from roost.ports.errors import Denied, RoostError, StaleEpoch
from roost.ports.jupyter import Signer, read
from roost.ports.kernels import KernelOrder

from .fakes import until

pytestmark = pytest.mark.e2e

SECRET = b"secret"
KEY = "key-of-the-session"
SIGNER = Signer(KEY)


class Book:
    """One token per host, bound to the first key."""

    def __init__(self) -> None:
        self.keys: dict[str, bytes] = {}

    async def admit(self, host_id: str, join_token: str, public_key: bytes) -> None:
        if join_token != "join" or self.keys.setdefault(host_id, public_key) != public_key:
            raise Denied("no")


class Cell:
    """Control's links and one edge."""

    def __init__(self, folder: Path) -> None:
        blobs = LocalBlobs(folder, sync=False)
        self.data = DataHosts(
            SECRET, SystemIds(), BlobTransfer(blobs).answer, lambda: None, lambda host, up: None
        )
        self.addresses: list[str] = []
        self.links = LinkServer(
            clock=SystemClock(),
            ids=SystemIds(),
            book=Book(),
            data_secret=SECRET,
            data_addresses=lambda: tuple(self.addresses),
            heartbeat_s=0.2,
        )
        self.kernels = LinkedKernels(self.links)
        self.events: list[wire.EventBody] = []
        self.links.subscribe(lambda host, event: self.events.append(event), lambda host: None)
        self.link_address = ""

    async def start(self) -> None:
        data, link = (socket.create_server(("127.0.0.1", 0)) for _ in range(2))
        self.addresses.append(f"127.0.0.1:{data.getsockname()[1]}")
        self.link_address = f"127.0.0.1:{link.getsockname()[1]}"
        await self.data.listen(data)
        await self.links.serve(link)

    async def close(self) -> None:
        await self.links.close()
        self.data.close()

    async def run(self, host_id: str, epoch: int, code: str) -> str:
        """Run a cell through a data connection to the keeper; its text result."""
        async with asyncio.timeout(60):
            while (connection := self.data.take(host_id)) is None:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
            first = await connection.open("kernel/s-1", epoch, "st")
            reader = asyncio.StreamReader()
            reader.feed_data(first)
            connection.transport.set_protocol(asyncio.StreamReaderProtocol(reader))
            send = connection.transport.write
            send(wire.to_keeper().encode(wire.Attach(session_id="s-1")))
            frames = SIGNER.build("execute_request", {"code": code}, identities=(b"client",))
            msg_id = read(frames).header.msg_id
            request = wire.Request(channel="shell", msg_id=msg_id, frames=frames)
            send(wire.to_keeper().encode(request))
            text = ""
            try:
                while True:
                    message = await wire.to_bridge().read(reader)
                    if not isinstance(message, wire.Output):
                        assert message is not None
                        continue
                    inner = read(message.frames)
                    if inner.parent.msg_id != msg_id:
                        continue
                    if inner.header.msg_type in ("stream", "error", "execute_result"):
                        text += bytes(inner.content).decode()
                    if inner.status().execution_state == "idle":
                        return text
            finally:
                connection.transport.abort()


@pytest.fixture
def short() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="rt-", dir="/tmp") as folder:
        yield Path(folder)


@pytest.fixture
async def cell(short: Path) -> AsyncIterator[Cell]:
    made = Cell(short / "blobs")
    await made.start()
    yield made
    await made.close()


@asynccontextmanager
async def agent(
    folder: Path, host_id: str, cell: Cell
) -> AsyncIterator[asyncio.subprocess.Process]:
    (folder / "run").mkdir(parents=True, exist_ok=True)
    env = {
        **os.environ,
        "ROOST_INSTANCE": f"{host_id}-{folder}",
        "ROOST_HOST_ID": host_id,
        "ROOST_JOIN_TOKEN": "join",
        "ROOST_LINK_ADDRESS": cell.link_address,
        "ROOST_INSTANCE_DIR": str(folder),
        "ROOST_RUN_DIR": str(folder / "run"),
        "ROOST_ENV": "",
        "ROOST_PROVIDER": "aws",
        "ROOST_METADATA": "http://127.0.0.1:9",
        "ROOST_ADDRESS": "127.0.0.1",
        "HOME": str(folder),
    }
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "roost.main.agent", env=env, stdin=asyncio.subprocess.DEVNULL
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


def end_host(folder: Path, host_id: str) -> None:
    """What the host process does at the end of an instance."""
    for pid in marked("ROOST_INSTANCE", f"{host_id}-{folder}"):
        os.kill(pid, signal.SIGKILL)


async def test_an_agent_killed_and_started_again_is_the_same_host(short: Path, cell: Cell) -> None:
    folder = short / "h"
    folder.mkdir()
    (folder / "env.json").write_text('{"ready": false, "detail": "linking"}')
    links = cell.links
    async with agent(folder, "h-1", cell) as process:
        await until(lambda: "h-1" in links.reports(), seconds=30)
        report = links.reports()["h-1"]
        assert (report.ready, report.detail) == (False, "linking")
        assert report.memory_total_mib > 0
        with pytest.raises(RoostError, match="not ready"):
            await links.call("h-1", wire.Warm(), epoch=0, timeout_s=10)
        (folder / "env.json").write_text('{"ready": true}')
        await until(lambda: links.reports()["h-1"].ready, seconds=30)
        process.send_signal(signal.SIGKILL)
        await until(lambda: not links.connected("h-1"))
    async with agent(folder, "h-1", cell) as process:
        await until(lambda: "h-1" in links.reports(), seconds=30)
        assert links.reports()["h-1"].ready
        process.terminate()
        assert await process.wait() == 0
    (folder / "agent" / "agent.key").unlink()
    async with agent(folder, "h-1", cell) as process:  # another key: the token is spent
        assert await process.wait() == 78


async def test_a_real_kernel_outlives_its_agent_and_moves(short: Path, cell: Cell) -> None:
    one, two = short / "1", short / "2"
    for folder in (one, two):
        folder.mkdir()
        (folder / "env.json").write_text('{"ready": true}')
    links, kernels = cell.links, cell.kernels
    try:
        async with agent(two, "h-2", cell):
            async with agent(one, "h-1", cell):
                await until(lambda: len(links.reports()) == 2, seconds=30)
                up = await kernels.start("h-1", KernelOrder(session_id="s-1", epoch=1, key=KEY))
                await cell.run("h-1", 1, "x = [41]; y = x; open('f.txt', 'w').write('made')")
                # The capture after the cell is durable without anybody asking.
                await until(
                    lambda: any(isinstance(e, wire.Checkpointed) for e in cell.events), seconds=30
                )
            async with agent(one, "h-1", cell):
                await until(lambda: "h-1" in links.reports(), seconds=30)
                (task,) = links.reports()["h-1"].tasks
                assert (task.task_id, task.session_id, task.epoch) == (up.task_id, "s-1", 1)
                assert task.checkpoint is not None
                assert "42" in await cell.run("h-1", 1, "x[0] += 1; x[0]")
                await kernels.warm("h-2", ("json",))
                await kernels.fence("h-1", "s-1", 1)
                checkpoint = await kernels.capture("h-1", "s-1", 1, 20.0)
                assert checkpoint.refused == ()
                order = KernelOrder(
                    session_id="s-1", epoch=2, key=KEY, checkpoint=checkpoint.digest
                )
                moved = await kernels.start("h-2", order)
                assert moved.warm
                assert {"x", "y"} <= set(moved.report.names("kept"))
                shown = await cell.run("h-2", 2, "x[0], y is x, open('f.txt').read()")
                assert "(42, True, 'made')" in shown
                await kernels.stop("h-1", "s-1", 1)
                with pytest.raises(StaleEpoch):
                    await kernels.start("h-1", KernelOrder(session_id="s-1", epoch=1, key=KEY))
                await until(lambda: links.reports()["h-1"].tasks == ())
    finally:
        end_host(one, "h-1")
        end_host(two, "h-2")
