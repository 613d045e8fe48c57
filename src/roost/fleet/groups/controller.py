"""The loop of groups, one key per group: read, plan, act. May be cancelled at any await.

A member and its claim are written in one commit, so that no host is launched that no group knows. Fleet's own
loop does the rest for each claim.
"""

import contextlib
from collections.abc import Callable, Sequence

import msgspec

from roost.fleet import plan as claims
from roost.fleet.groups import plan as planning
from roost.fleet.groups.allocation import allocate, full_clouds
from roost.fleet.groups.model import ROLE, Group, GroupState, Member, MemberState, MemberView
from roost.fleet.groups.service import Groups
from roost.fleet.groups.snapshot import (
    Drop,
    Instruction,
    Launch,
    LaunchOrder,
    Pause,
    Put,
    Snapshot,
    Update,
)
from roost.fleet.model import Claim, ClaimState, InstanceState, Rank, RankedOffer
from roost.fleet.service import FleetService
from roost.fleet.spares import CALM, RISK
from roost.kit.ids import Ids
from roost.ports.clock import Clock
from roost.ports.errors import Conflict, Invalid
from roost.ports.store import Row, Store, StoryLine
from roost.ports.values import Offer, PurchaseOption

WATCH_S = 1.0
SLOWEST_S = 5.0
BIG = 200
"""Hosts from which on a quiet group is looked at less often: every change wakes it anyway."""
LOOK_S = 60.0
"""Between looks at how many pools there are."""
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
        self._looked: dict[str, tuple[float, int]] = {}
        """When the market was looked at last for each group under risk, and how many pools there were."""

    async def keys(self) -> list[str]:
        """All groups that need looking after."""
        return [group.id for group in await self._groups.list_all()]

    async def handle(self, group_id: str) -> float | None:
        """One round for a group; returns the seconds until the next look, None when it is deleted."""
        stored = await self._groups.groups.get(group_id)
        if stored is None or stored.value.state is GroupState.DELETED:
            self._shown.pop(group_id, None)
            self._looked.pop(group_id, None)
            return None
        group = stored.value
        views = await self._groups.views(group)
        self._listen(views)
        self._tell(group, views)
        now_s = self._clock.now_s()
        pools = await self._pools(group, views)
        snapshot = Snapshot(group=group, members=views, now_s=now_s, pools=pools)
        instructions = planning.plan(snapshot)
        acted = [await self._run(instruction, snapshot) for instruction in instructions]
        if any(acted):
            return 0.0
        await self._say(snapshot, "no tier has room" if instructions else "")
        return min(SLOWEST_S, max(WATCH_S, len(views) / BIG))

    async def _pools(self, group: Group, views: Sequence[MemberView]) -> int:
        """How many spot pools give hosts now; looked at now and then, while risk could call for spares."""
        if sum(view.risk for view in views) <= RISK * CALM:
            return 0
        now_s = self._clock.monotonic_s()
        known = self._looked.get(group.id)
        if known is None or now_s - known[0] >= LOOK_S:
            ranked = await self._ranked(group, LaunchOrder(option=PurchaseOption.SPOT))
            known = self._looked[group.id] = now_s, len(ranked)
        return known[1]

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

    async def _say(self, s: Snapshot, full: str) -> None:
        """Keep the group's message: why hosts are missing."""
        waiting = [v.claim.claim.message for v in s.members if v.claim is not None]
        message = next((m for m in (full, *waiting) if m), "")
        if message != s.group.message:
            changed = msgspec.structs.replace(s.group, message=message)
            await self._write(s.group, changed, "Troubled" if message else "", message)

    # --- act ---------------------------------------------------------------------------------------

    async def _run(self, instruction: Instruction, s: Snapshot) -> bool:
        """Act; False when nothing could be done."""
        match instruction:
            case Put(member=member, event=event):
                await self._put(member, event)
            case Drop(member=member, event=event):
                await self._fleet.release(member.id, member.reason)
                await self._put(member, event)
                self._groups.silence.pop(member.id, None)
                self._groups.idle.pop(member.id, None)
            case Launch(orders=orders, reason=reason):
                return await self._launch(s, orders[:LAUNCHES], reason)
            case Update(group=group, event=event, reason=reason):
                await self._write(s.group, group, event, reason)
            case Pause(claim_id=claim_id, paused=paused):
                await self._fleet.pause(claim_id, paused)
        return True

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

    async def _launch(self, s: Snapshot, orders: Sequence[LaunchOrder], reason: str) -> bool:
        """Claims with their members, spread over pools; False when no tier has room for one."""
        group, now_s = s.group, self._clock.now_s()
        held = [
            v.claim.instance.offer
            for v in s.members
            if v.claim is not None and v.claim.instance is not None and not v.claim.instance.ended
        ]
        made: list[tuple[Claim, Member]] = []
        lines: list[StoryLine] = []
        for option in dict.fromkeys(order.option for order in orders):
            mine = [order for order in orders if order.option is option]
            offers, some = await self._offers(group, mine[0], held, len(mine))
            held += [ranked.offer for ranked in offers]
            # Without any offer the claim is made all the same: it says why, and is tried again.
            places: list[RankedOffer | None] = [*offers] if some else [None] * len(mine)
            for order, place in zip(mine, places, strict=False):
                claim = self._claim(group, order)
                where = ""
                if place is not None:
                    claim = _aimed(claim, place.offer, full_clouds(group.spec, held))
                    where = f" in {claim.prefer} ({place.reason})"
                made.append((claim, _member(group, order, claim.id, reason, now_s)))
                what = f"{order.option}{' in the place of spot' if order.stand_in else ''}"
                lines.append(self._line(group.id, "Launching", f"{what}{where}: {reason}"))
        rows: list[Row] = [self._groups.members.row(member) for _, member in made]
        rows += [self._fleet.tables.claims.row(claim) for claim, _ in made]
        if rows:
            await self._store.commit(rows, lines)
        for claim, _ in made:
            await self._fleet.claim(claim)
        return bool(made)

    async def _offers(
        self, group: Group, order: LaunchOrder, held: Sequence[Offer], count: int
    ) -> tuple[list[RankedOffer], bool]:
        """Where new hosts go, and whether anything is to be had at all."""
        ranked = await self._ranked(group, order)
        return allocate(group.spec, ranked, held, count), bool(ranked)

    async def _ranked(self, group: Group, order: LaunchOrder) -> list[RankedOffer]:
        """What is to be had, best first."""
        pools = [p.value for p in await self._fleet.tables.pools.find()]
        ask = claims.narrowed(self._claim(group, order), pools, self._clock.now_s())
        # Each tier on its own: the dear clouds of a first tier would be no short list's best.
        clouds = [tier.clouds for tier in group.spec.tiers] or [ask.clouds]
        ranked: list[RankedOffer] = []
        for some in clouds:
            with contextlib.suppress(Invalid):
                ranked += await self._rank(msgspec.structs.replace(ask, clouds=some))
        return ranked

    def _claim(self, group: Group, order: LaunchOrder) -> Claim:
        spec = group.spec
        tiers = tuple(cloud for tier in spec.tiers for cloud in tier.clouds)
        ask = msgspec.structs.replace(
            spec.ask,
            purchase_options=(order.option,),
            allocation=spec.allocation,
            clouds=tiers or spec.ask.clouds,
        )
        return Claim(
            id=self._ids.new("c"),
            state=ClaimState.WANTED,
            parent=group.id,
            role=ROLE,
            ask=ask,
            image=spec.image,
            created_s=self._clock.now_s(),
            tenant=group.tenant,
        )

    def _line(self, object_id: str, event: str, reason: str) -> StoryLine:
        return StoryLine(object_id=object_id, at_s=self._clock.now_s(), event=event, reason=reason)


def _aimed(claim: Claim, offer: Offer, full: Sequence[str]) -> Claim:
    """The claim with the offer it shall have; should that refuse, the next is in no full tier."""
    others = tuple(cloud for cloud in full if cloud != offer.provider)
    ask = msgspec.structs.replace(claim.ask, avoid_clouds=(*claim.ask.avoid_clouds, *others))
    return msgspec.structs.replace(claim, prefer=offer.key, ask=ask)


def _member(group: Group, order: LaunchOrder, claim_id: str, reason: str, now_s: float) -> Member:
    return Member(
        id=claim_id,
        parent=group.id,
        option=order.option,
        revision=group.revision,
        stand_in=order.stand_in,
        warm=order.warm,
        reason=reason,
        since_s=now_s,
        created_s=now_s,
        tenant=group.tenant,
    )
