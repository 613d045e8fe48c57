"""The sources of the market as the command line uses them: which there are, and what each needs to be opened.

Reads the environment for credentials and mirrors; never prints or stores a credential.
"""

import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import polars as pl

from roost.adapters.sources.archives import (
    SKYPILOT,
    SPARE_CORES,
    SPOTLAKE,
    SkyPilotCatalog,
    SpareCores,
    SpotLake,
)
from roost.adapters.sources.aws_api import AwsPlacementScores, AwsSpotPrices, Budget, clients
from roost.adapters.sources.aws_plans import AwsSavingsPlans
from roost.adapters.sources.aws_public import ADVISOR, PRICES, AwsPriceList, AwsSpotAdvisor
from roost.adapters.sources.azure import (
    MANAGEMENT,
    RETAIL,
    AzurePlacementScores,
    AzureResourceGraph,
    AzureRetailPrices,
)
from roost.adapters.sources.gcp import (
    BILLING,
    COMPUTE,
    GcpCapacityAdvice,
    GcpCapacityHistory,
    GcpPrices,
)
from roost.adapters.sources.tokens import AZURE, GOOGLE, Tokens
from roost.doors.cli.market_data import About, Wanted
from roost.main.settings import settings
from roost.market.catalogue import DATA
from roost.ports.errors import Invalid
from roost.ports.sources import PriceSource

PLACES = {
    "aws": re.compile(r"[a-z]{2}(-[a-z]+)+-\d"),
    "azure": re.compile(r"[a-z]+[0-9]?"),
    "gcp": re.compile(r"[a-z]+-[a-z]+\d+(-[a-z])?"),
}
TYPES = {
    "aws": re.compile(r"[a-z0-9-]+\.[a-z0-9-]+"),
    "azure": re.compile(r"(Standard|Basic)_.+"),
    "gcp": re.compile(r"[a-z]\w*-[\w-]+"),
}
"""How each cloud names regions and machine types: a person's list is dealt out by it."""


class MarketData:
    """Implements ``doors.cli.market_data.MarketData``."""

    def __init__(self, state_dir: str | None = None) -> None:
        self._folder = settings(state_dir).market

    def folder(self) -> Path:
        """See ``MarketData``."""
        return self._folder

    def sources(self) -> list[About]:
        """See ``MarketData``."""
        return [
            About(
                name=kind.name,
                licence=kind.licence,
                needs=kind.needs,
                consent=kind.consent,
                cadence_s=kind.cadence_s,
                default=kind.name in DEFAULT,
                what=(kind.__doc__ or "").split(". ")[0].split("\n")[0].rstrip("."),
            )
            for kind in KINDS
        ]

    def open(self, name: str, wanted: Wanted, folder: Path) -> PriceSource:
        """See ``MarketData``."""
        return OPEN[name](_Opening(name, wanted, folder))


class _Opening:
    """One source being opened: what a person wanted, cut to its cloud."""

    def __init__(self, name: str, wanted: Wanted, folder: Path) -> None:
        self.name = name
        self.wanted = wanted
        self.folder = folder
        cloud = name.split("-", 1)[0]
        self.regions = self._of_cloud("--region", wanted.regions, PLACES.get(cloud))
        self.types = self._of_cloud("--type", wanted.types, TYPES.get(cloud))

    def _of_cloud(
        self, option: str, names: tuple[str, ...], form: re.Pattern[str] | None
    ) -> tuple[str, ...]:
        if form is None or not names:
            return ()
        fits = tuple(name for name in names if form.fullmatch(name))
        if not fits:
            raise Invalid(
                f"none of {', '.join(names)} is a name of its cloud",
                hint=f"give {option} names of that cloud too, or leave the source out",
            )
        return fits

    def base(self, vendor: str) -> str:
        """The vendor's address, or the mirror that a person set."""
        url = os.environ.get(f"ROOST_MIRROR_{self.name.upper().replace('-', '_')}", "")
        return url.rstrip("/") or vendor

    def azure(self) -> Tokens:
        """Azure's token."""
        return Tokens(os.environ.get("AZURE_ACCESS_TOKEN", ""), AZURE, "AZURE_ACCESS_TOKEN")

    def google(self) -> Tokens:
        """Google's token."""
        given = os.environ.get("CLOUDSDK_AUTH_ACCESS_TOKEN", "")
        return Tokens(given, GOOGLE, "CLOUDSDK_AUTH_ACCESS_TOKEN")


