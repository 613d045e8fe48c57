"""Which route wins, checked by example and against a matcher that knows no index."""

import re
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from roost.ports.errors import Invalid
from roost.proxy import policy
from roost.proxy.answers import Answer
from roost.proxy.heads import Origin, Request, read_request
from roost.proxy.plan import Plan
from roost.proxy.protect import Guards
from roost.proxy.routing import MEMO_ENTRIES, RouteSet, readings, route_sets
from roost.proxy.upstream import Upstreams

ORIGIN = Origin("192.0.2.1", listener="web")


def ask(target: str = "/", host: str = "a.example", method: str = "GET", **fields: str) -> Request:
    lines = [f"{method} {target} HTTP/1.1", f"Host: {host}"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in fields.items()]
    return read_request(("\r\n".join(lines) + "\r\n\r\n").encode(), ORIGIN)


def route_set(*routes: dict[str, Any], balance: str = "least-work") -> RouteSet:
    names = {"one", "two"}
    gateway = msgspec.convert(
        {
            "listeners": [{"name": "web", "address": "127.0.0.1:0"}],
            "routes": [
                {
                    "name": str(i),
                    **({} if {"redirect", "answer", "split"} & set(r) else {"service": "one"}),
                    **r,
                }
                for i, r in enumerate(routes)
            ],
            "services": [
                {"name": name, "backends": ["127.0.0.1:9"], "balance": balance} for name in names
            ],
        },
        policy.Gateway,
    )
    upstreams = {each.name: Upstreams(each) for each in gateway.services}
    guards = Guards(now=lambda: 0.0, unix_s=lambda: 0.0)
    return route_sets(gateway, upstreams, guards)["web"]


def name_of(decision: Plan | Answer) -> str | int:
    return decision.name if isinstance(decision, Plan) else decision.status


def match(**conditions: Any) -> dict[str, Any]:
    return {"match": conditions}


@pytest.mark.parametrize(
    ("target", "host", "winner"),
    [
        ("/", "a.example", "0"),
        ("/", "A.EXAMPLE:8080", "0"),
        ("/", "a.example.", "0"),
        ("/", "x.a.example", "2"),
        ("/", "x.y.a.example", "2"),
        ("/", "b.example", "1"),
        ("/", "example", "3"),
        ("/", "other.org", "3"),
        ("/", "[::1]:80", "4"),
    ],
)
def test_an_exact_host_wins_over_the_longest_wildcard_over_none(
    target: str, host: str, winner: str
) -> None:
    routes = route_set(
        match(hosts=["a.example"]),
        match(hosts=["*.example"]),
        match(hosts=["*.a.example"]),
        match(),
        match(hosts=["[::1]"]),
    )
    assert name_of(routes.decide(ask(target, host))) == winner


@pytest.mark.parametrize(
    ("target", "winner"),
    [
        ("/api", "1"),
        ("/api?x=1", "1"),
        ("/api/", "0"),
        ("/api/v1/x", "0"),
        ("/apiary", "4"),
        ("/api/v2", "2"),
        ("/api/v2/x/y", "2"),
        ("/files/a.png", "3"),
        ("/files/a.pngs", "4"),
        ("/files/%0a.png", "3"),
        ("/%61pi", "1"),
        ("/api/v2%20", "0"),
        ("/", "4"),
    ],
)
def test_an_exact_path_wins_over_the_longest_prefix_over_a_pattern(
    target: str, winner: str
) -> None:
    routes = route_set(
        match(prefix="/api"),
        match(path="/api"),
        match(prefix="/api/v2/"),
        match(pattern=r"/files/.*\.png"),
        match(prefix="/"),
    )
    assert name_of(routes.decide(ask(target))) == winner
    assert name_of(routes.decide(ask(target))) == winner  # by the memo


