"""``roost job``: run scripts as jobs; list, show, follow, fetch and stop them."""

import sys
import time
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Annotated

import typer

from roost.client.api import RoostClient
from roost.client.jobs import fetch as fetch_files
from roost.client.jobs import submit
from roost.client.model import JobView, StartJob
from roost.doors.cli import render
from roost.doors.cli.context import emit, err, errors, installation, out, progress
from roost.kit.ids import SystemIds
from roost.ports.errors import Gone, Invalid, Retry

app = typer.Typer(help="Scripts that outlive their machine.", no_args_is_help=True)

JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]
JobArgument = Annotated[str, typer.Argument(help="Id or name; the newest one if left out.")]
ENDED = ("finished", "failed", "stopped")
INTERPRETERS = {".py": "python", ".sh": "sh"}
FOLLOW_S = 0.3
PATIENCE_S = 60.0
"""How long following goes on while the control plane is away."""


@app.command(context_settings={"allow_interspersed_args": False})
def run(
    ctx: typer.Context,
    script: Annotated[Path, typer.Argument(help="Its folder is the workspace.")],
    arguments: Annotated[list[str] | None, typer.Argument(help="Of the script.")] = None,
    name: Annotated[str, typer.Option(help="To find it by; default: the script's.")] = "",
    vcpus: Annotated[float, typer.Option(help="At least this many vCPUs.")] = 2,
    memory: Annotated[float, typer.Option(help="At least this much memory, GiB.")] = 8,
    clouds: Annotated[str, typer.Option(help="aws,azure,gcp; default any.")] = "",
    region: Annotated[list[str] | None, typer.Option(help="Region; repeatable.")] = None,
    type_: Annotated[list[str] | None, typer.Option("--type", help="Instance type.")] = None,
    option: Annotated[list[str] | None, typer.Option(help="spot, on_demand.")] = None,
    max_price: Annotated[float | None, typer.Option(help="The most to pay, USD per hour.")] = None,
    near: Annotated[str, typer.Option(help="A city; closer regions rank higher.")] = "",
    move_to: Annotated[
        str, typer.Option(help="How far it moves: pool, region, provider.")
    ] = "pool",
    retries: Annotated[int, typer.Option(help="Runs again after another exit code than 0.")] = 0,
    deadline: Annotated[
        str, typer.Option(help="Shall have ended by: 36h, 90m, or 2026-05-01T18:00. Needs --takes.")
    ] = "",
    takes: Annotated[
        str, typer.Option(help="How long it takes on a host that is never taken away, e.g. 24h.")
    ] = "",
    image: Annotated[str, typer.Option(help="Packages of its hosts.")] = "",
    follow: Annotated[bool, typer.Option(help="Show its output; exit with its exit code.")] = False,
    json: JsonOption = False,
) -> None:
    """Run a script as a job, its folder with it, on the best offer; options come before the script."""
    path = script.resolve()
    with errors():
        if not path.is_file():
            raise Invalid(f"there is no script {script}")
        body = StartJob(
            name=name or path.stem,
            argv=(*command(path), *(arguments or ())),
            vcpus=vcpus,
            memory_gib=memory,
            clouds=tuple(c.strip() for c in clouds.split(",") if c.strip()),
            regions=tuple(region or ()),
            instance_types=tuple(type_ or ()),
            purchase_options=tuple(option or ("spot",)),
            max_usd_hour=max_price,
            near=near,
            spread=move_to,
            retries=retries,
            deadline_s=moment(deadline, time.time()) if deadline else None,
            work_s=duration_s(takes) if takes else 0.0,
            token=SystemIds().secret(),
            image=image,
        )
        client = installation(ctx).client()
        with progress(f"sending {path.parent.name}", quiet=json):
            view, folder = submit(client, path.parent, body)
        for left in folder.left_out[:20]:
            err.print(f"[yellow]{left.path} was not sent: {left.reason}[/]")
        _sent(client, view, follow=follow, json=json)


def _sent(client: RoostClient, view: JobView, *, follow: bool, json: bool) -> None:
    if follow:
        view = show_output(client, view.id, quiet=json)
    if json:
        emit(view)
    elif not follow:
        out.print(f"[green]{view.name}[/] ({view.id}) is {view.state}")
        out.print(f"`roost job logs -f {view.id}` shows its output")
    if follow:
        raise typer.Exit(exit_status(view))


def duration_s(text: str) -> float:
    """Seconds of ``90m``, ``36h``, ``1.5d`` or ``45s``. ``Invalid`` otherwise."""
    number, unit = text.strip()[:-1], text.strip()[-1:]
    try:
        seconds = float(number) * {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86_400.0}[unit]
    except (KeyError, ValueError):
        raise Invalid(f"{text!r} is no duration", hint="for example 90m, 36h or 2d") from None
    if not 0 < seconds < float("inf"):
        raise Invalid(f"{text!r} is no duration", hint="it must be more than nothing")
    return seconds


