"""The service on a real store, and its snapshots on their way to edges over unix sockets."""

import asyncio
import shutil
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest

from roost.adapters.store.sqlite.store import open_store
from roost.gateway.model import (
    EdgeEvent,
    HoldWaiting,
    Host,
    HostDataUp,
    RouteSnapshot,
    Tcp,
    Unix,
)
from roost.gateway.publisher import Publisher
from roost.gateway.receiver import RouteReceiver
from roost.gateway.router import EdgeRouter
from roost.gateway.service import GatewayService
from roost.gateway.streams import DataHosts
from roost.kit.ids import SeededIds
from roost.ports import wire
from roost.ports.errors import StaleEpoch
from roost.ports.store import Store

PLACE = Host(host_id="i-1", service="kernel/s-1")


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[Store]:
    opened = open_store(tmp_path / "control.sqlite")
    yield opened
    await opened.close()


@pytest.fixture
def run_dir() -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix="rt-", dir="/tmp"))
    yield folder
    shutil.rmtree(folder)


async def test_hold_then_point_then_move(store: Store) -> None:
    gateway = GatewayService(store)
    await gateway.hold("kernel/s-1", epoch=0, tokens=("aa",))
    assert gateway.snapshot().routes[0].state == "hold"
    await gateway.point("kernel/s-1", PLACE, epoch=1)
    await gateway.point("n/s-1", Unix(path="/x.sock"), epoch=1, hold_s=5.0)
    first = gateway.snapshot()
    route = gateway.route("kernel/s-1")
    assert route is not None
    assert route.target == PLACE
    assert route.tokens == ("aa",), "what is not given stays"
    assert route.prefix == "/_roost/kernel/s-1"
    again = GatewayService(store)
    assert await again.load() == first
    await again.hold("kernel/s-1", epoch=2)
    with pytest.raises(StaleEpoch):
        await gateway.point("kernel/s-1", PLACE, epoch=1)
    assert (await gateway.load()).version > first.version


async def test_a_removed_route_is_not_revived_by_an_old_writer(store: Store) -> None:
    gateway = GatewayService(store)
    await gateway.point("kernel/s-1", PLACE, epoch=4)
    await gateway.remove("kernel/s-1")
    await gateway.remove("kernel/s-1")
    await gateway.remove("unknown")
    assert gateway.snapshot().routes == ()
    with pytest.raises(StaleEpoch):
        await gateway.point("kernel/s-1", PLACE, epoch=3)
    await gateway.point("kernel/s-1", PLACE, epoch=5)
    assert len(gateway.snapshot().routes) == 1


async def test_writes_at_once_all_count(store: Store) -> None:
    one, two = GatewayService(store), GatewayService(store)
    await asyncio.gather(
        *(service.hold(f"n/{n}", epoch=0) for n in range(20) for service in (one, two))
    )
    assert len((await one.load()).routes) == 20


async def test_the_same_again_is_not_published(store: Store) -> None:
    published: list[RouteSnapshot] = []

    async def publish(snapshot: RouteSnapshot, wait_s: float) -> int:
        published.append(snapshot)
        return 1

    gateway = GatewayService(store, publish)
    await gateway.hold("a", epoch=0)
    await gateway.hold("a", epoch=0)
    assert len({snapshot.version for snapshot in published}) == 1


class EdgeEnd:
    """The receiving half of an edge."""

    def __init__(self, run_dir: Path, index: int = 0) -> None:
        self.router = EdgeRouter(SeededIds(1))

        async def answer(message: wire.DataToEdge) -> wire.DataToAgent:
            raise AssertionError

        self.router.hosts = DataHosts(
            b"s", SeededIds(2), answer, lambda: None, lambda host, up: None
        )
        self.receiver = RouteReceiver(
            self.router, run_dir / f"edge-{index}.sock", run_dir / "routes.json"
        )


async def until(condition: Callable[[], bool], seconds: float = 10.0) -> None:
    loop = asyncio.get_running_loop()
    end = loop.time() + seconds
    while not condition():
        assert loop.time() < end, "not in time"
        await asyncio.sleep(0.02)


async def test_edges_get_each_snapshot_and_keep_it(store: Store, run_dir: Path) -> None:
    events: list[EdgeEvent] = []
    gateway = GatewayService(store)
    publisher = Publisher(run_dir, events.append)
    gateway.attach(publisher.publish)
    publisher.start()
    await gateway.point("api", Tcp(host="127.0.0.1", port=1), epoch=0)  # no edge: does not wait
    one, two = EdgeEnd(run_dir, 0), EdgeEnd(run_dir, 1)
    await one.receiver.listen()
    await two.receiver.listen()
    await until(lambda: publisher.connected == 2)
    await gateway.point("kernel/s-1", PLACE, epoch=1)
    for end in (one, two):  # acknowledged when `point` returned
        assert end.router.table.by_name["kernel/s-1"].target == PLACE
    one.receiver.tell(HoldWaiting(name="kernel/s-1"))
    two.receiver.tell(HostDataUp(host_id="i-1"))
    await until(lambda: len(events) == 2)
    assert set(events) == {HoldWaiting(name="kernel/s-1"), HostDataUp(host_id="i-1")}
    # One edge ends: others are not waited for in vain, and its successor reads the file.
    await one.receiver.close()
    await until(lambda: publisher.connected == 1)
    reborn = EdgeEnd(run_dir, 0)
    reborn.receiver.load()
    assert reborn.router.table.by_name["kernel/s-1"].target == PLACE
    await gateway.hold("kernel/s-1", epoch=2)
    await reborn.receiver.listen()
    await until(lambda: reborn.router.table.by_name["kernel/s-1"].epoch == 2)
    # Control's successor may be behind: epochs at the edge do not fall.
    stale = RouteSnapshot(version=999, routes=(gateway.snapshot().routes[0],))
    old = await GatewayService(store).load()
    assert old.version < stale.version
    await publisher.close()
    await reborn.receiver.close()
    await two.receiver.close()


async def test_a_dead_edge_does_not_stop_control(store: Store, run_dir: Path) -> None:
    async def deaf(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    server = await asyncio.start_unix_server(deaf, str(run_dir / "edge-0.sock"))
    publisher = Publisher(run_dir)
    publisher.start()
    await until(lambda: publisher.connected == 1)
    assert await publisher.publish(RouteSnapshot(version=1), wait_s=0.1) == 0
    await publisher.close()
    server.close()


def test_an_unreadable_route_file_is_not_fatal(
    run_dir: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (run_dir / "routes.json").write_text('{"half')
    end = EdgeEnd(run_dir)
    end.receiver.load()
    assert end.router.table.by_name == {}
    assert "waiting for control" in caplog.text


async def test_garbage_on_the_route_socket_changes_nothing(run_dir: Path) -> None:
    end = EdgeEnd(run_dir)
    await end.receiver.listen()
    reader, writer = await asyncio.open_unix_connection(str(run_dir / "edge-0.sock"))
    writer.write(b"\x00\x00\x00\x04junk")
    assert await asyncio.wait_for(reader.read(), 5) == b""
    writer.close()
    assert end.router.table.by_name == {}
    await end.receiver.close()
