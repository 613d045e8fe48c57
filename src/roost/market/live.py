"""Facts newer than the shipped catalogue, laid over it: prices, bands, rates, own looks, each with its age.

The newest fact wins, whoever told it; a fact older than the snapshot of its cloud changes nothing. What no
fact speaks of stays as shipped, and what stays unknown stays unknown. Reads the history, never writes it.
"""

from collections.abc import Mapping
from datetime import UTC, datetime

import msgspec
import polars as pl

from roost.market.catalogue import Catalogue
from roost.market.columns import BANDS, Columns
from roost.market.forecast.model import Forecaster
from roost.market.history import History, Problem
from roost.market.observed import DAYS, observed
from roost.market.survival import Hazard, from_preemptions, on_one_scale

PREEMPTION_DAYS = 30
"""GCP tells daily rates of the last 30 days."""
POOL = ("provider", "region", "zone", "type")


class Told(msgspec.Struct, frozen=True, kw_only=True):
    """Who told a fact and when it was true (UTC seconds)."""

    what: str
    """``price`` or ``stability``."""
    source: str
    observed_at: float


class Live(msgspec.Struct, frozen=True, kw_only=True):
    """The catalogue as of now, and what was newer than the snapshot."""

    catalogue: Catalogue
    told: Mapping[str, tuple[Told, ...]] = {}
    """By offer key; an offer that is missing stands as shipped."""
    problems: tuple[Problem, ...] = ()
    """Files of the history that could not be read."""
    unplaced: tuple[str, ...] = ()
    """Pools of newer spot prices that the catalogue does not know: other names of zones, new types."""

    @property
    def newest_s(self) -> float | None:
        """When the newest of these facts was true."""
        return max((t.observed_at for told in self.told.values() for t in told), default=None)


def newest(catalogue: Catalogue, history: History | None, as_of: float) -> Live:
    """The catalogue with every newer fact of the history up to ``as_of`` (UTC seconds)."""
    if history is None or not history.root.is_dir():
        return Live(catalogue=catalogue)
    prices = history.latest("offer_price", as_of=as_of).rename({"instance_type": "type"})
    problems = list(history.problems)
    bands = history.latest_bands(as_of=as_of)
    problems += history.problems
    since = as_of - PREEMPTION_DAYS * 86_400
    rates = history.read("preemption_rate", since=since, until=as_of)
    problems += history.problems
    looks = history.read("availability", since=as_of - DAYS * 86_400.0, until=as_of)
    problems += history.problems
    if not (prices.height or bands.height or rates.height or looks.height):
        return Live(catalogue=catalogue, problems=tuple(problems))
    columns, place = catalogue.columns, _Place(catalogue)
    spot = prices.filter(pl.col("option") == "spot")
    price, told_price = _prices(place.spot(spot))
    listed, told_listed = _prices(place.on_demand(prices.filter(pl.col("option") == "on_demand")))
    hazards, shipped, told_band = _bands(place, bands, catalogue.prior)
    more, told_rate = _rates(place, rates, catalogue.prior)
    watched, told_look = _looks(place, looks, as_of)
    told: dict[str, list[Told]] = {}
    prices_told = {**told_price, **told_listed}
    bands_told = {**told_band, **told_rate, **told_look}
    for what, found in (("price", prices_told), ("stability", bands_told)):
        for row, (source, observed_at) in found.items():
            fact = Told(what=what, source=source, observed_at=observed_at)
            told.setdefault(columns.key(row), []).append(fact)
    newer = columns.with_live({**hazards, **more, **watched}, price, shipped, listed)
    return Live(
        catalogue=catalogue.with_columns(newer),
        told={key: tuple(facts) for key, facts in told.items()},
        problems=tuple(problems),
        unplaced=place.unknown(spot),
    )


Sources = dict[int, tuple[str, float]]


class _Place:
    """Finds the rows that a fact speaks of; facts not newer than the snapshot speak of none."""

    def __init__(self, catalogue: Catalogue) -> None:
        self._frame = frame(catalogue.columns)
        self._since = pl.DataFrame(
            {
                "provider": list(catalogue.prices_as_of),
                "since": [_seconds(day) for day in catalogue.prices_as_of.values()],
            }
        )

    def _newer(self, facts: pl.DataFrame) -> pl.DataFrame:
        dated = facts.join(self._since, on="provider")
        return dated.filter(pl.col("observed_at") > pl.col("since"))

    def spot(self, facts: pl.DataFrame) -> pl.DataFrame:
        """The facts with the ``row`` of each spot offer: of its zone, else of its region."""
        newer = self._newer(facts)
        offers = self._frame.filter(pl.col("option") == "spot").select("row", *POOL)
        exact = newer.join(offers, on=POOL, how="inner")
        wide = newer.filter(pl.col("zone") == "").drop("zone")
        region = wide.join(offers, on=("provider", "region", "type"), how="inner")
        rest = region.join(exact, on="row", how="anti")
        return pl.concat([exact, rest.select(exact.columns)])

    def unknown(self, facts: pl.DataFrame) -> tuple[str, ...]:
        """The pools of facts that speak of no offer, in order."""
        offered = self._frame.with_columns(zone=pl.lit(""))
        known = pl.concat([self._frame.select(POOL), offered.select(POOL)])
        strange = self._newer(facts).join(known, on=POOL, how="anti").select(POOL).unique()
        return tuple("/".join((c, z or r, t)) for c, r, z, t in strange.sort(POOL).rows())

    def on_demand(self, facts: pl.DataFrame) -> pl.DataFrame:
        """The facts with the ``row`` of each offer of their region: spot is compared with them too."""
        newer = self._newer(facts)
        offers = self._frame.drop("zone")
        latest = newer.sort("observed_at").unique(("provider", "region", "type"), keep="last")
        return latest.drop("zone", "option").join(
            offers, on=("provider", "region", "type"), how="inner"
        )


