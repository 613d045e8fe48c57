"""TLS: certificates by name, reload, resumption across forked workers, client certificates, origins."""

import asyncio
import os
import signal
import socket
import ssl
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import uvloop

from roost.ports.errors import Invalid
from roost.proxy import policy
from roost.proxy.secure import SecureConnection
from roost.proxy.tls import (
    ServerTls,
    Tickets,
    alpn_of,
    check,
    origin_context,
    origin_name,
    reason,
)
from tests.support.certificates import Authority, Pair

VERSIONS = {"1.2": ssl.TLSVersion.TLSv1_2, "1.3": ssl.TLSVersion.TLSv1_3}


def pem(pair: Pair) -> policy.Certificate:
    return policy.Certificate(certificate=str(pair.certificate), key=str(pair.key))


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path)


def trusting(authority: Authority, version: str = "", *, own: Pair | None = None) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=str(authority.file))
    context.set_alpn_protocols(["h2", "http/1.1"])
    if version:
        context.minimum_version = context.maximum_version = VERSIONS[version]
    if own is not None:
        context.load_cert_chain(own.certificate, own.key)
    return context


def names_of(connection: ssl.SSLObject) -> set[str]:
    certificate: Any = connection.getpeercert()
    return {value for _, value in certificate["subjectAltName"]}


def shake(
    server: ssl.SSLContext,
    client: ssl.SSLContext,
    name: str | None,
    session: ssl.SSLSession | None = None,
) -> tuple[ssl.SSLObject, ssl.SSLObject]:
    """A handshake in memory and one message from the server: (client, server)."""
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    ours = client.wrap_bio(to_client, to_server, server_hostname=name, session=session)
    theirs = server.wrap_bio(to_server, to_client, server_side=True)
    done: set[ssl.SSLObject] = set()
    while len(done) < 2:
        for side in (ours, theirs):
            if side not in done:
                try:
                    side.do_handshake()
                    done.add(side)
                except ssl.SSLWantReadError:
                    pass
    theirs.write(b"hi")
    assert ours.read(2) == b"hi"
    return ours, theirs


# --- certificates by name ---------------------------------------------------------------------------


@pytest.mark.parametrize("version", ["1.2", "1.3"])
def test_the_certificate_is_the_one_for_the_name(authority: Authority, version: str) -> None:
    first = authority.issue("a.example", "b.example")
    second = authority.issue("*.wild.example", "other.example")
    tls = ServerTls("web", policy.Tls(certificates=(pem(first), pem(second))), Tickets(1))
    client = trusting(authority, version)
    for name, expected in (
        ("a.example", "a.example"),
        ("B.EXAMPLE", "a.example"),
        ("x.wild.example", "*.wild.example"),
        ("other.example", "*.wild.example"),
    ):
        assert expected in names_of(shake(tls.context, client, name)[0])
    for name in ("x.y.wild.example", "wild.example", "nobody.example"):
        with pytest.raises(ssl.SSLCertVerificationError):
            shake(tls.context, client, name)
    client.check_hostname = False
    for default in ("x.y.wild.example", "nobody.example", None):
        assert "a.example" in names_of(shake(tls.context, client, default)[0])


def test_an_exact_name_wins_over_a_wildcard(authority: Authority) -> None:
    wild, exact = authority.issue("*.w.example"), authority.issue("a.w.example")
    tls = ServerTls("web", policy.Tls(certificates=(pem(wild), pem(exact))), Tickets(1))
    client = trusting(authority)
    assert names_of(shake(tls.context, client, "a.w.example")[0]) == {"a.w.example"}
    assert names_of(shake(tls.context, client, "b.w.example")[0]) == {"*.w.example"}


def test_two_kinds_of_keys_for_the_same_names_are_offered_together(authority: Authority) -> None:
    pairs = authority.issue("a.example", key="rsa"), authority.issue("a.example")
    tls = ServerTls("web", policy.Tls(certificates=tuple(map(pem, pairs))), Tickets(1))
    old = trusting(authority, "1.2")
    for kind, expected in (("ECDSA", "ECDSA"), ("RSA", "RSA")):
        old.set_ciphers(f"ECDHE-{kind}-AES128-GCM-SHA256")
        ours, _ = shake(tls.context, old, "a.example")
        cipher = ours.cipher()
        assert cipher is not None and expected in cipher[0]
    assert len({fact.kind for fact in tls.facts}) == 2
    assert all(fact.names == ("a.example",) and fact.ends_s > 0 for fact in tls.facts)


