"""Groups of hosts in the simulated world: a scaler that changes its mind, and what must hold of its hosts.

As ``checkers``: reads the truth, says what is wrong, repairs nothing.
"""

import asyncio
from collections.abc import Callable, Coroutine, Iterator, Mapping
from functools import partial
from typing import Any

from roost.fleet.groups.model import Group, GroupSpec, Member, MemberState, WarmPool
from roost.fleet.groups.service import Groups
from roost.fleet.model import Claim, ClaimState
from roost.ports.store import Store, Table
from roost.ports.values import Ask, Image
from roost.sim.world import World

MOST = 6
OVERHANG = 12
"""More members than desired and warm at once, by hosts that come and go, are thrash."""
Insist = Callable[[Callable[[], Coroutine[Any, Any, Group]]], Coroutine[Any, Any, Group]]


class GroupScene:
    """The groups of one run, who scales them, and their checkers."""

    def __init__(self, world: World, store: Store) -> None:
        self.world = world
        self._groups = Table(store, "group", Group)
        self._members = Table(store, "member", Member)
        self.changes = 0
        """Hosts that were asked for."""
        self.scaling = True

    async def scale(self, number: int, groups: Callable[[], Groups], insist: Insist) -> None:
        """Somebody makes a group and scales it, until nothing goes wrong any more."""
        rng = self.world.stream(f"group {number}")
        spec = GroupSpec(
            name=f"group-{number}",
            min=rng.randrange(0, 3),
            max=MOST,
            ask=Ask(vcpus=4.0, memory_gib=16.0),
            image=Image(name="python", python="3.11"),
            drain_s=60.0,
            spares=rng.randrange(0, 2),
            warm=WarmPool(
                size=rng.choice((0, 0, 1)), state=rng.choice(("running", "stopped")), reuse=True
            ),
        )
        await asyncio.sleep(rng.uniform(0.0, 60.0))
        await insist(lambda: groups().ensure(spec.name, spec))
        self.changes += spec.min + spec.warm.size
        while self.scaling:
            wanted = rng.randrange(0, MOST + 1)
            self.changes += wanted
            self.world.tally["group sizes"] += 1
            await insist(partial(self._want, groups, spec.name, wanted))
            await asyncio.sleep(rng.uniform(5.0, 300.0))

    @staticmethod
    async def _want(groups: Callable[[], Groups], name: str, count: int) -> Group:
        return await groups().set_desired(name, count, "load")

    async def members(self) -> dict[str, Member]:
        """All members by claim, those that ended too."""
        return {s.value.id: s.value for s in await self._members.find()}

    def check(self, groups: Mapping[str, Group], members: Mapping[str, Member]) -> Iterator[str]:
        """What must hold at every moment."""
        for group in groups.values():
            mine = [m for m in members.values() if m.parent == group.id]
            if len(mine) > MOST + group.spec.warm.size + group.spares + OVERHANG:
                yield f"{group.id} has {len(mine)} hosts"

    async def groups(self) -> dict[str, Group]:
        """All groups by id."""
        return {s.value.id: s.value for s in await self._groups.find()}

    async def unsettled(self, claims: Mapping[str, Claim]) -> tuple[list[str], set[str]]:
        """What is not yet as it should be once nothing goes wrong any more, and the hosts of groups."""
        missing: list[str] = []
        hosts: set[str] = set()
        members = await self.members()
        for group in (await self.groups()).values():
            mine = [m for m in members.values() if m.parent == group.id]
            states = [m.state for m in mine]
            # A spare stands by for up to an hour after a pool took a host.
            serving = group.wanted + group.spares
            want = {MemberState.SERVING: serving, MemberState.WARM: group.spec.warm.size}
            for state, count in want.items():
                if states.count(state) != count:
                    missing.append(f"{group.id}: {states.count(state)} of {count} {state}")
            if len(mine) != sum(want.values()):
                missing.append(f"{group.id}: {len(mine)} members, {sum(want.values())} wanted")
            for member in mine:
                claim = claims.get(member.id)
                if claim is None or claim.state is not ClaimState.HELD:
                    missing.append(f"{group.id}: claim {member.id} is not held")
                else:
                    hosts.add(claim.instance_id)
        return missing, hosts


def unwanted(claim: Claim, members: Mapping[str, Member]) -> str:
    """Why no group wants the claim's host; empty when one does."""
    member = members.get(claim.id)
    if member is None:
        return "its group has forgotten the claim"
    return "its group has ended it" if member.state is MemberState.ENDED else ""