def test_more_conditions_win_then_the_order_of_the_file() -> None:
    routes = route_set(
        match(),
        match(headers={"X-Canary": "*"}),
        match(headers={"x-canary": "yes"}, query={"v": "2"}),
        match(),
        match(query={"v": "*"}),
    )
    assert name_of(routes.decide(ask())) == "0"
    assert name_of(routes.decide(ask(X_Canary="no"))) == "1"
    assert name_of(routes.decide(ask("/?v=2&v=3", X_Canary="yes"))) == "2"
    assert name_of(routes.decide(ask("/?v=%32", X_Canary="yes"))) == "2"
    assert name_of(routes.decide(ask("/?v"))) == "4"
    assert name_of(routes.decide(ask("/?w=2"))) == "0"
    many = "&".join(f"a{i}=1" for i in range(500))
    assert name_of(routes.decide(ask(f"/?{many}"))) == 400


def test_a_wrong_method_alone_is_405_and_says_what_is_allowed() -> None:
    routes = route_set(
        match(path="/x", methods=["GET"]),
        match(path="/x", methods=["PUT", "DELETE"]),
        match(path="/x", methods=["PATCH"], headers={"x-a": "1"}),
    )
    assert name_of(routes.decide(ask("/x"))) == "0"
    assert name_of(routes.decide(ask("/x", method="HEAD"))) == "0"
    assert name_of(routes.decide(ask("/x", method="PUT"))) == "1"
    refused = routes.decide(ask("/x", method="POST"))
    assert isinstance(refused, Answer)
    assert refused.status == 405
    assert refused.fields == (("Allow", "DELETE, GET, HEAD, PUT"),)
    assert name_of(routes.decide(ask("/y", method="POST"))) == 404


@pytest.mark.parametrize(
    "target",
    [
        "/a/../admin",
        "/a/%2e%2E/admin",
        "/a/.%2e/admin",
        "/./admin",
        "/a/..",
        "/a%2f..%2fadmin",
        "/a%5c..%5cadmin",
        "/..;/admin",
        "/a\\admin",
        "/a%00",
        "/a%zz",
        "/a%",
        "/a%2",
    ],
)
def test_paths_two_servers_could_read_differently_are_refused(target: str) -> None:
    assert name_of(route_set(match()).decide(ask(target))) == 400


@pytest.mark.parametrize(
    "target", ["/.well-known/x", "/a..b/...", "/a/b..", "/%2ehidden", "/a;v=1"]
)
def test_dots_that_are_no_segments_are_served(target: str) -> None:
    assert name_of(route_set(match()).decide(ask(target))) == "0"


def test_slashes_in_two_readings_never_get_past_a_guarded_route() -> None:
    routes = route_set(match(), match(prefix="/admin"))
    for target in ("//admin", "/%2fadmin/x", "/admin%2Fx", "/admin%5cx"):
        assert name_of(routes.decide(ask(target))) == 400
    # Both readings lead to the same route: nothing to gain, so it is passed on.
    assert name_of(routes.decide(ask("/@scope%2fname"))) == "0"
    assert name_of(routes.decide(ask("/a//b"))) == "0"
    assert name_of(routes.decide(ask("/admin//b"))) == "1"
    assert readings(b"/a//b%2Fc") == ("/a//b%2Fc", "/a/b/c")


def test_the_whole_server_is_asked_by_an_asterisk() -> None:
    routes = route_set(match(path="/"))
    assert name_of(routes.decide(ask("*", method="OPTIONS"))) == "0"


def test_shares_are_kept_by_any_stretch_of_requests() -> None:
    shares = [{"service": "one", "weight": 9.0}, {"service": "two", "weight": 1.0}]
    routes = route_set({"split": shares, **match()})
    request = ask()
    chosen = []
    for _ in range(1000):
        plan = routes.decide(request)
        assert isinstance(plan, Plan)
        chosen.append(plan.upstreams.policy.name)
    assert abs(chosen.count("two") - 100) <= 3
    for start in range(0, 1000, 100):
        assert abs(chosen[start : start + 100].count("two") - 10) <= 3


