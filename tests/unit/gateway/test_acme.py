"""Certificates: against Pebble where it is installed, and the plan of renewals against a stub server."""

import asyncio
import datetime
import random
import socket
import ssl
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography import x509

from roost.gateway import acme_client, acme_store
from roost.gateway.acme import DAY_S, FIRST_RETRY_S, LAST_RETRY_S, Acme, Challenges
from roost.gateway.acme_store import Attempt, Store, key_pem, new_key
from roost.ports.errors import Denied, Invalid, Retry
from roost.proxy import policy
from roost.proxy.answers import Answer
from roost.proxy.front import Proxy
from roost.proxy.heads import Request
from roost.proxy.server import ProxyServer
from tests.support import pebble
from tests.support.certificates import Authority

needs_pebble = pytest.mark.skipif(not pebble.installed(), reason=pebble.MISSING)
NAME = "www.example.org"


class Clock:
    """The real time, moved by ``ahead_s``."""

    def __init__(self) -> None:
        self.ahead_s = 0.0

    def now_s(self) -> float:
        return datetime.datetime.now(datetime.UTC).timestamp() + self.ahead_s

    def monotonic_s(self) -> float:
        return asyncio.get_running_loop().time() + self.ahead_s


class Routes:
    """What a worker does: challenges first, then the routes."""

    def __init__(self, challenges: Challenges) -> None:
        self.challenges = challenges
        self.asked: list[bytes] = []

    def decide(self, request: Request) -> Answer:
        self.asked.append(request.path)
        return self.challenges.answer(request.path) or Answer(404)

    async def find(self, request: Request, pool: object) -> Answer:
        raise AssertionError


class Gateway:
    """An HTTP listener and the certificates of one name."""

    def __init__(self, server: pebble.Pebble, base: Path, names: tuple[str, ...] = (NAME,)) -> None:
        self.clock = Clock()
        self.challenges = Challenges()
        self.routes = Routes(self.challenges)
        self.changes: list[tuple[policy.Certificate, ...]] = []
        self.changed = asyncio.Event()
        self.settings = policy.Acme(
            directory=server.directory, contact="ops@example.org", ca=str(server.ca)
        )
        self.acme = Acme(
            self.settings,
            names,
            base,
            clock=self.clock,
            random=random.Random(1),
            changed=self._change,
            publish=self._publish,
        )
        self._port = server.http_port

    def _change(self, certificates: tuple[policy.Certificate, ...]) -> None:
        self.changes.append(certificates)
        self.changed.set()

    async def _publish(self, tokens: dict[str, str]) -> None:
        self.challenges.tokens = tokens

    async def __aenter__(self) -> "Gateway":
        self.server = ProxyServer(Proxy(self.routes))
        sock = socket.socket()
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(("127.0.0.1", self._port))
        await self.server.listen(sock)
        self.task = asyncio.create_task(self.acme.run())
        return self

    async def __aexit__(self, *_: object) -> None:
        self.task.cancel()
        await asyncio.gather(self.task, return_exceptions=True)
        await self.server.close(drain_s=0)

    async def next_change(self) -> tuple[policy.Certificate, ...]:
        async with asyncio.timeout(30):
            await self.changed.wait()
        self.changed.clear()
        return self.changes[-1]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[pebble.Pebble]:
    if not pebble.installed():
        pytest.skip(pebble.MISSING)
    # Every third good nonce is refused: clients must repeat themselves.
    with pebble.pebble(tmp_path_factory.mktemp("pebble"), PEBBLE_WFE_NONCEREJECT="33") as running:
        yield running


def serve_once(pair: policy.Certificate) -> tuple[ssl.SSLContext, ssl.MemoryBIO]:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pair.certificate, pair.key)
    return context, ssl.MemoryBIO()


def handshake(pair: policy.Certificate, name: str, root: bytes) -> dict[str, object]:
    """A whole TLS handshake in memory: what a client that trusts ``root`` sees."""
    server_context, to_server = serve_once(pair)
    client_context = ssl.create_default_context(cadata=root.decode())
    to_client = ssl.MemoryBIO()
    client = client_context.wrap_bio(to_client, to_server, server_hostname=name)
    server = server_context.wrap_bio(to_server, to_client, server_side=True)
    pending = [client, server]
    for _ in range(10):
        for side in list(pending):
            try:
                side.do_handshake()
                pending.remove(side)
            except ssl.SSLWantReadError:
                pass
    assert not pending
    found = client.getpeercert()
    assert found is not None
    return dict(found)


