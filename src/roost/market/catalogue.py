"""The catalogue: reads the snapshot of the package and filters it. Polars is used here and in limits.py only.

It knows what is offered and at what price; it never ranks. A pool without a price is not offerable.
"""

from collections.abc import Iterator, Mapping
from functools import lru_cache
from math import inf
from pathlib import Path
from typing import Any

import msgspec
import polars as pl

from roost.market.advisor import PER_KM, PRICE_FLOOR, RankContext, Speed
from roost.market.limits import Limit, key_of, limits
from roost.market.places import Places, close
from roost.market.survival import Hazard, pooled
from roost.ports.errors import Invalid
from roost.ports.values import Ask, Offer, PurchaseOption, Resources

DATA = Path(__file__).parent / "data"


class RecordingFacts(msgspec.Struct, frozen=True):
    """What a recording of interruptions is."""

    provider: str
    what: str
    source: str
    licence: str


class Facts(msgspec.Struct, frozen=True):
    """What the builder of the snapshot counted and what the vendors document."""

    prices_as_of: dict[str, str]
    bucket_counts: dict[str, int]
    notice_s: dict[str, float]
    burst_baseline: float
    recordings: dict[str, RecordingFacts]


@lru_cache(maxsize=4)
def read_facts(path: Path = DATA) -> Facts:
    """The facts beside the tables."""
    return msgspec.json.decode((path / "facts.json").read_bytes(), type=Facts)


def read_rows(table: str, path: Path = DATA) -> list[dict[str, Any]]:
    """All rows of a small table of the snapshot."""
    return pl.read_parquet(path / f"{table}.parquet").to_dicts()


