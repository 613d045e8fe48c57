"""The least-cost mix of purchase options for a demand over months: a small integer program (HiGHS).

    minimise   commitments x their term, used or not  +  hours by use x (price + risk)
    subject to commitments that run in the month + on demand + spot = instances wanted, at each level
               spot <= (1 - never spot) x instances wanted

The risk of spot is hazard x cost of a loss, the advisor's term, so that a mix is least-cost with its
interruptions counted. A commitment is only taken where its whole term lies inside the months asked about:
what comes after them is not known. Tariffs come from ``tariffs``; a price that nobody publishes never
enters. It never reads a file or a clock.
"""

from collections.abc import Sequence

import msgspec
import numpy as np
from numpy.typing import NDArray
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import lil_array

from roost.market.demand import MONTH_H, Demand
from roost.market.tariffs import Tariff
from roost.ports.errors import Invalid, Never

SMALL = 1e-6


class Part(msgspec.Struct, frozen=True, kw_only=True):
    """One option of the mix."""

    option: str
    instances: int
    """Under a commitment the most at once; by use the peak."""
    hours: float
    """Paid for: of a commitment its whole term."""
    usd: float
    """On the bill."""
    risk_usd: float
    """What interruptions are expected to cost beside it."""
    starts: dict[int, int] = {}
    """Of a commitment: month of its start (from 0) -> instances."""


class Mix(msgspec.Struct, frozen=True, kw_only=True):
    """What to buy."""

    parts: tuple[Part, ...]
    usd: float
    risk_usd: float
    on_demand_usd: float
    """The same demand on demand alone (or the dedicated one by use)."""
    unused_hours: float
    """Of commitments, paid and not needed."""

    @property
    def counted_usd(self) -> float:
        """What was minimised."""
        return self.usd + self.risk_usd


class Crossover(msgspec.Struct, frozen=True, kw_only=True):
    """From how many hours a month on a commitment costs less than paying by use."""

    option: str
    against: str
    hours_a_month: float | None
    """None: never, it costs more than the whole month by use."""


def least_cost(demand: Demand, tariffs: Sequence[Tariff], never_spot: float = 0.0) -> Mix:
    """The cheapest mix. ``never_spot``: share of the instances that must not be spot, 0 to 1.

    Raises ``Invalid`` when nothing can be bought by use, ``Never`` when the solver gives up.
    """
    if not 0.0 <= never_spot <= 1.0:
        raise Invalid(f"a share of {never_spot:g} that must not be spot", hint="0 to 1")
    program = _Program(demand, tariffs, never_spot)
    solved = milp(
        program.cost,
        integrality=program.whole,
        bounds=Bounds(0, program.most),
        constraints=LinearConstraint(program.matrix.tocsr(), program.low, program.high),
        options={"mip_rel_gap": 1e-4, "time_limit": 60.0},
    )
    if solved.x is None:
        raise Never(f"no mix was found: {solved.message}")
    return program.mix(np.asarray(solved.x, np.float64))


