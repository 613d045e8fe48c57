"""Replicas as real processes on one host: started, checked, restarted, drained, adopted."""

import asyncio
import os
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from roost.adapters.clock import SystemClock
from roost.adapters.drivers.process import ProcessDriver
from roost.adapters.drivers.process.limits import Groups, Trees
from roost.agent.tree import TreeCache, capture_tree
from roost.main.agent import free_port
from roost.ports import jobs as formats
from roost.ports.driver import TaskHandle, TaskOrder, TaskUsage
from roost.ports.errors import Gone, Invalid, Never, Retry, StaleEpoch
from roost.ports.jobs import JobFiles
from roost.ports.replicas import Executed, Health, HostReplicas, ReplicaOrder, ReplicaSpec

from .fakes import digest_of, until
from .replicas import SERVER, Bench, bench, orders, spec


@pytest.fixture
async def host() -> AsyncIterator[Bench]:
    async with bench() as made:
        yield made


async def test_replicas_start_serve_and_end(host: Bench) -> None:
    async with host.agent():
        await host.set(1, *orders("r-1", "r-2"))
        await host.ready("r-1", "r-2")
        assert {(await host.ask("/")).text for _ in range(4)} == {"r-1", "r-2"}
        report = host.report("r-1")
        assert (report.service_id, report.revision, report.restarts) == ("s-1", 1, 0)
        assert report.ready_s is not None
        assert report.started_s is not None
        assert abs(report.ready_s - SystemClock().now_s()) < 30
        assert "hello from r-1" in await host.host.logs("r-1", 1000)
        assert host.beats > 0
        pids = {(await host.ask("/pid")).text for _ in range(4)}
        await host.set(2, *orders("r-2"))
        await until(lambda: host.states() == {"r-2": "ready"})
        await host.set(3)
        await until(lambda: not host.states())
        assert not any(Path("/proc", pid).exists() for pid in pids)
        assert (await host.ask("/")).status == 503
        with pytest.raises(Gone):
            await host.host.logs("r-1", 1000)


async def test_an_older_set_is_refused_and_a_bad_name_too(host: Bench) -> None:
    async with host.agent():
        await host.set(5)
        with pytest.raises(StaleEpoch):
            await host.set(4, *orders("r-1"))
        with pytest.raises(Invalid, match="cannot name"):
            await host.set(6, *orders("../r"))
        assert host.host.generation == 5
        assert host.states() == {}


async def test_one_that_is_not_ready_gets_nothing(host: Bench) -> None:
    async with host.agent():
        await host.set(1, *orders("r-1", env={"READY_AFTER": "0.7"}))
        await until(lambda: "status 503" in host.report("r-1").detail)
        assert host.report("r-1").state == "starting"
        refused = await host.ask("/")
        assert refused.status == 503
        assert "roost-load" not in refused.fields  # so it reached no replica
        await host.ready("r-1")
        assert (await host.ask("/")).text == "r-1"
        assert host.report("r-1").detail == ""


async def test_never_ready_is_ended_and_said(host: Bench) -> None:
    async with host.agent():
        health = Health(path="/health", start_s=0.8, interval_s=0.1)
        await host.set(1, *orders("r-1", env={"READY_AFTER": "600"}, health=health))
        await until(lambda: host.states()["r-1"] == "backing_off")
        detail = host.report("r-1").detail
        assert "not ready within 0.8 s: GET /health: status 503" in detail
        assert "started again in 1 s" in detail


async def test_a_crash_is_seen_told_and_mended(host: Bench) -> None:
    async with host.agent():
        await host.set(1, *orders("r-1", "r-2"))
        await host.ready("r-1", "r-2")
        before = {name: host.report(name).started_s for name in ("r-1", "r-2")}
        # It ends whoever serves it, and then the other: a GET is sent again, so both die of it.
        assert (await host.ask("/exit=3")).status == 502
        await until(lambda: host.states() == dict.fromkeys(("r-1", "r-2"), "backing_off"))
        report = host.report("r-1")
        assert report.exit_code == 3
        assert report.detail == "exit code 3: asked to end, started again in 1 s"
        await host.ready("r-1", "r-2")
        report = host.report("r-1")
        assert (report.restarts, report.exit_code, report.detail) == (1, 3, "")
        assert before["r-1"] is not None
        assert report.started_s is not None
        assert report.started_s > before["r-1"]
        assert (await host.ask("/")).status == 200