class Catalogue:
    """What can be bought, from one snapshot. Immutable after loading."""

    def __init__(
        self,
        offers: pl.DataFrame,
        types: pl.DataFrame,
        boot_s: Mapping[str, float],
        facts: Facts,
        places: Places,
        unknown_speed: float,
    ) -> None:
        self._offers = offers
        self._types = types
        self._facts = facts
        self.places = places
        self.boot_s = boot_s
        self.unknown_speed = unknown_speed
        self.speeds = {
            (provider, name): Speed(relative=speed, burstable=burstable)
            for provider, name, speed, burstable in types.select(
                "provider", "type", "speed", "burstable"
            ).iter_rows()
            if speed is not None
        }

    @classmethod
    def load(cls, path: Path | None = None) -> "Catalogue":
        """Read the snapshot of the package, or one in the directory ``path``."""
        folder = path or DATA
        facts = read_facts(folder)
        scores = pl.read_parquet(folder / "performance.parquet")
        types = _with_speed(pl.read_parquet(folder / "instance_types.parquet"), scores, facts)
        known = types["speed"].drop_nulls()
        boots = pl.read_parquet(folder / "boot_times.parquet")
        medians = boots.group_by("provider").agg(pl.col("container_running_s").median())
        return cls(
            offers=_by_option(pl.read_parquet(folder / "offers.parquet"), types, facts),
            types=types,
            boot_s=dict(sorted(medians.iter_rows())),
            facts=facts,
            places=Places.load(),
            unknown_speed=float(known.quantile(0.25) or 1.0),
        )

    @property
    def prior(self) -> Hazard:
        """The hazard of pools whose stability nobody publishes."""
        return pooled(self._facts.bucket_counts)

    @property
    def prices_as_of(self) -> dict[str, str]:
        """The newest price of each cloud in the snapshot (ISO dates)."""
        return self._facts.prices_as_of

    def context(self, ask: Ask, limit: int | None = None) -> RankContext:
        """What the advisor needs for this ask. Raises ``Invalid`` when ``near`` is no known place."""
        distances = self.places.regions_from(self.places.find(ask.near)) if ask.near else {}
        return RankContext(
            prior=self.prior,
            speeds=self.speeds,
            unknown_speed=self.unknown_speed,
            distances_km=distances,
            boot_s=self.boot_s,
            limit=limit,
        )

    def candidates(self, ask: Ask) -> list[Offer]:
        """Every offer that meets the constraints of ``ask`` (and is not to be avoided)."""
        return list(_offers(self._fitting(ask)))

    def shortlist(self, ask: Ask, context: RankContext, at_least: int) -> tuple[list[Offer], float]:
        """The most promising candidates, and the least any other candidate can cost a useful hour.

        Whatever of the advisor's ranking stays below that cost is exact: prices, speeds and distances are
        weighed here for all offers at once, and the terms left out only add to the cost.
        """
        frame = self._fitting(ask)
        if frame.height <= at_least:
            return list(_offers(frame)), inf
        bounded = frame.with_columns(bound=_bound(context)).sort("bound")
        cut = float(bounded["bound"][at_least])
        return list(_offers(bounded.head(at_least))), cut

    def below(self, ask: Ask, context: RankContext, usd_useful_hour: float) -> list[Offer]:
        """The candidates that could cost no more than this per useful hour."""
        return list(_offers(self._fitting(ask).filter(_bound(context) <= usd_useful_hour)))

    def resolve(self, name: str) -> Offer:
        """The offer of a key such as ``aws/apne2-az1/m5.xlarge/spot``.

        The purchase option may be left out (then spot, if there is one). Raises ``Invalid``.
        """
        parts = name.split("/")
        if len(parts) not in (3, 4) or not all(parts):
            raise Invalid(
                f"{name} is not an offer",
                hint="write provider/zone/type/option, for example aws/apne2-az1/m5.xlarge/spot",
            )
        provider, place, kind = parts[:3]
        at = (
            (pl.col("provider") == provider)
            & (pl.col("type") == kind)
            & ((pl.col("zone") == place) | ((pl.col("zone") == "") & (pl.col("region") == place)))
        )
        if len(parts) == 4:
            at &= pl.col("option") == parts[3]
        found = list(_offers(self._offers.filter(at).sort("price_usd_hour")))
        if not found:
            raise Invalid(f"no offer is called {name}", hint=self._resolve_hint(parts))
        spot = [o for o in found if o.purchase_option is PurchaseOption.SPOT]
        return (spot or found)[0]

    def count(self, ask: Ask) -> int:
        """How many offers meet the constraints of ``ask``."""
        return self._fitting(ask).height

    def excluded_by(self, offer: Offer, ask: Ask) -> tuple[str, ...]:
        """The constraints of ``ask`` that exclude an offer, in words; empty = it is a candidate."""
        own = self._offers.filter(key_of() == offer.key)
        return tuple(limit.text for limit in limits(ask) if own.filter(limit.passes).is_empty())

    def explain_empty(self, ask: Ask) -> str:
        """Which constraint leaves nothing. Empty when something fits."""
        unknown = self._unknown_name(ask)
        if unknown:
            return unknown
        active = limits(ask)
        passes = self._offers.select(
            *(limit.passes.alias(str(number)) for number, limit in enumerate(active))
        )
        if passes.select(pl.all_horizontal(pl.all()).any()).item():
            return ""
        found = []
        for number, limit in enumerate(active):
            others = [str(n) for n in range(len(active)) if n != number]
            rest = self._offers.filter(passes.select(pl.all_horizontal(others)).to_series())
            if rest.height:
                found.append(f"{limit.text} leaves nothing: {limit.tell(rest)}")
        return "; or ".join(found[:2]) or self._jointly(active)

    def _jointly(self, active: list[Limit]) -> str:
        frame = self._offers
        said = []
        for limit in active:
            frame = frame.filter(limit.passes)
            said.append(f"{limit.text} leaves {frame.height:,}")
            if not frame.height:
                break
        return f"no offer meets these together: {'; then '.join(said)}"

    def _unknown_name(self, ask: Ask) -> str:
        wanted = (
            ("instance type", "type", ask.instance_types),
            ("cloud", "provider", ask.clouds),
            ("region", "region", ask.regions),
            ("architecture", "arch", (ask.arch,)),
            ("purchase option", "option", ask.purchase_options),
        )
        for word, column, names in wanted:
            table = self._types if column in ("type", "arch") else self._offers
            known = set(table[column].unique().to_list())
            strange = [str(n) for n in names if str(n) not in known]
            if names and len(strange) == len(names):
                listed = close(strange[0], known) or sorted(known)[:5]
                hint = f"; did you mean {', '.join(listed)}?"
                return f"{word} {', '.join(strange)} is not in the catalogue{hint}"
        return ""

    def _fitting(self, ask: Ask) -> pl.DataFrame:
        return self._offers.filter(*(limit.passes for limit in limits(ask)))

    def _resolve_hint(self, parts: list[str]) -> str:
        provider, place, kind = parts[:3]
        clouds = set(self._offers["provider"].unique())
        if provider not in clouds:
            return f"clouds are {', '.join(sorted(clouds))}"
        of_cloud = self._offers.filter(pl.col("provider") == provider)
        kinds = set(of_cloud["type"].unique())
        if kind not in kinds:
            return f"did you mean {', '.join(close(kind, kinds)) or 'another type'}?"
        zones = of_cloud.filter(pl.col("type") == kind)
        known = set(zones["zone"].unique()) | set(zones.filter(pl.col("zone") == "")["region"])
        listed = close(place, known - {""}) or sorted(known - {""})[:3]
        return f"{kind} is offered in {', '.join(listed)} ..."


