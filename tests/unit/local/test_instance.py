"""Local instances as real processes: what they see, how they end, what is left."""

import asyncio
import os
import signal
import sys
from pathlib import Path

import pytest

from roost.adapters.providers.local import namespaces, processes, records
from roost.adapters.providers.local.host import erase
from roost.adapters.providers.local.records import EnvFile
from roost.ports.errors import Conflict, Denied, Gone, Invalid, NoCapacity
from roost.ports.provider import InstanceState
from roost.ports.values import Image

from .conftest import World, eventually

MODES = pytest.mark.parametrize("mark", [False, True], ids=["namespaces", "mark"])
DRIVER = f"""
import asyncio, json, os, pathlib, sys, time
sys.path[:0] = {[path for path in sys.path if path]!r}
from roost.adapters.clock import SystemClock
from roost.adapters.drivers.process import ProcessDriver
from roost.ports.driver import TaskOrder
base = pathlib.Path(os.environ["ROOST_INSTANCE_DIR"])
async def main():
    driver = ProcessDriver(base / "tasks-of-driver", clock=SystemClock())
    recovered = await driver.recover()
    task = await driver.start(TaskOrder(task_id="kernel", argv=("sleep", "600")))
    seen = {{"pid": os.getpid(), "recovered": [t.pid for t in recovered], "task": task.pid}}
    part = base / "work" / "part"
    part.write_text(json.dumps(seen))
    part.rename(base / "work" / f"seen-{{time.monotonic_ns()}}.json")
asyncio.run(main())
time.sleep(600)
"""


def permitted(world: World) -> bool:
    base = world.root / "probe"
    (base / "self").mkdir(parents=True)
    return not namespaces.permitted(base, base / "self")


def test_what_is_about_to_be_replaced_outlives_the_disk(tmp_path: Path) -> None:
    (tmp_path / "work").mkdir()
    for name in ("instance.json", ".instance.json.77.part", ".env.json.77.part", "heartbeat"):
        (tmp_path / name).write_text("{}")
    erase(tmp_path, tmp_path / "run")
    left = sorted(path.name for path in tmp_path.iterdir())
    assert left == [".instance.json.77.part", "instance.json"]


async def test_an_instance_sees_itself_only(world: World) -> None:
    if not permitted(world):
        pytest.skip("namespaces are not permitted here")
    one, two = world.order("a"), world.order("b")
    provider = world.provider()
    await provider.launch(one)
    await provider.launch(two)
    (a,), (b,) = await world.agents(one), await world.agents(two)
    at = str(world.root / "instances" / "self")
    for order, seen in ((one, a), (two, b)):
        assert seen["ppid"] == 1
        assert len(seen["processes"]) <= 3  # the first process, the builder, the agent
        assert order.host_id in seen["processes"]["1"]
        env = seen["env"]
        assert env["ROOST_INSTANCE"] == env["ROOST_HOST_ID"] == order.host_id
        assert env["ROOST_INSTANCE_DIR"] == at
        assert env["HOME"] == f"{at}/home"
        assert env["TMPDIR"] == f"{at}/tmp"
        assert env["ROOST_ENV"] == env["VIRTUAL_ENV"] == f"{at}/env"
        assert env["ROOST_JOIN_TOKEN"] == "the-join-token"
        assert env["ROOST_PROVIDER"] == "aws"
        assert seen["cwd"] == f"{at}/work"
        assert Path(env["ROOST_RUN_DIR"]).stat().st_mode & 0o777 == 0o700
        assert len(env["ROOST_RUN_DIR"]) < 24
    assert a["env"]["ROOST_ADDRESS"] != b["env"]["ROOST_ADDRESS"]
    assert a["env"]["ROOST_ADDRESS"].startswith("127.77.")
    assert a["env"]["ROOST_METADATA"].startswith(f"http://{a['env']['ROOST_ADDRESS']}:")
    assert a["env"]["ROOST_RUN_DIR"] != b["env"]["ROOST_RUN_DIR"]


