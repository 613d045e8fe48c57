"""The offers of a catalogue as arrays, one row a pool and purchase option, in the order of their keys.

Names are codes into small vocabularies, facts of a type or a region are looked up by its code, so that a
constraint or a rate over every offer is a few passes over arrays. ``totals`` is the advisor's formula
(``decision.rate``) on arrays: the same operations in the same order, so the same numbers to the last bit.
It ranks nothing and knows no constraint.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from roost.market import decision
from roost.market.advisor import PER_KM, PRICE_FLOOR, UNKNOWN_BOOT_S, RankContext
from roost.market.survival import ON_DEMAND, PUBLISHED, Hazard
from roost.ports.values import Allocation, Ask, Offer, PurchaseOption, Resources

Codes = NDArray[np.int32]
Floats = NDArray[np.float64]
Mask = NDArray[np.bool_]
Rows = NDArray[np.intp]

BANDS = list(PUBLISHED)
"""The bands that offers carry, by code."""
_UNKNOWN, _NOT_SPOT = len(BANDS), len(BANDS) + 1
_OPTIONS = list(PurchaseOption)
_SPOT = _OPTIONS.index(PurchaseOption.SPOT)
NOTHING_NEWER: Mapping[int, int] = {}
NOTHING_DEARER: Mapping[int, float] = {}
_rate: Any = decision.rate  # on arrays; its operators are those of numbers


@dataclass(frozen=True, slots=True)
class Types:
    """Facts of the instance types, by code."""

    names: list[tuple[str, str]]
    """(provider, type)."""
    codes: dict[tuple[str, str], int]
    """The place of each in ``names``."""
    resources: list[Resources]
    arch: list[str]
    vcpus: Floats
    memory_gib: Floats
    gpus: Floats
    speed: Floats
    """NaN where not measured."""


@dataclass(frozen=True, slots=True)
class Columns:
    """Every offer. Rows are sorted by key; a row number is therefore also its place among ties."""

    types: Types
    regions: list[tuple[str, str]]
    zones: list[str]
    notice_s: Mapping[str, float]
    type: Codes
    region: Codes
    zone: Codes
    option: Codes
    band: Codes
    price: Floats
    """NaN: no longer offered."""
    on_demand: Floats
    counted: Floats
    """The price as the advisor counts it: spot not below its floor."""
    live_rows: Rows = field(default_factory=lambda: np.empty(0, np.intp))
    """Rows with a hazard newer than their band, and that hazard."""
    live: tuple[Hazard, ...] = ()

    @property
    def height(self) -> int:
        """How many offers."""
        return len(self.price)

    def by_region(self, values: Iterable[Any], dtype: Any) -> Any:
        """One value a region, for every row."""
        return np.fromiter(values, dtype, len(self.regions))[self.region]

    def totals(self, context: RankContext, rows: Rows) -> Floats:
        """USD per useful hour of these rows: what ``advisor.cost`` gives, bit by bit."""
        speed = np.where(np.isnan(self.types.speed), context.unknown_speed, self.types.speed)
        far, loss = self._by_region(context)
        region = self.region[rows]
        total: Floats = _rate(
            self.counted[rows] * far[region],
            speed[self.type[rows]],
            self._hazard(context, rows),
            loss[region],
        )
        return total

    def order(self, context: RankContext, rows: Rows, ask: Ask) -> Floats:
        """What these rows are ranked by, the least first, as the ask's allocation says."""
        if ask.allocation is Allocation.LOWEST_PRICE:
            return self.price[rows]
        totals = self.totals(context, rows)
        if ask.allocation is Allocation.CAPACITY:
            return _places(self._hazard(context, rows), totals)
        if ask.allocation is Allocation.PRIORITIZED:
            wanted = {name: place for place, name in enumerate(ask.instance_types)}
            last = len(wanted)
            by_type = np.array([wanted.get(name, last) for _, name in self.types.names], float)
            return _places(by_type[self.type[rows]], totals)
        return totals

    def _by_region(self, context: RankContext) -> tuple[Floats, Floats]:
        far, loss = np.empty(len(self.regions)), np.empty(len(self.regions))
        for code, place in enumerate(self.regions):
            provider = place[0]
            far[code] = 1.0 + context.distances_km.get(place, 0.0) * PER_KM
            launch_s = context.boot_s.get(provider, UNKNOWN_BOOT_S)
            notice_s = self.notice_s.get(provider, 0.0)
            down = decision.down_s(context.freeze_s, launch_s, context.move_s, notice_s)
            loss[code] = decision.loss_usd(context.down_usd_hour, down)
        return far, loss

    def _hazard(self, context: RankContext, rows: Rows) -> Floats:
        expected = [PUBLISHED[name].expected for name in BANDS]
        known = np.array([*expected, context.prior.expected, ON_DEMAND.expected])
        if not len(self.live_rows):
            published: Floats = known[self.band[rows]]
            return published
        hazard: Floats = known[self.band]
        hazard[self.live_rows] = [h.expected for h in self.live]
        return hazard[rows]

    def best(self, totals: Floats, rows: Rows, at_least: int) -> tuple[Rows, bool]:
        """The ``at_least`` best rows and all that tie with the last, in order; whether these are all."""
        if at_least >= len(rows):
            return rows[np.argsort(totals, kind="stable")], True
        cut = np.partition(totals, at_least)[at_least]
        near = np.flatnonzero(totals <= cut)
        return rows[near[np.argsort(totals[near], kind="stable")]], False

    def groups(self, rows: Rows) -> list[tuple[int, int]]:
        """(region, type and option) of the rows, as ``advisor.spread`` wants them."""
        kinds = self.type[rows].astype(np.int64) * len(_OPTIONS) + self.option[rows]
        return list(zip(self.region[rows].tolist(), kinds.tolist(), strict=True))

    def find(self, provider: str, place: str, kind: str, option: str | None = None) -> Rows:
        """The rows of a key; without an option, of each."""
        at = self.of_type(provider, kind)
        places = (self.zones[self.zone[r]] or self.regions[self.region[r]][1] for r in at)
        found = [row for row, name in zip(at.tolist(), places, strict=True) if name == place]
        options = [_OPTIONS[self.option[row]] for row in found]
        kept = [
            row
            for row, bought in zip(found, options, strict=True)
            if option in (None, bought.value) and self.price[row] > 0
        ]
        return np.array(kept, np.intp)

    def of_type(self, provider: str, kind: str) -> Rows:
        """The rows of an instance type."""
        code = self.types.codes.get((provider, kind))
        return np.empty(0, np.intp) if code is None else np.flatnonzero(self.type == code)

    def key(self, row: int) -> str:
        """The offer key of a row."""
        provider, kind = self.types.names[self.type[row]]
        place = self.zones[self.zone[row]] or self.regions[self.region[row]][1]
        return f"{provider}/{place}/{kind}/{_OPTIONS[self.option[row]]}"

    def offer(self, row: int) -> Offer:
        """The offer of a row."""
        code = self.type[row]
        provider, region = self.regions[self.region[row]]
        band = self.band[row]
        return Offer(
            provider=provider,
            region=region,
            zone=self.zones[self.zone[row]],
            instance_type=self.types.names[code][1],
            purchase_option=_OPTIONS[self.option[row]],
            price_usd_hour=float(self.price[row]),
            on_demand_usd_hour=float(self.on_demand[row]),
            resources=self.types.resources[code],
            arch=self.types.arch[code],
            notice_s=self.notice_s.get(provider, 0.0),
            interruption_bucket=BANDS[band] if band < len(BANDS) else None,
        )

    def options(self) -> list[str]:
        """The purchase option of every row."""
        names = [option.value for option in _OPTIONS]
        return [names[code] for code in self.option.tolist()]

    def with_live(
        self,
        hazards: Mapping[int, Hazard],
        prices: Mapping[int, float],
        bands: Mapping[int, int] = NOTHING_NEWER,
        listed: Mapping[int, float] = NOTHING_DEARER,
    ) -> "Columns":
        """The same offers with newer hazards, prices, bands (codes of ``BANDS``), on-demand prices by row.

        A price that is no number: no longer offered.
        """
        price, on_demand, band = self.price.copy(), self.on_demand.copy(), self.band.copy()
        band[list(bands)] = list(bands.values())
        price[list(prices)] = list(prices.values())
        on_demand[list(listed)] = list(listed.values())
        bought = self.option != _SPOT
        price[bought] = on_demand[bought]
        rows = np.fromiter(hazards, np.intp, len(hazards))
        return replace(
            self,
            band=band,
            price=price,
            on_demand=on_demand,
            counted=_counted(self.option, price, on_demand),
            live_rows=rows,
            live=tuple(hazards.values()),
        )


