"""The options that commands of ``roost market`` share: a workload's constraints, and the ask they make."""

from pathlib import Path
from typing import Annotated

import typer

from roost.ports.errors import Invalid
from roost.ports.values import Ask, PurchaseOption

Vcpus = Annotated[float, typer.Option("--vcpus", min=0, help="At least this many vCPUs.")]
Memory = Annotated[float, typer.Option("--memory", min=0, help="At least this much memory, GiB.")]
Gpus = Annotated[float, typer.Option("--gpus", min=0, help="At least this many GPUs.")]
Arch = Annotated[str, typer.Option("--arch", help="x86_64 or arm64.")]
Clouds = Annotated[
    list[str] | None,
    typer.Option("--cloud", "--clouds", help="Only these (repeat, or use commas)."),
]
Regions = Annotated[
    list[str] | None,
    typer.Option("--region", "--regions", help="Only these (repeat, or use commas)."),
]
Types = Annotated[list[str] | None, typer.Option("--type", help="Only these instance types.")]
MaxPrice = Annotated[
    float | None, typer.Option("--max-price", help="The most to pay, USD per hour.")
]
Near = Annotated[str, typer.Option("--near", help="A city or region: closer ones rank higher.")]
MinNotice = Annotated[
    float, typer.Option("--min-notice", min=0, help="Seconds of warning before an interruption.")
]
Options = Annotated[
    list[str] | None, typer.Option("--option", help="spot, on_demand; default spot.")
]
Waiting = Annotated[
    float | None,
    typer.Option("--waiting", min=0, help="What an hour of waiting costs, USD; 0 if nobody waits."),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
HistoryDir = Annotated[
    Path | None,
    typer.Option("--history", help="Facts newer than the shipped catalogue count from here."),
]


def ask_of(
    vcpus: float,
    memory: float,
    gpus: float,
    arch: str,
    clouds: list[str] | None,
    regions: list[str] | None,
    types: list[str] | None,
    max_price: float | None,
    near: str,
    min_notice: float,
    options: list[str] | None,
) -> Ask:
    """The ask of a command line. Raises ``Invalid`` for a purchase option nobody knows."""
    return Ask(
        vcpus=vcpus,
        memory_gib=memory,
        gpus=gpus,
        arch=arch,
        clouds=names(clouds),
        regions=names(regions),
        instance_types=names(types),
        max_usd_hour=max_price,
        near=near,
        min_notice_s=min_notice,
        purchase_options=tuple(_option(name) for name in names(options) or ("spot",)),
    )


def names(given: list[str] | None) -> tuple[str, ...]:
    """Repeated and comma-separated values as one tuple."""
    return tuple(name.strip() for item in given or () for name in item.split(",") if name.strip())


def _option(name: str) -> PurchaseOption:
    try:
        return PurchaseOption(name.replace("-", "_").lower())
    except ValueError:
        hint = f"options are {', '.join(PurchaseOption)}"
        raise Invalid(f"{name} is not a purchase option", hint=hint) from None
