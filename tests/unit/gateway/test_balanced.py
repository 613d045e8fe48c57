"""Services on several hosts, faked at the data port: balanced, tried elsewhere, held, counted."""

import asyncio
import hashlib
from collections import Counter
from typing import Any

from roost.gateway.model import HostMember, Hosts, Route
from roost.proxy.leaving import Leaving
from tests.unit.gateway.fake_hosts import FakeHost, answer

ID = "v-1"
NAME = f"svc/{ID}"


def service(*host_ids: str, draining: tuple[str, ...] = (), **options: Any) -> Route:
    members = tuple(HostMember(host_id=h, draining=h in draining) for h in host_ids)
    options.setdefault("strip", True)
    options.setdefault("hosts", ("web.localhost",))
    options.setdefault("hold_s", 20.0)
    return Route(name=NAME, prefix="/s/web", target=Hosts(service=NAME, members=members), **options)


async def until(condition: Any, seconds: float = 10.0) -> None:
    loop = asyncio.get_running_loop()
    end = loop.time() + seconds
    while not condition():
        assert loop.time() < end, "not in time"
        await asyncio.sleep(0.005)


async def up(setup: Any, *host_ids: str) -> list[FakeHost]:
    hosts = [FakeHost(setup, host_id) for host_id in host_ids]
    await until(lambda: all(setup.hosts.reaches(host_id) for host_id in host_ids))
    return hosts


async def down(*hosts: FakeHost) -> None:
    for host in hosts:
        await host.kill()


async def served(setup: Any, n: int, path: str = "/s/web/x") -> Counter[str]:
    """Who answered ``n`` requests, one after the other."""
    found: Counter[str] = Counter()
    for _ in range(n):
        status, _, body = await setup.ask(path)
        assert status == 200, body
        found[body.split(b" ")[0].decode()] += 1
    return found


def seen(setup: Any) -> Any:
    states = setup.router.services(setup.proxy.held_by_plan())
    reports = list(setup.router.counting.report(states, edge=0, began_s=1.0, at_s=2.0))
    assert len(reports) == 1
    return reports[0].services[0] if reports[0].services else None


async def test_requests_are_spread_over_the_hosts_under_path_and_name(edge: Any) -> None:
    async with edge() as setup:
        one, two = await up(setup, "i-1", "i-2")
        setup.routes(service("i-1", "i-2"))
        one.gate.clear()
        two.gate.clear()
        asked = [asyncio.create_task(setup.ask("/s/web/x")) for _ in range(20)]
        await until(lambda: one.waiting + two.waiting == 20)
        assert min(one.waiting, two.waiting) >= 5
        one.gate.set()
        two.gate.set()
        assert {(await task)[0] for task in asked} == {200}
        assert set(one.asked) == {"GET /x"}, "the prefix is taken off"
        assert b"x-forwarded-prefix: /s/web\r\n" in one.heads[0].lower()
        assert set(one.opened) == {NAME}
        reader, writer = await setup.dial(setup.public)
        writer.write(b"GET /deep?q=1 HTTP/1.1\r\nHost: WEB.localhost:8080\r\n\r\n")
        assert (await reader.readuntil(b"?q=1 ")).endswith(b" /deep?q=1 ")
        claim = b"X-Forwarded-Prefix: /evil\r\n"
        for host, path in ((b"h", b"/s/web/claim"), (b"web.localhost", b"/claim")):
            writer.write(b"GET " + path + b" HTTP/1.1\r\nHost: " + host + b"\r\n" + claim + b"\r\n")
            await reader.readuntil(b" /claim ")
        claimed = [head for head in one.heads + two.heads if b" /claim " in head]
        assert len(claimed) == 2
        assert not any(b"evil" in head for head in claimed), "a client's own claim is dropped"
        status, _, _ = await setup.ask("/s/other")
        assert status == 404
        setup.routes(service("i-1", "i-2", strip=False))
        await served(setup, 2)
        assert "GET /s/web/x" in one.asked + two.asked
        await down(one, two)


async def test_bearer_tokens_guard_a_service(edge: Any) -> None:
    async with edge() as setup:
        (one,) = await up(setup, "i-1")
        setup.routes(service("i-1", tokens=(hashlib.sha256(b"t").hexdigest(),)))
        assert (await setup.ask("/s/web/"))[0] == 401
        assert (await setup.ask("/s/web/", "Authorization: Bearer t"))[0] == 200
        await down(one)


async def test_reported_load_moves_requests_and_is_not_passed_on(edge: Any) -> None:
    async with edge() as setup:
        one, two = await up(setup, "i-1", "i-2")
        one.load, two.load = "active=40; slots=8", "active=0; slots=8"
        setup.routes(service("i-1", "i-2"))
        await served(setup, 4)
        status, head, _ = await setup.ask("/s/web/x")
        assert status == 200
        assert b"roost-load" not in head.lower()
        found = await served(setup, 30)
        assert found["i-2"] > found["i-1"], "others' requests at the first count as its load"
        await down(one, two)


