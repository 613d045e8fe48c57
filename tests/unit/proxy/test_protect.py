"""Who may have a route and how much of it: lists, rates, caps, credentials, forward auth."""

import asyncio
import base64
import hashlib
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from roost.proxy import policy
from roost.proxy.answers import Answer
from roost.proxy.cookies import SessionKeys, read, read_keys, without
from roost.proxy.credentials import BasicUsers, hash_scrypt
from roost.proxy.forward_auth import AuthServer, split_url
from roost.proxy.heads import Origin, Request, read_request
from roost.proxy.protect import Buckets, Caps, Guard, Guards, Networks, client_key


def ask(*lines: str, client: str = "192.0.2.1", target: str = "/", method: str = "GET") -> Request:
    head = "\r\n".join([f"{method} {target} HTTP/1.1", "Host: a.example", *lines, "", ""])
    return read_request(head.encode(), Origin(client))


class Clock:
    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


def route(**values: Any) -> policy.Route:
    return msgspec.convert({"name": "r", "service": "s", **values}, policy.Route)


def guard_of(workers: int = 1, clock: Clock | None = None, **values: Any) -> Guard:
    clock = clock or Clock()
    return Guards(now=clock, unix_s=clock, workers=workers).guard(route(**values))


def status(guard: Guard, request: Request) -> int:
    """0: admitted (and over at once)."""
    assert guard.admit is not None
    verdict = guard.admit(request)
    if isinstance(verdict, Answer):
        return verdict.status
    if verdict is not None:
        verdict()
    return 0


# --- lists -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("client", "found"),
    [
        ("10.1.2.3", True),
        ("::ffff:10.1.2.3", True),
        ("11.1.2.3", False),
        ("2001:db8::1", True),
        ("2001:db9::1", False),
        ("fe80::1%eth0", False),
        ("192.0.2.7", True),
        ("unix", False),
    ],
)
def test_networks(client: str, found: bool) -> None:
    networks = Networks(("10.0.0.0/8", "2001:db8::/32", "192.0.2.7"))
    assert (client in networks) is found
    assert (client in networks) is found


def test_deny_wins_over_allow() -> None:
    guard = guard_of(limits={"allow": ["10.0.0.0/8"], "deny": ["10.6.0.0/16"]})
    assert status(guard, ask(client="10.1.0.1")) == 0
    assert status(guard, ask(client="10.6.0.1")) == 403
    assert status(guard, ask(client="192.0.2.1")) == 403
    assert status(guard_of(limits={"deny": ["10.0.0.0/8"]}), ask()) == 0


def test_a_route_that_asks_for_nothing_has_no_hook() -> None:
    assert guard_of() == Guard()


# --- rates -------------------------------------------------------------------------------------------------


def test_a_burst_then_the_rate_then_retry_after() -> None:
    clock = Clock()
    guard = guard_of(clock=clock, limits={"rate": {"requests_per_s": 0.5, "burst": 3}})
    assert [status(guard, ask()) for _ in range(4)] == [0, 0, 0, 429]
    assert status(guard, ask(client="192.0.2.2")) == 0
    assert guard.admit is not None
    refused = guard.admit(ask())
    assert isinstance(refused, Answer)
    assert refused.retry_after_s == 2
    clock.now_s += 2.0
    assert [status(guard, ask()) for _ in range(2)] == [0, 429]


def test_rates_are_shared_out_over_the_workers() -> None:
    guard = guard_of(workers=4, limits={"rate": {"requests_per_s": 40}})
    assert [status(guard, ask()) for _ in range(11)] == [0] * 10 + [429]


def test_other_workers_make_other_shares() -> None:
    clock = Clock()
    guards = Guards(now=clock, unix_s=clock)
    wanted = route(limits={"rate": {"requests_per_s": 4}})
    assert [status(guards.guard(wanted), ask()) for _ in range(5)] == [0] * 4 + [429]
    guards.workers = 2
    assert [status(guards.guard(wanted), ask()) for _ in range(3)] == [0] * 2 + [429]


