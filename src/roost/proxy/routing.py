"""Which route a request takes: host, path, method, fields, query; the most specific one wins.

A ``RouteSet`` is compiled once per snapshot and listener and never changes; what it learns is a bounded
memo from host and path to the routes that may match, so that a decision is one look-up. Never does I/O
with a client or a backend.

A path is matched with its percent escapes decoded. What two servers could read differently never gets
past a route that was meant to guard it: see ``readings``.
"""

import re
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import accumulate
from urllib.parse import parse_qsl

from roost.ports.errors import Invalid
from roost.proxy import cookies, policy
from roost.proxy.answers import Answer
from roost.proxy.heads import Request
from roost.proxy.plan import Plan
from roost.proxy.protect import Guard, Guards
from roost.proxy.rewrite import Location, RouteRewriter, Sticky
from roost.proxy.upstream import Upstreams

MEMO_ENTRIES = 4096
MEMO_KEY = 512
"""Longer paths are looked up each time."""
NOVEL = 256
"""After this many paths in a row that were never asked for before, they are not remembered ..."""
PAUSE = 4096
"""... for this many requests."""
QUERY_PARTS = 200
"""More parameters than this are not looked at: 400 where a route asks for one."""

_GOLDEN = 0.6180339887498949

_ODD = re.compile(
    rb"(?P<slash>\\)|(?P<zero>%00)|(?P<escape>%(?![0-9A-Fa-f]{2}))"
    rb"|(?P<dots>(?:/|%2f|%5c)(?:\.|%2e){1,2}(?=/|%2f|%5c|;|\Z))",
    re.IGNORECASE,
)
_WHY = {
    "slash": "a backslash in the path",
    "zero": "an escaped NUL in the path",
    "escape": "a % in the path that begins no escape",
    "dots": "dot segments in a path are not served: ask for the path they lead to",
}
_ESCAPE = re.compile(rb"%([0-9A-Fa-f]{2})")
_SLASHES = re.compile(r"(?:/|%2F|%5C)+")

Decision = Plan | Answer


def readings(path: bytes) -> tuple[str, ...] | Answer:
    """How servers may read a path: escapes decoded, and (if that differs) escaped slashes taken for
    slashes and several slashes for one. Dot segments (escaped or not), backslashes, NUL and
    broken escapes are refused: there is one way to write such a path."""
    odd = _ODD.search(path)
    if odd is not None:
        assert odd.lastgroup is not None
        return Answer(400, _WHY[odd.lastgroup])
    text = _decoded(path)
    merged = _SLASHES.sub("/", text)
    return (text,) if merged == text else (text, merged)


def _decoded(path: bytes) -> str:
    if b"%" in path:
        path = _ESCAPE.sub(_letter, path)
    return path.decode("utf-8", "surrogateescape")


def _letter(escape: re.Match[bytes]) -> bytes:
    code = escape[1].upper()
    return b"%" + code if code in (b"2F", b"5C") else bytes.fromhex(code.decode())


# --- what a matched route does ---------------------------------------------------------------------------


class _Shares:
    """Several plans in fixed shares (a canary): each request takes the next point of a sequence that
    fills the unit interval evenly, so that any stretch of requests is close to the shares."""

    __slots__ = ("_bounds", "_plans", "_point")

    def __init__(self, plans: Iterable[Plan], weights: Iterable[float]) -> None:
        self._plans = tuple(plans)
        steps = list(accumulate(weights))
        self._bounds = [step / steps[-1] for step in steps[:-1]]
        self._point = 0.0

    def next(self) -> Plan:
        self._point = point = (self._point + _GOLDEN) % 1.0
        return self._plans[bisect_right(self._bounds, point)]


Outcome = Callable[[Request], Decision]


def _own_answer(guard: Guard, make: Outcome) -> Outcome:
    """An answer without a backend, for those who may have it."""
    if guard.admit_later is not None:
        raise ValueError("an answer of our own cannot wait for scrypt or another server's word")
    admit = guard.admit
    if admit is None:
        return make

    def decide(request: Request) -> Decision:
        verdict = admit(request)
        if isinstance(verdict, Answer):
            return verdict
        if verdict is not None:
            verdict()  # it is over at once
        return make(request)

    return decide


