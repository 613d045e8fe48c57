"""What came of a request at a backend, and what is learnt from it: latency, failures, ejection. Pure."""

import enum
from typing import TYPE_CHECKING

from roost.proxy import eject

if TYPE_CHECKING:
    from roost.proxy.upstream import Upstream

EWMA_SHARE = 0.1
"""Weight of a new latency in the mean."""
FAIL_SHARE = 0.2
"""Weight of a new result in the failure rate."""
NO_FAILURES = 0.01
"""A failure rate below this is forgotten."""


class Outcome(enum.Enum):
    """What came of a request at one backend."""

    OK = "ok"
    FAILED = "failed"
    """It answered 5xx or 429."""
    REFUSED = "refused"
    """No connection: refused, unreachable, or not made in time."""
    RESET = "reset"
    """The connection broke before the answer's end. A kept-alive one that the backend had closed while it
    was idle is no fault of its: that is ``CANCELLED``."""
    TIMED_OUT = "timed out"
    CANCELLED = "cancelled"
    """Our side or the client gave up: says nothing about the backend."""
    OUTRUN = "outrun"
    """A hedge sent elsewhere was answered first: it is at least that slow."""


def note(member: "Upstream", outcome: Outcome, seconds: float, now_s: float) -> None:
    """Learn from a request that is over."""
    if member.cell is not None:
        member.cell.set(member.active)
    if outcome is Outcome.OK:
        _good(member, seconds, now_s)
        return
    if outcome is Outcome.CANCELLED:
        member.trial_until_s = 0.0
        return
    member.watched = True
    if outcome in (Outcome.OUTRUN, Outcome.TIMED_OUT) and seconds > member.ewma_s > 0:
        member.ewma_s += (seconds - member.ewma_s) * EWMA_SHARE  # it is at least that slow
    if outcome is Outcome.OUTRUN:
        member.outrun += 1
        if member.outrun >= eject.OUTRUN_LIMIT or member.half_open:
            member.owner.eject(member, now_s)
        return
    member.failures += 1
    if outcome is Outcome.REFUSED:
        member.refused += 1
    elif outcome is Outcome.RESET:
        member.resets += 1
    elif outcome is Outcome.TIMED_OUT:
        member.timeouts += 1
    member.streak += 1
    _remember(member, 1)
    member.fail_rate += (1.0 - member.fail_rate) * FAIL_SHARE
    if outcome is Outcome.REFUSED:
        member.fail_rate = 1.0
    owner = member.owner
    at_once = outcome is Outcome.REFUSED or outcome is Outcome.RESET or member.half_open
    if at_once or eject.failed_enough(member, owner.policy.outlier, owner.members):
        owner.eject(member, now_s)


def _good(member: "Upstream", seconds: float, now_s: float) -> None:
    member.served += 1
    share = max(EWMA_SHARE, 1.0 / member.served)  # the first few: their plain mean
    member.ewma_s += (seconds - member.ewma_s) * share
    member.samples.append(seconds)
    member.streak = member.outrun = 0
    _remember(member, 0)
    member.fail_rate *= 1.0 - FAIL_SHARE
    if member.half_open:
        member.owner.let_in(member, now_s)
    known = member.served * EWMA_SHARE > 1.0
    if known and member.fail_rate < NO_FAILURES and not member.recent:
        member.fail_rate = 0.0
        member.seen = member.owner.policy.outlier.window  # as many good ones are behind it
        member.watched = member.cell is not None


def _remember(member: "Upstream", failed: int) -> None:
    window = member.owner.policy.outlier.window
    member.recent = ((member.recent << 1) | failed) & ((1 << window) - 1)
    if member.seen < window:
        member.seen += 1