async def test_a_killed_replica_fails_no_idempotent_request(host: Bench) -> None:
    async with host.agent():
        await host.set(1, *orders("r-1", "r-2"))
        await host.ready("r-1", "r-2")
        pids = {}
        while len(pids) < 2:
            answer = await host.ask("/pid")
            pids[answer.fields["replica"]] = int(answer.text)
        asked = [asyncio.create_task(host.ask("/sleep=0.4")) for _ in range(6)]
        await until(lambda: host.report("r-1").in_flight == 3)
        os.kill(pids["r-1"], 9)
        answers = await asyncio.gather(*asked)
        assert [answer.text for answer in answers] == ["slept"] * 6
        assert {answer.fields["replica"] for answer in answers} == {"r-2"}
        await until(lambda: "signal 9" in host.report("r-1").detail)
        await host.ready("r-1")


async def test_an_unwell_replica_is_started_again(host: Bench) -> None:
    async with host.agent():
        await host.set(1, *orders("r-1"))
        await host.ready("r-1")
        pid = (await host.ask("/pid")).text
        await host.ask("/sick")
        await until(lambda: host.states()["r-1"] != "ready")
        await until(lambda: "unhealthy 3 times in a row" in host.report("r-1").detail)
        await host.ready("r-1")
        assert (await host.ask("/pid")).text != pid


async def test_a_server_that_does_one_thing_at_a_time_may_work(host: Bench) -> None:
    one = SERVER.replace("class Server(ThreadingHTTPServer)", "class Server(HTTPServer)")
    one = one.replace("BaseHTTPRequestHandler, ", "BaseHTTPRequestHandler, HTTPServer, ")
    one = one.replace('"HTTP/1.1"', '"HTTP/1.0"')  # one connection does not keep it for itself
    health = Health(path="/health", interval_s=0.05, timeout_s=0.1, unhealthy=2)
    async with host.agent():
        await host.set(1, *orders("r-1", code=one, health=health))
        await host.ready("r-1")
        assert (await host.ask("/sleep=1.5")).text == "slept"  # many checks go without an answer
        assert host.report("r-1").restarts == 0
        assert host.states() == {"r-1": "ready"}


async def test_a_crash_loop_backs_off(host: Bench) -> None:
    async with host.agent():
        await host.set(1, *orders("r-1", code="import no_such_module"))
        await until(lambda: host.states()["r-1"] == "backing_off")
        report = host.report("r-1")
        assert "ModuleNotFoundError: No module named 'no_such_module'" in report.detail
        assert report.exit_code == 1
        await until(lambda: host.report("r-1").restarts == 1)
        await until(lambda: "started again in 2 s" in host.report("r-1").detail)
        await host.set(2)
        await until(lambda: not host.states())


async def test_what_cannot_run_says_why(host: Bench) -> None:
    async with host.agent():
        image = ReplicaOrder(
            replica_id="r-1", service_id="s-1", revision=1, spec=ReplicaSpec(image="web:1")
        )
        absent = ReplicaOrder(
            replica_id="r-2", service_id="s-1", revision=1, spec=ReplicaSpec(command=("absent-x",))
        )
        await host.set(1, image, absent)
        await until(lambda: "no container engine" in host.report("r-1").detail)
        await until(lambda: "absent-x" in host.report("r-2").detail)
        assert host.states() == dict.fromkeys(("r-1", "r-2"), "backing_off")
        assert (await host.ask("/")).status == 503


async def test_a_draining_replica_ends_what_it_has(host: Bench) -> None:
    async with host.agent():
        await host.set(1, *orders("r-1", "r-2"))
        await host.ready("r-1", "r-2")
        slow = [asyncio.create_task(host.ask("/sleep=0.8")) for _ in range(2)]
        await until(lambda: host.report("r-1").in_flight == host.report("r-2").in_flight == 1)
        await host.set(2, *orders("r-1", "r-2", draining=("r-1",)))
        assert host.states() == {"r-1": "draining", "r-2": "ready"}
        assert {(await host.ask("/")).text for _ in range(6)} == {"r-2"}
        assert host.report("r-1").in_flight == 1
        await host.set(3, *orders("r-2"))
        assert (await host.ask("/")).load["slots"] == 1
        assert [answer.text for answer in await asyncio.gather(*slow)] == ["slept"] * 2
        await until(lambda: host.states() == {"r-2": "ready"})


