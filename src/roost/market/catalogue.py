"""The catalogue: reads the snapshot of the package and filters it by an ask.

It knows what is offered and at what price; it never ranks. A pool without a price is not offerable.
"""

from collections.abc import Mapping
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import polars as pl

from roost.market.advisor import RankContext, Speed
from roost.market.columns import Columns, Rows, columns_of
from roost.market.limits import Limit, limits, passing
from roost.market.places import Places, close
from roost.market.survival import Hazard, pooled
from roost.ports.errors import Invalid
from roost.ports.values import Ask, Offer, PurchaseOption

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
        columns: Columns,
        speeds: Mapping[tuple[str, str], Speed],
        boot_s: Mapping[str, float],
        facts: Facts,
        places: Places,
        unknown_speed: float,
    ) -> None:
        self.columns = columns
        self.speeds = speeds
        self.boot_s = boot_s
        self.unknown_speed = unknown_speed
        self.places = places
        self._facts = facts

    @classmethod
    def load(cls, path: Path | None = None) -> "Catalogue":
        """The snapshot of the package, or one in the directory ``path``; read once, as it is immutable."""
        return _load(path or DATA)

    @classmethod
    def read(cls, folder: Path) -> "Catalogue":
        """Read the snapshot in a directory."""
        facts = read_facts(folder)
        scores = pl.read_parquet(folder / "performance.parquet")
        types = _with_speed(pl.read_parquet(folder / "instance_types.parquet"), scores, facts)
        known = types["speed"].drop_nulls()
        boots = pl.read_parquet(folder / "boot_times.parquet")
        medians = boots.group_by("provider").agg(pl.col("container_running_s").median())
        offers = pl.read_parquet(folder / "offers.parquet")
        speeds = {
            (provider, name): Speed(relative=speed, burstable=burstable)
            for provider, name, speed, burstable in types.select(
                "provider", "type", "speed", "burstable"
            ).iter_rows()
            if speed is not None
        }
        return cls(
            columns=columns_of(offers, types, facts.notice_s),
            speeds=speeds,
            boot_s=dict(sorted(medians.iter_rows())),
            facts=facts,
            places=Places.load(),
            unknown_speed=float(known.quantile(0.25) or 1.0),
        )

    def with_columns(self, columns: Columns) -> "Catalogue":
        """The same catalogue with other offers (newer prices, newer hazards)."""
        return Catalogue(
            columns, self.speeds, self.boot_s, self._facts, self.places, self.unknown_speed
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
            hazards=self.hazards,
            limit=limit,
        )

    @cached_property
    def hazards(self) -> dict[str, Hazard]:
        """Hazards newer than the published bands, by offer key."""
        columns = self.columns
        rows = columns.live_rows.tolist()
        return {columns.key(row): h for row, h in zip(rows, columns.live, strict=True)}

    def rows(self, ask: Ask) -> Rows:
        """The rows of every offer that meets the constraints of ``ask`` (and is not to be avoided)."""
        return np.flatnonzero(passing(self.columns, limits(ask)))

    def candidates(self, ask: Ask) -> list[Offer]:
        """The offers of ``rows``."""
        return [self.columns.offer(row) for row in self.rows(ask).tolist()]

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
        rows = self.columns.find(*parts)
        if not len(rows):
            raise Invalid(f"no offer is called {name}", hint=self._resolve_hint(parts))
        found = [self.columns.offer(row) for row in rows.tolist()]
        spot = [o for o in found if o.purchase_option is PurchaseOption.SPOT]
        return (spot or found)[0]

    def count(self, ask: Ask) -> int:
        """How many offers meet the constraints of ``ask``."""
        return len(self.rows(ask))

    def excluded_by(self, offer: Offer, ask: Ask) -> tuple[str, ...]:
        """The constraints of ``ask`` that exclude an offer, in words; empty = it is a candidate."""
        own = self.columns.find(*offer.key.split("/"))
        return tuple(
            limit.text for limit in limits(ask) if not limit.passes(self.columns)[own].any()
        )

    def explain_empty(self, ask: Ask) -> str:
        """Which constraint leaves nothing. Empty when something fits."""
        unknown = self._unknown_name(ask)
        if unknown:
            return unknown
        active = limits(ask)
        offered = self.columns.price > 0
        passes = np.array([offered & limit.passes(self.columns) for limit in active])
        if passes.all(axis=0).any():
            return ""
        found = []
        for number, limit in enumerate(active):
            rest = np.flatnonzero(np.delete(passes, number, axis=0).all(axis=0))
            if len(rest):
                found.append(f"{limit.text} leaves nothing: {limit.tell(self.columns, rest)}")
        return "; or ".join(found[:2]) or self._jointly(active)

    def _jointly(self, active: list[Limit]) -> str:
        mask = self.columns.price > 0
        said = []
        for limit in active:
            mask &= limit.passes(self.columns)
            said.append(f"{limit.text} leaves {int(mask.sum()):,}")
            if not mask.any():
                break
        return f"no offer meets these together: {'; then '.join(said)}"

    def _unknown_name(self, ask: Ask) -> str:
        columns = self.columns
        options = {list(PurchaseOption)[code].value for code in np.unique(columns.option).tolist()}
        wanted = (
            ("instance type", {name for _, name in columns.types.names}, ask.instance_types),
            ("cloud", {provider for provider, _ in columns.regions}, ask.clouds),
            ("region", {region for _, region in columns.regions}, ask.regions),
            ("architecture", set(columns.types.arch), (ask.arch,)),
            ("purchase option", options, ask.purchase_options),
        )
        for word, known, names in wanted:
            strange = [str(n) for n in names if str(n) not in known]
            if names and len(strange) == len(names):
                listed = close(strange[0], known) or sorted(known)[:5]
                hint = f"; did you mean {', '.join(listed)}?"
                return f"{word} {', '.join(strange)} is not in the catalogue{hint}"
        return ""

    def _resolve_hint(self, parts: list[str]) -> str:
        provider, place, kind = parts[:3]
        columns = self.columns
        clouds = {provider for provider, _ in columns.regions}
        if provider not in clouds:
            return f"clouds are {', '.join(sorted(clouds))}"
        kinds = {name for cloud, name in columns.types.names if cloud == provider}
        if kind not in kinds:
            return f"did you mean {', '.join(close(kind, kinds)) or 'another type'}?"
        known = {columns.key(row).split("/")[1] for row in columns.of_type(provider, kind).tolist()}
        listed = close(place, known) or sorted(known)[:3]
        return f"{kind} is offered in {', '.join(listed)} ..."


@lru_cache(maxsize=2)
def _load(folder: Path) -> Catalogue:
    return Catalogue.read(folder)


def _with_speed(types: pl.DataFrame, scores: pl.DataFrame, facts: Facts) -> pl.DataFrame:
    """Speed relative to the median type: single thread and all cores per vCPU, weighed alike."""
    single = pl.col("passmark_single") / pl.col("passmark_single").median()
    per_vcpu = pl.col("passmark_per_vcpu") / pl.col("passmark_per_vcpu").median()
    relative = scores.select("provider", "type", speed=(single * per_vcpu).sqrt())
    lasting = pl.when(pl.col("burstable")).then(facts.burst_baseline).otherwise(1.0)
    return types.join(relative, on=["provider", "type"], how="left").with_columns(
        speed=pl.col("speed") * lasting
    )
