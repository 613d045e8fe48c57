"""What the data plane is told to do: listeners, routes, services and their bounds, as plain values.

This is both the file format of ``roost gateway --config`` (TOML, the names are the keys) and what the
control plane sends. Times are seconds, sizes bytes. Values only: checking them against each other and
compiling them is ``routing.py``'s and ``gateway/config.py``'s work.
"""

from typing import Literal

import msgspec


class _Policy(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Base: an unknown key is an error that names it."""


# --- services: where requests go --------------------------------------------------------------------

Balance = Literal[
    "least-work", "round-robin", "weighted", "least-requests", "p2c-ewma", "hash", "sticky"
]
"""``least-work`` scans all backends for (in flight + 1) x latency with a dead band (load-reported where
the backend says its load); ``weighted`` is smooth weighted round robin; ``hash`` is consistent hashing
with bounded loads; ``sticky`` keeps a client on its backend by a cookie."""


class BackendSpec(_Policy, frozen=True, kw_only=True):
    """One server."""

    address: str
    """``host:port``, ``[v6]:port`` or ``unix:/path``."""
    weight: float = 1.0
    zone: str = ""
    slots: int = 0
    """Most requests it takes at once; 0 = no bound of its own."""
    state: Literal["ready", "draining", "gone"] = "ready"
    """``draining`` gets nothing new; what is in flight ends."""
    leaves_at_s: float | None = None
    """Unix time at which its host is taken away (a spot notice); it is drained by then."""


class ActiveHealth(_Policy, frozen=True, kw_only=True):
    """Probes: a GET for HTTP services, a connect for TCP ones."""

    path: str = "/"
    interval_s: float = 2.0
    """Mean; each probe is jittered by a fifth."""
    timeout_s: float = 1.0
    healthy_after: int = 2
    unhealthy_after: int = 3
    statuses: tuple[int, int] = (200, 399)
    """First and last good status."""


class PassiveHealth(_Policy, frozen=True, kw_only=True):
    """Ejection by what real requests meet."""

    consecutive_errors: int = 5
    """5xx answers or lost connections in a row."""
    error_share: float = 0.5
    """... or this share of the last ``window`` requests."""
    window: int = 20
    latency_factor: float = 0.0
    """Eject where the mean latency is above this many times the median of the service; 0 = off."""
    eject_s: float = 0.5
    """First ejection; doubles each time."""
    eject_max_s: float = 8.0
    max_ejected_share: float = 0.5
    """At most this share of the backends may be out; when none is left, all are used."""


class Breaker(_Policy, frozen=True, kw_only=True):
    """Circuit breaking of a service."""

    max_requests: int = 0
    """Most requests in flight to the service, in one worker; 0 = no bound."""
    max_pending: int = 1000
    """Most requests waiting for a free slot (first come, first served)."""
    pending_s: float = 10.0
    """Longest wait for a slot; then 503."""


class Retries(_Policy, frozen=True, kw_only=True):
    """Sending a request to another backend. Never the same one, never after a byte of the answer."""

    attempts: int = 3
    """Backends tried in all."""
    budget_share: float = 0.2
    """Retries allowed per request, over the last ten seconds ..."""
    budget_per_s: float = 10.0
    """... plus this many a second."""
    statuses: tuple[int, ...] = (502, 503, 504)
    """Answers of an idempotent request that are tried elsewhere."""
    replay_bytes: int = 64 << 10
    """A body up to this size is kept for another attempt."""


class Hedging(_Policy, frozen=True, kw_only=True):
    """A second copy of a slow idempotent request to another backend; the first answer wins."""

    enabled: bool = True
    after_s: float = 0.05
    """Not before this, nor before twice the p99 of the service."""
    max_share: float = 0.05
    """At most this share of requests."""


class TlsOrigin(_Policy, frozen=True, kw_only=True):
    """TLS to the backends."""

    verify: bool = True
    ca: str | None = None
    """A PEM file of authorities; default the system's."""
    server_name: str | None = None
    certificate: str | None = None
    key: str | None = None
    """Ours, for mutual TLS (PEM files)."""
    alpn: tuple[str, ...] = ("http/1.1",)
    """Protocols offered. Services that only TCP listeners use are offered none."""


class Service(_Policy, frozen=True, kw_only=True):
    """A set of interchangeable backends."""

    name: str
    backends: tuple[BackendSpec | str, ...] = ()
    balance: Balance = "least-work"
    hash_on: str = "client"
    """For ``hash``: ``client``, ``path``, ``header:<name>`` or ``cookie:<name>``."""
    cookie: str = "roost_backend"
    """For ``sticky``."""
    slow_start_s: float = 0.0
    """A backend new or back from ejection gets its share over this time; 0 = at once."""
    zone: str = ""
    """Prefer backends of this zone while enough of them are well."""
    health: ActiveHealth | None = None
    outlier: PassiveHealth = PassiveHealth()
    breaker: Breaker = Breaker()
    retries: Retries = Retries()
    hedging: Hedging = Hedging()
    tls: TlsOrigin | None = None
    connect_s: float = 2.0
    idle_s: float = 4.0
    """A connection idle for longer is not used again (common servers close theirs after 5 s)."""
    proxy_protocol: Literal[0, 1, 2] = 0
    """Send a PROXY header of this version on each connection (TCP routes); 0 = none."""


# --- routes: what a request is matched by, and what happens to it ------------------------------------


class Match(_Policy, frozen=True, kw_only=True):
    """All that is given must hold. The most specific route wins: exact host before wildcard before none,
    exact path before the longest prefix before a pattern, then more conditions, then file order."""

    hosts: tuple[str, ...] = ()
    """Names without a port; ``*.example.org`` matches one or more labels; empty = any."""
    path: str | None = None
    """Exactly this path."""
    prefix: str | None = None
    """This path and what lies below it, in whole segments."""
    pattern: str | None = None
    """A regular expression over the whole path."""
    methods: tuple[str, ...] = ()
    headers: dict[str, str] = {}
    """Name to exact value; ``*`` = present."""
    query: dict[str, str] = {}


class Split(_Policy, frozen=True, kw_only=True):
    """One share of a route's requests (a canary)."""

    service: str
    weight: float = 1.0


class Redirect(_Policy, frozen=True, kw_only=True):
    """Answer with another address. Unset parts are the request's own."""

    status: Literal[301, 302, 303, 307, 308] = 308
    scheme: str | None = None
    host: str | None = None
    path: str | None = None
    """The whole path; ``{path}`` and ``{query}`` stand for the request's."""


class FixedAnswer(_Policy, frozen=True, kw_only=True):
    """Answer without a backend."""

    status: int = 200
    body: str = ""
    content_type: str = "text/plain; charset=utf-8"


class HoldPolicy(_Policy, frozen=True, kw_only=True):
    """Requests wait while the service has no backend; bounds are for all workers together."""

    wait_s: float = 60.0
    max_requests: int = 1000
    max_bytes: int = 64 << 20


class Rewrite(_Policy, frozen=True, kw_only=True):
    """Changes on the way. Hop-by-hop and forwarding fields cannot be set here."""

    strip_prefix: str | None = None
    add_prefix: str | None = None
    host: str | None = None
    request_headers: dict[str, str] = {}
    """Set (an empty value removes)."""
    response_headers: dict[str, str] = {}


class RateLimit(_Policy, frozen=True, kw_only=True):
    """A token bucket; over it: 429 with Retry-After. Shared out evenly over the workers."""

    requests_per_s: float
    burst: int = 0
    """0 = one second's worth."""
    per: Literal["client", "route"] = "client"


class RouteLimits(_Policy, frozen=True, kw_only=True):
    """Bounds of one route."""

    body_bytes: int = 0
    """Largest request body; 0 = no bound."""
    connections_per_client: int = 0
    """Most requests or tunnels of one client address at once; 0 = no bound."""
    rate: RateLimit | None = None
    allow: tuple[str, ...] = ()
    """Client networks (CIDR); empty = all."""
    deny: tuple[str, ...] = ()


class Timeouts(_Policy, frozen=True, kw_only=True):
    """Of one route."""

    response_s: float = 600.0
    """From the request to the first byte of the answer."""
    stream_s: float = 3600.0
    """Between two pieces of an answer, and of silence on a tunnel."""
    upload_s: float = 60.0
    """Between two pieces of a request's body."""


class BasicAuth(_Policy, frozen=True, kw_only=True, tag_field="kind", tag="basic"):
    """RFC 7617."""

    users: dict[str, str]
    """Name to ``sha256:<hex>`` or ``scrypt:<salt hex>:<hash hex>`` of the password."""
    realm: str = "Roost"


class BearerAuth(_Policy, frozen=True, kw_only=True, tag_field="kind", tag="bearer"):
    """RFC 6750."""

    sha256: tuple[str, ...]
    """Hex digests of the tokens that may pass."""


class CookieAuth(_Policy, frozen=True, kw_only=True, tag_field="kind", tag="cookie"):
    """Roost's own signed cookie, checked in the worker: control may be down."""

    key_file: str
    """File with the HMAC key."""
    cookie: str = "roost_session"
    login: str | None = None
    """Where browsers without it are sent."""


class ForwardAuth(_Policy, frozen=True, kw_only=True, tag_field="kind", tag="forward"):
    """Ask another server first: 2xx lets the request pass, anything else is the answer."""

    url: str
    copy_headers: tuple[str, ...] = ()
    """Fields of its answer set on the request (a client's own are removed)."""
    timeout_s: float = 2.0


Auth = BasicAuth | BearerAuth | CookieAuth | ForwardAuth


class Route(_Policy, frozen=True, kw_only=True):
    """A rule: what is matched, what is done. One of service, split, redirect, answer."""

    name: str
    match: Match = Match()
    listeners: tuple[str, ...] = ()
    """Names of the listeners it holds for; empty = all HTTP ones."""
    service: str | None = None
    split: tuple[Split, ...] = ()
    redirect: Redirect | None = None
    answer: FixedAnswer | None = None
    hold: HoldPolicy | None = None
    rewrite: Rewrite | None = None
    limits: RouteLimits = RouteLimits()
    timeouts: Timeouts = Timeouts()
    retries: Retries | None = None
    """None: the service's."""
    hedging: Hedging | None = None
    auth: Auth | None = None


# --- listeners ----------------------------------------------------------------------------------------


class Certificate(_Policy, frozen=True, kw_only=True):
    """PEM files; the names are read from the certificate (SNI)."""

    certificate: str
    key: str


class Tls(_Policy, frozen=True, kw_only=True):
    """TLS of a listener. The first certificate is for clients that name none of the names."""

    certificates: tuple[Certificate, ...] = ()
    acme: tuple[str, ...] = ()
    """Names to obtain certificates for (see ``Gateway.acme``)."""
    client_ca: str | None = None
    """Ask clients for a certificate of these authorities (PEM)."""
    minimum: Literal["1.2", "1.3"] = "1.2"


class ClientLimits(_Policy, frozen=True, kw_only=True):
    """Bounds on every client connection of a listener."""

    connections: int = 10_000
    """In one worker."""
    connections_per_client: int = 0
    head_s: float = 15.0
    """From a request's first byte to the end of its head."""
    idle_s: float = 75.0
    stall_s: float = 120.0
    """A client that takes none of the bytes waiting for it."""
    head_bytes: int = 64 << 10
    fields: int = 100


class Listener(_Policy, frozen=True, kw_only=True):
    """An address clients connect to."""

    name: str
    address: str
    """``host:port`` or ``[v6]:port``."""
    protocol: Literal["http", "tcp"] = "http"
    service: str | None = None
    """For ``tcp``: where the bytes go."""
    tls: Tls | None = None
    http2: bool = True
    """Offer HTTP/2 by ALPN (TLS listeners only)."""
    proxy_protocol: bool = False
    """Each connection must begin with a PROXY header (v1 or v2)."""
    limits: ClientLimits = ClientLimits()


class AccessLog(_Policy, frozen=True, kw_only=True):
    """One line a request."""

    path: str = "-"
    """A file, or ``-`` for standard output."""
    format: Literal["json", "combined"] = "json"


class Acme(_Policy, frozen=True, kw_only=True):
    """Certificates from an ACME server (RFC 8555, http-01)."""

    directory: str
    contact: str | None = None
    state: str = "acme"
    """Directory for keys and certificates, relative to the config file."""
    ca: str | None = None
    """Authorities to trust for the directory itself (a private server)."""
    renew_before_days: int = 30


class Dns(_Policy, frozen=True, kw_only=True):
    """The authoritative DNS server beside the gateway: a zone file of ``gateway/dns``'s own format."""

    address: str
    zone: str
    """The TOML file of the zone."""


class Gateway(_Policy, frozen=True, kw_only=True):
    """The whole configuration."""

    listeners: tuple[Listener, ...] = ()
    routes: tuple[Route, ...] = ()
    services: tuple[Service, ...] = ()
    workers: int = 0
    """Processes; 0 = one a core, at most 4."""
    trusted_proxies: tuple[str, ...] = ()
    """Networks whose Forwarded and X-Forwarded-* fields are believed; others' are replaced."""
    admin: str | None = None
    """``host:port`` on loopback: /metrics, /health, /state."""
    access_log: AccessLog | None = None
    acme: Acme | None = None
    dns: Dns | None = None
    drain_s: float = 30.0
    """SIGTERM: what is in flight may take this long."""