@dataclass(frozen=True, slots=True, eq=False)
class _Rule:
    """A compiled route."""

    route: policy.Route
    order: int
    methods: frozenset[bytes]
    headers: tuple[tuple[bytes, bytes], ...]
    query: tuple[tuple[str, str], ...]
    outcome: Outcome
    constant: Decision | None
    """The decision, where it is the same for all requests."""

    @property
    def conditions(self) -> int:
        return bool(self.methods) + len(self.headers) + len(self.query)

    def holds(self, request: Request) -> bool:
        """Fields and query; the method is looked at on its own."""
        for name, wanted in self.headers:
            found = request.fields.get(name)
            if found is None or (wanted != b"*" and found != wanted):
                return False
        if not self.query:
            return True
        given: dict[str, list[str]] = {}
        for key, text in _parameters(request):
            given.setdefault(key, []).append(text)
        return all(
            name in given and (wanted == "*" or wanted in given[name])
            for name, wanted in self.query
        )


class _TooMany(Exception):
    pass


def _parameters(request: Request) -> list[tuple[str, str]]:
    try:
        return parse_qsl(
            request.query.decode("latin-1"),
            keep_blank_values=True,
            max_num_fields=QUERY_PARTS,
            errors="surrogateescape",
        )
    except ValueError as error:
        raise _TooMany from error


class _Choice:
    """The routes that may match one host and path, the most specific first."""

    __slots__ = ("_rules",)

    def __init__(self, rules: tuple[_Rule, ...]) -> None:
        self._rules = rules

    def decide(self, request: Request) -> Decision:
        allowed: set[bytes] = set()
        try:
            for rule in self._rules:
                if not rule.holds(request):
                    continue
                if not rule.methods or request.method in rule.methods:
                    return rule.outcome(request)
                allowed |= rule.methods
        except _TooMany:
            return Answer(400, f"more than {QUERY_PARTS} query parameters")
        if not allowed:
            return _no_route(request)
        names = ", ".join(sorted(method.decode() for method in allowed))
        return Answer(405, f"allowed here: {names}", fields=(("Allow", names),))


def _no_route(request: Request) -> Answer:
    host, path = request.host.decode("latin-1"), request.path.decode("latin-1")
    return Answer(404, f"there is no route for {host[:200]}{path[:200]}")


# --- finding the routes of a host and path -----------------------------------------------------------------


class _Paths:
    """The rules of one host pattern, by what they say of the path."""

    __slots__ = ("_any", "_exact", "_longest", "_patterns", "_prefix")

    def __init__(self) -> None:
        self._exact: dict[str, list[_Rule]] = {}
        self._prefix: dict[str, list[_Rule]] = {}
        self._longest = 0
        self._patterns: list[tuple[re.Pattern[str], _Rule]] = []
        self._any: list[_Rule] = []

    def add(self, rule: _Rule) -> None:
        match = rule.route.match
        if match.path is not None:
            self._exact.setdefault(match.path, []).append(rule)
        elif match.prefix is not None and match.prefix.strip("/"):
            prefix = "/" + match.prefix.strip("/")
            self._prefix.setdefault(prefix, []).append(rule)
            self._longest = max(self._longest, len(prefix))
        elif match.pattern is not None:
            self._patterns.append((compile_pattern(match.pattern), rule))
        else:
            self._any.append(rule)

    @property
    def patterned(self) -> bool:
        """There are patterns."""
        return bool(self._patterns)

    @property
    def takes_any(self) -> bool:
        """A rule says nothing of the path."""
        return bool(self._any)

    def exact_paths(self) -> Iterator[bytes]:
        """Those asked for exactly."""
        return (path.encode("utf-8", "surrogateescape") for path in self._exact)

    def prefixes(self) -> Iterator[bytes]:
        """Those asked for."""
        return (prefix.encode("utf-8", "surrogateescape") for prefix in self._prefix)

    def find(self, path: str) -> Iterator[tuple[tuple[int, int], _Rule]]:
        """Rules that match, each with how much its path says."""
        for rule in self._exact.get(path, ()):
            yield (3, 0), rule
        end = len(path)
        if end > self._longest:  # a path may have thousands of segments
            end = path.rfind("/", 0, self._longest + 1)
        while end > 0:
            for rule in self._prefix.get(path[:end], ()):
                yield (2, end), rule
            end = path.rfind("/", 0, end)
        for pattern, rule in self._patterns:
            if pattern.fullmatch(path):
                yield (1, 0), rule
        for rule in self._any:
            yield (0, 0), rule


