"""The gateway's file: what is taken, what is refused and in which words, and that its page is right."""

import contextlib
import json
import re
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from roost.gateway import config
from roost.gateway.config_checks import listener_address
from roost.ports.errors import Invalid
from roost.proxy import policy
from roost.proxy.protect import Guards
from roost.proxy.routing import route_sets
from roost.proxy.upstream import upstreams_of

PAGE = Path(__file__).parents[3] / "docs" / "gateway.md"

WORKING = """
[[listeners]]
name = "web"
address = "127.0.0.1:0"
[[services]]
name = "s"
backends = ["127.0.0.1:9001"]
[[routes]]
name = "r"
service = "s"
"""


def refusal(text: str, folder: Path | None = None) -> str:
    with pytest.raises(Invalid) as caught:
        config.parse(text, "routes.toml", folder)
    return str(caught.value)


# --- what is taken -----------------------------------------------------------------------------------------


def test_two_keys_are_a_configuration(tmp_path: Path) -> None:
    path = tmp_path / "routes.toml"
    path.write_text('listen = "127.0.0.1:8080"\nbackends = ["127.0.0.1:9001", "127.0.0.1:9002"]\n')
    gateway = config.load(path)
    assert [each.address for each in gateway.listeners] == ["127.0.0.1:8080"]
    assert gateway.services[0].backends == ("127.0.0.1:9001", "127.0.0.1:9002")
    assert gateway.routes[0].service == gateway.services[0].name
    assert gateway == config.quick("127.0.0.1:8080", ["127.0.0.1:9001", "127.0.0.1:9002"])


def test_the_shorthand_stands_beside_tables() -> None:
    gateway = config.parse('listen = ["127.0.0.1:1", "[::1]:1"]\nbackends = ["h:9"]\n' + WORKING)
    assert [each.name for each in gateway.listeners] == ["default", "default-2", "web"]
    assert [each.name for each in gateway.routes] == ["r", "default"]
    assert [each.name for each in gateway.services] == ["default", "s"]


def test_quick_takes_what_the_command_line_has() -> None:
    gateway = config.quick(
        "0.0.0.0:80", ["unix:/run/a"], balance="hash", workers=3, admin="127.0.0.1:9"
    )
    assert (gateway.workers, gateway.admin) == (3, "127.0.0.1:9")
    assert gateway.services[0].balance == "hash"
    for listen, backends, balance in (
        ("x", ["h:9"], "hash"),
        ("0.0.0.0:80", ["h"], "hash"),
        ("0.0.0.0:80", ["h:9"], "best"),
        ("0.0.0.0:80", [], "hash"),
    ):
        with pytest.raises(Invalid):
            config.quick(listen, backends, balance=balance)


def test_files_are_relative_to_the_configuration(tmp_path: Path) -> None:
    (tmp_path / "keys").write_text("k:" + "ab" * 16)
    path = tmp_path / "routes.toml"
    path.write_text(
        '[access_log]\npath = "log"\n'
        + WORKING
        + '[routes.auth]\nkind = "cookie"\nkey_file = "keys"\n'
    )
    gateway = config.load(path)
    assert gateway.routes[0].auth == policy.CookieAuth(key_file=str(tmp_path / "keys"))
    assert gateway.access_log == policy.AccessLog(path=str(tmp_path / "log"))


def test_a_service_without_backends_is_for_held_routes() -> None:
    text = WORKING.replace('backends = ["127.0.0.1:9001"]', "")
    assert "services[0].backends: there is none" in refusal(text)
    assert config.parse(text + "hold = { wait_s = 1 }").routes[0].hold is not None