# --- a real server -------------------------------------------------------------------------------


@needs_pebble
async def test_a_certificate_is_obtained_kept_and_renewed(
    server: pebble.Pebble, tmp_path: Path
) -> None:
    async with Gateway(server, tmp_path, (NAME, "api.example.org")) as gateway:
        await gateway.next_change()
        while len(gateway.changes) < 2:
            await gateway.next_change()
        first, second = gateway.changes[-1]
        assert handshake(first, NAME, server.root())["subjectAltName"] == (("DNS", NAME),)
        assert handshake(second, "api.example.org", server.root())
        assert gateway.challenges.tokens == {}
        asked = [path for path in gateway.routes.asked if b"acme-challenge" in path]
        assert len(asked) >= 2
    state = tmp_path / "acme"
    for path in (state / "account.key", state / "account.json", Path(first.key)):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(state.stat().st_mode) == 0o700
    assert not list(state.rglob(".*"))

    async with Gateway(server, tmp_path) as again:  # a restart asks for nothing
        assert again.acme.certificates == (first,)
        await asyncio.sleep(0)
        assert again.changes == []

    later = Gateway(server, tmp_path)
    later.clock.ahead_s = 70 * DAY_S  # of 90
    async with later:
        (renewed,) = await later.next_change()
        assert renewed != first
        assert handshake(renewed, NAME, server.root())
        assert Path(first.certificate).exists()  # workers may be reading it still


@needs_pebble
async def test_the_account_is_found_again_by_its_key(server: pebble.Pebble, tmp_path: Path) -> None:
    async with Gateway(server, tmp_path) as gateway:
        await gateway.next_change()
    uri = gateway.acme.store.account(server.directory)
    assert uri
    (tmp_path / "acme" / "account.json").unlink()
    later = Gateway(server, tmp_path)
    later.clock.ahead_s = 80 * DAY_S
    async with later:
        await later.next_change()
    assert later.acme.store.account(server.directory) == uri
    assert later.acme.store.account("https://elsewhere/dir") is None


