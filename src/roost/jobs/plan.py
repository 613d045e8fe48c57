"""What a job needs next. Pure: a snapshot in, instructions with reasons out.

A run is interrupted when its host goes away or its script was told to end: whatever exit code it left
with, the job is run again from its last saved files. Only a script that ends by itself ends the job.
A job with a deadline goes where ``deadline.py`` says: waits for a pool that will last, goes on demand while
that is needed to be in time, and back to spot. It is asked whenever the job needs a host, and while it is on
demand.
"""

import msgspec

from roost.fleet.demand import DropHost, NeedHost
from roost.fleet.model import ClaimView, InstanceState
from roost.jobs.deadline import Chance, Standing, Where, decide
from roost.jobs.model import Job, JobState
from roost.ports.values import Offer, PurchaseOption, TaskReport

SILENT_S = 15.0
"""A host its provider lists as running but that is not connected for this long is given up."""
RESTART_S = 600.0
"""What a lost host costs a job with a deadline: the next one's boot (``fleet.plan.BOOT_LIMIT_S``),
work done again."""
LOOK_S = 60.0
"""Between looks at the market for a deadline; a launch takes that long to be refused."""
STOP_GRACE_S = 10.0
"""Between SIGTERM and SIGKILL when a person stops a job."""
STOP_LIMIT_S = 60.0
"""A stopped job waits no longer than this for its last files and output."""


class Snapshot(msgspec.Struct, frozen=True, kw_only=True):
    """Everything the plan may look at."""

    job: Job
    active: ClaimView | None
    next: ClaimView | None
    now_s: float
    silent_s: float = 0.0
    """How long the active host has not been connected."""
    chances: tuple[Chance, ...] = ()
    """The pools that may be tried, as long as ``looks_for_a_pool``."""


class Begin(msgspec.Struct, frozen=True, kw_only=True):
    """A run begins on this host."""

    host_id: str
    offer: Offer


class StartRun(msgspec.Struct, frozen=True, kw_only=True):
    """Tell the host (again) to run the job at its epoch."""

    host_id: str
    offer: Offer


class Decided(msgspec.Struct, frozen=True, kw_only=True):
    """Note what the deadline asks for now."""

    where: Where
    reason: str


class Leave(msgspec.Struct, frozen=True, kw_only=True):
    """The host goes away, or is left."""

    reason: str


class Again(msgspec.Struct, frozen=True, kw_only=True):
    """The run is over, the work is not."""

    reason: str
    exit_code: int | None = None
    failed: bool = False
    keep_host: bool = False


class StopRun(msgspec.Struct, frozen=True, kw_only=True):
    """End the script on this host."""

    host_id: str
    grace_s: float


class Stopping(msgspec.Struct, frozen=True, kw_only=True):
    """A person stops the job."""


class End(msgspec.Struct, frozen=True, kw_only=True):
    """The job is over."""

    state: JobState
    reason: str
    exit_code: int | None = None


Instruction = (
    NeedHost | DropHost | Begin | StartRun | Decided | Leave | Again | StopRun | Stopping | End
)


def plan(snapshot: Snapshot) -> list[Instruction]:
    """The next instructions; empty when there is nothing to do but wait."""
    job = snapshot.job
    if job.old_claims:
        why = "the job has ended" if job.ended else "the job went on"
        return [DropHost(claim_id=claim, reason=why) for claim in job.old_claims]
    if job.ended:
        return []
    if job.state is JobState.STOPPING:
        return _stop(snapshot)
    if job.desired == "stopped":
        if job.state is JobState.ACCEPTED:
            return [End(state=JobState.STOPPED, reason="stopped by a person")]
        return [Stopping()]
    if job.state is JobState.ACCEPTED:
        return _place(snapshot)
    return _run(snapshot)


