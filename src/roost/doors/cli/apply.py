"""``roost apply``: services as a file says, made or changed where they differ."""

import tomllib
from pathlib import Path
from typing import Annotated, Any

import msgspec
import typer
import yaml

from roost.client.apply import Found, services_of
from roost.client.services import AppliedView, ServiceCalls
from roost.doors.cli.context import emit, err, errors, installation, out, progress
from roost.doors.cli.service import services_table, settled, until
from roost.ports.errors import Invalid

LARGEST_FILE = 1 << 20


def apply(
    ctx: typer.Context,
    file: Annotated[Path, typer.Option("--file", "-f", help="YAML (compose too) or TOML.")],
    wait: Annotated[float, typer.Option(help="Seconds to wait until all serve; 0 = not.")] = 0.0,
    json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Make the services of a file, or change them to what it says; what is the same stays untouched."""
    with errors():
        found = services_of(read(file))
        services = ServiceCalls(installation(ctx).client())
        done = [_apply(services, one, file.parent, quiet=json) for one in found]
        if wait > 0:
            with progress("waiting for the services", quiet=json):
                until(lambda: all(settled(services.get(d.service.id)) for d in done), wait)
            done = [AppliedView(done=d.done, service=services.get(d.service.id)) for d in done]
        if json:
            emit(done)
        else:
            for one in done:
                out.print(f"{one.service.name}: {one.done}")
            out.print(services_table([one.service for one in done]))
    if wait > 0 and not all(settled(one.service) for one in done):
        raise typer.Exit(1)


def _apply(services: ServiceCalls, one: Found, base: Path, *, quiet: bool) -> AppliedView:
    body = one.body
    if one.ignored and not quiet:
        err.print(f"[dim]{one.name}: {', '.join(one.ignored)} mean nothing here[/]")
    if one.files:
        folder = (base / one.files).resolve()
        if not folder.is_dir():
            raise Invalid(f"services.{one.name}.files: there is no folder {folder}")
        body = msgspec.structs.replace(body, files=services.send(folder).entries)
    return services.apply(one.name, body)


def read(file: Path) -> Any:
    """The decoded file. ``Invalid`` when it is none."""
    try:
        if file.stat().st_size > LARGEST_FILE:
            raise Invalid(f"{file} is over {LARGEST_FILE} bytes")
        text = file.read_text()
    except OSError as error:
        raise Invalid(f"{file} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise Invalid(f"{file} is no text") from error
    try:
        return tomllib.loads(text) if file.suffix == ".toml" else yaml.safe_load(text)
    except (tomllib.TOMLDecodeError, yaml.YAMLError) as error:
        raise Invalid(f"{file} is not understood: {error}") from error
