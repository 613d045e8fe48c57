"""The loop of groups, one key per group: read, plan, act. May be cancelled at any await.

A member and its claim are written in one commit, so that no host is launched that no group knows. Fleet's own
loop does the rest for each claim.
"""

from collections.abc import Callable, Sequence

import msgspec

from roost.fleet import group_plan as planning
from roost.fleet import plan as claims
from roost.fleet.group_allocation import allocate
from roost.fleet.group_model import ROLE, Group, GroupState, Member, MemberState, MemberView
from roost.fleet.group_snapshot import (
    Drop,
    Instruction,
    Launch,
    LaunchOrder,
    Pause,
    Put,
    Snapshot,
    Update,
)
from roost.fleet.groups import Groups
from roost.fleet.model import Claim, ClaimState, InstanceState, Rank, RankedOffer
from roost.fleet.service import FleetService
from roost.kit.ids import Ids
from roost.ports.clock import Clock
from roost.ports.errors import Conflict, Invalid
from roost.ports.store import Row, Store, StoryLine
from roost.ports.values import Offer

WATCH_S = 1.0
SLOWEST_S = 5.0
BIG = 200
"""Hosts from which on a quiet group is looked at less often: every change wakes it anyway."""
LAUNCHES = 50
"""Claims written in one round."""


