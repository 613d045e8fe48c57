"""Rings, differences of counters, what idles: no clock, no socket."""

import math
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from roost.metrics import idle
from roost.metrics.history import History, quantile
from roost.metrics.intake import Edges
from roost.metrics.model import Facts, HostFacts, ReplicaFacts, ServiceFacts
from roost.metrics.page import text
from roost.metrics.rings import MINUTES, NAN, SECONDS, Ring, Track
from roost.metrics.top import view
from roost.ports.replicas import BOUNDS_S, ReplicaReport, ServiceReport
from roost.ports.seen import Seen, ServiceSeen
from roost.ports.values import HostReport

T0 = 1_700_000_000.0


def seen(at_s: float, *services: ServiceSeen, edge: int = 0, began_s: float = 1.0) -> Seen:
    return Seen(edge=edge, began_s=began_s, at_s=at_s, services=services)


def counted(arrived: int, finished: int | None = None, **more: Any) -> ServiceSeen:
    done = arrived if finished is None else finished
    return ServiceSeen(service_id="v-1", arrived=arrived, finished=done, **more)


# --- rings -----------------------------------------------------------------------------------------------


@given(st.lists(st.integers(0, 5), min_size=1, max_size=80), st.integers(1, 12))
def test_a_ring_is_the_end_of_all_rows(gaps: list[int], kept: int) -> None:
    ring, step, expected = Ring(2, kept), 100, []
    for n, gap in enumerate(gaps):
        if n:
            expected += [NAN] * gap
            step += gap
        ring.put(step, (float(n), -float(n)))
        expected.append(float(n))
        step += 1
    for count in (1, kept, kept + 5):
        wanted = expected[-min(count, kept) :]
        for index, sign in ((0, 1), (1, -1)):
            found = ring.column(index, count)
            assert len(found) == len(wanted)
            for one, two in zip(found, wanted, strict=True):
                assert one == sign * two or (math.isnan(one) and math.isnan(two))
    late = ring.column(0, 3, step + 2)
    assert math.isnan(late[-1])
    assert math.isnan(late[-2])


def test_a_clock_set_back_begins_anew_and_one_second_twice_counts_once() -> None:
    ring = Ring(1, 5)
    for step in (10, 11, 11, 12):
        ring.put(step, (float(step),))
    assert ring.column(0, 5) == [10.0, 11.0, 12.0]
    ring.put(3, (3.0,))
    assert ring.column(0, 5) == [3.0]


