"""Encryption of links: the cell's own authority, mutual after joining."""

import asyncio
import socket
import ssl
from pathlib import Path

import pytest

from roost.adapters.clock import SystemClock
from roost.adapters.link.blobs import LinkedBlobs
from roost.adapters.link.identity import Identity
from roost.adapters.link.server import LinkServer, Tls
from roost.adapters.link.streams import dial, is_loopback, split_address
from roost.adapters.link.tls import Authority, client_context, pack_ticket, unpack_ticket
from roost.gateway.streams import DataHosts, data_credential
from roost.kit.ids import SystemIds
from roost.ports import wire
from roost.ports.errors import Invalid, Retry

from .harness import SECRET, Agent, Book, control, listener, until


def authority(folder: Path) -> Authority:
    return Authority(folder, SystemClock())


async def test_a_host_joins_over_tls_and_gets_its_certificate(tmp_path: Path) -> None:
    cell = authority(tmp_path / "ca")
    tls = Tls(cell, ("127.0.0.1",))
    ticket = pack_ticket("join", cell.pem)
    folder = tmp_path / "agent"
    async with control(Book("join"), tls=tls) as there:
        agent = Agent(there.address, folder, ticket=ticket)
        async with agent.running():
            await until(lambda: there.server.connected("h-1"))
            drained = await there.server.call("h-1", wire.Drain(), epoch=0, timeout_s=5)
            assert drained == wire.Done()
        assert b"BEGIN CERTIFICATE" in agent.welcomes[0].certificate
        key = folder / "agent.key"
        assert key.stat().st_mode & 0o777 == 0o600
        assert (tmp_path / "ca" / "ca.key").stat().st_mode & 0o777 == 0o600
        again = Agent(there.address, folder, ticket=ticket)  # shows the certificate this time
        async with again.running():
            await until(lambda: there.server.connected("h-1"))
        # Another host's certificate is not accepted for this id.
        other = Agent(there.address, folder, host_id="h-2", ticket=ticket)
        with pytest.raises(Exception, match="certificate is for 'h-1'"):
            await other.link.run()


async def test_an_agent_trusts_only_the_authority_of_its_ticket(tmp_path: Path) -> None:
    tls = Tls(authority(tmp_path / "ca"), ("127.0.0.1",))
    wrong = authority(tmp_path / "other").pem
    async with control(Book("join"), tls=tls) as there:
        with pytest.raises(Retry, match="certificate"):
            await dial(there.address, tls=client_context(wrong), timeout_s=5)
        misnamed = Tls(authority(tmp_path / "ca"), ("127.0.0.9",))
        async with control(Book("join"), tls=misnamed) as elsewhere:
            right = client_context(authority(tmp_path / "ca").pem)
            with pytest.raises(Retry, match="certificate"):
                await dial(elsewhere.address, tls=right, timeout_s=5)
        plain = Agent(there.address, tmp_path / "plain", ticket="join")
        task = asyncio.create_task(plain.link.run())
        await asyncio.sleep(0.3)
        assert not there.server.connected("h-1")
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def test_data_listeners_demand_a_certificate(tmp_path: Path) -> None:
    cell = authority(tmp_path / "ca")
    identity = Identity.load(tmp_path / "agent")
    certificate = identity.certificate_path
    certificate.write_bytes(cell.client_certificate("h-1", identity.public_key))
    stored: dict[str, bytes] = {}

    async def answer(message: wire.DataToEdge) -> wire.DataToAgent:
        if isinstance(message, wire.BlobPut):
            stored[message.digest] = message.content
        return wire.BlobsAnswer()

    hosts = DataHosts(SECRET, SystemIds(), answer, lambda: None, lambda host, up: None)
    sock = listener()
    address = f"127.0.0.1:{sock.getsockname()[1]}"
    await hosts.listen(sock, cell.server_context(("127.0.0.1",), require_client=True))

    def shown() -> ssl.SSLContext:
        return client_context(cell.pem, certificate=certificate, key=identity.key_path)

    blobs = LinkedBlobs("h-1", tls=shown)
    blobs.welcome((address,), data_credential(SECRET, "h-1"))
    await blobs.put("d" * 64, b"content")
    assert stored == {"d" * 64: b"content"}
    blobs.close()
    nobody = LinkedBlobs("h-1", tls=lambda: client_context(cell.pem))
    nobody.welcome((address,), data_credential(SECRET, "h-1"))
    with pytest.raises(Retry):
        await nobody.put("e" * 64, b"content")
    nobody.close()
    hosts.close()


def test_the_authority_stays_the_same(tmp_path: Path) -> None:
    assert authority(tmp_path).pem == authority(tmp_path).pem
    ticket = pack_ticket("secret", authority(tmp_path).pem)
    assert unpack_ticket(ticket) == ("secret", authority(tmp_path).pem)
    assert unpack_ticket("secret") == ("secret", b"")
    with pytest.raises(Invalid, match="damaged"):
        unpack_ticket("secret~AAAA")


async def test_no_listener_beyond_loopback_without_tls(tmp_path: Path) -> None:
    server = LinkServer(
        clock=SystemClock(),
        ids=SystemIds(),
        book=Book(),
        data_secret=SECRET,
        data_addresses=lambda: (),
    )
    with socket.socket() as sock:
        sock.bind(("0.0.0.0", 0))
        with pytest.raises(Invalid, match="without encryption") as refused:
            await server.serve(sock)
        assert "TLS" in refused.value.hint


def test_addresses() -> None:
    assert split_address("127.0.0.1:80") == ("127.0.0.1", 80)
    assert split_address("[::1]:80") == ("::1", 80)
    for wrong in ("127.0.0.1", ":80", "host:", "host:99999"):
        with pytest.raises(Invalid):
            split_address(wrong)
    assert is_loopback("127.9.9.9")
    assert is_loopback("::1")
    assert not is_loopback("0.0.0.0")
    assert not is_loopback("example")
