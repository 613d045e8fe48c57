"""Commands and queries of groups. Writes intent and wakes the controller; never launches or ends a host."""

from collections.abc import Callable, Mapping, Sequence

import msgspec

from roost.fleet.groups import refresh as group_refresh
from roost.fleet.groups.checks import check
from roost.fleet.groups.model import (
    PREFIX,
    Group,
    GroupHost,
    GroupSpec,
    GroupState,
    HostState,
    HostUse,
    Member,
    MemberState,
    MemberView,
    Refresh,
    RefreshState,
    Template,
    Uses,
)
from roost.fleet.groups.risk import beside
from roost.fleet.groups.snapshot import COMING, GOING
from roost.fleet.model import ClaimView, Odds
from roost.fleet.service import FleetService
from roost.ports.clock import Clock
from roost.ports.errors import Conflict, Gone, Invalid
from roost.ports.store import Store, StoryLine, Table
from roost.ports.values import Offer, PurchaseOption

WRITE_ATTEMPTS = 10
TEN_MINUTES_H = 1.0 / 6.0
M = MemberState
LIVE = tuple(str(state) for state in MemberState if state is not MemberState.ENDED)


async def _unknown(_host_ids: Sequence[str]) -> Mapping[str, HostUse]:
    return {}


async def _steady(offers: Sequence[Offer], _hours: float) -> Sequence[float]:
    return [1.0] * len(offers)


class RefreshWish(msgspec.Struct, frozen=True, kw_only=True):
    """How a refresh goes on; the fields are those of ``Refresh``."""

    min_healthy: float = 0.9
    max_healthy: float = 1.1
    warm_up_s: float = 0.0
    boot_limit_s: float = 300.0
    most_failures: int = 1
    limit_s: float = 3600.0
    auto_rollback: bool = True
    all_hosts: bool = False
    """Those of the present revision too."""


DEFAULTS = RefreshWish()


