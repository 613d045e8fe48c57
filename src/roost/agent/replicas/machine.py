"""The life of one replica, as pure decisions: what was seen goes in, the next state comes out.

    pulling -> starting -> ready <-> (a few bad answers)
                  |          |
                  |          '-> unhealthy -> backing_off -> starting …
                  '-> backing_off (ended, not ready in time, could not be started)
    draining: shown while it is told to take nothing new; when it ends then, it is ended for good

Ends in a row make the pauses longer; a replica that was ready for a while begins anew. Times are of a clock
that never goes back. It knows no process, no socket and no clock.
"""

import msgspec

from roost.kit.retry import RetryPolicy
from roost.ports.replicas import Health

BACK_OFF = RetryPolicy(first_s=1.0, factor=2.0, ceiling_s=60.0)
"""Between two ends in a row."""
STEADY_S = 30.0
"""Ready for so long, and an end is a first one again ..."""
STEADY_AGAIN_S = 0.1
"""... after which it is started again at once."""
AT_WORK_S = 120.0
"""A replica with requests in flight may be silent for so long since it was last seen to answer anything: many
servers do one thing at a time, and to end them for it would end what they do."""
LOOP = 3
"""Ends in a row that are called a crash loop."""
WORDS = 200
"""Most characters of a reason."""


class Life(msgspec.Struct, frozen=True, kw_only=True):
    """What is known of a replica; survives the agent."""

    state: str = "starting"
    """``pulling``, ``starting``, ``ready``, ``unhealthy``, ``backing_off``, ``ended``."""
    detail: str = ""
    restarts: int = 0
    exit_code: int | None = None
    began_s: float | None = None
    """When its process was started last; None = not yet."""
    ready_s: float | None = None
    """When it became ready, since it was started last."""
    again_s: float = 0.0
    """When it is started again, while it backs off."""
    failures: int = 0
    """Ends in a row."""
    run: int = 0
    """Health answers in a row that say the opposite of the state."""

    up: bool = False
    """Its process is there, as far as is known."""


def pulled(life: Life, what: str) -> Life:
    """Something is fetched before it can start."""
    return msgspec.structs.replace(life, state="pulling", detail=what[:WORDS])


def launched(life: Life, now_s: float) -> Life:
    """Its process was started."""
    return msgspec.structs.replace(
        life,
        state="starting",
        detail="",
        restarts=life.restarts + (life.began_s is not None),
        began_s=now_s,
        ready_s=None,
        run=0,
        up=True,
    )


def ended(life: Life, why: str, now_s: float, *, exit_code: int | None = None) -> Life:
    """Its process ended, was ended, or could not be started (``why``): back off."""
    steady = life.ready_s is not None and now_s - life.ready_s >= STEADY_S
    failures = 1 if steady else life.failures + 1
    wait_s = STEADY_AGAIN_S if steady else BACK_OFF.delay_s(failures)
    loop = f"crash loop: {failures} ends in a row, " if failures >= LOOP else ""
    return msgspec.structs.replace(
        life,
        state="backing_off",
        detail=f"{loop}{why[:WORDS]}, started again in {wait_s:g} s",
        exit_code=exit_code,
        ready_s=None,
        again_s=now_s + wait_s,
        failures=failures,
        run=0,
        up=False,
    )


def over(life: Life, why: str, exit_code: int | None) -> Life:
    """It ended while it was drained: it is not started again."""
    return msgspec.structs.replace(
        life, state="ended", detail=why[:WORDS], exit_code=exit_code, ready_s=None, up=False
    )


def checked(life: Life, health: Health, bad: str, now_s: float) -> Life:
    """A health answer came; ``bad`` says what was wrong with it, empty = nothing.

    The answer ``unhealthy`` asks the caller to end the process.
    """
    if life.state == "starting":
        return _started(life, health, bad, now_s)
    if life.state != "ready":
        return life
    if not bad:
        return msgspec.structs.replace(life, run=0, detail="") if life.run else life
    run = life.run + 1
    if run < health.unhealthy:
        return msgspec.structs.replace(life, run=run, detail=bad[:WORDS])
    why = f"unhealthy {run} times in a row: {bad}"
    return msgspec.structs.replace(life, state="unhealthy", run=0, detail=why[:WORDS])


def excused(life: Life, *, in_flight: int, silent_s: float) -> bool:
    """Whether a check that got no answer in time says nothing: the replica is at work."""
    return life.state == "ready" and in_flight > 0 and silent_s < AT_WORK_S


def _started(life: Life, health: Health, bad: str, now_s: float) -> Life:
    if not bad:
        if life.run + 1 < health.healthy:
            return msgspec.structs.replace(life, run=life.run + 1)
        return msgspec.structs.replace(life, state="ready", detail="", ready_s=now_s, run=0)
    if life.began_s is not None and now_s - life.began_s >= health.start_s:
        why = f"not ready within {health.start_s:g} s: {bad}"
        return msgspec.structs.replace(life, state="unhealthy", run=0, detail=why[:WORDS])
    return msgspec.structs.replace(life, run=0, detail=f"not ready yet: {bad}"[:WORDS])


def shown(life: Life, *, draining: bool) -> str:
    """The state as it is reported."""
    return "draining" if draining and life.state != "ended" else life.state


def exit_reason(code: int | None, memory_mib: float) -> str:
    """An exit status (128 + n for signal n, -1 = nobody knows) in words."""
    if code is None or code < 0:
        return "ended, nobody saw how"
    if code == 137:
        return f"killed (signal 9; it may have been over its {memory_mib:g} MiB of memory)"
    if code > 128:
        return f"ended by signal {code - 128}"
    return f"exit code {code}"
