"""The options that commands of ``roost market`` share: a workload's constraints, and the ask they make."""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from roost.doors.cli.context import errors
from roost.doors.cli.options import Command, takes
from roost.ports.errors import Invalid
from roost.ports.values import Ask, PurchaseOption

Waiting = Annotated[
    float | None,
    typer.Option("--waiting", min=0, help="What an hour of waiting costs, USD; 0 if nobody waits."),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
HistoryDir = Annotated[
    Path | None,
    typer.Option("--history", help="Facts newer than the shipped catalogue count from here."),
]


SPOT = (PurchaseOption.SPOT,)
BOTH = (PurchaseOption.SPOT, PurchaseOption.ON_DEMAND)


def _workload(options: tuple[PurchaseOption, ...]) -> dict[str, tuple[Any, Any]]:
    """The type and default of each option of a workload; ``options``: bought where none is named."""
    several = "(repeat, or use commas)."
    default = ", ".join(options)
    return {
        "vcpus": (_number("--vcpus", "At least this many vCPUs."), 2.0),
        "memory": (_number("--memory", "At least this much memory, GiB."), 8.0),
        "gpus": (_number("--gpus", "At least this many GPUs."), 0.0),
        "arch": (Annotated[str, typer.Option("--arch", help="x86_64 or arm64.")], "x86_64"),
        "cloud": (_names("--cloud", "--clouds", help=f"Only these {several}"), None),
        "region": (_names("--region", "--regions", help=f"Only these {several}"), None),
        "instance_type": (_names("--type", help="Only these instance types."), None),
        "max_price": (
            Annotated[
                float | None, typer.Option("--max-price", help="The most to pay, USD per hour.")
            ],
            None,
        ),
        "near": (
            Annotated[
                str, typer.Option("--near", help="A city or region: closer ones rank higher.")
            ],
            "",
        ),
        "min_notice": (_number("--min-notice", "Seconds of warning before an interruption."), 0.0),
        "option": (_names("--option", help=f"spot, on_demand; default {default}."), None),
    }


def _number(name: str, words: str) -> Any:
    return Annotated[float, typer.Option(name, min=0, help=words)]


def _names(*flags: str, help: str) -> Any:
    return Annotated[list[str] | None, typer.Option(*flags, help=help)]


def asks(
    options: tuple[PurchaseOption, ...] = SPOT, **defaults: Any
) -> Callable[[Command], Command]:
    """A command about a workload: its parameter ``ask`` is made of the options that say which.

    ``options``: what is bought where ``--option`` is not given; ``defaults`` stand for those of the options.
    """
    workload = {
        name: (kind, defaults.get(name, default))
        for name, (kind, default) in _workload(options).items()
    }

    def decorate(command: Command) -> Command:
        @takes("ask", workload)
        @functools.wraps(command)
        def run(ask: dict[str, Any], **given: Any) -> None:
            with errors():
                made = _ask(options, **ask)
            command(ask=made, **given)

        return run

    return decorate


def _ask(
    options: tuple[PurchaseOption, ...],
    *,
    vcpus: float,
    memory: float,
    gpus: float,
    arch: str,
    cloud: list[str] | None,
    region: list[str] | None,
    instance_type: list[str] | None,
    max_price: float | None,
    near: str,
    min_notice: float,
    option: list[str] | None,
) -> Ask:
    """The ask of a command line. Raises ``Invalid`` for a purchase option nobody knows."""
    return Ask(
        vcpus=vcpus,
        memory_gib=memory,
        gpus=gpus,
        arch=arch,
        clouds=names(cloud),
        regions=names(region),
        instance_types=names(instance_type),
        max_usd_hour=max_price,
        near=near,
        min_notice_s=min_notice,
        purchase_options=tuple(_option(name) for name in names(option)) or options,
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