def test_minutes_are_means_of_what_was_known_and_all_is_bounded() -> None:
    track = Track(1)
    for second in range(600, 600 + 3 * 60 + 1):
        track.put(second, (NAN if second % 2 else float(second // 60),))
    assert track.minutes.column(0, 10) == [10.0, 11.0, 12.0]
    for second in range(10_000, 10_000 + 2 * SECONDS):
        track.put(second, (1.0,))
    assert len(track.seconds.column(0, 10 * SECONDS)) == SECONDS
    for minute in range(1000, 1000 + 2 * MINUTES):
        track.put(minute * 60, (1.0,))
    assert len(track.minutes.column(0, 10 * MINUTES)) == MINUTES


# --- counters ----------------------------------------------------------------------------------------------


def test_what_an_edge_counted_before_it_was_met_is_not_counted_twice() -> None:
    edges = Edges()
    edges.take(seen(T0, counted(500)), T0)
    edges.take(seen(T0 + 1, counted(530)), T0 + 1)
    assert edges.totals["v-1"].requests == 30
    assert edges.of(T0 + 1)["v-1"][0].requests_s == 30
    edges.take(seen(T0 + 2), T0 + 2)
    assert edges.of(T0 + 2)["v-1"][0].requests_s == 0, "not named: nothing has changed"
    edges.take(seen(T0 + 6, counted(570)), T0 + 6)
    assert edges.of(T0 + 6)["v-1"][0].requests_s == 10, "over the time that passed"
    edges.take(seen(T0 + 7, counted(5), began_s=2.0), T0 + 7)
    assert edges.totals["v-1"].requests == 75, "a new edge begins from nothing"
    assert edges.fresh(T0 + 8) == 1
    assert edges.fresh(T0 + 60) == 0
    assert edges.of(T0 + 60) == {}


def test_messages_of_one_second_are_one_report() -> None:
    edges = Edges()
    edges.take(seen(T0), T0)
    edges.take(seen(T0 + 1, counted(10)), T0 + 1)
    other = ServiceSeen(service_id="v-2", arrived=4, finished=4)
    edges.take(seen(T0 + 1, other), T0 + 1)
    assert edges.totals["v-2"].requests == 4


@given(st.lists(st.integers(0, 50), min_size=17, max_size=17), st.floats(0.01, 1.0))
def test_a_quantile_lies_in_its_bucket(counts: list[int], share: float) -> None:
    found = quantile(counts, share)
    if not sum(counts):
        assert math.isnan(found)
        return
    assert 0 <= found <= BOUNDS_S[-1]
    below = sum(n for n, bound in zip(counts, BOUNDS_S, strict=False) if bound <= found)
    up_to = below + next(
        (n for n, bound in zip(counts, (*BOUNDS_S, math.inf), strict=True) if bound > found), 0
    )
    assert up_to >= share * sum(counts) - 1e-6


# --- history --------------------------------------------------------------------------


def report(at_s: float, requests: int, busy_s: float = 0.0, cpu: float = 50.0) -> HostReport:
    replica = ReplicaReport(
        replica_id="r-1",
        service_id="v-1",
        revision=1,
        state="ready",
        cpu_percent=cpu,
        memory_mib=100.0,
    )
    service = ServiceReport(
        service_id="v-1", began_s=1.0, requests=requests, busy_s=busy_s, in_flight=2, queued=3
    )
    return HostReport(
        host_id="i-1",
        at_s=at_s,
        cpu_percent=25.0,
        memory_used_mib=500.0,
        memory_total_mib=2000.0,
        replicas=(replica,),
        services=(service,),
        network_bytes=1000.0 * at_s,
    )


FACTS = Facts(
    services=(
        ServiceFacts(
            id="v-1",
            name="web",
            state="running",
            group="default",
            wanted=1,
            vcpus=1.0,
            concurrency=4,
            replicas=(ReplicaFacts(id="r-1", host_id="i-1", state="ready"),),
        ),
    ),
    hosts=(
        HostFacts(
            id="i-1",
            group="default",
            state="ready",
            offer="aws:x",
            slots=4,
            usd_hour=0.4,
            empty_s=0.0,
        ),
    ),
)


def recorded() -> History:
    history = History()
    history.keep(["v-1"], ["i-1"])
    for n in range(12):
        at = T0 + n
        slow = (0,) * 5 + (8 * n,) + (2 * n,) + (0,) * 10
        history.seen(
            seen(at, counted(10 * n, 10 * n, late=n, seconds=1.5 * n, slow=slow, in_flight=2)), at
        )
        history.sample({"i-1": report(at, 10 * n, 2.0 * n)}, at)
    return history


def test_what_serves_now_and_what_idles() -> None:
    shown = view(recorded(), FACTS, T0 + 11)
    (web,), (host,) = shown.services, shown.hosts
    assert (web.ready, web.wanted, web.starting) == (1, 1, 0)
    assert web.requests_s is not None
    assert abs(web.requests_s - 10.0) < 0.01
    assert web.late_share is not None
    assert abs(web.late_share - 0.1) < 0.001
    assert (web.in_flight, web.queued, web.held) == (2.0, 3.0, 0.0)
    assert web.p50_s is not None
    assert 0.02 < web.p50_s <= 0.05
    assert web.p99_s is not None
    assert 0.05 < web.p99_s <= 0.1
    assert web.utilisation == 0.5, "half of its CPU, half of its requests at once"
    assert abs(web.usd_hour - 0.1) < 1e-9, "one slot of four"
    assert abs(web.idle_usd_hour - 0.05) < 1e-9
    assert host.utilisation == 0.125
    assert abs(host.idle_usd_hour - 0.35) < 1e-9
    assert host.why == "3 of 4 slots empty"
    assert host.network_bytes_s is not None
    assert abs(host.network_bytes_s - 1000.0) < 1.0
    assert (shown.usd_hour, shown.edges) == (0.4, 1)
    assert len(web.trend) > 3


def test_what_nobody_told_is_not_known_and_never_zero() -> None:
    history = History()
    history.keep(["v-1"], ["i-1"])
    history.sample({"i-1": report(T0, 5)}, T0)
    (web,) = view(history, FACTS, T0).services
    assert web.requests_s is None, "no edge has spoken"
    assert web.queued == 3.0
    history.seen(seen(T0 + 1), T0 + 1)
    history.sample({}, T0 + 1)
    (web,), (host,) = view(history, FACTS, T0 + 1).services, view(history, FACTS, T0 + 1).hosts
    assert web.requests_s == 0.0, "an edge spoke and did not name it"
    step_s, end_s, values = history.values("services", "v-1", 3)
    assert (step_s, end_s) == (1.0, T0 + 2)
    assert values["queued"] == [3.0, None]
    history.sample({}, T0 + 20)
    (web,) = view(history, FACTS, T0 + 20).services
    assert web.requests_s is None, "the edge is silent"
    assert web.utilisation is None
    assert web.idle_usd_hour == 0.0, "not known is not waste"
    assert host.cpu_percent == 25.0
    assert view(history, FACTS, T0 + 40).hosts[0].slots_used == 1


def test_idle_hosts_say_why() -> None:
    def host(state: str, why: str = "", empty_s: float = 0.0) -> str:
        facts = Facts(
            hosts=(
                HostFacts(
                    id="i-9", group="g", state=state, offer="o", slots=4, usd_hour=1.0, why=why,
                    empty_s=empty_s,
                ),
            )
        )  # fmt: skip
        use = idle.shares(facts, {})[1]["i-9"]
        assert (use.utilisation, use.idle_usd_hour) == (0.0, 1.0)
        return use.why

    assert host("ready", empty_s=35.0) == "empty for 35 s"
    assert host("ready", why="do not disrupt") == "empty; do not disrupt"
    assert host("booting") == "booting: paid for, serves nothing yet"
    assert host("draining", why="scale in") == "being emptied (scale in)"
    used = idle.shares(FACTS, {"v-1": 0.1})[1]["i-1"]
    assert used.why == "3 of 4 slots empty; web uses 10 %"


@given(
    st.lists(st.sampled_from(["ready", "starting", "draining", "wanted"]), max_size=8),
    st.floats(0, 1) | st.none(),
    st.floats(0, 10),
)
def test_nobody_idles_more_than_is_paid(
    states: list[str], share: float | None, price: float
) -> None:
    replicas = tuple(
        ReplicaFacts(id=f"r-{n}", host_id="i-1", state=s) for n, s in enumerate(states)
    )
    web = FACTS.services[0]
    facts = Facts(
        services=(
            ServiceFacts(
                id=web.id, name=web.name, state="running", group="g", wanted=1, vcpus=1.0,
                concurrency=1, replicas=replicas,
            ),
        ),
        hosts=(HostFacts(id="i-1", group="g", state="ready", offer="o", slots=4, usd_hour=price),),
    )  # fmt: skip
    services, hosts = idle.shares(facts, {"v-1": share})
    for use in (*services.values(), *hosts.values()):
        assert -1e-9 <= use.idle_usd_hour <= use.usd_hour + 1e-9


def test_the_page_for_prometheus_has_whole_families() -> None:
    history = recorded()
    page = text(history, view(history, FACTS, T0 + 11))
    lines = page.splitlines()
    assert 'roost_service_requests_total{service="web"} 110.0' in lines
    assert 'roost_service_late_total{service="web"} 11.0' in lines
    assert 'roost_service_request_seconds_bucket{service="web",le="+Inf"} 110' in lines
    assert 'roost_service_request_seconds_count{service="web"} 110' in lines
    assert 'roost_host_slots_used{host="i-1",group="default",state="ready"} 1.0' in lines
    assert "roost_edges 1" in lines
    names = [line.split(" ")[2] for line in lines if line.startswith("# TYPE")]
    assert len(names) == len(set(names))
    for line in lines:
        if not line.startswith("#"):
            name = line.split("{")[0].split(" ")[0]
            base = name.removesuffix("_bucket").removesuffix("_sum").removesuffix("_count")
            assert name in names or base in names
            float(line.rsplit(" ", 1)[1])


def test_gone_services_and_hosts_are_forgotten() -> None:
    history = recorded()
    history.keep([], [])
    assert (history.services, history.hosts, history.edges.totals) == ({}, {}, {})
