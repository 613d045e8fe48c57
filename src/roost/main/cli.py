"""The ``roost`` command. Loads a group of commands only when it is used: the one permitted late import."""

import importlib
import sys
from collections.abc import Mapping
from typing import Any, ClassVar

import typer
from typer.core import TyperCommand, TyperGroup
from typer.main import get_command, get_command_from_info
from typer.models import CommandInfo

Table = Mapping[str, tuple[Any, str]]
"""Name -> (``module:name`` of a function or a Typer app, or the table of a group; one line of help)."""

MARKET: Table = {
    "rank": ("roost.doors.cli.market:rank", "Rank what can be bought for a workload."),
    "why": ("roost.doors.cli.market:why", "Say why an offer ranks where it does."),
    "backtest": (
        "roost.sim.backtest.cli:backtest",
        "Replay policies over recorded markets.",
    ),
    "train": ("roost.doors.cli.market_model:train", "Fit the hazard model to recordings."),
    "evaluate": ("roost.doors.cli.market_model:evaluate", "Judge the hazard model on recordings."),
    "compare": ("roost.doors.cli.market:compare", "Offers side by side, term by term."),
    "watch": ("roost.doors.cli.market_watch:watch", "Rank again as facts come in."),
    "purchase": ("roost.doors.cli.market_purchase:purchase", "The cheapest mix over months."),
    "picture": ("roost.doors.cli.market_picture:picture", "Price against survival, drawn."),
    "update": ("roost.doors.cli.market_data:update", "Read the clouds' prices and bands now."),
    "record": ("roost.doors.cli.market_data:record", "Keep what cannot be fetched later."),
    "import": ("roost.doors.cli.market_data:import_file", "Bring files into the history."),
    "history": ("roost.doors.cli.market_history:history", "What was told of a pool, by time."),
}
"""The commands of ``roost market``: one line each, so that none pays for the libraries of another."""

GROUPS: Table = {
    "notebook": ("roost.doors.cli.notebook:app", "Notebook sessions that outlive their machine."),
    "job": ("roost.doors.cli.job:app", "Scripts that outlive their machine."),
    "service": (
        "roost.doors.cli.service:app",
        "Replicas behind one address, scaled on two levels.",
    ),
    "group": ("roost.doors.cli.group:app", "Hosts kept between min and max."),
    "host": ("roost.doors.cli.host:app", "The machines sessions run on."),
    "market": (MARKET, "Know every offer and which is best."),
    "gateway": ("roost.doors.cli.gateway:app", "The load balancer on its own, from one file."),
    "kernel": ("roost.doors.cli.kernel:app", "The kernel for your own JupyterLab or VS Code."),
}
COMMANDS: Table = {
    "apply": ("roost.doors.cli.apply:apply", "Make or change services as a file says."),
    "up": ("roost.doors.cli.system:up", "Start Roost on this machine."),
    "down": ("roost.doors.cli.system:down", "Stop Roost and its local hosts."),
    "status": ("roost.doors.cli.system:status", "What runs, and what an hour costs now."),
    "doctor": (
        "roost.doors.cli.system:doctor",
        "Look for what could be wrong, and say what to do.",
    ),
    "top": ("roost.doors.cli.top:top", "Services and hosts now: use, and what idles."),
    "story": ("roost.doors.cli.system:story", "Tell an object's life with its reasons."),
    "cost": ("roost.doors.cli.system:cost", "The bill by the second."),
    "env": ("roost.doors.cli.system:env", "What a shell needs to talk to Roost."),
    "capture": ("roost.doors.cli.capture:capture", "Tell a kernel of a notice: all is kept."),
    "simulate": ("roost.main.simulate:app", "Run the real controllers against faults."),
    "demo": ("roost.main.demo:demo", "The main job, end to end, on this machine."),
}
GATEWAY = "gateway"


def load(target: str) -> Any:
    """The object of ``module:name``."""
    module, name = target.split(":")
    return getattr(importlib.import_module(module), name)


class LazyGroup(TyperGroup):
    """Knows the names and one-line helps of its table; imports a command when it is called."""

    table: ClassVar[Table] = {**COMMANDS, **GROUPS}
    listing = False

    def list_commands(self, ctx: Any) -> list[str]:
        return list(self.table)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        if cmd_name not in self.table:
            return None
        target, text = self.table[cmd_name]
        if self.listing:
            return TyperCommand(cmd_name, callback=lambda: None, help=text)
        found = group(target, text) if isinstance(target, Mapping) else load(target)
        if isinstance(found, typer.Typer):
            command = get_command(found)
            command.name = cmd_name
            return command
        info = CommandInfo(name=cmd_name, callback=found, cls=TyperCommand)
        return get_command_from_info(info, pretty_exceptions_short=True, rich_markup_mode=None)

    def format_help(self, ctx: Any, formatter: Any) -> None:
        self.listing = True
        super().format_help(ctx, formatter)


def group(table: Table, text: str) -> typer.Typer:
    """A group whose commands are imported one by one."""
    made = typer.Typer(
        cls=type("Group", (LazyGroup,), {"table": table}),
        no_args_is_help=True,
        add_completion=False,
        help=text,
    )
    made.callback()(lambda: None)
    return made


class Later:
    """The local installation, made when a command first asks it for something."""

    def __init__(self, state: str | None) -> None:
        self._state = state
        self._made: Any = None

    def market_folder(self) -> Any:
        """Where the facts of the market lie."""
        return load("roost.main.settings:settings")(self._state).market

    def market_data(self) -> Any:
        """The sources of the market."""
        return load("roost.main.market_data:MarketData")(self._state)

    def play_market(self, market: str, speed: float) -> str:
        """Choose the recorded market that local instances live in."""
        chosen: str = load("roost.main.market_play:choose")(self._state, market, speed)
        return chosen

    def __getattr__(self, name: str) -> Any:
        if self._made is None:
            self._made = load("roost.main.local:LocalInstallation")(self._state)
        return getattr(self._made, name)


app = typer.Typer(
    cls=LazyGroup,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Roost: a spot-native compute platform.",
)


@app.callback()
def root(
    ctx: typer.Context,
    state: str = typer.Option("", help="State directory (default: ROOST_STATE_DIR)."),
) -> None:
    """Roost: notebooks and services on spot capacity, safe for work that matters."""
    if ctx.invoked_subcommand == GATEWAY:
        ctx.obj = load("roost.main.gateway:Program")()
    else:
        ctx.obj = Later(state or None)


def run() -> None:
    """Entry point of the ``roost`` command."""
    # A closed pipe (`roost story x | head`) is not an error.
    try:
        app()
    except BrokenPipeError:
        sys.stderr.close()
        raise SystemExit(0) from None
