"""Backends taken out by what requests meet, and let back in by one trial request. Pure.

A backend goes out at a refused or reset connection, at errors in a row, at a share of errors, or (where
asked for) as the slow one; out for 0.5 s, doubling. Never more than the allowed share of them is out.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from roost.proxy import policy

if TYPE_CHECKING:
    from roost.proxy.upstream import Upstream

FORGIVE_S = 30.0
"""In for this long, and the next ejection is a first one again."""
COMMON_FAILURES = 0.5
"""Where the others fail as often as this too, the fault is not the backend's: 5xx do not eject."""
OUTRUN_LIMIT = 3
"""Hedges lost in a row that count as frozen."""
LATENCY_SAMPLES = 20
"""Answers before a backend may be called slow."""


def may_go_out(members: Sequence["Upstream"], passive: policy.PassiveHealth) -> bool:
    """Whether one more backend may be out."""
    out = sum(1 for member in members if member.out_until_s or member.down)
    return out + 1 <= passive.max_ejected_share * len(members) + 1e-9


def eject(
    member: "Upstream",
    members: Sequence["Upstream"],
    passive: policy.PassiveHealth,
    now_s: float,
) -> bool:
    """Take it out, if it is in and the share allows."""
    if member.out_until_s and not member.half_open:
        return False
    if not member.half_open:
        if not may_go_out(members, passive):
            return False
        if now_s - member.back_since_s > FORGIVE_S:
            member.ejections = 0
    seconds = passive.eject_max_s
    if member.ejections < 32:
        seconds = min(seconds, passive.eject_s * (1 << member.ejections))
    member.ejections += 1
    member.half_open = False
    member.trial_until_s = 0.0
    member.out_for_s = seconds
    member.out_until_s = now_s + seconds
    member.streak = member.recent = member.outrun = 0
    return True


def let_in(member: "Upstream", now_s: float) -> None:
    """It answers again."""
    member.out_until_s = 0.0
    member.half_open = False
    member.trial_until_s = 0.0
    member.back_since_s = member.since_s = now_s
    member.fail_rate = 0.0
    member.streak = member.recent = member.outrun = 0


def failed_enough(
    member: "Upstream", passive: policy.PassiveHealth, members: Sequence["Upstream"]
) -> bool:
    """Whether its errors are too many, in a row or of the last ones, and are its own."""
    if not passive.consecutive_errors or member.streak < passive.consecutive_errors:
        window = passive.window
        if window <= 0 or member.seen < window:
            return False
        if member.recent.bit_count() <= passive.error_share * window:
            return False
    rates = sorted(m.fail_rate for m in members if m is not member and not m.down)
    return not rates or rates[(len(rates) - 1) // 2] <= COMMON_FAILURES


def trial_due(member: "Upstream", now_s: float) -> bool:
    """Whether a half-open backend may have its one request now."""
    return member.half_open and now_s >= member.trial_until_s
