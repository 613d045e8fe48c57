"""What a decision remembers of a service: small, of plain values, carried by the caller.

It is never the only place of a fact: without it a decision measures anew and holds what there is for a while.
"""

import msgspec

from roost.scaling.risk import START


class Memory(msgspec.Struct, kw_only=True, array_like=True, omit_defaults=False):
    """One service's record. Times are UTC seconds."""

    minute_s: float = 0.0
    """End of the newest minute that was looked at; 0 = none yet."""
    born_s: float = 0.0
    """When the record began."""
    judged_s: float = 0.0
    """Late requests are counted up to here."""
    z: float = START
    """How careful to be (``risk``)."""
    dispersion: float = 1.0
    service_s: float = 0.1
    cv: float = 1.0
    day_mean: float = 0.0
    """Requests per minute of the last day."""
    highest: float = 0.0
    """No forecast and no jump goes above this rate (per second)."""
    up: int = 0
    """Replicas for the time it takes to get capacity …"""
    hold: int = 0
    """… and for the longer time that decides what may go."""
    top: int = 0
    """The highest need lately …"""
    top_until_s: float = 0.0
    """… and until when it keeps hosts."""
    needed: int = 0
    """The last answer, without what fills spare slots."""
    replicas: int = 0
    """The last answer."""
    losses: bytes = b""
    """float32 [horizon, sampler, level]: discounted pinball losses."""
    tested: int = 0
    """Past moments the samplers were tried at."""
    asked_s: float = 0.0
    """When ``asked`` was forecast …"""
    asked: bytes = b""
    """… float32 [horizon, sampler, level], to be compared with what came."""
    level: float = 0.0
    """Rate per second of the last minutes, from which surges rise."""
    lasting: tuple[float, ...] = ()
    """Per size of a surge: the part of it a new host will see (``surges``) …"""
    lasting_until_s: float = 0.0
    """… and when to learn it anew."""
    sudden: float = 1.0
    """Requests that came in surges faster than hosts, relative to the late ones that are allowed: at most 1,
    which also stands for what is not known."""
    jumping: tuple[float, ...] = ()
    """Per size of a jump of a few seconds: the part of it the next minute has …"""
    jumps_seen: tuple[float, ...] = ()
    """… from what was seen of jumps …"""
    jumps_kept: tuple[float, ...] = ()
    """… and of the minutes after them."""
    idle_s: tuple[float, ...] = ()
    """Idle time before sleep, per class of the hour before."""
    idle_until_s: float = 0.0
    """When to learn it anew."""
    held: dict[str, tuple[int, float]] = {}
    """Per reactive policy: its number, and until when it holds."""


def load(raw: bytes | None) -> Memory | None:
    """The record, or None where there is none or it is of another version."""
    if not raw:
        return None
    try:
        return msgspec.msgpack.decode(raw, type=Memory)
    except msgspec.DecodeError:
        return None


def dump(memory: Memory) -> bytes:
    """For the caller to keep."""
    return msgspec.msgpack.encode(memory)