def moment(text: str, now_s: float) -> float:
    """UTC seconds of a duration from now, or of a date and time (the reader's zone unless it names one)."""
    try:
        return datetime.fromisoformat(text).astimezone().timestamp()
    except ValueError:
        return now_s + duration_s(text)


def command(script: Path) -> tuple[str, ...]:
    """How a script is started, in its own folder."""
    interpreter = INTERPRETERS.get(script.suffix)
    return (interpreter, script.name) if interpreter else (f"./{script.name}",)


def exit_status(view: JobView) -> int:
    """What a shell is told of a job that has ended."""
    if view.state == "finished":
        return 0
    code = view.exit_code or 1
    return code if code > 0 else 128 - code


def chosen(client: RoostClient, name: str) -> JobView:
    """The job of a name or id, or the newest. ``Gone`` when there is none."""
    if name:
        return client.job(name)
    views = client.jobs()
    if not views:
        raise Gone("there is no job", hint="`roost job run SCRIPT` starts one")
    return views[-1]


def output_of(client: RoostClient, job_id: str, *, follow: bool) -> Iterator[bytes]:
    """The job's output from its beginning; with ``follow`` as it comes, until the job has ended."""
    offset, away_s = 0, 0.0
    while True:
        try:
            view = client.job(job_id)
            while content := client.job_output(job_id, offset):
                offset += len(content)
                yield content
        except Retry:  # control is being restarted
            away_s += FOLLOW_S
            if not follow or away_s > PATIENCE_S:
                raise
        else:
            away_s = 0.0
            if not follow or view.state in ENDED:
                return
        time.sleep(FOLLOW_S)


def show_output(client: RoostClient, job_id: str, *, quiet: bool) -> JobView:
    """Write the output as it comes; returns the job once it has ended."""
    for content in output_of(client, job_id, follow=True):
        if quiet:
            continue
        sys.stdout.buffer.write(content)
        sys.stdout.buffer.flush()
    return client.job(job_id)


@app.command("list")
def list_(ctx: typer.Context, json: JsonOption = False) -> None:
    """List jobs, with how each ended."""
    with errors():
        views = installation(ctx).client().jobs()
        if json:
            emit(views)
        elif views:
            out.print(render.jobs(views))
        else:
            out.print("no jobs; `roost job run SCRIPT` starts one")


@app.command()
def show(ctx: typer.Context, job: JobArgument = "", json: JsonOption = False) -> None:
    """Show a job: its runs, why each ended, where it is now."""
    with errors():
        view = chosen(installation(ctx).client(), job)
        if json:
            emit(view)
            return
        out.print(render.jobs([view]))
        if view.runs:
            out.print(render.runs(view))
        if view.deadline is not None:
            out.print(render.deadline(view.deadline, ended=view.state in ENDED))
        if view.message:
            out.print(f"[yellow]{view.message}[/]")


@app.command()
def logs(
    ctx: typer.Context,
    job: JobArgument = "",
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Until the job ends.")] = False,
    json: JsonOption = False,
) -> None:
    """Print what the script has printed, over all its runs."""
    with errors():
        client = installation(ctx).client()
        job_id = chosen(client, job).id
        if json:
            text = b"".join(output_of(client, job_id, follow=follow)).decode(errors="replace")
            emit({"job": job_id, "state": client.job(job_id).state, "output": text})
            return
        for content in output_of(client, job_id, follow=follow):
            sys.stdout.buffer.write(content)
            sys.stdout.buffer.flush()


@app.command()
def fetch(
    ctx: typer.Context,
    job: JobArgument = "",
    to: Annotated[Path, typer.Option(help="Folder to write to; made if needed.")] = Path("results"),
    json: JsonOption = False,
) -> None:
    """Fetch the job's files as they were last saved, during its life and after."""
    with errors():
        client = installation(ctx).client()
        view = chosen(client, job)
        with progress(f"fetching into {to}", quiet=json):
            written = fetch_files(client, view.id, to)
        if json:
            emit({"job": view.id, "folder": str(to), "files": written})
        else:
            out.print(f"{len(written)} files in {to}")


@app.command()
def stop(ctx: typer.Context, job: JobArgument = "", json: JsonOption = False) -> None:
    """End a job; its files and output stay."""
    with errors():
        client = installation(ctx).client()
        view = client.stop_job(chosen(client, job).id)
        deadline_s = time.monotonic() + 90
        with progress("stopping", quiet=json):
            while view.state not in ENDED and time.monotonic() < deadline_s:
                time.sleep(0.1)
                view = client.job(view.id)
        if json:
            emit(view)
        else:
            out.print(f"{view.name} is {view.state}")
