"""``roost gateway`` as people run it: reload, drain, upgrade, death of processes, logs and metrics."""

import asyncio
import json
import re
import signal
import socket
import ssl
import sys
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import pytest
from websockets.asyncio.client import connect
from websockets.asyncio.server import ServerConnection, serve
from websockets.exceptions import ConnectionClosed

from tests.support.certificates import Authority
from tests.support.gateway import (
    START,
    Backend,
    Client,
    Echo,
    Gateway,
    Load,
    alive,
    get,
    kill,
    running,
    until,
    until_async,
)

pytestmark = pytest.mark.e2e


def config(backends: Sequence[Backend], more: str = "", top: str = "") -> str:
    addresses = ", ".join(f'"{b.address}"' for b in backends)
    return f"""
workers = 2
admin = "127.0.0.1:0"
drain_s = 5.0
{top}
[[listeners]]
name = "main"
address = "127.0.0.1:0"

[[services]]
name = "web"
backends = [{addresses}]

[[routes]]
name = "all"
service = "web"
listeners = ["main"]
{more}
"""


ZONE = """
zone = "example.test"
nameservers = ["ns.example.net."]
"""


@pytest.fixture
async def backends() -> AsyncIterator[list[Backend]]:
    made = [await Backend(name).start() for name in ("one", "two")]
    yield made
    for backend in made:
        await backend.stop()


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port


async def test_reload_under_load_loses_nothing(backends: list[Backend]) -> None:
    port = free_port()
    second = f"""
[[listeners]]
name = "second"
address = "127.0.0.1:{port}"
[[routes]]
name = "new"
listeners = ["second"]
answer = {{ body = "fresh" }}
"""
    async with running(config(backends[:1])) as gateway:
        echo = await Echo().open(gateway.addresses["main"])
        async with Load(gateway.addresses["main"]) as load:
            for _ in range(2):
                gateway.write(config(backends, second))
                state = await gateway.reload()
                assert state["config_ok"], gateway.errors
                assert {worker["version"] for worker in state["workers"]} == {state["version"]}
                await load.more()
                assert await get(f"127.0.0.1:{port}") == (200, b"fresh")
                gateway.write(config(backends[:1]))
                await gateway.reload()
                with pytest.raises(ConnectionRefusedError):
                    await get(f"127.0.0.1:{port}")
            assert await echo.says(b"still here")
        assert (load.failed, load.raced) == ([], 0)
        assert backends[1].requests > 0
        echo.close()


async def test_workers_come_and_go(backends: list[Backend]) -> None:
    async with running(config(backends)) as gateway:
        first = {worker["pid"] for worker in (await gateway.state())["workers"]}
        async with Load(gateway.addresses["main"]) as load:
            for count in (3, 1, 2):
                gateway.write(config(backends).replace("workers = 2", f"workers = {count}"))
                assert (await gateway.reload())["config_ok"], gateway.errors

                async def as_many(count: int = count) -> bool:
                    return bool((await gateway.state())["running"] == count)

                await until_async(as_many)
                await load.more()
        assert load.failed == []
        state = await gateway.state()
        assert len(first & {worker["pid"] for worker in state["workers"]}) >= 1
        assert state["worker_restarts"] == 0


async def test_a_bad_configuration_changes_nothing(backends: list[Backend]) -> None:
    async with running(config(backends)) as gateway:
        for broken in (
            "listeners = 3",
            config(backends).replace('service = "web"', 'service = "wob"'),
            config(backends, '[[listeners]]\nname = "taken"\naddress = "{}"'),
        ):
            gateway.write(broken.replace("{}", backends[0].address))
            state = await gateway.reload()
            assert not state["config_ok"]
            assert state["error"]
            assert state["version"] == 1
            assert (await get(gateway.addresses["main"]))[0] == 200
            assert any(state["error"] in line for line in gateway.errors)
        assert "cannot listen" in state["error"]
        gateway.write(config(backends))
        state = await gateway.reload()
        assert state["config_ok"]
        assert state["error"] == ""