def _with_speed(types: pl.DataFrame, scores: pl.DataFrame, facts: Facts) -> pl.DataFrame:
    """Speed relative to the median type: single thread and all cores per vCPU, weighed alike."""
    single = pl.col("passmark_single") / pl.col("passmark_single").median()
    per_vcpu = pl.col("passmark_per_vcpu") / pl.col("passmark_per_vcpu").median()
    relative = scores.select("provider", "type", speed=(single * per_vcpu).sqrt())
    lasting = pl.when(pl.col("burstable")).then(facts.burst_baseline).otherwise(1.0)
    return types.join(relative, on=["provider", "type"], how="left").with_columns(
        speed=pl.col("speed") * lasting
    )


def _by_option(offers: pl.DataFrame, types: pl.DataFrame, facts: Facts) -> pl.DataFrame:
    """One row per purchase option that has a price, with the facts of its type."""
    notice = pl.col("provider").replace_strict(facts.notice_s, default=0.0, return_dtype=pl.Float64)
    shared = offers.select(
        "provider",
        "region",
        "zone",
        "type",
        "on_demand_usd_hour",
        "spot_usd_hour",
        "interruption_bucket",
        notice_s=notice,
    ).join(types, on=["provider", "type"], how="inner")
    spot = shared.filter(pl.col("spot_usd_hour").is_not_null()).with_columns(
        option=pl.lit(PurchaseOption.SPOT.value), price_usd_hour=pl.col("spot_usd_hour")
    )
    on_demand = shared.with_columns(
        option=pl.lit(PurchaseOption.ON_DEMAND.value),
        price_usd_hour=pl.col("on_demand_usd_hour"),
        interruption_bucket=pl.lit(None, dtype=pl.String),
    )
    return pl.concat([spot, on_demand]).drop("spot_usd_hour")


def _bound(context: RankContext) -> pl.Expr:
    """The advisor's cost without the terms for losses: never more than the whole cost."""
    floor = PRICE_FLOOR * pl.col("on_demand_usd_hour")
    spot = pl.col("option") == PurchaseOption.SPOT.value
    counted = pl.when(spot).then(pl.max_horizontal("price_usd_hour", floor))
    useful = counted.otherwise(pl.col("price_usd_hour")) / pl.col("speed").fill_null(
        context.unknown_speed
    )
    if not context.distances_km:
        return useful
    places = {f"{cloud}/{region}": km for (cloud, region), km in context.distances_km.items()}
    place = pl.concat_str("provider", pl.lit("/"), "region")
    km = place.replace_strict(places, default=0.0, return_dtype=pl.Float64)
    return useful * (1.0 + km * PER_KM)


def _offers(frame: pl.DataFrame) -> Iterator[Offer]:
    shared: dict[tuple[float, float, float], Resources] = {}
    columns = (
        "provider",
        "region",
        "zone",
        "type",
        "option",
        "price_usd_hour",
        "on_demand_usd_hour",
        "vcpus",
        "memory_gib",
        "gpus",
        "arch",
        "notice_s",
        "interruption_bucket",
    )
    options = {option.value: option for option in PurchaseOption}
    for row in frame.select(columns).iter_rows():
        size = row[7:10]
        resources = shared.get(size)
        if resources is None:
            resources = Resources(vcpus=size[0], memory_gib=size[1], gpus=size[2])
            shared[size] = resources
        yield Offer(
            provider=row[0],
            region=row[1],
            zone=row[2],
            instance_type=row[3],
            purchase_option=options[row[4]],
            price_usd_hour=row[5],
            on_demand_usd_hour=row[6],
            resources=resources,
            arch=row[10],
            notice_s=row[11],
            interruption_bucket=row[12],
        )
