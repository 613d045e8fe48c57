"""A state directory in /tmp, real instances on it, and a check that nothing of them is left."""

import asyncio
import json
import shutil
import sys
import tempfile
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from roost.adapters.clock import SystemClock
from roost.adapters.providers.local import LocalProvider, cgroups, processes, records
from roost.ports.provider import Order
from roost.ports.values import Image, Offer, PurchaseOption, Resources

AGENT = """
import json, os, pathlib, time
work = pathlib.Path(os.environ["ROOST_INSTANCE_DIR"], "work")
def entry(pid):
    try: return open(f"/proc/{pid}/cmdline").read()
    except OSError: return ""
seen = {"env": dict(os.environ), "pid": os.getpid(), "ppid": os.getppid(), "cwd": os.getcwd(),
        "processes": {pid: entry(pid) for pid in os.listdir("/proc") if pid.isdigit()}}
part = work / f"{time.monotonic_ns()}.part"
part.write_text(json.dumps(seen))
part.rename(work / f"seen-{time.monotonic_ns()}.json")
time.sleep(600)
"""


class World:
    """One state directory and what tests ask of it."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.clock = SystemClock()
        self.tag = root.name.removeprefix("rt-").replace("_", "-")
        self.orders: list[Order] = []

    def provider(self, agent: str = AGENT, **options: Any) -> LocalProvider:
        """A provider object; ``agent`` is Python source."""
        options.setdefault("uv", "/bin/false")
        argv = (sys.executable, "-c", agent)
        return LocalProvider(self.root, clock=self.clock, agent_argv=argv, **options)

    def order(self, name: str = "a", **changes: Any) -> Order:
        """An order for a small instance of ``cloud``."""
        offer = Offer(
            provider=changes.get("cloud", "aws"),
            region="ap-northeast-2",
            zone="apne2-az1",
            instance_type="m5.xlarge",
            purchase_option=PurchaseOption.SPOT,
            price_usd_hour=0.06,
            on_demand_usd_hour=0.2,
            resources=Resources(vcpus=4, memory_gib=changes.get("memory_gib", 16)),
        )
        order = Order(
            token=f"token-{name}",
            host_id=f"i-{self.tag}-{name}",
            offer=offer,
            image=changes.get("image", Image(name="none", python="")),
            join_token="the-join-token",
            link_address="127.0.0.1:1",
        )
        self.orders.append(order)
        return order

    def folder(self, order: Order) -> Path:
        return self.root / "instances" / order.host_id

    async def agents(self, order: Order, count: int = 1) -> list[dict[str, Any]]:
        """What the first ``count`` agents of the instance wrote."""
        work = self.folder(order) / "work"
        await eventually(lambda: len(list(work.glob("seen-*.json"))) >= count)
        found = sorted(work.glob("seen-*.json"), key=lambda path: int(path.stem.split("-")[1]))
        return [json.loads(path.read_text()) for path in found]

    def host(self, order: Order) -> records.HostFile:
        file = records.read(self.folder(order) / "host.json", records.HostFile)
        assert file is not None
        return file

    def isolation(self, order: Order) -> records.Isolation:
        found = records.read(self.folder(order) / "isolation.json", records.Isolation)
        assert found is not None
        return found

    def assert_nothing_left(self, order: Order) -> None:
        """No process, no cgroup, no disk, no run folder."""
        assert processes.marked(order.host_id) == []
        assert [c for c in self.isolation(order).cgroups if Path(c).exists()] == []
        record = records.read(self.folder(order) / "instance.json", records.Record)
        assert record is not None
        assert not Path(record.run_dir).exists()
        left = {path.name for path in self.folder(order).iterdir()}
        assert left <= records.KEPT


async def eventually(
    condition: Callable[[], bool] | Callable[[], Awaitable[bool]], limit_s: float = 30.0
) -> None:
    """Wait until the condition holds."""
    until = asyncio.get_running_loop().time() + limit_s
    while True:
        found = condition()
        if found if isinstance(found, bool) else await found:
            return
        assert asyncio.get_running_loop().time() < until, "waited in vain"
        await asyncio.sleep(0.02)


@pytest.fixture
def world() -> Iterator[World]:
    root = Path(tempfile.mkdtemp(prefix="rt-", dir="/tmp"))
    world = World(root)
    yield world

    async def end() -> None:
        if (root / "instances").is_dir():
            provider = world.provider()
            for seen in await provider.instances():
                await provider.terminate(seen.provider_id)

    asyncio.run(end())
    for order in world.orders:
        processes.sweep(order.host_id)
        found = records.read(world.folder(order) / "isolation.json", records.Isolation)
        cgroups.remove(found.cgroups if found else ())
    shutil.rmtree(root)