async def test_a_killed_worker_is_replaced_under_load(backends: list[Backend]) -> None:
    async with running(config(backends)) as gateway:
        victim = (await gateway.state())["workers"][0]["pid"]
        async with Load(gateway.addresses["main"], close=True) as load:
            before = (await gateway.state())["totals"]["requests"]
            kill(victim)

            async def replaced() -> bool:
                state = await gateway.state()
                return state["worker_restarts"] == 1 and state["running"] == 2

            await until_async(replaced)
            await load.more()
        # Only what that worker had in its hands; what waited in its queue is served by the next one.
        assert len(load.failed) <= load.clients, load.failed
        state = await gateway.state()
        assert victim not in [worker["pid"] for worker in state["workers"]]
        assert state["totals"]["requests"] >= before  # its counts are kept


async def test_the_program_is_upgraded_under_load(backends: list[Backend]) -> None:
    port = free_port()
    text = config(backends).replace('admin = "127.0.0.1:0"', f'admin = "127.0.0.1:{port}"')
    async with running(text) as gateway:
        before = await gateway.state()
        old = {worker["pid"] for worker in before["workers"]}
        echo = await Echo().open(gateway.addresses["main"])
        address = gateway.addresses["main"]
        async with Load(address) as kept, Load(address, clients=4, close=True) as fresh:
            gateway.signal(signal.SIGUSR2)

            async def taken_over() -> bool:
                try:
                    state = await gateway.state()
                except OSError:
                    return False
                new = {worker["pid"] for worker in state["workers"]}
                return state["running"] == 2 and not new & old

            await until_async(taken_over)
            await fresh.more()
            await kept.more()
            assert await echo.says(b"kept while the old workers drain")
        assert (kept.failed, fresh.failed, fresh.raced) == ([], [], 0)
        assert (await gateway.state())["pid"] == before["pid"] == gateway.process.pid
        echo.close()
        await until(lambda: not any(map(alive, old)))
        assert (await get(gateway.addresses["main"]))[0] == 200


async def test_a_program_that_cannot_read_its_file_is_not_upgraded_to(
    backends: list[Backend],
) -> None:
    async with running(config(backends)) as gateway:
        pids = [worker["pid"] for worker in (await gateway.state())["workers"]]
        gateway.write("nonsense")
        gateway.signal(signal.SIGUSR2)
        await until(lambda: any("this one goes on" in line for line in gateway.errors))
        assert (await get(gateway.addresses["main"]))[0] == 200
        assert [worker["pid"] for worker in (await gateway.state())["workers"]] == pids


async def test_draining_ends_what_is_in_flight(backends: list[Backend]) -> None:
    async with running(config(backends)) as gateway:
        address = gateway.addresses["main"]
        slow = asyncio.create_task(get(address, "/slow"))
        await until(lambda: backends[0].requests + backends[1].requests > 0)
        queued = [asyncio.create_task(get(address)) for _ in range(20)]
        await asyncio.sleep(0)
        gateway.signal(signal.SIGTERM)
        assert (await slow)[0] == 200
        assert {status for status, _ in await asyncio.gather(*queued)} == {200}
        assert await gateway.process.wait() == 0
        with pytest.raises(ConnectionRefusedError):
            await get(address)


async def test_a_second_signal_ends_at_once(backends: list[Backend]) -> None:
    backends[0].slow_s = backends[1].slow_s = 60.0
    async with running(config(backends, top="")) as gateway:
        slow = asyncio.create_task(get(gateway.addresses["main"], "/slow"))
        await until(lambda: backends[0].requests + backends[1].requests > 0)
        loop = asyncio.get_running_loop()
        began_s = loop.time()
        gateway.signal(signal.SIGTERM)
        await until_async(lambda: _refuses(gateway))
        gateway.signal(signal.SIGTERM)
        assert await gateway.process.wait() == 0
        assert loop.time() - began_s < 5.0
        with pytest.raises((OSError, asyncio.IncompleteReadError)):
            await slow


