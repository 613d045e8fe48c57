"""``roost host``: look at hosts, get a shell on one, take one away to see what happens."""

from typing import Annotated

import typer

from roost.doors.cli import render
from roost.doors.cli.context import emit, errors, installation, out

app = typer.Typer(help="The machines sessions run on.", no_args_is_help=True)

JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]
HostArgument = Annotated[str, typer.Argument(help="Host id, see `roost host list`.")]


@app.command("list")
def list_(
    ctx: typer.Context,
    all_: Annotated[bool, typer.Option("--all", help="Ended ones too.")] = False,
    json: JsonOption = False,
) -> None:
    """List hosts: offer, price, load, what runs there."""
    with errors():
        views = installation(ctx).client().hosts(all_=all_)
        if json:
            emit(views)
        elif views:
            out.print(render.hosts(views))
        else:
            out.print("no hosts; `roost notebook start` claims one")


@app.command()
def connect(ctx: typer.Context, host_id: HostArgument) -> None:
    """Open a shell on a host (through its agent's tunnel)."""
    with errors():
        raise typer.Exit(installation(ctx).shell(host_id))


@app.command()
def interrupt(
    ctx: typer.Context,
    host_id: HostArgument,
    notice: Annotated[float | None, typer.Option(help="Seconds; default: its cloud's.")] = None,
    json: JsonOption = False,
) -> None:
    """Deliver an interruption notice in the dialect of the host's cloud, then take the host."""
    with errors():
        view = installation(ctx).client().interrupt_host(host_id, notice, "by hand")
        if json:
            emit(view)
        else:
            out.print(f"{view.id} ({view.offer.key}) was told that it goes away")


@app.command()
def kill(ctx: typer.Context, host_id: HostArgument, json: JsonOption = False) -> None:
    """Take a host away at once, without notice."""
    with errors():
        view = installation(ctx).client().kill_host(host_id)
        if json:
            emit(view)
        else:
            out.print(f"{view.id} ({view.offer.key}) is gone")
