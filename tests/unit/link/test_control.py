"""The control connection on real sockets: handshake, resumed commands, events once."""

import asyncio
import hashlib
import hmac
from pathlib import Path

import pytest

from roost.adapters.kernels import LinkedKernels
from roost.adapters.link.identity import Identity
from roost.ports import wire
from roost.ports.errors import Denied, Gone, Invalid, Retry, StaleEpoch
from roost.ports.kernels import Checkpoint, KernelOrder, KernelUp

from .harness import SECRET, Agent, Book, Control, Cuttable, control, listener, until

DRAIN = wire.Drain()


def noticed(session: str, number: int) -> wire.Checkpointed:
    return wire.Checkpointed(
        checkpoint=Checkpoint(session_id=session, epoch=1, digest="0" * 64, number=number, at_s=1.0)
    )


async def raw(address: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    host, _, port = address.rpartition(":")
    return await asyncio.open_connection(host, int(port))


async def hello(
    there: Control, identity: Identity, *, nonce: bytes | None = None, **changes: object
) -> wire.ToAgent | None:
    """Shake hands by hand; returns the answer."""
    reader, writer = await raw(there.address)
    try:
        challenge = await wire.to_agent().read(reader)
        assert isinstance(challenge, wire.Challenge)
        fields: dict[str, object] = {
            "host_id": "h-1",
            "join_token": "join",
            "public_key": identity.public_key,
            "signature": identity.sign(nonce or challenge.nonce, "h-1"),
        }
        fields.update(changes)
        writer.write(wire.to_control().encode(wire.Hello(**fields)))  # type: ignore[arg-type]
        return await wire.to_agent().read(reader)
    finally:
        writer.close()
        await writer.wait_closed()


async def test_a_host_joins_reports_and_is_called(tmp_path: Path) -> None:
    commands: list[wire.Command] = []

    async def handle(command: wire.Command) -> wire.ReplyBody:
        commands.append(command)
        return wire.Done()

    async with control(Book("join"), data=("127.0.0.1:9",)) as there:
        agent = Agent(there.address, tmp_path, handle=handle)
        async with agent.running():
            await until(lambda: "h-1" in there.server.reports())
            assert there.server.connected("h-1")
            answer = await there.server.call("h-1", DRAIN, epoch=3, timeout_s=5)
        assert answer == wire.Done()
        assert [(c.body, c.epoch) for c in commands] == [(DRAIN, 3)]
        welcome = agent.welcomes[0]
        assert welcome.data_addresses == ("127.0.0.1:9",)
        assert welcome.data_credential == hmac.new(SECRET, b"h-1", hashlib.sha256).hexdigest()
        await until(lambda: not there.server.connected("h-1"))
        assert there.server.reports() == {}


async def test_a_token_belongs_to_the_first_key_that_uses_it(tmp_path: Path) -> None:
    async with control(Book("join")) as there:
        first, other = Identity.load(tmp_path / "a"), Identity.load(tmp_path / "b")
        assert isinstance(await hello(there, first), wire.Welcome)
        assert isinstance(await hello(there, first), wire.Welcome)  # a lost reply is repeated
        refused = await hello(there, other)
        assert isinstance(refused, wire.Refused)
        assert refused.final
        assert "another key" in refused.reason


async def test_wrong_hellos_are_refused_with_a_hint(tmp_path: Path) -> None:
    identity = Identity.load(tmp_path)
    async with control(Book("join")) as there:
        old_nonce = await hello(there, identity, nonce=b"an older challenge")
        assert isinstance(old_nonce, wire.Refused)  # a replayed signature
        assert "signature" in old_nonce.reason
        borrowed = await hello(there, identity, host_id="h-2")
        assert isinstance(borrowed, wire.Refused)
        token = await hello(there, identity, join_token="guess")
        assert isinstance(token, wire.Refused)
        assert token.final
        version = await hello(there, identity, protocol=99)
        assert isinstance(version, wire.Refused)
        assert "same version" in version.hint
        short = await hello(there, identity, public_key=b"short")
        assert isinstance(short, wire.Refused)
        assert not there.server.connected("h-1")


@pytest.mark.parametrize(
    "garbage",
    [
        b"GET / HTTP/1.1\r\n\r\n",
        (1 << 30).to_bytes(4, "big") + b"x",
        b"\x00\x00\x00\x03abc",
        b"\x00\x00\x00\x00",
    ],
)
async def test_garbage_closes_its_connection_only(tmp_path: Path, garbage: bytes) -> None:
    async with control(Book("join")) as there, Agent(there.address, tmp_path).running():
        await until(lambda: there.server.connected("h-1"))
        reader, writer = await raw(there.address)
        assert isinstance(await wire.to_agent().read(reader), wire.Challenge)
        writer.write(garbage)
        refused = await wire.to_agent().read(reader)
        assert isinstance(refused, wire.Refused)
        assert refused.hint
        assert await reader.read() == b""
        writer.close()
        assert there.server.connected("h-1")
        assert await there.server.call("h-1", DRAIN, epoch=0, timeout_s=5) == wire.Done()


async def test_garbage_after_joining_ends_that_host_s_connection(tmp_path: Path) -> None:
    async with control(Book("join")) as there:
        identity = Identity.load(tmp_path)
        reader, writer = await raw(there.address)
        challenge = await wire.to_agent().read(reader)
        assert isinstance(challenge, wire.Challenge)
        writer.write(
            wire.to_control().encode(
                wire.Hello(
                    host_id="h-1",
                    join_token="join",
                    public_key=identity.public_key,
                    signature=identity.sign(challenge.nonce, "h-1"),
                )
            )
        )
        assert isinstance(await wire.to_agent().read(reader), wire.Welcome)
        assert there.server.connected("h-1")
        writer.write(b"\xff\xff\xff\xff")
        assert isinstance(await wire.to_agent().read(reader), wire.Refused)
        await until(lambda: not there.server.connected("h-1"))
        writer.close()


async def test_a_silent_connection_is_closed(tmp_path: Path) -> None:
    async with control(Book("join"), handshake_s=0.1, silence_s=0.2) as there:
        reader, writer = await raw(there.address)
        assert isinstance(await wire.to_agent().read(reader), wire.Challenge)
        assert await reader.read() == b""  # never said hello
        writer.close()
        reader, writer = await raw(there.address)
        identity = Identity.load(tmp_path)
        challenge = await wire.to_agent().read(reader)
        assert isinstance(challenge, wire.Challenge)
        said = wire.Hello(
            host_id="h-1",
            join_token="join",
            public_key=identity.public_key,
            signature=identity.sign(challenge.nonce, "h-1"),
        )
        writer.write(wire.to_control().encode(said))
        assert isinstance(await wire.to_agent().read(reader), wire.Welcome)
        await until(lambda: not there.server.connected("h-1"))  # no heartbeat came
        assert there.changes[-1] == "h-1"
        writer.close()


async def test_errors_cross_as_their_type(tmp_path: Path) -> None:
    async def handle(command: wire.Command) -> wire.ReplyBody:
        match command.body:
            case wire.Fence():
                raise StaleEpoch("epoch 1 is over")
            case wire.CaptureNow():
                raise Retry("no room", after_s=7.0)
            case wire.StopKernel():
                raise ZeroDivisionError("a defect")
            case wire.StartKernel(order=order):
                up = KernelUp(session_id=order.session_id, epoch=order.epoch, task_id="t-1")
                return wire.Started(up=up)
        return wire.Done()

    async with control(Book("join")) as there:
        kernels = LinkedKernels(there.server)
        async with Agent(there.address, tmp_path, handle=handle).running():
            with pytest.raises(StaleEpoch, match="epoch 1 is over"):
                await kernels.fence("h-1", "s-1", 1)
            with pytest.raises(Retry) as caught:
                await kernels.capture("h-1", "s-1", 1, 5.0)
            assert caught.value.after_s == 7.0
            with pytest.raises(Exception, match="ZeroDivisionError"):
                await kernels.stop("h-1", "s-1", 1)
            up = await kernels.start("h-1", KernelOrder(session_id="s-1", epoch=4, key="k"))
            assert (up.epoch, up.task_id) == (4, "t-1")
            await kernels.warm("h-1", ("json",))
            huge = KernelOrder(session_id="s" * (1 << 20), epoch=4, key="k")
            with pytest.raises(Invalid, match="limit"):
                await kernels.start("h-1", huge)


async def test_a_command_survives_a_cut_and_runs_once(tmp_path: Path) -> None:
    started, release = asyncio.Event(), asyncio.Event()
    runs: list[str] = []

    async def handle(command: wire.Command) -> wire.ReplyBody:
        runs.append(command.id)
        started.set()
        await release.wait()
        return wire.Done()

    async with control(Book("join")) as there:
        relay = Cuttable(there.address)
        await relay.start()
        agent = Agent(relay.address, tmp_path, handle=handle)
        async with agent.running():
            call = asyncio.create_task(there.server.call("h-1", DRAIN, epoch=1, timeout_s=20))
            await started.wait()
            relay.cut()
            await until(lambda: not there.server.connected("h-1"))
            release.set()  # it ends while nobody can hear it
            assert await call == wire.Done()
            assert len(runs) == 1
            assert len(agent.welcomes) == 2
        await relay.close()


async def test_a_command_that_still_runs_is_not_run_again(tmp_path: Path) -> None:
    release = asyncio.Event()
    runs: list[str] = []

    async def handle(command: wire.Command) -> wire.ReplyBody:
        runs.append(command.id)
        await release.wait()
        return wire.Done()

    async with control(Book("join")) as there:
        relay = Cuttable(there.address)
        await relay.start()
        agent = Agent(relay.address, tmp_path, handle=handle)
        async with agent.running():
            call = asyncio.create_task(there.server.call("h-1", DRAIN, epoch=1, timeout_s=20))
            await until(lambda: runs)
            relay.cut()
            await until(lambda: len(agent.welcomes) == 2 and there.server.connected("h-1"))
            # Commands come in order: once this one runs, the first was received again.
            other = asyncio.create_task(there.server.call("h-1", DRAIN, epoch=2, timeout_s=20))
            await until(lambda: len(runs) > 1)
            release.set()
            assert await call == await other == wire.Done()
            assert len(runs) == 2
        await relay.close()


async def test_an_event_whose_acknowledgement_was_lost_is_delivered_once(tmp_path: Path) -> None:
    identity = Identity.load(tmp_path)
    async with control(Book("join")) as there:
        for seen in (0, 7):
            reader, writer = await raw(there.address)
            challenge = await wire.to_agent().read(reader)
            assert isinstance(challenge, wire.Challenge)
            said = wire.Hello(
                host_id="h-1",
                join_token="join",
                public_key=identity.public_key,
                signature=identity.sign(challenge.nonce, "h-1"),
            )
            writer.write(wire.to_control().encode(said))
            welcome = await wire.to_agent().read(reader)
            assert isinstance(welcome, wire.Welcome)
            assert welcome.events_seen == seen
            for _ in range(2):
                writer.write(wire.to_control().encode(wire.Event(seq=7, body=noticed("s-1", 1))))
                assert await wire.to_agent().read(reader) == wire.EventAck(seq=7)
            writer.close()
        assert len(there.events) == 1


async def test_a_host_that_is_away_gets_its_command_or_the_caller_a_retry(tmp_path: Path) -> None:
    async with control(Book("join"), patience_s=0.2) as there:
        with pytest.raises(Retry, match="not connected"):
            await there.server.call("h-1", DRAIN, epoch=1, timeout_s=60)
    async with control(Book("join")) as there:
        call = asyncio.create_task(there.server.call("h-1", DRAIN, epoch=1, timeout_s=20))
        await asyncio.sleep(0)
        async with Agent(there.address, tmp_path).running():
            assert await call == wire.Done()
        lost = asyncio.create_task(there.server.call("h-9", DRAIN, epoch=1, timeout_s=20))
        await asyncio.sleep(0)
        there.server.forget("h-9")
        with pytest.raises(Gone):
            await lost


async def test_an_answer_that_does_not_come_is_a_retry(tmp_path: Path) -> None:
    async def handle(command: wire.Command) -> wire.ReplyBody:
        await asyncio.sleep(3600)
        raise AssertionError

    async with (
        control(Book("join")) as there,
        Agent(there.address, tmp_path, handle=handle).running(),
    ):
        with pytest.raises(Retry, match="no answer"):
            await there.server.call("h-1", DRAIN, epoch=1, timeout_s=0.3)


async def test_events_arrive_once_over_cuts(tmp_path: Path) -> None:
    async with control(Book("join")) as there:
        relay = Cuttable(there.address)
        await relay.start()
        agent = Agent(relay.address, tmp_path)
        async with agent.running():
            await until(lambda: there.server.connected("h-1"))
            for number in range(50):
                agent.link.emit(noticed(f"s-{number}", number))
                if number % 7 == 0:
                    relay.cut()
                await asyncio.sleep(0)
            await until(lambda: len(there.events) == 50)
            numbers = [event.checkpoint.number for _, event in there.events]  # type: ignore[union-attr]
            assert numbers == list(range(50))
        await relay.close()


async def test_an_agent_keeps_its_events_over_its_own_restart(tmp_path: Path) -> None:
    sock = listener()
    port = sock.getsockname()[1]
    sock.close()
    address = f"127.0.0.1:{port}"
    first = Agent(address, tmp_path, first_seq=100)
    first.link.emit(noticed("s-1", 1))
    first.link.emit(noticed("s-1", 2))  # replaces the older one of the same session
    first.link.emit(noticed("s-2", 1))
    second = Agent(address, tmp_path, first_seq=50)  # killed, started again
    async with control(Book("join"), port=port) as there, second.running():
        await until(lambda: len(there.events) == 2)
        told = [event.checkpoint for _, event in there.events]  # type: ignore[union-attr]
        assert [(c.session_id, c.number) for c in told] == [("s-1", 2), ("s-2", 1)]
        second.link.emit(noticed("s-1", 3))
        await until(lambda: len(there.events) == 3)


async def test_control_may_be_restarted(tmp_path: Path) -> None:
    book = Book("join")
    agent: Agent | None = None
    async with control(book) as there:
        port = int(there.address.rpartition(":")[2])
        agent = Agent(there.address, tmp_path)
        running = agent.running()
        await running.__aenter__()
        await until(lambda: there.server.connected("h-1"))
        agent.link.emit(noticed("s-1", 1))
        await until(lambda: len(there.events) == 1)
    try:
        agent.link.emit(noticed("s-1", 2))  # while control is away
        async with control(book, port=port) as again:
            await until(lambda: again.server.connected("h-1"))
            await until(lambda: len(again.events) == 1)
            event = again.events[0][1]
            assert isinstance(event, wire.Checkpointed)
            assert event.checkpoint.number == 2
            assert await again.server.call("h-1", DRAIN, epoch=0, timeout_s=5) == wire.Done()
    finally:
        await running.__aexit__(None, None, None)


async def test_what_changed_wakes_and_what_did_not_does_not(tmp_path: Path) -> None:
    async with control(Book("join"), heartbeat_s=0.02) as there:
        agent = Agent(there.address, tmp_path)
        async with agent.running():
            await until(lambda: "h-1" in there.server.reports())
            woken = len(there.changes)
            await asyncio.sleep(0.2)
            assert len(there.changes) == woken
            agent.ready = True
            await until(lambda: there.server.reports()["h-1"].ready)
            assert len(there.changes) == woken + 1
        await until(lambda: len(there.changes) == woken + 2)


async def test_a_refused_agent_gives_up(tmp_path: Path) -> None:
    async with control(Book("join")) as there:
        agent = Agent(there.address, tmp_path, ticket="guess")
        with pytest.raises(Denied, match="unknown join token"):
            await agent.link.run()
