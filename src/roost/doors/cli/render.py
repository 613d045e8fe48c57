"""Tables of the views, shared by the commands and the demo."""

from collections.abc import Sequence
from datetime import UTC, datetime

from rich.console import Group
from rich.table import Table
from rich.text import Text

from roost.client.model import (
    CostView,
    DeadlineView,
    HostView,
    JobView,
    MoveView,
    SessionView,
    StoryView,
)
from roost.doors.cli.context import age, clock

STATE_STYLE = {
    "running": "green",
    "ready": "green",
    "moving": "yellow",
    "draining": "yellow",
    "starting": "cyan",
    "requested": "cyan",
    "booting": "cyan",
    "lost": "red",
    "failed": "red",
    "finished": "green",
    "leaving": "yellow",
    "accepted": "cyan",
    "stopped": "dim",
    "terminated": "dim",
}


def _state(state: str, more: str = "") -> Text:
    text = f"{state} {more}".strip()
    return Text(text, style=STATE_STYLE.get(state, ""))


def notebooks(views: Sequence[SessionView]) -> Table:
    """Sessions, one row each."""
    table = Table(title="Notebooks", title_justify="left")
    for name in ("id", "name", "state", "epoch", "host", "offer", "standby", "checkpoint", "moves"):
        table.add_column(name, overflow="fold")
    for view in views:
        standby = view.standby.offer.key if view.standby else "-"
        if view.standby_warm:
            standby += " (warm)"
        saved = "-"
        if view.checkpoint_at_s is not None:
            saved = f"#{view.checkpoint_number}, {age(view.checkpoint_at_s)} ago"
        offer = view.offer.key if view.offer else "-"
        row: list[str | Text] = [
            view.id,
            view.name,
            _state(view.state, view.phase),
            str(view.epoch),
        ]
        table.add_row(*row, view.host_id or "-", offer, standby, saved, str(len(view.moves)))
    return table


def hosts(views: Sequence[HostView]) -> Table:
    """Hosts, one row each."""
    table = Table(title="Hosts", title_justify="left")
    for name in ("id", "state", "role", "offer", "$/h", "on demand", "cpu", "memory", "tasks"):
        table.add_column(name, overflow="fold")
    for view in views:
        more = ""
        if view.notice:
            more = f"({view.notice})"
        elif not view.connected and view.state == "ready":
            more = "(not connected)"
        elif view.detail and not view.ready:
            more = f"({view.detail})"
        memory = f"{view.memory_used_mib:.0f} MiB" if view.memory_total_mib else "-"
        table.add_row(
            view.id,
            _state(view.state, more),
            view.role,
            view.offer.key,
            f"{view.offer.price_usd_hour:.4f}",
            f"{view.offer.on_demand_usd_hour:.4f}",
            f"{view.cpu_percent:.0f}%" if view.connected else "-",
            memory,
            "\n".join(view.tasks) or "-",
        )
    return table


def jobs(views: Sequence[JobView]) -> Table:
    """Jobs, one row each."""
    table = Table(title="Jobs", title_justify="left")
    for name in ("id", "name", "state", "run", "exit", "command", "offer", "saved", "age"):
        table.add_column(name, overflow="fold")
    for view in views:
        table.add_row(
            view.id,
            view.name,
            _state(view.state),
            str(view.epoch),
            "-" if view.exit_code is None else str(view.exit_code),
            " ".join(view.argv)[:80],
            view.offer.key if view.offer else "-",
            f"{age(view.saved_at_s)} ago" if view.saved_at_s is not None else "-",
            age(view.created_s, view.ended_s),
        )
    return table


def runs(view: JobView) -> Table:
    """The runs of a job that have ended, and why each did."""
    table = Table(title="Runs", title_justify="left")
    for name in ("run", "host", "offer", "seconds", "exit", "ended because"):
        table.add_column(name, overflow="fold")
    for run in view.runs:
        table.add_row(
            str(run.epoch),
            run.host_id,
            run.offer,
            f"{run.ended_s - run.started_s:.1f}",
            "-" if run.exit_code is None else str(run.exit_code),
            run.reason,
        )
    return table