def compile_pattern(pattern: str) -> re.Pattern[str]:
    """A route's ``pattern``; a dot matches line ends too, which paths may have escaped."""
    return re.compile(pattern, re.DOTALL)


def host_key(host: str) -> bytes:
    """A host pattern as requests are looked up by it. Raises ``ValueError``."""
    text = host.lower().removesuffix(".")
    star = text.startswith("*.")
    name = text[2:] if star else text
    if not name.isascii():
        name = name.encode("idna").decode()
    if re.fullmatch(r"[a-z0-9_]([a-z0-9_.\-]*[a-z0-9_])?|\[[0-9a-f:.]+\]", name) is None:
        raise ValueError(f"{host!r} is not a host name")
    return (b"*." if star else b"") + name.encode()


_Made = Plan | Answer | _Choice


class _Site:
    """What the routes of one host ask of paths, for a decision without looking at each of them."""

    __slots__ = ("_all", "exact", "longest", "made", "prefixes", "simple")

    def __init__(self, tables: list[_Paths]) -> None:
        self.simple = not any(table.patterned for table in tables)
        """No route has a pattern."""
        self.exact = {path for table in tables for path in table.exact_paths()}
        self.prefixes = {prefix for table in tables for prefix in table.prefixes()}
        self.longest = max(map(len, self.prefixes), default=0)
        self.made: dict[bytes, _Made] = {}
        """By the longest prefix of a path."""
        self._all = any(table.takes_any for table in tables)

    def covers(self, prefix: bytes) -> bool:
        """Whether some route takes every path with this prefix (perhaps under conditions)."""
        return bool(prefix) or self._all


