"""What the Docker driver does beyond the contract, on a real engine; skipped, and said why, without."""

import asyncio
import os
import secrets
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import aiodocker
import pytest

from roost.adapters.clock import SystemClock
from roost.adapters.drivers.docker import DockerDriver
from roost.adapters.drivers.docker.driver import KEEP_ENDED_S
from roost.adapters.providers.local.processes import sweep
from roost.ports.driver import TaskLimits, TaskOrder
from roost.ports.errors import Invalid, Never, Retry
from tests.support.docker import need_engine

LIMIT_S = 20.0


class Later(SystemClock):
    """A clock that is ahead."""

    def now_s(self) -> float:
        return super().now_s() + KEEP_ENDED_S + 60.0


class Host:
    """A driver, and what it is called."""

    def __init__(self, image: str) -> None:
        self.name = f"test-{secrets.token_hex(4)}"
        self.image = image
        self.driver = DockerDriver(
            self.name, clock=SystemClock(), marks={"ROOST_INSTANCE": self.name}, pull_s=20.0
        )

    def order(self, *argv: str, **more: object) -> TaskOrder:
        asked = {"task_id": "a", "argv": argv, "image": self.image, **more}
        return TaskOrder(**asked)  # type: ignore[arg-type]

    async def gone(self) -> None:
        async with asyncio.timeout(LIMIT_S):
            while await self.driver.alive("a"):  # noqa: ASYNC110
                await asyncio.sleep(0.02)


@pytest.fixture
async def host() -> AsyncIterator[Host]:
    made = Host(need_engine())
    yield made
    for name in ("a", "b"):
        await made.driver.stop(name, grace_s=0.0)
    await made.driver.close()


async def test_a_process_that_dies_leaves_its_container_to_the_next(host: Host) -> None:
    code = (
        "import asyncio, os\n"
        "from roost.adapters.clock import SystemClock\n"
        "from roost.adapters.drivers.docker import DockerDriver\n"
        "from roost.ports.driver import TaskOrder\n"
        f"driver = DockerDriver({host.name!r}, clock=SystemClock())\n"
        f"order = TaskOrder(task_id='a', argv=('sleep', '600'), image={host.image!r})\n"
        "asyncio.run(driver.start(order))\n"
        "os.kill(os.getpid(), 9)\n"
    )
    done = await asyncio.to_thread(subprocess.run, [sys.executable, "-c", code], check=False)
    assert done.returncode == -signal.SIGKILL
    assert [handle.task_id for handle in await host.driver.recover()] == ["a"]
    assert "vcpus" in host.driver.held and "memory_mib" in host.driver.held


async def test_limits_are_real(host: Host) -> None:
    limits = TaskLimits(vcpus=0.25, memory_mib=64)
    code = (
        "from pathlib import Path\n"
        "for name in ('cpu/cpu.cfs_quota_us', 'cpu.max', 'memory/memory.limit_in_bytes', 'memory.max'):\n"
        "    path = Path('/sys/fs/cgroup') / name\n"
        "    print(name, path.read_text().split()[0] if path.exists() else '', flush=True)\n"
        "hold = bytearray(200 << 20)\n"
    )
    await host.driver.start(host.order("python3", "-c", code, limits=limits))
    await host.gone()
    said = await host.driver.logs("a", tail_bytes=2000)
    assert " 25000\n" in said and f" {64 << 20}\n" in said
    assert await host.driver.ended("a") == 128 + signal.SIGKILL
    assert "more memory than its limit" in said


async def test_the_end_of_a_local_instance_takes_its_containers_along(host: Host) -> None:
    await host.driver.start(host.order("sleep", "600"))
    await asyncio.to_thread(sweep, host.name)
    await host.gone()


async def test_an_image_that_cannot_be_had_says_so(host: Host) -> None:
    with pytest.raises(Never, match="not on this host and cannot be pulled"):
        await host.driver.start(host.order("true", image="roost.invalid/nothing"))
    with pytest.raises(Invalid, match="invalid reference format"):
        await host.driver.start(host.order("true", image="No Name"))
    assert await host.driver.recover() == []


async def test_a_program_that_is_not_in_the_image_is_told(host: Host) -> None:
    await host.driver.start(host.order("/no/such/program"))
    await host.gone()
    assert await host.driver.ended("a") == 127
    assert "/no/such/program" in await host.driver.logs("a", tail_bytes=500)


