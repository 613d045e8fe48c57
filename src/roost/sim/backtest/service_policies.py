"""Policies for a service of N replicas: the baselines from their papers, and Roost's. Pure; each sees
only ``Seen``.

on-demand    N machines on demand
greedy       N spot replicas in the first pools that give them, else on demand
spothedge    SpotHedge (Mao et al., "SkyServe", EuroSys 2025, section 3): pools in an active and a
             preempted list, first an active one without a replica; a refusal or a loss moves a pool to
             the preempted list; the lists are begun again when too few are active; on-demand = min(N,
             N + extra - spot that was ready a look ago), as its artefact counts. It does not probe.
roost        the money rule, spread over regions, risk-gated spares (``fleet/spares.py``), launching
             before leaving
"""

from collections import Counter
from collections.abc import Sequence

from roost.fleet.spares import exposed, kept
from roost.market import decision
from roost.sim.backtest.pools import ON_DEMAND
from roost.sim.backtest.seen import HORIZONS_H, Seen
from roost.sim.backtest.service import Plan, Replica
from roost.sim.backtest.session import Timing


class OnDemandService:
    """Never uses spot."""

    def plan(self, seen: Seen, replicas: Sequence[Replica], wanted: int) -> Plan:
        return Plan(launch=[ON_DEMAND] * (wanted - len(replicas)))


class GreedyService:
    """The first pools of the list; on demand for what is missing."""

    def plan(self, seen: Seen, replicas: Sequence[Replica], wanted: int) -> Plan:
        spot = [r for r in replicas if r.place != ON_DEMAND and not r.told]
        bridges = [r for r in replicas if r.place == ON_DEMAND]
        plan = Plan(release=_bridges_to_end(spot, bridges, seen.now_s, wanted))
        missing = wanted - len(spot)
        if missing <= 0:
            return plan
        zone = next((z for z in range(len(seen.zones)) if seen.open(z)), None)
        if zone is not None:
            plan.launch = [zone] * missing
        else:
            plan.launch = [ON_DEMAND] * (missing - len(bridges))
        return plan


class SpotHedge:
    """As published, with ``extra`` spot replicas."""

    def __init__(self, extra: int) -> None:
        self._extra = extra
        self._active: list[int] = []
        self._preempted: list[int] = []
        self._known: set[Replica] = set()

    def plan(self, seen: Seen, replicas: Sequence[Replica], wanted: int) -> Plan:
        if not self._active and not self._preempted:
            self._active = list(range(len(seen.zones)))
        spot = [r for r in replicas if r.place != ON_DEMAND]
        self._learn(seen, spot)
        standing = [r for r in spot if not r.told]
        plan = Plan()
        held = Counter(r.place for r in standing)
        for _ in range(wanted + self._extra - len(standing)):
            zone = self._next(seen, held)
            if zone is None:
                break
            held[zone] += 1
            plan.launch.append(zone)
        ready = sum(r.ready_s + seen.gap_s <= seen.now_s for r in standing)
        bridges = [r for r in replicas if r.place == ON_DEMAND]
        need = min(wanted, max(0, wanted + self._extra - ready))
        plan.launch += [ON_DEMAND] * (need - len(bridges))
        plan.release = bridges[need:]
        return plan

    def _learn(self, seen: Seen, spot: Sequence[Replica]) -> None:
        present = set(spot)
        gone = {r.place for r in self._known - present}
        gone |= {z for z in self._active if seen.refuses(z)}
        self._known = present
        for zone in sorted(gone):
            if zone in self._active:
                self._active.remove(zone)
                self._preempted.append(zone)
        if len(self._active) <= min(1, len(seen.zones) - 3):
            self._active += self._preempted
            self._preempted = []

    def _next(self, seen: Seen, held: Counter[int]) -> int | None:
        open_zones = [z for z in self._active if not seen.refuses(z)]
        empty = [z for z in open_zones if not held[z]]
        return next(iter(empty or open_zones), None)


