"""Top-level commands: up, down, status, doctor, env, story, cost."""

import shlex
from typing import Annotated

import typer

from roost.doors.cli import render
from roost.doors.cli.context import emit, err, errors, installation, out, progress

JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]


def up(
    ctx: typer.Context,
    market: Annotated[
        str, typer.Option(help="Play a recorded market: DIR or DIR:DATASET; `off` ends it.")
    ] = "",
    market_speed: Annotated[
        float, typer.Option(help="How many recorded seconds pass in one.")
    ] = 1.0,
    json: JsonOption = False,
) -> None:
    """Start Roost on this machine (safe to repeat: what runs is adopted).

    With --market its instances live in a recorded spot market: a pool that was down then refuses
    launches, and one that goes down takes its instances after their notice. It is read at the start of
    control: `roost down` first.
    """
    with errors():
        if market:
            name = installation(ctx).play_market(market, market_speed)
            err.print(f"market: {name or 'none is played'}", highlight=False)
        with progress("starting", quiet=json) as say:
            addresses = installation(ctx).up(say)
        if json:
            emit(addresses)
            return
        out.print(f"Roost is up at [bold]{addresses['public_url']}[/]")
        out.print("next: `roost notebook start`, `roost status`")


def down(
    ctx: typer.Context,
    keep_hosts: Annotated[bool, typer.Option(help="Leave local hosts running.")] = False,
    json: JsonOption = False,
) -> None:
    """Stop Roost and its local hosts. Sessions come back from their checkpoints at the next `up`."""
    with errors():
        with progress("stopping", quiet=json) as say:
            stopped = installation(ctx).down(say, keep_hosts=keep_hosts)
        if json:
            emit({"stopped": stopped})
        else:
            out.print(f"stopped {', '.join(stopped)}" if stopped else "nothing was running")


def status(ctx: typer.Context, json: JsonOption = False) -> None:
    """What runs: sessions, hosts, what an hour costs now."""
    with errors():
        client = installation(ctx).client()
        view = client.status()
        if json:
            emit(view)
            return
        out.print(f"Roost {view.version} at {view.public_url}, state in {view.state_dir}")
        out.print(f"now ${view.usd_hour:.4f} an hour; up for {view.uptime_s:.0f} s")
        sessions = [s for s in client.notebooks() if s.state != "stopped"]
        if sessions:
            out.print(render.notebooks(sessions))
        hosts = client.hosts()
        if hosts:
            out.print(render.hosts(hosts))
        if not sessions:
            out.print("no notebooks; `roost notebook start` starts one")


def doctor(ctx: typer.Context, json: JsonOption = False) -> None:
    """Look for what could be wrong, and say what to do."""
    with errors():
        checks = installation(ctx).doctor()
        failed = [c for c in checks if not c.ok]
        if json:
            emit([{"name": c.name, "ok": c.ok, "detail": c.detail, "hint": c.hint} for c in checks])
        else:
            for check in checks:
                mark = "[green]✓[/]" if check.ok else "[red]✗[/]"
                out.print(f"{mark} {check.name}: {check.detail}", highlight=False)
                if not check.ok and check.hint:
                    out.print(f"  [dim]→ {check.hint}[/]", highlight=False)
        if failed:
            raise typer.Exit(1)


def env(ctx: typer.Context, json: JsonOption = False) -> None:
    """Print what a shell needs: eval "$(roost env)"."""
    with errors():
        found = installation(ctx).env()
        if json:
            emit(found)
            return
        for name, value in found.items():
            print(f"export {name}={shlex.quote(value)}")


def story(
    ctx: typer.Context,
    object_id: Annotated[str, typer.Argument(help="A notebook (id or name), host or claim.")],
    json: JsonOption = False,
) -> None:
    """Tell an object's life: events, decisions and their reasons."""
    with errors():
        lines = installation(ctx).client().story(object_id)
        if json:
            emit(lines)
        else:
            out.print(render.story(lines))


def cost(ctx: typer.Context, json: JsonOption = False) -> None:
    """The bill by the second, and what the same seconds would have cost on demand."""
    with errors():
        view = installation(ctx).client().cost()
        if json:
            emit(view)
            return
        out.print(render.cost(view))
        out.print(render.saving(view))
        for difference in view.differences:
            err.print(f"[yellow]the provider's ledger differs: {difference}[/]")
