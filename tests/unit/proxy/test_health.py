"""The active prober against real servers, and its table taken into a worker's view."""

import asyncio
import contextlib
import ssl
import tempfile
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from random import Random

import pytest

from roost.proxy import health, policy
from roost.proxy.upstream import Upstreams

QUICK = policy.ActiveHealth(
    path="/healthz", interval_s=0.02, timeout_s=0.5, healthy_after=2, unhealthy_after=2
)


class Server:
    """An HTTP server that says what it is told to, or nothing."""

    def __init__(self) -> None:
        self.answer = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
        self.silent = False
        self.heads: list[bytes] = []
        self.connections = 0
        self._server: asyncio.Server | None = None
        self.address = ""

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            head = await reader.readuntil(b"\r\n\r\n")
            self.heads.append(head)
            if self.silent:
                await reader.read()
            else:
                writer.write(self.answer)
                await writer.drain()
        writer.close()

    async def start(self, path: str = "") -> None:
        if path:
            self._server = await asyncio.start_unix_server(self.serve, path)
            self.address = f"unix:{path}"
        else:
            port = int(self.address.rpartition(":")[2]) if self.address else 0
            self._server = await asyncio.start_server(self.serve, "127.0.0.1", port)
            self.address = f"127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    def stop(self) -> None:
        assert self._server is not None
        self._server.close()


class Watched:
    """A running prober and the tables it published."""

    def __init__(self) -> None:
        self.tables: list[dict[str, bool]] = []
        self.prober = health.Prober(self.tables.append, rng=Random(1))

    def watch(self, *services: policy.Service, tcp: tuple[str, ...] = ()) -> None:
        self.prober.watch(services, tcp=tcp, now_s=asyncio.get_running_loop().time())

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(10):
            while not condition():  # noqa: ASYNC110
                await asyncio.sleep(0.005)


@asynccontextmanager
async def watched(*services: policy.Service, tcp: tuple[str, ...] = ()) -> AsyncIterator[Watched]:
    found = Watched()
    task = asyncio.create_task(found.prober.run())
    found.watch(*services, tcp=tcp)
    try:
        yield found
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def service(
    *addresses: str, name: str = "web", quick: policy.ActiveHealth = QUICK
) -> policy.Service:
    return policy.Service(name=name, backends=addresses, health=quick)


async def test_down_after_bad_answers_and_up_after_good_ones() -> None:
    server = Server()
    await server.start()
    key = health.table_key("web", server.address)
    async with watched(service(server.address)) as seen:
        assert seen.prober.table == {key: True}
        await seen.until(lambda: len(server.heads) >= 3)
        assert server.heads[0].startswith(b"GET /healthz HTTP/1.1\r\nHost: 127.0.0.1:")
        server.answer = b"HTTP/1.1 500 No\r\nContent-Length: 0\r\n\r\n"
        await seen.until(lambda: seen.tables[-1] == {key: False})
        server.answer = b"HTTP/1.1 204 Fine\r\n\r\n"
        await seen.until(lambda: seen.tables[-1] == {key: True})
        server.stop()
        await seen.until(lambda: seen.tables[-1] == {key: False})  # refused
        await server.start()
        await seen.until(lambda: seen.tables[-1] == {key: True})
        server.answer = b"SSH-2.0-nothing of ours\r\n"
        await seen.until(lambda: seen.tables[-1] == {key: False})
    server.stop()


async def test_silence_is_an_answer_too() -> None:
    server = Server()
    await server.start()
    server.silent = True
    quick = policy.ActiveHealth(interval_s=0.02, timeout_s=0.05, unhealthy_after=2)
    async with watched(service(server.address, quick=quick)) as seen:
        await seen.until(lambda: False in seen.prober.table.values())
    server.stop()


async def test_a_connect_is_enough_for_tcp_services() -> None:
    server = Server()
    await server.start()
    server.silent = True
    web = service(server.address)
    async with watched(web, tcp=("web",)) as seen:
        await seen.until(lambda: server.connections >= 4)
        assert seen.prober.table == {health.table_key("web", server.address): True}
        server.stop()
        await seen.until(lambda: False in seen.prober.table.values())
        assert server.heads == []