class RoostService:
    """N of the lowest rate, spread; a spare while risk is high; replacements stand before the replaced
    go."""

    PLACE, RISK_AT = 1, 0
    """Numbers of the horizons: 1 h for rates, 10 min for the risk that spares are kept for."""

    def __init__(self, timing: Timing) -> None:
        self._timing = timing
        missing_s = max(0.0, timing.launch_s - timing.notice_s)
        self._loss = decision.loss_usd(timing.downtime_weight, max(timing.freeze_s, missing_s))
        self._regions: dict[int, str] = {}
        self._prices: dict[int, float] = {}
        self._spares = 0

    def plan(self, seen: Seen, replicas: Sequence[Replica], wanted: int) -> Plan:
        self._regions = dict(enumerate(seen.regions))
        self._prices = dict(enumerate(seen.price))
        rates = self._rates(seen)
        staying = [r for r in replicas if not r.told and not r.leaving]
        spot = [r for r in staying if r.place != ON_DEMAND]
        bridges = [r for r in staying if r.place == ON_DEMAND]
        risks = seen.forecasts.p_loss(seen.tick, self.RISK_AT)
        timing = self._timing
        felt = [exposed(risks[r.place], timing.launch_s, timing.notice_s) for r in spot]
        pools = len({*rates, *(r.place for r in spot)})
        self._spares = kept(felt, self._spares, wanted, pools)
        plan = Plan()
        self._fill(plan, seen, rates, spot, bridges, wanted)
        if not plan.launch:
            self._improve(seen, plan, rates, spot)
        self._let_go(plan, seen, replicas, rates, wanted)
        return plan

    def _rates(self, seen: Seen) -> dict[int, float]:
        losses = seen.forecasts.p_loss(seen.tick, self.PLACE)
        hours = HORIZONS_H[self.PLACE]
        return {
            z: decision.rate(seen.price[z], 1.0, decision.hazard_hour(losses[z], hours), self._loss)
            for z in range(len(seen.zones))
            if seen.up[z] and seen.open(z)
        }

    def _fill(
        self,
        plan: Plan,
        seen: Seen,
        rates: dict[int, float],
        spot: list[Replica],
        bridges: list[Replica],
        wanted: int,
    ) -> None:
        missing = wanted + self._spares - len(spot)
        if missing > 0:
            standing = [r.place for r in spot]
            plan.launch = decision.spread_out(missing, rates, self._prices, self._regions, standing)
        short = wanted - len(spot) - len(plan.launch) - len(bridges)
        plan.launch += [ON_DEMAND] * short

    def _improve(
        self, seen: Seen, plan: Plan, rates: dict[int, float], spot: list[Replica]
    ) -> None:
        """One planned move at a time: the replica whose move saves most."""
        if any(r.ready_s > seen.now_s for r in spot):
            return
        timing = self._timing
        found: tuple[float, Replica, int] | None = None
        for replica in spot:
            if replica.place not in rates:
                continue
            others = [r.place for r in spot if r is not replica]
            best = decision.spread_out(1, rates, self._prices, self._regions, others)
            if not best or best[0] == replica.place:
                continue
            saved = rates[replica.place] - rates[best[0]]
            if found is None or saved > found[0]:
                found = saved, replica, best[0]
        if found is None:
            return
        _, replica, place = found
        move = decision.move_usd(0.0, 0.0, timing.launch_s, 0.0, seen.price[place])
        horizon_h = HORIZONS_H[self.PLACE]
        if decision.pays_to_move(rates[replica.place], rates[place], horizon_h, move):
            replica.leaving = True
            plan.launch.append(place)

    def _let_go(
        self,
        plan: Plan,
        seen: Seen,
        replicas: Sequence[Replica],
        rates: dict[int, float],
        wanted: int,
    ) -> None:
        """What is ready beyond the need ends: those leaving, bridges, then spares of the highest
        rate."""
        ready = [r for r in replicas if r.ready_s <= seen.now_s and not r.told]
        need = wanted + self._spares
        surplus = len(ready) - need
        leaving = [r for r in ready if r.leaving]
        bridges = [r for r in ready if r.place == ON_DEMAND and not r.leaving]
        rest = [r for r in ready if not r.leaving and r.place != ON_DEMAND]
        rest.sort(key=lambda r: -rates.get(r.place, 10.0))
        for replica in [*leaving, *bridges, *rest][: max(0, surplus)]:
            plan.release.append(replica)
        booting = [r for r in replicas if r.ready_s > seen.now_s]
        if len(ready) - len(plan.release) >= need:
            plan.release += [r for r in booting if r.place == ON_DEMAND]


def _bridges_to_end(
    spot: Sequence[Replica], bridges: Sequence[Replica], now_s: float, wanted: int
) -> list[Replica]:
    ready = sum(r.ready_s <= now_s for r in spot)
    return list(bridges[max(0, wanted - ready) :])
