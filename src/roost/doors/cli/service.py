"""``roost service``: containers and processes behind one address, scaled on two levels."""

import shlex
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer
from msgspec import UNSET
from rich.table import Table
from rich.text import Text

from roost.client.services import (
    CreateService,
    ExecuteInService,
    RolloutBody,
    ServiceBody,
    ServiceCalls,
    ServiceView,
)
from roost.client.where import where_of
from roost.doors.cli.context import age, emit, errors, installation, out, progress
from roost.doors.cli.options import Given, optional, takes
from roost.kit.ids import SystemIds
from roost.ports.errors import Gone, Invalid, Retry
from roost.ports.files import TreeEntry
from roost.ports.replicas import Health

app = typer.Typer(help="Replicas behind one address.", no_args_is_help=True)

JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]
NameArgument = Annotated[str, typer.Argument(help="Name or id.")]
WaitOption = Annotated[float, typer.Option(help="Seconds to wait until it is done; 0 = not.")]
POLL_S = 0.2
SHELL = frozenset("$|&;<>()`*?~#\n")
STYLE = {
    "running": "green",
    "ready": "green",
    "starting": "cyan",
    "wanted": "cyan",
    "updating": "cyan",
    "rolling_back": "yellow",
    "draining": "yellow",
    "failing": "red",
    "deleting": "yellow",
}

Command = Annotated[str | None, typer.Option(help="What a replica runs; it listens on $PORT.")]
ImageOption = Annotated[str | None, typer.Option(help="A container image.")]
Env = Annotated[list[str] | None, typer.Option(help="NAME=value; repeatable.")]
Files = Annotated[Path | None, typer.Option(help="A folder it runs in, sent along.")]
Port = Annotated[int | None, typer.Option(help="Where it listens; default: the variable PORT.")]
Cpu = Annotated[float | None, typer.Option(help="vCPUs of a replica (0.5).")]
Memory = Annotated[float | None, typer.Option(help="MiB of a replica (256).")]
Gpus = Annotated[float | None, typer.Option(help="GPUs of a replica.")]
Least = Annotated[int | None, typer.Option("--min", help="Fewest replicas; 0 = it may sleep (1).")]
Most = Annotated[int | None, typer.Option("--max", help="Most replicas (10).")]
Target = Annotated[
    list[str] | None,
    typer.Option(help="Keep a metric near a value: cpu=60, in_flight=4, latency_s=0.2."),
]
Concurrency = Annotated[int | None, typer.Option(help="Requests a replica serves at once.")]
HealthPath = Annotated[str | None, typer.Option("--health", help="Path that answers 2xx.")]
Bound = Annotated[float | None, typer.Option(help="Requests that take longer are late (s).")]
Late = Annotated[float | None, typer.Option(help="At most this share of them (0.01).")]
GroupOption = Annotated[str | None, typer.Option(help="Group of hosts (default).")]
HostNames = Annotated[list[str] | None, typer.Option("--host", help="Host name; repeatable.")]
Drain = Annotated[float | None, typer.Option(help="Seconds for what is in flight (30).")]
Surge = Annotated[int | None, typer.Option(help="More replicas during an update (1).")]
SpreadOption = Annotated[
    list[str] | None,
    typer.Option("--spread", help="zone=0.5: half in a zone at most; host=2; zone=0.5?: a wish."),
]
With = Annotated[
    list[str] | None, typer.Option("--with", help="Beside this service: db, or db@zone.")
]
Apart = Annotated[
    list[str] | None, typer.Option(help="Away from this service: batch, or batch@zone.")
]


OPTIONS = optional(
    command=Command,
    image=ImageOption,
    env=Env,
    files=Files,
    port=Port,
    cpu=Cpu,
    memory=Memory,
    gpus=Gpus,
    least=Least,
    most=Most,
    target=Target,
    concurrency=Concurrency,
    health=HealthPath,
    bound=Bound,
    late=Late,
    group=GroupOption,
    host=HostNames,
    drain=Drain,
    surge=Surge,
    spread=SpreadOption,
    near=With,
    apart=Apart,
)
"""Of a service: what is not given stays unsaid."""