def test_versions_and_protocols(authority: Authority) -> None:
    pair = pem(authority.issue("a.example"))
    tls = ServerTls("web", policy.Tls(certificates=(pair,), minimum="1.3"), Tickets(1))
    with pytest.raises(ssl.SSLError):
        shake(tls.context, trusting(authority, "1.2"), "a.example")
    assert tls.updated(policy.Tls(certificates=(pair,)), alpn=("h2", "http/1.1")) is tls
    ours, _ = shake(tls.context, trusting(authority, "1.2"), "a.example")
    assert ours.selected_alpn_protocol() == "h2"
    old = trusting(authority)
    old.set_alpn_protocols(["http/1.1"])
    assert shake(tls.context, old, "a.example")[0].selected_alpn_protocol() == "http/1.1"
    listener = policy.Listener(name="l", address="127.0.0.1:0")
    assert alpn_of(listener) == ("h2", "http/1.1")
    assert alpn_of(policy.Listener(name="l", address="x:0", http2=False)) == ("http/1.1",)
    assert alpn_of(policy.Listener(name="l", address="x:0", protocol="tcp")) == ()


def test_without_a_certificate_a_self_signed_one_answers(authority: Authority) -> None:
    tls = ServerTls("web", policy.Tls(acme=("a.example",)), Tickets(1))
    client = trusting(authority)
    with pytest.raises(ssl.SSLCertVerificationError, match="self-signed"):
        shake(tls.context, client, "a.example")
    pair = pem(authority.issue("a.example"))
    tls.updated(policy.Tls(acme=("a.example",)), obtained=(pair,))
    assert names_of(shake(tls.context, client, "a.example")[0]) == {"a.example"}


# --- reload -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", ["1.2", "1.3"])
def test_a_reload_changes_the_next_handshake_and_keeps_sessions(
    authority: Authority, version: str
) -> None:
    pair = authority.issue("a.example")
    config = policy.Tls(certificates=(pem(pair),))
    tls = ServerTls("web", config, Tickets(1))
    client = trusting(authority, version)
    before, _ = shake(tls.context, client, "a.example")
    new = authority.issue("a.example", "more.example")
    new.certificate.replace(pair.certificate)
    with pytest.raises(Invalid, match="does not belong to"):  # half of the pair has arrived
        tls.updated(config)
    assert names_of(shake(tls.context, client, "a.example")[0]) == {"a.example"}
    new.key.replace(pair.key)
    assert tls.updated(config) is tls
    assert names_of(shake(tls.context, client, "more.example")[0]) == {"a.example", "more.example"}
    again, server = shake(tls.context, client, "a.example", before.session)
    assert again.session_reused and server.session_reused


def broken_files(authority: Authority, directory: Path) -> list[tuple[policy.Certificate, str]]:
    pair, other = authority.issue("a.example"), authority.issue("b.example")
    junk = directory / "junk.pem"
    junk.write_text("-----BEGIN CERTIFICATE-----\nnot this\n-----END CERTIFICATE-----\n")
    locked = authority.issue("a.example", password=b"secret")
    good, key = str(pair.certificate), str(pair.key)
    return [
        (policy.Certificate(certificate="/none.pem", key=key), "/none.pem cannot be read: No such"),
        (policy.Certificate(certificate=good, key="/none.key"), "/none.key cannot be read"),
        (policy.Certificate(certificate=str(junk), key=key), "junk.pem is no PEM certificate"),
        (policy.Certificate(certificate=key, key=key), "is no PEM certificate"),
        (policy.Certificate(certificate=good, key=str(junk)), "junk.pem is no PEM private key"),
        (policy.Certificate(certificate=good, key=str(other.key)), "does not belong to"),
        (policy.Certificate(certificate=good, key=str(locked.key)), "is encrypted"),
    ]


def test_what_is_wrong_with_a_file_is_said(authority: Authority, tmp_path: Path) -> None:
    good = policy.Tls(certificates=(pem(authority.issue("a.example")),))
    tls = ServerTls("web", good, Tickets(1))
    for pair, why in broken_files(authority, tmp_path):
        with pytest.raises(Invalid, match=why):
            check(pair)
        with pytest.raises(Invalid, match=why):
            tls.updated(policy.Tls(certificates=(*good.certificates, pair)))
    with pytest.raises(Invalid, match="client CA /none"):
        tls.updated(policy.Tls(certificates=good.certificates, client_ca="/none"))
    assert len(tls.facts) == 1
    shake(tls.context, trusting(authority), "a.example")


