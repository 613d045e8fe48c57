"""The loop of jobs, one key per job: read, observe, plan, act. May be cancelled at any await.

What a host has made durable is folded in before anything is decided on it, and every decision is
durable before the next. Every call it makes may be made again.
"""

import contextlib

import msgspec

from roost.fleet import demand
from roost.fleet import plan as claims
from roost.fleet.model import Odds, Rank
from roost.fleet.service import FleetService
from roost.jobs import machine
from roost.jobs import plan as planning
from roost.jobs.deadline import SOON_H, Chance, Where
from roost.jobs.model import Job, JobState
from roost.jobs.service import JobService
from roost.kit.ids import Ids
from roost.ports.clock import Clock
from roost.ports.errors import Invalid, Never, Retry, RoostError
from roost.ports.jobs import JobOrder, Jobs
from roost.ports.store import Row, Store, Stored, StoryLine
from roost.ports.values import Offer, PurchaseOption

WATCH_S = 1.0
URGENT_S = 0.2
ASKED_S = 0.5
"""A host that was told to run a job reports it with its next heartbeat."""
HOPELESS_S = 5.0
DECIDED = {Where.WAIT: "Waiting", Where.SPOT: "Spot", Where.ON_DEMAND: "OnDemand"}
"""How the story calls what a deadline asks for."""


