"""The agent as a process: joins, is killed, comes back as the same host."""

import asyncio
import os
import signal
import socket
import sys
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from roost.adapters.clock import SystemClock
from roost.adapters.link.server import LinkServer
from roost.kit.ids import SystemIds
from roost.ports import wire
from roost.ports.errors import Denied, RoostError

from .fakes import until


class Book:
    """One token, bound to the first key."""

    def __init__(self) -> None:
        self.key: bytes | None = None

    async def admit(self, host_id: str, join_token: str, public_key: bytes) -> None:
        if join_token != "join" or self.key not in (None, public_key):
            raise Denied("no")
        self.key = public_key


@asynccontextmanager
async def control(book: Book) -> AsyncIterator[tuple[LinkServer, str]]:
    server = LinkServer(
        clock=SystemClock(),
        ids=SystemIds(),
        book=book,
        data_secret=b"secret",
        data_addresses=lambda: (),
        heartbeat_s=0.2,
    )
    sock = socket.create_server(("127.0.0.1", 0))
    await server.serve(sock)
    try:
        yield server, f"127.0.0.1:{sock.getsockname()[1]}"
    finally:
        await server.close()


@asynccontextmanager
async def agent(
    folder: Path, address: str, token: str = "join"
) -> AsyncIterator[asyncio.subprocess.Process]:
    (folder / "run").mkdir(exist_ok=True)
    env = {
        **os.environ,
        "ROOST_INSTANCE": "h-1",
        "ROOST_HOST_ID": "h-1",
        "ROOST_JOIN_TOKEN": token,
        "ROOST_LINK_ADDRESS": address,
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


@pytest.mark.e2e
async def test_an_agent_killed_and_started_again_is_the_same_host() -> None:
    with tempfile.TemporaryDirectory(prefix="rt-", dir="/tmp") as name:
        folder = Path(name)
        (folder / "env.json").write_text('{"ready": false, "detail": "linking"}')
        async with control(Book()) as (server, address):
            async with agent(folder, address) as process:
                await until(lambda: "h-1" in server.reports(), seconds=30)
                report = server.reports()["h-1"]
                assert (report.ready, report.detail) == (False, "linking")
                assert report.memory_total_mib > 0
                with pytest.raises(RoostError, match="not ready"):
                    await server.call("h-1", wire.Warm(), epoch=0, timeout_s=10)
                (folder / "env.json").write_text('{"ready": true}')
                await until(lambda: server.reports()["h-1"].ready, seconds=30)
                process.send_signal(signal.SIGKILL)
                await until(lambda: not server.connected("h-1"))
            async with agent(folder, address) as process:
                await until(lambda: "h-1" in server.reports(), seconds=30)
                assert server.reports()["h-1"].ready
                process.terminate()
                assert await process.wait() == 0
            (folder / "agent" / "agent.key").unlink()
            async with agent(folder, address) as process:  # another key: the token is spent
                assert await process.wait() == 78