# --- client certificates --------------------------------------------------------------------------------


@pytest.mark.parametrize("version", ["1.2", "1.3"])
def test_a_listener_with_a_client_ca_wants_a_certificate(tmp_path: Path, version: str) -> None:
    (tmp_path / "other").mkdir()
    authority, other = Authority(tmp_path), Authority(tmp_path / "other", "other")
    pair, ours = pem(authority.issue("a.example")), authority.issue("me")
    strict = policy.Tls(certificates=(pair,), client_ca=str(authority.file))
    tickets = Tickets(3)
    tls = ServerTls("web", strict, tickets)
    for own in (None, other.issue("me")):
        with pytest.raises(ssl.SSLError):
            shake(tls.context, trusting(authority, version, own=own), "a.example")
    client = trusting(authority, version, own=ours)
    first, server = shake(tls.context, client, "a.example")
    assert server.getpeercert()
    assert shake(tls.context, client, "a.example", first.session)[0].session_reused

    # Another trust is another context: what was verified by the old one is not resumed.
    both = policy.Tls(certificates=(pair,), client_ca=str(other.file))
    moved = tls.updated(both)
    assert moved is not tls and moved.context is not tls.context
    with pytest.raises(ssl.SSLError):
        shake(moved.context, client, "a.example", first.session)
    open_ = moved.updated(policy.Tls(certificates=(pair,)))
    assert open_ is not moved
    plain, _ = shake(open_.context, trusting(authority, version), "a.example")
    with pytest.raises(ssl.SSLError):
        shake(tls.context, trusting(authority, version), "a.example", None)
    assert plain.version()


# --- resumption across forked workers ------------------------------------------------------------------


def serve_forever(sock: socket.socket, tls: ServerTls, new_loop: Callable[[], Any]) -> None:
    """A worker: says its pid in each connection; SIGHUP reads the certificates again."""

    class Hello(asyncio.Protocol):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            transport.write(b"%d" % os.getpid())  # type: ignore[attr-defined]

    async def main() -> None:
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGHUP, lambda: tls.updated(tls._tls))
        accept = partial(SecureConnection, tls.context, Hello)
        server = await loop.create_server(accept, sock=sock)
        async with server:
            await asyncio.sleep(60)

    with asyncio.Runner(loop_factory=new_loop) as runner:
        runner.run(main())


@contextmanager
def workers(tls: ServerTls, new_loop: Callable[[], Any]) -> Iterator[tuple[int, list[int]]]:
    """Two forked processes accepting on one socket: (port, pids)."""
    pids: list[int] = []
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        sock.listen(16)
        try:
            for _ in range(2):
                pid = os.fork()
                if pid == 0:
                    try:
                        serve_forever(sock, tls, new_loop)
                    finally:
                        os._exit(0)
                pids.append(pid)
            yield sock.getsockname()[1], pids
        finally:
            for pid in pids:
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)


def visit(
    port: int, client: ssl.SSLContext, session: ssl.SSLSession | None
) -> tuple[int, ssl.SSLSession | None, bool]:
    with (
        socket.create_connection(("127.0.0.1", port), timeout=10) as raw,
        client.wrap_socket(raw, server_hostname="a.example", session=session) as sock,
    ):
        pid = int(sock.recv(20))
        return pid, sock.session, bool(sock.session_reused)


def only(pids: list[int], wanted: int) -> None:
    """Let only one of the workers run."""
    for pid in pids:
        os.kill(pid, signal.SIGCONT if pid == wanted else signal.SIGSTOP)
        state = "S" if pid == wanted else "T"
        deadline = time.monotonic() + 10
        while time.monotonic() < deadline:
            stat = Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0]
            if stat == state or (state == "S" and stat == "R"):
                break
            time.sleep(0.01)