class RouteSet:
    """The routes of one listener (implements ``plan.Router.decide``)."""

    def __init__(
        self,
        gateway: policy.Gateway,
        listener: str,
        upstreams: Mapping[str, Upstreams],
        guards: Guards,
    ) -> None:
        """Raises ``Invalid`` for what cannot work."""
        self._hosts: dict[bytes, _Paths] = {}
        self._memo: dict[tuple[bytes, bytes], _Made] = {}
        self._novel = self._pause = 0
        self._sites: dict[bytes, _Site] = {}
        self._only: _Site | None = None
        """Where no route asks for a host: the same for all."""
        secure = any(each.tls is not None for each in gateway.listeners if each.name == listener)
        for order, route in enumerate(gateway.routes):
            if route.listeners and listener not in route.listeners:
                continue
            try:
                rule = _compile(route, order, upstreams, guards, secure=secure)
                for key in {host_key(host) for host in route.match.hosts} or {b""}:
                    self._hosts.setdefault(key, _Paths()).add(rule)
            except (ValueError, OSError, re.error) as error:
                raise Invalid(f"route {route.name!r}: {error}") from error
        if not self._hosts.keys() - {b""}:
            self._only = _Site(list(self._hosts.values()))

    def decide(self, request: Request) -> Decision:
        """The plan for a request, or the answer it gets from us."""
        if self._pause:
            self._pause -= 1
            known = self._quick(request)
        else:
            found = self._memo.get((request.host, request.path))
            if found is not None:
                self._novel = 0
                known = found
            else:
                known = self._quick(request)
                self._remember(request, known)
        return known.decide(request) if known.__class__ is _Choice else known  # type: ignore[return-value]

    def _remember(self, request: Request, made: "_Made") -> None:
        if len(request.path) + len(request.host) > MEMO_KEY:
            return
        self._novel += 1
        if self._novel > NOVEL:
            self._novel = 0
            self._pause = PAUSE
        if len(self._memo) >= MEMO_ENTRIES:
            self._memo.clear()
        self._memo[request.host, request.path] = made

    def _quick(self, request: Request) -> "_Made":
        """As ``_found``, for a path that can be read in one way only: all such paths with the same
        longest prefix that any route asks for take the same route."""
        site = self._only or self._site(request.host)
        path = request.path
        if not site.simple or b"%" in path or b"/." in path or b"//" in path or b"\\" in path:
            return self._found(request)
        if path in site.exact:
            return self._found(request)
        prefix = b""
        if site.longest:
            end = len(path)
            if end > site.longest:
                end = path.rfind(b"/", 0, site.longest + 1)
            while end > 0:
                if path[:end] in site.prefixes:
                    prefix = path[:end]
                    break
                end = path.rfind(b"/", 0, end)
        made = site.made.get(prefix)
        if made is None:
            made = self._found(request)
            if site.covers(prefix):  # else the answer speaks of this very path
                site.made[prefix] = made
        return made

    def _site(self, host: bytes) -> "_Site":
        site = self._sites.get(host)
        if site is None:
            if len(self._sites) >= MEMO_ENTRIES:
                self._sites.clear()
            site = self._sites[host] = _Site([table for _, table in self._tables(host)])
        return site

    def _found(self, request: Request) -> "_Made":
        paths = readings(request.path)
        if isinstance(paths, Answer):
            return paths
        tables = list(self._tables(request.host))
        rules = _ranked(tables, paths[0])
        if any(_ranked(tables, other) != rules for other in paths[1:]):
            return Answer(
                400,
                "the path could be read in two ways that lead to different routes: //, %2F or %5C",
            )
        if not rules:
            return _no_route(request)
        first = rules[0]
        if not first.conditions and first.constant is not None:
            return first.constant
        return _Choice(rules)

    def _tables(self, host: bytes) -> Iterator[tuple[tuple[int, int], _Paths]]:
        """The tables that hold for a host, each with how much its pattern says."""
        host = host.removesuffix(b".")
        exact = self._hosts.get(host) if host else None
        if exact is not None:
            yield (2, 0), exact
        dot = host.find(b".")
        while dot >= 0:
            table = self._hosts.get(b"*" + host[dot:])
            if table is not None:
                yield (1, len(host) - dot), table
            dot = host.find(b".", dot + 1)
        rest = self._hosts.get(b"")
        if rest is not None:
            yield (0, 0), rest


def _ranked(tables: list[tuple[tuple[int, int], _Paths]], path: str) -> tuple[_Rule, ...]:
    """The rules for a path, best first, up to the first that takes everything."""
    found = [
        (host_rank, path_rank, rule.conditions, -rule.order, rule)
        for host_rank, table in tables
        for path_rank, rule in table.find(path)
    ]
    found.sort(key=lambda item: item[:4], reverse=True)
    rules: list[_Rule] = []
    for *_, rule in found:
        rules.append(rule)
        if not rule.conditions:
            break
    return tuple(rules)


def route_sets(
    gateway: policy.Gateway, upstreams: Mapping[str, Upstreams], guards: Guards
) -> dict[str, RouteSet]:
    """The routes of every HTTP listener by its name; what ``guards`` keeps of routes that are gone is
    forgotten. Raises ``Invalid``."""
    sets = {
        each.name: RouteSet(gateway, each.name, upstreams, guards)
        for each in gateway.listeners
        if each.protocol == "http"
    }
    guards.retain({route.name for route in gateway.routes})
    return sets


# --- compiling -----------------------------------------------------------------------------------------


