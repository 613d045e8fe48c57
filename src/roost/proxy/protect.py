"""Who may have a route, and how much of it: networks, rates, credentials, caps. All tables are bounded.

A ``Guards`` belongs to a worker and outlives the snapshots of its routes: a reload forgets no count.
Bounds that are meant for all workers are shared out evenly over them, as no worker knows of the others.
Clocks are handed in. Never does I/O (forward auth is ``forward_auth.py``).
"""

import ipaddress
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from roost.proxy import policy
from roost.proxy.answers import Answer
from roost.proxy.credentials import BasicUsers, Sessions, Tokens
from roost.proxy.forward_auth import AuthServer
from roost.proxy.heads import Request
from roost.proxy.plan import Admit, AdmitLater, Release

CLIENTS = 65_536
"""Clients of one route whose rate is remembered; beyond, those seen first are forgotten."""
ADDRESSES = 16_384
"""Addresses whose membership in a list is remembered."""
PURGE_S = 1.0
"""The least time between two searches for clients that need not be remembered."""

Check = Callable[[Request], Answer | None]
Network = ipaddress.IPv4Network | ipaddress.IPv6Network


# --- addresses -----------------------------------------------------------------------------------------


def parse_networks(texts: tuple[str, ...]) -> tuple[Network, ...]:
    """CIDR networks or single addresses. Raises ``ValueError``."""
    return tuple(ipaddress.ip_network(text) for text in texts)