def _place(snapshot: Snapshot) -> list[Instruction]:
    job, active = snapshot.job, snapshot.active
    if active is None:
        return _seek(snapshot, "active", f"job {job.name} needs a host")
    late = _too_late_for(active, snapshot)
    if late:
        return [DropHost(claim_id=active.claim.id, reason=late)]
    if active.gone or active.leaving:
        return [DropHost(claim_id=active.claim.id, reason="its host goes away before a run began")]
    if active.usable and active.instance is not None and snapshot.now_s >= job.not_before_s:
        return [Begin(host_id=active.instance.id, offer=active.instance.offer)]
    return []


# --- deadlines ---------------------------------------------------------------------------------------


def hurried(job: Job) -> bool:
    """Whether ``deadline.py`` decides where it runs: who asked for on demand only has decided."""
    return job.deadline_s is not None and PurchaseOption.SPOT in job.ask.purchase_options


def looks_for_a_pool(snapshot: Snapshot) -> bool:
    """Whether the next step depends on which pools may be tried."""
    job = snapshot.job
    if not hurried(job) or job.ended or job.old_claims or job.desired == "stopped":
        return False
    match job.state:
        case JobState.ACCEPTED:
            return snapshot.active is None
        case JobState.RUNNING:
            return _on_demand(job) and snapshot.next is None
        case JobState.LEAVING:
            return snapshot.next is None
        case _:
            return False


def left_behind(job: Job) -> tuple[Offer, ...]:
    """What its next host is to be apart from: the pool that was taken, not the one it left by itself."""
    return (job.offer,) if job.offer is not None and not (hurried(job) and _on_demand(job)) else ()


def standing(job: Job, now_s: float, on: Where = Where.WAIT) -> Standing:
    """Where a job with a deadline stands; without a host when ``on`` does not say otherwise."""
    assert job.deadline_s is not None
    return Standing(
        work_s=job.work_s,
        left_s=job.left_s(now_s),
        deadline_s=job.deadline_s - job.created_s,
        elapsed_s=now_s - job.created_s,
        restart_s=RESTART_S,
        look_s=LOOK_S,
        on=on,
    )


def _on_demand(job: Job) -> bool:
    return job.offer is not None and job.offer.purchase_option is not PurchaseOption.SPOT


def _seek(snapshot: Snapshot, role: str, reason: str, on: Where = Where.WAIT) -> list[Instruction]:
    """A host, where the deadline allows; with ``on`` demand one to go back to, if that is worth it."""
    job = snapshot.job
    if not hurried(job):
        return [NeedHost(role=role, away_from=left_behind(job), reason=reason)]
    verdict = decide(standing(job, snapshot.now_s, on), snapshot.chances)
    if verdict.where is Where.STAY:
        known = job.where == Where.ON_DEMAND
        return [] if known else [Decided(where=Where.ON_DEMAND, reason=verdict.reason)]
    if (verdict.where, verdict.reason) != (job.where, job.why):
        return [Decided(where=verdict.where, reason=verdict.reason)]
    if verdict.where is Where.WAIT:
        return []
    spot = verdict.where is Where.SPOT
    return [
        NeedHost(
            role=role,
            away_from=left_behind(job) if spot else (),
            reason=f"{reason}; {verdict.reason}",
            purchase_options=(PurchaseOption.SPOT if spot else PurchaseOption.ON_DEMAND,),
            pool=verdict.pool,
        )
    ]


def _too_late_for(active: ClaimView, snapshot: Snapshot) -> str:
    """Why a claim that still looks for a spot host is given up."""
    instance = active.instance
    coming = instance is not None and instance.state in (InstanceState.BOOTING, InstanceState.READY)
    if coming or PurchaseOption.SPOT not in active.claim.ask.purchase_options:
        return ""
    return "too late to go on looking for spot" if _pressed(snapshot) else ""


def _pressed(snapshot: Snapshot) -> bool:
    """Whether it must be on demand, if it is nowhere."""
    return hurried(snapshot.job) and standing(snapshot.job, snapshot.now_s).spare_s < 0.0


