"""``roost gateway``: the load balancer on its own, in front of anything. Needs no control plane.

The program itself is given by ``main`` (``GatewayProgram``); here arguments become values and errors text.
"""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Protocol

import typer
from rich.console import Console
from rich.text import Text

from roost.doors.cli.gateway_top import show
from roost.ports.errors import Invalid, RoostError


@dataclass(frozen=True)
class QuickStart:
    """A gateway without a file: one listener in front of interchangeable backends."""

    listen: str
    backends: tuple[str, ...]
    balance: str = "least-work"
    workers: int = 0
    admin: str | None = None


class GatewayProgram(Protocol):
    """What ``main`` plugs in."""

    def run(self, source: Path | QuickStart) -> int:
        """Serve until told to stop; the exit status."""

    def check(self, path: Path) -> list[str]:
        """What a configuration holds, one line each. Raises ``Invalid``."""


app = typer.Typer(
    help="A load balancer and reverse proxy from one file.",
    invoke_without_command=True,
    add_completion=False,
)


@app.callback()
def gateway(
    ctx: typer.Context,
    config: Annotated[
        Path | None, typer.Option("--config", "-c", help="The configuration (TOML).")
    ] = None,
    listen: Annotated[
        str, typer.Option("--listen", help="Without a file: host:port to serve.")
    ] = "",
    backend: Annotated[
        list[str] | None,
        typer.Option("--backend", help="Without a file: host:port of a server (repeat)."),
    ] = None,
    balance: Annotated[
        str, typer.Option("--balance", help="Without a file: how backends are chosen.")
    ] = "least-work",
    workers: Annotated[
        int, typer.Option("--workers", min=0, help="Without a file: processes; 0 = one a core.")
    ] = 0,
    admin: Annotated[
        str, typer.Option("--admin", help="Without a file: host:port of metrics and state.")
    ] = "",
) -> None:
    """Serve a configuration until SIGTERM; SIGHUP reads it again, SIGUSR2 upgrades the program."""
    if ctx.invoked_subcommand is not None:
        return
    with errors():
        program: GatewayProgram = ctx.obj
        if config is not None and not listen and not backend:
            source: Path | QuickStart = config
        elif config is None and listen and backend:
            source = QuickStart(listen, tuple(backend), balance, workers, admin or None)
        else:
            raise Invalid(
                "give a configuration, or a listener and its backends",
                hint="roost gateway --config routes.toml, or "
                "roost gateway --listen 127.0.0.1:8080 --backend 127.0.0.1:9001",
            )
        status = program.run(source)
    raise typer.Exit(status)


@app.command()
def check(
    ctx: typer.Context,
    path: Annotated[Path, typer.Argument(help="The configuration (TOML).")],
) -> None:
    """Say whether a configuration is right, and what it holds; exit status 2 when it is not."""
    with errors():
        program: GatewayProgram = ctx.obj
        for line in program.check(path):
            typer.echo(line)


@app.command()
def top(
    admin: Annotated[
        str, typer.Argument(help="host:port of the gateway's admin port.")
    ] = "127.0.0.1:9900",
    every: Annotated[float, typer.Option("--every", min=0.2, help="Seconds between looks.")] = 1.0,
    once: Annotated[bool, typer.Option("--once", help="Print once and end.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, a line a look.")] = False,
) -> None:
    """Show what a running gateway does: routes, backends, rates, latencies."""
    with errors(), suppress(KeyboardInterrupt):
        show(admin, every_s=every, once=once, as_json=as_json)


@contextmanager
def errors() -> Iterator[None]:
    """Turn a typed error into a message, a hint and exit code 2."""
    try:
        yield
    except RoostError as error:
        console = Console(stderr=True, highlight=False, soft_wrap=True)
        console.print(Text.assemble(("error: ", "bold red"), error.message))
        if error.hint:
            console.print(Text.assemble(("hint: ", "bold"), error.hint))
        raise typer.Exit(2) from None