async def test_unix_sockets() -> None:
    with tempfile.TemporaryDirectory(dir="/tmp") as directory:
        server = Server()
        await server.start(str(Path(directory) / "s"))
        async with watched(service(server.address)) as seen:
            await seen.until(lambda: len(server.heads) >= 3)
            assert seen.prober.table == {health.table_key("web", server.address): True}
            server.answer = b"HTTP/1.1 503 No\r\n\r\n"
            await seen.until(lambda: False in seen.prober.table.values())
        server.stop()


async def test_a_change_of_services_keeps_what_is_known_and_stops_the_rest() -> None:
    server, other = Server(), Server()
    await server.start()
    await other.start()
    server.answer = b"HTTP/1.1 500 No\r\n\r\n"
    async with watched(service(server.address)) as seen:
        key = health.table_key("web", server.address)
        await seen.until(lambda: seen.prober.table == {key: False})
        seen.watch(service(server.address), service(other.address, name="api"))
        assert seen.prober.table == {key: False, health.table_key("api", other.address): True}
        await seen.until(lambda: other.connections >= 2)
        seen.watch(service(other.address, name="api"), policy.Service(name="web"))
        assert list(seen.prober.table) == [health.table_key("api", other.address)]
        before = other.connections
        probed = server.connections
        await seen.until(lambda: other.connections >= before + 4)
        assert server.connections <= probed + 1  # the one under way, if any
    server.stop()
    other.stop()


async def test_many_backends_are_probed_few_at_a_time() -> None:
    server = Server()
    await server.start()
    port = server.address.rpartition(":")[2]
    addresses = [f"127.0.{n // 250}.{n % 250 + 1}:{port}" for n in range(200)]
    quick = policy.ActiveHealth(interval_s=0.05, timeout_s=1.0, unhealthy_after=1)
    most = 0
    async with watched(service(*addresses, quick=quick)) as seen:

        def settled() -> bool:
            nonlocal most
            most = max(most, len(seen.prober._running))
            return list(seen.prober.table.values()).count(False) == 199

        await seen.until(settled)
        assert seen.prober.table[health.table_key("web", server.address)]
    assert 0 < most <= health.CONCURRENT
    server.stop()


def test_the_table_is_taken_into_the_workers_view() -> None:
    addresses = ("127.0.0.1:1", "127.0.0.1:2")
    upstreams = Upstreams(service(*addresses))
    other = Upstreams(service(*addresses, name="web2"))
    table = {"web/127.0.0.1:1": False, "web/127.0.0.1:2": True, "web/127.0.0.1:9": False}
    health.apply(table, [upstreams, other], 1.0)
    assert [m.state for m in upstreams.members] == ["down", "ready"]
    assert {upstreams.pick(1.0 + n) for n in range(5)} == {upstreams.members[1]}
    assert [m.state for m in other.members] == ["ready", "ready"]
    upstreams.updated(policy.Service(name="web", backends=addresses))
    health.apply(table, [upstreams], 9.0)  # probed no more
    assert [m.state for m in upstreams.members] == ["ready", "ready"]


async def test_probes_by_tls_need_contexts_and_use_them() -> None:
    class Recorded(ssl.SSLContext):
        made = 0

    def contexts(origin: policy.TlsOrigin) -> ssl.SSLContext:
        Recorded.made += 1
        return Recorded(ssl.PROTOCOL_TLS_CLIENT)

    server = Server()
    await server.start()  # it speaks no TLS: down
    plain = service(server.address)
    secured = policy.Service(
        name="web", backends=plain.backends, health=QUICK, tls=policy.TlsOrigin()
    )
    async with watched(plain) as seen:
        await seen.until(lambda: len(server.heads) >= 2)
        with pytest.raises(ValueError, match="contexts"):
            seen.watch(secured)
        assert len(seen.prober.table) == 1
        seen.prober._contexts = contexts
        seen.watch(secured)
        await seen.until(lambda: False in seen.prober.table.values())
        assert Recorded.made == 1
        seen.watch(secured, tcp=("web",))
        await seen.until(lambda: True in seen.prober.table.values())
        assert Recorded.made == 1
    server.stop()