class _Program:
    """The program as matrices. Columns: commitments by (tariff, start), then a level's use of each kind."""

    def __init__(self, demand: Demand, tariffs: Sequence[Tariff], never_spot: float) -> None:
        self._by_use = [t for t in tariffs if not t.committed]
        if all(t.option == "spot" for t in self._by_use):
            raise Invalid("nothing can be bought by the hour", hint="name a pool with a price")
        length = len(demand.months)
        self._starts = [
            (tariff, start)
            for tariff in tariffs
            if tariff.committed
            for start in range(length - tariff.term_months + 1)
        ]
        self._levels = [
            (month, count, hours)
            for month, levels in enumerate(demand.months)
            for count, hours in sorted(levels.items())
        ]
        self._demand = demand
        self._fees = [(t, m) for t in self._by_use if t.fixed_usd_hour for m in range(length)]
        width = 1 + len(self._by_use)  # of a level: covered by commitments, then each kind of use
        self._first = len(self._starts)
        self._fee_at = self._first + width * len(self._levels)
        columns = self._fee_at + len(self._fees)
        self.cost = np.zeros(columns)
        self.whole = np.zeros(columns)
        self.most = np.full(columns, float(max(demand.peak, 1)))
        self._width = width
        self._fill_costs()
        self._fill_rows(columns, never_spot)

    def _fill_costs(self) -> None:
        for place, (tariff, _start) in enumerate(self._starts):
            self.cost[place] = tariff.counted_usd_hour * MONTH_H * tariff.term_months
            self.whole[place] = 1
        for number, (_month, _count, hours) in enumerate(self._levels):
            for kind, tariff in enumerate(self._by_use, start=1):
                self.cost[self._at(number) + kind] = tariff.counted_usd_hour * hours
        for place, (tariff, _month) in enumerate(self._fees, start=self._fee_at):
            self.cost[place] = tariff.fixed_usd_hour * MONTH_H
            self.whole[place] = 1
            self.most[place] = 1

    def _at(self, level: int) -> int:
        return self._first + self._width * level

    def _fill_rows(self, columns: int, never_spot: float) -> None:
        rows: list[tuple[dict[int, float], float, float]] = []
        for number, (month, count, _hours) in enumerate(self._levels):
            at = self._at(number)
            rows.append((dict.fromkeys(range(at, at + self._width), 1.0), count, count))
            running = {
                place: -1.0
                for place, (tariff, start) in enumerate(self._starts)
                if start <= month < start + tariff.term_months
            }
            rows.append(({at: 1.0, **running}, -np.inf, 0.0))
            for kind, tariff in enumerate(self._by_use, start=1):
                if tariff.option == "spot":
                    rows.append(({at + kind: 1.0}, -np.inf, (1.0 - never_spot) * count))
                if tariff.fixed_usd_hour:
                    fee = self._fee_at + self._fees.index((tariff, month))
                    rows.append(({at + kind: 1.0, fee: -float(count)}, -np.inf, 0.0))
        self.matrix = lil_array((len(rows), columns))
        self.low, self.high = np.empty(len(rows)), np.empty(len(rows))
        for place, (entries, low, high) in enumerate(rows):
            self.low[place], self.high[place] = low, high
            for column, value in entries.items():
                self.matrix[place, column] = value

    def mix(self, found: NDArray[np.float64]) -> Mix:
        """The solution in words of purchase options."""
        parts = [*self._commitments(found), *self._uses(found)]
        paid = sum(p.hours for p in parts if p.starts)
        covered = sum(
            found[self._at(n)] * hours for n, (_month, _count, hours) in enumerate(self._levels)
        )
        reference = next(t for t in self._by_use if t.option != "spot")
        alone = reference.usd_hour * self._demand.instance_hours
        alone += reference.fixed_usd_hour * MONTH_H * len(self._demand.months)
        return Mix(
            parts=tuple(parts),
            usd=sum(p.usd for p in parts),
            risk_usd=sum(p.risk_usd for p in parts),
            on_demand_usd=alone,
            unused_hours=max(0.0, paid - float(covered)),
        )

    def _commitments(self, found: NDArray[np.float64]) -> list[Part]:
        by_option: dict[str, dict[int, int]] = {}
        tariffs: dict[str, Tariff] = {}
        for place, (tariff, start) in enumerate(self._starts):
            count = round(found[place])
            if count:
                by_option.setdefault(tariff.option, {})[start] = count
                tariffs[tariff.option] = tariff
        parts = []
        for option, starts in by_option.items():
            tariff = tariffs[option]
            hours = sum(starts.values()) * tariff.term_months * MONTH_H
            running = [
                sum(n for start, n in starts.items() if start <= m < start + tariff.term_months)
                for m in range(len(self._demand.months))
            ]
            parts.append(
                Part(
                    option=option,
                    instances=max(running),
                    hours=hours,
                    usd=hours * tariff.usd_hour,
                    risk_usd=hours * tariff.risk_usd_hour,
                    starts=starts,
                )
            )
        return parts

    def _uses(self, found: NDArray[np.float64]) -> list[Part]:
        parts = []
        for kind, tariff in enumerate(self._by_use, start=1):
            used = [found[self._at(number) + kind] for number in range(len(self._levels))]
            hours = sum(count * level[2] for count, level in zip(used, self._levels, strict=True))
            if hours < SMALL:
                continue
            fees = sum(
                found[place]
                for place, (of, _month) in enumerate(self._fees, start=self._fee_at)
                if of is tariff
            )
            parts.append(
                Part(
                    option=tariff.option,
                    instances=int(np.ceil(max(used) - SMALL)),
                    hours=float(hours),
                    usd=float(hours * tariff.usd_hour + fees * tariff.fixed_usd_hour * MONTH_H),
                    risk_usd=float(hours * tariff.risk_usd_hour),
                )
            )
        return parts


