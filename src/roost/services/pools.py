"""The groups of ``fleet`` as services see them, read a few times a second at most. Decides nothing."""

from collections.abc import Sequence

from roost.fleet.groups.model import DEFAULT_GROUP
from roost.fleet.groups.service import Groups
from roost.ports.clock import Clock
from roost.ports.errors import Gone
from roost.services.model import Pool

FRESH_S = 0.15
"""Many services of one group look at the same hosts."""


class GroupPools:
    """Implements ``Pools``."""

    def __init__(self, groups: Groups, clock: Clock) -> None:
        self._groups = groups
        self._clock = clock
        self._seen: dict[str, tuple[float, Pool]] = {}

    async def pool(self, group: str) -> Pool:
        """The group with its hosts; the default one is made when it is first asked for. ``Gone``."""
        now_s = self._clock.monotonic_s()
        known = self._seen.get(group)
        if known is not None and now_s - known[0] < FRESH_S:
            return known[1]
        try:
            found = await self._groups.get(group)
        except Gone:
            if group != DEFAULT_GROUP:
                raise Gone(
                    f"there is no group {group}", hint="`roost group create` makes one"
                ) from None
            found = await self._groups.ensure(group)
        spec = found.spec
        pool = Pool(
            id=group,
            slots=spec.slots,
            min=spec.min,
            max=spec.max,
            person=found.pinned,
            vcpus=spec.ask.vcpus,
            memory_mib=spec.ask.memory_gib * 1024,
            gpus=spec.ask.gpus,
            hosts=await self._groups.hosts(group),
            message=found.message,
        )
        self._seen[group] = (now_s, pool)
        return pool

    async def want(self, group: str, hosts: int, reason: str, release: Sequence[str] = ()) -> None:
        """See ``Pools``."""
        await self._groups.set_desired(group, hosts, reason, release)
        self._seen.pop(group, None)