def _places(first: Floats, then: Floats) -> Floats:
    """The place of each row when sorted by ``first``, its ties by ``then``."""
    order = np.lexsort((then, first))
    places = np.empty(len(order))
    places[order] = np.arange(len(order))
    return places


def columns_of(offers: pl.DataFrame, types: pl.DataFrame, notice_s: Mapping[str, float]) -> Columns:
    """The arrays of a table of offers (one row a pool) and of its types with their ``speed``."""
    frame = _by_option(offers, types)
    names = list(zip(types["provider"].to_list(), types["type"].to_list(), strict=True))
    places = frame.select("provider", "region").unique().sort("provider", "region").rows()
    zones = frame["zone"].unique().sort().to_list()
    place = pl.struct("provider", "region")
    option = _codes(frame["option"], [option.value for option in _OPTIONS])
    price = frame["price_usd_hour"].to_numpy().astype(np.float64)
    on_demand = frame["on_demand_usd_hour"].to_numpy().astype(np.float64)
    return Columns(
        types=_types(types, names),
        regions=[(provider, region) for provider, region in places],
        zones=zones,
        notice_s=dict(notice_s),
        type=_numbers(frame["type_code"]),
        region=_numbers(
            frame.select(place.replace_strict(_structs(places), range(len(places)))).to_series()
        ),
        zone=_codes(frame["zone"], zones),
        option=option,
        band=_band(frame),
        price=price,
        on_demand=on_demand,
        counted=_counted(option, price, on_demand),
    )