def test_a_rate_of_the_route_counts_all_clients() -> None:
    limits = {"rate": {"requests_per_s": 1, "burst": 2, "per": "route"}}
    guard = guard_of(limits=limits)
    assert [status(guard, ask(client=f"10.0.0.{i}")) for i in range(3)] == [0, 0, 429]


def test_an_ipv6_client_has_one_network() -> None:
    assert client_key("2001:db8:1:2:3:4:5:6") == client_key("2001:db8:1:2::1")
    assert client_key("2001:db8:1:3::1") != client_key("2001:db8:1:2::1")
    assert client_key("::ffff:10.0.0.1") == "10.0.0.1"
    guard = guard_of(limits={"rate": {"requests_per_s": 1, "burst": 1}})
    assert [status(guard, ask(client=f"2001:db8::{i}")) for i in (1, 2)] == [0, 429]


@given(
    st.lists(st.tuples(st.floats(0, 3), st.integers(0, 2)), max_size=60),
    st.floats(0.2, 5),
    st.integers(1, 5),
)
def test_no_more_than_burst_plus_rate_in_any_time(
    steps: list[tuple[float, int]], per_s: float, burst: int
) -> None:
    buckets = Buckets(per_s, burst)
    now_s = 0.0
    taken: dict[str, list[float]] = {}
    for step_s, client in steps:
        now_s += step_s
        if not buckets.take(str(client), now_s):
            taken.setdefault(str(client), []).append(now_s)
    for times in taken.values():
        for first in range(len(times)):
            for last in range(first, len(times)):
                allowed = burst + (times[last] - times[first]) * per_s
                assert last - first + 1 <= allowed + 1e-6


def test_the_table_of_clients_is_bounded_and_forgets_full_buckets_first() -> None:
    buckets = Buckets(1.0, 5.0, limit=100)
    for _ in range(5):
        buckets.take("busy", 0.0)
    for number in range(99):
        buckets.take(f"idle{number}", 0.0)
    buckets.take("late", 2.0)
    assert len(buckets) == 2
    assert buckets.take("busy", 2.0) == 0.0
    for number in range(1000):
        buckets.take(f"flood{number}", 2.0)
    assert len(buckets) == 100


# --- caps --------------------------------------------------------------------------------------------------


def test_a_cap_holds_until_the_release_and_leaves_nothing_behind() -> None:
    guard = guard_of(limits={"connections_per_client": 2})
    assert guard.admit is not None
    first, second = guard.admit(ask()), guard.admit(ask())
    assert callable(first) and callable(second)
    assert status(guard, ask()) == 429
    assert status(guard, ask(client="192.0.2.2")) == 0
    first()
    assert status(guard, ask()) == 0
    second()
    caps = Caps()
    release = caps.enter("c", 1)
    assert release is not None
    release()
    assert len(caps) == 0


def test_who_is_refused_holds_no_place() -> None:
    digest = hashlib.sha256(b"t").hexdigest()
    guard = guard_of(
        limits={"connections_per_client": 1}, auth={"kind": "bearer", "sha256": [digest]}
    )
    assert [status(guard, ask()) for _ in range(3)] == [401] * 3
    assert status(guard, ask("Authorization: Bearer t")) == 0


def test_counts_outlive_a_snapshot_unless_their_rule_changed() -> None:
    clock = Clock()
    guards = Guards(now=clock, unix_s=clock)
    wanted = route(limits={"rate": {"requests_per_s": 1, "burst": 1}, "connections_per_client": 1})
    before = guards.guard(wanted)
    assert before.admit is not None
    release = before.admit(ask())
    assert callable(release)
    after = guards.guard(wanted)
    assert status(after, ask()) == 429
    clock.now_s += 5
    assert status(after, ask()) == 429  # the cap
    release()
    clock.now_s += 5
    assert status(after, ask()) == 0
    faster = route(limits={"rate": {"requests_per_s": 2, "burst": 2}})
    assert status(guards.guard(faster), ask()) == 0
    guards.retain(set())
    assert not guards._kept


