"""A real keeper with a real kernel, spoken to as agent and bridge speak to it."""

import asyncio
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import ClassVar

import pytest

from roost.agent.keeper_client import KeeperClient
from roost.ports.errors import Conflict, Gone, Never, Retry, StaleEpoch
from roost.ports.frames import STREAM_LIMIT
from roost.ports.jupyter import Signer, read
from roost.ports.keeper import Adopt, CaptureReady
from roost.ports.wire import (
    Accepted,
    Ack,
    Attach,
    Attached,
    Output,
    Refused,
    Request,
    to_bridge,
    to_keeper,
)

pytestmark = pytest.mark.e2e

KERNEL_PYTHON = sys.executable
KEY = "key-of-the-session"
SIGNER = Signer(KEY)


class Peer:
    """A bridge's end of a session stream."""

    made: ClassVar[list["Peer"]] = []

    def __init__(self, reader, writer):
        self.reader, self.writer = reader, writer
        self.made.append(self)

    @classmethod
    async def attach(cls, path, session="s-1", seen=(0, 0)):
        peer = cls(*await asyncio.open_unix_connection(str(path)))
        peer.send(Attach(session_id=session, seen_epoch=seen[0], seen_seq=seen[1]))
        return peer, await peer.receive()

    def send(self, message):
        self.writer.write(to_keeper().encode(message))

    async def receive(self):
        async with asyncio.timeout(30):
            return await to_bridge().read(self.reader)

    def execute(self, code, signer=SIGNER):
        content = {"code": code, "silent": False, "allow_stdin": False}
        frames = signer.build("execute_request", content, identities=(b"client",))
        msg_id = read(frames).header.msg_id
        self.send(Request(channel="shell", msg_id=msg_id, frames=frames))
        return msg_id

    async def until_idle(self, msg_id):
        """Outputs up to the idle status of ``msg_id``."""
        outputs = []
        while True:
            message = await self.receive()
            if not isinstance(message, Output):
                continue
            outputs.append(message)
            inner = read(message.frames)
            if inner.parent.msg_id == msg_id and inner.status().execution_state == "idle":
                return outputs


class Running:
    """One keeper process."""

    def __init__(self, folder: Path, python: str = KERNEL_PYTHON) -> None:
        self.folder = folder
        self.events = []
        self.clients = []
        self.path = folder / "k-t1.sock"
        self.process = subprocess.Popen(
            [sys.executable, "-m", "roost.main.keeper", "--task", "t1", "--run-dir", str(folder),
             "--kernel-python", python, "--log", str(folder / "log")],
        )  # fmt: skip

    async def client(self) -> KeeperClient:
        async with asyncio.timeout(30):
            while not self.path.exists():  # noqa: ASYNC110 another process makes it
                await asyncio.sleep(0.02)
        client = await KeeperClient.connect(self.path, self.events.append)
        self.clients.append(client)
        return client

    def order(self, epoch: int = 1, session: str = "s-1") -> Adopt:
        captures = self.folder / "captures"
        captures.mkdir(exist_ok=True)
        return Adopt(
            session_id=session,
            epoch=epoch,
            key=KEY,
            cwd=str(self.folder),
            env={"MARK": "set"},
            captures_dir=str(captures),
        )

    async def stop(self) -> None:
        for client in self.clients:
            await client.close()
        self.process.terminate()
        await asyncio.to_thread(self.process.wait, 15)


@pytest.fixture
async def keeper():
    folder = Path(tempfile.mkdtemp(prefix="rt-", dir="/tmp"))
    running = Running(folder)
    try:
        yield running
    finally:
        for peer in Peer.made:
            peer.writer.close()
        Peer.made.clear()
        await running.stop()
        shutil.rmtree(folder, ignore_errors=True)


async def test_from_standby_to_a_session_to_the_end(keeper):
    client = await keeper.client()
    warmed = await client.warm(("json", "no_such_module_anywhere"))
    assert "json" in warmed.imports
    status = await client.status()
    assert (status.state, status.session_id) == ("standby", "")
    assert os.getsid(status.keeper_pid) == status.keeper_pid
    assert os.getpgid(status.kernel_pid) == status.kernel_pid
    environment = Path(f"/proc/{status.kernel_pid}/environ").read_bytes().split(b"\0")
    assert b"PYTHONHASHSEED=0" in environment
    assert not any(line.startswith(b"JPY_PARENT_PID") for line in environment)

    with pytest.raises(Gone):
        await client.fence(1)
    adopted = await client.adopt(keeper.order())
    assert await client.adopt(keeper.order()) == adopted
    with pytest.raises(Conflict):
        await client.adopt(keeper.order(session="s-2"))
    with pytest.raises(StaleEpoch):
        await client.adopt(keeper.order(epoch=0))

    peer, attached = await Peer.attach(keeper.path)
    assert attached == Attached(epoch=1, fresh=True)
    msg_id = peer.execute("import os; print(os.environ['MARK'], os.getcwd())")
    outputs = await peer.until_idle(msg_id)
    text = b"".join(read(o.frames).content for o in outputs)
    assert b"set " in text
    assert str(keeper.folder).encode() in text
    assert [o.seq for o in outputs] == list(range(1, len(outputs) + 1))
    assert (await client.status()).state == "ready"

    await client.stop()
    assert await asyncio.to_thread(keeper.process.wait, 10) == 0
    assert not Path(f"/proc/{status.kernel_pid}").exists()
    assert not keeper.path.exists()
    with pytest.raises(Retry):
        await client.status()
    with pytest.raises(Gone):
        await KeeperClient.connect(keeper.path, keeper.events.append)