async def test_a_draining_host_gets_nothing_new_and_ends_what_it_has(edge: Any) -> None:
    async with edge() as setup:
        one, two = await up(setup, "i-1", "i-2")
        one.gate.clear()
        setup.routes(service("i-1"))
        slow = asyncio.create_task(setup.ask("/s/web/slow"))
        await until(lambda: one.waiting == 1)
        setup.routes(service("i-1", "i-2", draining=("i-1",)))
        assert await served(setup, 10) == {"i-2": 10}
        one.gate.set()
        status, _, body = await slow
        assert (status, body) == (200, b"i-1 /slow ")
        await down(one, two)


async def test_a_draining_hosts_websockets_are_told_to_come_back(edge: Any) -> None:
    async with edge() as setup:
        loop = asyncio.get_running_loop()
        leaving = Leaving(setup.proxy.tunnels, unix_offset_s=-loop.time())
        setup.router.emptied = leaving.look
        one, two = await up(setup, "i-1", "i-2")
        setup.routes(service("i-1"))
        reader, writer = await setup.dial(setup.public)
        writer.write(
            b"GET /s/web/ws HTTP/1.1\r\nHost: h\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
            b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
        )
        assert b" 101 " in await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 10)
        states = {name: active for name, active, _ in setup.router.services({})}
        assert states == {NAME: 1}, "an open WebSocket is in flight"
        setup.routes(service("i-1", "i-2", draining=("i-1",)))
        frame = await asyncio.wait_for(reader.read(64), 10)
        assert frame[0] == 0x88, "a close frame"
        assert int.from_bytes(frame[2:4], "big") == 1012
        await down(one, two)


async def test_a_dead_host_fails_no_idempotent_request(edge: Any) -> None:
    async with edge() as setup:
        one, two = await up(setup, "i-1", "i-2")
        setup.routes(service("i-1", "i-2"))
        one.gate.clear()
        two.gate.clear()
        asked = [asyncio.create_task(setup.ask(f"/s/web/{n}")) for n in range(40)]
        await until(lambda: one.waiting + two.waiting >= 40 and one.waiting >= 5)
        await one.kill()
        two.gate.set()
        for n, task in enumerate(asked):
            status, _, body = await task
            assert (status, body) == (200, b"i-2 /%d " % n)
        assert await served(setup, 5) == {"i-2": 5}
        counted = seen(setup)
        assert counted.arrived == counted.finished == 45
        assert counted.errors == 0
        assert counted.retried >= 5
        await two.kill()


async def test_a_host_that_dies_in_the_middle_of_a_small_answer_is_not_noticed(edge: Any) -> None:
    async with edge() as setup:
        one, two = await up(setup, "i-1", "i-2")
        whole = answer(b"0123456789")

        async def half(head: bytes, body: bytes) -> bytes:
            return whole[:-4]

        one.handler = half
        setup.routes(service("i-1"))
        asked = asyncio.create_task(setup.ask("/s/web/1"))
        await until(lambda: len(one.asked) == 1)
        setup.routes(service("i-1", "i-2"))
        await one.kill()
        assert (await asked)[::2] == (200, b"i-2 /1 ")
        await two.kill()


async def test_the_only_hosts_agent_dies_and_comes_back(edge: Any) -> None:
    """Its replicas ran on: whoever was under way is asked again when it is back."""
    async with edge() as setup:
        (one,) = await up(setup, "i-1")
        setup.routes(service("i-1"))
        one.gate.clear()
        asked = [asyncio.create_task(setup.ask(f"/s/web/{n}")) for n in range(5)]
        post = asyncio.create_task(setup.ask("/s/web/post", "Content-Length: 0", method="POST"))
        await until(lambda: one.waiting == 6)
        await one.kill()
        status, _, _ = await post
        assert status == 502, "what may have had an effect is not sent twice"
        await until(lambda: setup.proxy.held == 5)
        late = asyncio.create_task(setup.ask("/s/web/late", method="POST"))
        await until(lambda: setup.proxy.held == 6)
        await until(lambda: NAME in setup.waits)
        one.gate.set()
        one.start()
        for task in (*asked, late):
            assert (await task)[0] == 200
        assert setup.proxy.held == 0
        counted = seen(setup)
        assert (counted.arrived, counted.finished, counted.errors) == (7, 7, 1)
        assert counted.held_finished == 6
        await one.kill()


async def test_what_kills_its_hosts_is_not_sent_for_ever(edge: Any) -> None:
    async with edge() as setup:
        (one,) = await up(setup, "i-1")

        async def die(head: bytes, body: bytes) -> bytes:
            raise ConnectionResetError

        one.handler = die
        setup.routes(service("i-1"))
        status, _, _ = await setup.ask("/s/web/poison")
        assert status == 502
        assert 2 <= len(one.asked) <= 4
        await one.kill()