# --- basic -------------------------------------------------------------------------------------------------


def basic(name: str, password: str) -> str:
    return "Authorization: Basic " + base64.b64encode(f"{name}:{password}".encode()).decode()


SHA = "sha256:" + hashlib.sha256(b"open: sesame").hexdigest()
SCRYPT = "scrypt:0a0b:" + hash_scrypt(b"slow", b"\x0a\x0b").hex()


def test_basic() -> None:
    guard = guard_of(auth={"kind": "basic", "users": {"ann": SHA}, "realm": 'the "place"'})
    assert guard.admit_later is None
    assert status(guard, ask(basic("ann", "open: sesame"))) == 0
    for line in (
        basic("ann", "no"),
        basic("bob", "open: sesame"),
        "Authorization: Basic !!",
        "Authorization: Basic " + "A" * 8000,
        "Authorization: Bearer x",
        "X: y",
    ):
        assert guard.admit is not None
        refused = guard.admit(ask(line))
        assert isinstance(refused, Answer)
        assert refused.status == 401
        assert refused.fields == (("WWW-Authenticate", 'Basic realm="the place", charset="UTF-8"'),)


async def test_a_slow_hash_is_waited_for_once_and_then_remembered() -> None:
    guard = guard_of(auth={"kind": "basic", "users": {"ann": SCRYPT, "bob": SHA}})
    later, known, admit_known = guard.admit_later, guard.known, guard.admit_known
    assert later is not None and known is not None and admit_known is not None
    good, bad = ask(basic("ann", "slow")), ask(basic("ann", "fast"))
    nobody = ask(basic("eve", "slow"))
    assert status(guard, good) == 0  # not known yet: asked later
    for request in (good, bad, nobody):
        assert not known(request)
        verdict = admit_known(request)
        assert isinstance(verdict, Answer)
        assert verdict.status == 503
    assert await later(good) == ()
    for request in (bad, nobody):
        refusal = await later(request)
        assert isinstance(refusal, Answer)
        assert refusal.status == 401
        assert known(request)
        assert status(guard, request) == 401
    assert known(good) and known(ask()) and known(ask(basic("bob", "open: sesame")))
    assert admit_known(good) is None
    assert admit_known(ask(basic("bob", "open: sesame"))) is None
    assert status(guard, ask()) == 401


async def test_a_flood_of_passwords_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("roost.proxy.credentials.HASHES_WAITING", 3)
    users = BasicUsers(msgspec.convert({"kind": "basic", "users": {"a": SCRYPT}}, policy.BasicAuth))
    requests = [ask(basic("a", str(number))) for number in range(8)]
    answers = await asyncio.gather(*[users.check_later(request) for request in requests])
    statuses = [answer.status for answer in answers if isinstance(answer, Answer)]
    assert statuses.count(401) == 3
    assert statuses.count(503) == 5


# --- bearer, cookies ---------------------------------------------------------------------------------------


def test_bearer() -> None:
    digests = [hashlib.sha256(token).hexdigest() for token in (b"one", b"two")]
    guard = guard_of(auth={"kind": "bearer", "sha256": digests})
    assert status(guard, ask("Authorization: bearer two")) == 0
    assert status(guard, ask("Authorization: Bearer three")) == 401
    assert status(guard, ask("Authorization: Basic two")) == 401
    assert status(guard, ask()) == 401