async def _refuses(gateway: Gateway) -> bool:
    state = await gateway.state()
    return bool(state["stopping"])


async def test_workers_end_with_their_supervisor(backends: list[Backend]) -> None:
    async with running(config(backends)) as gateway:
        pids = [worker["pid"] for worker in (await gateway.state())["workers"]]
        slow = asyncio.create_task(get(gateway.addresses["main"], "/slow"))
        await until(lambda: backends[0].requests + backends[1].requests > 0)
        kill(gateway.process.pid)
        assert (await slow)[0] == 200
        await until(lambda: not any(map(alive, pids)))


async def test_metrics_health_and_state(backends: list[Backend]) -> None:
    async with running(config(backends)) as gateway:
        client = Client(gateway.addresses["main"])
        for _ in range(10):
            assert (await client.get())[0] == 200
        client.close()
        assert (await get(gateway.addresses["main"], "/%00"))[0] == 400
        admin = gateway.addresses["admin"]
        assert await get(admin, "/health") == (200, b'{"status":"ok","workers":2}')

        async def counted() -> bool:
            return sum(r["requests"] for r in (await gateway.state())["routes"]) >= 11

        await until_async(counted)
        text = (await get(admin, "/metrics"))[1].decode()
        numbers = re.findall(
            r'roost_gateway_requests_total\{route="all",.*code="2xx"\} (\d+)', text
        )
        assert sum(map(int, numbers)) == 10
        assert 'roost_gateway_request_seconds_bucket{route="all",le="+Inf"} 10' in text
        assert "roost_gateway_running 2" in text
        assert 'state="ready"} 1' in text
        assert 'roost_gateway_refused_total{reason="bad_request"} 1' in text
        assert 'kind="timeout"} 0' in text
        for line in text.splitlines():
            assert re.fullmatch(r"#.*|[a-z_]+(\{[^}]*\})? [0-9.e+\-]+", line), line
        state = await gateway.state()
        assert {b["backend"] for b in state["backends"]} == {b.address for b in backends}


async def test_the_access_log_survives_its_rotation(backends: list[Backend]) -> None:
    text = config(backends, '[access_log]\npath = "access.log"\n')
    async with running(text) as gateway:
        log, moved = gateway.folder / "access.log", gateway.folder / "access.log.1"
        assert (await get(gateway.addresses["main"], "/first"))[0] == 200
        await until(lambda: b"/first" in log.read_bytes())
        log.rename(moved)
        gateway.signal(signal.SIGUSR1)
        await until(log.exists)

        async def written() -> bool:
            await get(gateway.addresses["main"], "/second")
            return b"/second" in log.read_bytes()

        await until_async(written)
        line = json.loads(moved.read_text().splitlines()[0])
        assert line["target"] == "/first"
        assert (line["status"], line["route"], line["outcome"]) == (200, "all", "ok")
        assert line["request_id"]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
async def test_a_full_disk_loses_lines_and_no_request(backends: list[Backend]) -> None:
    text = config(backends, '[access_log]\npath = "/dev/full"\nformat = "combined"\n')
    async with running(text) as gateway:
        for _ in range(5):
            assert (await get(gateway.addresses["main"]))[0] == 200

        async def counted() -> bool:
            return bool((await gateway.state())["totals"]["access_log_lines_lost"] == 5)

        await until_async(counted)


async def test_probes_take_a_dead_backend_out(backends: list[Backend]) -> None:
    text = config(backends).replace(
        'name = "web"',
        'name = "web"\nhealth = { interval_s = 0.1, unhealthy_after = 2, healthy_after = 1 }',
    )
    async with running(text) as gateway:
        await backends[1].stop()

        async def seen() -> bool:
            states = {b["backend"]: b["state"] for b in (await gateway.state())["backends"]}
            return states == {backends[0].address: "ready", backends[1].address: "down"}

        await until_async(seen)
        assert await get(gateway.addresses["main"]) == (200, b"one")


