"""``roost notebook``: start, open, list, show, move and stop notebook sessions."""

import time
import webbrowser
from typing import Annotated

import typer

from roost.client.api import RoostClient, newest
from roost.client.model import SessionView, StartNotebook
from roost.doors.cli import render
from roost.doors.cli.context import emit, errors, installation, out, progress
from roost.ports.errors import Gone, Invalid, Retry

app = typer.Typer(help="Notebook sessions that outlive their machine.", no_args_is_help=True)

JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]
NameArgument = Annotated[str, typer.Argument(help="Id or name; the newest one if left out.")]


@app.command()
def start(
    ctx: typer.Context,
    name: Annotated[str, typer.Argument(help="A name to find it by.")] = "notebook",
    vcpus: Annotated[float, typer.Option(help="At least this many vCPUs.")] = 2,
    memory: Annotated[float, typer.Option(help="At least this much memory, GiB.")] = 8,
    cloud: Annotated[list[str] | None, typer.Option(help="aws, azure, gcp; repeatable.")] = None,
    region: Annotated[list[str] | None, typer.Option(help="Region; repeatable.")] = None,
    type_: Annotated[list[str] | None, typer.Option("--type", help="Instance type.")] = None,
    option: Annotated[list[str] | None, typer.Option(help="spot, on_demand.")] = None,
    max_price: Annotated[float | None, typer.Option(help="The most to pay, USD per hour.")] = None,
    near: Annotated[str, typer.Option(help="A city; closer regions rank higher.")] = "",
    move_to: Annotated[
        str, typer.Option(help="How far moves go: pool, region, provider.")
    ] = "pool",
    start_cloud: Annotated[list[str] | None, typer.Option(help="Cloud of the first host.")] = None,
    kernel: Annotated[
        str,
        typer.Option(help="Another language, e.g. bash: it moves with its files and begins anew."),
    ] = "",
    standby: Annotated[bool, typer.Option(help="Keep a warm host to move to.")] = True,
    stay: Annotated[
        bool, typer.Option(help="Move only when it must, never because another place is better.")
    ] = False,
    wait: Annotated[bool, typer.Option(help="Wait until it runs.")] = True,
    json: JsonOption = False,
) -> None:
    """Start a session on the best offer and print its stable address."""
    body = StartNotebook(
        name=name,
        vcpus=vcpus,
        memory_gib=memory,
        clouds=tuple(cloud or ()),
        regions=tuple(region or ()),
        instance_types=tuple(type_ or ()),
        purchase_options=tuple(option or ("spot",)),
        max_usd_hour=max_price,
        near=near,
        spread=move_to,
        kernel=kernel,
        start_clouds=tuple(start_cloud or ()),
        standby=standby,
        stay=stay,
    )
    with errors():
        client = installation(ctx).client()
        view = client.start_notebook(body)
        if wait:
            view = wait_running(client, view.id, quiet=json)
        if json:
            emit(view)
            return
        where = view.offer.key if view.offer else "-"
        out.print(f"[green]{view.name}[/] ({view.id}) is {view.state} on {where}")
        out.print(f"JupyterLab: [link={view.url}]{view.url}[/link]", soft_wrap=True)


def wait_running(
    client: RoostClient, session_id: str, *, quiet: bool = False, timeout_s: float = 300.0
) -> SessionView:
    """Wait until a session runs, telling what it waits for. ``Retry`` when it takes too long."""
    deadline_s = time.monotonic() + timeout_s
    with progress("asking for a host", quiet=quiet) as say:
        while time.monotonic() < deadline_s:
            view = client.notebook(session_id)
            if view.state in ("running", "stopped"):
                return view
            where = f" on {view.offer.key}" if view.offer else ""
            say(view.message or f"{view.state} {view.phase}{where}")
            time.sleep(0.1)
    raise Retry(f"{session_id} does not run yet", hint=f"`roost story {session_id}` tells why")