def _compile(
    route: policy.Route,
    order: int,
    upstreams: Mapping[str, Upstreams],
    guards: Guards,
    *,
    secure: bool,
) -> _Rule:
    guard = guards.guard(route)
    outcome, constant = _outcome(route, upstreams, guard, secure=secure)
    match = route.match
    methods = {method.upper().encode() for method in match.methods}
    if b"GET" in methods:
        methods.add(b"HEAD")
    return _Rule(
        route=route,
        order=order,
        methods=frozenset(methods),
        headers=tuple((k.lower().encode(), v.encode()) for k, v in match.headers.items()),
        query=tuple(match.query.items()),
        outcome=outcome,
        constant=constant,
    )


def _outcome(
    route: policy.Route, upstreams: Mapping[str, Upstreams], guard: Guard, *, secure: bool
) -> tuple[Outcome, Decision | None]:
    if route.redirect is not None:
        location = Location(route.redirect)
        status = route.redirect.status

        def redirect(request: Request) -> Answer:
            fields = (("Location", location.of(request)),)
            return Answer(status, fields=fields, body=b"", content_type="text/plain")

        return _own_answer(guard, redirect), None
    if route.answer is not None:
        said = Answer(
            route.answer.status,
            body=route.answer.body.encode(),
            content_type=route.answer.content_type,
        )
        constant = None if guard.admit is not None else said
        return _own_answer(guard, lambda request: said), constant
    shares = route.split or (policy.Split(service=route.service or ""),)
    plans = [
        _plan(route, _service(route, each, upstreams), guard, secure=secure) for each in shares
    ]
    weights = [each.weight for each in shares]
    if guard.known is None:
        return _one_of(plans, weights)
    # Who is known already is not asked about again: the same plans without the wait.
    quick = [_plan(route, plan.upstreams, guard.without_wait(), secure=secure) for plan in plans]
    is_known = guard.known
    now, _ = _one_of(quick, weights)
    later, _ = _one_of(plans, weights)
    return lambda request: (now if is_known(request) else later)(request), None


def _one_of(plans: list[Plan], weights: list[float]) -> tuple[Outcome, Decision | None]:
    if len(plans) == 1:
        only = plans[0]
        return lambda request: only, only
    shares = _Shares(plans, weights)
    return lambda request: shares.next(), None


def _service(
    route: policy.Route, share: policy.Split, upstreams: Mapping[str, Upstreams]
) -> Upstreams:
    found = upstreams.get(share.service)
    if found is None:
        raise Invalid(f"route {route.name!r}: there is no service {share.service!r}")
    return found


def _plan(route: policy.Route, upstreams: Upstreams, guard: Guard, *, secure: bool) -> Plan:
    service = upstreams.policy
    sticky = Sticky(service.cookie, secure=secure) if service.balance == "sticky" else None
    rewrite = None
    if route.rewrite is not None or sticky is not None or guard.hidden:
        rewrite = RouteRewriter(
            route.rewrite or policy.Rewrite(), sticky=sticky, hidden=guard.hidden
        )
    return Plan(
        name=route.name,
        upstreams=upstreams,
        timeouts=route.timeouts,
        retries=route.retries or service.retries,
        hedging=route.hedging or service.hedging,
        key=sticky.key if sticky is not None else hash_key(service),
        rewrite=rewrite,
        admit=guard.admit,
        admit_later=guard.admit_later,
        hold=route.hold,
        body_bytes=route.limits.body_bytes,
    )


def hash_key(service: policy.Service) -> Callable[[Request], bytes] | None:
    """What a ``hash`` service is hashed on; None for other services. Raises ``Invalid``."""
    if service.balance != "hash":
        return None
    kind, _, name = service.hash_on.partition(":")
    if kind == "client" and not name:
        return lambda request: request.client.encode()
    if kind == "path" and not name:
        return lambda request: request.path
    wanted = name.encode()
    if kind == "header" and name:
        field = wanted.lower()
        return lambda request: request.fields.get(field) or b""
    if kind == "cookie" and name:
        return lambda request: cookies.read(request.fields.get(b"cookie") or b"", wanted) or b""
    raise Invalid(
        f"hash_on = {service.hash_on!r} is not known",
        hint="use client, path, header:<name> or cookie:<name>",
    )
