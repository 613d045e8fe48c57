"""What the values of a configuration must be, alone and beside each other.

Finds all problems at once. Reads the files that are named (certificates, keys) to see that they can be
used; never resolves a name or opens a socket.
"""

import ipaddress
import math
import re
import ssl
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import msgspec

from roost.ports.errors import Invalid
from roost.proxy import cookies, policy
from roost.proxy.address import backend_of
from roost.proxy.credentials import PasswordHash, Tokens
from roost.proxy.forward_auth import split_url
from roost.proxy.framing import FIELD_LIMIT, HEAD_LIMIT
from roost.proxy.protect import parse_networks
from roost.proxy.rewrite import field_problem
from roost.proxy.routing import compile_pattern, hash_key, host_key
from roost.proxy.tls import check as check_pair

Key = tuple[str | int, ...]
"""Where a value is: ``("routes", 2, "service")``."""

Value = TypeVar("Value")

MOST_WORKERS = 256


class Problem(NamedTuple):
    """One thing that is wrong."""

    key: Key
    what: str
    todo: str = ""


_POSITIVE: dict[type[msgspec.Struct], tuple[str, ...]] = {
    policy.ActiveHealth: ("interval_s", "timeout_s", "healthy_after", "unhealthy_after"),
    policy.PassiveHealth: ("consecutive_errors", "window", "eject_s", "eject_max_s"),
    policy.Breaker: ("pending_s",),
    policy.Retries: ("attempts",),
    policy.Service: ("connect_s",),
    policy.HoldPolicy: ("wait_s", "max_requests", "max_bytes"),
    policy.RateLimit: ("requests_per_s",),
    policy.Timeouts: ("response_s", "stream_s", "upload_s"),
    policy.ForwardAuth: ("timeout_s",),
    policy.ClientLimits: ("connections", "head_s", "idle_s", "stall_s", "head_bytes", "fields"),
}
_SHARES: dict[type[msgspec.Struct], tuple[str, ...]] = {
    policy.PassiveHealth: ("error_share", "max_ejected_share"),
    policy.Hedging: ("max_share",),
}
_MOST: dict[str, int] = {"head_bytes": HEAD_LIMIT, "fields": FIELD_LIMIT}
_NAMED = re.compile(r'[^\x00-\x1f"\\\x7f]{1,100}')
_TOKEN = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]{1,32}")
_SERVED_HOST = re.compile(r"[A-Za-z0-9_.\-]+(:[0-9]{1,5})?|\[[0-9A-Fa-f:.]+\](:[0-9]{1,5})?")


def problems(gateway: policy.Gateway) -> list[Problem]:
    """Everything that is wrong with ``gateway``."""
    found: list[Problem] = []
    for check in (_numbers, _gateway, _listeners, _services, _routes):
        found += check(gateway)
    return found


def _raised(
    key: Key, check: Callable[[Value], object], value: Value, todo: str = ""
) -> Iterator[Problem]:
    """A problem where ``check(value)`` raises."""
    try:
        check(value)
    except OSError as error:
        yield Problem(key, f"{error.filename or 'the file'}: {error.strerror or error}", todo)
    except (ValueError, re.error) as error:
        yield Problem(key, str(error), todo)


def _duplicates(names: Iterable[str]) -> Iterator[tuple[int, str]]:
    seen: set[str] = set()
    for index, name in enumerate(names):
        if name in seen:
            yield index, name
        seen.add(name)


def _unnamed(kind: str, values: Iterable[Any]) -> Iterator[Problem]:
    names = [value.name for value in values]
    for index, name in enumerate(names):
        if _NAMED.fullmatch(name) is None:
            yield Problem((kind, index, "name"), "it is empty, too long or has odd characters")
    for index, name in _duplicates(names):
        yield Problem(
            (kind, index, "name"), f"the name {name!r} is there twice", "names are unique"
        )


# --- numbers ---------------------------------------------------------------------------------------------


def _structs(value: object, key: Key = ()) -> Iterator[tuple[Key, msgspec.Struct]]:
    """Every table in ``value``."""
    if isinstance(value, tuple):
        for index, each in enumerate(value):
            yield from _structs(each, (*key, index))
    elif isinstance(value, msgspec.Struct):
        yield key, value
        for name in value.__struct_fields__:
            yield from _structs(getattr(value, name), (*key, name))


