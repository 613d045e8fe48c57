"""What an hour of one instance costs under each way of buying it, and what nobody publishes a price for.

Reads the purchase options of the snapshot (or a table of the same columns) beside a pool's own prices. Each
tariff keeps its source and date. Where only a best-case discount is published there is no tariff: the option
is told as unpriced, and no number is made up.
"""

from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import msgspec
import polars as pl

from roost.market.advisor import Loss
from roost.market.catalogue import DATA
from roost.ports.errors import Invalid
from roost.ports.values import Offer

MONTH_H = 730.0
COLUMNS = ("provider", "scope", "region", "option", "metric", "value", "basis", "source", "as_of")
RATIO = "ratio_to_on_demand"
BEST_CASE = "best_case_discount_pct"
TERMS = {"1y": 12, "3y": 36}
REGION_FEE = "dedicated_instance_region_fee"


class Tariff(msgspec.Struct, frozen=True, kw_only=True):
    """One way to buy an hour of one instance."""

    option: str
    usd_hour: float
    """Paid for each hour used; under a commitment for each hour of its term, used or not."""
    risk_usd_hour: float = 0.0
    """What interruptions cost an hour: hazard x cost of a loss. Not on any bill, but counted."""
    term_months: int = 0
    """0: paid by use."""
    dedicated: bool = False
    fixed_usd_hour: float = 0.0
    """Once for all instances, for every hour of a month in which it is used."""
    basis: str = "computed"
    source: str
    as_of: str = ""

    @property
    def committed(self) -> bool:
        """Whether it is paid for every hour of a term."""
        return self.term_months > 0

    @property
    def counted_usd_hour(self) -> float:
        """What decides: the price and the risk."""
        return self.usd_hour + self.risk_usd_hour


class Unpriced(msgspec.Struct, frozen=True, kw_only=True):
    """A way to buy that the data holds no price for, and what it says instead."""

    option: str
    why: str
    best_case_discount_pct: float | None = None
    source: str = ""


class Tariffs(msgspec.Struct, frozen=True, kw_only=True):
    """All ways to buy one pool's machine."""

    offer: Offer
    """On demand."""
    priced: tuple[Tariff, ...]
    unpriced: tuple[Unpriced, ...]


def read_options(path: Path | None = None) -> pl.DataFrame:
    """The purchase options of the package, or those of a CSV or Parquet file. Raises ``Invalid``."""
    file = path or DATA / "purchase_options.parquet"
    try:
        table = pl.read_csv(file) if file.suffix == ".csv" else pl.read_parquet(file)
    except (OSError, pl.exceptions.PolarsError) as error:
        reason = str(error).splitlines()[0]
        raise Invalid(f"{file} cannot be read: {reason}", hint="CSV or Parquet") from None
    named = table.rename({"cloud": "provider"}) if "cloud" in table.columns else table
    missing = [name for name in COLUMNS if name not in named.columns]
    if missing:
        hint = f"it needs {', '.join(COLUMNS)} (cloud may stand for provider)"
        raise Invalid(f"{file} has no column {', '.join(missing)}", hint=hint)
    typed = named.select(COLUMNS).with_columns(
        pl.col("value").cast(pl.Float64, strict=False), pl.col("as_of", "basis").fill_null("")
    )
    bad = typed.with_row_index("row", 2).filter(pl.col("value").is_null() | (pl.col("value") <= 0))
    if bad.height:
        first = bad.row(0, named=True)
        raise Invalid(f"{file}: row {first['row']}: {first['option']} has no positive value")
    return typed


def family_of(provider: str, instance_type: str) -> str:
    """The family that prices are published for: ``m5`` of ``m5.large``, ``n2`` of ``n2-standard-4``."""
    return instance_type.split("." if provider == "aws" else "-")[0]


def told(rates: pl.DataFrame, offer: Offer) -> list[Tariff]:
    """The tariffs of an offer's machine among ``savings_rate`` facts, as the history keeps them."""
    own = rates.filter(
        pl.col("provider") == offer.provider,
        pl.col("region") == offer.region,
        pl.col("instance_type") == offer.instance_type,
        pl.col("usd_hour") > 0,
    )
    return [
        Tariff(
            option=f"{row['plan']}_{row['term_years']}y_{row['payment']}",
            usd_hour=row["usd_hour"],
            term_months=12 * row["term_years"],
            basis="listed",
            source=row["source"],
            as_of=datetime.fromtimestamp(row["observed_at"], UTC).date().isoformat(),
        )
        for row in own.iter_rows(named=True)
    ]


