"""``roost capture``: tell a kernel that tracks on its own that a notice has come."""

from pathlib import Path
from typing import Annotated

import typer

from roost.runtime.kernel import tell


def capture(
    directory: Annotated[Path, typer.Argument(help="The directory of its %roost track.")],
    within: Annotated[float, typer.Option(help="Seconds left.", min=0.001)] = tell.WITHIN_S,
    call_off: Annotated[
        bool, typer.Option("--call-off", help="The machine stays: what was paused goes on.")
    ] = False,
) -> None:
    """Tell the kernel that tracks into a directory of a notice; prints JSON when all is durable."""
    options = ["--call-off"] if call_off else ["--within", str(within)]
    raise typer.Exit(tell.main([str(directory), *options]))
