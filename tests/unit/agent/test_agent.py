"""The agent with fakes at its ports: starts, fences, captures, adoption."""

import asyncio
import contextlib
import json
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from roost.agent.service import Agent
from roost.ports import checkpoint as checkpoints
from roost.ports import keeper as k
from roost.ports import wire
from roost.ports.errors import Gone, Never, Retry, RoostError, StaleEpoch
from roost.ports.kernels import Checkpoint, FileChange, KernelOrder, KernelUp
from roost.ports.values import Notice, NoticeKind

from .fakes import Host, MemoryBlobs, digest_of, until


@pytest.fixture
def short() -> AsyncIterator[Path]:
    with tempfile.TemporaryDirectory(prefix="rt-", dir="/tmp") as folder:
        yield Path(folder)


@pytest.fixture
async def host(short: Path) -> AsyncIterator[Host]:
    made = Host(short, MemoryBlobs())
    yield made
    await made.end()


def order(
    epoch: int = 1, checkpoint: str = "", *files: FileChange, session: str = "s-1"
) -> KernelOrder:
    return KernelOrder(
        session_id=session, epoch=epoch, key="key", checkpoint=checkpoint, files=files
    )


async def do(agent: Agent, body: wire.CommandBody, epoch: int = 0) -> wire.ReplyBody:
    return await agent.handle(wire.Command(id="c", body=body, epoch=epoch))


async def start(agent: Agent, wanted: KernelOrder) -> KernelUp:
    reply = await do(agent, wire.StartKernel(order=wanted), wanted.epoch)
    assert isinstance(reply, wire.Started)
    return reply.up


async def capture(agent: Agent, epoch: int = 1, budget_s: float = 10.0) -> Checkpoint:
    reply = await do(agent, wire.CaptureNow(session_id="s-1", budget_s=budget_s), epoch)
    assert isinstance(reply, wire.CaptureDone)
    return reply.checkpoint


async def test_a_fresh_kernel_and_the_same_order_again(host: Host) -> None:
    async with host.agent() as agent:
        up, again = await asyncio.gather(start(agent, order()), start(agent, order()))
        assert up == again == await start(agent, order())
        assert (up.epoch, up.warm) == (1, False)
        assert len(host.driver.keepers) == 1
        assert host.workspace().is_dir()
        (task,) = agent.report().tasks
        assert (task.kind, task.session_id, task.epoch, task.state) == ("kernel", "s-1", 1, "ready")


async def test_the_standby_kernel_is_taken(host: Host) -> None:
    async with host.agent() as agent:
        await asyncio.gather(*(do(agent, wire.Warm(imports=("json",))) for _ in range(3)))
        (task,) = agent.report().tasks
        assert (task.kind, task.state, task.imports) == ("standby", "ready", ("json",))
        up = await start(agent, order())
        assert up.warm
        assert up.task_id == task.task_id
        assert len(host.driver.keepers) == 1


async def test_two_sessions_never_get_one_standby(host: Host) -> None:
    async with host.agent() as agent:
        await do(agent, wire.Warm())
        ups = await asyncio.gather(
            start(agent, order(session="s-1")), start(agent, order(session="s-2"))
        )
        assert sorted(up.warm for up in ups) == [False, True]
        assert len({up.task_id for up in ups}) == 2
        more = await asyncio.gather(*(start(agent, order(session=f"x-{n}")) for n in range(6)))
        assert len({up.task_id for up in more}) == 6
        assert len(host.driver.keepers) == 8


async def test_not_before_the_environment_is_in_place(host: Host) -> None:
    (host.folder / "env.json").write_text('{"ready": false, "detail": "linking"}')
    async with host.agent() as agent:
        assert not agent.report().ready
        with pytest.raises(Retry, match="linking"):
            await start(agent, order())
        (host.folder / "env.json").write_text('{"ready": true}')
        assert (await start(agent, order())).epoch == 1
        await until(lambda: agent.report().ready)