def body_of(
    services: ServiceCalls,
    *,
    command: str | None,
    image: str | None,
    env: list[str] | None,
    port: int | None,
    cpu: float | None,
    memory: float | None,
    gpus: float | None,
    least: int | None,
    most: int | None,
    target: list[str] | None,
    concurrency: int | None,
    health: str | None,
    bound: float | None,
    late: float | None,
    group: str | None,
    host: list[str] | None,
    drain: float | None,
    surge: int | None,
    spread: list[str] | None,
    near: list[str] | None,
    apart: list[str] | None,
    files: Path | None,
) -> ServiceBody:
    """What was given; the rest stays unsaid."""

    def said(value: Any) -> Any:
        return UNSET if value is None else value

    policies = None if not target else tuple(_target(text) for text in target)
    where = where_of(spread or (), near or (), apart or ())
    rollout = RolloutBody(drain_s=said(drain), max_surge=said(surge))
    return ServiceBody(
        command=said(None if command is None else argv_of(command)),
        image=said(image),
        env=said(None if not env else dict(_pair(text, "--env DEBUG=1") for text in env)),
        port=said(port),
        vcpus=said(cpu),
        memory_mib=said(memory),
        gpus=said(gpus),
        min=said(least),
        max=said(most),
        policies=said(policies),
        concurrency=said(concurrency),
        health=said(None if health is None else Health(path=health)),
        bound_s=said(bound),
        late=said(late),
        group=said(group),
        hosts=said(None if not host else tuple(host)),
        rollout=said(None if drain is None and surge is None else rollout),
        where=said(where or None),
        files=said(sent(services, files)),
    )


def argv_of(command: str) -> tuple[str, ...]:
    """The words of a command; one that needs a shell gets one."""
    if SHELL & set(command):
        return ("sh", "-c", command)
    try:
        words = tuple(shlex.split(command))
    except ValueError as error:
        raise Invalid(f"the command is not understood: {error}") from error
    if not words:
        raise Invalid("the command is empty", hint="--command 'python server.py'")
    return words