# --- what is refused ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("x = ]", "routes.toml: Invalid value (at line 10, column 5)"),
        ('[routes.match]\nprefx = "/"', "routes.toml:11: routes[0].match.prefx: this key is not"),
        ('[routes.match]\nprefx = "/"', "did you mean prefix?"),
        ('[[routes]]\nservice = "s"', "routes.toml:10: routes[1].name: this key is missing"),
        ("timeouts.upload_s = 'x'", "routes.toml:10: routes[0].timeouts.upload_s: expected float"),
        ("timeouts.upload_s = 0", "routes[0].timeouts.upload_s: 0 is impossible"),
        ("timeouts.upload_s = nan", "routes[0].timeouts.upload_s: nan is impossible"),
        ("limits.body_bytes = -1", "routes[0].limits.body_bytes: -1 is impossible"),
        ("hedging.max_share = 2", "routes[0].hedging.max_share: 2.0 is no share"),
        ("[routes.answer]", "routes[0]: service and answer are given"),
        ('[[routes]]\nname = "q"', "routes[1]: it does nothing"),
        ('[[routes]]\nname = "r"\nservice = "s"', "routes[1].name: the name 'r' is there twice"),
        ('[[routes]]\nname = ""\nservice = "s"', "routes[1].name: it is empty"),
        ('[[routes]]\nname = "q"\nservice = "t"', "routes[1].service: there is no service 't'"),
        ('[[routes]]\nname = "q"\nservice = "t"', "services: s"),
        ('listeners = ["x"]', "routes[0].listeners[0]: there is no http listener 'x'"),
        ('match = { path = "/a", prefix = "/b" }', "routes[0].match: path and prefix are given"),
        ('match = { path = "a" }', "routes[0].match.path: 'a' is no path"),
        ('match = { prefix = "/a?b" }', "routes[0].match.prefix"),
        ('match = { prefix = "/a%20b" }', "routes[0].match.prefix: '/a%20b' has an escape"),
        ('match = { pattern = "(" }', "routes[0].match.pattern: missing )"),
        ('match = { hosts = ["a:80"] }', "routes[0].match.hosts[0]: 'a:80' is not a host name"),
        ('match = { methods = ["get"] }', "routes[0].match.methods[0]: 'get' is no method"),
        ('match = { methods = ["TRACE"] }', "TRACE is never served"),
        ('match = { headers = { "a b" = "*" } }', "routes[0].match.headers.a b"),
        ('limits.allow = ["10.0.0.1/8"]', "limits.allow[0]: 10.0.0.1/8 has host bits set"),
        ('limits.deny = ["x"]', "limits.deny[0]: 'x' does not appear to be"),
        ("limits.rate.requests_per_s = 0", "limits.rate.requests_per_s: 0 is impossible"),
        ('rewrite.strip_prefix = "x"', "rewrite.strip_prefix: 'x' is no path"),
        ('rewrite.host = "a b"', "rewrite.host: 'a b' is no host name"),
        ('rewrite.request_headers.Host = "x"', "a key of its own: rewrite.host"),
        ('rewrite.request_headers.TE = "x"', "'TE' is the proxy's own"),
        ('rewrite.response_headers.X = "a\\nb"', "has a control character"),
        (
            'auth.kind = "digest"',
            "auth.kind: invalid value 'digest' (use basic, bearer, cookie, forward)",
        ),
        ('auth = { kind = "basic", users = {} }', "auth.users: there is none"),
        ('auth = { kind = "basic", users = { a = "x" } }', "auth.users.a: a password is sha256:"),
        ('auth = { kind = "bearer", sha256 = ["00"] }', "auth.sha256: a token is given by"),
        ('auth = { kind = "cookie", key_file = "no" }', "auth.key_file: no: No such file"),
        ('auth = { kind = "forward", url = "x" }', "auth.url: 'x' is not an http"),
        (
            'auth = { kind = "forward", url = "http://h/", copy_headers = ["TE"] }',
            "auth.copy_headers[0]: 'TE' is the proxy's own",
        ),
        ('[[services]]\nname = "s"\nbackends = ["h:9"]', "services[1].name: the name 's'"),
        ('[[services]]\nname = "t"\nbackends = ["h"]', "services[1].backends[0]: 'h' is not host"),
        ('[[services]]\nname = "t"\nbackends = ["h:9", "h:9"]', "backends[1]: h:9 is there twice"),
        (
            '[[services]]\nname = "t"\nbackends = [{ address = "h:9", weight = -1 }]',
            "services[1].backends[0].weight: -1.0 is impossible",
        ),
        ('[[services]]\nname = "t"\nbalance = "best"', "use hash, least-requests, least-work"),
        ('[[services]]\nname = "t"\nbackends=["h:9"]\nhash_on = "x"', "hash_on = 'x' is not"),
        (
            '[[services]]\nname = "t"\nbackends=["h:9"]\nhealth.statuses = [300, 200]',
            "health.statuses: like [200, 399]",
        ),
        (
            '[[services]]\nname = "t"\nbackends=["h:9"]\ntls.certificate = "c"',
            "tls: certificate and key belong together",
        ),
        ('[[listeners]]\nname = "b"\naddress = "h:80"', "'h' is not an address of this machine"),
        ('[[listeners]]\nname = "b"\naddress = "::1:80"', "is not host:port or [v6]:port"),
        ('[[listeners]]\nname = "b"\naddress = "0.0.0.0:x"', "is not host:port or [v6]:port"),
        (
            '[[listeners]]\nname = "b"\naddress = "0.0.0.0:1"\nservice = "s"',
            "http listeners have routes",
        ),
        (
            '[[listeners]]\nname = "b"\naddress = "0.0.0.0:1"\nprotocol = "tcp"',
            "listeners[1].service: a tcp listener needs one",
        ),
        (
            '[[listeners]]\nname = "b"\naddress = "0.0.0.0:1"\n[listeners.tls]',
            "listeners[1].tls.certificates: there is none",
        ),
        (
            '[[listeners]]\nname = "b"\naddress = "0.0.0.0:1"\ntls.acme = ["a.org"]',
            "there is no [acme] table",
        ),
        (
            '[[listeners]]\nname = "b"\naddress = "0.0.0.0:1"\n'
            'tls.certificates = [{ certificate = "no.pem", key = "no.key" }]',
            "listeners[1].tls.certificates[0].certificate: no.pem: No such file",
        ),
        (
            '[[listeners]]\nname = "b"\naddress = "0.0.0.0:1"\nlimits.head_bytes = 70000',
            "listeners[1].limits.head_bytes: 70000 is too much",
        ),
        ("[redirect]", "routes.toml:10: redirect: this key is not known here"),
    ],
)
def test_what_is_refused_and_how_it_is_said(change: str, said: str) -> None:
    assert said in refusal(WORKING.lstrip("\n") + change + "\n")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("admin = '0.0.0.0:9'", "admin: 0.0.0.0 is not loopback"),
        ("workers = 1000", "workers: more than 256"),
        ("trusted_proxies = ['x']", "trusted_proxies[0]"),
        ("access_log.path = '/no/such/place/log'", "access_log.path: there is no directory"),
        ("dns = { address = '0.0.0.0:53', zone = 'no' }", "dns.zone: no: No such file"),
        ("acme.directory = 'x'", "acme.directory: it is no URL"),
        ("listen = '127.0.0.1:1'\nlisteners = 3", "listeners: expected list, got"),
    ],
)
def test_what_is_refused_at_the_top(change: str, said: str) -> None:
    text = WORKING.partition("[[services]]") if "listeners" in change else ("", "", WORKING)
    assert said.partition("expected")[0] in refusal(f"{change}\n{text[1]}{text[2]}")


