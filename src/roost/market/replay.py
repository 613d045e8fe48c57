"""Recorded losses, for markets that are replayed. ``event`` is pure; never waits, never draws at random."""

import msgspec

from roost.market.catalogue import read_facts, read_rows
from roost.ports.errors import Invalid


class Recording(msgspec.Struct, frozen=True, kw_only=True):
    """Seconds between the losses of one recorded market, and where it comes from."""

    name: str
    provider: str
    what: str
    source: str
    licence: str
    gaps_s: tuple[float, ...]
    """The n-th loss came this long after the one before it (the first: after the start)."""
    lost: tuple[int, ...]
    """How many instances went at each loss."""


class Event(msgspec.Struct, frozen=True, kw_only=True):
    """One loss of a recording."""

    recording: str
    number: int
    """Counted from 0; beyond the end the recording starts again."""
    gap_s: float
    after_s: float
    """Seconds since the start of the replay."""
    lost: int


def recording(name: str) -> Recording:
    """The recording of that name. Raises ``Invalid`` naming those there are."""
    described = read_facts().recordings.get(name)
    if described is None:
        known = ", ".join(sorted(read_facts().recordings))
        raise Invalid(f"no recording is called {name}", hint=f"there are {known}")
    rows = [row for row in read_rows("interruptions") if row["recording"] == name]
    return Recording(
        name=name,
        provider=described.provider,
        what=described.what,
        source=described.source,
        licence=described.licence,
        gaps_s=tuple(float(row["gap_s"]) for row in rows),
        lost=tuple(int(row["lost"]) for row in rows),
    )


def recorded_gaps(cluster: str) -> list[float]:
    """Seconds between the losses of a recording (``aws-p3``, ``gcp-a100``, ``gcp-lifetimes``)."""
    return list(recording(cluster).gaps_s)


def event(recorded: Recording, number: int) -> Event:
    """The ``number``-th loss (from 0); a recording that has ended starts again."""
    count = len(recorded.gaps_s)
    rounds, place = divmod(number, count)
    after_s = rounds * sum(recorded.gaps_s) + sum(recorded.gaps_s[: place + 1])
    return Event(
        recording=recorded.name,
        number=number,
        gap_s=recorded.gaps_s[place],
        after_s=after_s,
        lost=recorded.lost[place],
    )