def _pair(text: str, example: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals or not name:
        raise Invalid(f"{text!r} is not NAME=value", hint=f"for example {example}")
    return name, value


def _target(text: str) -> dict[str, Any]:
    name, value = _pair(text, "--target cpu=60")
    try:
        return {"type": "target", "metric": name, "target": float(value)}
    except ValueError:
        raise Invalid(f"{value!r} is no number", hint="for example --target cpu=60") from None


def calls(ctx: typer.Context) -> ServiceCalls:
    """The calls of services at the installation."""
    return ServiceCalls(installation(ctx).client())


def sent(services: ServiceCalls, folder: Path | None) -> dict[str, TreeEntry] | None:
    """A folder's entries, its content sent."""
    if folder is None:
        return None
    if not folder.is_dir():
        raise Invalid(f"there is no folder {folder}")
    return services.send(folder.resolve()).entries


@app.command()
@takes("given", OPTIONS)
def create(
    ctx: typer.Context,
    name: Annotated[str, typer.Argument(help="A DNS label: its path is /s/<name>/.")],
    given: Given,
    wait: WaitOption = 0.0,
    json: JsonOption = False,
) -> None:
    """Make a service and keep it running; its address holds requests until the first replica is ready."""
    with errors():
        services = calls(ctx)
        body = body_of(services, **given)
        token = SystemIds().secret()
        view = services.create(CreateService(name=name, body=body, token=token))
        _done(services, view, wait, json=json)


@app.command()
@takes("given", OPTIONS)
def update(
    ctx: typer.Context,
    name: NameArgument,
    given: Given,
    wait: WaitOption = 0.0,
    json: JsonOption = False,
) -> None:
    """Change what is given; another command, image or size replaces the replicas one by one."""
    with errors():
        services = calls(ctx)
        body = body_of(services, **given)
        _done(services, services.update(name, body).service, wait, json=json)


@app.command("list")
def list_(ctx: typer.Context, json: JsonOption = False) -> None:
    """List services."""
    with errors():
        views = calls(ctx).list()
        if json:
            emit(views)
        elif views:
            out.print(services_table(views))
        else:
            out.print("no services; `roost service create NAME --command ...` makes one")


@app.command()
def show(ctx: typer.Context, name: NameArgument, json: JsonOption = False) -> None:
    """Show a service: replicas, revisions, why there are so many."""
    with errors():
        view = calls(ctx).get(name)
        if json:
            emit(view)
            return
        out.print(services_table([view]))
        out.print(Text(f"{view.wanted} wanted: {view.reason}", style="dim"))
        if view.replicas:
            out.print(replicas_table(view))
        out.print(revisions_table(view))
        for text in (view.message, *view.warnings):
            if text:
                out.print(f"[yellow]{text}[/]")


@app.command()
def why(ctx: typer.Context, name: NameArgument, json: JsonOption = False) -> None:
    """Say why there are so many replicas, why each stands where it does, and what others wait for."""
    with errors():
        view = calls(ctx).get(name)
        if json:
            emit(view)
            return
        out.print(f"{view.wanted} wanted: {view.reason}")
        for r in view.replicas:
            place = f"on {r.host_id}: {r.where}" if r.host_id else f"waits: {r.detail}"
            out.print(Text.assemble(r.id, " ", _state(r.state), f" {place}"))
            out.print(Text(f"  {r.reason}{'; leaves: ' if r.leaving else ''}{r.leaving}", "dim"))
        for text in (view.message, *view.warnings):
            if text:
                out.print(f"[yellow]{text}[/]")


@app.command()
def scale(
    ctx: typer.Context,
    name: NameArgument,
    replicas: Annotated[str, typer.Argument(help="A number, or `auto`: the policies decide.")],
    wait: WaitOption = 0.0,
    json: JsonOption = False,
) -> None:
    """Say how many replicas there shall be, within min and max."""
    with errors():
        if replicas != "auto" and not replicas.isdigit():
            raise Invalid(f"{replicas!r} is no number of replicas", hint="for example 3, or auto")
        services = calls(ctx)
        view = services.scale(name, None if replicas == "auto" else int(replicas))
        _done(services, view, wait, json=json)


@app.command()
def rollback(
    ctx: typer.Context,
    name: NameArgument,
    revision: Annotated[int | None, typer.Option(help="Default: the last good one.")] = None,
    wait: WaitOption = 0.0,
    json: JsonOption = False,
) -> None:
    """Run an earlier revision again."""
    with errors():
        services = calls(ctx)
        _done(services, services.rollback(name, revision), wait, json=json)


@app.command()
def delete(
    ctx: typer.Context, name: NameArgument, wait: WaitOption = 60.0, json: JsonOption = False
) -> None:
    """Let what is in flight end, then end the service."""
    with errors():
        services = calls(ctx)
        view = services.delete(name)
        with progress(f"ending {name}", quiet=json):
            gone = until(lambda: _gone(services, view.id), wait)
        if json:
            emit({"service": view.id, "deleted": gone})
        else:
            out.print(f"{view.name} is deleted" if gone else f"{view.name} is being deleted")


@app.command()
def logs(
    ctx: typer.Context,
    name: NameArgument,
    replica: Annotated[str, typer.Option(help="Default: the newest one.")] = "",
    tail: Annotated[int, typer.Option(help="Bytes at most.")] = 64 << 10,
    json: JsonOption = False,
) -> None:
    """Print the newest output of a replica."""
    with errors():
        view = calls(ctx).logs(name, replica, tail)
        if json:
            emit(view)
        else:
            sys.stdout.write(view.text)


@app.command("exec", context_settings={"allow_interspersed_args": False})
def execute(
    ctx: typer.Context,
    name: NameArgument,
    command: Annotated[list[str], typer.Argument(help="The command and its arguments.")],
    replica: Annotated[str, typer.Option(help="Default: the newest that is ready.")] = "",
    timeout: Annotated[float, typer.Option(help="Seconds it may take.")] = 25.0,
    json: JsonOption = False,
) -> None:
    """Run a command where a replica runs, in its folder and environment; exits with its exit code."""
    with errors():
        argv = tuple(command[1:] if command[0] == "--" else command)
        body = ExecuteInService(argv=argv, replica=replica, timeout_s=timeout)
        view = calls(ctx).execute(name, body)
        if json:
            emit(view)
        else:
            sys.stdout.write(view.output)
    raise typer.Exit(view.exit_code)


def until(done: Callable[[], bool], wait_s: float) -> bool:
    """Whether it was done within the time; control may be restarted meanwhile."""
    deadline_s = time.monotonic() + wait_s
    while True:
        try:
            if done():
                return True
        except Retry:
            pass
        if time.monotonic() >= deadline_s:
            return False
        time.sleep(POLL_S)


def _gone(services: ServiceCalls, service_id: str) -> bool:
    try:
        return services.get(service_id).state == "deleted"
    except Gone:
        return True


def settled(view: ServiceView) -> bool:
    """Whether all its wanted replicas serve, and nothing else is there."""
    ready = sum(1 for r in view.replicas if r.state == "ready" and r.revision == view.revision)
    return view.state in ("running", "failing") and ready == view.wanted == len(view.replicas)


def _done(services: ServiceCalls, view: ServiceView, wait_s: float, *, json: bool) -> None:
    """Say how it stands, after waiting as asked."""
    if wait_s > 0:
        with progress(f"waiting for {view.name}", quiet=json):

            def look() -> bool:
                nonlocal view
                view = services.get(view.id)
                return settled(view) or view.state == "failing"

            until(look, wait_s)
    if json:
        emit(view)
    else:
        out.print(services_table([view]))
        if view.message:
            out.print(f"[yellow]{view.message}[/]")
    if wait_s > 0 and not settled(view):
        raise typer.Exit(1)


def _state(state: str) -> Text:
    return Text(state, style=STYLE.get(state, ""))


def services_table(views: list[ServiceView]) -> Table:
    """Services, one row each."""
    table = Table(title="Services", title_justify="left")
    for column in ("id", "name", "state", "ready", "wanted", "min..max", "revision", "runs", "url"):
        table.add_column(column, overflow="fold")
    for view in views:
        wanted = f"{view.wanted} (by a person)" if view.person is not None else str(view.wanted)
        table.add_row(
            view.id,
            view.name,
            _state(view.state),
            str(view.ready),
            wanted,
            f"{view.min}..{view.max}",
            str(view.revision),
            " ".join(x for x in (view.image, *view.command) if x)[:60],
            view.url,
        )
    return table


def replicas_table(view: ServiceView) -> Table:
    """Replicas, one row each."""
    table = Table(title="Replicas", title_justify="left")
    for column in ("id", "rev", "state", "host", "cpu", "memory", "in flight", "restarts", "age"):
        table.add_column(column, overflow="fold")
    table.add_column("detail", overflow="fold")
    for r in view.replicas:
        table.add_row(
            r.id,
            str(r.revision),
            _state(r.state),
            r.host_id or "-",
            "-" if r.cpu_percent is None else f"{r.cpu_percent:.0f}%",
            "-" if r.memory_mib is None else f"{r.memory_mib:.0f} MiB",
            f"{r.in_flight}" + (f" +{r.queued}" if r.queued else ""),
            str(r.restarts),
            age(r.created_s),
            r.leaving or r.detail,
        )
    return table


def revisions_table(view: ServiceView) -> Table:
    """Revisions, one row each."""
    table = Table(title="Revisions", title_justify="left")
    for column in ("revision", "outcome", "runs", "age", "why"):
        table.add_column(column, overflow="fold")
    for r in view.revisions:
        number = f"{r.number} ●" if r.number == view.revision else str(r.number)
        table.add_row(number, r.outcome, r.what[:80], age(r.created_s), r.message)
    return table