def crossovers(tariffs: Sequence[Tariff]) -> list[Crossover]:
    """Where each commitment begins to pay, against each way of paying by use."""
    found = []
    for committed in (t for t in tariffs if t.committed):
        month = committed.counted_usd_hour * MONTH_H
        for by_use in (t for t in tariffs if not t.committed):
            hours = month / by_use.counted_usd_hour
            found.append(
                Crossover(
                    option=committed.option,
                    against=by_use.option,
                    hours_a_month=hours if hours <= MONTH_H else None,
                )
            )
    return found


def sentence(demand: Demand, mix: Mix, tariffs: Sequence[Tariff], never_spot: float) -> str:
    """What a person needs: what to buy, what it costs, what would change it."""
    said = [_bought(part, mix) for part in mix.parts]
    bought = " and ".join(part for part in (", ".join(said[:-1]), said[-1]) if part)
    saved = 1.0 - mix.usd / mix.on_demand_usd
    months = "1 month" if len(demand.months) == 1 else f"{len(demand.months)} months"
    less = "nothing priced here costs less" if saved < 0.005 else f"{saved:.0%} less than on demand"
    words = f"Buy {bought}: ${mix.usd:,.0f} in {months}, {less}"
    if mix.risk_usd > 0:
        words += f" (interruptions are expected to cost ${mix.risk_usd:,.0f} beside it)"
    words += "."
    if never_spot > 0:
        words += f" {never_spot:.0%} is kept off spot, as asked."
    pays = [c for c in crossovers(tariffs) if c.against == "on_demand"]
    spot = next((t for t in tariffs if t.option == "spot"), None)
    cheapest = min((t for t in tariffs if t.committed), key=lambda t: t.usd_hour, default=None)
    if cheapest is not None:
        hours = next(c.hours_a_month for c in pays if c.option == cheapest.option)
        words += (
            f" A {option_words(cheapest.option)} pays against on demand once a machine runs more than"
            f" {hours:,.0f} h a month"
            if hours is not None
            else f" A {option_words(cheapest.option)} never pays against on demand"
        )
        if spot is not None and spot.counted_usd_hour <= cheapest.counted_usd_hour:
            words += "; against spot never"
        words += "."
    return words


def _bought(part: Part, mix: Mix) -> str:
    of_all = part.hours / max(sum(p.hours for p in mix.parts), SMALL)
    if part.starts:
        machines = "machine" if part.instances == 1 else "machines"
        return f"{option_words(part.option)} for {part.instances} {machines}"
    if len(mix.parts) == 1:
        return f"{option_words(part.option)} only"
    return f"{option_words(part.option)} for {of_all:.0%} of the hours"


def option_words(option: str) -> str:
    """The name of an option for a person."""
    words = option.replace("_", " ").replace("cud", "commitment (CUD)")
    words = words.replace("1y", "of 1 year").replace("3y", "of 3 years")
    return "full month (sustained use)" if option == "sustained_use_full_month" else words
