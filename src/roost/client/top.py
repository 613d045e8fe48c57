"""Use and idle cost over the REST door: what it says, and the calls. Synchronous, like ``api``."""

from urllib.parse import quote

import msgspec

from roost.client.api import RoostClient


class ServiceLine(msgspec.Struct, frozen=True, kw_only=True):
    """A service now. Rates and times are over the last ten seconds; None = nobody told."""

    id: str
    name: str
    state: str
    group: str
    wanted: int
    ready: int
    starting: int
    requests_s: float | None = None
    errors_share: float | None = None
    late_share: float | None = None
    in_flight: float | None = None
    """With hosts now."""
    held: float | None = None
    """Waiting at edges for a host."""
    queued: float | None = None
    """Waiting at hosts for a replica."""
    p50_s: float | None = None
    p99_s: float | None = None
    cpu_percent: float | None = None
    """100 = one core; all replicas together."""
    memory_mib: float | None = None
    utilisation: float | None = None
    """Share of what its replicas could do: of their CPU, or of the requests they take at once."""
    usd_hour: float = 0.0
    """Its slots' share of the hosts they are on."""
    idle_usd_hour: float = 0.0
    """Of that: what was not used."""
    why: str = ""
    """Why it has that many replicas."""
    trend: tuple[float | None, ...] = ()
    """Requests a second, oldest first."""


class HostLine(msgspec.Struct, frozen=True, kw_only=True):
    """A host now."""

    id: str
    group: str
    state: str
    offer: str
    slots: int
    slots_used: int
    cpu_percent: float | None = None
    """100 = the whole host."""
    memory_used_mib: float | None = None
    memory_total_mib: float | None = None
    network_bytes_s: float | None = None
    requests_s: float | None = None
    in_flight: float | None = None
    queued: float | None = None
    utilisation: float | None = None
    """Mean over its slots; an empty one is 0."""
    usd_hour: float = 0.0
    idle_usd_hour: float = 0.0
    why: str = ""
    """What of it idles, and why."""


class TopView(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that serves, now."""

    now_s: float
    edges: int
    """That told of themselves in the last seconds."""
    services: tuple[ServiceLine, ...] = ()
    hosts: tuple[HostLine, ...] = ()
    usd_hour: float = 0.0
    idle_usd_hour: float = 0.0


class HistoryView(msgspec.Struct, frozen=True, kw_only=True):
    """What was recorded of one service or host."""

    kind: str
    id: str
    step_s: float
    end_s: float
    """Of the newest value (UTC seconds)."""
    values: dict[str, tuple[float | None, ...]]
    """Column to values, oldest first; None = nobody told."""


class TopCalls:
    """The calls. Raise the typed errors of the server."""

    def __init__(self, client: RoostClient) -> None:
        self._client = client

    def top(self) -> TopView:
        """What serves, what it uses, what idles."""
        return self._client.call("GET", "/api/v1/top", TopView)

    def history(self, kind: str, name_or_id: str, seconds: float) -> HistoryView:
        """``kind``: ``services`` or ``hosts``. By seconds up to 5 minutes, else by minutes."""
        path = f"/api/v1/metrics/{kind}/{quote(name_or_id, safe='')}?seconds={seconds:g}"
        return self._client.call("GET", path, HistoryView)