def tariffs(
    on_demand: Offer,
    spot: Offer | None,
    loss: Loss | None,
    options: pl.DataFrame,
    newer: Sequence[Tariff] = (),
) -> Tariffs:
    """Every way to buy the machine of ``on_demand``.

    ``spot`` with its ``loss``: the same pool on spot, None where it has no spot price. ``newer``: told of
    this machine itself; they count instead of the table's figures for its family.
    """
    provider, region = on_demand.provider, on_demand.region
    price = on_demand.on_demand_usd_hour
    family = family_of(provider, on_demand.instance_type)
    own = options.filter(
        pl.col("provider") == provider,
        pl.col("scope").is_in([family, "*"]),
        pl.col("region").is_in([region, "*"]),
    ).sort("as_of", descending=True)
    found = [Tariff(option="on_demand", usd_hour=price, basis="listed", source="the catalogue")]
    unpriced = []
    if spot is None or loss is None:
        unpriced.append(Unpriced(option="spot", why="the catalogue has no spot price for it"))
    else:
        risk = loss.hazard.expected * loss.usd
        found.append(
            Tariff(
                option="spot",
                usd_hour=spot.price_usd_hour,
                risk_usd_hour=risk,
                basis="listed",
                source=f"the catalogue; {loss.hazard.source}",
            )
        )
    found += newer
    names = own["option"].unique(maintain_order=True).to_list()
    for name in sorted(names):
        if name not in ("spot", REGION_FEE, *(tariff.option for tariff in newer)):
            rows = own.filter(pl.col("option") == name)
            made = _tariff(name, rows, price, own)
            (found if isinstance(made, Tariff) else unpriced).append(made)  # type: ignore[arg-type]
    priced = {t.option for t in found}
    # A best case beside real prices of the same commitment says nothing more.
    unpriced = [u for u in unpriced if not any(_same(u.option, name) for name in priced)]
    unpriced += _missing(provider, family, region, priced, names, options)
    return Tariffs(offer=on_demand, priced=tuple(found), unpriced=tuple(unpriced))


def _same(option: str, priced: str) -> bool:
    """Whether a price is one of an option that vendors name more widely (``reserved_3y``)."""
    family, _, term = option.rpartition("_")
    return priced.startswith(option) or (priced.startswith(family) and f"_{term}_" in priced)


def _tariff(name: str, rows: pl.DataFrame, price: float, own: pl.DataFrame) -> Tariff | Unpriced:
    ratios = rows.filter(pl.col("metric") == RATIO)
    if ratios.is_empty():
        row = rows.row(0, named=True)
        best = row["value"] if row["metric"] == BEST_CASE else None
        said = {
            BEST_CASE: f"only a best case is published: up to {row['value']:g} % off",
            "premium_pct_of_node_vcpu_mem": f"only a premium of {row['value']:g} % on a node's vCPU and"
            " memory is published, not how many fit on a node",
        }.get(row["metric"], f"only {row['metric']} = {row['value']:g} is published")
        return Unpriced(option=name, why=said, best_case_discount_pct=best, source=row["source"])
    row = ratios.row(0, named=True)
    months = next((m for word, m in TERMS.items() if f"_{word}" in name), 0)
    if name == "sustained_use_full_month":
        if row["value"] >= 0.999:
            return Unpriced(option=name, why="this family has no discount for sustained use")
        months = 1
    fee = own.filter(pl.col("option") == REGION_FEE)["value"].to_list()
    dedicated = name.startswith("dedicated")
    return Tariff(
        option=name,
        usd_hour=row["value"] * price,
        term_months=months,
        dedicated=dedicated,
        fixed_usd_hour=fee[0] if dedicated and fee else 0.0,
        basis=row["basis"],
        source=row["source"],
        as_of=row["as_of"],
    )


def _missing(
    provider: str,
    family: str,
    region: str,
    priced: set[str],
    told: list[str],
    options: pl.DataFrame,
) -> list[Unpriced]:
    """Options that the table prices for other families or regions of the cloud, but not for this one."""
    of_cloud = options.filter(pl.col("provider") == provider, pl.col("metric") == RATIO)
    found = []
    for name in sorted(set(of_cloud["option"]) - priced - set(told)):
        rows = of_cloud.filter(pl.col("option") == name, pl.col("scope") == family)
        places = sorted(set(rows["region"]))
        why = (
            f"priced for {family} in {', '.join(places[:3])}, not in {region}"
            if places
            else (f"no price for the {family} family")
        )
        found.append(Unpriced(option=name, why=why))
    hosts = options.filter(
        pl.col("provider") == provider, pl.col("metric") == "usd_per_host_hour"
    ).sort("value")
    if hosts.height:
        low, high = hosts["value"].to_list()[0], hosts["value"].to_list()[-1]
        why = (
            f"{hosts.height} kinds of host cost ${low:.2f} to ${high:.2f} an hour; "
            "how many machines fit on one is not in the data"
        )
        found.append(
            Unpriced(option="dedicated_host", why=why, source=hosts["source"].to_list()[0])
        )
    return found
