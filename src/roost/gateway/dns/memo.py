"""Answers kept as bytes: most queries are ones that were just answered. Pure.

Reading and writing messages is nearly all of a query's cost. Kept answers hold for one version of the
zone and one area of clients; each is kept in several variants, renewed all the time, so that rotation and
weights stay true. Never decides anything about an answer.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

from roost.gateway.dns.answer import HEADER, Kind, Reply
from roost.gateway.dns.choice import Area

ENTRIES = 2048
"""All are forgotten when there are more: a flood of made-up names costs no memory."""
ENTRY_BYTES = 512
"""Larger queries and answers are not kept."""
VARIANTS = 8
RENEWED = 1 / 16
"""Share of the queries that are answered anew although an answer is kept."""

_Key = tuple[bytes, bytes, bytes, Area]


@dataclass(slots=True)
class Known:
    """What was answered to one query from one area."""

    kind: Kind
    name: object
    """What the rates of equal responses are counted by."""
    variants: list[bytes] = field(default_factory=list)


class Memo:
    """Queries to answers, for one version of the zone at a time."""

    def __init__(self, draw: Callable[[], float]) -> None:
        self._draw = draw
        self._known: dict[_Key, Known] = {}
        self._version = -1

    def find(self, wire: bytes, area: Area, version: int) -> tuple[Known, bytes] | None:
        """An answer to the query ``wire``; None = it is to be answered anew (and then kept)."""
        if version != self._version:
            self._known.clear()
            self._version = version
        known = self._known.get(_key(wire, area))
        if known is None or len(known.variants) < VARIANTS:
            return None
        lot = self._draw()
        if lot < RENEWED:
            return None
        answer = known.variants[int(lot * VARIANTS)]
        end = _name_end(wire)
        # The name in its case as sent (0x20), in the place where the question always is.
        return known, wire[:2] + answer[2:HEADER] + wire[HEADER:end] + answer[end:]

    def keep(self, wire: bytes, area: Area, reply: Reply, answer: bytes) -> None:
        """Remember that ``answer`` was made for ``wire``, with the version ``find`` was told."""
        end = _name_end(wire)
        # A question that came back byte by byte was written without compression.
        same = wire[HEADER : end + 5] == answer[HEADER : end + 5]
        if reply.kind != "answer" or not same or len(wire) + len(answer) > 2 * ENTRY_BYTES:
            return
        if len(self._known) >= ENTRIES:
            self._known.clear()
        known = self._known.setdefault(_key(wire, area), Known(reply.kind, reply.name))
        if len(known.variants) < VARIANTS:
            known.variants.append(answer)
        else:
            known.variants[int(self._draw() * VARIANTS)] = answer


def _name_end(wire: bytes) -> int:
    """Where the question's name ends, or before that."""
    return max(wire.find(b"\0", HEADER), HEADER)


def _key(wire: bytes, area: Area) -> _Key:
    """Everything but the id; lower case only where the name is (lengths of labels have no case)."""
    end = _name_end(wire)
    return wire[2:HEADER], wire[HEADER:end].lower(), wire[end:], area
