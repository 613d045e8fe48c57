"""``roost group``: hosts kept between min and max: make, change, refresh, protect, take out, end."""

import time
from typing import Annotated, Any

import typer
from rich.table import Table
from rich.text import Text

from roost.client.groups import GroupBody, GroupCalls, GroupHostView, GroupView, RefreshGroup
from roost.doors.cli.context import age, emit, errors, installation, out, progress
from roost.doors.cli.options import Given, optional, takes
from roost.ports.errors import Invalid, Retry

app = typer.Typer(help="Hosts kept between min and max.", no_args_is_help=True)

JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]
NameArgument = Annotated[str, typer.Argument(help="Name or id.")]
HostArgument = Annotated[str, typer.Argument(help="Host id, see `roost group show`.")]
POLL_S = 0.5
ENDED = ("successful", "cancelled", "rolled-back")
STYLE = {
    "serving": "green",
    "warm": "cyan",
    "launching": "cyan",
    "entering": "cyan",
    "draining": "yellow",
    "leaving": "yellow",
    "noticed": "red",
}

Least = Annotated[int | None, typer.Option("--min", help="Fewest hosts (0).")]
Most = Annotated[int | None, typer.Option("--max", help="Most hosts (10).")]
Slots = Annotated[int | None, typer.Option(help="Containers a host takes at most (4).")]
Vcpus = Annotated[float | None, typer.Option(help="At least this many vCPUs a host.")]
Memory = Annotated[float | None, typer.Option(help="At least this much memory a host, GiB.")]
Gpus = Annotated[float | None, typer.Option(help="GPUs of a host.")]
Clouds = Annotated[str | None, typer.Option(help="aws,azure,gcp; default any.")]
Regions = Annotated[list[str] | None, typer.Option("--region", help="Region; repeatable.")]
Types = Annotated[
    list[str] | None,
    typer.Option("--type", help="Instance type; repeatable, in order for `prioritized`."),
]
MaxPrice = Annotated[float | None, typer.Option(help="The most to pay, USD per hour.")]
Near = Annotated[str | None, typer.Option(help="A city; closer regions rank higher.")]
ImageOption = Annotated[str | None, typer.Option(help="Packages of its hosts.")]
Allocation = Annotated[
    str | None,
    typer.Option(help="price-capacity-optimized, lowest-price, capacity-optimized or prioritized."),
]
Base = Annotated[int | None, typer.Option("--on-demand-base", help="So many are on demand (0).")]
Percent = Annotated[
    float | None, typer.Option("--on-demand-percent", help="Of the hosts above the base (0).")
]
Fallback = Annotated[
    float | None, typer.Option(help="Seconds without spot until on demand stands in; 0 = never.")
]
PoolShare = Annotated[
    float | None, typer.Option(help="Most of the hosts in one pool, 0 to 1 (0.5).")
]
RegionShare = Annotated[
    float | None, typer.Option(help="Most of the hosts in one region, 0 to 1 (0.5).")
]
Spares = Annotated[
    int | None,
    typer.Option(help="Most hosts above desired while risk is high (those of the fullest pool)."),
]
WarmSize = Annotated[int | None, typer.Option("--warm", help="Hosts prepared in advance (0).")]
WarmState = Annotated[str | None, typer.Option("--warm-state", help="running or stopped.")]
WarmReuse = Annotated[
    bool | None, typer.Option("--warm-reuse/--no-warm-reuse", help="Unneeded hosts return there.")
]
Tiers = Annotated[
    list[str] | None, typer.Option("--tier", help="Clouds and most hosts, in order: gcp:4, aws.")
]
Hooks = Annotated[
    list[str] | None,
    typer.Option("--hook", help="launch:bake:300:abandon; repeatable; `none` takes all away."),
]
Budgets = Annotated[
    list[str] | None,
    typer.Option("--budget", help="10%, 2:refresh, 0:scale-in:9-17; `none` takes all away."),
]
Drain = Annotated[float | None, typer.Option(help="Seconds for containers to leave (300).")]
ProtectNew = Annotated[
    bool | None, typer.Option("--protect-new/--no-protect-new", help="From scale-in.")
]


