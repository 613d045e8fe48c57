"""The host's balancer over real replicas: who gets what, who waits, what is counted and told."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from roost.ports.replicas import BOUNDS_S, ServiceReport

from .fakes import until
from .replicas import Bench, Client, bench, orders


@pytest.fixture
async def host() -> AsyncIterator[Bench]:
    async with bench() as made:
        yield made


def counted(host: Bench) -> ServiceReport:
    (report,) = host.host.services()
    return report


async def test_the_least_busy_replica_gets_the_next(host: Bench) -> None:
    async with host.agent():
        await host.set(1, *orders("r-1", "r-2", "r-3"))
        await host.ready("r-1", "r-2", "r-3")
        slow = [asyncio.create_task(host.ask("/sleep=1")) for _ in range(2)]
        await until(lambda: counted(host).in_flight == 2)
        busy = {r.replica_id for r in host.host.reports() if r.in_flight}
        assert len(busy) == 2
        assert {(await host.ask("/")).text for _ in range(5)}.isdisjoint(busy)
        load = (await host.ask("/")).load
        assert (load["active"], load["slots"]) == (3, 3)
        await asyncio.gather(*slow)
        # What a replica says of its own load is not believed, and not passed on.
        lie = await host.ask("/lie")
        assert lie.load["slots"] == 3


async def test_none_gets_more_than_its_share_and_the_rest_wait_in_line(host: Bench) -> None:
    async with host.agent():
        await host.set(1, *orders("r-1", "r-2", concurrency=1))
        await host.ready("r-1", "r-2")
        asked = [asyncio.create_task(host.ask("/sleep=0.4")) for _ in range(6)]
        await until(lambda: (counted(host).in_flight, counted(host).queued) == (2, 4))
        assert all(report.in_flight == 1 for report in host.host.reports())
        await asyncio.gather(*asked)
        report = counted(host)
        assert (report.requests, report.errors, report.queued) == (6, 0, 0)
        # 6 x 0.4 s inside; four of them waited for a turn or two.
        assert report.busy_s >= 6 * 0.4
        assert report.busy_s2 >= 6 * 0.16
        assert report.waited_s >= 4 * 0.3
        assert sum(report.slow) == 6
        assert sum(report.slow[: BOUNDS_S.index(0.5)]) <= 2


async def test_who_came_first_is_served_first(host: Bench) -> None:
    async with host.agent():
        await host.set(1, *orders("r-1", concurrency=1))
        await host.ready("r-1")
        ended: list[int] = []

        async def ask(number: int) -> None:
            await host.ask("/sleep=0.1")
            ended.append(number)

        asked = [asyncio.create_task(host.ask("/sleep=0.5"))]
        for number in range(5):
            await until(lambda n=number: counted(host).in_flight + counted(host).queued == n + 1)
            asked.append(asyncio.create_task(ask(number)))
        await asyncio.gather(*asked)
        assert ended == [0, 1, 2, 3, 4]


async def test_a_replica_that_comes_takes_from_the_line(host: Bench) -> None:
    async with host.agent():
        await host.set(1, *orders("r-1", concurrency=1))
        await host.ready("r-1")
        long = asyncio.create_task(host.ask("/sleep=6"))
        await until(lambda: counted(host).in_flight == 1)
        waits = asyncio.create_task(host.ask("/"))
        await until(lambda: counted(host).queued == 1)
        await host.set(2, *orders("r-1", "r-2", concurrency=1))
        assert (await waits).text == "r-2"
        assert not long.done()
        long.cancel()
        await asyncio.gather(long, return_exceptions=True)


async def test_bodies_and_many_requests_on_one_connection(host: Bench) -> None:
    async with host.agent():
        await host.set(1, *orders("r-1", "r-2"))
        await host.ready("r-1", "r-2")
        client = await host.client()
        for number in range(20):
            answer = await client.ask("/", method="POST", body=f"body {number}")
            assert answer.text == f"body {number}"
            assert (await client.ask("/")).load["ms"] >= 0
        client.close()
        big = "x" * 300_000
        assert (await host.ask("/", method="POST", body=big)).text == big
        assert counted(host).requests == 41
        moved = sum(report.network_bytes or 0 for report in host.host.reports())
        assert moved > 600_000


async def test_heads_and_old_clients_in_line(host: Bench) -> None:
    async with host.agent():
        await host.set(1, *orders("r-1", concurrency=1))
        await host.ready("r-1")
        client = await host.client()
        assert (await client.ask("/")).text == "r-1"
        long = asyncio.create_task(host.ask("/sleep=0.3"))
        await until(lambda: counted(host).in_flight == 1)
        client.writer.write(b"HEAD /health HTTP/1.1\r\nHost: x\r\n\r\n")
        await until(lambda: counted(host).queued == 1)
        head = await client.reader.readuntil(b"\r\n\r\n")
        assert b" 501 " in head.split(b"\r\n")[0] + b" "  # http.server knows no HEAD here
        assert b"Roost-Load: active=" in head
        client.close()
        await long
        old = await host.client()
        old.writer.write(b"GET / HTTP/1.0\r\n\r\n")
        answer = await old.reader.read()
        assert answer.endswith(b"r-1")
        assert b"Roost-Load: active=" in answer


async def test_errors_and_refusals_are_counted(host: Bench) -> None:
    async with host.agent():
        await host.set(1, *orders("r-1"))
        await host.ready("r-1")
        assert (await host.ask("/fail=500")).status == 500
        assert (await host.ask("/fail=404")).status == 404
        assert (counted(host).requests, counted(host).errors) == (2, 1)
        await host.set(2)
        await until(lambda: not host.states())
        assert (await host.ask("/")).status == 503
        assert (counted(host).requests, counted(host).errors) == (3, 2)
        assert sum(counted(host).slow) == 2


async def test_a_client_that_leaves_frees_its_place(host: Bench) -> None:
    async with host.agent():
        await host.set(1, *orders("r-1", concurrency=1))
        await host.ready("r-1")
        first, second = await host.client(), await host.client()
        asked = [asyncio.create_task(c.ask("/sleep=5")) for c in (first, second)]
        await until(lambda: (counted(host).in_flight, counted(host).queued) == (1, 1))
        second.close()
        await until(lambda: counted(host).queued == 0)
        first.close()
        await until(lambda: counted(host).in_flight == 0)
        await asyncio.gather(*asked, return_exceptions=True)


UPGRADE = (
    "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
    "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
)


async def opened(host: Bench) -> Client:
    client = await host.client()
    assert (await client.ask("/socket", fields=UPGRADE)).status == 101
    return client


async def test_a_websocket_is_in_flight_while_it_lasts(host: Bench) -> None:
    async with host.agent():
        await host.set(1, *orders("r-1", "r-2"))
        await host.ready("r-1", "r-2")
        client, other = await opened(host), await opened(host)
        client.writer.write(b"\x82\x05hello")
        assert await client.reader.readexactly(7) == b"\x82\x05hello"
        assert [report.in_flight for report in host.host.reports()] == [1, 1]
        assert sum(report.network_bytes or 0 for report in host.host.reports()) >= 14
        assert counted(host).busy_s == 0
        await asyncio.sleep(0.2)
        client.close()
        await until(lambda: counted(host).in_flight == 1)
        assert counted(host).busy_s >= 0.2
        other.close()
        await until(lambda: counted(host).in_flight == 0)


async def test_websockets_of_a_replica_that_ends_are_told_to_come_back(host: Bench) -> None:
    async with host.agent():
        await host.set(1, *orders("r-1"))
        await host.ready("r-1")
        client = await opened(host)
        await host.set(2)
        frame = await client.reader.readexactly(4)
        assert frame[0] == 0x88
        assert int.from_bytes(frame[2:4], "big") == 1012
        client.close()
        await until(lambda: not host.states())


async def test_the_clients_address_is_the_edges_word(host: Bench) -> None:
    async with host.agent():
        code = (
            "import os\n"
            "from http.server import BaseHTTPRequestHandler, HTTPServer\n"
            "class H(BaseHTTPRequestHandler):\n"
            "    def do_GET(self):\n"
            "        body = str(self.headers['X-Forwarded-For']).encode()\n"
            "        self.send_response(200)\n"
            "        self.send_header('Content-Length', str(len(body)))\n"
            "        self.end_headers()\n"
            "        self.wfile.write(body)\n"
            "HTTPServer((os.environ['HOST'], int(os.environ['PORT'])), H).serve_forever()\n"
        )
        await host.set(1, *orders("r-1", code=code))
        await host.ready("r-1")
        answer = await host.ask("/", fields="X-Forwarded-For: 203.0.113.9\r\n")
        assert answer.text.startswith("203.0.113.9")
