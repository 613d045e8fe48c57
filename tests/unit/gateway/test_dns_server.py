"""The DNS server on real sockets: UDP and TCP, bounds, rates, garbage, reload."""

import asyncio
import random
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import dns.asyncquery
import dns.exception
import dns.flags
import dns.message
import dns.rcode
import pytest

from roost.gateway.dns import zonefile
from roost.gateway.dns.limits import Limits
from roost.gateway.dns.server import DnsServer, bind, from_policy
from roost.gateway.dns.zone import Zone
from roost.ports.errors import Invalid
from roost.proxy import policy
from tests.unit.gateway.dns_setup import ZONE, a_zone, query, values

HOST = "127.0.0.1"
DEADLINE_S = 10.0
WEB = "web.cloud.example.org"


@asynccontextmanager
async def serving(**limits: object) -> AsyncIterator[DnsServer]:
    server = DnsServer(
        a_zone(),
        f"{HOST}:0",
        limits=Limits(**limits),  # type: ignore[arg-type]
        rng=random.Random(1),
    )
    await server.start()
    try:
        yield server
    finally:
        await server.close()
        for _ in range(3):
            await asyncio.sleep(0)


async def udp(server: DnsServer, message: dns.message.Message) -> dns.message.Message:
    return await dns.asyncquery.udp(message, HOST, DEADLINE_S, server.port)


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(DEADLINE_S):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.01)


def framed(*messages: dns.message.Message) -> bytes:
    return b"".join(m.to_wire(prepend_length=True) for m in messages)


async def read(reader: asyncio.StreamReader) -> dns.message.Message:
    async with asyncio.timeout(DEADLINE_S):
        size = int.from_bytes(await reader.readexactly(2), "big")
        return dns.message.from_wire(await reader.readexactly(size))


async def test_udp_and_tcp_give_the_same_answer() -> None:
    async with serving() as server:
        message = query(WEB)
        by_udp = await udp(server, message)
        by_tcp = await dns.asyncquery.tcp(message, HOST, DEADLINE_S, server.port)
        assert sorted(values(by_udp)) == sorted(values(by_tcp))
        assert server.counts.queries == 1 and server.counts.tcp_queries == 1


async def test_a_truncated_answer_is_whole_over_tcp() -> None:
    async with serving() as server:
        message = query("big.cloud.example.org", "TXT")
        response, used_tcp = await dns.asyncquery.udp_with_fallback(
            message, HOST, DEADLINE_S, server.port
        )
        assert used_tcp and len(values(response, "TXT")) == 12


async def test_rotation_over_the_wire_kept_answers_included() -> None:
    async with serving() as server:
        firsts = {values(await udp(server, query(WEB)))[0] for _ in range(60)}
        assert firsts == {"192.0.2.1", "192.0.2.2", "192.0.2.3"}


async def test_a_change_of_the_zone_is_in_the_next_answer() -> None:
    async with serving() as server:
        message = query("api.cloud.example.org")
        for _ in range(30):
            assert values(await udp(server, message))
        server.zone.set_region_health("eu", False)
        for _ in range(30):
            assert values(await udp(server, message)) == ["203.0.113.1"]


async def test_several_queries_on_one_connection_in_order_also_in_pieces() -> None:
    async with serving() as server:
        reader, writer = await asyncio.open_connection(HOST, server.port)
        messages = [query(WEB, id=n) for n in range(1, 101)]
        data = framed(*messages)
        writer.write(data[:7])
        await writer.drain()
        await asyncio.sleep(0)
        writer.write(data[7:])
        assert [(await read(reader)).id for _ in messages] == list(range(1, 101))
        writer.write(framed(query(WEB, id=500)))
        # The client ends its side: the answer still comes, then the end.
        writer.write_eof()
        assert (await read(reader)).id == 500
        assert await asyncio.wait_for(reader.read(), DEADLINE_S) == b""
        writer.close()