Rebalance = Annotated[
    bool | None,
    typer.Option("--rebalance/--no-rebalance", help="Follow a cloud's advice to leave a host."),
]
FIELDS = {
    "least": "min",
    "most": "max",
    "slots": "slots",
    "vcpus": "vcpus",
    "memory": "memory_gib",
    "gpus": "gpus",
    "region": "regions",
    "type_": "instance_types",
    "max_price": "max_usd_hour",
    "near": "near",
    "image": "image",
    "allocation": "allocation",
    "base": "on_demand_base",
    "percent": "on_demand_percent",
    "fallback": "fallback_s",
    "pool_share": "pool_share",
    "region_share": "region_share",
    "spares": "spares",
    "drain": "drain_s",
    "protect_new": "protect_new",
    "rebalance": "rebalance",
}
"""Options and the fields of the body they fill."""
WARM = {"warm": "size", "warm_state": "state", "warm_reuse": "reuse"}


OPTIONS = optional(
    least=Least,
    most=Most,
    slots=Slots,
    vcpus=Vcpus,
    memory=Memory,
    gpus=Gpus,
    clouds=Clouds,
    region=Regions,
    type_=Types,
    max_price=MaxPrice,
    near=Near,
    image=ImageOption,
    allocation=Allocation,
    base=Base,
    percent=Percent,
    fallback=Fallback,
    pool_share=PoolShare,
    region_share=RegionShare,
    spares=Spares,
    warm=WarmSize,
    warm_state=WarmState,
    warm_reuse=WarmReuse,
    tier=Tiers,
    hook=Hooks,
    budget=Budgets,
    drain=Drain,
    protect_new=ProtectNew,
    rebalance=Rebalance,
)
"""Of a group: what is not given stays as it is."""


def body_of(options: Given) -> GroupBody:
    """What was given; the rest stays unsaid."""
    said = {name: value for name, value in options.items() if value not in (None, [], ())}
    fields: dict[str, Any] = {field: said[name] for name, field in FIELDS.items() if name in said}
    fields = {name: tuple(v) if isinstance(v, list) else v for name, v in fields.items()}
    warm = {field: said[name] for name, field in WARM.items() if name in said}
    if warm:
        fields["warm"] = warm
    if "clouds" in said:
        fields["clouds"] = tuple(c.strip() for c in said["clouds"].split(",") if c.strip())
    readers = (("tier", "tiers", tier_of), ("hook", "hooks", hook_of))
    for option, field, reader in (*readers, ("budget", "budgets", budget_of)):
        if option in said:
            fields[field] = tuple(reader(text) for text in said[option] if text != "none")
    return GroupBody(**fields)


def tier_of(text: str) -> dict[str, Any]:
    """``gcp+azure:4``: clouds, and the most hosts there."""
    clouds, _, most = text.partition(":")
    found: dict[str, Any] = {"clouds": clouds.split("+")}
    if most:
        found["most"] = _whole(most, "--tier gcp:4")
    return found


def hook_of(text: str) -> dict[str, Any]:
    """``launch:bake:300:abandon``: when, name, seconds, what no answer means."""
    parts = text.split(":")
    if not 2 <= len(parts) <= 4:
        raise Invalid(f"{text!r} is no hook", hint="for example --hook launch:bake:300:abandon")
    found: dict[str, Any] = {"on": parts[0], "name": parts[1]}
    if len(parts) > 2:
        found["timeout_s"] = _whole(parts[2], "--hook launch:bake:300:abandon")
    if len(parts) > 3:
        found["default"] = parts[3]
    return found


def budget_of(text: str) -> dict[str, Any]:
    """``10%:refresh+scale-in:9-17``: how many, for what, between which hours (UTC)."""
    most, *rest = text.split(":")
    found: dict[str, Any] = {"most": most}
    if rest and rest[0]:
        found["reasons"] = rest[0].split("+")
    if len(rest) > 1:
        first, _, last = rest[1].partition("-")
        found["from_hour"] = _whole(first, "--budget 0:refresh:9-17")
        found["to_hour"] = _whole(last, "--budget 0:refresh:9-17")
    return found


def _whole(text: str, example: str) -> int:
    if not text.isdigit():
        raise Invalid(f"{text!r} is no whole number", hint=f"for example {example}")
    return int(text)


def calls(ctx: typer.Context) -> GroupCalls:
    """The calls of groups at the installation."""
    return GroupCalls(installation(ctx).client())