def _types(cloud: str) -> pl.DataFrame:
    table = pl.read_parquet(DATA / "instance_types.parquet")
    return table.filter(pl.col("provider") == cloud)


def _sizes() -> dict[str, str]:
    return {name.lower(): name for name in _types("azure")["type"]}


def _shapes() -> dict[str, tuple[float, float]]:
    rows = _types("gcp").select("type", "vcpus", "memory_gib").iter_rows()
    return {kind: (vcpus, gib) for kind, vcpus, gib in rows}


def _advisor(o: _Opening) -> PriceSource:
    return AwsSpotAdvisor(url=o.base(ADVISOR))


def _aws_scores(o: _Opening) -> PriceSource:
    budget = Budget(o.folder / "aws-placement-configurations.json")
    return AwsPlacementScores(
        clients(), budget, types=o.types, regions=o.regions, capacity=o.wanted.capacity
    )


def _azure_scores(o: _Opening) -> PriceSource:
    return AzurePlacementScores(
        o.azure(),
        os.environ.get("AZURE_SUBSCRIPTION_ID", ""),
        types=o.types,
        regions=o.regions,
        capacity=o.wanted.capacity,
        base=o.base(MANAGEMENT),
    )


def _gcp_advice(kind: type[GcpCapacityHistory] | type[GcpCapacityAdvice]) -> "Open":
    def make(o: _Opening) -> PriceSource:
        project = os.environ.get("GOOGLE_CLOUD_PROJECT", "")
        base = o.base(COMPUTE)
        return kind(o.google(), project, types=o.types, regions=o.regions, base=base)

    return make


Open = Callable[[_Opening], PriceSource]
DEFAULT = (AwsSpotAdvisor.name, SkyPilotCatalog.name, SpareCores.name)
"""About 15 MB together; AWS's price list has hundreds of MB a region, Azure's hundreds of pages."""
KINDS: tuple[Any, ...] = (
    AwsPriceList,
    AwsSpotAdvisor,
    AzureRetailPrices,
    SkyPilotCatalog,
    SpareCores,
    SpotLake,
    AwsSpotPrices,
    AwsPlacementScores,
    AwsSavingsPlans,
    AzureResourceGraph,
    AzurePlacementScores,
    GcpPrices,
    GcpCapacityHistory,
    GcpCapacityAdvice,
)
OPEN: Mapping[str, Open] = {
    AwsPriceList.name: lambda o: AwsPriceList(o.regions, base=o.base(PRICES)),
    AwsSpotAdvisor.name: _advisor,
    AzureRetailPrices.name: lambda o: AzureRetailPrices(o.regions, base=o.base(RETAIL)),
    SkyPilotCatalog.name: lambda o: SkyPilotCatalog(base=o.base(SKYPILOT)),
    SpareCores.name: lambda o: SpareCores(base=o.base(SPARE_CORES)),
    SpotLake.name: lambda o: SpotLake(
        o.wanted.since, o.wanted.until, every_s=o.wanted.every_s, base=o.base(SPOTLAKE)
    ),
    AwsSpotPrices.name: lambda o: AwsSpotPrices(
        clients(), regions=o.regions, types=o.types, days=o.wanted.days
    ),
    AwsPlacementScores.name: _aws_scores,
    AwsSavingsPlans.name: lambda o: AwsSavingsPlans(
        clients(service="savingsplans"), regions=o.regions, types=o.types
    ),
    AzureResourceGraph.name: lambda o: AzureResourceGraph(
        o.azure(), names=_sizes(), base=o.base(MANAGEMENT)
    ),
    AzurePlacementScores.name: _azure_scores,
    GcpPrices.name: lambda o: GcpPrices(
        os.environ.get("GCP_API_KEY", ""), _shapes(), base=o.base(BILLING)
    ),
    GcpCapacityHistory.name: _gcp_advice(GcpCapacityHistory),
    GcpCapacityAdvice.name: _gcp_advice(GcpCapacityAdvice),
}