def _address(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        address = ipaddress.ip_address(text.partition("%")[0])
    except ValueError:
        return None  # a client of a Unix socket
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return mapped or address


class Networks:
    """Whether an address is in one of several networks; remembers the answers."""

    __slots__ = ("_known", "_networks")

    def __init__(self, texts: tuple[str, ...]) -> None:
        self._networks = parse_networks(texts)
        self._known: dict[str, bool] = {}

    def __contains__(self, client: str) -> bool:
        known = self._known.get(client)
        if known is None:
            address = _address(client)
            known = address is not None and any(address in each for each in self._networks)
            if len(self._known) >= ADDRESSES:
                self._known.clear()
            self._known[client] = known
        return known


def client_key(client: str) -> str:
    """Whom a client is counted as: an IPv6 client has its whole /64 to itself."""
    if ":" not in client:
        return client
    address = _address(client)
    if not isinstance(address, ipaddress.IPv6Address):
        return client if address is None else str(address)
    return str(ipaddress.IPv6Address(int(address) >> 64 << 64))


class _Keys:
    """``client_key``, remembered."""

    __slots__ = ("_known",)

    def __init__(self) -> None:
        self._known: dict[str, str] = {}

    def of(self, client: str) -> str:
        if ":" not in client:
            return client
        key = self._known.get(client)
        if key is None:
            if len(self._known) >= ADDRESSES:
                self._known.clear()
            key = self._known[client] = client_key(client)
        return key


# --- rates ---------------------------------------------------------------------------------------------


class Buckets:
    """A token bucket per key, kept as the time at which it is full again (one number a key)."""

    __slots__ = ("_burst_s", "_full_at", "_limit", "_purge_s", "_step_s")

    def __init__(self, per_s: float, burst: float, *, limit: int = CLIENTS) -> None:
        self._step_s = 1.0 / per_s
        self._burst_s = max(1.0, burst) * self._step_s
        self._full_at: dict[str, float] = {}
        self._limit = limit
        self._purge_s = -math.inf

    def __len__(self) -> int:
        return len(self._full_at)

    def take(self, key: str, now_s: float) -> float:
        """Take a token: 0, or how many seconds there is none yet (then none is taken)."""
        full_at = self._full_at.get(key)
        if full_at is None:
            if len(self._full_at) >= self._limit:
                self._make_room(now_s)
            self._full_at[key] = now_s + self._step_s
            return 0.0
        filled = (full_at if full_at > now_s else now_s) + self._step_s
        over_s = filled - now_s - self._burst_s
        if over_s > 1e-9:
            return over_s
        self._full_at[key] = filled
        return 0.0

    def _make_room(self, now_s: float) -> None:
        """Forget full buckets: they are as good as new ones. If that is not enough: the oldest."""
        if now_s - self._purge_s >= PURGE_S:
            self._purge_s = now_s
            self._full_at = {key: at for key, at in self._full_at.items() if at > now_s}
        while len(self._full_at) >= self._limit:
            del self._full_at[next(iter(self._full_at))]


class _Rate:
    """A route's rate limit."""

    __slots__ = ("_buckets", "_keys", "_now", "_per_client")

    def __init__(self, rate: policy.RateLimit, workers: int, now: Callable[[], float]) -> None:
        burst = rate.burst or rate.requests_per_s
        self._buckets = Buckets(rate.requests_per_s / workers, burst / workers)
        self._keys = _Keys()
        self._per_client = rate.per == "client"
        self._now = now

    def check(self, request: Request) -> Answer | None:
        key = self._keys.of(request.client) if self._per_client else ""
        wait_s = self._buckets.take(key, self._now())
        if not wait_s:
            return None
        return Answer(429, "too many requests", retry_after_s=max(1, math.ceil(wait_s)))


class Caps:
    """Requests of each client under way."""

    __slots__ = ("_active", "_keys")

    def __init__(self) -> None:
        self._active: dict[str, int] = {}
        self._keys = _Keys()

    def __len__(self) -> int:
        return len(self._active)

    def enter(self, client: str, limit: int) -> Release | None:
        """What to call at the end; None when the client has ``limit`` under way."""
        key = self._keys.of(client)
        active = self._active.get(key, 0)
        if active >= limit:
            return None
        self._active[key] = active + 1
        return partial(self._leave, key)

    def _leave(self, key: str) -> None:
        left = self._active[key] - 1
        if left:
            self._active[key] = left
        else:
            del self._active[key]


# --- all of a route ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Guard:
    """How the requests of one route are let in."""

    admit: Admit | None = None
    admit_later: AdmitLater | None = None
    known: Callable[[Request], bool] | None = None
    """Whether ``admit_later`` need not be asked about a request."""
    admit_known: Admit | None = None
    """In place of both for those."""
    hidden: str = ""
    """A cookie that backends do not get to see."""

    def without_wait(self) -> "Guard":
        """The same for requests that are ``known``."""
        return Guard(self.admit_known, hidden=self.hidden)


class _Admission:
    """All checks of a route at once; the cap comes last, so that who is refused holds no place."""

    __slots__ = ("_caps", "_checks", "_limit")

    def __init__(self, checks: tuple[Check, ...], caps: Caps | None, limit: int) -> None:
        self._checks = checks
        self._caps = caps
        self._limit = limit

    def __call__(self, request: Request) -> Answer | Release | None:
        for check in self._checks:
            refusal = check(request)
            if refusal is not None:
                return refusal
        if self._caps is None:
            return None
        release = self._caps.enter(request.client, self._limit)
        if release is None:
            return Answer(429, "too many requests of this client at once", retry_after_s=1)
        return release


class Guards:
    """What one worker keeps to protect its routes."""

    def __init__(
        self, *, now: Callable[[], float], unix_s: Callable[[], float], workers: int = 1
    ) -> None:
        """``now`` is the event loop's clock, ``unix_s`` the wall clock (for cookies that expire)."""
        self._now = now
        self._unix_s = unix_s
        self.workers = max(1, workers)
        """How many share the bounds; for routes compiled from now on."""
        self._kept: dict[tuple[str, str], tuple[object, Any]] = {}

    def guard(self, route: policy.Route) -> Guard:
        """Everything ``route`` asks for. Raises ``ValueError`` and ``OSError`` for what cannot work."""
        limits = route.limits
        checks: list[Check] = []
        if limits.allow or limits.deny:
            checks.append(_lists(limits))
        if limits.rate is not None:
            checks.append(self._rate(route.name, limits.rate).check)
        caps = None
        most = math.ceil(limits.connections_per_client / self.workers)
        if most:
            caps = self._keep("caps", route.name, "", Caps)

        def admission(*more: Check) -> Admit | None:
            every = (*checks, *more)
            return _Admission(every, caps, most) if every or caps is not None else None

        auth = route.auth
        if isinstance(auth, policy.BasicAuth):
            users: BasicUsers = self._keep("basic", route.name, auth, lambda: BasicUsers(auth))
            if not users.slow:
                return Guard(admission(users.check))
            quick = admission(users.check_known)
            return Guard(admission(users.check), users.check_later, users.known, quick)
        if isinstance(auth, policy.BearerAuth):
            return Guard(admission(Tokens(auth).check))
        if isinstance(auth, policy.CookieAuth):
            return Guard(admission(Sessions(auth, self._unix_s).check), hidden=auth.cookie)
        if auth is not None:
            server: AuthServer = self._keep("forward", route.name, auth, lambda: AuthServer(auth))
            return Guard(admission(), server.ask)
        return Guard(admission())

    def retain(self, names: set[str]) -> None:
        """Forget the routes that are not among ``names``."""
        for key in [key for key in self._kept if key[1] not in names]:
            _close(self._kept.pop(key)[1])

    def close(self) -> None:
        """Let go of connections."""
        self.retain(set())

    def _rate(self, name: str, rate: policy.RateLimit) -> _Rate:
        made: _Rate = self._keep(
            "rate", name, (rate, self.workers), lambda: _Rate(rate, self.workers, self._now)
        )
        return made

    def _keep(self, kind: str, name: str, wanted: object, make: Callable[[], Any]) -> Any:
        """What an earlier snapshot made for the very same wish, or a new one."""
        known = self._kept.get((kind, name))
        if known is not None and known[0] == wanted:
            return known[1]
        made = make()
        self._kept[kind, name] = (wanted, made)
        if known is not None:
            _close(known[1])
        return made


def _close(kept: object) -> None:
    if isinstance(kept, AuthServer):
        kept.close()


def _lists(limits: policy.RouteLimits) -> Check:
    allowed = Networks(limits.allow) if limits.allow else None
    denied = Networks(limits.deny)
    refusal = Answer(403, "this address may not have it")

    def check(request: Request) -> Answer | None:
        client = request.client
        if client in denied or (allowed is not None and client not in allowed):
            return refusal
        return None

    return check
