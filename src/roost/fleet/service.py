"""Commands and queries of fleet. Writes intent to the store and wakes the controller; never launches."""

import contextlib
import hashlib
import hmac
from collections.abc import Callable, Mapping, Sequence

import msgspec

from roost.fleet.model import ENDED, Claim, ClaimState, ClaimView, Instance, InstanceState, Pool
from roost.ports.clock import Clock
from roost.ports.errors import Conflict, Denied, Gone, Invalid
from roost.ports.link import Links
from roost.ports.provider import Provider
from roost.ports.store import DEFAULT_TENANT, Store, Stored, StoryLine, Table
from roost.ports.values import HostReport, Notice, NoticeKind

CLAIM_ATTEMPTS = 5
FEW = 8
"""Up to so many claims are read one by one."""


class Join(msgspec.Struct, frozen=True, kw_only=True):
    """A host's permission to join: the token's hash and the first public key that used it."""

    id: str
    token_sha256: str
    public_key: bytes = b""
    tenant: str = DEFAULT_TENANT


class Tables:
    """The rows of fleet."""

    def __init__(self, store: Store) -> None:
        self.claims = Table(store, "claim", Claim)
        self.instances = Table(store, "instance", Instance)
        self.pools = Table(store, "pool", Pool)
        self.joins = Table(store, "join", Join)