@app.command()
@takes("given", OPTIONS)
def create(
    ctx: typer.Context,
    name: Annotated[str, typer.Argument(help="Small letters, digits and dashes.")],
    given: Given,
    json: JsonOption = False,
) -> None:
    """Make a group of hosts."""
    with errors():
        body = body_of(given)
        _said(calls(ctx).create(name, body), json=json)


@app.command("set")
@takes("given", OPTIONS)
def set_(
    ctx: typer.Context,
    name: NameArgument,
    given: Given,
    desired: Annotated[
        int | None, typer.Option(help="So many hosts, whatever the scaler says.")
    ] = None,
    auto: Annotated[bool, typer.Option("--auto", help="The scaler decides again.")] = False,
    json: JsonOption = False,
) -> None:
    """Change a group; hosts that run stay as they are until a refresh."""
    with errors():
        if desired is not None and auto:
            raise Invalid("--desired and --auto contradict each other")
        body = body_of(given)
        groups = calls(ctx)
        view = groups.change(name, body)
        if desired is not None or auto:
            view = groups.desired(name, desired)
        _said(view, json=json)


@app.command("list")
def list_(ctx: typer.Context, json: JsonOption = False) -> None:
    """List groups: size, slots, cost, what idles."""
    with errors():
        views = calls(ctx).list_all()
        if json:
            emit(views)
        elif views:
            out.print(table(views))
        else:
            out.print("no groups; `roost group create NAME` or the first service makes one")


@app.command()
def show(ctx: typer.Context, name: NameArgument = "default", json: JsonOption = False) -> None:
    """Show a group: its hosts, what stands on them, how long they last, and why."""
    with errors():
        _said(calls(ctx).show(name), json=json)


@app.command()
def refresh(
    ctx: typer.Context,
    name: NameArgument,
    image: ImageOption = None,
    least: Annotated[float, typer.Option("--min-healthy", help="Share that serves.")] = 0.9,
    most: Annotated[float, typer.Option("--max-healthy", help="Share that exists.")] = 1.1,
    warm_up: Annotated[float, typer.Option(help="Seconds until a new host counts.")] = 0.0,
    boot_limit: Annotated[float, typer.Option(help="Seconds until a new host failed.")] = 300.0,
    failures: Annotated[int, typer.Option(help="More failed hosts turn it back.")] = 1,
    limit: Annotated[float, typer.Option(help="Seconds until it is turned back.")] = 3600.0,
    keep: Annotated[
        bool, typer.Option("--no-rollback", help="Stop at failures, turn nothing back.")
    ] = False,
    all_: Annotated[bool, typer.Option("--all", help="Replace up-to-date hosts too.")] = False,
    cancel: Annotated[bool, typer.Option("--cancel", help="Stop one that runs.")] = False,
    rollback: Annotated[bool, typer.Option("--rollback", help="Turn one that runs back.")] = False,
    wait: Annotated[float, typer.Option(help="Seconds to wait for its end; 0 = not.")] = 0.0,
    json: JsonOption = False,
) -> None:
    """Replace all hosts of older revisions, some at a time, and turn back when too many fail."""
    with errors():
        groups = calls(ctx)
        if cancel or rollback:
            view = groups.end_refresh(name, roll_back=rollback)
        else:
            if image is not None:
                groups.change(name, GroupBody(image=image))
            body = RefreshGroup(
                min_healthy=least,
                max_healthy=most,
                warm_up_s=warm_up,
                boot_limit_s=boot_limit,
                most_failures=failures,
                limit_s=limit,
                auto_rollback=not keep,
                all_hosts=all_,
            )
            view = groups.refresh(name, body)
        if wait:
            view = _followed(groups, view, wait, json=json)
        _said(view, json=json)
        if wait and not cancel and (view.refresh is None or view.refresh.state != "successful"):
            raise typer.Exit(1)


def _followed(groups: GroupCalls, view: GroupView, wait_s: float, *, json: bool) -> GroupView:
    until_s = time.monotonic() + wait_s
    with progress("refreshing", quiet=json) as say:
        while view.refresh is not None and view.refresh.state not in ENDED:
            say(f"{view.refresh.state}: {view.refresh.done} of {view.refresh.of}")
            if time.monotonic() > until_s:
                raise Retry(f"the refresh of {view.name} still runs", hint="it goes on")
            time.sleep(POLL_S)
            view = groups.show(view.id)
    return view


