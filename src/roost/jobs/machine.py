"""What may happen to a job. Pure: a job and facts in, a new job out."""

import msgspec

from roost.jobs.model import RECORDS_KEPT, Job, JobState, RunRecord
from roost.ports.jobs import JobReport
from roost.ports.values import Offer

S = JobState

PAUSE_S = 2.0
"""Before the first run after a failure; doubles with each."""
LONGEST_PAUSE_S = 60.0

TRANSITIONS: dict[JobState, dict[JobState, str]] = {
    S.ACCEPTED: {
        S.RUNNING: "a host is ready: a run begins at the next epoch, from the last saved files",
        S.STOPPED: "stopped while no host ran it",
    },
    S.RUNNING: {
        S.LEAVING: "its host goes away: the script was told, another host is looked for",
        S.ACCEPTED: "the run ended before its work did: it is run again",
        S.STOPPING: "a person stops it",
        S.FINISHED: "the script ended by itself with exit code 0",
        S.FAILED: "the script ended with another exit code and is not tried again",
    },
    S.LEAVING: {
        S.ACCEPTED: "the run has ended and is saved, or its host is gone",
        S.STOPPING: "a person stops it",
        S.FINISHED: "the script ended by itself before it was told",
        S.FAILED: "as from running",
    },
    S.STOPPING: {S.STOPPED: "the script has ended and its files are saved, or waiting is over"},
    S.FINISHED: {},
    S.FAILED: {},
    S.STOPPED: {},
}
"""Every edge with when it happens. A job ends once: nothing follows the three last states."""


class InvalidTransition(Exception):
    """A step the table does not know."""


def step(job: Job, to: JobState) -> Job:
    """``job`` in state ``to``; raises ``InvalidTransition`` for an edge not in the table."""
    if to not in TRANSITIONS[job.state]:
        raise InvalidTransition(f"{job.id}: {job.state} -> {to}")
    return msgspec.structs.replace(job, state=to)


def begin(job: Job, host_id: str, offer: Offer, now_s: float) -> Job:
    """A host is ready: a run begins there at a new epoch."""
    return msgspec.structs.replace(
        step(job, S.RUNNING),
        epoch=job.epoch + 1,
        host_id=host_id,
        offer=offer,
        began_s=now_s,
        leaving="",
        message="",
    )


def decided(job: Job, where: str, why: str) -> Job:
    """What the deadline asks for now."""
    return msgspec.structs.replace(job, where=where, why=why)


def leave(job: Job, reason: str) -> Job:
    """The host goes away or is left: the run there ends, the next begins elsewhere."""
    return msgspec.structs.replace(step(job, S.LEAVING), leaving=reason)


def noted(job: Job, report: JobReport) -> Job:
    """Fold in what the host of the present run has made durable."""
    files, output, saved = job.files, job.output, job.saved
    if report.files is not None and report.files != saved:
        files, saved = report.files.digest, report.files
    if report.output is not None:
        output = report.output
    return msgspec.structs.replace(
        job, files=files, saved=saved, output=output, message=report.trouble
    )


def again(
    job: Job, reason: str, now_s: float, *, exit_code: int | None, failed: bool, keep_host: bool
) -> Job:
    """The run is over and the work is not: the next one may begin, elsewhere unless ``keep_host``."""
    ended = _recorded(step(job, S.ACCEPTED), reason, now_s, exit_code)
    failures = job.failures + (1 if failed else 0)
    pause_s = min(LONGEST_PAUSE_S, PAUSE_S * 2.0 ** (failures - 1)) if failed else 0.0
    if keep_host:
        pause_s = max(pause_s, PAUSE_S)
    if not keep_host:
        old = (*job.old_claims, job.claim_id) if job.claim_id else job.old_claims
        ended = msgspec.structs.replace(
            ended, claim_id=job.next_claim_id, next_claim_id="", old_claims=old
        )
    return msgspec.structs.replace(
        ended, failures=failures, not_before_s=now_s + pause_s, leaving=""
    )


def stopping(job: Job, now_s: float) -> Job:
    """A person stops it while it runs."""
    return msgspec.structs.replace(step(job, S.STOPPING), stopping_s=now_s)


def end(job: Job, to: JobState, reason: str, now_s: float, exit_code: int | None) -> Job:
    """The job is over, once and for all; its hosts are to be let go."""
    ended = step(job, to)
    if job.state is not S.ACCEPTED:
        ended = _recorded(ended, reason, now_s, exit_code)
    return msgspec.structs.replace(
        ended,
        exit_code=exit_code,
        ended_s=now_s,
        claim_id="",
        next_claim_id="",
        old_claims=job.claims,
        leaving="",
    )


def _recorded(job: Job, reason: str, now_s: float, exit_code: int | None) -> Job:
    record = RunRecord(
        epoch=job.epoch,
        host_id=job.host_id,
        offer=job.offer.key if job.offer else "",
        started_s=job.began_s,
        ended_s=now_s,
        reason=reason,
        exit_code=exit_code,
    )
    return msgspec.structs.replace(job, runs=(*job.runs, record)[-RECORDS_KEPT:])