def test_redirects_and_fixed_answers() -> None:
    routes = route_set(
        {"redirect": {"scheme": "https"}, **match(path="/tls")},
        {"redirect": {"path": "/new{path}?{query}&old=1", "status": 302}, **match(path="/r")},
        {"redirect": {"host": "b.example:81"}, **match(prefix="/h")},
        {"redirect": {"path": "{path}"}, **match()},
        {"answer": {"status": 418, "body": "tea"}, **match(path="/t")},
    )

    def location(target: str) -> tuple[int, str]:
        answer = routes.decide(ask(target, "a.example:8080"))
        assert isinstance(answer, Answer)
        return answer.status, dict(answer.fields)["Location"]

    assert location("/tls?x=1") == (308, "https://a.example/tls?x=1")
    assert location("/r?x={path}") == (302, "/new/r?x={path}&old=1")
    assert location("/h/x") == (308, "http://b.example:81/h/x")
    assert location("//evil.example/x") == (308, "/evil.example/x")
    tea = routes.decide(ask("/t"))
    assert isinstance(tea, Answer)
    assert (tea.status, tea.body) == (418, b"tea")
    assert tea is routes.decide(ask("/t"))


def test_a_plan_has_what_the_route_says_and_else_what_the_service_says() -> None:
    routes = route_set(
        {"limits": {"body_bytes": 10}, "retries": {"attempts": 7}, "timeouts": {"upload_s": 9}},
        {"rewrite": {"strip_prefix": "/x"}, **match(prefix="/x")},
    )
    plan = routes.decide(ask())
    other = routes.decide(ask("/x/y"))
    assert isinstance(plan, Plan) and isinstance(other, Plan)
    assert (plan.body_bytes, plan.retries.attempts, plan.timeouts.upload_s) == (10, 7, 9)
    assert plan.rewrite is None and plan.admit is None and plan.key is None
    assert other.retries == other.upstreams.policy.retries
    assert other.rewrite is not None
    assert other.rewrite.request(ask("/x/y"))[0] == b"/y"


def test_a_route_of_another_listener_is_none_here() -> None:
    assert name_of(route_set({"listeners": ["admin"]}).decide(ask())) == 404


def test_an_unknown_service_is_refused() -> None:
    with pytest.raises(Invalid, match="there is no service 'three'"):
        route_set({"service": "three"})


def test_the_memo_is_bounded_and_long_paths_stay_out_of_it() -> None:
    routes = route_set(match(prefix="/a"))
    for number in range(MEMO_ENTRIES + 10):
        routes.decide(ask(f"/a/{number}"))
    assert len(routes._memo) <= MEMO_ENTRIES
    before = len(routes._memo)
    assert name_of(routes.decide(ask("/a" + "/b" * 4000))) == "0"
    assert len(routes._memo) == before


@pytest.mark.parametrize(
    ("hash_on", "key"),
    [
        ("client", b"192.0.2.1"),
        ("path", b"/p"),
        ("header:X-User", b"u"),
        ("cookie:sid", b"s1"),
        ("cookie:none", b""),
    ],
)
def test_what_a_service_is_hashed_on(hash_on: str, key: bytes) -> None:
    gateway = msgspec.convert(
        {
            "listeners": [{"name": "web", "address": "127.0.0.1:0"}],
            "routes": [{"name": "r", "service": "s"}],
            "services": [{"name": "s", "backends": ["h:9"], "balance": "hash", "hash_on": hash_on}],
        },
        policy.Gateway,
    )
    guards = Guards(now=lambda: 0.0, unix_s=lambda: 0.0)
    routes = RouteSet(gateway, "web", {"s": Upstreams(gateway.services[0])}, guards)
    plan = routes.decide(ask("/p?q", X_User="u", Cookie="a=b; sid=s1"))
    assert isinstance(plan, Plan) and plan.key is not None
    assert plan.key(ask("/p?q", X_User="u", Cookie="a=b; sid=s1")) == key


# --- against a matcher that knows no index ----------------------------------------------------------------

SEGMENT = st.sampled_from(["a", "b", "ab", "c d"])
PATH = st.lists(SEGMENT, max_size=3).map(lambda parts: "/" + "/".join(parts))
HOST = st.sampled_from(["a.x", "b.a.x", "c.b.a.x", "x", "y"])
MATCH = st.fixed_dictionaries(
    {
        "hosts": st.lists(st.sampled_from(["a.x", "*.x", "*.a.x", "b.a.x"]), max_size=2),
        "methods": st.lists(st.sampled_from(["GET", "POST"]), max_size=1),
        "headers": st.dictionaries(
            st.sampled_from(["x-one", "x-two"]), st.sampled_from(["*", "1"]), max_size=2
        ),
        "query": st.dictionaries(st.just("q"), st.sampled_from(["*", "1"]), max_size=1),
    },
    optional={},
).flatmap(
    lambda common: st.one_of(
        st.just({}),
        PATH.map(lambda path: {"path": path}),
        PATH.map(lambda path: {"prefix": path}),
        st.sampled_from([r"/a.*", r"/[ab]+/.*", r"/"]).map(lambda text: {"pattern": text}),
    ).map(lambda path: {**common, **path})
)