class GroupController:
    """Keeps every group at its size."""

    def __init__(
        self,
        groups: Groups,
        fleet: FleetService,
        store: Store,
        clock: Clock,
        ids: Ids,
        rank: Rank,
        on_change: Callable[[str], None],
    ) -> None:
        """``on_change(group id)``: the group's hosts changed, for whoever places containers there."""
        self._groups = groups
        self._fleet = fleet
        self._store = store
        self._clock = clock
        self._ids = ids
        self._rank = rank
        self._on_change = on_change
        self._shown: dict[str, object] = {}

    async def keys(self) -> list[str]:
        """All groups that need looking after."""
        return [group.id for group in await self._groups.list_all()]

    async def handle(self, group_id: str) -> float | None:
        """One round for a group; returns the seconds until the next look, None when it is deleted."""
        stored = await self._groups.groups.get(group_id)
        if stored is None or stored.value.state is GroupState.DELETED:
            self._shown.pop(group_id, None)
            return None
        group = stored.value
        views = await self._groups.views(group)
        self._listen(views)
        self._tell(group, views)
        now_s = self._clock.now_s()
        snapshot = Snapshot(group=group, members=views, now_s=now_s)
        instructions = planning.plan(snapshot)
        for instruction in instructions:
            await self._run(instruction, snapshot)
        if not instructions:
            await self._say(snapshot)
        return 0.0 if instructions else min(SLOWEST_S, max(WATCH_S, len(views) / BIG))

    def _listen(self, views: Sequence[MemberView]) -> None:
        """Note since when hosts are silent, or idle."""
        now_s = self._clock.monotonic_s()
        for view in views:
            instance = view.claim.instance if view.claim is not None else None
            up = instance is not None and instance.state is InstanceState.READY
            silent = up and view.claim is not None and not view.claim.connected
            if silent and view.member.state is not MemberState.WARM:
                self._groups.silence.setdefault(view.member.id, now_s)
            else:
                self._groups.silence.pop(view.member.id, None)
            if view.member.state is MemberState.SERVING and not view.use.slots_used:
                self._groups.idle.setdefault(view.member.id, self._clock.now_s())
            else:
                self._groups.idle.pop(view.member.id, None)

    def _tell(self, group: Group, views: Sequence[MemberView]) -> None:
        """Wake whoever places containers when there is news of the hosts."""
        shown = tuple((v.host_id, v.member.state, v.ready, v.noticed) for v in views)
        if self._shown.get(group.id) != shown:
            self._shown[group.id] = shown
            self._on_change(group.id)

    async def _say(self, s: Snapshot) -> None:
        """Keep the group's message: why hosts are missing."""
        waiting = [v.claim.claim.message for v in s.members if v.claim is not None]
        message = next((m for m in waiting if m), "")
        if message != s.group.message:
            changed = msgspec.structs.replace(s.group, message=message)
            await self._write(s.group, changed, "Troubled" if message else "", message)

    # --- act ---------------------------------------------------------------------------------------

    async def _run(self, instruction: Instruction, s: Snapshot) -> None:
        match instruction:
            case Put(member=member, event=event):
                await self._put(member, event)
            case Drop(member=member, event=event):
                await self._fleet.release(member.id, member.reason)
                await self._put(member, event)
                self._groups.silence.pop(member.id, None)
                self._groups.idle.pop(member.id, None)
            case Launch(orders=orders, reason=reason):
                await self._launch(s, orders[:LAUNCHES], reason)
            case Update(group=group, event=event, reason=reason):
                await self._write(s.group, group, event, reason)
            case Pause(claim_id=claim_id, paused=paused):
                await self._fleet.pause(claim_id, paused)

    async def _put(self, member: Member, event: str) -> None:
        stored = await self._groups.members.get(member.id)
        if stored is None:
            return
        group_id = member.parent.split("/")[0]
        claim = await self._fleet.tables.claims.get(member.id)
        host = member.id if claim is None else claim.value.instance_id or member.id
        lines = [self._line(group_id, event, f"{host}: {member.reason}")]
        await self._store.commit([self._groups.members.row(member, stored)], lines)

    async def _write(self, old: Group, new: Group, event: str, reason: str) -> None:
        """Write the fields that the plan changed over whatever a person changed meanwhile."""
        stored = await self._groups.groups.get(old.id)
        if stored is None:
            return
        changes = {
            name: getattr(new, name)
            for name in new.__struct_fields__
            if getattr(new, name) != getattr(old, name)
        }
        if any(getattr(stored.value, name) != getattr(old, name) for name in changes):
            raise Conflict(f"{old.id} changed meanwhile")
        written = msgspec.structs.replace(stored.value, **changes)
        lines = [self._line(new.id, event, reason)] if event else []
        await self._store.commit([self._groups.groups.row(written, stored)], lines)

    async def _launch(self, s: Snapshot, orders: Sequence[LaunchOrder], reason: str) -> None:
        """Claims with their members, spread over pools."""
        group, now_s = s.group, self._clock.now_s()
        held = [
            v.claim.instance.offer
            for v in s.members
            if v.claim is not None and v.claim.instance is not None and not v.claim.instance.ended
        ]
        rows: list[Row] = []
        made: list[Claim] = []
        lines: list[StoryLine] = []
        for option in dict.fromkeys(order.option for order in orders):
            mine = [order for order in orders if order.option is option]
            claim = self._claim(group, mine[0], now_s)
            offers = await self._offers(group, claim, held, len(mine))
            held += [ranked.offer for ranked in offers]
            for number, order in enumerate(mine):
                claim = self._claim(group, order, now_s)
                where = ""
                if number < len(offers):
                    claim = msgspec.structs.replace(claim, prefer=offers[number].offer.key)
                    where = f" in {claim.prefer} ({offers[number].reason})"
                member = Member(
                    id=claim.id,
                    parent=group.id,
                    option=order.option,
                    revision=group.revision,
                    stand_in=order.stand_in,
                    warm=order.warm,
                    reason=reason,
                    since_s=now_s,
                    created_s=now_s,
                )
                rows += [self._groups.members.row(member), self._fleet.tables.claims.row(claim)]
                what = f"{order.option}{' in the place of spot' if order.stand_in else ''}"
                lines.append(self._line(group.id, "Launching", f"{what}{where}: {reason}"))
                made.append(claim)
        await self._store.commit(rows, lines)
        for claim in made:
            await self._fleet.claim(claim)

    async def _offers(
        self, group: Group, claim: Claim, held: Sequence[Offer], count: int
    ) -> list[RankedOffer]:
        pools = [p.value for p in await self._fleet.tables.pools.find()]
        try:
            ranked = await self._rank(claims.narrowed(claim, pools, self._clock.now_s()))
        except Invalid:
            return []  # the claim says so, and is tried again
        return allocate(group.spec, ranked, held, count)

    def _claim(self, group: Group, order: LaunchOrder, now_s: float) -> Claim:
        spec = group.spec
        ask = msgspec.structs.replace(
            spec.ask, purchase_options=(order.option,), allocation=spec.allocation
        )
        return Claim(
            id=self._ids.new("c"),
            state=ClaimState.WANTED,
            parent=group.id,
            role=ROLE,
            ask=ask,
            image=spec.image,
            created_s=now_s,
            tenant=group.tenant,
        )

    def _line(self, object_id: str, event: str, reason: str) -> StoryLine:
        return StoryLine(object_id=object_id, at_s=self._clock.now_s(), event=event, reason=reason)