@app.command()
def protect(
    ctx: typer.Context,
    hosts: Annotated[list[str], typer.Argument(help="Host ids.")],
    from_: Annotated[str, typer.Option("--from", help="scale-in, disruption or none.")] = (
        "scale-in"
    ),
    json: JsonOption = False,
) -> None:
    """Protect hosts from scale-in, from any disruption of our own will, or from nothing."""
    with errors():
        groups = calls(ctx)
        view = [groups.protect(host, from_) for host in hosts][-1]
        _said(view, json=json)


@app.command()
def drain(
    ctx: typer.Context,
    host: HostArgument,
    smaller: Annotated[bool, typer.Option("--smaller", help="Do not replace it.")] = False,
    json: JsonOption = False,
) -> None:
    """Take a host out: it is emptied and ends; the group replaces it."""
    with errors():
        _said(calls(ctx).drain(host, smaller=smaller), json=json)


@app.command()
def hook(
    ctx: typer.Context,
    host: HostArgument,
    name: Annotated[str, typer.Argument(help="The hook.")],
    result: Annotated[str, typer.Argument(help="continue, abandon or extend.")] = "continue",
    json: JsonOption = False,
) -> None:
    """Answer a lifecycle hook that waits for a host, or ask for more time."""
    with errors():
        _said(calls(ctx).answer(host, name, result), json=json)


@app.command()
def delete(
    ctx: typer.Context,
    name: NameArgument,
    force: Annotated[bool, typer.Option("--force", help="Though containers stand there.")] = False,
    json: JsonOption = False,
) -> None:
    """End a group with all its hosts."""
    with errors():
        view = calls(ctx).delete(name, force=force)
        if json:
            emit(view)
        else:
            out.print(f"{view.name} is {view.state}; its hosts end")


def _said(view: GroupView, *, json: bool) -> None:
    if json:
        emit(view)
        return
    out.print(table([view]))
    if view.hosts:
        out.print(hosts_table(view.hosts))
    refresh_ = view.refresh
    if refresh_ is not None:
        words = f"{refresh_.done} of {refresh_.of} new, {refresh_.failures} failed"
        out.print(f"refresh {refresh_.state}: {words}; {refresh_.reason}".rstrip("; "))
    for line in (view.reason, view.message):
        if line:
            out.print(f"[dim]{line}[/]", highlight=False)


def table(views: list[GroupView]) -> Table:
    """Groups, one row each."""
    made = Table(title="Groups", title_justify="left")
    for name in ("name", "state", "hosts", "min", "desired", "max", "slots", "$/h", "idle $/h"):
        made.add_column(name, overflow="fold")
    for view in views:
        serving = sum(1 for host in view.hosts if host.state == "serving")
        desired = str(view.desired) + (" (by a person)" if view.pinned is not None else "")
        desired += f" + {view.spares} spare" if view.spares else ""
        made.add_row(
            view.name,
            view.state,
            f"{serving} of {len(view.hosts)}",
            str(view.min),
            desired,
            str(view.max),
            f"{view.slots_used} of {serving * view.slots}",
            f"{view.usd_hour:.4f}",
            f"{view.idle_usd_hour:.4f}",
        )
    return made


def hosts_table(hosts: tuple[GroupHostView, ...]) -> Table:
    """Hosts of a group, one row each."""
    made = Table(title="Hosts", title_justify="left")
    for name in ("id", "state", "offer", "slots", "lasts 1 h", "rev", "age", "why"):
        made.add_column(name, overflow="fold")
    for host in hosts:
        idle = f" (idle {host.idle_s:.0f} s)" if host.idle_s >= 1.0 else ""
        marks = [host.reason, host.keep and f"keep: {host.keep}"]
        marks.append("" if host.protection == "none" else f"protected from {host.protection}")
        marks.append("in the place of spot" if host.stand_in else "")
        marks.append(f"waits for {', '.join(host.hooks)}" if host.hooks else "")
        made.add_row(
            host.host_id or "-",
            Text(host.state, style=STYLE.get(host.state, "")),
            host.offer.key if host.offer else "-",
            f"{host.slots_used}/{host.slots}{idle}",
            f"{host.survival:.1%}",
            str(host.revision),
            age(host.created_s),
            "; ".join(mark for mark in marks if mark),
        )
    return made
