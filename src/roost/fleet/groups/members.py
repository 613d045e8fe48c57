"""Commands about single hosts of groups: protect, take out, answer hooks. Writes intent, ends nothing."""

from collections.abc import Callable, Sequence

import msgspec

from roost.fleet.groups import machine
from roost.fleet.groups.model import Group, Hook, Member, MemberState, Protection
from roost.fleet.groups.service import WRITE_ATTEMPTS, Groups
from roost.fleet.service import FleetService
from roost.ports.clock import Clock
from roost.ports.errors import Conflict, Gone, Invalid
from roost.ports.store import Store, Stored, StoryLine

M = MemberState
HELD = (M.ENTERING, M.LEAVING)


class GroupMembers:
    """What doors call about one host, named by its id or its member's."""

    def __init__(
        self,
        store: Store,
        clock: Clock,
        fleet: FleetService,
        groups: Groups,
        wake: Callable[[str], None],
    ) -> None:
        self._store = store
        self._clock = clock
        self._fleet = fleet
        self._groups = groups
        self._wake = wake

    async def protect(self, host_ids: Sequence[str], protection: Protection) -> list[Member]:
        """Protect hosts from scale-in or from any disruption, or from nothing any more. ``Gone``."""
        return [
            await self._write(host, lambda _group, m: _protected(m, protection))
            for host in host_ids
        ]

    async def drain(self, host_id: str, *, smaller: bool, reason: str = "by a person") -> Member:
        """Take a host out: it is emptied and ends. ``smaller``: the group does not replace it.

        ``Invalid`` when it goes already, or the group may not get smaller.
        """
        group, _, _ = await self._find(host_id)
        if smaller:
            if group.wanted - 1 < group.spec.min:
                raise Invalid(
                    f"{group.spec.name} must have {group.spec.min} hosts",
                    hint="`roost group set --min` lowers that",
                )
            if group.pinned is not None:
                await self._groups.pin(group.id, group.pinned - 1)
            else:
                await self._groups.set_desired(group.id, group.wanted - 1, f"{host_id} {reason}")

        def drained(group: Group, member: Member) -> tuple[Member, str]:
            now_s = self._clock.now_s()
            if member.state is M.SERVING:
                return machine.drain(member, group.spec, now_s, "person", reason), "Draining"
            if member.state is M.WARM or member.state in (M.LAUNCHING, M.ENTERING):
                raise Invalid(
                    f"{host_id} does not serve yet", hint="a smaller group releases it first"
                )
            raise Invalid(f"{host_id} is {member.state} already")

        return await self._write(host_id, drained)

    async def answer(self, host_id: str, hook: str, result: str) -> Member:
        """A hook has finished: ``continue``, or ``abandon`` (a host that comes up is replaced).

        ``Invalid`` when no such hook waits for it.
        """
        if result not in ("continue", "abandon"):
            raise Invalid(f"a hook cannot answer {result!r}", hint="continue or abandon")

        def answered(group: Group, member: Member) -> tuple[Member, str]:
            known = _waiting(group, member, hook)
            new = machine.answered(member, known, result, self._clock.now_s())
            return new, f"Hook {hook} {result}"

        return await self._write(host_id, answered)

    async def extend(self, host_id: str, hook: str) -> Member:
        """A hook is still at it: its time begins anew. ``Invalid`` when it does not wait."""

        def extended(group: Group, member: Member) -> tuple[Member, str]:
            known = _waiting(group, member, hook)
            until_s = self._clock.now_s() + known.timeout_s
            return msgspec.structs.replace(member, until_s=max(until_s, member.until_s)), ""

        return await self._write(host_id, extended)

    async def _find(self, host_id: str) -> tuple[Group, Member, Stored[Member]]:
        member_id = host_id
        instance = await self._fleet.tables.instances.get(host_id)
        if instance is not None:
            member_id = instance.value.parent
        stored = await self._groups.members.get(member_id)
        if stored is None or stored.value.state is M.ENDED:
            raise Gone(f"{host_id} is in no group", hint="`roost group show NAME` lists hosts")
        group = await self._groups.get(stored.value.parent)
        return group, stored.value, stored

    async def _write(
        self, host_id: str, change: Callable[[Group, Member], tuple[Member, str]]
    ) -> Member:
        for _ in range(WRITE_ATTEMPTS):
            group, member, stored = await self._find(host_id)
            new, event = change(group, member)
            if new == member:
                return member
            line = StoryLine(
                object_id=group.id,
                at_s=self._clock.now_s(),
                event=event,
                reason=f"{host_id}: {new.reason}",
            )
            try:
                rows = [self._groups.members.row(new, stored)]
                await self._store.commit(rows, [line] if event else [])
            except Conflict:
                continue
            self._wake(group.id)
            return new
        raise Conflict(f"{host_id} changes too quickly", hint="try again")


def _protected(member: Member, protection: Protection) -> tuple[Member, str]:
    return msgspec.structs.replace(member, protection=protection), f"Protected {protection}"


def _waiting(group: Group, member: Member, hook: str) -> Hook:
    """The hook of this name, if it waits for the member. ``Invalid``."""
    known = {h.name: h for h in group.spec.hooks}
    if member.state not in HELD or hook not in member.hooks or hook not in known:
        waits = ", ".join(member.hooks) if member.state in HELD else ""
        raise Invalid(
            f"no hook {hook} waits for this host",
            hint=f"it waits for {waits}" if waits else f"it is {member.state}",
        )
    return known[hook]