async def test_a_published_port_that_is_taken_is_another_try(host: Host) -> None:
    more = {"address": "127.77.202.1", "port": 8231, "listens": 80}
    serve = ("python3", "-m", "http.server", "80")
    await host.driver.start(host.order(*serve, **more))
    async with asyncio.timeout(LIMIT_S):
        while not await _page("127.77.202.1", 8231):  # noqa: ASYNC110
            await asyncio.sleep(0.05)
    with pytest.raises(Retry, match="another port"):
        await host.driver.start(host.order(*serve, task_id="b", **more))
    assert [handle.task_id for handle in await host.driver.recover()] == ["a"]


async def test_two_starts_of_one_task_make_one_container(host: Host) -> None:
    order = host.order("sleep", "600")
    first, second = await asyncio.gather(host.driver.start(order), host.driver.start(order))
    assert first == second
    other = DockerDriver(host.name, clock=SystemClock())
    assert await other.start(order) == first
    await other.close()


async def test_a_folder_of_the_host_is_seen_inside(host: Host, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("seen")
    seen = DockerDriver(host.name, clock=SystemClock(), true_path={"/seen/as": str(tmp_path)})
    await seen.start(host.order("cat", "file", cwd="/seen/as", mounts=("/seen/as",)))
    await host.gone()
    assert await seen.logs("a", tail_bytes=100) == "seen"
    await seen.close()


async def test_what_lost_hosts_left_is_removed_and_nothing_else(host: Host) -> None:
    await host.driver.start(host.order("true"))
    await host.driver.start(host.order("sleep", "600", task_id="b"))
    await host.gone()
    stranger = f"stranger-{secrets.token_hex(4)}"
    async with aiodocker.Docker() as engine:
        config = {"Image": host.image, "Cmd": ["true"]}
        theirs = await engine.containers.run(config, name=stranger)
        await theirs.wait()
        soon = DockerDriver("test-other", clock=SystemClock())
        await soon.start(host.order("true"))
        assert await host.driver.ended("a") == 0
        late = DockerDriver("test-other", clock=Later())
        await late.start(host.order("true", task_id="b"))
        assert await host.driver.ended("a") == -1
        assert await host.driver.alive("b")
        assert (await theirs.show())["State"]["Status"] == "exited"
        await theirs.delete()
        for name in ("a", "b"):
            await soon.stop(name, grace_s=0.0)
        await soon.close()
        await late.close()


async def test_without_an_engine_it_says_what_to_do(tmp_path: Path) -> None:
    driver = DockerDriver("h", clock=SystemClock(), url=f"unix://{tmp_path}/none.sock")
    with pytest.raises(Retry, match="start its engine"):
        await driver.recover()
    await driver.close()
    assert driver.held == ()


async def test_an_engine_that_goes_away_is_another_try(host: Host, tmp_path: Path) -> None:
    """A relay in front of the engine, cut: what the driver knew of the engine is of no use then."""
    path = f"/tmp/rt-{secrets.token_hex(4)}.sock"
    relay = await asyncio.start_unix_server(_relay, path)
    driver = DockerDriver(host.name, clock=SystemClock(), url=f"unix://{path}")
    await driver.start(host.order("sleep", "600"))
    relay.close()
    Path(path).unlink(missing_ok=True)
    _cut()
    with pytest.raises(Retry):
        await driver.alive("a")
    relay = await asyncio.start_unix_server(_relay, path)
    assert await driver.alive("a")
    await driver.close()
    relay.close()
    _cut()
    Path(path).unlink(missing_ok=True)


_OPEN: set[asyncio.StreamWriter] = set()


def _cut() -> None:
    for writer in _OPEN:
        writer.transport.abort()
    _OPEN.clear()


async def _relay(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    socket = os.environ.get("DOCKER_HOST", "unix:///var/run/docker.sock").removeprefix("unix://")
    there, out = await asyncio.open_unix_connection(socket)
    _OPEN.update((writer, out))

    async def pump(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        try:
            while data := await source.read(1 << 16):
                sink.write(data)
                await sink.drain()
        except OSError:
            pass
        finally:
            sink.close()

    await asyncio.gather(pump(reader, out), pump(there, writer))


async def _page(address: str, port: int) -> bool:
    try:
        reader, writer = await asyncio.open_connection(address, port)
    except OSError:
        return False
    writer.write(b"GET / HTTP/1.0\r\n\r\n")
    try:
        return (await reader.read(20)).startswith(b"HTTP/1.0 200")
    except OSError:
        return False
    finally:
        writer.close()