class Groups:
    """What services and doors call. Names a group by its name or its id (``g-`` and the name)."""

    def __init__(
        self,
        store: Store,
        clock: Clock,
        fleet: FleetService,
        defaults: Callable[[str], GroupSpec],
        wake: Callable[[str], None],
        odds: Odds = _steady,
    ) -> None:
        """``defaults``: the spec of a group that is made because somebody needs it."""
        self._store = store
        self._clock = clock
        self._fleet = fleet
        self._defaults = defaults
        self._wake = wake
        self._odds = odds
        self.uses: Uses = _unknown
        """Who knows what stands on hosts; main plugs in the room that places containers."""
        self.silence: dict[str, float] = {}
        """Member -> since when (monotonic) its host is not connected."""
        self.idle: dict[str, float] = {}
        """Member -> since when (UTC) nothing stands on its host."""
        self.groups = Table(store, "group", Group)
        self.members = Table(store, "member", Member)

    # --- commands ----------------------------------------------------------------------------------

    async def ensure(self, name: str = "default", spec: GroupSpec | None = None) -> Group:
        """The group of this name; made (from ``spec`` or the defaults) when there is none. Safe to repeat."""
        stored = await self.groups.get(group_id(name))
        if stored is not None and stored.value.state is not GroupState.DELETED:
            return stored.value
        try:
            return await self.create(spec or self._defaults(name.removeprefix(PREFIX)))
        except Conflict:
            return await self.get(name)  # somebody else was first

    async def create(self, spec: GroupSpec) -> Group:
        """A new group. ``Invalid`` says what is wrong with the spec, ``Conflict`` when the name is taken."""
        check(spec)
        old = await self.groups.get(group_id(spec.name))
        if old is not None and old.value.state is not GroupState.DELETED:
            raise Conflict(f"there is a group {spec.name}", hint="`roost group set` changes it")
        first = 1 if old is None else old.value.newest + 1
        group = Group(
            id=group_id(spec.name),
            spec=spec,
            desired=spec.min,
            revision=first,
            newest=first,
            settled=Template(revision=first, ask=spec.ask, image=spec.image),
            created_s=self._clock.now_s(),
        )
        reason = f"{spec.min} to {spec.max} hosts of {spec.slots} slots, {spec.allocation}"
        await self._store.commit(
            [self.groups.row(group, old)], [self._line(group.id, "Created", reason)]
        )
        self._wake(group.id)
        return group

    async def change(self, name: str, change: Callable[[GroupSpec], GroupSpec]) -> Group:
        """Change the spec. Hosts that run stay as they are: `refresh` replaces them."""

        def changed(group: Group) -> tuple[Group, str, str]:
            spec = change(group.spec)
            check(spec)
            if spec.name != group.spec.name:
                raise Invalid("a group keeps its name", hint="make another group")
            new = msgspec.structs.replace(group, spec=spec)
            if (spec.ask, spec.image) != (group.spec.ask, group.spec.image):
                _not_refreshing(group)
                newest = group.newest + 1
                new = msgspec.structs.replace(new, revision=newest, newest=newest)
            return new, "Changed", _differences(group.spec, spec) or "nothing"

        return await self._write(name, changed)

    async def set_desired(
        self, name: str, n: int, reason: str, release: Sequence[str] = ()
    ) -> Group:
        """How many hosts the scaler wants; the bounds and a person's number come first.

        ``release``: the hosts it would give up first; what stands there is moved by whoever placed it.
        Each call says the whole list again.
        """
        if n < 0:
            raise Invalid(f"a group cannot have {n} hosts", hint="0 or more")
        await self._mark(name, frozenset(release), reason)
        group = await self.get(name)
        # The reason alone changes with every look at the load: no row is written for that.
        if group.desired == n:
            return group

        def changed(group: Group) -> tuple[Group, str, str]:
            bound = max(group.spec.min, min(n, group.spec.max))
            held = "" if bound == n else f" (held at {bound}: {group.spec.min} to {group.spec.max})"
            new = msgspec.structs.replace(group, desired=n, reason=reason + held)
            return new, f"Desired {n}", reason + held

        return await self._write(name, changed)

    async def pin(self, name: str, n: int | None) -> Group:
        """A person's desired number counts instead of the scaler's; None gives it back. ``Invalid``."""

        def changed(group: Group) -> tuple[Group, str, str]:
            spec = group.spec
            if n is not None and not spec.min <= n <= spec.max:
                raise Invalid(
                    f"{n} is not within {spec.min} and {spec.max}",
                    hint="`roost group set --min/--max` changes the bounds",
                )
            word = "Unpinned" if n is None else f"Pinned {n}"
            return msgspec.structs.replace(group, pinned=n), word, "by a person"

        return await self._write(name, changed)

    async def refresh(self, name: str, wish: RefreshWish = DEFAULTS) -> Group:
        """Replace the hosts of older revisions. ``Invalid``, ``Conflict`` while one runs."""
        if not 0.0 <= wish.min_healthy <= 1.0 or not 1.0 <= wish.max_healthy <= 2.0:
            raise Invalid(
                f"healthy from {wish.min_healthy:.0%} to {wish.max_healthy:.0%}",
                hint="the least is 0 to 100 %, the most 100 to 200 %",
            )

        def changed(group: Group) -> tuple[Group, str, str]:
            _not_refreshing(group)
            revision = group.revision
            newest = group.newest
            if wish.all_hosts:  # even those that are what a new one would be
                revision = newest = newest + 1
            refresh = Refresh(
                state=RefreshState.RUNNING,
                before=group.settled,
                min_healthy=wish.min_healthy,
                max_healthy=wish.max_healthy,
                warm_up_s=wish.warm_up_s,
                boot_limit_s=wish.boot_limit_s,
                most_failures=wish.most_failures,
                limit_s=wish.limit_s,
                auto_rollback=wish.auto_rollback,
                started_s=self._clock.now_s(),
            )
            new = msgspec.structs.replace(group, refresh=refresh, revision=revision, newest=newest)
            words = f"to revision {revision}, {wish.min_healthy:.0%} to {wish.max_healthy:.0%}"
            return new, "Refreshing", words

        return await self._write(name, changed)

    async def end_refresh(self, name: str, *, roll_back: bool = False) -> Group:
        """Stop a refresh where it is, or turn it back. ``Invalid`` when none runs."""

        def changed(group: Group) -> tuple[Group, str, str]:
            now = group.refresh
            if now is None or now.state is not RefreshState.RUNNING:
                raise Invalid(f"no refresh of {name} runs", hint="`roost group show` says more")
            if roll_back:
                update = group_refresh.roll_back(group, self._clock.now_s(), "by a person")
                return update.group, update.event, update.reason
            ended = msgspec.structs.replace(
                now, state=RefreshState.CANCELLED, ended_s=self._clock.now_s(), reason="by a person"
            )
            return msgspec.structs.replace(group, refresh=ended), "RefreshCancelled", "by a person"

        return await self._write(name, changed)

    async def delete(self, name: str, *, force: bool = False) -> Group:
        """The group ends with all its hosts. ``Conflict`` while containers stand there, unless forced."""
        views = await self.views(await self.get(name))
        used = sum(view.use.slots_used for view in views)
        if used and not force:
            raise Conflict(
                f"{used} containers stand on the hosts of {name}",
                hint="delete their services first, or --force",
            )

        def changed(group: Group) -> tuple[Group, str, str]:
            return msgspec.structs.replace(group, state=GroupState.DELETING), "Deleting", "asked to"

        return await self._write(name, changed)

    # --- queries -----------------------------------------------------------------------------------

    async def get(self, name: str) -> Group:
        """One group by name or id. ``Gone`` when there is none."""
        stored = await self.groups.get(group_id(name))
        if stored is None or stored.value.state is GroupState.DELETED:
            raise Gone(f"no group {name}", hint="`roost group list` shows them")
        return stored.value

    async def list_all(self) -> list[Group]:
        """All groups that are not deleted, by name."""
        found = [s.value for s in await self.groups.find()]
        return [group for group in found if group.state is not GroupState.DELETED]

    async def hosts(self, name: str) -> tuple[GroupHost, ...]:
        """The group's hosts by id, without warm ones."""
        group = await self.get(name)
        views = await self.views(group)
        now_s = self._clock.now_s()
        return tuple(host_of(group, view, now_s) for view in views if not view.member.warm)

    async def views(self, group: Group) -> tuple[MemberView, ...]:
        """All members that have not ended, with claim, use and odds, by id."""
        members = [s.value for s in await self.members.find(parent=group.id)]
        claims = await self._fleet.views_of(group.id, [member.id for member in members])
        found = [c.instance for c in claims if c is not None and c.instance is not None]
        uses = await self.uses([instance.id for instance in found])
        offers = [instance.offer for instance in found]
        hour = await self._odds(offers, 1.0)
        soon = await self._odds(offers, TEN_MINUTES_H)
        odds = {i.id: (h, 1.0 - t) for i, h, t in zip(found, hour, soon, strict=True)}
        views = []
        now_s = self._clock.monotonic_s()
        for member, claim in zip(members, claims, strict=True):
            host = claim.instance.id if claim is not None and claim.instance is not None else ""
            survival, risk = odds.get(host, (1.0, 0.0))
            since_s = self.silence.get(member.id)
            views.append(
                MemberView(
                    member=member,
                    claim=claim,
                    use=self._use(member, uses.get(host), claim),
                    survival=survival,
                    risk=risk if member.option is PurchaseOption.SPOT else 0.0,
                    silent_s=0.0 if since_s is None else now_s - since_s,
                )
            )
        pools = {p.value.id: p.value for p in await self._fleet.tables.pools.find()}
        return beside(views, pools, self._clock.now_s())

    def _use(self, member: Member, known: HostUse | None, claim: ClaimView | None) -> HostUse:
        if known is None:  # then what its own agent says
            report = claim.report if claim is not None else None
            found = () if report is None else (*report.tasks, *report.replicas)
            known = HostUse(slots_used=len(found))
        if known.slots_used or known.idle_since_s is not None:
            return known
        return msgspec.structs.replace(known, idle_since_s=self.idle.get(member.id))

    # --- parts -------------------------------------------------------------------------------------

    async def _mark(self, name: str, release: frozenset[str], reason: str) -> None:
        """Note which hosts should go first."""
        group = await self.get(name)
        chosen = set(release)
        for host_id in release:
            instance = await self._fleet.tables.instances.get(host_id)
            if instance is not None:
                chosen.add(instance.value.parent)
        for stored in await self.members.find(parent=group.id):
            member = stored.value
            if (member.id in chosen) == bool(member.release):
                continue
            why = (reason or "named by the scaler") if member.id in chosen else ""
            marked = msgspec.structs.replace(member, release=why)
            await self._store.commit([self.members.row(marked, stored)])
            self._wake(group.id)

    async def _write(self, name: str, change: Callable[[Group], tuple[Group, str, str]]) -> Group:
        for _ in range(WRITE_ATTEMPTS):
            await self.get(name)
            stored = await self.groups.get(group_id(name))
            assert stored is not None, "groups are never deleted from the store"
            new, event, reason = change(stored.value)
            if new == stored.value:
                return new
            line = self._line(new.id, event, reason)
            try:
                await self._store.commit([self.groups.row(new, stored)], [line])
            except Conflict:
                continue
            self._wake(new.id)
            return new
        raise Conflict(f"{name} changes too quickly", hint="try again")

    def _line(self, object_id: str, event: str, reason: str) -> StoryLine:
        return StoryLine(object_id=object_id, at_s=self._clock.now_s(), event=event, reason=reason)


