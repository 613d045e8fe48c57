"""``roost kernel``: use Roost from a JupyterLab or VS Code of one's own."""

from typing import Annotated

import typer

from roost.doors.cli.context import emit, errors, installation, out

app = typer.Typer(help="The kernel for your own JupyterLab or VS Code.", no_args_is_help=True)


@app.command()
def install(
    ctx: typer.Context,
    prefix: Annotated[str | None, typer.Option(help="Install below this prefix.")] = None,
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Install the kernelspec "Python 3 (Roost)" for this user (or below --prefix)."""
    with errors():
        folder = installation(ctx).install_kernel(user=prefix is None, prefix=prefix)
        if json:
            emit({"folder": folder})
        else:
            out.print(f'"Python 3 (Roost)" is in {folder}; pick it in JupyterLab or VS Code')


@app.callback()
def group() -> None:
    """The kernel for your own JupyterLab or VS Code."""
