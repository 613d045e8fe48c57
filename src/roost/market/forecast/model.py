"""The hazard model as it serves: coefficients from a JSON file, numpy only. Reads one file, never a clock.

A discrete-time hazard in four intervals, up to 10 min, 1 h, 6 h and 24 h (Singer and Willett, "It's about
time", 1993): each interval has a logistic model of being lost in it by who got that far, so that the
probability of being lost within a horizon, one minus the product of what is left, only grows with it.

    forecaster = Forecaster.load()
    pools = forecaster.pools(zones, regions, gap_s)
    pools.observe(up)            # every tick
    pools.hazards().p_loss       # [zones, horizons]
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from math import exp
from pathlib import Path
from typing import Self

import msgspec
import numpy as np
from numpy.typing import NDArray

from roost.market.forecast.bands import BandModel
from roost.market.forecast.baselines import Baselines
from roost.market.forecast.features import HORIZONS_H, PoolFeatures, names
from roost.market.forecast.lifetimes import LifetimeModel
from roost.market.forecast.recalibrate import Recalibration, shifted, shifts_over
from roost.market.forecast.ridge import logistic
from roost.market.survival import Hazard
from roost.market.traces import Trace
from roost.ports.errors import Invalid

SHIPPED = Path(__file__).parent.parent / "data" / "hazard.json"
FORMAT = 1
NORMAL_80 = 1.2816
"""Half width of an interval that holds 80 %, in standard deviations."""
KNOTS_H = (0.25, 1.0, 4.0, 16.0)
CROSSED = (
    "up_1.5h",
    "up_6h",
    "up_24h",
    "loss_2h",
    "loss_24h",
    "mean_up_run",
    "region_up",
    "own_at_age",
)
"""What the age of a run is crossed with: an old run in a calm pool is another thing than in a nervous one."""

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]


class Linear(msgspec.Struct, frozen=True, kw_only=True):
    """A logistic model of the expanded features."""

    coefficients: list[float]
    intercept: float


class Head(msgspec.Struct, frozen=True, kw_only=True):
    """One probability: logistic, then calibrated on zones left out.

    Calibrated log odds = ``shift`` + ``slope`` x log odds.
    """

    linear: Linear
    resampled: list[Linear]
    """The same fitted to resampled days: how far they differ is what the data leaves open."""
    slope: float
    shift: float
    pool_sd: float
    """How far whole pools lie from the model in log odds, beyond chance."""


class TrainedOn(msgspec.Struct, frozen=True, kw_only=True):
    """What of a recording the model has learnt from."""

    instance: str
    zones: list[str]
    gap_s: float
    first_tick: int
    last_tick: int
    days: float


class Artefact(msgspec.Struct, frozen=True, kw_only=True):
    """What is shipped."""

    format: int
    features: list[str]
    mean: list[float]
    scale: list[float]
    losses: list[Head]
    """One for each interval."""
    stays_up: Head
    comes_up: Head
    baselines: Baselines
    """Fitted to the same rows, for ``roost market evaluate``."""
    lifetimes: LifetimeModel | None = None
    bands: BandModel | None = None
    trained_on: dict[str, TrainedOn]
    made_by: str
    licence: str


@dataclass(frozen=True, slots=True, eq=False)
class Forecast:
    """Per pool [Z] (or [T, Z]), the last axis of losses being the horizons ``HORIZONS_H``.

    ``p_loss``: probability that a pool that is up is lost within the horizon; NaN for pools that are down and
    for pools nobody has looked at (nothing is known, which is not a number). ``p_up_1h``: probability that
    the pool can give an instance in an hour, whatever it can do now. Intervals hold 80 %.
    """

    p_loss: Floats
    p_loss_low: Floats
    p_loss_high: Floats
    p_up_1h: Floats
    p_up_1h_low: Floats
    p_up_1h_high: Floats


def expand(features: Floats) -> Floats:
    """[N, E] the features with hinges of the run's age and what it is crossed with."""
    index = {name: i for i, name in enumerate(names())}
    age = features[:, index["age"]]
    hinges = [np.maximum(age - np.log(knot), 0.0) for knot in KNOTS_H]
    crossed = [age * features[:, index[name]] for name in CROSSED]
    return np.concatenate([features, np.stack(hinges + crossed, axis=1)], axis=1)


