"""Entry point of the simulator: ``roost simulate`` and ``python -m roost.main.simulate``."""

import sys
from collections.abc import Sequence
from typing import Annotated

import typer

from roost.adapters.clock import SystemClock
from roost.sim.cli import simulate
from roost.sim.scaling.cli import scaling

app = typer.Typer(help="Run the real controllers against faults; policies against recorded load.")
app.command("scaling")(scaling)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the seeds of ``argv``; the exit code."""
    return simulate(argv, SystemClock())


@app.callback(invoke_without_command=True)
def command(
    ctx: typer.Context,
    seeds: Annotated[int, typer.Option(min=1, help="How many seeds.")] = 20,
    seed: Annotated[int, typer.Option(help="The first seed.")] = 1,
    hours: Annotated[float, typer.Option(help="Simulated hours in which things go wrong.")] = 0.2,
    verbose: Annotated[bool, typer.Option(help="Say what happened in each seed.")] = False,
) -> None:
    """Run the real controllers in a world that breaks, on virtual time, against five checkers."""
    if ctx.invoked_subcommand is not None:
        return
    argv = ["--seeds", str(seeds), "--seed", str(seed), "--hours", str(hours)]
    raise typer.Exit(main([*argv, *(["--verbose"] if verbose else [])]))


if __name__ == "__main__":
    sys.exit(main())