def _numbers(gateway: policy.Gateway) -> Iterator[Problem]:
    for key, table in _structs(gateway):
        for name in table.__struct_fields__:
            number = getattr(table, name)
            if isinstance(number, bool) or not isinstance(number, int | float):
                continue
            if not math.isfinite(number) or number < 0:
                yield Problem((*key, name), f"{number} is impossible", "give a positive number")
            elif not number and name in _POSITIVE.get(type(table), ()):
                yield Problem((*key, name), "0 is impossible", "give a positive number")
            elif number > 1 and name in _SHARES.get(type(table), ()):
                yield Problem((*key, name), f"{number} is no share", "give 0 to 1")
            elif number > _MOST.get(name, math.inf) and isinstance(table, policy.ClientLimits):
                yield Problem((*key, name), f"{number} is too much", f"at most {_MOST[name]}")


# --- the whole -------------------------------------------------------------------------------------------


def _gateway(gateway: policy.Gateway) -> Iterator[Problem]:
    if not gateway.listeners:
        todo = 'add `listen = "127.0.0.1:8080"` or a [[listeners]] table'
        yield Problem(("listeners",), "there is no listener", todo)
    http = any(each.protocol == "http" for each in gateway.listeners)
    if http and not gateway.routes:
        todo = 'add `backends = ["127.0.0.1:9001"]` or a [[routes]] table'
        yield Problem(("routes",), "there is no route: every request would get 404", todo)
    if gateway.workers > MOST_WORKERS:
        yield Problem(("workers",), f"more than {MOST_WORKERS}", "0 means one a core")
    yield from _networks(("trusted_proxies",), gateway.trusted_proxies)
    if gateway.admin is not None:
        yield from _raised(("admin",), _loopback, gateway.admin)
    if gateway.dns is not None:
        dns = gateway.dns
        yield from _raised(("dns", "address"), listener_address, dns.address)
        yield from _readable(("dns", "zone"), dns.zone)
    if gateway.acme is not None:
        if not gateway.acme.directory.startswith(("https://", "http://")):
            yield Problem(("acme", "directory"), "it is no URL", "give the server's directory URL")
        yield from _authorities(("acme", "ca"), gateway.acme.ca)
    log = gateway.access_log
    if log is not None and log.path != "-" and not Path(log.path).parent.is_dir():
        yield Problem(("access_log", "path"), f"there is no directory {Path(log.path).parent}")


def listener_address(text: str) -> tuple[str, int]:
    """Host and port of an address to listen on. Raises ``ValueError``."""
    host, colon, port = text.rpartition(":")
    inner = host[1:-1] if host[:1] == "[" and host[-1:] == "]" else host
    bracketed = inner != host
    if not colon or not inner or not port.isdecimal() or int(port) > 65535:
        raise ValueError(f"{text!r} is not host:port or [v6]:port")
    if inner != "localhost":
        try:
            version = ipaddress.ip_address(inner).version
        except ValueError:
            raise ValueError(f"{inner!r} is not an address of this machine, like 0.0.0.0") from None
        if (version == 6) != bracketed:
            raise ValueError(f"{text!r} is not host:port or [v6]:port")
    return inner, int(port)


def _loopback(text: str) -> None:
    host, _ = listener_address(text)
    if host != "localhost" and not ipaddress.ip_address(host).is_loopback:
        raise ValueError(f"{host} is not loopback: who reaches it may read everything")


def _networks(key: Key, texts: tuple[str, ...]) -> Iterator[Problem]:
    for index, text in enumerate(texts):
        yield from _raised((*key, index), parse_networks, (text,), "like 10.0.0.0/8")


def _open(path: str) -> None:
    Path(path).open("rb").close()


def _readable(key: Key, path: str) -> Iterator[Problem]:
    yield from _raised(key, _open, path)


def _authorities(key: Key, path: str | None) -> Iterator[Problem]:
    if path is not None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        try:
            context.load_verify_locations(path)
        except ssl.SSLError:
            yield Problem(key, f"{path} has no certificate in PEM form")
        except OSError as error:
            yield Problem(key, f"{path}: {error.strerror}")


