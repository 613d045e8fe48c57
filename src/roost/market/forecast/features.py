"""What is known of pools, tick by tick, as numbers for the model. Pure; reads only the past.

``PoolFeatures`` is the only code that makes features: training replays recordings through it, so that what a
model has learnt from is what it is given when it serves. A tick costs the same however long the history is.

Rates and lengths are in hours, so that recordings with ticks of 30 to 600 s can be pooled. Averages fade
exponentially and start from a prior, as a gamma-Poisson or a beta-binomial estimate would: a pool seen for
an hour is mostly prior, one seen for a week is mostly itself.

Recorders look at a pool less often than they write a tick down (the nine-zone set: every 632 s, written
every 195 s), so a state can only change when they look. ``Cadence`` learns how often that is; what counts for
a horizon is how many looks fall into it.
"""

from collections.abc import Sequence
from math import log

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]
Indices = NDArray[np.intp]

UP_TAUS_H = (0.5, 1.5, 6.0, 24.0, 72.0)
LOSS_TAUS_H = (0.5, 2.0, 8.0, 24.0, 96.0)
PRIOR_UP = 0.5
PRIOR_UP_H = 1.0
"""The prior counts like so many hours of looking (at most a fifth of the time an average reaches back)."""
PRIOR_LOSS_HOUR = 0.25
PRIOR_LOSS_H = 3.0
LONG_H = 96.0
"""Longer runs and waits are not told apart."""
HORIZONS_H = (1.0 / 6.0, 1.0, 6.0, 24.0)
AGE_EDGES_H = (0.25, 0.75, 2.0, 5.0, 12.0)
"""Ages of a run that have a hazard of their own, per pool and pooled over the pools of a market."""
RUN_MEMORY = 0.25
"""Weight of the newest run in the average length of runs."""
DAY_H = 24.0
SLOTS = 48
"""Parts of a day whose availability and losses are remembered over days (no clock: days since the start)."""
DAY_KEEP = 0.75


class Cadence:
    """How often a recorder really looks at each pool, and when next. Learnt from when states changed.

    The lengths of runs are multiples of the time between two looks, which gives a first estimate for the
    whole market. The times of a pool's last changes then give its own period and phase (a periodogram).
    """

    LOW_S, HIGH_S, STEPS = 120.0, 1500.0, 500
    FADE = 0.99
    CLEAR = 0.35
    """Below this coherence of the run lengths (0 none, 1 perfect) nothing is said about looks."""
    FINE = np.exp(np.linspace(-0.008, 0.008, 41))
    KEPT = 64
    FADE_LOOKS = 450.0
    ENOUGH, SURE = 5.0, 0.6
    """Changes (faded) and coherence from which on a pool's own phase is used."""

    def __init__(self, gap_s: float, zones: int) -> None:
        low = max(self.LOW_S, 1.5 * gap_s)
        self._gap_s = gap_s
        self._periods = np.geomspace(low, max(self.HIGH_S, 1.1 * low), self.STEPS) / gap_s
        self._sum = np.zeros(self.STEPS)
        self._weight = 0.0
        self._changes = np.full((self.KEPT, zones), -np.inf)
        self._count = np.zeros(zones, dtype=int)
        self.period = np.full(zones, np.nan)
        """Ticks between two looks at each pool; NaN while that is not clear."""
        self._start = np.zeros(zones)
        """A tick (with a fraction) at which each pool was looked at."""

    def changed(self, zone: int, tick: int, run_ticks: float | None) -> None:
        """The state of a pool changed at ``tick``, after a run of this length where it was seen whole."""
        if run_ticks is not None:
            turns = run_ticks / self._periods
            # Short runs tell most: a small error of the period adds up over many looks.
            told = np.where((turns > 0.5) & (turns < 12.5), np.cos(2 * np.pi * turns), 0.0)
            self._sum = self.FADE * self._sum + told
            self._weight = self.FADE * self._weight + 1.0
        self._changes[self._count[zone] % self.KEPT, zone] = tick
        self._count[zone] += 1
        best = int(self._sum.argmax())
        if self._sum[best] > self.CLEAR * (self._weight + 10.0):
            self._fit(zone, tick, float(self._periods[best]))
        else:
            self.period[zone] = np.nan

    def _fit(self, zone: int, tick: int, period: float) -> None:
        back = self._changes[:, zone] - tick
        back = back[np.isfinite(back)]
        weight = np.exp(back / (self.FADE_LOOKS * period))
        periods = period * self.FINE
        told = (weight[:, None] * np.exp(2j * np.pi * back[:, None] / periods)).sum(axis=0)
        best = int(np.abs(told).argmax())
        total = float(weight.sum())
        sure = total >= self.ENOUGH and abs(told[best]) >= self.SURE * total
        self.period[zone] = periods[best] if sure else np.nan
        phase = float(np.angle(told[best])) / (2 * np.pi)
        # The look was half a tick before its result was written down, on average.
        self._start[zone] = tick + phase * periods[best] - 0.5

    def looks(self, tick: int, ticks: int) -> Floats:
        """Looks expected within the next ``ticks``, a pool, as a share of the usual number; 1 if not clear.

        A staircase as its first harmonics, which smooths it by the uncertainty of the phase.
        """
        turns = (tick - self._start) / self.period
        window = ticks / self.period
        found = window.copy()
        for m in (1, 2, 3, 4):
            kept = np.exp(-2.0 * (np.pi * m * PHASE_ERROR) ** 2) / (np.pi * m)
            later = np.sin(2 * np.pi * m * (turns + window))
            found += kept * (later - np.sin(2 * np.pi * m * turns))
        return np.where(np.isnan(found), 1.0, np.maximum(found, 0.0) / window)