async def test_outputs_stay_until_acknowledged_and_requests_run_once(keeper):
    client = await keeper.client()
    await client.adopt(keeper.order())
    peer, _ = await Peer.attach(keeper.path)
    msg_id = peer.execute("print('one')")
    outputs = await peer.until_idle(msg_id)
    peer.send(Ack(epoch=1, seq=outputs[1].seq))
    peer.writer.close()

    again, attached = await Peer.attach(keeper.path, seen=(1, outputs[1].seq))
    assert msg_id in (*attached.finished, *attached.received)  # the reply comes on another socket
    first = await again.receive()
    assert first == outputs[2]
    frames = SIGNER.build("execute_request", {"code": "print('two')"}, identities=(b"client",))
    request = Request(channel="shell", msg_id=read(frames).header.msg_id, frames=frames)
    for _ in range(3):
        again.send(request)
    outputs = await again.until_idle(request.msg_id)
    assert sum(b'"two' in read(o.frames).content for o in outputs) == 1
    # forged: accepted (nobody sends it again), never run
    forged = again.execute("print('forged')", Signer("another key"))
    while not (isinstance(m := await again.receive(), Accepted) and m.msg_id == forged):
        pass
    assert (await client.status()).execution_count == 2
    # a later bridge replaces the earlier one; another session's is refused
    newest, _ = await Peer.attach(keeper.path, seen=(1, outputs[-1].seq))
    while await again.receive() is not None:
        pass
    _, refused = await Peer.attach(keeper.path, session="s-9")
    assert isinstance(refused, Refused)
    _, refused = await Peer.attach(keeper.path, seen=(7, 1))
    assert isinstance(refused, Refused)
    last = newest.execute("print('three')")
    assert await newest.until_idle(last)


@pytest.mark.parametrize(
    "garbage",
    [
        b"GET / HTTP/1.1\r\n\r\n",
        b"\x00\x00\x00\x05hello",
        (STREAM_LIMIT + 1).to_bytes(4, "big"),
        (1 << 30).to_bytes(4, "big") + b"x" * 1000,
        b"\x00\x00",
    ],
)
async def test_garbage_closes_its_connection_and_nothing_else(keeper, garbage):
    client = await keeper.client()
    await client.adopt(keeper.order())
    reader, writer = await asyncio.open_unix_connection(str(keeper.path))
    writer.write(garbage)
    writer.write_eof()
    async with asyncio.timeout(10):
        assert await reader.read() == b""
    peer, _ = await Peer.attach(keeper.path)
    peer.writer.write(garbage)
    peer.writer.write_eof()
    async with asyncio.timeout(10):
        assert await to_bridge().read(peer.reader) is None
    assert (await client.status()).state == "ready"
    peer, _ = await Peer.attach(keeper.path)
    assert await peer.until_idle(peer.execute("1"))


async def test_an_agent_that_was_away_gets_the_last_capture(keeper):
    client = await keeper.client()
    await client.adopt(keeper.order())
    peer, _ = await Peer.attach(keeper.path)
    msg_id = peer.execute("x = 41")
    await peer.until_idle(msg_id)
    capture = await client.capture(20)
    assert msg_id in capture.finished
    await client.close()
    keeper.events.clear()
    client = await keeper.client()
    ready = [event for event in keeper.events if isinstance(event, CaptureReady)]
    assert [event.capture.number for event in ready] == [capture.number]


async def test_a_capture_is_kept_while_the_agent_stores_it(keeper):
    client = await keeper.client()
    await client.adopt(keeper.order())
    peer, _ = await Peer.attach(keeper.path)

    async def cell(number):
        """Run a cell; its background capture."""
        before = len(keeper.events)
        await peer.until_idle(peer.execute(f"x = {number}"))
        async with asyncio.timeout(20):
            while True:
                for event in keeper.events[before:]:
                    if isinstance(event, CaptureReady):
                        return event.capture
                await asyncio.sleep(0.02)

    first = await cell(0)
    for number in range(1, 5):
        last = await cell(number)
    assert last.number > first.number
    assert Path(first.manifest_path).exists()
    await client.durable(first.number)
    newest = await cell(5)
    assert Path(last.manifest_path).exists()
    await client.durable(newest.number)


async def test_the_kernel_dies_with_its_keeper(keeper):
    client = await keeper.client()
    await client.adopt(keeper.order())
    pid = (await client.status()).kernel_pid
    os.kill(keeper.process.pid, signal.SIGKILL)
    async with asyncio.timeout(10):
        gone = Path(f"/proc/{pid}/cmdline")
        while gone.exists() and gone.read_bytes():  # noqa: ASYNC110 a zombie has an empty one
            await asyncio.sleep(0.02)


async def test_an_interpreter_that_cannot_run_kernels_is_a_clear_error(tmp_path):
    folder = Path(tempfile.mkdtemp(prefix="rt-", dir="/tmp"))
    for python in ("/no/such/python", "/bin/false"):
        running = Running(folder, python)
        try:
            client = await running.client()
            with pytest.raises(Never, match="kernel"):
                await client.adopt(running.order())
            assert (await client.status()).state == "dead"
        finally:
            await running.stop()
    shutil.rmtree(folder, ignore_errors=True)


async def test_an_idle_keeper_is_small(keeper):
    client = await keeper.client()
    await client.adopt(keeper.order())
    status = await client.status()
    text = Path(f"/proc/{status.keeper_pid}/status").read_text()
    anonymous_kib = int(text.split("RssAnon:")[1].split()[0])
    assert anonymous_kib < 40 * 1024
