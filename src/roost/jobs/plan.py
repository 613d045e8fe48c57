"""What a job needs next. Pure: a snapshot in, instructions with reasons out.

A run is interrupted when its host goes away or its script was told to end: whatever exit code it left
with, the job is run again from its last saved files. Only a script that ends by itself ends the job.
A job with a deadline asks for on-demand when ``deadline.py`` says that spot no longer fits.
"""

import msgspec

from roost.fleet.demand import DropHost, NeedHost
from roost.fleet.model import ClaimView, InstanceState
from roost.jobs.deadline import Standing, Where, decide
from roost.jobs.model import Job, JobState
from roost.ports.values import Offer, PurchaseOption, TaskReport

SILENT_S = 15.0
"""A host its provider lists as running but that is not connected for this long is given up."""
RESTART_S = 600.0
"""What a lost host costs a job with a deadline: the next one's boot (``fleet.plan.BOOT_LIMIT_S``),
work done again."""
LOOK_S = 60.0
"""Between decisions about a deadline; a claim's launches take that long to be refused."""
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


class Begin(msgspec.Struct, frozen=True, kw_only=True):
    """A run begins on this host."""

    host_id: str
    offer: Offer


class StartRun(msgspec.Struct, frozen=True, kw_only=True):
    """Tell the host (again) to run the job at its epoch."""

    host_id: str
    offer: Offer


class Leave(msgspec.Struct, frozen=True, kw_only=True):
    """The host goes away."""

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


class Stopping(msgspec.Struct, frozen=True, kw_only=True):
    """A person stops the job."""


class End(msgspec.Struct, frozen=True, kw_only=True):
    """The job is over."""

    state: JobState
    reason: str
    exit_code: int | None = None


Instruction = NeedHost | DropHost | Begin | StartRun | Leave | Again | StopRun | Stopping | End


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
        last = (job.offer,) if job.offer is not None else ()
        return [_need(snapshot, "active", last, f"job {job.name} needs a host")]
    late = _too_late_for(active, snapshot)
    if late:
        return [DropHost(claim_id=active.claim.id, reason=late)]
    if active.gone or active.leaving:
        return [DropHost(claim_id=active.claim.id, reason="its host goes away before a run began")]
    if active.usable and active.instance is not None and snapshot.now_s >= job.not_before_s:
        return [Begin(host_id=active.instance.id, offer=active.instance.offer)]
    return []


def _need(snapshot: Snapshot, role: str, away_from: tuple[Offer, ...], reason: str) -> NeedHost:
    pressed = behind(snapshot.job, snapshot.now_s)
    if not pressed:
        return NeedHost(role=role, away_from=away_from, reason=reason)
    return NeedHost(
        role=role,
        away_from=(),
        reason=f"{reason}; {pressed}",
        purchase_options=(PurchaseOption.ON_DEMAND,),
    )


def behind(job: Job, now_s: float) -> str:
    """Why the job's next host must be on demand; empty while there is time to try spot."""
    if job.deadline_s is None:
        return ""
    standing = Standing(
        work_s=job.work_s,
        left_s=job.left_s(now_s),
        deadline_s=job.deadline_s - job.created_s,
        elapsed_s=now_s - job.created_s,
        restart_s=RESTART_S,
        look_s=LOOK_S,
        on=Where.WAIT,
    )
    verdict = decide(standing, best_risk=0.0)
    return verdict.reason if verdict.where is Where.ON_DEMAND else ""


def _too_late_for(active: ClaimView, snapshot: Snapshot) -> str:
    """Why a claim that still looks for a spot host is given up."""
    instance = active.instance
    coming = instance is not None and instance.state in (InstanceState.BOOTING, InstanceState.READY)
    if coming or PurchaseOption.ON_DEMAND in active.claim.ask.purchase_options:
        return ""
    return behind(snapshot.job, snapshot.now_s)


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
        return _next(snapshot)
    notice = instance.notice
    if active.leaving and notice is not None:
        return [Leave(reason=f"{notice.kind} notice from {notice.source}")]
    if run is None and active.usable:
        return [StartRun(host_id=instance.id, offer=instance.offer)]
    return []


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
    following, offer = snapshot.next, snapshot.job.offer
    if following is None:
        away_from = (offer,) if offer is not None else ()
        return [_need(snapshot, "next", away_from, "a place to go on")]
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
        return [StopRun(host_id=instance.id)]
    if run is None and active is not None and active.connected:
        return [End(state=JobState.STOPPED, reason="stopped by a person before it ran")]
    return []


def run_of(view: ClaimView | None, job: Job) -> TaskReport | None:
    """The job's present run as its host reports it."""
    tasks = view.report.tasks if view is not None and view.report is not None else ()
    mine = (t for t in tasks if t.kind == "job" and t.session_id == job.id)
    return next((t for t in mine if t.epoch == job.epoch), None)