def _pair(key: Key, certificate: str, private: str) -> Iterator[Problem]:
    """A certificate and its key."""
    unreadable = [
        *_readable((*key, "certificate"), certificate),
        *_readable((*key, "key"), private),
    ]
    yield from unreadable
    if unreadable:
        return
    try:
        check_pair(policy.Certificate(certificate=certificate, key=private))
    except Invalid as error:
        yield Problem(key, error.message, error.hint)


# --- listeners -------------------------------------------------------------------------------------------


def _listeners(gateway: policy.Gateway) -> Iterator[Problem]:
    yield from _unnamed("listeners", gateway.listeners)
    services = {each.name for each in gateway.services}
    for index, name in _duplicates(
        each.address for each in gateway.listeners if not each.address.endswith(":0")
    ):
        yield Problem(("listeners", index, "address"), f"{name} has a listener already")
    for index, listener in enumerate(gateway.listeners):
        key: Key = ("listeners", index)
        address = listener.address
        yield from _raised((*key, "address"), listener_address, address)
        if listener.protocol == "tcp":
            if listener.service is None:
                yield Problem((*key, "service"), "a tcp listener needs one")
            elif listener.service not in services:
                yield _no_service((*key, "service"), listener.service, services)
        elif listener.service is not None:
            todo = 'leave it away and add a [[routes]] table, or say protocol = "tcp"'
            yield Problem((*key, "service"), "http listeners have routes", todo)
        if listener.tls is not None:
            yield from _tls((*key, "tls"), listener.tls, gateway.acme is not None)


def _tls(key: Key, tls: policy.Tls, acme: bool) -> Iterator[Problem]:
    if not tls.certificates and not tls.acme:
        yield Problem((*key, "certificates"), "there is none", "give certificates or acme names")
    if tls.acme and not acme:
        yield Problem((*key, "acme"), "there is no [acme] table", "say which server to ask")
    for index, pair in enumerate(tls.certificates):
        yield from _pair((*key, "certificates", index), pair.certificate, pair.key)
    yield from _authorities((*key, "client_ca"), tls.client_ca)


# --- services --------------------------------------------------------------------------------------------


def _no_service(key: Key, name: str, services: Iterable[str]) -> Problem:
    known = ", ".join(sorted(services)) or "none"
    return Problem(key, f"there is no service {name!r}", f"services: {known}")


def _services(gateway: policy.Gateway) -> Iterator[Problem]:
    yield from _unnamed("services", gateway.services)
    held = {
        name
        for route in gateway.routes
        if route.hold is not None
        for name in (route.service, *(share.service for share in route.split))
    }
    for index, service in enumerate(gateway.services):
        key: Key = ("services", index)
        if not service.backends and service.name not in held:
            todo = 'add `backends = ["127.0.0.1:9001"]`, or `hold` to its routes'
            yield Problem((*key, "backends"), "there is none", todo)
        yield from _service(key, service)


def _service(key: Key, service: policy.Service) -> Iterator[Problem]:
    addresses = [b if isinstance(b, str) else b.address for b in service.backends]
    for index, address in enumerate(addresses):
        yield from _raised((*key, "backends", index), backend_of, address)
    for index, address in _duplicates(addresses):
        yield Problem((*key, "backends", index), f"{address} is there twice", "use weight")
    try:
        hash_key(msgspec.structs.replace(service, balance="hash"))
    except Exception as error:
        yield Problem((*key, "hash_on"), str(error))
    if not cookies.is_name(service.cookie):
        yield Problem((*key, "cookie"), f"{service.cookie!r} is no cookie's name")
    yield from _health(key, service)
    tls = service.tls
    if tls is not None:
        yield from _authorities((*key, "tls", "ca"), tls.ca)
        if (tls.certificate is None) != (tls.key is None):
            yield Problem((*key, "tls"), "certificate and key belong together")
        elif tls.certificate is not None and tls.key is not None:
            yield from _pair((*key, "tls"), tls.certificate, tls.key)