class FleetService:
    """What other rooms and doors call."""

    def __init__(
        self,
        store: Store,
        clock: Clock,
        links: Links,
        providers: Mapping[str, Provider],
        wake: Callable[[str], None],
    ) -> None:
        self._store = store
        self._clock = clock
        self._links = links
        self._providers = providers
        self._wake = wake
        self.tables = Tables(store)

    async def claim(self, claim: Claim) -> None:
        """Record the claim unless its id is known; safe to repeat."""
        if await self.tables.claims.get(claim.id) is None:
            line = self._line(claim.id, "Claimed", f"{claim.role} host for {claim.parent}")
            with contextlib.suppress(Conflict):
                await self._store.commit([self.tables.claims.row(claim)], [line])
        self._wake(claim.id)

    async def release(self, claim_id: str, reason: str) -> None:
        """Nobody needs the claim's host any more; safe to repeat, unknown ids are fine."""
        for _ in range(CLAIM_ATTEMPTS):
            stored = await self.tables.claims.get(claim_id)
            if stored is None or stored.value.state in (ClaimState.RELEASED, ClaimState.ENDED):
                break
            claim = msgspec.structs.replace(stored.value, state=ClaimState.RELEASED)
            line = self._line(claim_id, "Released", reason)
            try:
                await self._store.commit([self.tables.claims.row(claim, stored)], [line])
                break
            except Conflict:
                continue
        self._wake(claim_id)

    async def pause(self, claim_id: str, paused: bool) -> None:
        """The claim's host shall be stopped, or run; safe to repeat, unknown ids are fine."""
        for _ in range(CLAIM_ATTEMPTS):
            stored = await self.tables.claims.get(claim_id)
            if stored is None or stored.value.paused == paused:
                break
            claim = msgspec.structs.replace(stored.value, paused=paused)
            line = self._line(claim_id, "Paused" if paused else "Unpaused", "asked to")
            try:
                await self._store.commit([self.tables.claims.row(claim, stored)], [line])
                break
            except Conflict:
                continue
        self._wake(claim_id)

    async def view(self, claim_id: str) -> ClaimView | None:
        """The claim with its newest instance and live report, or None."""
        stored = await self.tables.claims.get(claim_id)
        if stored is None:
            return None
        instance = await newest_instance(self.tables, claim_id)
        return self._view(stored.value, instance)

    async def views_of(self, owner: str, claim_ids: Sequence[str]) -> list[ClaimView | None]:
        """As ``view`` for many claims of one owner, in a few queries however many they are."""
        if len(claim_ids) <= FEW:
            return [await self.view(claim_id) for claim_id in claim_ids]
        claims: dict[str, Claim] = {}
        for claim_state in (ClaimState.WANTED, ClaimState.HELD, ClaimState.SPENT):
            for claim in await self.tables.claims.find(state=claim_state, parent=owner):
                claims[claim.value.id] = claim.value
        instances: dict[str, Instance] = {}
        for state in InstanceState:
            if state not in ENDED:
                for instance in await self.tables.instances.find(state=state):
                    instances[instance.value.parent] = instance.value
        found = []
        for claim_id in claim_ids:
            # A claim has one live instance at most. What is not among the live ones is asked for on its own.
            one = claims.get(claim_id)
            if one is None or claim_id not in instances:
                found.append(await self.view(claim_id))
            else:
                found.append(self._view(one, instances[claim_id]))
        return found

    async def views(self) -> list[ClaimView]:
        """All claims that have not ended."""
        claims = [c.value for c in await self.tables.claims.find()]
        found = []
        for claim in claims:
            if claim.state is not ClaimState.ENDED:
                instance = await newest_instance(self.tables, claim.id)
                found.append(self._view(claim, instance))
        return found

    async def instances(self) -> list[Instance]:
        """All instances ever, ordered by id."""
        return [i.value for i in await self.tables.instances.find()]

    async def instance(self, host_id: str) -> Instance:
        """One instance. ``Gone`` when unknown."""
        stored = await self.tables.instances.get(host_id)
        if stored is None:
            raise Gone(f"no host {host_id}", hint="`roost host list` shows the hosts")
        return stored.value

    async def interrupt(self, host_id: str, notice_s: float | None, detail: str) -> Notice:
        """Have the host's cloud deliver an interruption notice; returns the notice."""
        instance = await self._live(host_id)
        now_s = self._clock.now_s()
        lead_s = instance.offer.notice_s if notice_s is None else notice_s
        notice = Notice(
            kind=NoticeKind.INTERRUPTION,
            seen_s=now_s,
            deadline_s=now_s + lead_s,
            source=f"{instance.offer.provider} metadata",
            detail=detail,
        )
        provider = self._providers[instance.offer.provider]
        await provider.interrupt(instance.provider_id, notice)
        reason = f"{lead_s:.0f} s of notice; {detail}"
        await self._store.commit([], [self._line(host_id, "Interrupted", reason)])
        self._wake(instance.parent)
        return notice

    async def kill(self, host_id: str) -> None:
        """Take the host away at once, without notice."""
        instance = await self._live(host_id)
        await self._providers[instance.offer.provider].kill(instance.provider_id)
        await self._store.commit([], [self._line(host_id, "Killed", "SIGKILL, without notice")])
        self._wake(instance.parent)

    async def admit(self, host_id: str, join_token: str, public_key: bytes) -> None:
        """JoinBook of the link: bind the token to the first key that uses it. ``Denied`` otherwise."""
        stored = await self.tables.joins.get(host_id)
        if stored is None or not self._token_matches(stored, join_token):
            raise Denied(f"host {host_id} has no such join token", hint="launch a new host")
        if stored.value.public_key == public_key:
            return
        if stored.value.public_key:
            raise Denied(f"the join token of {host_id} was used by another key")
        bound = msgspec.structs.replace(stored.value, public_key=public_key)
        await self._store.commit([self.tables.joins.row(bound, stored)])

    @staticmethod
    def _token_matches(stored: Stored[Join], join_token: str) -> bool:
        return hmac.compare_digest(stored.value.token_sha256, token_hash(join_token))

    async def _live(self, host_id: str) -> Instance:
        instance = await self.instance(host_id)
        if instance.ended or not instance.provider_id:
            state = instance.state
            raise Invalid(f"host {host_id} is {state}", hint="`roost host list` shows live hosts")
        return instance

    def _view(self, claim: Claim, instance: Instance | None) -> ClaimView:
        if instance is None:
            return ClaimView(claim=claim)
        report = self._links.reports().get(instance.id)
        connected = self._links.connected(instance.id)
        return ClaimView(claim=claim, instance=instance, report=report, connected=connected)

    def _line(self, object_id: str, event: str, reason: str) -> StoryLine:
        return StoryLine(object_id=object_id, at_s=self._clock.now_s(), event=event, reason=reason)


async def newest_instance(tables: Tables, claim_id: str) -> Instance | None:
    """The claim's instance that counts: the latest by creation."""
    stored = await newest_stored(tables, claim_id)
    return None if stored is None else stored.value


async def newest_stored(tables: Tables, claim_id: str) -> Stored[Instance] | None:
    """As ``newest_instance``, with its row."""
    found: Sequence[Stored[Instance]] = await tables.instances.find(parent=claim_id)
    return max(found, key=lambda s: (s.value.created_s, s.value.id), default=None)


def live(instance: Instance) -> bool:
    """Whether the instance may still cost money."""
    return not instance.ended and instance.state is not InstanceState.PLANNED


def join_token(secret: bytes, host_id: str) -> str:
    """The join token of a host: derived, so that a repeated launch hands out the same one."""
    return hmac.new(secret, f"join/{host_id}".encode(), hashlib.sha256).hexdigest()


def token_hash(token: str) -> str:
    """SHA-256 of a secret, hex: what is stored instead of it."""
    return hashlib.sha256(token.encode()).hexdigest()


def latest_report(view: ClaimView) -> HostReport | None:
    """The report when its host is connected."""
    return view.report if view.connected else None