def frame(columns: Columns) -> pl.DataFrame:
    """The names of every row: row, provider, region, zone, type, option."""
    regions = pl.DataFrame(columns.regions, schema=["provider", "region"], orient="row")
    types = pl.Series([name for _, name in columns.types.names])
    return pl.DataFrame(
        {
            "row": range(columns.height),
            "provider": regions["provider"].gather(columns.region),
            "region": regions["region"].gather(columns.region),
            "zone": pl.Series(columns.zones).gather(columns.zone),
            "type": types.gather(columns.type),
            "option": columns.options(),
        }
    )


def _prices(rows: pl.DataFrame) -> tuple[dict[int, float], Sources]:
    """Prices by row, NaN where a pool is no longer offered, and who told them."""
    priced = rows.filter(pl.col("usd_hour").is_null() | (pl.col("usd_hour") > 0))
    told = priced.select("row", "usd_hour", "source", "observed_at").rows()
    found = {row: float("nan") if price is None else price for row, price, _, _ in told}
    return found, {row: (who, at) for row, _, who, at in told}


def _bands(
    place: _Place, bands: pl.DataFrame, prior: Hazard
) -> tuple[dict[int, Hazard], dict[int, int], Sources]:
    """Hazards by row; bands of the scale that offers carry themselves, by row; who told them."""
    hazards: dict[int, Hazard] = {}
    shipped: dict[int, int] = {}
    told: Sources = {}
    wanted = ("row", "provider", "scale", "label", "low", "high", "source", "observed_at")
    known = {label: code for code, label in enumerate(BANDS)}
    made: dict[tuple[str, str, float, float], Hazard] = {}
    for row, provider, scale, label, low, high, source, at in (
        place.spot(bands).select(wanted).rows()
    ):
        told[row] = source, at
        if provider == "aws" and scale == "share_month" and label in known:
            shipped[row] = known[label]
            continue
        name = (source, scale, low, high)
        if name not in made:
            words = f"{source}: {label} ({scale.replace('_', ' an ')})"
            made[name] = on_one_scale(low, min(high, 1.0), scale, prior, words)
        hazards[row] = made[name]
    return hazards, shipped, told


def _rates(place: _Place, rates: pl.DataFrame, prior: Hazard) -> tuple[dict[int, Hazard], Sources]:
    hazards: dict[int, Hazard] = {}
    told: Sources = {}
    days = rates.rename({"instance_type": "type"}).sort("observed_at")
    pools = days.group_by(POOL, maintain_order=True).agg(
        pl.col("rate"), pl.col("source").last(), pl.col("observed_at").last()
    )
    for row, shares, source, at in (
        place.spot(pools).select("row", "rate", "source", "observed_at").rows()
    ):
        hazard = from_preemptions(shares, prior, f"{source}: {len(shares)} daily shares of stops")
        if hazard is not None:
            hazards[row] = hazard
            told[row] = source, at
    return hazards, told


def _looks(place: _Place, looks: pl.DataFrame, as_of: float) -> tuple[dict[int, Hazard], Sources]:
    """Pools that are watched now: what the model makes of their last days, before any published band."""
    if not looks.height:
        return {}, {}
    found = observed(looks, as_of, Forecaster.load())
    pools = pl.DataFrame(
        [(*pool, s.observed_at) for pool, s in found.items()], schema=_LOOKED, orient="row"
    )
    hazards, told = {}, {}
    for provider, region, zone, kind, row in place.spot(pools).select(*POOL, "row").rows():
        seen = found.get((provider, region, zone, kind))
        if seen is None:
            continue  # looked at as a region: of its zones nothing was seen
        hazards[row], told[row] = seen.hazard, (seen.source, seen.observed_at)
    return hazards, told


_LOOKED = dict.fromkeys(POOL, pl.String()) | {"observed_at": pl.Float64()}


def _seconds(day: str) -> float:
    return datetime.fromisoformat(day).replace(tzinfo=UTC).timestamp() + 86_400.0