def _counted(option: Codes, price: Floats, on_demand: Floats) -> Floats:
    counted: Floats = np.where(option == _SPOT, np.maximum(price, PRICE_FLOOR * on_demand), price)
    return counted


def _types(types: pl.DataFrame, names: list[tuple[str, str]]) -> Types:
    sizes = types.select("vcpus", "memory_gib", "gpus").rows()
    return Types(
        names=names,
        codes={name: code for code, name in enumerate(names)},
        resources=[Resources(vcpus=v, memory_gib=m, gpus=g) for v, m, g in sizes],
        arch=types["arch"].to_list(),
        vcpus=types["vcpus"].to_numpy().astype(np.float64),
        memory_gib=types["memory_gib"].to_numpy().astype(np.float64),
        gpus=types["gpus"].to_numpy().astype(np.float64),
        speed=types["speed"].cast(pl.Float64).fill_null(float("nan")).to_numpy(),
    )


def _structs(places: Sequence[tuple[str, ...]]) -> pl.Series:
    return pl.DataFrame(places, schema=["provider", "region"], orient="row").to_struct()


def _numbers(series: pl.Series) -> Codes:
    return series.to_numpy().astype(np.int32)


def _codes(series: pl.Series, names: Sequence[str]) -> Codes:
    known = pl.Series(names)
    return _numbers(series.replace_strict(known, range(len(names)), return_dtype=pl.Int32))


def _band(frame: pl.DataFrame) -> Codes:
    spot = frame["option"] == PurchaseOption.SPOT.value
    bands = frame["interruption_bucket"].replace_strict(
        BANDS, range(len(BANDS)), default=_UNKNOWN, return_dtype=pl.Int32
    )
    return np.where(spot.to_numpy(), bands.to_numpy(), _NOT_SPOT).astype(np.int32)


def _by_option(offers: pl.DataFrame, types: pl.DataFrame) -> pl.DataFrame:
    """One row per purchase option that has a price, sorted by key."""
    codes = types.select("provider", "type").with_row_index("type_code")
    shared = offers.select(
        "provider",
        "region",
        "zone",
        "type",
        "on_demand_usd_hour",
        "spot_usd_hour",
        "interruption_bucket",
    ).join(codes, on=["provider", "type"], how="inner")
    spot = shared.filter(pl.col("spot_usd_hour").is_not_null()).with_columns(
        option=pl.lit(PurchaseOption.SPOT.value), price_usd_hour=pl.col("spot_usd_hour")
    )
    on_demand = shared.with_columns(
        option=pl.lit(PurchaseOption.ON_DEMAND.value), price_usd_hour=pl.col("on_demand_usd_hour")
    )
    place = pl.when(pl.col("zone") == "").then(pl.col("region")).otherwise(pl.col("zone"))
    key = pl.concat_str("provider", place, "type", "option", separator="/")
    return pl.concat([spot, on_demand]).with_columns(key=key).sort("key").drop("spot_usd_hour")
