"""A service and its backends as one worker sees them: who is picked, what came of it, who is out.

Two method calls and a short loop per request: ``pick``, ``begin``, ``end``. Everything slower (medians,
scores, ejections that end, budgets) is done a few times a second inside ``pick``. Time is an argument,
always the event loop's clock. Never connects anywhere and starts no task.
"""

import asyncio
from collections.abc import Collection, Iterable, Mapping, Sequence
from itertools import cycle
from random import Random

from roost.proxy import balance, eject, policy, results, score
from roost.proxy.address import Contexts, Make, backends_of
from roost.proxy.budget import Latencies, Window
from roost.proxy.cookies import backend_id
from roost.proxy.pool import Backend
from roost.proxy.results import EWMA_SHARE
from roost.proxy.results import Outcome as Outcome
from roost.proxy.slots import Cell, SlotRow
from roost.proxy.waiting import WaitingLine

REFRESH_S = 0.05
"""Scores are made anew this often (less often in a service of hundreds of backends)."""
REFRESH_PER_BACKEND_S = 0.0005
TRIAL_S = 10.0
"""A half-open backend whose trial request takes longer than this gets another one."""
SAMPLES_PER_REFRESH = 256
HEDGE_SAMPLES = 20
"""Answers before the p99 is believed."""

BUSY = 2.0
"""Of very many backends an idle one is taken unless its score is above this: then it is a bad one."""
NO_BOUND = 1 << 60


_OK = Outcome.OK


class Upstream:
    """One backend as this worker sees it."""

    __slots__ = (
        "_waiting",
        "active",
        "address",
        "back_since_s",
        "backend",
        "cell",
        "down",
        "ejections",
        "ewma_s",
        "fail_rate",
        "failures",
        "floor",
        "half_open",
        "others",
        "out_for_s",
        "out_until_s",
        "outrun",
        "owner",
        "recent",
        "refused",
        "report_s",
        "reported_slots",
        "resets",
        "room",
        "samples",
        "seen",
        "seen_before",
        "served",
        "since_s",
        "slope",
        "spec",
        "step",
        "sticky_id",
        "streak",
        "stuck_since_s",
        "timeouts",
        "trial_until_s",
        "watched",
        "weight",
    )

    def __init__(self, owner: "Upstreams", spec: policy.BackendSpec, backend: Backend) -> None:
        self.owner = owner
        self.samples = owner.samples
        self._waiting: Sequence[object] = owner.line.waiting
        self.spec = spec
        self.address = spec.address
        self.backend = backend
        self.sticky_id = backend_id(owner.policy.name, spec.address)
        """What a sticky cookie calls it: the same in all workers, and after a restart."""
        self.active = 0
        """Requests and tunnels under way."""
        self.room = spec.slots or NO_BOUND
        self.cell: Cell | None = None
        """Where its requests in all workers are counted."""
        self.ewma_s = 0.0
        """Mean latency of good answers; 0 = none yet."""
        self.served = 0
        """Good answers."""
        self.failures = 0
        self.refused = self.resets = self.timeouts = 0
        """Of the failures."""
        self.slope = self.floor = self.step = self.weight = 1.0
        """``active * slope + floor`` is the score; ``step`` the distance between its turns."""
        self.others = 0
        """Requests of other workers in it, by its own report."""
        self.report_s = 0.0
        self.reported_slots = 0
        self.down = False
        """By active probes."""
        self.out_until_s = 0.0
        """Ejected until then; 0 = in."""
        self.out_for_s = 0.0
        self.half_open = False
        """Ejected, and may prove itself by one request at a time."""
        self.trial_until_s = 0.0
        self.ejections = 0
        self.back_since_s = self.since_s = float("-inf")
        self.fail_rate = 0.0
        self.streak = self.recent = self.seen = self.outrun = 0
        self.seen_before = 0
        self.stuck_since_s = 0.0
        self.watched = True
        """Something is known about it that an ``end`` may change: new, failing, half-open."""

    def __repr__(self) -> str:
        return f"<Upstream {self.address} active={self.active} {self.state}>"

    @property
    def service(self) -> str:
        """Name of its service."""
        return self.owner.policy.name

    @property
    def state(self) -> str:
        """For people: ready, draining, gone, down, ejected or half-open."""
        if self.spec.state != "ready":
            return self.spec.state
        if self.down:
            return "down"
        if self.half_open:
            return "half-open"
        return "ejected" if self.out_until_s else "ready"

    def begin(self) -> None:
        """A request (or tunnel) goes to it: takes a slot."""
        self.active += 1

    def end(self, outcome: Outcome, seconds: float, now_s: float) -> None:
        """It is over: gives the slot back. ``seconds`` to the answer's first byte."""
        self.active -= 1
        if outcome is _OK and not self.watched:
            self.served += 1
            self.ewma_s += (seconds - self.ewma_s) * EWMA_SHARE
            self.samples.append(seconds)
        else:
            results.note(self, outcome, seconds, now_s)
        if self._waiting:
            self.owner.slot_free(self, now_s)

    def report(self, active: int, slots: int, now_s: float) -> None:
        """The backend's own load (``Roost-Load``), before the request it came with has ended."""
        others = active - self.active
        if others < 0:
            others = 0
        self.report_s = now_s
        if others != self.others:
            self.floor += (others - self.others) * self.slope
            self.others = others
        if slots != self.reported_slots:
            self.reported_slots = slots

    def attach(self, waiting: Sequence[object]) -> None:
        """While ``waiting`` is not empty its service is told of each end."""
        self._waiting = waiting

    def unpicked(self) -> None:
        """It was picked, but is not begun after all."""
        if self.cell is not None:
            self.cell.set(self.active)
        self.trial_until_s = 0.0

    def take_room(self) -> bool:
        """Take one of its slots in all workers together, if there is one. Notes how many are left."""
        if self.cell is None or self.cell.reserve(self.active, self.spec.slots):
            return True
        self.look_for_room()
        return False

    def look_for_room(self) -> None:
        """How many slots the other workers leave."""
        if self.cell is not None:
            self.room = self.spec.slots - self.cell.others()


