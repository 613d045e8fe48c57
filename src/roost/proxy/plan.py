"""What is done with a request, as the data plane is told it: plans, the hooks in them, the router.

A plan is compiled once per snapshot of the routes and shared by all requests of its route; nothing in it
changes while a request runs. Never does I/O and knows no route table: who decides is a ``Router``.
"""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from roost.proxy import policy
from roost.proxy.answers import Answer
from roost.proxy.heads import Request
from roost.proxy.pool import Backend, BackendConnection, Pool
from roost.proxy.tunnel import Tunnel

if TYPE_CHECKING:
    from roost.proxy.upstream import Upstream, Upstreams

Pairs = tuple[tuple[bytes, bytes], ...]
"""Fields to set: names in lower case; an empty value removes. ``set-cookie`` is added, not replaced."""
Release = Callable[[], None]
"""Called once, when the admitted request (or its tunnel) has ended."""
Admit = Callable[[Request], Answer | Release | None]
AdmitLater = Callable[[Request], Awaitable[Answer | Pairs]]


class Rewriter(Protocol):
    """Changes of one route. Hop-by-hop, framing and forwarding fields are never changed by it."""

    def request(self, request: Request) -> tuple[bytes, Pairs]:
        """The target the backend is sent, and fields to set (``host`` may be one)."""

    def response(self, request: Request, upstream: "Upstream") -> Pairs:
        """Fields to set on the answer (a sticky cookie is one)."""


class Arrivals:
    """How many requests have come for a route: counted when they come, whatever becomes of them."""

    __slots__ = ("count",)

    def __init__(self) -> None:
        self.count = 0


@dataclass(slots=True)
class Plan:
    """What is done with the requests of one route."""

    name: str
    upstreams: "Upstreams"
    timeouts: policy.Timeouts = field(default_factory=policy.Timeouts)
    retries: policy.Retries = field(default_factory=policy.Retries)
    hedging: policy.Hedging = field(default_factory=policy.Hedging)
    key: Callable[[Request], bytes] | None = None
    """For hashing and sticky services."""
    rewrite: Rewriter | None = None
    admit: Admit | None = None
    """Rate, lists, credentials, caps: an ``Answer`` refuses; a callable is called when it has ended."""
    admit_later: AdmitLater | None = None
    """Another server's word (forward auth): a refusal, or fields to set on the request."""
    hold: policy.HoldPolicy | None = None
    body_bytes: int = 0
    """Largest request body; 0 = no bound."""
    patient: bool = False
    """With ``hold``, where each backend is a balancer of others: a request that failed everywhere and may
    be sent again waits like a held one, and a 503 without ``Roost-Load`` is not an answer to it."""
    arrivals: Arrivals | None = None
    keeps_answers: bool = False
    """``rewrite`` changes requests only: a whole answer takes the short way as if there were none."""
    mark: Callable[[], bytes] | None = None
    """Makes a field line (with its end) that is put on every answer of a backend."""
    plain: bool = field(init=False)
    """None of the hooks is there: the request goes straight to a backend."""
    straight: bool = field(init=False)
    """Its answers come straight back."""

    def __post_init__(self) -> None:
        hooks = (self.key, self.rewrite, self.admit, self.admit_later)
        self.plain = all(hook is None for hook in hooks) and not self.body_bytes
        asked = (self.key, self.admit, self.admit_later)
        rewritten = self.keeps_answers and all(hook is None for hook in asked)
        self.straight = self.plain or (rewritten and not self.body_bytes)


class Finished:
    """One exchange that is over, for logs and counters. The observer may keep it."""

    __slots__ = (
        "began_s",
        "bytes_in",
        "bytes_out",
        "client",
        "hedged",
        "held",
        "host",
        "method",
        "outcome",
        "refused",
        "request_id",
        "retries",
        "route",
        "seconds",
        "status",
        "target",
        "upstream",
        "waited_s",
    )

    route: str
    """Name of the plan; empty where none was found."""
    upstream: "Upstream | None"
    """Who answered, or was tried last."""
    client: str
    method: bytes
    target: bytes
    host: bytes
    status: int
    """0: the client left before there was one."""
    bytes_in: int
    bytes_out: int
    began_s: float
    """Of the loop's clock."""
    seconds: float
    waited_s: float
    """Of these, before it was sent to the backend that answered."""
    outcome: str
    """``ok``, ``own`` (answered here), ``cut`` (the answer broke off), ``gone`` (the client left)."""
    retries: int
    hedged: bool
    held: bool
    """It waited until its service had a backend."""
    request_id: bytes
    refused: str
    """Why it was answered here; else empty."""


class Observer(Protocol):
    """Told of every exchange that is over."""

    def done(self, record: Finished) -> None:
        """Must be quick and never raise."""


TunnelOver = Callable[[str, "Upstream | None", Tunnel, float], None]
"""Told of a tunnel that has ended: route, backend, the tunnel, seconds."""
Tally = Callable[[str, "Upstream", int, float, int], None]
"""Told of an ordinary exchange that is over: route, backend, status, seconds, bytes of the answer."""


@dataclass(frozen=True)
class Stream:
    """Answer 101 with ``protocol`` and join the client to ``transport``."""

    transport: asyncio.Transport
    protocol: bytes
    first: bytes = b""
    """Bytes already read from ``transport``."""
    joined: Callable[[Tunnel], None] = field(default=lambda tunnel: None)
    ended: Callable[[Tunnel], None] = field(default=lambda tunnel: None)


class Router(Protocol):
    """Decides where requests go."""

    def decide(self, request: Request) -> Plan | Backend | Answer | None:
        """At once. A ``Backend``: an idle connection to it, else ``find`` is asked; None: ask ``find``."""

    async def find(self, request: Request, pool: Pool) -> BackendConnection | Stream | Answer:
        """Wait, connect, retry: as long as the request may take. Cancelled when the client leaves."""
