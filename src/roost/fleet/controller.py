"""The loop of fleet, one key per claim: read, observe, plan, act. May be cancelled at any await.

Before a launch call the instance row with its token is durable, so a lost reply or a crash is repaired
by calling again with the same token. An instance the provider lists that no row knows is ended.
"""

from collections.abc import Callable, Mapping

import msgspec

from roost.fleet import plan as planning
from roost.fleet.machine import observe, step
from roost.fleet.model import Claim, ClaimState, Instance, InstanceState, Rank
from roost.fleet.service import FleetService, Join, join_token, newest_stored, token_hash
from roost.kit.ids import Ids
from roost.ports.clock import Clock
from roost.ports.errors import Conflict, Gone, Invalid, Never, NoCapacity, Retry
from roost.ports.link import Links
from roost.ports.provider import Order, Provider, ProviderInstance
from roost.ports.store import Row, Store, Stored, StoryLine

WATCH_S = 1.0
"""How often a quiet claim is looked at again."""
URGENT_S = 0.1
"""How often while its host is not connected: the provider may say at any moment that it is gone."""
EMPTY_S = 5.0
"""How often a claim that no offer satisfies is tried again."""


class FleetController:
    """Brings every claim to where its owner wants it."""

    def __init__(
        self,
        service: FleetService,
        store: Store,
        clock: Clock,
        ids: Ids,
        links: Links,
        providers: Mapping[str, Provider],
        rank: Rank,
        link_address: str,
        join_secret: bytes,
        on_change: Callable[[str], None],
    ) -> None:
        self._service = service
        self._tables = service.tables
        self._store = store
        self._clock = clock
        self._ids = ids
        self._links = links
        self._providers = providers
        self._rank = rank
        self._link_address = link_address
        self._join_secret = join_secret
        self._on_change = on_change

    async def keys(self) -> list[str]:
        """All claims that still need looking after (for start-up and resync)."""
        claims = await self._tables.claims.find()
        return [c.value.id for c in claims if c.value.state is not ClaimState.ENDED]

    async def key_of_host(self, host_id: str) -> str | None:
        """The claim of a host."""
        stored = await self._tables.instances.get(host_id)
        return None if stored is None else stored.value.parent

    async def handle(self, claim_id: str) -> float | None:
        """One round for a claim; returns the seconds until the next look, None when it has ended."""
        stored_claim = await self._tables.claims.get(claim_id)
        if stored_claim is None or stored_claim.value.state is ClaimState.ENDED:
            return None
        stored = await newest_stored(self._tables, claim_id)
        if stored is not None:
            stored = await self._observe(stored)
        snapshot = planning.Snapshot(
            claim=stored_claim.value,
            instance=None if stored is None else stored.value,
            now_s=self._clock.now_s(),
        )
        instructions = planning.plan(snapshot)
        for instruction in instructions:
            delay_s = await self._run(instruction, stored_claim, stored)
            if delay_s is not None:
                return delay_s
        if instructions:
            return 0.0
        return self._patience(snapshot)

    def _patience(self, snapshot: planning.Snapshot) -> float | None:
        instance = snapshot.instance
        if snapshot.claim.state is ClaimState.SPENT and (instance is None or instance.ended):
            return None
        if instance is not None and instance.state is InstanceState.READY:
            return WATCH_S if self._links.connected(instance.id) else URGENT_S
        return WATCH_S / 2

    async def _observe(self, stored: Stored[Instance]) -> Stored[Instance]:
        old = stored.value
        if old.ended or old.state is InstanceState.PLANNED:
            return stored
        seen = await self._seen(old)
        report = self._links.reports().get(old.id) if self._links.connected(old.id) else None
        new = observe(old, seen, report, self._clock.now_s())
        if new == old:
            return stored
        lines = self._changes(old, new)
        rows = [self._tables.instances.row(new, stored)]
        pool = planning.avoidance(new, self._clock.now_s())
        if pool is not None and (new.state != old.state or new.notice != old.notice):
            rows.append(self._tables.pools.row(pool, await self._tables.pools.get(pool.id)))
        await self._store.commit(rows, lines)
        self._on_change(new.owner)
        again = await self._tables.instances.get(new.id)
        assert again is not None, "instances are never deleted"
        return again

    async def _seen(self, instance: Instance) -> ProviderInstance | None:
        listed = await self._providers[instance.offer.provider].instances()
        return next((i for i in listed if i.token == instance.launch_token), None)

    def _changes(self, old: Instance, new: Instance) -> list[StoryLine]:
        lines = []
        if new.state is not old.state:
            reason = new.ended_reason if new.ended else new.offer.key
            lines.append(self._line(new.id, str(new.state).capitalize(), reason))
        if new.notice is not None and new.notice != old.notice:
            left_s = (new.notice.deadline_s or self._clock.now_s()) - self._clock.now_s()
            reason = f"{new.notice.kind} from {new.notice.source}: {left_s:.0f} s left"
            lines.append(self._line(new.id, "Noticed", reason))
        return lines

    async def _run(
        self,
        instruction: planning.Instruction,
        claim: Stored[Claim],
        stored: Stored[Instance] | None,
    ) -> float | None:
        match instruction:
            case planning.Choose():
                return await self._choose(claim, instruction.reason)
            case planning.Launch():
                assert stored is not None, "a launch is planned for an instance"
                return await self._launch(stored)
            case planning.Terminate():
                assert stored is not None, "a termination is planned for an instance"
                return await self._terminate(stored, instruction.reason)
            case planning.Stop() | planning.Start():
                assert stored is not None, "what is stopped or started is an instance"
                return await self._switch(stored, instruction)
            case planning.Settle():
                return await self._settle(claim, instruction)

    async def _choose(self, stored: Stored[Claim], reason: str) -> float | None:
        claim = stored.value
        now_s = self._clock.now_s()
        pools = [p.value for p in await self._tables.pools.find()]
        try:
            ranked = await self._rank(planning.narrowed(claim, pools, now_s))
        except Invalid as error:
            if claim.only:
                return await self._spent(stored, str(error))
            if claim.message != str(error):
                told = msgspec.structs.replace(claim, message=str(error))
                line = self._line(claim.id, "NothingFits", str(error))
                await self._store.commit([self._tables.claims.row(told, stored)], [line])
                self._on_change(claim.parent)
            return EMPTY_S
        chosen = planning.preferred(ranked, claim)
        if chosen is None:
            return await self._spent(stored, f"{claim.prefer} is not to be had")
        offer, why = chosen
        instance = Instance(
            id=self._ids.new("i"),
            state=InstanceState.PLANNED,
            parent=claim.id,
            owner=claim.parent,
            role=claim.role,
            offer=offer,
            image=claim.image,
            launch_token=self._ids.new("l"),
            reason=why,
            created_s=now_s,
            tenant=claim.tenant,
        )
        aimed = msgspec.structs.replace(claim, instance_id=instance.id, message="")
        rows = [self._tables.instances.row(instance), self._tables.claims.row(aimed, stored)]
        lines = [
            self._line(instance.id, "Planned", f"{offer.key}: {why}"),
            self._line(claim.parent, "HostChosen", f"{instance.id} {offer.key}: {why}; {reason}"),
        ]
        await self._store.commit(rows, lines)
        return None

    async def _spent(self, stored: Stored[Claim], reason: str) -> float | None:
        return await self._settle(stored, planning.Settle(state=ClaimState.SPENT, reason=reason))

    async def _launch(self, stored: Stored[Instance]) -> float | None:
        instance = stored.value
        token = join_token(self._join_secret, instance.id)
        if instance.state is InstanceState.PLANNED:
            instance = step(instance, InstanceState.REQUESTED)
        rows = [self._tables.instances.row(instance, stored)]
        if await self._tables.joins.get(instance.id) is None:
            join = Join(id=instance.id, token_sha256=token_hash(token), tenant=instance.tenant)
            rows.append(self._tables.joins.row(join))
        lines = []
        if stored.value.state is InstanceState.PLANNED:
            lines.append(self._line(instance.id, "Requested", instance.offer.key))
        await self._store.commit(rows, lines)
        try:
            await self._providers[instance.offer.provider].launch(self._order(instance))
        except NoCapacity as error:
            return await self._refused(instance.id, str(error), error.reason_code)
        except Retry as error:
            return error.after_s
        return None

    def _order(self, instance: Instance) -> Order:
        return Order(
            token=instance.launch_token,
            host_id=instance.id,
            offer=instance.offer,
            image=instance.image,
            join_token=join_token(self._join_secret, instance.id),
            link_address=self._link_address,
        )

    async def _refused(self, instance_id: str, reason: str, code: str) -> float | None:
        stored = await self._tables.instances.get(instance_id)
        if stored is None:
            return None
        failed = msgspec.structs.replace(
            step(stored.value, InstanceState.FAILED),
            ended_s=self._clock.now_s(),
            ended_reason=reason,
            ended_code=code,
        )
        rows: list[Row] = [self._tables.instances.row(failed, stored)]
        pool = planning.avoidance(failed, self._clock.now_s())
        if pool is not None:
            rows.append(self._tables.pools.row(pool, await self._tables.pools.get(pool.id)))
        await self._store.commit(rows, [self._line(instance_id, "Refused", reason)])
        return None

    async def _terminate(self, stored: Stored[Instance], reason: str) -> float | None:
        instance = stored.value
        if instance.state is InstanceState.PLANNED:
            failed = msgspec.structs.replace(
                step(instance, InstanceState.FAILED), ended_s=self._clock.now_s()
            )
            await self._store.commit([self._tables.instances.row(failed, stored)])
            return None
        if instance.state is not InstanceState.DRAINING:
            draining = step(instance, InstanceState.DRAINING)
            line = self._line(instance.id, "Draining", reason)
            await self._store.commit([self._tables.instances.row(draining, stored)], [line])
        provider = self._providers[instance.offer.provider]
        try:
            provider_id = instance.provider_id
            if not provider_id:
                # The launch call may still be on its way: calling again with the token tells the id.
                provider_id = (await provider.launch(self._order(instance))).provider_id
            await provider.terminate(provider_id)
        except NoCapacity:
            return await self._never_launched(instance)
        except (Gone, Retry):
            return URGENT_S
        return URGENT_S

    async def _never_launched(self, instance: Instance) -> float | None:
        stored = await self._tables.instances.get(instance.id)
        if stored is not None and not stored.value.ended:
            gone = msgspec.structs.replace(
                step(stored.value, InstanceState.TERMINATED), ended_s=self._clock.now_s()
            )
            line = self._line(instance.id, "Terminated", "was never launched")
            await self._store.commit([self._tables.instances.row(gone, stored)], [line])
        return URGENT_S

    async def _switch(
        self, stored: Stored[Instance], instruction: planning.Stop | planning.Start
    ) -> float | None:
        """Stop or start the instance; its provider's list says when that has happened."""
        instance = stored.value
        provider = self._providers[instance.offer.provider]
        try:
            if isinstance(instruction, planning.Stop):
                await provider.stop(instance.provider_id)
            else:
                await provider.start(instance.provider_id)
        except NoCapacity as error:  # its disk is there, its machine is not: another one is chosen
            return await self._terminate(stored, f"could not be started again: {error}")
        except Never as error:  # this cloud cannot stop it: it runs on
            await self._service.pause(instance.parent, False)
            await self._store.commit([], [self._line(instance.id, "NotStopped", str(error))])
        except (Gone, Retry):
            return URGENT_S
        return URGENT_S

    async def _settle(self, stored: Stored[Claim], settle: planning.Settle) -> float | None:
        claim = msgspec.structs.replace(stored.value, state=settle.state)
        line = self._line(claim.id, str(settle.state).capitalize(), settle.reason)
        try:
            await self._store.commit([self._tables.claims.row(claim, stored)], [line])
        except Conflict:
            return 0.0
        self._on_change(claim.parent)
        return None

    async def sweep(self) -> list[str]:
        """End instances that the provider lists and no live row knows; returns their ids."""
        ended = []
        # One provider may stand for several clouds (this machine plays all of them).
        for provider in {id(p): p for p in self._providers.values()}.values():
            listed = [seen for seen in await provider.instances() if seen.ended_s is None]
            # Rows are read after the list: a row is durable before its launch, so whatever is listed and
            # wanted has its row by now. The other way round a launch in between would be ended.
            rows = await self._tables.instances.find()
            known = {i.value.launch_token for i in rows if not i.value.ended}
            for seen in listed:
                if seen.token not in known:
                    await provider.terminate(seen.provider_id)
                    ended.append(seen.provider_id)
        return ended

    def _line(self, object_id: str, event: str, reason: str) -> StoryLine:
        return StoryLine(object_id=object_id, at_s=self._clock.now_s(), event=event, reason=reason)