class Forecaster:
    """A trained model. Immutable."""

    def __init__(self, artefact: Artefact) -> None:
        if artefact.format != FORMAT or tuple(artefact.features) != names():
            raise Invalid(
                "the model was trained by another version of Roost",
                hint="train it again: roost market train --data DIR --out FILE",
            )
        self.artefact = artefact
        self._mean = np.array(artefact.mean)
        self._scale = np.array(artefact.scale)
        self._heads = [_Loaded(head) for head in artefact.losses]
        self._stays = _Loaded(artefact.stays_up)
        self._comes = _Loaded(artefact.comes_up)

    @classmethod
    def load(cls, path: Path | None = None) -> Self:
        """The shipped model, or one from a file. Raises ``Invalid`` with what to do."""
        return cls(_read(path or SHIPPED))

    def pools(self, zones: Sequence[str], regions: Sequence[str], gap_s: float) -> "PoolStates":
        """Online state for the pools of a market: one instance type in these zones."""
        return PoolStates(zones, regions, gap_s, self)

    def forecast(self, features: Floats, up: Bools, seen_h: Floats) -> Forecast:
        """[N, F] features of pools to probabilities, [N] and [N, horizons]."""
        scaled = (expand(features) - self._mean) / self._scale
        made = [head.odds(scaled, seen_h) for head in self._heads]
        odds = np.stack([m[0] for m in made], axis=1)
        wide = NORMAL_80 * np.stack([m[1] for m in made], axis=1)
        losses = [_within(odds + side * wide) for side in (0.0, -1.0, 1.0)]
        stays, stays_sd = self._stays.odds(scaled, seen_h)
        comes, comes_sd = self._comes.odds(scaled, seen_h)
        later = np.where(up, stays, comes)
        later_wide = NORMAL_80 * np.where(up, stays_sd, comes_sd)
        blank = np.where(up & (seen_h > 0), 1.0, np.nan)
        seen = np.where(seen_h > 0, 1.0, np.nan)
        return Forecast(
            p_loss=losses[0] * blank[:, None],
            p_loss_low=losses[1] * blank[:, None],
            p_loss_high=losses[2] * blank[:, None],
            p_up_1h=logistic(later) * seen,
            p_up_1h_low=logistic(later - later_wide) * seen,
            p_up_1h_high=logistic(later + later_wide) * seen,
        )

    def replay(self, trace: Trace) -> Forecast:
        """The forecasts at every tick of a recording [T, Z, ...]; each knows only what came before it."""
        pools = PoolFeatures(trace.regions, trace.gap_s)
        shape = (trace.ticks, len(trace.zones))
        features = np.empty((*shape, len(names())))
        seen = np.empty(shape)
        state = np.empty(shape, dtype=bool)
        up, known = trace.up, trace.known
        for tick in range(trace.ticks):
            pools.observe(up[tick], known[tick])
            features[tick], seen[tick], state[tick] = pools.matrix(), pools.seen_h, pools.up
        made = self.forecast(features.reshape(-1, len(names())), state.ravel(), seen.ravel())
        many = (*shape, len(HORIZONS_H))
        p_loss = made.p_loss.reshape(many)
        shifts = shifts_over(state, known, p_loss, trace.gap_s)
        return Forecast(
            p_loss=shifted(p_loss, shifts),
            p_loss_low=shifted(made.p_loss_low.reshape(many), shifts),
            p_loss_high=shifted(made.p_loss_high.reshape(many), shifts),
            p_up_1h=made.p_up_1h.reshape(shape),
            p_up_1h_low=made.p_up_1h_low.reshape(shape),
            p_up_1h_high=made.p_up_1h_high.reshape(shape),
        )


