"""What changes on the way: targets, fields, sticky cookies, redirects' addresses."""

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from roost.proxy import policy
from roost.proxy.heads import Origin, Request, read_request
from roost.proxy.rewrite import (
    MEMO_ENTRIES,
    Location,
    RouteRewriter,
    Sticky,
    field_problem,
)
from roost.proxy.upstream import Upstreams


def ask(target: str = "/", *lines: str, origin: Origin | None = None) -> Request:
    head = "\r\n".join([f"GET {target} HTTP/1.1", "Host: A.example:8080", *lines, "", ""])
    return read_request(head.encode(), origin or Origin("192.0.2.1"))


def rewriter(**changes: Any) -> RouteRewriter:
    return RouteRewriter(msgspec.convert(changes, policy.Rewrite))


@pytest.mark.parametrize(
    ("changes", "target", "wanted"),
    [
        ({"strip_prefix": "/api"}, "/api/x?q=/api/", "/x?q=/api/"),
        ({"strip_prefix": "/api"}, "/api", "/"),
        ({"strip_prefix": "/api"}, "/api?q", "/?q"),
        ({"strip_prefix": "/api/"}, "/api/", "/"),
        ({"strip_prefix": "/api"}, "/apiary", "/apiary"),
        ({"strip_prefix": "/api"}, "/%61p%69/x", "/x"),
        ({"strip_prefix": "/api"}, "/api//evil.example", "/evil.example"),
        ({"strip_prefix": "/a b"}, "/a%20b/c", "/c"),
        ({"strip_prefix": "/é"}, "/%C3%a9/c", "/c"),
        ({"strip_prefix": "/a.b"}, "/aXb/c", "/aXb/c"),
        ({"strip_prefix": "/"}, "/x", "/x"),
        ({"add_prefix": "/v2"}, "/x?y", "/v2/x?y"),
        ({"add_prefix": "/v2/"}, "/", "/v2/"),
        ({"strip_prefix": "/a", "add_prefix": "/b"}, "/a/x", "/b/x"),
        ({"add_prefix": "/v2"}, "/" + "x" * 2000, "/v2/" + "x" * 2000),
    ],
)
def test_targets(changes: dict[str, Any], target: str, wanted: str) -> None:
    changed = rewriter(**changes)
    request = ask(target)
    assert changed.request(request) == (wanted.encode(), ())
    assert changed.request(request) == (wanted.encode(), ())


def test_the_server_as_a_whole_has_no_prefix() -> None:
    head = b"OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n"
    request = read_request(head, Origin("192.0.2.1"))
    assert rewriter(add_prefix="/v2").request(request)[0] == b"*"


@given(st.text(alphabet="ab/%61", max_size=8), st.sampled_from(["", "?q", "?/ab/"]))
def test_a_rewritten_target_is_a_path_below_the_new_prefix(tail: str, query: str) -> None:
    target, _ = rewriter(strip_prefix="/ab", add_prefix="/n").request(ask("/ab" + tail + query))
    assert target.startswith(b"/n/")
    assert target.endswith(query.encode())


def test_the_memo_is_bounded() -> None:
    changed = rewriter(strip_prefix="/a")
    for number in range(MEMO_ENTRIES + 10):
        changed.request(ask(f"/a/{number}"))
    assert len(changed._targets) <= MEMO_ENTRIES


def test_fields_are_encoded_once_and_for_all() -> None:
    changed = rewriter(
        host="backend.internal:81",
        request_headers={"X-Team": " blue ", "X-Gone": ""},
        response_headers={"Strict-Transport-Security": "max-age=1", "Server": ""},
    )
    upstream = Upstreams(policy.Service(name="s", backends=("h:9",))).members[0]
    _, fields = changed.request(ask())
    assert fields == ((b"x-team", b"blue"), (b"x-gone", b""), (b"host", b"backend.internal:81"))
    assert changed.request(ask())[1] is fields
    assert changed.response(ask(), upstream) == (
        (b"strict-transport-security", b"max-age=1"),
        (b"server", b""),
    )


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("Connection", "close"),
        ("Transfer_Encoding", "chunked"),
        ("X-Forwarded-For", "10.0.0.1"),
        ("a b", "x"),
        ("X", "a\r\nb: c"),
        ("X", "\x00"),
    ],
)
def test_fields_a_route_may_not_set(name: str, value: str) -> None:
    assert field_problem(name, value) is not None
    assert field_problem("X-Fine", "ä value\t") is None


def test_a_sticky_client_gets_its_cookie_once() -> None:
    service = policy.Service(name="s", backends=("h:9", "h:10"), balance="sticky")
    one, two = Upstreams(service).members
    sticky = Sticky("roost_backend", secure=True)
    changed = RouteRewriter(policy.Rewrite(), sticky=sticky)
    ((name, value),) = changed.response(ask(), one)
    assert name == b"set-cookie"
    cookie, *attributes = value.decode().split("; ")
    assert attributes == ["Path=/", "HttpOnly", "SameSite=Lax", "Secure"]
    assert b"h:9" not in value
    back = ask("/", f"Cookie: other=1; {cookie}")
    assert sticky.key(back) == one.sticky_id
    assert sticky.key(ask()) == b""
    assert changed.response(back, one) == ()
    # Its backend is gone: it moves.
    assert changed.response(back, two)[0][1].startswith(b"roost_backend=" + two.sticky_id)


def test_backends_do_not_see_a_hidden_cookie() -> None:
    changed = RouteRewriter(policy.Rewrite(), hidden="roost_session")
    seen = ask("/", 'Cookie: a=1; roost_session="x"; b=2')
    assert changed.request(seen)[1] == ((b"cookie", b"a=1; b=2"),)
    assert changed.request(ask("/", "Cookie: roost_session=x"))[1] == ((b"cookie", b""),)
    assert changed.request(ask("/", "Cookie: not_roost_session=x"))[1] == (
        (b"cookie", b"not_roost_session=x"),
    )
    assert changed.request(ask("/", "Cookie: a=1"))[1] == ()


def test_a_redirect_believes_the_scheme_of_a_trusted_proxy_alone() -> None:
    location = Location(policy.Redirect(host="b.example"))
    line = "X-Forwarded-Proto: https"
    trusted = Origin("192.0.2.1", trusts=lambda address: address == "192.0.2.1")
    assert location.of(ask("/x?y", line, origin=trusted)) == "https://b.example/x?y"
    assert location.of(ask("/x?y", line)) == "http://b.example/x?y"
    secure = Origin("192.0.2.1", secure=True)
    assert location.of(ask("/x", origin=secure)) == "https://b.example/x"


def test_a_field_that_is_set_leaves_no_other_spelling_of_it() -> None:
    request = ask("/x", "X_User: forged", "x-USER: forged", "X-Other: 1")
    head = request.forward_changed(b"/y", ((b"x-user", b"ann"), (b"x-other", b"")))
    lines = head.lower().split(b"\r\n")
    assert lines[0] == b"get /y http/1.1"
    assert [line for line in lines if b"user" in line or b"other" in line] == [b"x-user: ann"]


def test_an_old_client_without_a_host_gets_the_one_that_is_set() -> None:
    request = read_request(b"GET / HTTP/1.0\r\n\r\n", Origin("192.0.2.1"))
    head = request.forward_changed(b"/", ((b"host", b"b.internal"),)).lower()
    assert head.count(b"\r\nhost:") == 1
    assert b"\r\nhost: b.internal\r\n" in head
    assert b"\r\nhost: localhost\r\n" in request.forward_changed(b"/x", ()).lower()