async def test_a_session_moves_with_variables_files_and_spool(host: Host, short: Path) -> None:
    (short / "b").mkdir()
    target = Host(short / "b", host.blobs)
    async with host.agent() as one, target.agent() as other:
        await start(one, order())
        keeper = host.driver.of("s-1")
        keeper.variables = {"x": b"41", "big": b"z" * 100_000}
        data = host.workspace() / "out" / "data.csv"
        data.parent.mkdir()
        data.write_bytes(b"a,b\n1,2\n")
        mtime = data.stat().st_mtime_ns
        await do(one, wire.Fence(session_id="s-1"), 1)
        assert one.report().tasks[0].state == "fenced"
        checkpoint = await capture(one)
        assert checkpoint.imports == ("json",)
        assert host.heard(wire.Checkpointed) == [wire.Checkpointed(checkpoint=checkpoint)]
        assert keeper.durable == [1]
        assert one.report().tasks[0].checkpoint == checkpoint

        await do(other, wire.Warm())
        changes = (
            FileChange(seq=1, op="write", path="late.txt", digest=digest_of(b"later"), mtime_s=5.0),
            FileChange(seq=2, op="mkdir", path="more"),
            FileChange(seq=3, op="rename", path="late.txt", to="more/late.txt"),
        )
        await host.blobs.put(digest_of(b"later"), b"later")
        up = await start(other, order(2, checkpoint.digest, *changes))
        assert up.warm
        assert up.bytes_fetched > 100_000
        assert {v.name for v in up.report.variables} == {"x", "big"}
        arrived = target.driver.of("s-1")
        assert arrived.variables == keeper.variables
        assert arrived.order is not None
        assert arrived.order.finished == ("m-1",)
        assert [o.frames for o in arrived.order.spool] == [(b"out",)]
        moved = target.workspace() / "out" / "data.csv"
        assert moved.read_bytes() == b"a,b\n1,2\n"
        assert moved.stat().st_mtime_ns == mtime
        assert (target.workspace() / "more" / "late.txt").read_bytes() == b"later"

        # And back: the old host has its chunks still, and none of its old files.
        arrived.variables["y"] = b"new"
        moved.unlink()
        await do(other, wire.Fence(session_id="s-1"), 2)
        back = await capture(other, 2)
        await do(one, wire.StopKernel(session_id="s-1"), 1)
        home = await start(one, order(3, back.digest))
        assert home.bytes_fetched < 5_000
        assert host.driver.of("s-1").variables["y"] == b"new"
        assert not data.exists()
    await target.end()


async def test_epochs_fence(host: Host) -> None:
    async with host.agent() as agent:
        await start(agent, order(3))
        for body in (wire.Fence(session_id="s-1"), wire.StopKernel(session_id="s-1")):
            with pytest.raises(StaleEpoch):
                await do(agent, body, 2)
        with pytest.raises(StaleEpoch):
            await start(agent, order(2))
        with pytest.raises(Gone):
            await do(agent, wire.Fence(session_id="s-9"), 1)
        await do(agent, wire.Fence(session_id="s-1"), 3)
        with pytest.raises(StaleEpoch):
            await start(agent, order(3))
        # The move was called off: the kernel goes on at the next epoch, with its memory.
        host.driver.of("s-1").variables = {"x": b"1"}
        up = await start(agent, order(4))
        assert up.warm
        assert host.driver.of("s-1").status.epoch == 4
        await do(agent, wire.StopKernel(session_id="s-1"), 4)
        await do(agent, wire.StopKernel(session_id="s-1"), 4)
        assert host.driver.keepers == {}
        with pytest.raises(StaleEpoch):
            await start(agent, order(4))


async def test_what_is_over_stays_over_after_a_restart_of_the_agent(host: Host) -> None:
    async with host.agent() as agent:
        await start(agent, order(3))
        await do(agent, wire.StopKernel(session_id="s-1"), 3)
    async with host.agent() as agent:
        with pytest.raises(StaleEpoch):
            await start(agent, order(3))
        assert (await start(agent, order(4))).epoch == 4


