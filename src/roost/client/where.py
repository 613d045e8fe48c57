"""On which hosts replicas may run, as people write it: ``zone=0.5``, ``db@zone``. It checks words only."""

from collections.abc import Mapping, Sequence
from typing import Any

from roost.ports.errors import Invalid

DOMAINS = ("host", "zone", "region", "pool", "provider", "group")
LISTS = ("regions", "zones", "pools")
NUMBERS = ("min_survival", "loss")
WISH = "?"
"""At the end: a wish that gives way, and says so, where nothing else fits."""


def spread_of(text: str) -> dict[str, Any]:
    """``zone=0.5``: at most half of the replicas in a zone; ``host=2``: at most two on a host."""
    by, _, amount = _strict(text).partition("=")
    try:
        number = float(amount)
    except ValueError:
        number = -1.0
    if number <= 0.0 or (number > 1.0 and number != int(number)):
        raise Invalid(f"{text!r} is no spread", hint="for example zone=0.5, host=2 or zone=0.5?")
    whole = "." not in amount
    bound = {"most": int(number)} if whole else {"share": number}
    return {"by": _domain(by, text), **bound, "strict": not text.endswith(WISH)}


def company_of(text: str, *, apart: bool) -> dict[str, Any]:
    """``db`` or ``db@zone``: with (or apart from) that service's replicas, on one host or in one zone."""
    service, _, by = _strict(text).partition("@")
    if not service:
        raise Invalid(f"{text!r} names no service", hint="for example db or db@zone")
    return {
        "service": service,
        "by": _domain(by or "host", text),
        "apart": apart,
        "strict": not text.endswith(WISH),
    }


def where_of(
    spread: Sequence[str] = (), near: Sequence[str] = (), apart: Sequence[str] = ()
) -> dict[str, Any]:
    """The rules of a command line."""
    company = [company_of(text, apart=False) for text in near]
    company += [company_of(text, apart=True) for text in apart]
    rules = {"spread": [spread_of(text) for text in spread], "affinity": company}
    return {name: value for name, value in rules.items() if value}


def where_in(value: Mapping[str, Any]) -> dict[str, Any]:
    """The rules of a file: ``spread`` by domain, ``with`` and ``apart`` lists, the rest as it is."""
    known = {"spread", "with", "apart", *LISTS, *NUMBERS}
    if strange := sorted(set(value) - known):
        raise Invalid(
            f"where does not know {', '.join(map(str, strange))}",
            hint=f"it knows {', '.join(sorted(known))}",
        )
    spread = [f"{by}={amount}" for by, amount in dict(value.get("spread") or {}).items()]
    rules = where_of(spread, list(value.get("with") or ()), list(value.get("apart") or ()))
    rules |= {name: [str(one) for one in value[name]] for name in LISTS if name in value}
    return rules | {name: float(value[name]) for name in NUMBERS if name in value}


def _strict(text: str) -> str:
    return text.removesuffix(WISH)


def _domain(by: str, text: str) -> str:
    if by not in DOMAINS:
        raise Invalid(f"{text!r}: {by!r} is no domain", hint=f"one of {', '.join(DOMAINS)}")
    return by