async def test_a_client_that_takes_nothing_is_not_read_on() -> None:
    async with serving() as server:
        _, writer = await asyncio.open_connection(HOST, server.port, limit=1 << 10)
        one = framed(query("big.cloud.example.org", "TXT")) * 500
        transport = writer.transport
        for _ in range(40):
            writer.write(one)
        (connection,) = await wait_for_connections(server, 1)
        await until(lambda: connection.full)
        held = connection.transport.get_write_buffer_size()
        assert held < 1 << 20 and len(connection._buffer) < 1 << 20
        transport.abort()
        await until(lambda: not server._connections)


async def wait_for_connections(server: DnsServer, count: int) -> list:  # type: ignore[type-arg]
    await until(lambda: len(server._connections) == count)
    return list(server._connections)


async def test_idle_and_dribbling_connections_are_closed() -> None:
    async with serving(idle_s=0.3) as server:
        reader, writer = await asyncio.open_connection(HOST, server.port)
        half = framed(query(WEB))[:10]
        for byte in half:
            writer.write(bytes([byte]))
        with pytest.raises((ConnectionResetError, asyncio.IncompleteReadError)):
            await read(reader)
        writer.close()
        await until(lambda: not server._connections)


async def test_connections_are_bounded_and_the_longest_idle_makes_room() -> None:
    async with serving(connections=3) as server:
        streams = [await asyncio.open_connection(HOST, server.port) for _ in range(3)]
        await wait_for_connections(server, 3)
        streams[0][1].write(framed(query(WEB)))  # the first is in use, the second is idle longest
        await read(streams[0][0])
        fresh = await asyncio.open_connection(HOST, server.port)
        fresh[1].write(framed(query(WEB)))
        assert values(await read(fresh[0]))
        with pytest.raises((ConnectionResetError, asyncio.IncompleteReadError)):
            await read(streams[1][0])
        streams[0][1].write(framed(query(WEB)))
        assert values(await read(streams[0][0]))
        for _, writer in (*streams, fresh):
            writer.close()


async def test_one_network_cannot_take_all_connections() -> None:
    async with serving(connections_per_network=2) as server:
        streams = [await asyncio.open_connection(HOST, server.port) for _ in range(2)]
        await wait_for_connections(server, 2)
        refused = await asyncio.open_connection(HOST, server.port)
        with pytest.raises((ConnectionResetError, asyncio.IncompleteReadError)):
            await read(refused[0])
        streams[0][1].close()
        await wait_for_connections(server, 1)
        again = await asyncio.open_connection(HOST, server.port)
        again[1].write(framed(query(WEB)))
        assert values(await read(again[0]))
        for _, writer in (streams[1], refused, again):
            writer.close()


async def test_tcp_that_is_no_dns_is_closed() -> None:
    async with serving() as server:
        for data in (b"GET / HTTP/1.1\r\n\r\n", b"\x00\x02hi", b"\xff\xff", b"\x00\x00"):
            reader, writer = await asyncio.open_connection(HOST, server.port)
            writer.write(data)
            with pytest.raises((ConnectionResetError, asyncio.IncompleteReadError)):
                await read(reader)
            writer.close()


async def test_garbage_by_udp_harms_nobody() -> None:
    async with serving(responses_per_s=0, all_per_s=0) as server:
        rng = random.Random(7)
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.connect((HOST, server.port))
            good = query(WEB).to_wire()
            for _ in range(300):
                sock.send(rng.randbytes(rng.randrange(0, 600)))
                wire = bytearray(good)
                wire[rng.randrange(2, len(wire))] = rng.randrange(256)
                sock.send(wire)
                await asyncio.sleep(0)
        assert values(await udp(server, query(WEB)))
        assert server.counts.failed == 0


async def test_too_many_equal_answers_are_sent_to_tcp() -> None:
    async with serving(responses_per_s=5, burst_s=1, slip=1) as server:
        message = query(WEB)
        answers = [await udp(server, message) for _ in range(30)]
        slipped = [a for a in answers if a.flags & dns.flags.TC]
        assert len(slipped) >= 15 and not any(a.answer for a in slipped)
        assert values(answers[0])
        response, _ = await dns.asyncquery.udp_with_fallback(message, HOST, DEADLINE_S, server.port)
        assert values(response)
        assert not (await udp(server, query("api.cloud.example.org"))).flags & dns.flags.TC