@needs_pebble
async def test_a_name_that_cannot_be_proved_costs_nothing_but_time(
    server: pebble.Pebble, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    gateway = Gateway(server, tmp_path)

    async def lost(tokens: dict[str, str]) -> None:
        """The workers never get to know."""

    gateway.acme._publish = lost
    async with gateway, asyncio.timeout(30):
        while not gateway.acme.store.attempts():  # noqa: ASYNC110 - a file has no event
            await asyncio.sleep(0.05)
    attempt = gateway.acme.store.attempts()[NAME]
    assert attempt.failures == 1
    assert "not proved" in attempt.error
    assert "port 80" in attempt.error
    assert attempt.not_before_s > gateway.clock.now_s() + FIRST_RETRY_S / 2
    assert gateway.changes == []


@needs_pebble
async def test_it_is_used_by_a_tls_listener(server: pebble.Pebble, tmp_path: Path) -> None:
    from roost.proxy.tls import ServerTls, Tickets

    async with Gateway(server, tmp_path) as gateway:
        obtained = await gateway.next_change()
    tls = ServerTls("https", policy.Tls(acme=(NAME,)), Tickets(), obtained=obtained)
    assert [name for facts in tls.facts for name in facts.names] == [NAME]


@needs_pebble
def test_the_whole_gateway_gets_its_certificate_while_it_serves(
    server: pebble.Pebble, tmp_path: Path
) -> None:
    """Two workers; the first handshakes meet a self-signed certificate, later ones the real one."""
    (port,) = pebble.free_ports(1)
    (tmp_path / "routes.toml").write_text(
        f'''
        workers = 2
        acme = {{ directory = "{server.directory}", ca = "{server.ca}" }}
        [[listeners]]
        name = "http"
        address = "127.0.0.1:{server.http_port}"
        [[listeners]]
        name = "https"
        address = "127.0.0.1:{port}"
        tls = {{ acme = ["{NAME}"] }}
        [[routes]]
        name = "all"
        answer = {{ body = "hello" }}
        '''
    )
    roost = Path(sys.executable).with_name("roost")
    with (tmp_path / "log").open("wb") as log:
        gateway = subprocess.Popen(
            [roost, "gateway", "--config", tmp_path / "routes.toml"], stdout=log, stderr=log
        )
    try:
        context = ssl.create_default_context(cadata=server.root().decode())
        context.set_alpn_protocols(["h2", "http/1.1"])
        deadline = time.monotonic() + 30
        while True:
            try:
                with (
                    socket.create_connection(("127.0.0.1", port), timeout=2) as sock,
                    context.wrap_socket(sock, server_hostname=NAME) as secure,
                ):
                    assert secure.selected_alpn_protocol() == "h2"
                    break
            except OSError:
                assert time.monotonic() < deadline, (tmp_path / "log").read_text()
                time.sleep(0.1)
    finally:
        gateway.terminate()
        gateway.wait(20)


# --- a stub server -------------------------------------------------------------------------------


class Stub:
    """Issues from an authority of its own, or fails."""

    def __init__(self, directory: Path, days: float = 90) -> None:
        directory.mkdir(exist_ok=True)
        self.authority = Authority(directory)
        self.days = days
        self.calls: list[str] = []
        self.error: Exception | None = None

    def __call__(
        self, settings: policy.Acme, store: Store, name: str, publish: object
    ) -> tuple[bytes, bytes]:
        self.calls.append(name)
        if self.error is not None:
            raise self.error
        pair = self.authority.issue(name, days=self.days)
        return pair.certificate.read_bytes(), pair.key.read_bytes()


def stubbed(stub: Stub, base: Path, names: tuple[str, ...] = (NAME,), seed: int = 1) -> Acme:
    async def publish(tokens: dict[str, str]) -> None:
        """Nobody asks."""

    return Acme(
        policy.Acme(directory="https://acme.example/dir"),
        names,
        base,
        clock=Clock(),
        random=random.Random(seed),
        changed=lambda certificates: None,
        publish=publish,
        issue=stub,
    )


async def test_renewal_is_before_the_end_with_jitter(tmp_path: Path) -> None:
    acme = stubbed(Stub(tmp_path / "ca"), tmp_path)
    assert acme._due_s(NAME) == 0.0
    await acme._obtain(NAME)
    held = acme.store.newest(NAME)
    assert held is not None
    left_s = held.not_after_s - acme._due_s(NAME)
    third_s = (held.not_after_s - held.not_before_s) / 3
    assert min(30 * DAY_S, third_s) <= left_s <= min(30 * DAY_S, third_s) * 1.1
    assert acme._due_s(NAME) == acme._due_s(NAME)  # drawn once
    other = stubbed(Stub(tmp_path / "ca"), tmp_path, seed=2)
    assert other._due_s(NAME) != acme._due_s(NAME)


async def test_short_lives_are_renewed_after_two_thirds(tmp_path: Path) -> None:
    acme = stubbed(Stub(tmp_path / "ca", days=4), tmp_path)  # and two days before: six in all
    await acme._obtain(NAME)
    held = acme.store.newest(NAME)
    assert held is not None
    left_s = held.not_after_s - acme._due_s(NAME)
    assert 2 * DAY_S <= left_s <= 2.2 * DAY_S + 1


async def test_failures_wait_longer_and_survive_a_restart(tmp_path: Path) -> None:
    stub = Stub(tmp_path / "ca")
    acme = stubbed(stub, tmp_path)
    await acme._obtain(NAME)
    good = acme.certificates
    stub.error = Denied("no")
    waits = []
    for _ in range(12):
        await acme._obtain(NAME)
        waits.append(acme.store.attempts()[NAME].not_before_s - acme._clock.now_s())
    assert waits[0] < FIRST_RETRY_S * 1.3
    assert waits[3] > waits[0] * 4
    assert LAST_RETRY_S * 0.7 < waits[-1] <= LAST_RETRY_S * 1.2
    assert acme.certificates == good  # the old one stays
    assert stubbed(stub, tmp_path)._due_s(NAME) > acme._clock.now_s()
    stub.error = Retry("limited", after_s=3 * DAY_S)
    await acme._obtain(NAME)
    assert acme._due_s(NAME) > acme._clock.now_s() + 2.9 * DAY_S
    stub.error = None
    await acme._obtain(NAME)
    assert acme.store.attempts() == {}


async def test_a_wrong_certificate_is_not_taken(tmp_path: Path) -> None:
    stub = Stub(tmp_path / "ca")
    acme = stubbed(stub, tmp_path)
    other = stub.authority.issue("other.example.org")
    chain, key = other.certificate.read_bytes(), other.key.read_bytes()
    with pytest.raises(Invalid, match="is not for www"):
        acme.store.save(NAME, chain, key)
    mine = stub.authority.issue(NAME).certificate.read_bytes()
    with pytest.raises(Invalid, match="our key"):
        acme.store.save(NAME, mine, key_pem(new_key()))
    assert acme.certificates == ()


async def test_run_obtains_what_is_due_and_then_sleeps(tmp_path: Path) -> None:
    stub = Stub(tmp_path / "ca")
    acme = stubbed(stub, tmp_path, (NAME, "b.example.org"))
    task = asyncio.create_task(acme.run())
    async with asyncio.timeout(10):
        while len(acme.certificates) < 2:  # noqa: ASYNC110 - files have no event
            await asyncio.sleep(0.01)
    assert sorted(stub.calls) == ["b.example.org", NAME]
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    await stubbed(stub, tmp_path, ()).run()  # nothing to do: ends


def test_only_two_of_each_name_are_kept(tmp_path: Path) -> None:
    stub = Stub(tmp_path / "ca")
    store = Store(tmp_path / "state")
    for days in (10, 20, 30, 40):
        pair = stub.authority.issue(NAME, "x.example.org", days=days)
        newest = store.save(NAME, pair.certificate.read_bytes(), pair.key.read_bytes())
    assert store.newest(NAME) == newest
    assert len(list((tmp_path / "state" / "certificates").iterdir())) == 2
    leaf = x509.load_pem_x509_certificate(newest.path.read_bytes())
    assert leaf.not_valid_after_utc.timestamp() == newest.not_after_s


def test_broken_files_are_as_good_as_none(tmp_path: Path) -> None:
    store = Store(tmp_path)
    (tmp_path / "certificates").mkdir()
    (tmp_path / "certificates" / f"{NAME}~1.pem").write_text("half a fi")
    (tmp_path / "attempts.json").write_text("{")
    (tmp_path / "account.json").write_text("[]")
    assert store.newest(NAME) is None
    assert store.attempts() == {}
    assert store.account("x") is None
    store.save_attempts({NAME: Attempt(1, 2.0)})
    assert store.attempts() == {NAME: Attempt(1, 2.0)}


@pytest.mark.parametrize(
    "name", ["*.example.org", "localhost", "Www.example.org", "a..b", "-a.example.org", "", "a/b.c"]
)
def test_names_that_cannot_be_served(name: str) -> None:
    with pytest.raises(Invalid):
        acme_store.check_name(name)


def test_challenges_answer_only_what_they_know() -> None:
    challenges = Challenges()
    path = b"/.well-known/acme-challenge/token"
    assert challenges.answer(path) is None
    challenges.tokens = {"token": "token.thumb"}
    found = challenges.answer(path)
    assert found is not None
    assert (found.status, found.body) == (200, b"token.thumb")
    for other in (b"/", b"/.well-known/acme-challenge/", b"/.well-known/acme-challenge/tokenx"):
        assert challenges.answer(other) is None


def test_the_extra_is_named_where_it_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    import builtins
    import sys

    from roost.gateway import acme

    real = builtins.__import__

    def without(name: str, *args: object, **kwargs: object) -> object:
        if name == "acme" or name.startswith("acme."):
            raise ModuleNotFoundError("No module named 'acme'", name="acme")
        return real(name, *args, **kwargs)

    monkeypatch.delitem(sys.modules, acme_client.__name__)
    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(Invalid, match=r"roost\[acme\]"):
        acme.client()