async def test_quick_start(backends: list[Backend]) -> None:
    arguments = ["--listen", "127.0.0.1:0", "--workers", "1"]
    for backend in backends:
        arguments += ["--backend", backend.address]
    async with running("", *arguments) as gateway:
        (address,) = gateway.addresses.values()
        assert (await get(address))[0] == 200
        gateway.signal(signal.SIGTERM)
        assert await gateway.process.wait() == 0


async def test_a_taken_port_is_said(backends: list[Backend]) -> None:
    arguments = ("--listen", backends[0].address, "--backend", backends[1].address)
    code, _, errors = await command(*arguments)
    assert code == 2
    assert "cannot listen on" in errors


def tls_config(backends: Sequence[Backend], certificate: Path, key: Path) -> str:
    tls = f'tls = {{ certificates = [{{ certificate = "{certificate}", key = "{key}" }}] }}'
    return config(backends).replace('name = "main"\naddress', f'name = "main"\n{tls}\naddress')


class Secure:
    """A TLS client that keeps its session."""

    def __init__(self, address: str, authority: Authority) -> None:
        host, _, port = address.rpartition(":")
        self._address = (host, int(port))
        self._context = ssl.create_default_context(cafile=str(authority.file))
        self._context.maximum_version = (
            ssl.TLSVersion.TLSv1_2
        )  # its tickets come with the handshake
        self._session: ssl.SSLSession | None = None

    def connect(self) -> tuple[bool, int]:
        """Whether the session was resumed, and the serial number of the certificate."""
        with (
            socket.create_connection(self._address, timeout=10) as plain,
            self._context.wrap_socket(
                plain, server_hostname="test.local", session=self._session
            ) as sock,
        ):
            self._session = sock.session
            sock.sendall(b"GET / HTTP/1.1\r\nHost: test.local\r\nConnection: close\r\n\r\n")
            assert sock.recv(65536).startswith(b"HTTP/1.1 200 ")
            resumed = bool(sock.session_reused)
            serial = int(str((sock.getpeercert() or {}).get("serialNumber", "0")), 16)
            return resumed, serial


async def test_sessions_resume_in_every_worker_and_certificates_are_reloaded(
    backends: list[Backend], tmp_path: Path
) -> None:
    authority = Authority(tmp_path)
    pair = authority.issue("test.local")
    async with running(tls_config(backends, pair.certificate, pair.key)) as gateway:
        client = Secure(gateway.addresses["main"], authority)
        _, first = await asyncio.to_thread(client.connect)
        results = [await asyncio.to_thread(client.connect) for _ in range(12)]
        assert all(resumed for resumed, _ in results)

        async def counted() -> bool:
            totals = (await gateway.state())["totals"]
            return bool((totals["tls_handshakes"], totals["tls_resumed"]) == (13, 12))

        await until_async(counted)
        victim = (await gateway.state())["workers"][1]["pid"]
        kill(victim)
        await until_async(lambda: _restarted(gateway))
        again = [await asyncio.to_thread(client.connect) for _ in range(8)]
        assert all(resumed for resumed, _ in again)  # the new worker has the same ticket keys
        other = authority.issue("test.local")
        pair.certificate.write_bytes(other.certificate.read_bytes())
        pair.key.write_bytes(other.key.read_bytes())
        assert (await gateway.reload())["config_ok"]
        fresh = Secure(gateway.addresses["main"], authority)
        _, second = await asyncio.to_thread(fresh.connect)
        assert second != first
        pair.key.write_text("no key")
        state = await gateway.reload()
        assert not state["config_ok"]
        assert (await asyncio.to_thread(fresh.connect))[1] == second


async def _restarted(gateway: Gateway) -> bool:
    state = await gateway.state()
    versions = [worker["version"] for worker in state["workers"]]
    return state["worker_restarts"] == 1 and versions == [state["version"]] * 2