PHASE_ERROR = 0.08
"""Standard deviation of the time of a look, as a share of the time between two."""
FEW_LOOKS = 0.05


def names() -> tuple[str, ...]:
    """The features in the order of the columns."""
    return (
        "age",
        *(f"up_{tau:g}h" for tau in UP_TAUS_H),
        *(f"loss_{tau:g}h" for tau in LOSS_TAUS_H),
        "last_up_run",
        "last_down_run",
        "mean_up_run",
        "mean_down_run",
        "own_at_age",
        "market_at_age",
        "region_up",
        "region_up_1.5h",
        "region_up_24h",
        "region_loss_0.5h",
        "region_loss_8h",
        "region_last_loss",
        "region_size",
        "others_up",
        "others_up_24h",
        "others_loss_0.5h",
        "others_loss_8h",
        "day_ago_up",
        "day_ago_change",
        "same_hour_up",
        "same_hour_loss",
        "looks_tick",
        "looks_10min",
        "looks_1h",
        "seen",
        "gap",
    )


class PoolFeatures:
    """The running state of the pools of one market (one instance type in several zones)."""

    def __init__(self, regions: Sequence[str], gap_s: float) -> None:
        if gap_s <= 0 or not regions:
            raise ValueError("a market needs zones and a tick longer than nothing")
        z = len(regions)
        self.gap_h = gap_s / 3600.0
        self.cadence = Cadence(gap_s, z)
        self._horizon_ticks = [max(1, round(h * 3600.0 / gap_s)) for h in HORIZONS_H]
        self.tick = -1
        same = np.array([[a == b for b in regions] for a in regions])
        near = same & ~np.eye(z, dtype=bool)
        self._near = near / np.maximum(near.sum(axis=1, keepdims=True), 1)
        self._far = ~same / np.maximum((~same).sum(axis=1, keepdims=True), 1)
        self._alone = ~near.any(axis=1)
        self._alone_far = same.all(axis=1)
        self._near_any = near
        self._size = np.log1p(near.sum(axis=1).astype(float))
        self._up_keep = np.exp(-self.gap_h / np.array(UP_TAUS_H))[:, None]
        self._loss_keep = np.exp(-self.gap_h / np.array(LOSS_TAUS_H))[:, None]
        self._up_prior = np.minimum(PRIOR_UP_H, 0.2 * np.array(UP_TAUS_H))[:, None]
        self._loss_prior = np.minimum(PRIOR_LOSS_H, 0.5 * np.array(LOSS_TAUS_H))[:, None]
        self._up_sum = np.zeros((len(UP_TAUS_H), z))
        self._up_hours = np.zeros((len(UP_TAUS_H), z))
        self._losses = np.zeros((len(LOSS_TAUS_H), z))
        self._loss_hours = np.zeros((len(LOSS_TAUS_H), z))
        self.up = np.zeros(z, dtype=bool)
        self.age_ticks = np.zeros(z)
        self._runs = np.zeros(z, dtype=int)
        self.seen_h = np.zeros(z)
        self._last = np.full((2, z), log(1.0))
        self._mean = np.full((2, z), log(1.0))
        self._age_losses = np.zeros((len(AGE_EDGES_H) + 1, z))
        self._age_hours = np.zeros((len(AGE_EDGES_H) + 1, z))
        self._since_loss = np.full(z, LONG_H)
        self._columns = np.arange(z)
        ring = max(1, round(DAY_H / self.gap_h))
        self._ring = np.full((ring, 2, z), np.nan, dtype=np.float32)
        self._place = 0
        self._slot = -1
        # Of each part of the day: hours looked at, hours up, hours held, losses.
        self._slots = np.zeros((SLOTS, 4, z))

    def observe(self, up: Bools, known: Bools | None = None) -> None:
        """One tick: whether each pool could give an instance; pools not ``known`` now keep what they had."""
        self.tick += 1
        up = np.asarray(up, dtype=bool)
        seen = np.ones_like(up) if known is None else np.asarray(known, dtype=bool)
        first = seen & (self.seen_h == 0.0)
        changed = seen & ~first & (up != self.up)
        lost = changed & self.up
        held = seen & ~first & self.up
        hours = np.where(seen, self.gap_h, 0.0)
        self._up_sum = self._up_keep * self._up_sum + np.where(up, hours, 0.0)
        self._up_hours = self._up_keep * self._up_hours + hours
        self._losses = self._loss_keep * self._losses + lost
        self._loss_hours = self._loss_keep * self._loss_hours + np.where(held, self.gap_h, 0.0)
        self._count_at_age(held, lost)
        self._since_loss = np.where(lost, 0.0, np.minimum(self._since_loss + self.gap_h, LONG_H))
        self.age_ticks += 1.0
        if changed.any():
            self._end_runs(np.flatnonzero(changed))
        self.age_ticks[first] = 0.0
        self.up = np.where(seen, up, self.up)
        self.seen_h += hours
        self._place = (self._place + 1) % len(self._ring)
        recent = self._up_sum[0] / np.maximum(self._up_hours[0], 1e-9)
        self._ring[self._place, 0] = recent
        self._ring[self._place, 1] = self._losses[1] > 0.5
        slot = int(self.tick * self.gap_h * SLOTS / DAY_H) % SLOTS
        if slot != self._slot:
            self._slot = slot
            self._slots[slot] *= DAY_KEEP
        self._slots[slot] += np.stack([hours, np.where(up, hours, 0.0), held * self.gap_h, lost])

    def _same_hour(self) -> tuple[Floats, Floats]:
        """Availability, and losses an up hour, of the coming hour on the days before."""
        ahead = [(self._slot + i) % SLOTS for i in (1, 2)]
        looked, up, held, lost = self._slots[ahead].sum(axis=0)
        losses = (self._losses[4] + PRIOR_LOSS_HOUR) / (self._loss_hours[4] + 1.0)
        return (up + 0.5) / (looked + 1.0), np.log((lost + 2.0 * losses) / (held + 2.0))

    def _count_at_age(self, held: Bools, lost: Bools) -> None:
        bucket = np.searchsorted(AGE_EDGES_H, self.age_ticks * self.gap_h)
        self._age_hours[bucket, self._columns] += np.where(held, self.gap_h, 0.0)
        self._age_losses[bucket, self._columns] += lost

    def _end_runs(self, zones: Indices) -> None:
        for zone in zones:
            kind = 0 if self.up[zone] else 1
            ticks = self.age_ticks[zone]
            length = log(min(max(ticks, 0.5) * self.gap_h, LONG_H))
            whole = bool(self._runs[zone])  # the first run began before anybody looked
            self.cadence.changed(int(zone), self.tick, ticks if whole else None)
            self._runs[zone] += 1
            self._last[kind, zone] = length
            self._mean[kind, zone] += RUN_MEMORY * (length - self._mean[kind, zone])
            self.age_ticks[zone] = 0.0

    def _rates(self) -> tuple[Floats, Floats]:
        """Availability [taus, Z] and losses an up hour [taus, Z], from the priors onwards."""
        up = (self._up_sum + self._up_prior * PRIOR_UP) / (self._up_hours + self._up_prior)
        losses = (self._losses + self._loss_prior * PRIOR_LOSS_HOUR) / (
            self._loss_hours + self._loss_prior
        )
        return up, losses

    def _at_age(self) -> tuple[Floats, Floats]:
        """Losses an hour at the present age: of the market, and of the pool shrunk to it."""
        bucket = np.searchsorted(AGE_EDGES_H, self.age_ticks * self.gap_h)
        hours, losses = self._age_hours.sum(axis=1), self._age_losses.sum(axis=1)
        market = ((losses + 2.0 * PRIOR_LOSS_HOUR) / (hours + 2.0))[bucket]
        own_hours = self._age_hours[bucket, self._columns]
        own = (self._age_losses[bucket, self._columns] + 5.0 * market) / (own_hours + 5.0)
        return market, own

    def matrix(self) -> Floats:
        """[Z, F] the features of every pool now, in the order of ``names``."""
        up, losses = self._rates()
        odds = np.log(up / (1.0 - up)).clip(-5.0, 5.0)
        log_losses = np.log(losses)
        market, own = self._at_age()
        now = self.up.astype(float)
        shared = np.stack([now, up[1], up[3], log_losses[0], log_losses[2]])
        near = shared @ self._near.T
        far = shared @ self._far.T
        near[:, self._alone] = shared[:, self._alone] * 0.0 + ALONE[:, None]
        far[:, self._alone_far] = ALONE[:, None]
        since = np.where(self._near_any, self._since_loss[None, :], LONG_H).min(axis=1)
        day = self._ring[(self._place + 1) % len(self._ring)].astype(float)
        # An hour past this time of yesterday: what the day brought next.
        ahead = self._ring[(self._place + 1 + round(1.0 / self.gap_h)) % len(self._ring)]
        yesterday = np.where(np.isnan(day[0]), 0.5, ahead[0].astype(float))
        change = np.where(np.isnan(day[1]), 0.0, ahead[1].astype(float))
        yesterday = np.where(np.isnan(yesterday), 0.5, yesterday)
        change = np.where(np.isnan(change), 0.0, change)
        looks = [self.cadence.looks(self.tick, h) for h in (1, *self._horizon_ticks[:2])]
        rows = [
            np.log(np.minimum((self.age_ticks + 0.5) * self.gap_h, LONG_H))[None],
            odds,
            log_losses,
            self._last,
            self._mean,
            np.log(own)[None],
            np.log(market)[None],
            near[:3],
            near[3:],
            np.log(since + 0.05)[None],
            self._size[None],
            far[[0, 2, 3, 4]],
            yesterday[None],
            change[None],
            *(x[None] for x in self._same_hour()),
            *(np.log(np.maximum(x, FEW_LOOKS))[None] for x in looks),
            np.log(np.minimum(self.seen_h, LONG_H) + 0.1)[None],
            np.full((1, len(now)), log(self.gap_h)),
        ]
        return np.concatenate(rows).T


ALONE = np.array([0.5, 0.5, 0.5, log(PRIOR_LOSS_HOUR), log(PRIOR_LOSS_HOUR)])
"""What stands for the neighbours of a pool without any."""


def replay(
    up: Bools, known: Bools, regions: Sequence[str], gap_s: float
) -> tuple[NDArray[np.float32], Floats]:
    """The features at every tick of a recording [T, Z, F], and hours seen [T, Z]."""
    state = PoolFeatures(regions, gap_s)
    made = np.empty((*up.shape, len(names())), dtype=np.float32)
    seen = np.empty(up.shape)
    for tick in range(len(up)):
        state.observe(up[tick], known[tick])
        made[tick] = state.matrix()
        seen[tick] = state.seen_h
    return made, seen