async def test_a_drain_that_is_called_off(host: Bench) -> None:
    async with host.agent():
        await host.set(1, *orders("r-1"))
        await host.ready("r-1")
        await host.set(2, *orders("r-1", draining=("r-1",)))
        assert (await host.ask("/")).status == 503
        await host.set(3, *orders("r-1"))
        assert (await host.ask("/")).text == "r-1"
        await host.set(4, *orders("r-1", draining=("r-1",)))
        os.kill(int(_pid(host, "r-1")), 9)
        await until(lambda: host.states()["r-1"] == "ended")  # not started again
        await host.set(5, *orders("r-1"))
        await host.ready("r-1")


def _pid(host: Bench, name: str) -> str:
    return (host.folder / "tasks" / f"{name}.json").read_text().split('"pid":')[1].split(",")[0]


async def test_another_revision_under_the_same_name_takes_its_place(host: Bench) -> None:
    async with host.agent():
        await host.set(1, *orders("r-1"))
        await host.ready("r-1")
        (order,) = orders("r-1")
        other = ReplicaOrder(replica_id="r-1", service_id="s-1", revision=2, spec=order.spec)
        await host.set(2, other)
        await until(lambda: host.report("r-1").revision == 2)
        await host.ready("r-1")


async def test_replicas_run_on_without_their_agent(host: Bench) -> None:
    async with host.agent(end=False):
        await host.set(7, *orders("r-1", "r-2"))
        await host.ready("r-1", "r-2")
        pids = {(await host.ask("/pid")).text for _ in range(4)}
        os.kill(int(_pid(host, "r-2")), 9)  # while nobody looks, as it were
    async with host.agent(end=False):
        assert host.host.generation == 7
        answer = await host.ask("/pid")  # at once: nobody has to ask for its health first
        assert answer.text in pids
        await until(lambda: host.report("r-2").restarts == 1)
        await host.ready("r-1", "r-2")
        assert host.report("r-1").restarts == 0
    # As if it had been killed between taking a set and ending what is not in it.
    rest = HostReplicas(generation=8, replicas=orders("r-1"))
    (host.folder / "replicas" / "set.json").write_bytes(msgspec.json.encode(rest))
    async with host.agent():
        await until(lambda: not (host.folder / "replicas" / "r-2").exists())
        assert host.states() == {"r-1": "ready"}
        assert [h.task_id for h in await host.processes.recover()] == ["r-1"]


async def test_a_fixed_port_is_for_one_replica_of_a_host(host: Bench) -> None:
    async with host.agent():
        await host.set(1, *orders("r-1", "r-2", port=free_port()))
        await until(lambda: "ready" in host.states().values())
        await until(lambda: "backing_off" in host.states().values())
        details = [host.report(name).detail for name in ("r-1", "r-2")]
        assert any("listen on $PORT" in detail for detail in details)


async def test_files_and_environment_come_first(host: Bench, tmp_path: Path) -> None:
    (tmp_path / "app.py").write_text(SERVER)
    tree = capture_tree(tmp_path, TreeCache())
    for digest, (path, _) in tree.places.items():
        await host.blobs.put(digest, (tmp_path / path).read_bytes())
    content = formats.encode(JobFiles(workspace=tree.entries))
    host.unready = "making the environment"
    async with host.agent():
        found = ReplicaSpec(
            command=(sys.executable, "app.py"),
            files=digest_of(content),
            health=spec().health,
            memory_mib=400.0,
        )
        order = ReplicaOrder(replica_id="r-1", service_id="s-1", revision=1, spec=found)
        await host.set(1, order)
        await until(lambda: host.report("r-1").detail == "making the environment")
        assert host.report("r-1").state == "pulling"
        host.unready = ""
        await until(lambda: "no blob" in host.report("r-1").detail)
        await host.blobs.put(digest_of(content), content)
        await host.ready("r-1")


async def test_memory_is_watched_where_no_group_holds_it() -> None:
    async with bench() as host:
        groups = Groups("x", Trees({}))
        host.processes = ProcessDriver(host.folder / "tasks", clock=SystemClock(), groups=groups)
        async with host.agent():
            await host.set(1, *orders("r-1", memory_mib=150.0))
            await host.ready("r-1")
            assert host.host.held == ("replica-memory-watched",)
            assert (await host.ask("/eat=200")).status == 200
            await until(lambda: "150 are allowed" in host.report("r-1").detail)
            await host.ready("r-1")


async def test_usage_is_measured(host: Bench) -> None:
    async with host.agent():
        await host.set(1, *orders("r-1"))
        await host.ready("r-1")
        asking = asyncio.create_task(host.ask("/burn=600"))
        # A busy machine gives it little.
        await until(lambda: (host.report("r-1").cpu_percent or 0) > 2, seconds=60)
        asking.cancel()
        await asyncio.gather(asking, return_exceptions=True)
        assert (await host.ask("/")).status == 200
        report = host.report("r-1")
        assert report.memory_mib is not None
        assert 2 < report.memory_mib < 400
        assert report.network_bytes is not None
        assert report.network_bytes > 0


