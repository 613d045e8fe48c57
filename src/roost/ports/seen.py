"""What an edge saw of the services asked for through it, as it tells control once a second."""

import msgspec


class ServiceSeen(msgspec.Struct, frozen=True, kw_only=True):
    """One service as an edge saw it. Counters run since the edge began: differences count."""

    service_id: str
    arrived: int = 0
    """Requests, counted when they came."""
    finished: int = 0
    errors: int = 0
    """Of the finished: 5xx, or an answer cut off."""
    late: int = 0
    """Of the finished: longer than the route's ``bound_s``, without those that were held."""
    held_finished: int = 0
    """Of the finished: had to wait for a host (a start from zero, hosts lost)."""
    held_late: int = 0
    """Of those: longer than the bound."""
    retried: int = 0
    """Sent to another host after one failed."""
    in_flight: int = 0
    """With a host now (open WebSockets too)."""
    held: int = 0
    """Waiting for a host now."""
    seconds: float = 0.0
    """Sum of the times of the finished ones, from arrival to the answer's end; WebSockets left out."""
    slow: tuple[int, ...] = ()
    """Finished ones by seconds from arrival to the answer's end, by ``ports.replicas.BOUNDS_S``."""


class Seen(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """edge -> control, each second: what was asked of the services. A service that is not named has not
    changed."""

    edge: int
    began_s: float
    """When this edge began (UTC seconds): another value means that its counters began anew."""
    at_s: float
    services: tuple[ServiceSeen, ...] = ()