PLANS = {"wait": "waits", "spot": "on spot", "on_demand": "on demand"}


def deadline(view: DeadlineView, *, ended: bool) -> Text:
    """How a job stands to its deadline, what was decided for it, and why."""
    late = "to spare" if view.spare_s >= 0 else "too little"
    spare = f"{abs(view.spare_s) / 3600:.1f} h {late}"
    words = f"deadline {_moment(view.at_s)}: {view.left_s / 3600:.1f} h of work left, {spare}"
    if ended:
        return Text(words, style="dim")
    if view.where:
        words += f"; {PLANS[view.where]}: {view.why}"
    if view.on_demand_at_s is not None:
        words += f"; on demand at {_moment(view.on_demand_at_s)} at the latest"
    return Text(words)


def _moment(at_s: float) -> str:
    return datetime.fromtimestamp(at_s, UTC).astimezone().strftime("%Y-%m-%d %H:%M")


def moves(views: Sequence[MoveView]) -> Group:
    """Moves of a session, and below them each variable that was rebuilt or refused, and why."""
    table = Table(title="Moves", title_justify="left")
    table.add_column("epoch", justify="right")
    table.add_column("from → to", overflow="fold")
    for name in ("frozen", "moved", "kept", "rebuilt", "refused"):
        table.add_column(name, justify="right", no_wrap=True)
    details: list[Text] = []
    for view in views:
        table.add_row(
            str(view.epoch),
            f"{view.from_offer}\n{view.to_offer}",
            f"{view.frozen_s:.2f} s",
            f"{view.bytes_moved / 1e6:.2f} MB",
            str(len(view.kept)),
            str(len(view.rebuilt)),
            str(len(view.refused)),
        )
        rerun = "; what ran after the last checkpoint is run again" if view.rerun else ""
        details.append(Text(f"epoch {view.epoch}: {view.reason}{rerun}", style="dim"))
        details += [Text(f"  rebuilt {p.name}: {p.reason}", style="cyan") for p in view.rebuilt]
        details += [Text(f"  refused {p.name}: {p.reason}", style="red") for p in view.refused]
    return Group(table, *details)


def story(lines: Sequence[StoryView]) -> Table:
    """A story, one line an event."""
    table = Table(title="Story", title_justify="left", show_lines=False)
    for name in ("time", "object", "event", "reason"):
        table.add_column(name, overflow="fold")
    for line in lines:
        table.add_row(clock(line.at_s), line.object_id, line.event, line.reason)
    return table


def cost(view: CostView) -> Table:
    """The bill: a line an instance, the sum, and what on demand would have cost."""
    table = Table(title="Cost, by the second", title_justify="left", show_footer=True)
    table.add_column("host", "total")
    table.add_column("role")
    table.add_column("offer", overflow="fold")
    table.add_column("seconds", f"{sum(x.seconds for x in view.lines)}", justify="right")
    table.add_column("$/h", justify="right")
    table.add_column("USD", f"{view.usd:.6f}", justify="right")
    table.add_column("on demand", f"{view.on_demand_usd:.6f}", justify="right")
    for line in view.lines:
        table.add_row(
            line.host_id + (" ●" if line.running else ""),
            line.role,
            line.offer,
            str(line.seconds),
            f"{line.price_usd_hour:.4f}",
            f"{line.usd:.6f}",
            f"{line.on_demand_usd:.6f}",
        )
    return table


def saving(view: CostView) -> str:
    """One sentence on what was saved."""
    if view.on_demand_usd <= 0:
        return "nothing was billed yet"
    share = 100 * view.saved_usd / view.on_demand_usd
    return (
        f"${view.usd:.6f} on spot; the same seconds on demand ${view.on_demand_usd:.6f}: "
        f"{share:.0f} % saved"
    )