class JobController:
    """Brings every job to its end."""

    def __init__(
        self,
        service: JobService,
        fleet: FleetService,
        store: Store,
        clock: Clock,
        ids: Ids,
        jobs: Jobs,
        rank: Rank,
        odds: Odds,
    ) -> None:
        self._table = service.jobs
        self._fleet = fleet
        self._store = store
        self._clock = clock
        self._ids = ids
        self._jobs = jobs
        self._rank = rank
        self._odds = odds
        self._looked: dict[str, tuple[float, tuple[Chance, ...]]] = {}
        """When each job with a deadline last looked for a pool, and what it saw."""
        self._silent_since: dict[str, float] = {}

    async def keys(self) -> list[str]:
        """All jobs that still need looking after: those that run, and those that still hold hosts."""
        found = [s.value for s in await self._table.find()]
        return [job.id for job in found if not job.ended or job.claims]

    async def handle(self, job_id: str) -> float | None:
        """One round for a job; returns the seconds until the next look, None when it needs none."""
        stored = await self._table.get(job_id)
        if stored is None or (stored.value.ended and not stored.value.claims):
            self._silent_since.pop(job_id, None)
            self._looked.pop(job_id, None)
            return None
        snapshot = await self._snapshot(stored.value)
        if await self._observe(stored, snapshot):
            return 0.0
        instructions = planning.plan(snapshot)
        waits = [await self._run(i, stored) for i in instructions]
        delays = [w for w in waits if w is not None]
        if delays:
            return min(delays)
        if instructions:
            return 0.0
        calm = stored.value.state is JobState.RUNNING or planning.looks_for_a_pool(snapshot)
        return WATCH_S if calm else URGENT_S

    # --- observe -----------------------------------------------------------------------------------

    async def _snapshot(self, job: Job) -> planning.Snapshot:
        active = await self._fleet.view(job.claim_id) if job.claim_id else None
        following = await self._fleet.view(job.next_claim_id) if job.next_claim_id else None
        at_work = job.state in (JobState.RUNNING, JobState.LEAVING)
        silent = at_work and active is not None and not active.connected
        snapshot = planning.Snapshot(
            job=job,
            active=active,
            next=following,
            now_s=self._clock.now_s(),
            silent_s=self._silent_s(job.id, silent),
        )
        if not planning.looks_for_a_pool(snapshot):
            self._looked.pop(job.id, None)
            return snapshot
        return msgspec.structs.replace(snapshot, chances=await self._chances(job))

    async def _chances(self, job: Job) -> tuple[Chance, ...]:
        """The pools that the job's next claim could be for; looked at now and then while it waits."""
        now_s = self._clock.monotonic_s()
        known = self._looked.get(job.id)
        if known is not None and now_s - known[0] < planning.LOOK_S:
            return known[1]
        need = demand.NeedHost(
            role="active",
            away_from=planning.left_behind(job),
            reason="",
            purchase_options=(PurchaseOption.SPOT,),
        )
        claim = demand.wanted(job, need, job.ask, claim_id="", now_s=now_s)
        pools = [p.value for p in await self._fleet.tables.pools.find()]
        found: tuple[Chance, ...] = ()
        with contextlib.suppress(Invalid):  # no pool is left: it may wait for one
            ranked = await self._rank(claims.narrowed(claim, pools, self._clock.now_s()))
            offers = [entry.offer for entry in ranked]
            soon, hour = await self._odds(offers, SOON_H), await self._odds(offers, 1.0)
            found = tuple(
                Chance(
                    pool=entry.offer.key,
                    price=entry.usd_undisturbed_hour,
                    soon=1.0 - lasts_soon,
                    hour=1.0 - lasts,
                )
                for entry, lasts_soon, lasts in zip(ranked, soon, hour, strict=True)
            )
        self._looked[job.id] = now_s, found
        return found

    def _silent_s(self, job_id: str, silent: bool) -> float:
        if not silent:
            self._silent_since.pop(job_id, None)
            return 0.0
        now_s = self._clock.monotonic_s()
        return now_s - self._silent_since.setdefault(job_id, now_s)

    async def _observe(self, stored: Stored[Job], snapshot: planning.Snapshot) -> bool:
        """Fold what the present run has made durable into the job; True if it changed."""
        job, active = stored.value, snapshot.active
        if job.state is JobState.ACCEPTED and active is not None:
            why = active.claim.message  # why no host is had
            if why != job.message:
                await self._save(stored, msgspec.structs.replace(job, message=why))
                return True
            return False
        run = None if job.ended else planning.run_of(active, job)
        if run is None or run.job is None:
            return False
        new = machine.noted(job, run.job)
        if new == job:
            return False
        await self._save(stored, new)
        return True

    # --- act ---------------------------------------------------------------------------------------

    async def _run(self, instruction: planning.Instruction, stored: Stored[Job]) -> float | None:
        change = self._change(stored.value, instruction)
        if change is not None:
            new, event, reason = change
            await self._save(stored, new, event, reason)
            return None
        match instruction:
            case demand.NeedHost():
                await self._need_host(stored, instruction)
            case demand.DropHost():
                await self._drop_host(stored, instruction)
            case planning.StartRun():
                return await self._start(stored, instruction.host_id, instruction.offer)
            case planning.StopRun():
                return await self._stop(stored.value, instruction)
        return None

    def _change(self, job: Job, instruction: planning.Instruction) -> tuple[Job, str, str] | None:
        """Instructions that only change the job: (new job, event, reason)."""
        now_s = self._clock.now_s()
        match instruction:
            case planning.Begin(host_id=host_id, offer=offer):
                begun = machine.begin(job, host_id, offer, now_s)
                where = f"run {begun.epoch} on {host_id} ({offer.key})"
                return begun, "RunBegun", where + _from(job)
            case planning.Decided(where=where, reason=reason):
                event = DECIDED[where] if where != job.where else ""
                return machine.decided(job, where, reason), event, reason
            case planning.Leave(reason=reason):
                return machine.leave(job, reason), "Leaving", reason
            case planning.Again(reason=reason, exit_code=code, failed=failed, keep_host=keep):
                new = machine.again(
                    job, reason, now_s, exit_code=code, failed=failed, keep_host=keep
                )
                return new, "RunEnded", f"run {job.epoch}: {reason}; it is run again"
            case planning.Stopping():
                return machine.stopping(job, now_s), "Stopping", "asked to"
            case planning.End(state=state, reason=reason, exit_code=code):
                new = machine.end(job, state, reason, now_s, code)
                return new, str(state).capitalize(), reason
        return None

    async def _save(self, stored: Stored[Job], new: Job, event: str = "", reason: str = "") -> None:
        lines = [self._line(new.id, event, reason)] if event else []
        await self._store.commit([self._table.row(new, stored)], lines)

    async def _need_host(self, stored: Stored[Job], need: demand.NeedHost) -> None:
        job = stored.value
        claim = demand.wanted(
            job, need, job.ask, claim_id=self._ids.new("c"), now_s=self._clock.now_s()
        )
        if need.role == "active":
            new = msgspec.structs.replace(job, claim_id=claim.id)
        else:
            new = msgspec.structs.replace(job, next_claim_id=claim.id)
        rows: list[Row] = [self._table.row(new, stored), self._fleet.tables.claims.row(claim)]
        line = self._line(job.id, "HostWanted", f"{need.role}: {need.reason}")
        await self._store.commit(rows, [line])
        await self._fleet.claim(claim)

    async def _drop_host(self, stored: Stored[Job], drop: demand.DropHost) -> None:
        await self._fleet.release(drop.claim_id, drop.reason)
        fresh = await self._table.get(stored.value.id)
        if fresh is None:
            return
        new = demand.without(fresh.value, drop.claim_id, "claim_id", "next_claim_id")
        await self._save(fresh, new)

    async def _start(self, stored: Stored[Job], host_id: str, offer: Offer) -> float:
        job = stored.value
        order = JobOrder(
            job_id=job.id,
            epoch=job.epoch,
            argv=job.argv,
            files=job.files,
            output=job.output.digest if job.output else "",
            notice_s=offer.notice_s,
        )
        try:
            await self._jobs.start(host_id, order)
        except Retry as error:
            return error.after_s
        except Never as error:
            if job.message != str(error):
                told = msgspec.structs.replace(job, message=str(error))
                await self._save(stored, told, "Troubled", str(error))
            return HOPELESS_S
        except RoostError:
            return WATCH_S  # the host is leaving, or knows a later run: the next look decides
        return ASKED_S

    async def _stop(self, job: Job, stop: planning.StopRun) -> float:
        try:
            await self._jobs.stop(stop.host_id, job.id, job.epoch, stop.grace_s)
        except RoostError:
            return WATCH_S
        return ASKED_S

    def _line(self, object_id: str, event: str, reason: str) -> StoryLine:
        return StoryLine(object_id=object_id, at_s=self._clock.now_s(), event=event, reason=reason)


def _from(job: Job) -> str:
    if job.saved is None:
        return ""
    return f", from save {job.saved.number} at {job.saved.at_s:.0f}"
