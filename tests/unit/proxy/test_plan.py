"""Requests by plan: retries, the keep-alive race, hedging, queues, holds, hooks, drains, records."""

import asyncio
import socket
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from ipaddress import ip_network
from typing import Any

import pytest

from roost.proxy import policy
from roost.proxy.answers import Answer
from roost.proxy.front import Limits, Proxy
from roost.proxy.heads import Request
from roost.proxy.plan import Finished, Pairs, Plan, Stream
from roost.proxy.pool import BackendConnection, Pool
from roost.proxy.server import ProxyServer
from roost.proxy.upstream import Upstream, Upstreams

Reader = asyncio.StreamReader
Writer = asyncio.StreamWriter
Serve = Callable[[Reader, Writer], Awaitable[None]]


class Fixed:
    """Every request has the same plan."""

    def __init__(self, plan: Plan | Answer) -> None:
        self.plan = plan

    def decide(self, request: Request) -> Plan | Answer:
        return self.plan

    async def find(self, request: Request, pool: Pool) -> BackendConnection | Stream | Answer:
        raise NotImplementedError


class Seen:
    """An observer that keeps all."""

    def __init__(self) -> None:
        self.records: list[Finished] = []

    def done(self, record: Finished) -> None:
        self.records.append(record)


class Site:
    """A proxy in front of some servers."""

    def __init__(self) -> None:
        self.proxy: Proxy
        self.server: ProxyServer
        self.router: Fixed
        self.upstreams: Upstreams
        self.seen = Seen()
        self.port = 0
        self.writers: list[Writer] = []
        self.tasks: set[asyncio.Task[None]] = set()

    @property
    def plan(self) -> Plan:
        assert isinstance(self.router.plan, Plan)
        return self.router.plan

    async def origin(self, serve: Serve) -> tuple[asyncio.Server, str]:
        async def guarded(reader: Reader, writer: Writer) -> None:
            task = asyncio.current_task()
            assert task is not None
            self.tasks.add(task)
            try:
                await serve(reader, writer)
            except (asyncio.IncompleteReadError, OSError, asyncio.CancelledError):
                pass
            finally:
                self.tasks.discard(task)
                writer.close()

        server = await asyncio.start_server(guarded, "127.0.0.1", 0, limit=1 << 22)
        return server, f"127.0.0.1:{server.sockets[0].getsockname()[1]}"

    async def client(self) -> tuple[Reader, Writer]:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port, limit=1 << 22)
        self.writers.append(writer)
        return reader, writer

    async def ask(self, request: bytes) -> tuple[int, bytes, bytes]:
        """Status, head and body of one request on a connection of its own."""
        reader, writer = await self.client()
        writer.write(request)
        answer = await one(reader)
        writer.close()
        return answer

    async def until(self, met: Callable[[], bool]) -> None:
        for _ in range(1000):
            if met():
                return
            await asyncio.sleep(0.005)
        raise AssertionError("it never came true")


async def one(reader: Reader) -> tuple[int, bytes, bytes]:
    head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 15)
    size = 0
    for line in head.lower().split(b"\r\n"):
        if line.startswith(b"content-length:"):
            size = int(line.split(b":")[1])
    return int(head.split(b" ")[1]), head, await asyncio.wait_for(reader.readexactly(size), 15)


def get(path: str = "/", *lines: str, method: str = "GET", body: str = "") -> bytes:
    if body:
        lines = (*lines, f"Content-Length: {len(body)}")
    return "\r\n".join((f"{method} {path} HTTP/1.1", "Host: h", *lines, "", body)).encode()


def saying(text: bytes, status: bytes = b"200 OK", *lines: bytes) -> Serve:
    """A server that always answers the same."""

    async def serve(reader: Reader, writer: Writer) -> None:
        while True:
            head = await reader.readuntil(b"\r\n\r\n")
            for line in head.lower().split(b"\r\n"):
                if line.startswith(b"content-length:"):
                    await reader.readexactly(int(line.split(b":")[1]))
            size = b"Content-Length: %d" % len(text)
            writer.write(b"\r\n".join((b"HTTP/1.1 " + status, size, *lines, b"", text)))

    return serve