def naive(matches: list[dict[str, Any]], request: dict[str, Any]) -> str | int:
    """The rules as ``policy.Match`` tells them, all of them tried."""
    best: list[tuple[tuple[Any, ...], str]] = []
    failed_by_method = False
    for number, conditions in enumerate(matches):
        hosts = [host_rank(pattern, request["host"]) for pattern in conditions["hosts"]]
        host = max((rank for rank in hosts if rank), default=None) if hosts else (0, 0)
        path = path_rank(conditions, request["path"])
        wanted = [
            (conditions["headers"], request["headers"]),
            (conditions["query"], request["query"]),
        ]
        fits = all(
            name in given and (value == "*" or given[name] == value)
            for needed, given in wanted
            for name, value in needed.items()
        )
        if host is None or path is None or not fits:
            continue
        if conditions["methods"] and request["method"] not in conditions["methods"]:
            failed_by_method = True
            continue
        extra = sum(len(conditions[kind]) for kind in ("methods", "headers", "query"))
        best.append(((host, path, extra, -number), str(number)))
    if best:
        return max(best)[1]
    return 405 if failed_by_method else 404


def host_rank(pattern: str, host: str) -> tuple[int, int] | None:
    if pattern == host:
        return (2, 0)
    if pattern.startswith("*.") and host.endswith(pattern[1:]):
        return (1, len(pattern))
    return None


def path_rank(conditions: dict[str, Any], path: str) -> tuple[int, int] | None:
    if "path" in conditions:
        return (3, 0) if path == conditions["path"] else None
    if "prefix" in conditions and conditions["prefix"] != "/":
        prefix = conditions["prefix"]
        return (2, len(prefix)) if path == prefix or path.startswith(prefix + "/") else None
    if "pattern" in conditions:
        return (1, 0) if re.fullmatch(conditions["pattern"], path) else None
    return (0, 0)


@settings(max_examples=400, deadline=None)
@given(
    matches=st.lists(MATCH, min_size=1, max_size=6),
    requests=st.lists(
        st.fixed_dictionaries(
            {
                "host": HOST,
                "path": PATH,
                "method": st.sampled_from(["GET", "POST"]),
                "headers": st.dictionaries(
                    st.sampled_from(["x-one", "x-two"]), st.sampled_from(["1", "2"])
                ),
                "query": st.dictionaries(st.just("q"), st.sampled_from(["1", "2"])),
            }
        ),
        min_size=1,
        max_size=4,
    ),
)
def test_the_same_route_as_by_trying_all(
    matches: list[dict[str, Any]], requests: list[dict[str, Any]]
) -> None:
    routes = route_set(*[{"match": conditions} for conditions in matches])
    for request in requests:
        query = "&".join(f"{k}={v}" for k, v in request["query"].items())
        target = request["path"].replace(" ", "%20") + (f"?{query}" if query else "")
        asked = ask(target, request["host"], request["method"], **request["headers"])
        assert name_of(routes.decide(asked)) == naive(matches, request)


@settings(max_examples=300, deadline=None)
@given(path=st.text(alphabet="/.%25eEfFcC;aZ\\?", max_size=12).map(lambda text: "/" + text))
def test_no_path_is_let_through_with_a_dot_segment_in_any_reading(path: str) -> None:
    found = readings(path.partition("?")[0].encode())
    if isinstance(found, Answer):
        assert found.status == 400
        return
    for text in found:
        merged = re.sub(r"%2F|%5C|\\", "/", text)
        assert not {".", ".."} & {part.partition(";")[0] for part in merged.split("/")}
