"""The constraints of an ask as filters over the catalogue's columns, each able to say what it lacks."""

from collections.abc import Callable

import msgspec
import polars as pl

from roost.ports.values import Ask, PurchaseOption


class Limit(msgspec.Struct, frozen=True):
    """One constraint: its text, its filter, and what it says of the offers that all others let through."""

    text: str
    passes: pl.Expr
    tell: Callable[[pl.DataFrame], str]


def key_of() -> pl.Expr:
    """The offer's key as a column."""
    place = pl.when(pl.col("zone") == "").then(pl.col("region")).otherwise(pl.col("zone"))
    return pl.concat_str("provider", place, "type", "option", separator="/")


def limits(ask: Ask) -> list[Limit]:
    """The constraints of ``ask``, those a person loosens most easily first."""
    found = []
    if ask.max_usd_hour is not None:
        found.append(_price(ask.max_usd_hour))
    if ask.min_notice_s > 0:
        found.append(_notice(ask.min_notice_s))
    if ask.gpus > 0:
        found.append(_largest("gpus", ask.gpus, "GPUs"))
    found.append(_largest("vcpus", ask.vcpus, "vCPU"))
    found.append(_largest("memory_gib", ask.memory_gib, "GiB"))
    for name, column, names in (
        ("clouds", "provider", ask.clouds),
        ("regions", "region", ask.regions),
        ("instance_types", "type", ask.instance_types),
        ("arch", "arch", (ask.arch,)),
        ("purchase_options", "option", tuple(str(o) for o in ask.purchase_options)),
    ):
        if names:
            found.append(_one_of(name, column, names))
    for name, looked_at, unwanted in (
        ("avoid_clouds", pl.col("provider"), ask.avoid_clouds),
        ("avoid_regions", pl.col("region"), ask.avoid_regions),
        ("avoid_pools", key_of(), ask.avoid_pools),
    ):
        if unwanted:
            found.append(_none_of(name, looked_at, unwanted))
    return found


def _largest(column: str, wanted: float, unit: str) -> Limit:
    def tell(rest: pl.DataFrame) -> str:
        top = rest.sort(column, descending=True).row(0, named=True)
        return (
            f"the largest of {rest.height:,} otherwise fitting offers has {top[column]:g} {unit} "
            f"({top['provider']} {top['type']})"
        )

    return Limit(f"{column}={wanted:g}", pl.col(column) >= wanted, tell)


def _one_of(name: str, column: str, wanted: tuple[str, ...]) -> Limit:
    def tell(rest: pl.DataFrame) -> str:
        counted = rest[column].value_counts(sort=True).head(4).iter_rows()
        there = ", ".join(f"{value} ({count:,})" for value, count in counted)
        return f"{rest.height:,} otherwise fitting offers are elsewhere, most in {there}"

    return Limit(f"{name}={','.join(wanted)}", pl.col(column).is_in(list(wanted)), tell)


def _none_of(name: str, column: pl.Expr, unwanted: tuple[str, ...]) -> Limit:
    def tell(rest: pl.DataFrame) -> str:
        return f"it excludes all {rest.height:,} otherwise fitting offers"

    text = ",".join(unwanted[:4]) + (" ..." if len(unwanted) > 4 else "")
    return Limit(f"{name}={text}", ~column.is_in(list(unwanted)), tell)


def _price(most: float) -> Limit:
    def tell(rest: pl.DataFrame) -> str:
        cheapest = rest.with_columns(key=key_of()).sort("price_usd_hour", "key").row(0, named=True)
        return (
            f"the cheapest of {rest.height:,} otherwise fitting offers costs "
            f"${cheapest['price_usd_hour']:.4f} ({cheapest['key']})"
        )

    return Limit(f"max_usd_hour={most:g}", pl.col("price_usd_hour") <= most, tell)


def _notice(least_s: float) -> Limit:
    def tell(rest: pl.DataFrame) -> str:
        longest = rest.select(pl.col("notice_s").max()).item()
        return f"the longest notice of {rest.height:,} otherwise fitting offers is {longest:g} s"

    uninterrupted = pl.col("option") != PurchaseOption.SPOT.value
    return Limit(f"min_notice_s={least_s:g}", uninterrupted | (pl.col("notice_s") >= least_s), tell)