def chosen(client: RoostClient, name: str) -> SessionView:
    """The session of a name or id, or the newest. ``Gone`` when there is none."""
    if name:
        return client.notebook(name)
    view = newest(client.notebooks())
    if view is None:
        raise Gone("there is no notebook", hint="`roost notebook start` starts one")
    return view


@app.command("open")
def open_(
    ctx: typer.Context,
    name: NameArgument = "",
    browser: Annotated[bool, typer.Option(help="Open a browser.")] = True,
) -> None:
    """Open JupyterLab at the session's stable address."""
    with errors():
        view = chosen(installation(ctx).client(), name)
        if not view.url:
            raise Invalid(
                f"{view.name} was started by another Jupyter and has no page of its own",
                hint="open it there, or start one with `roost notebook start`",
            )
        out.print(view.url, soft_wrap=True, highlight=False)
        if browser:
            webbrowser.open(view.url)


@app.command("list")
def list_(
    ctx: typer.Context,
    all_: Annotated[bool, typer.Option("--all", help="Stopped ones too.")] = False,
    json: JsonOption = False,
) -> None:
    """List sessions: where they are, their standby host, their last checkpoint."""
    with errors():
        views = installation(ctx).client().notebooks()
        shown = [v for v in views if all_ or v.state != "stopped"]
        if json:
            emit(shown)
        elif shown:
            out.print(render.notebooks(shown))
        else:
            out.print("no notebooks; `roost notebook start` starts one")


@app.command()
def show(ctx: typer.Context, name: NameArgument = "", json: JsonOption = False) -> None:
    """Show a session: its moves, and what was kept, rebuilt or refused and why."""
    with errors():
        view = chosen(installation(ctx).client(), name)
        if json:
            emit(view)
            return
        out.print(render.notebooks([view]))
        out.print(render.moves(view.moves))
        out.print(view.url, soft_wrap=True, highlight=False)
        if view.message:
            out.print(f"[yellow]{view.message}[/]")


@app.command()
def move(
    ctx: typer.Context,
    name: NameArgument = "",
    wait: Annotated[bool, typer.Option(help="Wait until it runs again.")] = True,
    json: JsonOption = False,
) -> None:
    """Move a session to another offer now; variables, files and the address stay."""
    with errors():
        client = installation(ctx).client()
        before = chosen(client, name)
        view = client.move_notebook(before.id, "asked by a person")
        if wait:
            view = wait_moved(client, before, quiet=json)
        if json:
            emit(view)
        elif wait:
            out.print(render.moves(view.moves[-1:]))
        else:
            out.print(f"{view.name} moves; `roost notebook show {view.id}`")


def wait_moved(
    client: RoostClient, before: SessionView, *, quiet: bool = False, timeout_s: float = 300.0
) -> SessionView:
    """Wait until a session runs at a higher epoch than in ``before``."""
    deadline_s = time.monotonic() + timeout_s
    with progress("preparing", quiet=quiet) as say:
        while time.monotonic() < deadline_s:
            view = client.notebook(before.id)
            if view.state == "running" and view.epoch > before.epoch:
                return view
            say(view.message or f"{view.state} {view.phase}")
            time.sleep(0.05)
    raise Retry(f"{before.name} has not moved yet", hint=f"`roost story {before.id}` tells why")


@app.command()
def stop(ctx: typer.Context, name: NameArgument = "", json: JsonOption = False) -> None:
    """End a session: its kernel, its hosts, its address."""
    with errors():
        client = installation(ctx).client()
        view = client.stop_notebook(chosen(client, name).id)
        deadline_s = time.monotonic() + 60
        with progress("stopping", quiet=json):
            while view.state != "stopped" and time.monotonic() < deadline_s:
                time.sleep(0.1)
                view = client.notebook(view.id)
        if json:
            emit(view)
        else:
            out.print(f"{view.name} is {view.state}")