@pytest.mark.parametrize(
    ("action", "said"),
    [
        ("redirect = {}", "redirect: it leads where the request was"),
        ("redirect = { scheme = 'ftp' }", "redirect.scheme: 'ftp' is not http"),
        ("redirect = { path = 'x' }", "redirect.path: 'x' is no path"),
        ("redirect = { host = 'a/b' }", "redirect.host: 'a/b' is no host"),
        ("redirect = { status = 200, path = '/' }", "use 301, 302, 303, 307, 308"),
        ("answer = { status = 100 }", "answer.status: 100 is no final status"),
        ("answer = { status = 204, body = 'x' }", "answer.body"),
        ('answer = { content_type = "a\\nb" }', "answer.content_type"),
        ("answer = {}\nhold = {}", "hold: it says nothing beside answer"),
        ("answer = {}\nauth = { kind = 'forward', url = 'http://h' }", "auth: forward and scrypt"),
        ("split = [{ service = 'no' }]", "split[0].service: there is no service 'no'"),
        ("split = [{ service = 's', weight = 0 }]", "split: all weights are 0"),
    ],
)
def test_actions_that_are_refused(action: str, said: str) -> None:
    assert said in refusal(WORKING.replace('service = "s"', action))


def test_all_problems_are_told_at_once_but_not_thousands() -> None:
    many = "".join(f'[[routes]]\nname = "r{i}"\nservice = "x{i}"\n' for i in range(30))
    lines = refusal(WORKING + many).splitlines()
    assert len(lines) == config.SHOWN + 1
    assert lines[-1] == "and 20 more"


def test_nothing_to_listen_on_or_to_answer_with() -> None:
    assert "there is no listener" in refusal("")
    assert "there is no route" in refusal('listen = "127.0.0.1:1"')


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(Invalid, match=r"gone\.toml cannot be read: No such file"):
        config.load(tmp_path / "gone.toml")
    (tmp_path / "odd.toml").write_bytes(b"\xff")
    with pytest.raises(Invalid, match="not UTF-8"):
        config.load(tmp_path / "odd.toml")


@pytest.mark.parametrize("text", ["0.0.0.0:80", "[::]:0", "localhost:1", "127.0.0.1:65535"])
def test_addresses_to_listen_on(text: str) -> None:
    host, port = listener_address(text)
    assert text in (f"{host}:{port}", f"[{host}]:{port}")


