"""Policies for a batch job with a deadline: the baselines from their papers, and Roost's. Pure; each
sees only ``Seen``.

on-demand         on demand from the beginning
greedy            the first pool that is up; on demand when only work + 2 restarts + a tick fit before
                  the deadline
ewma              greedy with the pool of the highest availability over the last 24 h
uniform-progress  Uniform Progress (Wu et al., "Can't Be Late", NSDI 2024, section 4), first pool that
                  is up
roost             ``jobs/deadline.py``, as running jobs are decided
"""

from collections.abc import Sequence

from roost.jobs.deadline import SOON_H, Chance, Standing, Where, decide
from roost.sim.backtest.job import Progress
from roost.sim.backtest.pools import ON_DEMAND
from roost.sim.backtest.seen import HORIZONS_H, Seen


class OnDemandJob:
    """Never uses spot."""

    def where(self, seen: Seen, progress: Progress) -> int | None:
        return ON_DEMAND


class GreedyJob:
    """Exploits spot until it is lost; the safety net keeps the deadline."""

    def where(self, seen: Seen, progress: Progress) -> int | None:
        if progress.place is not None:
            return progress.place
        if _must(seen, progress):
            return ON_DEMAND
        return self.pick(seen)

    def pick(self, seen: Seen) -> int | None:
        """The pool to launch in."""
        return next((z for z in range(len(seen.zones)) if seen.up[z]), None)


class EwmaJob(GreedyJob):
    """Greedy, the pool by its availability."""

    def __init__(self, past: Sequence[Sequence[float]]) -> None:
        """``past``: as ``session_policies.availability`` makes it."""
        self._past = past

    def pick(self, seen: Seen) -> int | None:
        share = self._past[seen.tick]
        up = [z for z in range(len(seen.zones)) if seen.up[z]]
        return max(up, key=lambda z: share[z], default=None)


class UniformProgress(GreedyJob):
    """Behind the line on demand, ahead of it waiting; back on spot when two restarts ahead."""

    def where(self, seen: Seen, progress: Progress) -> int | None:
        task = progress.task
        if progress.place is not None and progress.place != ON_DEMAND:
            return progress.place
        must, zone = _must(seen, progress), self.pick(seen)
        done_s = task.work_s - progress.left_s
        speed = task.work_s / task.deadline_s
        if progress.place == ON_DEMAND:
            ahead = done_s >= (progress.elapsed_s + 2.0 * task.restart_s) * speed
            return zone if ahead and zone is not None and not must else ON_DEMAND
        if must:
            return ON_DEMAND
        if zone is not None:
            return zone
        return ON_DEMAND if done_s < progress.elapsed_s * speed else None


class RoostJob:
    """Where ``jobs/deadline.py`` says."""

    SOON, HOUR = HORIZONS_H.index(SOON_H), HORIZONS_H.index(1.0)
    """Numbers of the horizons that it asks for."""

    def where(self, seen: Seen, progress: Progress) -> int | None:
        task, place = progress.task, progress.place
        on = Where.WAIT if place is None else Where.ON_DEMAND if place == ON_DEMAND else Where.SPOT
        standing = Standing(
            work_s=task.work_s,
            left_s=progress.left_s,
            deadline_s=task.deadline_s,
            elapsed_s=progress.elapsed_s,
            restart_s=task.restart_s,
            look_s=seen.gap_s,
            on=on,
        )
        verdict = decide(standing, () if on is Where.SPOT else self._chances(seen))
        if verdict.where is Where.SPOT:
            return int(verdict.pool)
        return {Where.STAY: place, Where.WAIT: None, Where.ON_DEMAND: ON_DEMAND}[verdict.where]

    def _chances(self, seen: Seen) -> list[Chance]:
        soon = seen.forecasts.p_loss(seen.tick, self.SOON)
        hour = seen.forecasts.p_loss(seen.tick, self.HOUR)
        return [
            Chance(pool=str(z), price=seen.price[z], soon=soon[z], hour=hour[z])
            for z in range(len(seen.zones))
            if seen.up[z] and not seen.refuses(z)
        ]


def _must(seen: Seen, progress: Progress) -> bool:
    need_s = progress.left_s + 2.0 * progress.task.restart_s + seen.gap_s
    return progress.time_left_s < need_s