async def command(*arguments: str) -> tuple[int | None, str, str]:
    """Run ``roost gateway`` to its end."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        START,
        "gateway",
        *arguments,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, errors = await process.communicate()
    return process.returncode, out.decode(), errors.decode()


async def test_check_says_what_is_wrong(backends: list[Backend], tmp_path: Path) -> None:
    file = tmp_path / "routes.toml"
    file.write_text(config(backends))
    code, out, _ = await command("check", str(file))
    assert code == 0
    assert "service web: 2 backends, least-work" in out
    file.write_text(config(backends).replace('service = "web"', 'service = "wob"'))
    code, _, errors = await command("check", str(file))
    assert code == 2
    assert "wob" in errors
    code, _, errors = await command()
    assert code == 2
    assert "--config routes.toml" in errors


async def test_check_reads_the_zone(backends: list[Backend], tmp_path: Path) -> None:
    file, zone = tmp_path / "routes.toml", tmp_path / "zone.toml"
    dns = '[dns]\naddress = "127.0.0.1:0"\nzone = "zone.toml"\n'
    file.write_text(config(backends, dns))
    code, _, errors = await command("check", str(file))
    assert code == 2
    assert "zone.toml: No such file" in errors
    zone.write_text(ZONE)
    code, out, errors = await command("check", str(file))
    assert code == 0, errors
    assert "zone example.test" in out


async def test_requests_wait_for_the_backend_that_a_reload_brings(backends: list[Backend]) -> None:
    hold = "hold = { wait_s = 30, max_requests = 8 }"  # for both workers together
    async with running(config([], hold)) as gateway:
        address = gateway.addresses["main"]
        asks = [asyncio.create_task(get(address)) for _ in range(40)]

        async def all_wait_or_were_refused() -> bool:
            held: int = (await gateway.state())["gauges"]["held"]
            return held > 0 and held + sum(ask.done() for ask in asks) == len(asks)

        await until_async(all_wait_or_were_refused)
        held = (await gateway.state())["gauges"]["held"]
        assert 4 <= held <= 8  # each worker keeps half of them, whoever gets the connections
        gateway.write(config(backends, hold))
        assert (await gateway.reload())["config_ok"], gateway.errors
        answers = [status for status, _ in await asyncio.gather(*asks)]
        assert answers.count(200) == held
        assert answers.count(503) == len(asks) - held


async def test_top_shows_a_running_gateway(backends: list[Backend]) -> None:
    async with running(config(backends)) as gateway:
        assert (await get(gateway.addresses["main"]))[0] == 200
        admin = gateway.addresses["admin"]
        code, out, _ = await command("top", admin, "--once", "--json")
        assert code == 0
        assert json.loads(out)["running"] == 2
        code, out, _ = await command("top", admin, "--once")
        assert code == 0
        assert "2 workers" in out
        assert "ready" in out
    code, _, errors = await command("top", admin, "--once")
    assert code == 2
    assert "no gateway answers" in errors


async def test_websockets_are_told_when_the_gateway_ends() -> None:
    async def echo(connection: ServerConnection) -> None:
        async for message in connection:
            await connection.send(message)

    async with serve(echo, "127.0.0.1", 0) as server:
        port = next(iter(server.sockets)).getsockname()[1]
        backend = Backend("websocket")
        backend.address = f"127.0.0.1:{port}"
        async with running(config([backend])) as gateway:
            async with connect(f"ws://{gateway.addresses['main']}/") as client:
                await client.send("hello")
                assert await client.recv() == "hello"
                gateway.signal(signal.SIGHUP)
                await client.send("kept")
                assert await client.recv() == "kept"
                gateway.signal(signal.SIGTERM)
                with pytest.raises(ConnectionClosed):
                    await client.recv()
                assert client.close_code == 1001
            assert await gateway.process.wait() == 0