def group_id(name: str) -> str:
    """The id of a group by its name or id."""
    return name if name.startswith(PREFIX) else PREFIX + name


def _not_refreshing(group: Group) -> None:
    if group.refresh is not None and group.refresh.state in group_refresh.ACTIVE:
        raise Conflict(
            f"a refresh of {group.spec.name} runs", hint="`roost group refresh --cancel` ends it"
        )


def _differences(old: GroupSpec, new: GroupSpec) -> str:
    names = [n for n in old.__struct_fields__ if getattr(old, n) != getattr(new, n)]
    return ", ".join(names)


def host_of(group: Group, view: MemberView, now_s: float) -> GroupHost:
    """A member as whoever places containers sees it."""
    member = view.member
    instance = view.claim.instance if view.claim is not None else None
    notice = None if instance is None else instance.notice
    state = HostState.READY
    if view.noticed:
        state = HostState.NOTICED
    elif member.state in GOING:
        state = HostState.DRAINING
    elif member.state in COMING:
        state = HostState.BOOTING
    deadline_s = member.until_s if state is HostState.DRAINING else None
    if state is HostState.NOTICED and notice is not None:
        deadline_s = notice.deadline_s
    return GroupHost(
        host_id=view.host_id,
        offer=None if instance is None else instance.offer,
        state=state,
        slots=group.spec.slots,
        slots_used=view.use.slots_used,
        idle_s=max(0.0, now_s - (view.use.idle_since_s or now_s)),
        connected=view.claim is not None and view.claim.connected,
        created_s=member.created_s,
        ready_s=None if instance is None else instance.ready_s,
        survival=view.survival,
        deadline_s=deadline_s,
        reason=member.reason,
        member_id=member.id,
        protection=member.protection,
        revision=member.revision,
        stand_in=member.stand_in,
        keep=view.use.keep,
    )
