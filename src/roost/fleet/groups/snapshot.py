"""What the plan of a group may look at, and what it may answer. Pure values; decides nothing itself."""

from collections.abc import Callable

import msgspec

from roost.fleet.groups.model import Group, Member, MemberState, MemberView
from roost.fleet.model import ENDED, InstanceState
from roost.ports.values import PurchaseOption

SILENT_S = 30.0
"""A host its provider lists as running but that is not connected for this long is replaced."""
COMING = (MemberState.LAUNCHING, MemberState.ENTERING)
IN_SERVICE = (*COMING, MemberState.SERVING)
GOING = (MemberState.DRAINING, MemberState.LEAVING)


class Put(msgspec.Struct, frozen=True, kw_only=True):
    """Write a member."""

    member: Member
    event: str


class Drop(msgspec.Struct, frozen=True, kw_only=True):
    """Release the member's claim, then write it as ended."""

    member: Member
    event: str


class LaunchOrder(msgspec.Struct, frozen=True, kw_only=True):
    """One host to claim."""

    option: PurchaseOption
    stand_in: bool = False
    warm: bool = False


class Launch(msgspec.Struct, frozen=True, kw_only=True):
    """Claim hosts."""

    orders: tuple[LaunchOrder, ...]
    reason: str


class Update(msgspec.Struct, frozen=True, kw_only=True):
    """Write the group."""

    group: Group
    event: str
    reason: str


class Pause(msgspec.Struct, frozen=True, kw_only=True):
    """Stop the host of a warm member (its disk stays), or start it again."""

    claim_id: str
    paused: bool


Instruction = Put | Drop | Launch | Update | Pause


class Snapshot(msgspec.Struct, frozen=True, kw_only=True):
    """A group and all its hosts at one moment."""

    group: Group
    members: tuple[MemberView, ...]
    """Those that have not ended, by id."""
    now_s: float
    pools: int = 0
    """How many spot pools gave hosts when the market was looked at last."""

    def pick(self, test: Callable[[MemberView], bool]) -> list[MemberView]:
        """The members that pass."""
        return [view for view in self.members if test(view)]

    def stuck(self, view: MemberView) -> bool:
        """A spot host that no pool gives: another stands in for it meanwhile."""
        limit_s = self.group.spec.fallback_s
        instance = view.claim.instance if view.claim is not None else None
        waiting = instance is None or instance.state in (
            InstanceState.PLANNED,
            InstanceState.REQUESTED,
            *ENDED,
        )
        return (
            limit_s > 0
            and waiting
            and view.member.state is MemberState.LAUNCHING
            and view.member.option is PurchaseOption.SPOT
            and self.now_s - view.member.since_s > limit_s
        )

    def doubtful(self, view: MemberView) -> str:
        """Why a host that still serves is to be replaced; empty = it is not."""
        if view.silent_s > SILENT_S:
            return f"silent for {view.silent_s:.0f} s"
        if self.group.spec.rebalance and view.advised and not view.noticed:
            return "its cloud recommends to leave it"
        return ""

    def counts(self, view: MemberView) -> bool:
        """Whether it is one of those the group has: neither going, noticed, doubtful nor stuck."""
        return (
            view.member.state in IN_SERVICE
            and not view.member.warm
            and not view.noticed
            and not self.doubtful(view)
            and not self.stuck(view)
        )

    @property
    def counted(self) -> list[MemberView]:
        """What the group has: with those that boot, without those that go."""
        return self.pick(self.counts)

    @property
    def serving(self) -> list[MemberView]:
        """Those of ``counted`` that could take containers now."""
        return [v for v in self.counted if v.member.state is MemberState.SERVING and v.ready]