class Upstreams:
    """A service as this worker sees it. Survives changes of its policy: see ``updated``."""

    def __init__(
        self,
        service: policy.Service,
        *,
        unix_offset_s: float = 0.0,
        rng: Random | None = None,
        contexts: Contexts | None = None,
        slots: SlotRow | None = None,
        make: Make = backends_of,
    ) -> None:
        """``unix_offset_s``: Unix time minus the loop's clock, for backends that leave at a known time.
        ``contexts`` is needed where backends are reached by TLS; ``slots`` where there are several
        workers, for backends with slots; ``make`` makes the backends where their addresses are none of
        the network's.
        """
        self.policy = service
        self.samples: list[float] = []
        self.line = WaitingLine(self._free)
        self.median_s = 0.0
        """Median of the backends' mean latencies."""
        self.p99_s = 0.0
        self.window = Window()
        self.latencies = Latencies()
        self._unix_offset_s = unix_offset_s
        self._rng = rng or Random(service.name)
        self._contexts = contexts
        self._make = make
        self._slots = slots
        self._shared: tuple[Upstream, ...] = ()
        """Backends whose slots all workers count together."""
        self._refresh_s = float("-inf")
        self._refreshed_s: float | None = None
        self._p99_due_s = 0.0
        self._counted = 0
        self._retried = 0
        """Retries since the last count: ends that are no requests."""
        self._turns = balance.Turns()
        self.sets = score.Sets()
        self._usable: frozenset[Upstream] = frozenset()
        self._known: tuple[tuple[Upstream, float], ...] | None = None
        self._orders = cycle(balance.orders(()))
        self._idle: balance.Idle | None = None
        self._ring: balance.Ring | None = None
        self._by_id: dict[bytes, Upstream] = {}
        self._slow = True
        """A pick is more than one scan: half-open backends, many backends, or another algorithm."""
        self.members: tuple[Upstream, ...] = ()
        self._set_members(service)

    # --- the requests ------------------------------------------------------------------------------

    def pick(
        self,
        now_s: float,
        *,
        key: bytes = b"",
        tried: Collection[Upstream] = (),
        idempotent: bool = True,
        waited: asyncio.Future[None] | None = None,
    ) -> Upstream | None:
        """Whom to send a request to; the caller begins it at once. None: nobody now.

        ``waited`` is the future of ``pending`` that woke the caller: it goes before newcomers. None is
        the answer when all are full (then ``anybody`` is true: wait for a slot) or none is there.
        """
        if now_s >= self._refresh_s:
            self.refresh(now_s)
        if self._slow or tried:
            return self._pick_with_care(now_s, key, tried, idempotent, waited)
        best = None
        low = 1e300
        for member in next(self._orders):
            active = member.active
            if active < member.room:
                score = active * member.slope + member.floor
                if score < low:
                    low = score
                    best = member
        if best is None:
            return self._pick_with_care(now_s, key, tried, idempotent, waited)
        return best

    def _pick_with_care(
        self,
        now_s: float,
        key: bytes,
        tried: Collection[Upstream],
        idempotent: bool,
        waited: asyncio.Future[None] | None,
    ) -> Upstream | None:
        line = self.line
        if waited is not None:
            line.serve(waited)
        elif not line.passes(now_s, again=bool(tried)):
            return None
        bound = self.policy.breaker.max_requests
        if bound and self.active >= bound:
            return None
        keyed = bool(key) and self.policy.balance in ("hash", "sticky")
        if idempotent and not keyed and not tried:  # neither a retry nor a hedge is a trial
            for member in self.sets.half:
                if self._try_out(member, now_s) and member.take_room():
                    return member
        looked = False
        while True:
            chosen = self._best(now_s, key if keyed else b"", tried, idempotent)
            if chosen is None and self._shared and not looked:
                looked = True
                for member in self._shared:
                    member.look_for_room()
            elif chosen is None or chosen.take_room():
                return chosen

    def _best(
        self, now_s: float, key: bytes, tried: Collection[Upstream], idempotent: bool
    ) -> Upstream | None:
        sets = self.sets
        chosen = self._keyed(now_s, key, tried, idempotent) if key else self._chosen(tried)
        if chosen is None and sets.far:
            chosen = balance.scan(sets.far, tried)
        if chosen is None and tried and all(m in tried for m in sets.ready + sets.far):
            # All that are well were tried: one that is out is better than giving up.
            chosen = balance.scan(sets.half + sets.rest, tried)
        return chosen

    def _try_out(self, member: Upstream, now_s: float) -> bool:
        if not eject.trial_due(member, now_s) or member.active >= member.room:
            return False
        member.trial_until_s = now_s + TRIAL_S
        return True

    def _chosen(self, tried: Collection[Upstream]) -> Upstream | None:
        kind = self.policy.balance
        if kind == "round-robin" or kind == "weighted":
            return self._turns.next(tried)
        ready = self.sets.ready
        if kind == "p2c-ewma" and len(ready) > 2:
            return balance.sample(ready, 2, self._rng, tried)
        if self._idle is None:
            return balance.scan(next(self._orders), tried)
        chosen = self._idle.take(tried)
        if chosen is None or chosen.floor > BUSY:
            chosen = balance.sample(ready, balance.SAMPLE, self._rng, tried, chosen)
        return chosen

    def _keyed(
        self, now_s: float, key: bytes, tried: Collection[Upstream], idempotent: bool
    ) -> Upstream | None:
        ring = self._ring
        owner = ring.owner(key) if ring is not None else self._by_id.get(key)
        if owner is not None and owner.half_open:
            if idempotent and not tried and self._try_out(owner, now_s):
                return owner
        elif (
            ring is None
            and owner is not None
            and (owner in self._usable or owner in self.sets.far)
            and owner not in tried
            and owner.active < owner.room
        ):
            return owner
        if ring is None:
            return self._chosen(tried)
        return ring.choose(key, self._usable, tried)

    def pending(self) -> asyncio.Future[None] | None:
        """A place in the line of those who wait for a slot; None: the line is full.

        It is done when a slot is free: then call ``pick(..., waited=future)``. It fails with
        ``TimeoutError`` after ``breaker.pending_s``. Who no longer wants it calls ``leave(future)``.
        """
        breaker = self.policy.breaker
        self._slow = True  # newcomers wait behind
        return self.line.join(breaker.max_pending, breaker.pending_s)

    def leave(self, future: asyncio.Future[None], now_s: float) -> None:
        """Give a place of ``pending`` up, before or after it was woken."""
        self.line.leave(future, now_s)

    def may_retry(self, now_s: float, retries: policy.Retries | None = None) -> bool:
        """Take a retry from the budget; ``retries``: a route's own bounds of it."""
        retries = retries or self.policy.retries
        if not self.window.take_retry(retries.budget_share, retries.budget_per_s, now_s):
            return False
        self._retried += 1
        return True

    def may_hedge(self, now_s: float, hedging: policy.Hedging | None = None) -> bool:
        """Take a hedge from the budget; ``hedging``: a route's own bounds of it."""
        hedging = hedging or self.policy.hedging
        return hedging.enabled and self.window.take_hedge(hedging.max_share, now_s)

    def hedge_after_s(self) -> float:
        """How long an answer may take before a hedge is worth it: twice the p99."""
        after_s = self.policy.hedging.after_s
        if self.latencies.count < HEDGE_SAMPLES:
            after_s *= 5  # nothing is known yet: a slow service is not a frozen one
        return max(after_s, 2 * self.p99_s)

    # --- the state ---------------------------------------------------------------------------------

    @property
    def active(self) -> int:
        """Requests under way."""
        return sum([member.active for member in self.members])

    @property
    def anybody(self) -> bool:
        """Whether there is a backend at all (full, ejected and down ones count)."""
        return any(member.spec.state == "ready" for member in self.members)

    def eject(self, member: Upstream, now_s: float) -> None:
        """Take a backend out, if the share of those that are out allows."""
        if eject.eject(member, self.members, self.policy.outlier, now_s):
            self._refresh_s = now_s

    def let_in(self, member: Upstream, now_s: float) -> None:
        """An ejected backend answers again."""
        eject.let_in(member, now_s)
        self._refresh_s = now_s

    def set_health(self, states: Mapping[str, bool], now_s: float) -> None:
        """What the active probes found: address to up. Addresses not in it keep their state."""
        for member in self.members:
            up = states.get(member.address)
            if up is None or up is not member.down:
                continue
            member.down = not up
            if up:
                eject.let_in(member, now_s)
            self._refresh_s = now_s
        self.line.wake(now_s)

    def slot_free(self, member: Upstream, now_s: float) -> None:
        """A request ended while somebody waits, or in a service that keeps track of idle backends."""
        if self._idle is not None and member.active == 0:
            self._idle.put(member)
        self.line.wake(now_s)

    def updated(self, service: policy.Service) -> "Upstreams":
        """Take a new policy over. It is the same object: requests under way retry on the new backends.

        Backends whose address is in both keep their ``Upstream`` with all that is known of it.
        """
        if service != self.policy:
            self._set_members(service)
        return self

    def _set_members(self, service: policy.Service) -> None:
        """Raises ``ValueError`` or ``OSError`` before anything has changed."""
        made = self._make(service, self._contexts)
        before, self.policy = self.policy, service
        same = (service.tls, service.connect_s, service.idle_s) == (
            before.tls,
            before.connect_s,
            before.idle_s,
        )
        left = {member.address: member for member in self.members}
        members = []
        for address, (spec, backend) in made.items():
            member = left.pop(address, None)
            if member is None:
                member = Upstream(self, spec, backend)
                member.since_s = float("-inf") if self._refreshed_s is None else self._refreshed_s
            elif not same:
                member.backend.retire()
                member.backend = backend
            member.spec = spec
            member.room = spec.slots or NO_BOUND
            if self._slots is not None and member.cell is None and spec.slots:
                member.cell = self._slots.cell(service.name, address)
                member.watched = True
                if member.cell is not None:
                    member.cell.set(member.active)
            elif member.cell is not None and not spec.slots:
                member.cell.set(0)
                member.cell = None
            members.append(member)
        self.members = tuple(members)
        self._shared = tuple(member for member in members if member.cell is not None)
        if self._slots is not None:
            self.line.shared = self._slots.cell(service.name, "") if self._shared else None
        for member in (*left.values(), *members):
            if member.spec.state != "ready" or member.address in left:
                member.backend.retire()
        ready = [m for m in members if m.spec.state == "ready"]
        self._ring = balance.Ring(ready) if service.balance == "hash" else None
        self._by_id = {member.sticky_id: member for member in members}
        self._known = None
        self._slow = True
        self._refresh_s = float("-inf")

    def _free(self, now_s: float) -> int:
        """How many more requests may begin."""
        if now_s >= self._refresh_s:
            self.refresh(now_s)
        for member in self._shared:
            member.look_for_room()
        usable = self.sets.ready + self.sets.far
        free = sum([max(0, m.room - m.active) for m in usable])
        bound = self.policy.breaker.max_requests
        return min(free, bound - self.active) if bound else free

    # --- a few times a second ----------------------------------------------------------------------

    def refresh(self, now_s: float) -> None:
        """Make scores and sets anew from what was seen since the last time."""
        before_s = self._refreshed_s
        self._refreshed_s = now_s
        self._refresh_s = now_s + max(REFRESH_S, REFRESH_PER_BACKEND_S * len(self.members))
        self._count(now_s)
        unix_s = now_s + self._unix_offset_s
        self.sets = score.sort_out(self.members, self.policy, now_s, unix_s, self.median_s)
        passed_s = 0.0 if before_s is None else max(0.0, now_s - before_s)
        self.median_s = score.rate(self.sets, self.policy, now_s, unix_s, passed_s)
        for member in score.too_slow(self.sets.ready, self.policy, self.median_s):
            self.eject(member, now_s)
        self._arrange()

    def _count(self, now_s: float) -> None:
        ended = sum([m.served + m.failures for m in self.members])
        self.window.count(max(0, ended - self._counted - self._retried), now_s)
        self._counted = ended
        self._retried = 0
        samples = self.samples
        if samples:
            self.latencies.add(samples[:SAMPLES_PER_REFRESH], now_s)
            samples.clear()
            if now_s >= self._p99_due_s:
                self._p99_due_s = now_s + 0.25
                self.p99_s = self.latencies.quantile(0.99)

    def _arrange(self) -> None:
        """Rebuild what depends on who is ready with which weight, if that changed."""
        sets = self.sets
        kind = self.policy.balance
        many = len(sets.ready) > balance.SCAN_LIMIT
        self._slow = (
            many
            or kind not in ("least-work", "least-requests")
            or bool(sets.half or self._shared or self.line.waiting or self.line.promised)
            or self.policy.breaker.max_requests > 0
        )
        known = tuple([(m, m.step) for m in sets.ready])
        if known == self._known:
            return
        self._known = known
        self._idle = None
        self._usable = frozenset(sets.ready)
        if kind == "round-robin" or kind == "weighted":
            self._turns.rebuild(sets.ready)
        elif many:
            self._idle = balance.Idle(sets.ready)
        else:
            self._orders = cycle(balance.orders(sets.ready))
        for member in self.members:
            member.attach(self.line.waiting if self._idle is None else (self._idle,))


def upstreams_of(
    services: Iterable[policy.Service],
    before: Mapping[str, Upstreams] | None = None,
    *,
    unix_offset_s: float = 0.0,
    contexts: Contexts | None = None,
    slots: SlotRow | None = None,
) -> dict[str, Upstreams]:
    """All services of a configuration by name: known ones take their new policy over.

    Raises ``ValueError`` for an address that is none, ``Invalid`` for a certificate that cannot be read:
    then nothing has changed.
    """
    before = before or {}
    services = list(services)
    for service in services:
        backends_of(service, contexts)
    found = {}
    for service in services:
        known = before.get(service.name)
        found[service.name] = (
            known.updated(service)
            if known is not None
            else Upstreams(service, unix_offset_s=unix_offset_s, contexts=contexts, slots=slots)
        )
    return found