def _health(key: Key, service: policy.Service) -> Iterator[Problem]:
    health = service.health
    if health is not None:
        first, last = health.statuses
        if not 100 <= first <= last <= 599:
            yield Problem((*key, "health", "statuses"), "like [200, 399]: first and last good one")
        if not health.path.startswith("/") or not health.path.isascii() or " " in health.path:
            yield Problem((*key, "health", "path"), "it is no path", "begin it with /")
    if service.outlier.eject_max_s < service.outlier.eject_s:
        yield Problem((*key, "outlier", "eject_max_s"), "it is less than eject_s")
    for index, status in enumerate(service.retries.statuses):
        if not 400 <= status <= 599:
            yield Problem((*key, "retries", "statuses", index), f"{status} is no error")


# --- routes ----------------------------------------------------------------------------------------------


def _routes(gateway: policy.Gateway) -> Iterator[Problem]:
    yield from _unnamed("routes", gateway.routes)
    services = {each.name for each in gateway.services}
    listeners = {each.name: each.protocol for each in gateway.listeners}
    for index, route in enumerate(gateway.routes):
        key: Key = ("routes", index)
        for number, name in enumerate(route.listeners):
            if listeners.get(name) != "http":
                known = ", ".join(sorted(n for n, p in listeners.items() if p == "http"))
                what = f"there is no http listener {name!r}"
                yield Problem((*key, "listeners", number), what, f"http listeners: {known}")
        yield from _action(key, route, services)
        yield from _match((*key, "match"), route.match)
        yield from _limits((*key, "limits"), route.limits)
        if route.rewrite is not None:
            yield from _rewrite((*key, "rewrite"), route.rewrite)
        if route.auth is not None:
            yield from _auth((*key, "auth"), route.auth)


def _action(key: Key, route: policy.Route, services: set[str]) -> Iterator[Problem]:
    given = [
        name
        for name in ("service", "split", "redirect", "answer")
        if getattr(route, name) not in (None, ())
    ]
    if len(given) != 1:
        what = f"{' and '.join(given)} are given" if given else "it does nothing"
        yield Problem(key, what, "give one of service, split, redirect, answer")
    if route.service is not None and route.service not in services:
        yield _no_service((*key, "service"), route.service, services)
    for index, share in enumerate(route.split):
        if share.service not in services:
            yield _no_service((*key, "split", index, "service"), share.service, services)
    if route.split and not sum(share.weight for share in route.split) > 0:
        yield Problem((*key, "split"), "all weights are 0")
    if given and given[0] in ("redirect", "answer"):
        for name in ("hold", "rewrite", "retries", "hedging"):
            if getattr(route, name) is not None:
                yield Problem((*key, name), f"it says nothing beside {given[0]}", "leave it away")
        if isinstance(route.auth, policy.ForwardAuth) or _is_slow(route.auth):
            what = "forward and scrypt are for routes with a service"
            yield Problem((*key, "auth"), what, "use another kind")
    if route.redirect is not None:
        yield from _redirect((*key, "redirect"), route.redirect)
    if route.answer is not None:
        yield from _answer((*key, "answer"), route.answer)


def _is_slow(auth: policy.Auth | None) -> bool:
    return isinstance(auth, policy.BasicAuth) and any(
        text.startswith("scrypt:") for text in auth.users.values()
    )


def _redirect(key: Key, redirect: policy.Redirect) -> Iterator[Problem]:
    if redirect.scheme is None and redirect.host is None and redirect.path is None:
        yield Problem(key, "it leads where the request was", "give scheme, host or path")
    if redirect.scheme not in (None, "http", "https"):
        yield Problem((*key, "scheme"), f"{redirect.scheme!r} is not http or https")
    if redirect.host is not None and _SERVED_HOST.fullmatch(redirect.host) is None:
        yield Problem((*key, "host"), f"{redirect.host!r} is no host name")
    path = redirect.path
    if path is not None and not re.fullmatch(r"(/|\{path\})[\x21-\x7e]*", path):
        yield Problem((*key, "path"), f"{path!r} is no path", "begin it with / or {path}")


def _answer(key: Key, answer: policy.FixedAnswer) -> Iterator[Problem]:
    if not 200 <= answer.status <= 599:
        yield Problem((*key, "status"), f"{answer.status} is no final status", "200 to 599")
    elif answer.status in (204, 304) and answer.body:
        yield Problem((*key, "body"), f"an answer {answer.status} has no body")
    problem = field_problem("content-type", answer.content_type)
    if problem is not None:
        yield Problem((*key, "content_type"), problem)