@pytest.mark.parametrize("body", [wire.StopKernel(session_id="s-1"), wire.Fence(session_id="s-1")])
async def test_a_fence_during_a_start_wins(host: Host, body: wire.CommandBody) -> None:
    async with host.agent() as agent:
        await do(agent, wire.Warm())
        (keeper,) = host.driver.keepers.values()
        keeper.adopting = asyncio.Event()
        starting = asyncio.create_task(start(agent, order(1)))
        await until(lambda: any(isinstance(a, k.Adopt) for a in keeper.asked))
        with pytest.raises(StaleEpoch):
            await do(agent, body, 0)
        stopping = asyncio.create_task(do(agent, body, 1))
        with pytest.raises(StaleEpoch):
            await starting
        keeper.adopting.set()
        with contextlib.suppress(Gone):  # what a fence says of a kernel that never came
            await stopping
        assert host.driver.keepers == {}
        assert agent.report().tasks == ()
        with pytest.raises(StaleEpoch):
            await start(agent, order(1))


async def test_a_failed_restore_leaves_no_task_behind(host: Host) -> None:
    async with host.agent() as agent:
        await do(agent, wire.Warm())
        (keeper,) = host.driver.keepers.values()
        keeper.refuse_adopt = Never("no")
        with pytest.raises(Never):
            await start(agent, order())
        assert host.driver.keepers == {}
        with pytest.raises(Gone):
            await start(agent, order(1, "0" * 64))
        assert host.driver.keepers == {}
        assert (await start(agent, order())).epoch == 1


async def test_only_missing_chunks_travel(host: Host) -> None:
    async with host.agent() as agent:
        await start(agent, order())
        keeper = host.driver.of("s-1")
        keeper.variables = {"a": b"a" * 50_000, "b": b"b" * 50_000}
        (host.workspace() / "f.bin").write_bytes(b"f" * 50_000)
        first = await capture(agent)
        assert first.bytes_moved > 150_000
        keeper.variables["b"] = b"c" * 1_000
        host.blobs.puts.clear()
        second = await capture(agent)
        assert second.bytes_moved < 5_000
        assert len(host.blobs.puts) == 2  # the changed chunk and the checkpoint itself
        blob = checkpoints.decode(host.blobs.content[second.digest])
        assert set(blob.digests()) <= set(host.blobs.content)
        assert blob.workspace["f.bin"].size == 50_000
        assert (second.number, second.epoch) == (2, 1)


async def test_chunks_come_ahead_and_old_ones_go(host: Host, short: Path) -> None:
    (short / "b").mkdir()
    target = Host(short / "b", host.blobs)
    async with host.agent() as one, target.agent() as other:
        await start(one, order())
        keeper = host.driver.of("s-1")
        keeper.variables = {"a": b"a" * 50_000, "b": b"b" * 50_000}
        first = await capture(one)
        await do(other, wire.Prefetch(session_id="s-1", checkpoint=first.digest))
        chunks = Path(target.folder, "captures", "s-1", "chunks")
        before = {path.name for path in chunks.iterdir()}
        assert sum(path.stat().st_size for path in chunks.iterdir()) >= 100_000
        keeper.variables["b"] = b"c" * 1_000
        second = await capture(one)
        with pytest.raises(Gone):
            await do(other, wire.Prefetch(session_id="s-1", checkpoint="0" * 64))
        await do(other, wire.Prefetch(session_id="s-1", checkpoint=second.digest))
        assert {path.name for path in chunks.iterdir()} != before
        assert sum(path.stat().st_size for path in chunks.iterdir()) < 100_000
        await do(one, wire.Fence(session_id="s-1"), 1)
        up = await start(other, order(2, second.digest))
        assert up.bytes_fetched < 5_000
        assert target.driver.of("s-1").variables == keeper.variables
        # The session is here now: nothing is taken from under it.
        await do(other, wire.Prefetch(session_id="s-1", checkpoint=first.digest))
        assert sum(path.stat().st_size for path in chunks.iterdir()) < 100_000
    await target.end()


async def test_a_restore_takes_the_place_of_what_comes_ahead(host: Host, short: Path) -> None:
    (short / "b").mkdir()
    target = Host(short / "b", host.blobs)
    async with host.agent() as one, target.agent() as other:
        await start(one, order())
        host.driver.of("s-1").variables = {f"v{i}": bytes([i]) * 9_000 for i in range(40)}
        made = await capture(one)
        ahead = asyncio.create_task(
            do(other, wire.Prefetch(session_id="s-1", checkpoint=made.digest))
        )
        await asyncio.sleep(0)
        await start(other, order(2, made.digest))
        assert len(target.driver.of("s-1").variables) == 40
        await asyncio.gather(ahead, return_exceptions=True)
    await target.end()