SCALAR = st.one_of(
    st.booleans(), st.integers(-3, 3), st.floats(), st.text(max_size=3), st.just([]), st.just({})
)
KEYS = st.sampled_from(
    [
        "listen",
        "backends",
        "listeners",
        "services",
        "routes",
        "name",
        "address",
        "match",
        "auth",
        "x",
    ]
)
VALUE = st.recursive(
    SCALAR,
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(KEYS, inner, max_size=3)),
    max_leaves=10,
)


def inline(value: Any) -> str:
    """``value`` as TOML."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key} = {inline(each)}" for key, each in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(inline(each) for each in value) + "]"
    return repr(value) if isinstance(value, float) else json.dumps(value)


@given(st.dictionaries(KEYS, VALUE, max_size=4))
def test_any_table_is_taken_or_refused_in_words(values: dict[str, Any]) -> None:
    with contextlib.suppress(Invalid):
        config.parse("\n".join(f"{key} = {inline(value)}" for key, value in values.items()))


# --- its page ----------------------------------------------------------------------------------------------

BLOCKS = re.findall(r"^```toml\n(.*?)^```", PAGE.read_text(), re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("text", BLOCKS)
def test_the_examples_of_the_page_work(text: str, tmp_path: Path) -> None:
    path = tmp_path / "routes.toml"
    path.write_text(text)
    gateway = config.load(path)
    guards = Guards(now=lambda: 0.0, unix_s=lambda: 0.0)
    assert route_sets(gateway, upstreams_of(gateway.services), guards)
    guards.close()


TABLES: dict[str, tuple[type[msgspec.Struct], ...]] = {
    "Top level": (policy.Gateway,),
    "`[[listeners]]`": (policy.Listener,),
    "`[listeners.limits]`": (policy.ClientLimits,),
    "`[listeners.tls]`": (policy.Tls,),
    "`[[services]]`": (policy.Service,),
    "`[[services.backends]]`": (policy.BackendSpec,),
    "`[services.health]`": (policy.ActiveHealth,),
    "`[services.outlier]`": (policy.PassiveHealth,),
    "`[services.breaker]`": (policy.Breaker,),
    "`[services.retries]` and `[routes.retries]`": (policy.Retries,),
    "`[services.hedging]` and `[routes.hedging]`": (policy.Hedging,),
    "`[services.tls]`": (policy.TlsOrigin,),
    "`[[routes]]`": (policy.Route,),
    "`[routes.match]`": (policy.Match,),
    "`[[routes.split]]`": (policy.Split,),
    "`[routes.redirect]`": (policy.Redirect,),
    "`[routes.answer]`": (policy.FixedAnswer,),
    "`[routes.hold]`": (policy.HoldPolicy,),
    "`[routes.rewrite]`": (policy.Rewrite,),
    "`[routes.limits]`": (policy.RouteLimits,),
    "`[routes.limits.rate]`": (policy.RateLimit,),
    "`[routes.timeouts]`": (policy.Timeouts,),
    "`[routes.auth]`": (
        policy.BasicAuth,
        policy.BearerAuth,
        policy.CookieAuth,
        policy.ForwardAuth,
    ),
    "`[access_log]`": (policy.AccessLog,),
}


def shown(value: Any) -> str:
    """A default as the page writes it."""
    if value is msgspec.NODEFAULT:
        return "required"
    if value is None:
        return "none"
    if isinstance(value, msgspec.Struct):
        return ""
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    if isinstance(value, tuple):
        return f"`{list(value)}`"
    if isinstance(value, str):
        return f'`"{value}"`'
    return f"`{value:g}`" if isinstance(value, float) else f"`{value}`"


@pytest.mark.parametrize("heading", TABLES)
def test_the_page_has_every_key_with_its_default(heading: str) -> None:
    section = PAGE.read_text().split(f"\n### {heading}\n", 1)[1].split("\n#", 1)[0]
    rows = {
        name: default.strip()
        for name, default in re.findall(r"^\| `(\w+)` \|([^|]*)\|", section, re.MULTILINE)
    }
    wanted = {
        field.name: shown(
            field.default_factory()
            if field.default_factory is not msgspec.NODEFAULT
            else field.default
        )
        for struct in TABLES[heading]
        for field in msgspec.structs.fields(struct)
    }
    extra = {"Top level": {"listen", "backends"}, "`[routes.auth]`": {"kind"}}.get(heading, set())
    assert {name: default for name, default in rows.items() if name not in extra} == wanted
    assert extra <= rows.keys()