def _match(key: Key, match: policy.Match) -> Iterator[Problem]:
    given = [name for name in ("path", "prefix", "pattern") if getattr(match, name) is not None]
    if len(given) > 1:
        yield Problem(key, f"{' and '.join(given)} are given", "one of them can be meant")
    for name in ("path", "prefix"):
        text = getattr(match, name)
        if text is not None and (not text.startswith("/") or set("?#\\") & set(text)):
            todo = "begin it with /; queries are matched by `query`"
            yield Problem((*key, name), f"{text!r} is no path", todo)
        elif text is not None and re.search(r"%(?!2F|5C)", text):
            todo = "paths are compared decoded: write the letter itself"
            yield Problem((*key, name), f"{text!r} has an escape", todo)
    if match.pattern is not None:
        pattern = match.pattern
        yield from _raised((*key, "pattern"), compile_pattern, pattern)
    for index, host in enumerate(match.hosts):
        yield from _raised(
            (*key, "hosts", index),
            host_key,
            host,
            "names have no port; *.example.org matches below example.org",
        )
    for index, method in enumerate(match.methods):
        if _TOKEN.fullmatch(method) is None or method != method.upper():
            yield Problem((*key, "methods", index), f"{method!r} is no method", "like GET")
        elif method in ("CONNECT", "TRACE"):
            yield Problem((*key, "methods", index), f"{method} is never served")
    for name, value in match.headers.items():
        if _TOKEN.fullmatch(name) is None or not re.fullmatch(r"[\x20-\x7e]*", value):
            yield Problem((*key, "headers", name), "it is no field name with a value")


def _limits(key: Key, limits: policy.RouteLimits) -> Iterator[Problem]:
    yield from _networks((*key, "allow"), limits.allow)
    yield from _networks((*key, "deny"), limits.deny)


def _rewrite(key: Key, rewrite: policy.Rewrite) -> Iterator[Problem]:
    for name in ("strip_prefix", "add_prefix"):
        text = getattr(rewrite, name)
        if text is not None and not re.fullmatch(r"/[\x21\x22\x24-\x3e\x40-\x5b\x5d-\x7e]*", text):
            yield Problem((*key, name), f"{text!r} is no path", "begin it with /")
    if rewrite.host is not None and _SERVED_HOST.fullmatch(rewrite.host) is None:
        yield Problem((*key, "host"), f"{rewrite.host!r} is no host name")
    for table in ("request_headers", "response_headers"):
        for name, value in getattr(rewrite, table).items():
            problem = field_problem(name, value)
            if name.lower() == "host" and table == "request_headers":
                problem = "the Host field has a key of its own: rewrite.host"
            if problem is not None:
                yield Problem((*key, table, name), problem)


def _auth(key: Key, auth: policy.Auth) -> Iterator[Problem]:
    if isinstance(auth, policy.BasicAuth):
        if not auth.users:
            yield Problem((*key, "users"), "there is none: nobody could enter")
        for name, text in auth.users.items():
            yield from _raised((*key, "users", name), PasswordHash, text)
            if ":" in name:
                yield Problem((*key, "users", name), "a name cannot have a colon")
    elif isinstance(auth, policy.BearerAuth):
        if not auth.sha256:
            yield Problem((*key, "sha256"), "there is none: nobody could enter")
        yield from _raised((*key, "sha256"), Tokens, auth)
    elif isinstance(auth, policy.CookieAuth):
        if not cookies.is_name(auth.cookie):
            yield Problem((*key, "cookie"), f"{auth.cookie!r} is no cookie's name")
        yield from _raised(
            (*key, "key_file"),
            lambda path: cookies.read_keys(Path(path).read_text(encoding="ascii")),
            auth.key_file,
            "one <id>:<hex> a line",
        )
        if auth.login is not None and not re.fullmatch(r"(https?://|/)[\x21-\x7e]*", auth.login):
            yield Problem((*key, "login"), f"{auth.login!r} is no address")
    else:
        yield from _raised((*key, "url"), split_url, auth.url)
        for index, name in enumerate(auth.copy_headers):
            problem = field_problem(name, "")
            if problem is not None:
                yield Problem((*key, "copy_headers", index), problem)