async def test_background_captures_are_coalesced_and_told(host: Host) -> None:
    async with host.agent() as agent:
        await start(agent, order())
        keeper = host.driver.of("s-1")
        host.blobs.gate = asyncio.Event()
        for number in range(10):
            keeper.variables = {"n": b"%d" % number * 100}
            keeper.tell(k.CaptureReady(capture=keeper.make_capture()))
            await asyncio.sleep(0.01)
        host.blobs.gate.set()
        await until(lambda: 10 in keeper.durable)
        told = [e.checkpoint.number for e in host.heard(wire.Checkpointed)]  # type: ignore[union-attr]
        assert told[-1] == 10
        assert len(told) <= 3
        keeper.tell(k.CaptureReady(capture=keeper.make_capture()))
        await until(lambda: 11 in keeper.durable)


async def test_a_full_blob_store_is_told_and_the_session_goes_on(host: Host) -> None:
    async with host.agent() as agent:
        await start(agent, order())
        keeper = host.driver.of("s-1")
        keeper.variables = {"x": b"1"}
        host.blobs.full = True
        with pytest.raises(Retry, match="full"):
            await capture(agent)
        keeper.tell(k.CaptureReady(capture=keeper.make_capture()))
        await until(lambda: host.heard(wire.CaptureFailed))
        failed = host.heard(wire.CaptureFailed)[0]
        assert isinstance(failed, wire.CaptureFailed)
        assert "full" in failed.reason
        assert agent.report().tasks[0].state == "ready"
        host.blobs.full = False
        keeper.tell(k.CaptureReady(capture=keeper.make_capture()))
        await until(lambda: host.heard(wire.Checkpointed))
        keeper.tell(k.CaptureNotMade(reason="No space left on device"))
        await until(lambda: len(host.heard(wire.CaptureFailed)) >= 2)


async def test_a_capture_keeps_to_its_budget(host: Host) -> None:
    async with host.agent() as agent:
        await start(agent, order())
        host.blobs.gate = asyncio.Event()
        with pytest.raises(Retry, match="within"):
            await capture(agent, budget_s=0.2)
        host.blobs.gate.set()
        assert (await capture(agent)).number == 2


async def test_what_is_left_out_is_said(host: Host) -> None:
    async with host.agent() as agent:
        await start(agent, order())
        (host.workspace() / "away").symlink_to("/etc/hostname")
        checkpoint = await capture(agent)
        assert [v.name for v in checkpoint.refused] == ["file away"]
        assert "leads out" in checkpoint.refused[0].reason


async def test_a_restarted_agent_adopts_and_hears_the_last_capture(host: Host) -> None:
    async with host.agent() as agent:
        up = await start(agent, order())
        await do(agent, wire.Warm(imports=("json",)))
        first = await capture(agent)
    keeper = host.driver.of("s-1")
    keeper.variables = {"x": b"while the agent was away"}
    keeper.last = keeper.make_capture()
    async with host.agent() as agent:
        tasks = {t.kind: t for t in agent.report().tasks}
        assert tasks["kernel"].task_id == up.task_id
        assert tasks["kernel"].checkpoint == first
        assert tasks["standby"].imports == ("json",)
        assert (await start(agent, order())).task_id == up.task_id
        assert len(host.driver.keepers) == 2
        await until(lambda: 2 in keeper.durable)


async def test_a_dead_keeper_is_told(host: Host) -> None:
    async with host.agent() as agent:
        up = await start(agent, order())
        await do(agent, wire.Warm())
        await host.driver.kill(up.task_id)
        await until(lambda: host.heard(wire.TaskEnded))
        ended = host.heard(wire.TaskEnded)
        assert ended == [wire.TaskEnded(session_id="s-1", epoch=1, exit_code=-9)]
        dead = [t for t in agent.report().tasks if t.kind == "kernel"]
        assert dead[0].state == "dead"
        with pytest.raises(Gone):
            await start(agent, order(1))
        assert (await start(agent, order(2))).epoch == 2
        assert [t.epoch for t in agent.report().tasks if t.kind == "kernel"] == [2]


