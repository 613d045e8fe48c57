"""What all sources share: the reading of cursors, numbers and moments. It knows no vendor."""

from collections import Counter
from collections.abc import Iterable
from datetime import UTC, datetime
from math import isfinite
from typing import TypeVar

import msgspec

from roost.ports.errors import Invalid, Never

S = TypeVar("S", bound=msgspec.Struct)


def load_cursor(text: str, shape: type[S]) -> S:
    """The cursor of a source; an empty one starts from the beginning. Raises ``Invalid``."""
    if not text:
        return shape()
    try:
        return msgspec.json.decode(text, type=shape)
    except msgspec.MsgspecError as error:
        raise Invalid(
            f"the cursor is not one of this source: {error}", hint="start from an empty one"
        ) from error


def dump_cursor(cursor: msgspec.Struct) -> str:
    """The text of a cursor."""
    return msgspec.json.encode(cursor).decode()


def moment(text: str, what: str) -> float:
    """UTC seconds of an ISO 8601 text; without a zone it is UTC. Raises ``Never``."""
    try:
        made = datetime.fromisoformat(text.strip().replace("Z", "+00:00"))
    except ValueError as error:
        raise Never(f"{what} has {text!r} where a time belongs") from error
    return (made if made.tzinfo else made.replace(tzinfo=UTC)).timestamp()


def number(text: str, what: str) -> float:
    """A finite number that is not negative. Raises ``Never``."""
    try:
        value = float(text)
    except ValueError as error:
        raise Never(f"{what} has {text!r} where a number belongs") from error
    if not isfinite(value) or value < 0:
        raise Never(f"{what} has {text!r} where a price belongs")
    return value


def money(units: str | int, nanos: int) -> float:
    """Google's money: whole units and billionths."""
    return int(units) + nanos / 1e9


def counts(skipped: Iterable[str]) -> dict[str, int]:
    """How often each reason was met."""
    return dict(Counter(skipped))


def chosen(wanted: Iterable[str], known: Iterable[str], what: str) -> list[str]:
    """The wanted names, or all; ``Invalid`` when one is not known."""
    names = sorted(set(known))
    picked = list(dict.fromkeys(wanted))
    strange = [name for name in picked if name not in names]
    if strange:
        raise Invalid(
            f"{', '.join(strange)}: no such {what}", hint=f"there are {', '.join(names[:40])}"
        )
    return picked or names