def _back(snapshot: Snapshot) -> list[Instruction]:
    """From on demand to a pool, as soon as a host there is ready; the run goes on meanwhile."""
    job, following = snapshot.job, snapshot.next
    if following is None:
        return _seek(snapshot, "next", "back from on demand", Where.ON_DEMAND)
    if following.gone or following.leaving or _pressed(snapshot):
        why = "its host goes away" if not _pressed(snapshot) else "too late for a restart"
        return [DropHost(claim_id=following.claim.id, reason=why)]
    if following.usable:
        return [Leave(reason=f"back from on demand: {job.why}")]
    return []


def _run(snapshot: Snapshot) -> list[Instruction]:
    job, active = snapshot.job, snapshot.active
    run = run_of(active, job)
    if run is not None and run.state == "dead":
        return [_ended(snapshot, run)]
    instance = active.instance if active is not None else None
    if active is None or active.gone or instance is None or instance.ended:
        why = instance.ended_reason if instance is not None else "its claim is gone"
        return [Again(reason=job.leaving or f"host lost: {why}")]
    if snapshot.silent_s > SILENT_S:
        return [Again(reason=f"host silent for {snapshot.silent_s:.0f} s")]
    if job.state is JobState.LEAVING:
        if run is None and active.connected:
            return [Again(reason=job.leaving)]
        wanted = _next(snapshot)
        if run is not None and not active.leaving:  # nobody takes the host: the script is told here
            wanted.append(StopRun(host_id=instance.id, grace_s=instance.offer.notice_s))
        return wanted
    notice = instance.notice
    if active.leaving and notice is not None:
        return [Leave(reason=f"{notice.kind} notice from {notice.source}")]
    if run is None and active.usable:
        return [StartRun(host_id=instance.id, offer=instance.offer)]
    return _back(snapshot) if hurried(job) and _on_demand(job) else []


def _ended(snapshot: Snapshot, run: TaskReport) -> Instruction:
    """What follows from a run that has ended and whose files are saved."""
    job, active = snapshot.job, snapshot.active
    code = run.exit_code
    stays = active is not None and active.usable
    if run.job is not None and run.job.told:
        return Again(reason=job.leaving or "told to end", exit_code=code)
    if code is None:
        return Again(reason="the run was lost on its host", keep_host=stays)
    if code == 0:
        return End(state=JobState.FINISHED, reason="exit code 0", exit_code=0)
    if job.failures < job.retries:
        return Again(reason=f"exit code {code}", exit_code=code, failed=True, keep_host=stays)
    return End(state=JobState.FAILED, reason=f"exit code {code}", exit_code=code)


def _next(snapshot: Snapshot) -> list[Instruction]:
    """A host to go on at, while the present one still works."""
    following = snapshot.next
    if following is None:
        return _seek(snapshot, "next", "a place to go on")
    if following.gone or following.leaving:
        return [DropHost(claim_id=following.claim.id, reason="the next host goes away")]
    return []


def _stop(snapshot: Snapshot) -> list[Instruction]:
    job, active = snapshot.job, snapshot.active
    run = run_of(active, job)
    if run is not None and run.state == "dead":
        reason = "stopped by a person"
        return [End(state=JobState.STOPPED, reason=reason, exit_code=run.exit_code)]
    instance = active.instance if active is not None else None
    lost = active is None or active.gone or instance is None or instance.ended
    if lost or snapshot.now_s - job.stopping_s > STOP_LIMIT_S:
        why = "its host is gone" if lost else "its host did not answer in time"
        return [End(state=JobState.STOPPED, reason=f"stopped by a person; {why}")]
    if instance is not None and run is not None:
        return [StopRun(host_id=instance.id, grace_s=STOP_GRACE_S)]
    if run is None and active is not None and active.connected:
        return [End(state=JobState.STOPPED, reason="stopped by a person before it ran")]
    return []


def run_of(view: ClaimView | None, job: Job) -> TaskReport | None:
    """The job's present run as its host reports it."""
    tasks = view.report.tasks if view is not None and view.report is not None else ()
    mine = (t for t in tasks if t.kind == "job" and t.session_id == job.id)
    return next((t for t in mine if t.epoch == job.epoch), None)