@asynccontextmanager
async def site(
    *serves: Serve | str, limits: Limits | None = None, **options: Any
) -> AsyncIterator[Site]:
    """``options`` beginning with ``plan_`` are the plan's, the others the service's."""
    made = Site()
    servers = []
    addresses = []
    for serve in serves:
        if isinstance(serve, str):
            addresses.append(serve)
        else:
            server, address = await made.origin(serve)
            servers.append(server)
            addresses.append(address)
    mine = {k[5:]: v for k, v in options.items() if k.startswith("plan_")}
    options = {k: v for k, v in options.items() if not k.startswith("plan_")}
    options.setdefault("balance", "round-robin")
    service = policy.Service(name="s", backends=tuple(addresses), **options)
    made.upstreams = Upstreams(service)
    plan = Plan(
        name="r",
        upstreams=made.upstreams,
        retries=service.retries,
        hedging=mine.pop("hedging", policy.Hedging(enabled=False)),
        **mine,
    )
    made.router = Fixed(plan)
    made.proxy = Proxy(made.router, limits or Limits(), observer=made.seen)
    made.server = ProxyServer(made.proxy)
    sock = socket.socket()
    sock.bind(("127.0.0.1", 0))
    made.port = sock.getsockname()[1]
    await made.server.listen(sock)
    try:
        yield made
    finally:
        for writer in made.writers:
            writer.transport.abort()
        await made.server.close(drain_s=0)
        for server in servers:
            server.close()
        for task in list(made.tasks):
            task.cancel()
        await asyncio.gather(*made.tasks, return_exceptions=True)
        for _ in range(5):
            await asyncio.sleep(0)


def reset(writer: Writer) -> None:
    """Leave so that the other side knows it at once."""
    sock = writer.get_extra_info("socket")
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