def test_a_signed_cookie_until_it_expires(tmp_path: Path) -> None:
    clock = Clock()
    key_file = tmp_path / "keys"
    key_file.write_text("# rotated\nnew:" + "ab" * 16 + "\nold:" + "cd" * 16 + "\n")
    auth = {"kind": "cookie", "key_file": str(key_file), "login": "https://l.example/?a=1"}
    guard = guard_of(clock=clock, auth=auth)
    assert guard.hidden == "roost_session"
    keys = read_keys(key_file.read_text())
    assert list(keys) == ["new", "old"]
    current = SessionKeys("roost_session", keys).sign("ann", 1010).decode()
    older = SessionKeys("roost_session", {"old": keys["old"]}).sign("ann", 1010).decode()
    other_name = SessionKeys("other", keys).sign("ann", 1010).decode()
    other_key = SessionKeys("roost_session", {"new": b"x" * 16}).sign("ann", 1010).decode()
    assert current.startswith("v1.new.1010.")
    for value in (current, older):
        assert status(guard, ask(f"Cookie: a=b; roost_session={value}")) == 0
    longer = current.replace(".1010.", ".9999.")
    for value in (other_name, other_key, longer, current[:-1], "", "v1.a.1.b.c", "x" * 5000):
        assert status(guard, ask(f"Cookie: roost_session={value}")) == 401
    clock.now_s = 1010.0
    assert status(guard, ask(f"Cookie: roost_session={current}")) == 401


def test_a_browser_is_sent_to_the_login_with_a_path_to_come_back_to(tmp_path: Path) -> None:
    key_file = tmp_path / "keys"
    key_file.write_text("k:" + "ab" * 16)
    auth = {"kind": "cookie", "key_file": str(key_file), "login": "/login"}
    guard = guard_of(auth=auth)
    assert guard.admit is not None
    answer = guard.admit(ask("Accept: text/html,*/*", target="//evil.example/?a=b&c"))
    assert isinstance(answer, Answer)
    assert answer.status == 302
    assert answer.fields == (("Location", "/login?next=/evil.example/%3Fa%3Db%26c"),)
    assert status(guard, ask("Accept: text/html", method="POST")) == 401
    assert status(guard, ask("Accept: application/json")) == 401


@given(st.text(max_size=30), st.integers(0, 10**11))
def test_what_was_signed_is_read_and_nothing_else(subject: str, expires_s: int) -> None:
    keys = SessionKeys("c", {"k": b"0" * 16})
    value = keys.sign(subject, expires_s)
    session = keys.check(value, expires_s - 1)
    assert session is not None
    assert (session.subject, session.expires_s) == (subject, expires_s)
    assert keys.check(value, expires_s) is None
    for place in range(len(value)):
        assert keys.check(value[:place] + b"~" + value[place + 1 :], 0) is None


@pytest.mark.parametrize(
    "text", ["", "# x", "k", "k:zz", "k:" + "a" * 31, "k:ab\n", "a b:" + "a" * 32]
)
def test_key_files_that_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"line|no key"):
        read_keys(text)
    with pytest.raises(ValueError, match="twice"):
        read_keys("k:" + "ab" * 16 + "\nk:" + "cd" * 16)


def test_cookie_fields() -> None:
    assert read(b'a=1; bb=2;c="3" ;bb=4', b"bb") == b"2"
    assert read(b'a=1; c="3"', b"c") == b"3"
    assert read(b"aa=1", b"a") is None
    assert without(b"a=1; b=2;a=3 ; c", b"a") == b"b=2; c"


# --- forward auth ------------------------------------------------------------------------------------------

Serve = Callable[[bytes], bytes | None]


@asynccontextmanager
async def auth_server(
    answer: Serve, **values: Any
) -> AsyncIterator[tuple[AuthServer, list[bytes]]]:
    """One whose answers are given; None closes without one."""
    heads: list[bytes] = []
    writers: list[asyncio.StreamWriter] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writers.append(writer)
        try:
            while True:
                heads.append(await reader.readuntil(b"\r\n\r\n"))
                data = answer(heads[-1])
                if data is None:
                    break
                writer.write(data)
        except (EOFError, ConnectionError):
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    url = f"http://127.0.0.1:{port}/check?a=b"
    auth = AuthServer(
        msgspec.convert({"kind": "forward", "url": url, **values}, policy.ForwardAuth)
    )
    try:
        yield auth, heads
    finally:
        auth.close()
        server.close()
        for writer in writers:
            writer.transport.abort()
        await server.wait_closed()


OK = b"HTTP/1.1 204 No Content\r\nX-User: ann\r\nX-User: two\r\n\r\n"