@pytest.mark.parametrize("new_loop", [uvloop.new_event_loop, asyncio.new_event_loop])
@pytest.mark.parametrize("version", ["1.2", "1.3"])
def test_a_session_resumes_in_another_forked_worker(
    authority: Authority, version: str, new_loop: Callable[[], Any]
) -> None:
    pairs = authority.issue("zero.example"), authority.issue("a.example")
    tls = ServerTls("web", policy.Tls(certificates=tuple(map(pem, pairs))), Tickets(1))
    client = trusting(authority, version)
    with workers(tls, new_loop) as (port, pids):
        only(pids, pids[0])
        pid, session, reused = visit(port, client, None)
        assert (pid, reused) == (pids[0], False)
        for there in (pids[1], pids[0], pids[1]):
            only(pids, there)
            pid, session, reused = visit(port, client, session)
            assert (pid, reused) == (there, True)
        # A reload in each worker keeps the keys: sessions go on across it.
        for there in pids:
            only(pids, there)
            os.kill(there, signal.SIGHUP)
            for _ in range(3):
                pid, session, reused = visit(port, client, session)
                assert (pid, reused) == (there, True)


def test_listeners_do_not_share_sessions(authority: Authority) -> None:
    config = policy.Tls(certificates=(pem(authority.issue("a.example")),))
    tickets = Tickets(1)
    one, two = ServerTls("one", config, tickets), ServerTls("two", config, tickets)
    assert ServerTls("one", config, tickets).context is one.context
    client = trusting(authority)
    session = shake(one.context, client, "a.example")[0].session
    assert not shake(two.context, client, "a.example", session)[0].session_reused


def test_the_keys_of_a_listener_do_not_depend_on_what_was_there_before() -> None:
    tickets, other = Tickets(64), Tickets(64)
    other._spare = list(tickets._spare)  # as after a fork
    for gone in ("old ", "older ", "oldest "):
        other.claim(gone)
    assert all(tickets.claim(key) is other.claim(key) for key in ("web ", "api ", "web "))
    few = Tickets(2)
    assert len({few.claim(key) for key in "abcd"}) == 4


# --- backends -------------------------------------------------------------------------------------------


@asynccontextmanager
async def origin(tls: ServerTls) -> AsyncIterator[int]:
    async def hello(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"hello")
        writer.close()

    server = await asyncio.start_server(hello, "127.0.0.1", 0, ssl=tls.context)
    async with server:
        yield server.sockets[0].getsockname()[1]


async def dial(port: int, client: policy.TlsOrigin, host: str = "a.example") -> bytes:
    reader, writer = await asyncio.open_connection(
        "127.0.0.1", port, ssl=origin_context(client), server_hostname=origin_name(client, host)
    )
    try:
        return await asyncio.wait_for(reader.readexactly(5), 10)
    finally:
        writer.transport.abort()


async def test_backends_are_verified(authority: Authority) -> None:
    pair, mine = authority.issue("a.example"), authority.issue("gateway")
    ca = str(authority.file)
    tls = ServerTls("o", policy.Tls(certificates=(pem(pair),), client_ca=ca), Tickets(1))
    own = {"certificate": str(mine.certificate), "key": str(mine.key)}
    async with origin(tls) as port:
        assert await dial(port, policy.TlsOrigin(ca=ca, **own)) == b"hello"
        assert await dial(port, policy.TlsOrigin(verify=False, **own), "x.example") == b"hello"
        named = policy.TlsOrigin(ca=ca, server_name="a.example", **own)
        assert await dial(port, named, "127.0.0.1") == b"hello"
        with pytest.raises(ssl.SSLCertVerificationError) as caught:
            await dial(port, policy.TlsOrigin(**own))
        assert "not trusted: " in reason(caught.value)
        with pytest.raises(ssl.SSLCertVerificationError) as caught:
            await dial(port, policy.TlsOrigin(ca=ca, **own), "b.example")
        assert "not trusted: Hostname mismatch" in reason(caught.value)
        with pytest.raises((OSError, asyncio.IncompleteReadError)):
            await dial(port, policy.TlsOrigin(ca=ca))


def test_a_broken_origin_policy_says_why(authority: Authority) -> None:
    pair = authority.issue("a.example")
    with pytest.raises(Invalid, match="the CA /none"):
        origin_context(policy.TlsOrigin(ca="/none"))
    with pytest.raises(Invalid, match="needs its key"):
        origin_context(policy.TlsOrigin(certificate=str(pair.certificate)))
    with pytest.raises(Invalid, match="cannot be read"):
        origin_context(policy.TlsOrigin(certificate="/none", key=str(pair.key)))
    assert reason(ConnectionRefusedError(111, "Connection refused")) == "Connection refused"
    assert reason(TimeoutError()) == "TimeoutError"