def free_port() -> str:
    """An address nobody listens on."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{sock.getsockname()[1]}"


def idle_again(made: Site) -> bool:
    return all(member.active == 0 for member in made.upstreams.members)


# --- retries ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["GET", "POST"])
async def test_a_refused_connection_is_tried_elsewhere_whatever_the_method(method: str) -> None:
    async with site(free_port(), saying(b"here")) as made:
        for _ in range(6):
            status, _, body = await made.ask(get("/", method=method, body="data"))
            assert (status, body) == (200, b"here")
        assert idle_again(made)
        assert sum(record.retries for record in made.seen.records) >= 1


async def test_nobody_there_is_a_502_and_the_connection_goes_on() -> None:
    async with site(free_port(), free_port()) as made:
        reader, writer = await made.client()
        for _ in range(3):
            writer.write(get())
            assert (await one(reader))[0] in (502, 503)
        assert idle_again(made)


async def test_bad_gateways_of_repeatable_requests_are_tried_elsewhere() -> None:
    bad = saying(b"no", b"503 Service Unavailable")
    async with site(bad, saying(b"good")) as made:
        for _ in range(4):
            assert (await made.ask(get()))[2] == b"good"
            assert (await made.ask(get(method="PUT", body="x" * 100)))[2] == b"good"
        answers = [(await made.ask(get(method="POST", body="x")))[0] for _ in range(4)]
        assert set(answers) <= {200, 503}
        assert idle_again(made)


async def test_where_there_is_nowhere_else_the_answer_is_passed_on() -> None:
    async with site(saying(b"sorry", b"503 Service Unavailable")) as made:
        assert (await made.ask(get()))[::2] == (503, b"sorry")
        record = made.seen.records[0]
        assert (record.status, record.outcome, record.retries) == (503, "ok", 0)


async def test_a_reset_before_the_answer_is_retried_once_a_byte_came_it_is_not() -> None:
    asked = []

    async def resets(reader: Reader, writer: Writer) -> None:
        asked.append((await reader.readuntil(b"\r\n\r\n")).split(b" ")[0])
        writer.transport.abort()

    async def breaks(reader: Reader, writer: Writer) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf")
        await writer.drain()
        writer.close()

    async with site(resets, saying(b"whole")) as made:
        for _ in range(4):
            assert (await made.ask(get()))[2] == b"whole"
        assert idle_again(made)
    asked.clear()
    async with site(resets, resets) as made:
        assert (await made.ask(get(method="POST", body="once")))[0] == 502
        assert len(asked) == 1, "a request that may have been carried out is not sent again"
    async with site(breaks, breaks) as made:
        reader, writer = await made.client()
        writer.write(get())
        answer = await asyncio.wait_for(reader.read(), 10)
        assert answer.endswith(b"half")
        await made.until(lambda: bool(made.seen.records))
        assert made.seen.records[0].outcome == "cut"
        assert made.seen.records[0].retries == 0


async def test_the_keep_alive_race_is_nobodys_fault() -> None:
    async def once(reader: Reader, writer: Writer) -> None:
        """Answers a request, ends at the next one."""
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
        await reader.readuntil(b"\r\n\r\n")

    async with site(once) as made:
        reader, writer = await made.client()
        for _ in range(8):
            writer.write(get())
            assert (await one(reader))[2] == b"ok"
        assert made.upstreams.members[0].state == "ready"
        assert idle_again(made)


async def test_bodies_leave_nothing_behind_for_the_next_request() -> None:
    got: list[bytes] = []

    async def serve(reader: Reader, writer: Writer) -> None:
        while True:
            head = await reader.readuntil(b"\r\n\r\n")
            size = head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0]
            got.append(head.split(b" ")[0] + b" " + await reader.readexactly(int(size or b"0")))
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")

    async with site(serve) as made:
        reader, writer = await made.client()
        for _ in range(3):
            writer.write(get(method="POST", body="one") + get() + get(method="PUT", body="three"))
            for _ in range(3):
                assert (await one(reader))[0] == 200
        assert got == [b"POST one", b"GET ", b"PUT three"] * 3
        await made.until(lambda: len(made.seen.records) == 9)
        assert [record.bytes_in for record in made.seen.records] == [3, 0, 5] * 3
        assert idle_again(made)


async def test_a_large_body_is_not_kept_for_another_attempt() -> None:
    async def takes_and_resets(reader: Reader, writer: Writer) -> None:
        await reader.readuntil(b"\r\n\r\n")
        await reader.readexactly(300_000)
        writer.transport.abort()

    async with site(takes_and_resets, takes_and_resets) as made:
        assert (await made.ask(get(method="PUT", body="x" * 300_000)))[0] == 502
        assert made.seen.records[0].retries == 0


# --- hedging ---------------------------------------------------------------------------------------


async def test_a_slow_request_gets_a_second_copy_and_the_first_answer_wins() -> None:
    got_away = asyncio.Event()

    async def frozen(reader: Reader, writer: Writer) -> None:
        await reader.readuntil(b"\r\n\r\n")
        await reader.read()
        got_away.set()

    hedging = policy.Hedging(after_s=0.05, max_share=1.0)
    async with site(frozen, saying(b"quick"), plan_hedging=hedging) as made:
        reader, writer = await made.client()
        for _ in range(6):
            writer.write(get())
            assert (await one(reader))[2] == b"quick"
        await asyncio.wait_for(got_away.wait(), 5)
        assert any(record.hedged for record in made.seen.records)
        assert idle_again(made)


async def test_a_post_is_never_hedged() -> None:
    asked = []

    async def slow(reader: Reader, writer: Writer) -> None:
        while True:
            head = await reader.readuntil(b"\r\n\r\n")
            asked.append(head)
            await asyncio.sleep(0.3)
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")

    hedging = policy.Hedging(after_s=0.02, max_share=1.0)
    async with site(slow, slow, plan_hedging=hedging) as made:
        assert (await made.ask(get(method="POST")))[0] == 200
        assert len(asked) == 1


# --- waiting for a slot, or for anybody ------------------------------------------------------------------


async def test_full_backends_make_requests_wait_in_order_and_the_line_is_bounded() -> None:
    order: list[bytes] = []
    gate = asyncio.Event()

    async def gated(reader: Reader, writer: Writer) -> None:
        while True:
            head = await reader.readuntil(b"\r\n\r\n")
            order.append(head.split(b" ")[1])
            await gate.wait()
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")

    breaker = policy.Breaker(max_requests=1, max_pending=3, pending_s=10)
    async with site(gated, breaker=breaker) as made:
        asks = []
        for number in range(4):
            asks.append(asyncio.create_task(made.ask(get(f"/{number}"))))
            await made.until(partial(lambda wanted: len(made.upstreams.line) == wanted, number))
            await made.until(lambda: len(order) == 1)
        status, head, _ = await made.ask(get("/late"))
        assert status == 503
        assert b"Retry-After" in head
        gate.set()
        assert [answer[0] for answer in await asyncio.gather(*asks)] == [200] * 4
        assert order == [b"/0", b"/1", b"/2", b"/3"]
        assert idle_again(made)


async def test_who_waits_too_long_for_a_slot_gets_a_503() -> None:
    async def never(reader: Reader, writer: Writer) -> None:
        await reader.read()

    breaker = policy.Breaker(max_requests=1, pending_s=0.1)
    async with site(never, breaker=breaker, limits=Limits(half_closed_s=0.2)) as made:
        _, writer = await made.client()
        writer.write(get())
        await made.until(lambda: made.upstreams.members[0].active == 1)
        assert (await made.ask(get()))[0] == 503
        writer.close()
        await made.until(lambda: idle_again(made))


async def test_held_requests_go_on_when_the_service_gets_a_backend() -> None:
    hold = policy.HoldPolicy(wait_s=10, max_requests=2)
    waited: list[str] = []
    async with site(plan_hold=hold) as made:
        made.proxy.on_waiting = waited.append
        asks = [asyncio.create_task(made.ask(get("/a"))) for _ in range(2)]
        await made.until(lambda: made.proxy.held == 2)
        assert (await made.ask(get("/b")))[0] == 503
        server, address = await made.origin(saying(b"awake"))
        made.upstreams.updated(policy.Service(name="s", backends=(address,)))
        made.server.set_router(made.router)
        assert [answer[2] for answer in await asyncio.gather(*asks)] == [b"awake"] * 2
        assert made.proxy.held == 0
        assert waited == ["r", "r"]
        server.close()


async def test_a_hold_ends() -> None:
    hold = policy.HoldPolicy(wait_s=0.1)
    async with site(plan_hold=hold) as made:
        assert (await made.ask(get()))[0] == 503
        assert made.proxy.held == 0


async def test_the_trial_of_a_half_open_backend_costs_no_client_an_error() -> None:
    posted: list[bytes] = []

    async def sick(reader: Reader, writer: Writer) -> None:
        while True:
            posted.append(await reader.readuntil(b" "))
            await reader.readuntil(b"\r\n\r\n")
            writer.write(b"HTTP/1.1 500 No\r\nContent-Length: 0\r\n\r\n")

    outlier = policy.PassiveHealth(eject_s=0.01, eject_max_s=0.01)
    async with site(sick, saying(b"well"), outlier=outlier) as made:
        member = made.upstreams.members[0]
        loop = asyncio.get_running_loop()
        made.upstreams.eject(member, loop.time())
        trials = 0
        for _ in range(400):
            before = len(posted)
            answer = await made.ask(get())
            assert (answer[0], answer[2]) == (200, b"well")
            assert (await made.ask(get(method="POST", body="x")))[0] == 200
            trials += len(posted) - before
            if trials > 2:
                break
        assert trials > 2
        assert set(posted) == {b"GET "}
        assert member.out_until_s


# --- hooks -------------------------------------------------------------------------------------------


async def test_admission_refuses_or_is_released_once() -> None:
    released: list[bytes] = []

    def admit(request: Request) -> Answer | Callable[[], None]:
        if request.path == b"/no":
            return Answer(429, "slow down", retry_after_s=1)
        return lambda: released.append(request.path)

    async with site(saying(b"in"), plan_admit=admit) as made:
        reader, writer = await made.client()
        for path, status in (("/yes", 200), ("/no", 429), ("/yes", 200)):
            writer.write(get(path))
            assert (await one(reader))[0] == status
        assert released == [b"/yes", b"/yes"]
        assert [r.refused for r in made.seen.records] == ["", "slow down", ""]


async def test_another_server_may_refuse_or_add_fields() -> None:
    async def later(request: Request) -> Answer | Pairs:
        await asyncio.sleep(0)
        if request.path == b"/no":
            return Answer(403, "not you")
        return ((b"x-user", b"ada"), (b"cookie", b""))

    async def shows(reader: Reader, writer: Writer) -> None:
        while True:
            head = await reader.readuntil(b"\r\n\r\n")
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(head) + head)

    async with site(shows, plan_admit_later=later) as made:
        reader, writer = await made.client()
        writer.write(get("/no") + get("/yes", "X-User: mallory", "Cookie: secret=1"))
        assert (await one(reader))[0] == 403
        seen = (await one(reader))[2]
        assert b"x-user: ada" in seen
        assert b"mallory" not in seen
        assert b"secret" not in seen


class Renaming:
    """Another target, host and fields both ways."""

    def request(self, request: Request) -> tuple[bytes, Pairs]:
        return b"/new" + request.target, ((b"host", b"inner"), (b"x-b", b""))

    def response(self, request: Request, upstream: Upstream) -> Pairs:
        return ((b"server", b""), (b"x-c", b"1"), (b"set-cookie", b"a=b"))


async def test_rewriting_both_ways() -> None:
    async def shows(reader: Reader, writer: Writer) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        writer.write(
            b"HTTP/1.1 200 OK\r\nServer: x\r\nSet-Cookie: c=d\r\nContent-Length: %d\r\n\r\n"
            % len(head)
            + head
        )

    async with site(shows, plan_rewrite=Renaming()) as made:
        _, head, seen = await made.ask(get("/x?y", "X-B: gone", "X-D: stays"))
        assert seen.startswith(b"GET /new/x?y HTTP/1.1\r\n")
        assert b"host: inner\r\n" in seen
        assert b"\r\nHost: h\r\n" not in seen
        assert b"gone" not in seen
        assert b"X-D: stays" in seen
        assert b"X-Forwarded-Host: h\r\n" in seen
        assert b"Server" not in head
        assert b"x-c: 1" in head
        assert head.count(b"ookie") == 2


@pytest.mark.parametrize("chunked", [False, True])
async def test_too_large_a_body_is_a_413(chunked: bool) -> None:
    async with site(saying(b"ok"), plan_body_bytes=1000) as made:
        assert (await made.ask(get(method="POST", body="x" * 1000)))[0] == 200
        if chunked:
            body = b"Transfer-Encoding: chunked\r\n\r\n7d0\r\n" + b"x" * 2000
            request = b"POST / HTTP/1.1\r\nHost: h\r\n" + body
        else:
            request = get(method="POST", body="x" * 1001)
        assert (await made.ask(request))[0] == 413
        await made.until(lambda: idle_again(made))


# --- what is passed on ---------------------------------------------------------------------------------


async def test_the_backends_load_is_taken_and_not_passed_on() -> None:
    async with site(saying(b"ok", b"200 OK", b"Roost-Load: active=3;slots=8")) as made:
        _, head, _ = await made.ask(get())
        assert b"oad" not in head
        assert made.upstreams.members[0].reported_slots == 8


async def test_forwarding_fields_and_ids_by_trust() -> None:
    async def shows(reader: Reader, writer: Writer) -> None:
        while True:
            head = await reader.readuntil(b"\r\n\r\n")
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(head) + head)

    lines = (
        "X-Forwarded-For: 203.0.113.9",
        "X-Forwarded-Proto: https",
        "Forwarded: for=203.0.113.9",
        "X-Request-Id: theirs",
    )
    async with site(shows) as made:
        made.proxy.id_prefix = b"w1-"
        seen = (await made.ask(get("/", *lines)))[2]
        assert b"203.0.113.9" not in seen
        assert b"https" not in seen
        assert b"X-Request-Id: w1-" in seen
        assert made.seen.records[-1].request_id.startswith(b"w1-")
        again = (await made.ask(get("/", *lines)))[2]
        assert again != seen, "each request has its own id"
        made.proxy.trusted = (ip_network("127.0.0.0/8"),)
        seen = (await made.ask(get("/", *lines)))[2]
        assert b"X-Forwarded-For: 203.0.113.9, 127.0.0.1\r\n" in seen
        assert b"X-Forwarded-Proto: https\r\n" in seen
        assert b"Forwarded: for=203.0.113.9, for=127.0.0.1" in seen
        assert b"X-Request-Id: theirs\r\n" in seen
        assert made.seen.records[-1].client == "203.0.113.9"
        assert made.seen.records[-1].request_id == b"theirs"


async def test_events_arrive_one_by_one() -> None:
    go = asyncio.Event()

    async def events(reader: Reader, writer: Writer) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n")
        writer.write(b"Transfer-Encoding: chunked\r\n\r\n9\r\ndata: 1\n\n\r\n")
        await go.wait()
        writer.write(b"9\r\ndata: 2\n\n\r\n0\r\nX-Trailer: t\r\n\r\n")

    async with site(events) as made:
        reader, writer = await made.client()
        writer.write(get())
        await asyncio.wait_for(reader.readuntil(b"data: 1\n\n\r\n"), 10)
        go.set()
        rest = await asyncio.wait_for(reader.readuntil(b"X-Trailer: t\r\n\r\n"), 10)
        assert rest.startswith(b"9\r\ndata: 2")


@pytest.mark.parametrize("plain", [True, False])
async def test_a_stalled_download_takes_no_memory(plain: bool) -> None:
    """By both ways: a body of known length, and chunks."""
    size = 64 << 20
    sent = 0

    async def endless(reader: Reader, writer: Writer) -> None:
        nonlocal sent
        await reader.readuntil(b"\r\n\r\n")
        coding = b"Content-Length: %d" % size if plain else b"Transfer-Encoding: chunked"
        writer.write(b"HTTP/1.1 200 OK\r\n" + coding + b"\r\n\r\n")
        piece = b"x" * (64 << 10)
        while sent < size:
            writer.write(piece if plain else b"10000\r\n" + piece + b"\r\n")
            await writer.drain()
            sent += len(piece)

    async with site(endless) as made:
        sock = socket.socket()
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 64 << 10)
        sock.setblocking(False)
        await asyncio.get_running_loop().sock_connect(sock, ("127.0.0.1", made.port))
        sock.sendall(get())
        before = -1
        while before != sent:
            before = sent
            await asyncio.sleep(0.2)
        waiting = [c.transport.get_write_buffer_size() for c in made.proxy.clients]
        assert sent < 32 << 20
        assert max(waiting) < 1 << 20
        sock.close()
        await made.until(lambda: idle_again(made))


# --- the end -----------------------------------------------------------------------------------------


async def test_a_drain_closes_idle_connections_and_lets_the_others_finish() -> None:
    gate = asyncio.Event()

    async def gated(reader: Reader, writer: Writer) -> None:
        await reader.readuntil(b"\r\n\r\n")
        await gate.wait()
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
        await reader.read()

    async with site(gated) as made:
        idle_reader, _ = await made.client()
        reader, writer = await made.client()
        writer.write(get())
        await made.until(lambda: made.proxy.busy == 1 and len(made.proxy.clients) == 2)
        made.proxy.drain()
        assert await asyncio.wait_for(idle_reader.read(), 5) == b""
        gate.set()
        status, head, _ = await one(reader)
        assert status == 200
        assert b"Connection: close" in head
        assert await asyncio.wait_for(reader.read(), 5) == b""


async def test_a_client_that_leaves_is_counted_and_frees_its_backend() -> None:
    async def never(reader: Reader, writer: Writer) -> None:
        await reader.read()

    async with site(never) as made:
        _, writer = await made.client()
        writer.write(get("/x"))
        await made.until(lambda: made.upstreams.members[0].active == 1)
        reset(writer)
        await made.until(lambda: idle_again(made))
        record = made.seen.records[0]
        assert (record.outcome, record.status, record.target) == ("gone", 0, b"/x")


async def test_a_silent_backend_is_a_504_by_the_routes_own_time() -> None:
    async def never(reader: Reader, writer: Writer) -> None:
        await reader.read()

    async with site(never, plan_timeouts=policy.Timeouts(response_s=0.1)) as made:
        assert (await made.ask(get()))[0] == 504
        assert idle_again(made)


async def test_thousands_of_pipelined_requests_need_no_deep_stack() -> None:
    async with site(saying(b"ok")) as made:
        made.router.plan = Answer(200, body=b"own")
        reader, writer = await made.client()
        writer.write(get() * 3000)
        for _ in range(3000):
            assert (await one(reader))[2] == b"own"