class PoolStates:
    """What is known of the pools of one market now; ``observe`` costs the same however long it has run."""

    def __init__(
        self,
        zones: Sequence[str],
        regions: Sequence[str],
        gap_s: float,
        forecaster: Forecaster | None = None,
    ) -> None:
        """``gap_s``: seconds between two calls of ``observe``."""
        self.zones = tuple(zones)
        self._forecaster = forecaster or Forecaster.load()
        self._features = PoolFeatures(regions, gap_s)
        self._account = Recalibration(len(self.zones), gap_s)
        self._now = self._forecast()

    def observe(
        self,
        up: Bools,
        *,
        known: Bools | None = None,
        launched: Bools | None = None,
        refused: Bools | None = None,
        lost: Bools | None = None,
    ) -> None:
        """One tick. ``known``: where anybody looked (default everywhere).

        Own launches are looks too, and newer ones: a pool where one was ``launched`` is up, one where a
        launch was ``refused`` or a machine ``lost`` is down, whatever ``up`` says.
        """
        state = np.array(up, dtype=bool)
        seen = np.ones_like(state) if known is None else np.array(known, dtype=bool)
        for told, value in ((launched, True), (refused, False), (lost, False)):
            if told is not None:
                where = np.asarray(told, dtype=bool)
                state[where], seen[where] = value, True
        self._features.observe(state, seen)
        self._account.observe(self._features.up, seen)
        self._now = self._forecast()
        self._account.record(self._now.p_loss)

    def hazards(self) -> Forecast:
        """The forecasts for every pool now."""
        made, shifts = self._now, self._account.shifts()
        return replace(
            made,
            p_loss=shifted(made.p_loss, shifts),
            p_loss_low=shifted(made.p_loss_low, shifts),
            p_loss_high=shifted(made.p_loss_high, shifts),
        )

    def _forecast(self) -> Forecast:
        pools = self._features
        return self._forecaster.forecast(pools.matrix(), pools.up, pools.seen_h)


class _Loaded:
    """A head as arrays."""

    def __init__(self, head: Head) -> None:
        lines = [head.linear, *head.resampled]
        self._coefficients = np.array([line.coefficients for line in lines]).T
        self._intercepts = np.array([line.intercept for line in lines])
        self._head = head

    def odds(self, scaled: Floats, seen_h: Floats) -> tuple[Floats, Floats]:
        """Log odds [N] and their standard deviation [N]."""
        every = scaled @ self._coefficients + self._intercepts
        found = every[:, 0]
        spread = every[:, 1:].var(axis=1) if every.shape[1] > 2 else np.zeros(len(found))
        # A pool that has been watched for days has shown most of what sets it apart.
        own = self._head.pool_sd**2 * (0.25 + 0.75 / (1.0 + seen_h / 24.0))
        return self._head.shift + self._head.slope * found, np.sqrt(spread + own)


def _within(odds: Floats) -> Floats:
    """Log odds of the intervals [N, K] to probabilities of being lost by their ends."""
    return np.asarray(1.0 - np.cumprod(1.0 - logistic(odds), axis=1))


def prior(hazard: Hazard | None) -> tuple[Floats, Floats, Floats] | None:
    """Probabilities of loss by each horizon (expected, low, high) of a pool nobody has watched.

    ``hazard`` comes from its published band (``survival.PUBLISHED``); without one nothing is said: None.
    """
    if hazard is None:
        return None
    rates = (hazard.expected, hazard.low, hazard.high)
    made = [np.array([1.0 - exp(-rate * hours) for hours in HORIZONS_H]) for rate in rates]
    return made[0], made[1], made[2]


@lru_cache(maxsize=4)
def _read(path: Path) -> Artefact:
    try:
        return msgspec.json.decode(path.read_bytes(), type=Artefact)
    except FileNotFoundError:
        raise Invalid(
            f"no model at {path}", hint="roost market train --data DIR --out FILE"
        ) from None
    except msgspec.DecodeError as error:
        raise Invalid(f"{path} is no model: {error}", hint="train it again") from None