async def test_the_shells_secrets_stay_outside(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hidden")
    monkeypatch.setenv("ROOST_STATE_DIR", "/somewhere")
    order = world.order()
    await world.provider().launch(order)
    (seen,) = await world.agents(order)
    assert "AWS_SECRET_ACCESS_KEY" not in seen["env"]
    assert "ROOST_STATE_DIR" not in seen["env"]
    assert (world.folder(order) / "instance.json").stat().st_mode & 0o077 == 0


@MODES
async def test_terminate_removes_everything(world: World, mark: bool) -> None:
    # Tasks that fled into sessions of their own, ignore SIGTERM and write into HOME.
    agent = (
        "import os, signal, subprocess, time, pathlib\n"
        "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "for _ in range(3): subprocess.Popen(['sh', '-c', 'trap \"\" TERM; sleep 600'],"
        " start_new_session=True)\n"
        "home = pathlib.Path(os.environ['HOME'], 'deep'); home.mkdir(); (home / 'f').write_text('x')\n"
        "pathlib.Path(os.environ['TMPDIR'], 'begun').touch()\n"
        "time.sleep(600)"
    )
    provider, order = world.provider(agent, force_mark=mark), world.order()
    await provider.launch(order)
    await eventually((world.folder(order) / "tmp" / "begun").exists)
    assert len(processes.marked(order.host_id)) >= 8
    if mark:
        assert world.isolation(order).held_by[0] == "mark"
        assert "switched off" in world.isolation(order).missing[0]
    await provider.terminate(order.host_id)
    world.assert_nothing_left(order)


@MODES
@pytest.mark.parametrize("victim", ["host", "first"])
async def test_the_death_of_the_host_takes_everything(
    world: World, mark: bool, victim: str
) -> None:
    provider, order = world.provider(DRIVER, force_mark=mark), world.order()
    await provider.launch(order)
    await world.agents(order)
    host = world.host(order)
    died = world.clock.now_s()
    os.kill(host.pid if victim == "host" else host.first_pid, signal.SIGKILL)

    async def ended() -> bool:
        (seen,) = await provider.instances()
        return seen.state is InstanceState.TERMINATED

    await eventually(ended)
    (seen,) = await provider.instances()
    (line,) = await provider.ledger()
    assert seen.reason == "lost"
    assert line.ended_s == seen.ended_s
    assert seen.ended_s is not None
    assert abs(seen.ended_s - died) < 2.0
    world.assert_nothing_left(order)


async def test_namespace_children_die_at_once_with_the_host(world: World) -> None:
    if not permitted(world):
        pytest.skip("namespaces are not permitted here")
    order = world.order()
    await world.provider(DRIVER).launch(order)
    await world.agents(order)
    os.kill(world.host(order).pid, signal.SIGKILL)
    await eventually(lambda: processes.marked(order.host_id) == [], limit_s=5.0)


@MODES
async def test_a_killed_agent_comes_back_and_finds_its_task(world: World, mark: bool) -> None:
    provider, order = world.provider(DRIVER, force_mark=mark), world.order()
    await provider.launch(order)
    (first,) = await world.agents(order)
    assert first["recovered"] == []
    agents = [
        pid
        for pid in processes.marked(order.host_id)
        if b"tasks-of-driver" in Path(f"/proc/{pid}/cmdline").read_bytes()
        and pid not in (world.host(order).pid, world.host(order).first_pid)
        and b"roost.main.host" not in Path(f"/proc/{pid}/cmdline").read_bytes()
    ]
    assert len(agents) == 1
    os.kill(agents[0], signal.SIGKILL)
    first, second = await world.agents(order, count=2)
    assert second["pid"] != first["pid"]
    assert second["recovered"] == [first["task"]] == [second["task"]]


async def test_a_crash_between_record_and_start_is_finished_by_the_next(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    provider, order = world.provider(), world.order()
    monkeypatch.setattr(provider, "_boot_if_absent", lambda _record: None)
    await provider.launch(order)
    assert processes.marked(order.host_id) == []
    again = world.provider()
    (seen,) = await again.instances()
    assert (seen.token, seen.state) == (order.token, InstanceState.PENDING)
    await world.agents(order)
    assert (await again.launch(order)).host_id == order.host_id


async def test_a_crash_between_start_and_registration_starts_no_second(world: World) -> None:
    order = world.order()
    await world.provider().launch(order)
    other = world.provider()  # knows of no process: the host has not registered yet
    await other.launch(order)
    await world.agents(order)
    # The second host finds the lock taken and leaves; nobody believes the instance lost.
    for _ in range(20):
        (seen,) = await other.instances()
        assert seen.ended_s is None
        await asyncio.sleep(0.05)
    agents = [
        pid
        for pid in processes.marked(order.host_id)
        if b"roost.main.host" not in Path(f"/proc/{pid}/cmdline").read_bytes()
    ]
    assert len(agents) == 1


async def test_an_intent_without_its_act_is_finished(world: World) -> None:
    provider, order = world.provider(), world.order()
    await provider.launch(order)
    await world.agents(order)
    provider._want(provider._record(order.host_id), "terminated")  # and then it crashed
    again = world.provider()

    async def ended() -> bool:
        return (await again.instances())[0].state is InstanceState.TERMINATED

    await eventually(ended)
    assert (await again.instances())[0].reason == "terminated"


async def test_the_disk_lasts_over_a_stop(world: World) -> None:
    provider, order = world.provider(), world.order()
    await provider.launch(order)
    await world.agents(order)
    kept = world.folder(order) / "home" / "kept"
    kept.write_text("still here")
    await provider.stop(order.host_id)
    assert processes.marked(order.host_id) == []
    assert kept.read_text() == "still here"
    again = world.provider()
    assert (await again.instances())[0].state is InstanceState.STOPPED
    await again.start(order.host_id)
    await world.agents(order, count=2)
    assert kept.read_text() == "still here"
    await again.stop(order.host_id)
    await again.terminate(order.host_id)
    world.assert_nothing_left(order)


async def test_memory_over_the_limit_is_killed(world: World) -> None:
    greedy = (
        "import os, pathlib, subprocess, sys, time\n"
        "work = pathlib.Path(os.environ['ROOST_INSTANCE_DIR'], 'work')\n"
        "code = subprocess.call([sys.executable, '-c', 'x = bytearray(1 << 30)'])\n"
        "(work / 'part').write_text(str(code)); (work / 'part').rename(work / 'code')\n"
        "time.sleep(600)"
    )
    provider, order = world.provider(greedy), world.order(memory_gib=0.25)
    await provider.launch(order)
    await eventually((world.folder(order) / "isolation.json").exists)
    isolation = world.isolation(order)
    if not isolation.memory_limit_bytes:
        assert any("memory limit" in text for text in isolation.missing)
        pytest.skip("cgroups are not permitted here")
    assert isolation.memory_limit_bytes == 256 << 20
    assert isolation.cpu_weight == 4 * 128 or "cgroup-v2-cpu" in isolation.held_by
    code = world.folder(order) / "work" / "code"
    await eventually(code.exists)
    assert int(code.read_text()) == -signal.SIGKILL
    assert (await provider.instances())[0].state is InstanceState.RUNNING


async def test_the_agent_that_cannot_start_is_tried_again(world: World) -> None:
    order = world.order()
    await world.provider("raise SystemExit(3)").launch(order)
    log = world.folder(order) / "host.log"
    await eventually(lambda: log.exists() and log.read_text().count("agent ended with 3") >= 3)
    (seen,) = await world.provider().instances()
    assert seen.state is InstanceState.RUNNING


async def test_an_environment_that_cannot_be_built_says_so(world: World) -> None:
    broken = world.root / "uv"
    broken.write_text("#!/bin/sh\necho the index is down >&2\nexit 1\n")
    broken.chmod(0o755)
    order = world.order()
    await world.provider(uv=str(broken)).launch(order)
    path = world.folder(order) / "env.json"

    def told() -> bool:
        found = records.read(path, EnvFile)
        return found is not None and "the index is down" in found.detail

    await eventually(told)
    found = records.read(path, EnvFile)
    assert found is not None
    assert not found.ready


async def test_a_host_that_dies_at_boot_is_lost(world: World) -> None:
    provider, order = world.provider(host_argv=("false",)), world.order()
    await provider.launch(order)

    async def lost() -> bool:
        return (await provider.instances())[0].reason == "lost"

    await eventually(lost)


async def test_refusals(world: World) -> None:
    provider = world.provider(max_instances=1)
    order = world.order()
    await provider.launch(order)
    with pytest.raises(NoCapacity, match="1 instances"):
        await provider.launch(world.order("b"))
    with pytest.raises(Conflict):
        await provider.launch(
            type(order)(**{f: getattr(order, f) for f in order.__struct_fields__} | {"token": "x"})
        )
    for name in ("../up", "self", "", "A" * 80):
        bad = {f: getattr(order, f) for f in order.__struct_fields__} | {"token": "y"}
        with pytest.raises(Invalid):
            await provider.launch(type(order)(**bad | {"host_id": name}))
    await provider.terminate(order.host_id)
    with pytest.raises(Gone, match="has ended"):
        await provider.start(order.host_id)


def test_a_state_directory_that_cannot_be_written(world: World) -> None:
    blocked = world.root / "file"
    blocked.write_text("")
    world.root = blocked
    try:
        with pytest.raises(Denied, match="ROOST_STATE_DIR"):
            world.provider()
    finally:
        world.root = blocked.parent


async def test_a_torn_ledger_line_is_ignored_and_cut(world: World) -> None:
    folder = world.root / "ledger"
    folder.mkdir()
    ledger = records.Ledger(folder)
    ledger.opened(1, 10.0, 0.5)
    ledger.opened(1, 11.0, 0.5)
    with (folder / "ledger.jsonl").open("ab") as file:
        file.write(b'{"event":"end","boo')
    assert [line.ended_s for line in ledger.lines("h")] == [None]
    ledger.closed(1, 12.0, "lost")
    ledger.closed(1, 13.0, "lost")
    assert [(line.started_s, line.ended_s) for line in ledger.lines("h")] == [(10.0, 12.0)]


@pytest.mark.e2e
async def test_the_package_environment(world: World) -> None:
    """A real one, from pinned lines: the image's layer is shared, what is installed is not."""
    from uv import find_uv_bin

    image = Image(name="tiny", python="", requirements=("cloudpickle==3.1.2",))
    provider = world.provider(uv=find_uv_bin())
    one, two = world.order("a", image=image), world.order("b", image=image)
    for order in (one, two):
        await provider.launch(order)
    for order in (one, two):
        path = world.folder(order) / "env.json"
        await eventually(lambda p=path: bool((f := records.read(p, EnvFile)) and f.ready), 120.0)
    code = "import cloudpickle, roost, sys; print(cloudpickle.__version__, sys.prefix)"
    python = world.folder(one) / "env" / "bin" / "python"
    process = await asyncio.create_subprocess_exec(
        str(python), "-c", code, stdout=asyncio.subprocess.PIPE
    )
    said, _ = await process.communicate()
    assert said.decode().split() == ["3.1.2", str(world.folder(one) / "env")]
    packages = next((world.folder(one) / "env" / "lib").glob("python*")) / "site-packages"
    (packages / "extra.py").write_text("")
    other = world.folder(two) / "env" / "bin" / "python"
    process = await asyncio.create_subprocess_exec(
        str(other), "-c", "import extra", stderr=asyncio.subprocess.DEVNULL
    )
    assert await process.wait() == 1
    installed = {
        path.name for path in (world.root / "images").glob("*/lib/*/site-packages/roost/*")
    }
    assert installed <= {"__init__.py", "runtime", "__pycache__"}
