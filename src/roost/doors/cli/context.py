"""What commands need from the program that runs them, and how they speak to a person."""

import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Protocol

import msgspec
import typer
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from roost.client.api import RoostClient
from roost.ports.errors import RoostError

Json = bool


@dataclass(frozen=True, slots=True)
class Check:
    """One finding of ``roost doctor``."""

    name: str
    ok: bool
    detail: str
    hint: str = ""


class Installation(Protocol):
    """The local installation, as commands use it; main provides it."""

    def up(self, say: Callable[[str], None]) -> dict[str, Any]:
        """Start what does not run; returns the addresses. Raises ``Invalid`` with what to do."""

    def play_market(self, market: str, speed: float) -> str:
        """Choose the recorded market that local instances live in; returns its name."""

    def down(self, say: Callable[[str], None], *, keep_hosts: bool) -> list[str]:
        """Stop everything; returns what was stopped."""

    def doctor(self) -> list[Check]:
        """Look at everything that could be wrong."""

    def env(self) -> dict[str, str]:
        """What a shell needs to talk to this installation."""

    def client(self) -> RoostClient:
        """A client of the running installation; starts a supervisor if there is none."""

    def install_kernel(self, *, user: bool, prefix: str | None) -> str:
        """Install the kernelspec; returns its folder."""

    def shell(self, host_id: str) -> int:
        """A terminal on a host; returns its exit status."""


out = Console()
err = Console(stderr=True)


def installation(ctx: typer.Context) -> Installation:
    """The installation the program was started for."""
    found: Installation = ctx.obj
    return found


def emit(value: Any) -> None:
    """Print a value as JSON on standard output."""
    json.dump(msgspec.to_builtins(value), sys.stdout, indent=2)
    sys.stdout.write("\n")


@contextmanager
def errors() -> Iterator[None]:
    """Turn typed errors into a message with what to do next, and exit status 2."""
    try:
        yield
    except RoostError as error:
        err.print(f"[bold red]error:[/] {error.message}", highlight=False)
        if error.hint:
            err.print(f"[dim]→ {error.hint}[/]", highlight=False)
        raise typer.Exit(2) from error


@contextmanager
def progress(text: str, *, quiet: bool = False) -> Iterator[Callable[[str], None]]:
    """A spinner with the elapsed time on standard error; yields a function that changes its text."""
    if quiet or not err.is_terminal:
        last = ""

        def plain(now: str) -> None:
            nonlocal last
            if now != last and not quiet:
                err.print(f"[dim]{now}[/]", highlight=False)
            last = now

        plain(text)
        yield plain
        return
    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    with Progress(*columns, console=err, transient=True) as bar:
        task = bar.add_task(text, total=None)
        yield lambda now: bar.update(task, description=now)


def age(then_s: float, now_s: float | None = None) -> str:
    """How long ago, e.g. ``3m12s``."""
    seconds = int((time.time() if now_s is None else now_s) - then_s)
    if seconds < 0:
        return "0s"
    for unit, size in (("d", 86_400), ("h", 3600), ("m", 60)):
        if seconds >= size:
            small, rest = {"d": ("h", 3600), "h": ("m", 60), "m": ("s", 1)}[unit]
            return f"{seconds // size}{unit}{seconds % size // rest:02d}{small}"
    return f"{seconds}s"


def clock(at_s: float) -> str:
    """A time of day in the reader's zone, to the hundredth of a second."""
    local = datetime.fromtimestamp(at_s, UTC).astimezone()
    return local.strftime("%H:%M:%S.") + f"{local.microsecond // 10_000:02d}"
