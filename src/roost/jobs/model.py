"""The words of jobs: a job, its runs, how it ended. Pure values; never does I/O."""

from enum import StrEnum

import msgspec

from roost.fleet.model import Spread
from roost.ports.jobs import SavedFiles, SavedOutput
from roost.ports.store import DEFAULT_TENANT
from roost.ports.values import Ask, Image, Offer

RECORDS_KEPT = 100
"""Run records kept on a job; older ones stay in its story."""


class JobState(StrEnum):
    """Where a job is; ``machine.TRANSITIONS`` says what may follow what."""

    ACCEPTED = "accepted"
    RUNNING = "running"
    LEAVING = "leaving"
    STOPPING = "stopping"
    FINISHED = "finished"
    FAILED = "failed"
    STOPPED = "stopped"


ENDED = frozenset({JobState.FINISHED, JobState.FAILED, JobState.STOPPED})


class RunRecord(msgspec.Struct, frozen=True, kw_only=True):
    """A run that has ended."""

    epoch: int
    host_id: str
    offer: str
    started_s: float
    ended_s: float
    reason: str
    """Why it ended: ``exit code 0``, ``interruption notice from …``, ``host lost: …``."""
    exit_code: int | None = None


class Job(msgspec.Struct, frozen=True, kw_only=True):
    """Work that ends: durable intent, and where it is. Each run has an epoch of its own."""

    id: str
    name: str
    state: JobState
    epoch: int
    token: str
    """Of the request that made it: the same request again makes no second job."""
    argv: tuple[str, ...]
    ask: Ask
    image: Image
    files: str
    """Digest of what the next run begins with: as uploaded, then as last saved."""
    spread: Spread = Spread.POOL
    retries: int = 0
    """How often it is run again after an exit code other than 0."""
    failures: int = 0
    deadline_s: float | None = None
    """UTC seconds by which it shall have ended; None = whenever."""
    work_s: float = 0.0
    """How long it takes on a host that is never taken away, as its owner says."""
    desired: str = "done"
    """``done`` or ``stopped``."""
    claim_id: str = ""
    next_claim_id: str = ""
    """A host to go on at, claimed while the present one still works."""
    old_claims: tuple[str, ...] = ()
    """Claims to release."""
    host_id: str = ""
    offer: Offer | None = None
    """Of the present or last host."""
    began_s: float = 0.0
    """When the present or last run began."""
    not_before_s: float = 0.0
    """The pause after a failure."""
    leaving: str = ""
    """Why it leaves its host."""
    saved: SavedFiles | None = None
    """The newest files that are durable; None before the first run saved any."""
    output: SavedOutput | None = None
    exit_code: int | None = None
    """Of the run that ended the job."""
    runs: tuple[RunRecord, ...] = ()
    created_s: float = 0.0
    stopping_s: float = 0.0
    ended_s: float | None = None
    where: str = ""
    """What ``deadline.py`` said last (``wait``, ``spot`` or ``on_demand``); empty = not asked."""
    why: str = ""
    """Its reason."""
    message: str = ""
    """What a person should know now."""
    tenant: str = DEFAULT_TENANT

    @property
    def ended(self) -> bool:
        """Whether it will not run again."""
        return self.state in ENDED

    def left_s(self, now_s: float) -> float:
        """Work left (s), by the time its runs have had; what a lost run did after its last save is
        done again."""
        done_s = sum(run.ended_s - run.started_s for run in self.runs)
        if self.state in (JobState.RUNNING, JobState.LEAVING):
            done_s += now_s - self.began_s
        return max(0.0, self.work_s - done_s)

    @property
    def claims(self) -> tuple[str, ...]:
        """Every claim it still holds."""
        held = (self.claim_id, self.next_claim_id, *self.old_claims)
        return tuple(claim for claim in held if claim)