async def test_dropped_answers_are_dropped() -> None:
    async with serving(all_per_s=1, burst_s=1, slip=0) as server:
        await udp(server, query(WEB))
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.sendto(query(WEB).to_wire(), (HOST, server.port))
            await until(lambda: server.counts.queries == 2)
        assert server.counts.dropped == 1


async def test_the_policy_starts_it_and_a_reload_keeps_what_works(tmp_path: Path) -> None:
    (tmp_path / "zone.toml").write_text(ZONE)
    asked = policy.Dns(address=f"{HOST}:0", zone="zone.toml")
    server = from_policy(asked, folder=tmp_path, serial=7)
    await server.start()
    try:
        assert server.address == f"{HOST}:{server.port}"
        soa = await udp(server, query("cloud.example.org", "SOA"))
        assert " 7 " in values(soa, "SOA")[0]
        more = ZONE.replace('"192.0.2.1", "192.0.2.2", "192.0.2.3"', '"192.0.2.77"')
        (tmp_path / "zone.toml").write_text(more + "[limits]\nslip = 0\n")
        await server.reread()
        assert values(await udp(server, query(WEB))) == ["192.0.2.77"]
        assert server.limits.slip == 0
        with pytest.raises(Invalid):
            server.reload(zonefile.parse(ZONE.replace("cloud.example.org", "other.example")))
        (tmp_path / "zone.toml").write_text("zone =")
        with pytest.raises(Invalid, match=r"zone\.toml"):
            await server.reread()
        assert values(await udp(server, query(WEB))) == ["192.0.2.77"]
    finally:
        await server.close()
    with pytest.raises(dns.exception.Timeout):
        await dns.asyncquery.udp(query(WEB), HOST, 0.05, server.port)


async def test_probes_turn_answers_away_from_what_does_not_answer_and_back() -> None:
    with socket.create_server((HOST, 0)) as well, socket.socket() as other:
        port = well.getsockname()[1]
        # The same port of another loopback address: nobody listens there yet.
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        other.bind(("127.0.0.2", port))
        text = f"""
            zone = "z.example"
            nameservers = ["ns.example.net."]
            [[endpoints]]
            name = "api"
            strategy = "all"
            probe = {{ port = {port}, interval_s = 0.05, timeout_s = 1.0 }}
            [[endpoints.places]]
            name = "one"
            addresses = ["{HOST}"]
            [[endpoints.places]]
            name = "two"
            addresses = ["127.0.0.2"]
        """
        zone = Zone(zonefile.parse(text).data)
        server = DnsServer(zone, f"{HOST}:0", limits=Limits(responses_per_s=0, all_per_s=0))
        await server.start()

        async def answered(*expected: str) -> None:
            async with asyncio.timeout(DEADLINE_S):
                while set(  # noqa: ASYNC110
                    values(await udp(server, query("api.z.example")))
                ) != set(expected):
                    await asyncio.sleep(0.01)

        try:
            await answered(HOST)
            other.listen()
            await answered(HOST, "127.0.0.2")
            other.close()
            await answered(HOST)
            server.reload(zonefile.parse(text.replace("probe =", "#")))
            await answered(HOST, "127.0.0.2")
        finally:
            await server.close()


async def test_ipv6_and_ipv4_clients_of_a_dual_socket() -> None:
    if not socket.has_ipv6:
        pytest.skip("no IPv6 here")
    try:
        sockets = bind("::", 0)
    except Invalid:
        pytest.skip("no IPv6 here")
    server = DnsServer(a_zone(), "[::]:0")
    await server.start(sockets)
    try:
        assert values(await udp(server, query(WEB)))
        assert values(await dns.asyncquery.tcp(query(WEB), "::1", DEADLINE_S, server.port))
    finally:
        await server.close()


def test_a_taken_port_and_odd_addresses_are_said() -> None:
    udp_socket, tcp_socket = bind(HOST, 0)
    with udp_socket, tcp_socket, pytest.raises(Invalid, match="cannot use port"):
        bind(HOST, udp_socket.getsockname()[1])
    for address in ("localhost:53", "127.0.0.1", "127.0.0.1:70000", "127.0.0.1:x"):
        with pytest.raises(Invalid, match=r"dns.address"):
            DnsServer(a_zone(), address)