async def test_a_kernel_that_ended_by_itself_is_told(host: Host) -> None:
    async with host.agent() as agent:
        await start(agent, order())
        keeper = host.driver.of("s-1")
        keeper.tell(k.KernelEnded(exit_code=-11))
        await until(lambda: host.heard(wire.TaskEnded))
        keeper.set_state("busy")
        await until(lambda: agent.report().tasks[0].state == "busy")


async def test_a_notice_is_told_once(host: Host) -> None:
    async with host.agent() as agent:
        notice = Notice(kind=NoticeKind.INTERRUPTION, seen_s=1.0, deadline_s=120.0, source="x")
        host.notices.notice = notice
        await until(lambda: host.heard(wire.Noticed))
        host.notices.notice = Notice(
            kind=NoticeKind.INTERRUPTION, seen_s=2.0, deadline_s=120.0, source="x"
        )
        await asyncio.sleep(1.2)
        assert host.heard(wire.Noticed) == [wire.Noticed(notice=notice)]
        assert agent.report().notice == notice


async def test_draining_ends_every_task(host: Host) -> None:
    async with host.agent() as agent:
        await start(agent, order())
        await do(agent, wire.Warm())
        await do(agent, wire.Drain())
        assert host.driver.keepers == {}
        assert not agent.report().ready
        with pytest.raises(Gone):
            await start(agent, order(2))


async def test_packages_that_differ_are_told(short: Path) -> None:
    def environment(name: str, *pins: tuple[str, str]) -> str:
        site = short / name / "lib" / "python3.11" / "site-packages"
        site.mkdir(parents=True)
        for package, version in pins:
            (site / f"{package}-{version}.dist-info").mkdir()
        (short / name / "bin").mkdir()
        return str(short / name)

    blobs = MemoryBlobs()
    (short / "a").mkdir()
    (short / "b").mkdir()
    one = Host(short / "a", blobs, environment("e1", ("alpha", "1.0"), ("beta_x", "2.0")))
    other = Host(short / "b", blobs, environment("e2", ("alpha", "1.0")))
    async with one.agent() as agent, other.agent() as far:
        await start(agent, order())
        checkpoint = await capture(agent)
        blob = checkpoints.decode(blobs.content[checkpoint.digest])
        assert blob.environment == ("alpha==1.0", "beta-x==2.0")
        await do(far, wire.Warm())
        up = await start(far, order(2, checkpoint.digest))
        assert not up.warm  # its imports were of other packages
        told = [v for v in up.report.variables if v.name.startswith("package")]
        assert [(v.name, v.outcome) for v in told] == [("package beta-x==2.0", "refused")]
        assert told[0].reason
    await one.end()
    await other.end()


async def test_services_open_by_name_and_epoch(host: Host) -> None:
    async with host.agent() as agent:
        await start(agent, order(2))
        with pytest.raises(StaleEpoch):
            await agent.open(wire.Open(service="kernel/s-1", epoch=1))
        with pytest.raises(Retry):
            await agent.open(wire.Open(service="kernel/s-1", epoch=3))
        for service in ("kernel/", "nonsense", "port/x", "shell/x", "files"):
            with pytest.raises(RoostError):
                await agent.open(wire.Open(service=service))
        with pytest.raises(Gone):
            await agent.open(wire.Open(service="port/1"))
        stream = await agent.open(wire.Open(service="kernel/s-1", epoch=2))
        assert isinstance(stream, tuple)
        stream[1].close()
        assert callable(await agent.open(wire.Open(service="files/s-1", epoch=2)))
        await do(agent, wire.Fence(session_id="s-1"), 2)
        with pytest.raises(StaleEpoch):
            await agent.open(wire.Open(service="files/s-1", epoch=2))


def test_the_checkpoint_format_refuses_what_it_does_not_know() -> None:
    blob = checkpoints.CheckpointBlob(session_id="s", epoch=1, number=1, engine=b"")
    assert checkpoints.decode(checkpoints.encode(blob)) == blob
    newer = checkpoints.CheckpointBlob(session_id="s", epoch=1, number=1, engine=b"", format=99)
    with pytest.raises(Never, match="newer"):
        checkpoints.decode(checkpoints.encode(newer))
    with pytest.raises(Never):
        checkpoints.decode(json.dumps({"no": 1}).encode())