async def test_output_is_bounded(host: Bench) -> None:
    async with host.agent():
        await host.set(1, *orders("r-1"))
        await host.ready("r-1")
        path = host.folder / "replicas" / "r-1" / "output.log"
        with path.open("ab") as file:
            file.write(b"x" * 1000 + b"\nlast line\n")
        replica = host.host._replicas["r-1"]
        replica.trim(most=500, keep=100)
        text = await host.host.logs("r-1", 10_000)
        assert text.startswith("[earlier output was dropped]\n")
        assert text.endswith("last line\n")
        assert len(text) < 200
        assert (await host.host.logs("r-1", 5)) == "line\n"


async def test_leaving_ends_them_all(host: Bench) -> None:
    async with host.agent():
        await host.set(1, *orders("r-1", "r-2"))
        await host.ready("r-1", "r-2")
        await host.host.end()
        assert host.states() == {}
        assert await host.processes.recover() == []
        with pytest.raises(Gone):
            await host.set(2, *orders("r-3"))


class Containers:
    """An engine as far as replicas see one: what it runs are processes."""

    def __init__(self, inner: ProcessDriver) -> None:
        self._inner = inner
        self.orders: list[TaskOrder] = []
        self.images = {"web:1"}
        self.answers = True

    async def start(self, order: TaskOrder) -> TaskHandle:
        self._ask()
        if order.image not in self.images:
            raise Never(f"image {order.image} is not on this host")
        self.orders.append(order)
        argv = order.argv or (sys.executable, "-c", SERVER)
        return await self._inner.start(msgspec.structs.replace(order, image="", argv=argv))

    async def recover(self) -> list[TaskHandle]:
        return await self._inner.recover()

    async def stop(self, task_id: str, *, grace_s: float) -> None:
        await self._inner.stop(task_id, grace_s=grace_s)

    async def alive(self, task_id: str) -> bool:
        return await self._inner.alive(task_id)

    async def ended(self, task_id: str) -> int | None:
        self._ask()
        return await self._inner.ended(task_id)

    async def usage(self, task_id: str) -> TaskUsage:
        return await self._inner.usage(task_id)

    async def logs(self, task_id: str, *, tail_bytes: int) -> str:
        return await self._inner.logs(task_id, tail_bytes=tail_bytes)

    async def execute(self, task_id: str, argv: tuple[str, ...], *, timeout_s: float) -> Executed:
        return await self._inner.execute(task_id, argv, timeout_s=timeout_s)

    @property
    def held(self) -> tuple[str, ...]:
        return ("vcpus", "memory_mib")

    def _ask(self) -> None:
        if not self.answers:
            raise Retry("the engine does not answer")


def image_of(name: str, **more: Any) -> ReplicaOrder:
    given = ReplicaSpec(image=name, health=spec().health, stop_grace_s=2.0, **more)
    return ReplicaOrder(replica_id="r-1", service_id="s-1", revision=1, spec=given)


async def test_images_run_on_the_engine(host: Bench) -> None:
    engine = Containers(ProcessDriver(host.folder / "containers", clock=SystemClock()))
    host.containers = engine
    async with host.agent(end=False):
        await host.set(1, image_of("web:1", port=8080, vcpus=0.5, memory_mib=300.0))
        await host.ready("r-1")
        (order,) = engine.orders
        # Its own fixed port leads to one of this host's, so that several fit on it.
        assert (order.listens, order.address) == (8080, "127.0.0.1")
        assert order.port not in (0, 8080)
        assert (order.limits.vcpus, order.limits.memory_mib) == (0.5, 300.0)
        assert (await host.ask("/")).text == "r-1"
        engine.answers = False
        await asyncio.sleep(1.5)
        assert host.states() == {"r-1": "ready"}  # no news is no death
        engine.answers = True
        assert (await host.ask("/exit=4")).status == 502
        await until(lambda: host.report("r-1").exit_code == 4)
        await host.ready("r-1")
        assert "asked to end" in await host.host.logs("r-1", 10_000)
    async with host.agent():
        assert (await host.ask("/")).text == "r-1"
        await host.set(2, image_of("web:2"))
        await until(lambda: "image web:2 is not on this host" in host.report("r-1").detail)
        assert await engine.recover() == []
