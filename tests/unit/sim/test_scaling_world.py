"""Hosts, containers, losses and the oracle of the scaling simulator."""

from math import ceil

import numpy as np
import pytest

from roost.ports.errors import Invalid
from roost.services.observation import GroupPlan, Observation, Plan, ServicePlan
from roost.sim.scaling.compare import POLICIES, play, row
from roost.sim.scaling.oracle import oracle
from roost.sim.scaling.policies.nodes import ClusterAutoscaler, Karpenter
from roost.sim.scaling.policies.reactive import Reactive
from roost.sim.scaling.policies.roost import Roost
from roost.sim.scaling.pool import Spot
from roost.sim.scaling.scenario import START_S, Machines, build
from roost.sim.scaling.world import View, Want, run
from tests.unit.sim.scenarios import steady


class Constant:
    """So many containers from the beginning to the end."""

    name = "constant"
    period_s = 10.0

    def __init__(self, replicas: int) -> None:
        self.replicas = replicas
        self.views: list[View] = []

    def decide(self, view: View) -> Want:
        self.views.append(view)
        return Want([self.replicas], ceil(self.replicas / view.slots))


def test_a_constant_policy_pays_for_its_hosts_and_no_more() -> None:
    found = run(steady(rate=2.0), Constant(8))
    assert found.host_hours == pytest.approx(2.0)
    assert found.launches == 0
    assert found.late < 0.01
    assert found.tracks.hosts.tolist() == [2.0] * 60


def test_too_little_makes_nearly_everybody_late() -> None:
    assert run(steady(rate=2.0), Constant(1)).late > 0.9


def test_equal_arguments_give_equal_results() -> None:
    scenario = steady(burst=4.0)
    one, two = (run(scenario, Reactive(0.6), Spot(0.5)) for _ in range(2))
    assert (one.host_hours, one.late, one.launches, one.starts, one.losses) == (
        two.host_hours,
        two.late,
        two.launches,
        two.starts,
        two.losses,
    )


def test_a_burst_waits_for_boots_and_starts() -> None:
    slow = Machines(boot_s=(170.0, 180.0), start_s=(20.0, 20.0))
    quick = Machines(boot_s=(1.0, 1.0), start_s=(1.0, 1.0))
    late = [
        run(steady(burst=6.0, machines=machines), Reactive(0.6)).late for machines in (slow, quick)
    ]
    assert late[0] > 5.0 * late[1]


def test_every_container_a_policy_asks_for_comes_to_be_and_the_counts_agree() -> None:
    policy = Constant(11)
    run(steady(rate=5.0), policy)
    last = policy.views[-1]
    assert last.services[0].ready == last.services[0].placed == 11
    assert last.ready_hosts == 3
    assert last.used_slots == 11


def test_losses_with_notice_are_replaced_before_they_hurt() -> None:
    found = run(steady(rate=8.0, hours=3.0), Constant(24), Spot(per_host_hour=1.0))
    assert found.losses > 5
    assert found.launches >= found.losses - 1
    assert found.late < 0.02


def test_a_third_of_the_hosts_taken_at_once_is_told_apart() -> None:
    spot = Spot(together_s=(START_S + 1800.0,), notice_s=0.0)
    found = run(steady(rate=8.0), Constant(14), spot)
    assert found.losses == 2
    assert found.late > 10.0 * found.late_outside


def test_from_zero_a_request_waits_for_a_host_and_a_container() -> None:
    scenario = steady(rate=1 / 1800.0, mean_s=30.0, hours=6.0, least=0)
    wakes = []

    class ToZero(Constant):
        def decide(self, view: View) -> Want:
            super().decide(view)
            wakes.append(view.waking)
            need = 1 if view.services[0].queued or view.services[0].in_flight else 0
            return Want([need], need)

    found = run(scenario, ToZero(0))
    assert found.launches == found.starts > 3
    assert sum(wakes) >= found.launches
    assert found.host_hours < 1.5


def test_the_oracle_costs_less_than_anyone_who_is_as_rarely_late() -> None:
    scenario = steady(rate=3.0, hours=2.0, burst=5.0)
    best = oracle(scenario)
    assert best.late <= 0.0031
    peak = run(scenario, Constant(24))
    assert best.host_hours < peak.host_hours * 0.6
    work = scenario.loads[0].takes_s[scenario.loads[0].at_s >= START_S].sum() / 4.0 / 3600.0
    assert best.host_hours > work
    for name in ("reactive", "gcp"):
        found = play(scenario, name, best)
        assert found.cost > 1.0 or found.late > best.late


@pytest.mark.parametrize("name", [name for name in POLICIES if name != "roost"])
def test_every_baseline_follows_a_steady_load(name: str) -> None:
    scenario = steady(rate=10.0, hours=1.0)
    found = [row(name, run(scenario, make()), None) for make in POLICIES[name]]
    assert min(one.late for one in found) < 0.03
    # 10 containers are at work on average: 2.5 hosts; nobody needs five times that.
    assert all(2.0 < one.host_hours < 12.5 for one in found), [one.host_hours for one in found]


@pytest.mark.parametrize(
    ("nodes", "minutes"), [(ClusterAutoscaler(), (10, 25)), (Karpenter(30.0), (0, 3))]
)
def test_nodes_that_are_not_needed_go_in_their_own_time(
    nodes: ClusterAutoscaler, minutes: tuple[int, int]
) -> None:
    class Falls(Constant):
        period_s = 10.0

        def decide(self, view: View) -> Want:
            super().decide(view)
            return nodes.want(view, [16 if view.now_s < START_S else 4])

    found = run(steady(rate=1.0), Falls(0))
    assert found.tracks.hosts[0] == 4.0
    first = int(np.argmax(found.tracks.hosts == 1.0))
    assert minutes[0] <= first <= minutes[1]
    assert found.tracks.hosts[-1] == 1.0


def test_roosts_adapter_says_what_is_there_and_carries_the_memory() -> None:
    seen: list[Observation] = []

    def decide(observation: Observation) -> Plan:
        seen.append(observation)
        name = observation.services[0].id
        number = str(len(seen)).encode()
        service = ServicePlan(replicas=7, needed=7, reason="", memory=number)
        return Plan(
            services={name: service},
            groups={"default": GroupPlan(hosts=2, reason="", memory=number)},
        )

    run(steady(rate=3.0, mean_s=2.0), Roost(decide))
    last = seen[-1].services[0]
    assert last.memory == seen[-1].groups[0].memory == str(len(seen) - 1).encode()
    assert last.ready == 7
    assert last.starting == last.draining == 0
    assert last.recent.shape == (180,)
    assert last.recent.mean() == pytest.approx(30.0, rel=0.15)
    assert last.service_times.mean() == pytest.approx(2.0, rel=0.15)
    assert len(last.minutes) == 14 * 1440
    assert last.minutes[-1] == last.recent[-6:].sum() or seen[-1].now_s % 60.0
    assert sorted(host.used for host in seen[-1].groups[0].hosts) == [3, 4]
    assert len(last.late) == len(last.total) == 60


def test_a_trace_that_is_not_there_is_said(tmp_path: object) -> None:
    with pytest.raises(Invalid, match="no scenario"):
        build("tuesday", tmp_path)  # type: ignore[arg-type]
    with pytest.raises(Invalid, match="nasa_sec"):
        build("nasa", tmp_path)  # type: ignore[arg-type]