async def test_what_an_auth_server_is_asked_and_what_is_copied() -> None:
    async with auth_server(lambda head: OK, copy_headers=["X-User", "X-Role"]) as (auth, heads):
        request = ask(
            "X-User: forged",
            "X-Forwarded-Uri: /forged",
            "X_Forwarded_Method: GET",
            "Content-Length: 5",
            "Range: bytes=0-1",
            "Authorization: Bearer t",
            method="POST",
            target="/a?b",
        )
        pairs = await auth.ask(request)
        again = await auth.ask(request)
    assert pairs == again
    assert pairs == ((b"x-user", b"ann, two"), (b"x-role", b""))
    lines = heads[0].decode().split("\r\n")
    assert lines[0] == "GET /check?a=b HTTP/1.1"
    assert next(line for line in lines if line.lower().startswith("host:")) != "Host: a.example"
    forwarded = sorted(line for line in lines if line.lower().startswith(("x-forw", "x_forw")))
    assert forwarded == [
        "X-Forwarded-For: 192.0.2.1",
        "X-Forwarded-Host: a.example",
        "X-Forwarded-Method: POST",
        "X-Forwarded-Proto: http",
        "X-Forwarded-Uri: /a?b",
    ]
    assert "Authorization: Bearer t" in lines
    assert not [line for line in lines if line.lower().startswith(("content-length", "range"))]


async def test_a_refusal_is_passed_on_with_its_fields_and_body() -> None:
    said = (
        b"HTTP/1.1 302 Found\r\nLocation: https://l.example/\r\nSet-Cookie: a=1\r\n"
        b"Set-Cookie: b=2\r\nContent-Type: text/html\r\nContent-Length: 2\r\n\r\nno"
    )
    async with auth_server(lambda head: said) as (auth, _):
        answer = await auth.ask(ask())
    assert isinstance(answer, Answer)
    assert (answer.status, answer.body, answer.content_type) == (302, b"no", "text/html")
    fields = [(name.lower(), value) for name, value in answer.fields]
    assert fields == [
        ("location", "https://l.example/"),
        ("set-cookie", "a=1"),
        ("set-cookie", "b=2"),
    ]


@pytest.mark.parametrize(
    ("said", "wanted"),
    [
        (None, 503),
        (b"nonsense\r\n\r\n", 502),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\n", 502),
        (b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\n\r\n", 502),
        (b"HTTP/1.1 403 No\r\nContent-Length: 99999\r\n\r\n" + b"x" * 99999, 502),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n", 503),
        (b"", 503),
    ],
)
async def test_it_fails_closed(said: bytes | None, wanted: int) -> None:
    async with auth_server(lambda head: said, timeout_s=0.2) as (auth, _):
        answer = await auth.ask(ask())
    assert isinstance(answer, Answer)
    assert answer.status == wanted


async def test_nobody_there_and_too_many_are_refusals(monkeypatch: pytest.MonkeyPatch) -> None:
    async with auth_server(lambda head: OK) as (auth, _):
        pass
    answer = await auth.ask(ask())
    assert isinstance(answer, Answer)
    assert answer.status == 503
    monkeypatch.setattr("roost.proxy.forward_auth.WAITING_LIMIT", 0)
    answer = await auth.ask(ask())
    assert isinstance(answer, Answer)
    assert answer.status == 503


async def test_a_kept_connection_that_was_closed_is_made_anew() -> None:
    said: list[bytes | None] = [OK, None, OK]

    async with auth_server(lambda head: said.pop(0)) as (auth, heads):
        assert isinstance(await auth.ask(ask()), tuple)
        assert isinstance(await auth.ask(ask()), tuple)
    assert len(heads) == 3


@pytest.mark.parametrize("url", ["ftp://a/", "/x", "http://", "http://u:p@a/", "http://a/ b"])
def test_urls_that_are_refused(url: str) -> None:
    with pytest.raises(ValueError, match=r"URL|not sent"):
        split_url(url)
    assert split_url("https://a.example/x?y") == ("a.example", 443, True, "a.example", b"/x?y")
