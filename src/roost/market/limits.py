"""The constraints of an ask as filters over the offers' arrays, each able to say what it lacks."""

from collections import Counter
from collections.abc import Callable, Sequence

import msgspec
import numpy as np

from roost.market.columns import Codes, Columns, Floats, Mask, Rows
from roost.ports.values import Ask, PurchaseOption


class Limit(msgspec.Struct, frozen=True):
    """One constraint: its text, its filter, and what it says of the rows that all others let through."""

    text: str
    passes: Callable[[Columns], Mask]
    tell: Callable[[Columns, Rows], str]


def limits(ask: Ask) -> list[Limit]:
    """The constraints of ``ask``, those a person loosens most easily first."""
    found = []
    if ask.max_usd_hour is not None:
        found.append(_price(ask.max_usd_hour))
    if ask.min_notice_s > 0:
        found.append(_notice(ask.min_notice_s))
    if ask.gpus > 0:
        found.append(_largest("gpus", ask.gpus, "GPUs", lambda c: c.types.gpus))
    found.append(_largest("vcpus", ask.vcpus, "vCPU", lambda c: c.types.vcpus))
    found.append(_largest("memory_gib", ask.memory_gib, "GiB", lambda c: c.types.memory_gib))
    options = tuple(str(o) for o in ask.purchase_options)
    found += [
        _one_of(name, wanted, every, of)
        for name, wanted, every, of in (
            ("clouds", ask.clouds, _clouds, _region_of),
            ("regions", ask.regions, _regions, _region_of),
            ("instance_types", ask.instance_types, _types, _type_of),
            ("arch", (ask.arch,), _archs, _type_of),
            ("purchase_options", options, _options, _option_of),
        )
        if wanted
    ]
    if ask.avoid_clouds:
        found.append(_none_of("avoid_clouds", ask.avoid_clouds, _clouds))
    if ask.avoid_regions:
        found.append(_none_of("avoid_regions", ask.avoid_regions, _regions))
    if ask.avoid_pools:
        found.append(_no_pool(ask.avoid_pools))
    return found


def passing(columns: Columns, active: Sequence[Limit]) -> Mask:
    """The rows that are offered and that all of the limits let through."""
    mask: Mask = columns.price > 0
    for limit in active:
        mask &= limit.passes(columns)
    return mask


Names = Callable[[Columns], Sequence[str]]


def _clouds(columns: Columns) -> Sequence[str]:
    return [provider for provider, _ in columns.regions]


def _regions(columns: Columns) -> Sequence[str]:
    return [region for _, region in columns.regions]


def _types(columns: Columns) -> Sequence[str]:
    return [name for _, name in columns.types.names]


def _archs(columns: Columns) -> Sequence[str]:
    return columns.types.arch


def _options(_columns: Columns) -> Sequence[str]:
    return [option.value for option in PurchaseOption]


def _region_of(columns: Columns) -> Codes:
    return columns.region


def _type_of(columns: Columns) -> Codes:
    return columns.type


def _option_of(columns: Columns) -> Codes:
    return columns.option


def _largest(name: str, wanted: float, unit: str, values: Callable[[Columns], Floats]) -> Limit:
    def passes(columns: Columns) -> Mask:
        return (values(columns) >= wanted)[columns.type]

    def tell(columns: Columns, rest: Rows) -> str:
        codes = columns.type[rest]
        top = codes[int(np.argmax(values(columns)[codes]))]
        provider, kind = columns.types.names[top]
        return (
            f"the largest of {len(rest):,} otherwise fitting offers has "
            f"{values(columns)[top]:g} {unit} ({provider} {kind})"
        )

    return Limit(f"{name}={wanted:g}", passes, tell)


def _one_of(
    name: str,
    wanted: tuple[str, ...],
    names: Names,
    codes: Callable[[Columns], Codes],
) -> Limit:
    def passes(columns: Columns) -> Mask:
        kept = set(wanted)
        return np.array([n in kept for n in names(columns)], np.bool_)[codes(columns)]

    def tell(columns: Columns, rest: Rows) -> str:
        every = names(columns)
        counted: Counter[str] = Counter()
        for code, count in enumerate(np.bincount(codes(columns)[rest], minlength=len(every))):
            counted[every[code]] += int(count)
        there = ", ".join(
            f"{value} ({count:,})" for value, count in counted.most_common(4) if count
        )
        return f"{len(rest):,} otherwise fitting offers are elsewhere, most in {there}"

    return Limit(f"{name}={','.join(wanted)}", passes, tell)


def _all_excluded(_columns: Columns, rest: Rows) -> str:
    return f"it excludes all {len(rest):,} otherwise fitting offers"


def _none_of(name: str, unwanted: tuple[str, ...], names: Names) -> Limit:
    def passes(columns: Columns) -> Mask:
        gone = set(unwanted)
        return np.array([n not in gone for n in names(columns)], np.bool_)[columns.region]

    return Limit(f"{name}={_few(unwanted)}", passes, _all_excluded)


def _no_pool(keys: tuple[str, ...]) -> Limit:
    def passes(columns: Columns) -> Mask:
        mask = np.ones(columns.height, np.bool_)
        for key in keys:
            parts = key.split("/")
            if len(parts) == 4:
                mask[columns.find(*parts)] = False
        return mask

    return Limit(f"avoid_pools={_few(keys)}", passes, _all_excluded)


def _few(names: tuple[str, ...]) -> str:
    return ",".join(names[:4]) + (" ..." if len(names) > 4 else "")


def _price(most: float) -> Limit:
    def passes(columns: Columns) -> Mask:
        cheap: Mask = columns.price <= most
        return cheap

    def tell(columns: Columns, rest: Rows) -> str:
        cheapest = int(rest[int(np.argmin(columns.price[rest]))])
        return (
            f"the cheapest of {len(rest):,} otherwise fitting offers costs "
            f"${columns.price[cheapest]:.4f} ({columns.key(cheapest)})"
        )

    return Limit(f"max_usd_hour={most:g}", passes, tell)


def _notice(least_s: float) -> Limit:
    def notices(columns: Columns) -> Floats:
        every = [columns.notice_s.get(provider, 0.0) for provider, _ in columns.regions]
        return np.array(every)[columns.region]

    def passes(columns: Columns) -> Mask:
        spot = columns.option == list(PurchaseOption).index(PurchaseOption.SPOT)
        fair: Mask = ~spot | (notices(columns) >= least_s)
        return fair

    def tell(columns: Columns, rest: Rows) -> str:
        longest = float(notices(columns)[rest].max())
        return f"the longest notice of {len(rest):,} otherwise fitting offers is {longest:g} s"

    return Limit(f"min_notice_s={least_s:g}", passes, tell)