async def test_from_zero_requests_wait_and_wake_control(edge: Any) -> None:
    async with edge() as setup:
        setup.routes(service(bound_s=0.001))
        gets = [asyncio.create_task(setup.ask("/s/web/x")) for _ in range(10)]
        size = 200_000
        reader, writer = await setup.dial(setup.public)
        head = b"POST /s/web/up HTTP/1.1\r\nHost: h\r\nContent-Length: %d\r\n\r\n" % size
        writer.write(head + b"u" * size)
        await until(lambda: setup.proxy.held == 11)
        assert setup.waits[0] == NAME
        assert len(setup.waits) < 11, "told once a second, not once a request"
        counted = seen(setup)
        assert (counted.arrived, counted.held, counted.in_flight) == (11, 11, 0)
        (one,) = await up(setup, "i-1")
        assert setup.proxy.held == 11, "a host that is not the service's changes nothing"
        loop = asyncio.get_running_loop()
        began_s = loop.time()
        setup.routes(service("i-1", bound_s=0.001))
        for task in gets:
            assert (await task)[0] == 200
        assert loop.time() - began_s < 5
        whole = await asyncio.wait_for(reader.readuntil(b"/up " + b"u" * size), 10)
        assert whole.startswith(b"HTTP/1.1 200")
        counted = seen(setup)
        assert (counted.finished, counted.held_finished, counted.held) == (11, 11, 0)
        assert (counted.late, counted.held_late) == (0, 11), "starts from zero are counted apart"
        assert sum(counted.slow) == 11
        await one.kill()


async def test_a_wait_from_zero_ends(edge: Any) -> None:
    async with edge() as setup:
        setup.routes(service(hold_s=0.3))
        status, head, body = await setup.ask("/s/web/x")
        assert status == 503
        assert b"retry-after" in head.lower()
        assert b"in time" in body
        assert seen(setup).errors == 1
        setup.routes()
        assert (await setup.ask("/s/web/x"))[0] == 404


async def test_a_host_that_does_not_know_the_service_yet_is_asked_again(edge: Any) -> None:
    async with edge() as setup:
        (one,) = await up(setup, "i-1")
        one.refuses = True
        setup.routes(service("i-1"))
        asked = asyncio.create_task(setup.ask("/s/web/x", method="POST"))
        await until(lambda: len(one.opened) >= 2)
        assert not asked.done()
        one.refuses = False
        assert (await asked)[0] == 200
        await one.kill()


async def test_answers_that_say_unwell_are_tried_elsewhere(edge: Any) -> None:
    async with edge() as setup:
        one, two = await up(setup, "i-1", "i-2")

        async def unwell(head: bytes, body: bytes) -> bytes:
            return answer(b"full", status="503 Service Unavailable")

        one.handler = unwell
        setup.routes(service("i-1", "i-2"))
        assert await served(setup, 12) == {"i-2": 12}
        assert seen(setup).errors == 0
        await down(one, two)


async def test_what_no_replica_has_seen_goes_elsewhere_whatever_its_method(edge: Any) -> None:
    """A balancer's own 503 has no ``Roost-Load``; a replica's has, and is an answer."""
    async with edge() as setup:
        one, two = await up(setup, "i-1", "i-2")
        own = True

        async def full(head: bytes, body: bytes) -> bytes:
            line = () if own else ("Roost-Load: active=1; slots=1",)
            return answer(b"full", *line, status="503 Service Unavailable")

        one.handler = full
        setup.routes(service("i-1", "i-2"))
        for _ in range(6):
            status, _, body = await setup.ask("/s/web/x", "Content-Length: 0", method="POST")
            assert (status, body) == (200, b"i-2 /x ")
        setup.routes(service("i-1"))
        alone = asyncio.create_task(setup.ask("/s/web/y", method="POST"))
        await until(lambda: setup.proxy.held == 1)
        one.handler = None
        assert (await alone)[0] == 200, "it waits until somebody can serve it"
        one.handler, own = full, False
        assert (await setup.ask("/s/web/z", method="POST"))[0] == 503
        await down(one, two)


async def test_a_host_that_froze_is_not_waited_for_once_control_knows(edge: Any) -> None:
    """Its connections are open and silent: whoever waits is sent elsewhere when it is no longer named."""
    async with edge() as setup:
        one, two = await up(setup, "i-1", "i-2")
        one.gate.clear()
        setup.routes(service("i-1"))
        gets = [asyncio.create_task(setup.ask("/s/web/x")) for _ in range(3)]
        post = asyncio.create_task(setup.ask("/s/web/x", method="POST"))
        await until(lambda: one.waiting == 4)
        setup.routes(service("i-1", "i-2", draining=("i-1",)))
        assert await served(setup, 3) == {"i-2": 3}
        assert not any(task.done() for task in gets), "one that leaves may end what it has"
        setup.routes(service("i-2"))
        for task in gets:
            assert (await task)[::2] == (200, b"i-2 /x ")
        assert not post.done(), "what may have had an effect waits for its own answer"
        one.gate.set()
        assert (await post)[::2] == (200, b"i-1 /x ")
        await down(one, two)
