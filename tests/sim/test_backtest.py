"""The backtest: exact accounts on markets made by hand, policies that cannot see the future, oracles
that are not beaten."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.main import get_command_from_info
from typer.models import CommandInfo

from roost.market.traces import Trace
from roost.ports.errors import Invalid
from roost.sim.backtest import oracle, run
from roost.sim.backtest.cli import backtest
from roost.sim.backtest.job import Task, run_job
from roost.sim.backtest.pools import ON_DEMAND, USUAL_SHARE, pools_of
from roost.sim.backtest.seen import Seen
from roost.sim.backtest.service import ServiceWorld
from roost.sim.backtest.session import SessionWorld, Timing

GAP_S = 200.0
ZONES = ("us-east-1a", "us-east-1b", "us-west-2a")
TIMING = Timing(launch_s=150.0, move_s=30.0, notice_s=120.0, freeze_s=2.0)


class Even:
    """Forecasts made of nothing but the past of the pools: the longer it was up, the safer."""

    def __init__(self, up: Sequence[Sequence[bool]]) -> None:
        self._rows: list[list[float]] = []
        age = [0] * len(up[0])
        for row in up:
            age = [a + 1 if u else 0 for a, u in zip(age, row, strict=True)]
            self._rows.append([1.0 / (1 + a) for a in age])

    def p_loss(self, tick: int, horizon: int) -> Sequence[float]:
        return self._rows[tick]


def market(*zones: str, gap_s: float = GAP_S) -> Trace:
    """A recording from one string a zone: ``#`` up, anything else down."""
    up = np.array([[c == "#" for c in zone] for zone in zones]).T
    return Trace(
        name="made by hand",
        zones=ZONES[: len(zones)],
        instance="v100_1",
        gap_s=gap_s,
        capacity=up.astype(np.int16),
        price=np.full(up.shape, np.nan),
        on_demand_usd_hour=3.06,
        start_tick=0,
    )


def play(trace: Trace, name: str, timing: Timing = TIMING) -> run.Record:
    pools = pools_of(trace)
    policy = run.SESSION[name](pools, timing)
    return SessionWorld(pools, policy, timing, Even(pools.up)).run()


class TestSession:
    def test_a_calm_market_costs_its_start_only(self) -> None:
        record = play(market("#" * 10), "greedy")
        assert sum(record.down) == 180.0
        assert sum(record.cost) == pytest.approx(USUAL_SHARE * 2000.0)
        assert sum(record.reclaims) == 0

    def test_a_loss_costs_what_the_notice_does_not_cover(self) -> None:
        record = play(market("#####.....", "##########"), "greedy")
        assert sum(record.reclaims) == 1
        assert sum(record.down) == 180.0 + 60.0
        # The first machine until 1000 s, the second from the notice at 880 s on.
        assert sum(record.cost) == pytest.approx(USUAL_SHARE * (1000.0 + 1120.0))
        assert record.places == [
            (0.0, 180.0, None), (180.0, 1000.0, 0), (1000.0, 1060.0, None), (1060.0, 2000.0, 1),
        ]  # fmt: skip

    def test_without_notice_it_is_down_for_the_whole_launch_and_a_long_notice_only_freezes(
        self,
    ) -> None:
        trace = market("#####.....", "##########")
        assert sum(play(trace, "greedy", Timing(notice_s=0.0)).down) == 180.0 + 180.0
        assert sum(play(trace, "greedy", Timing(notice_s=190.0)).down) == 180.0 + 2.0

    def test_on_demand_bridges_and_is_left_at_once(self) -> None:
        record = play(market("###...####"), "roost")
        # The refusal is known: on demand is launched at the notice (480 s), spot again at 1200 s.
        assert sum(record.down) == 180.0 + 60.0 + 2.0
        spot, bridge = 600.0 + 800.0, 1380.0 - 480.0
        assert sum(record.cost) == pytest.approx(USUAL_SHARE * spot + bridge)

    def test_a_refused_launch_is_answered_late_and_remembered(self) -> None:
        record = play(market("..........", "##########"), "greedy")
        assert record.refusals == 1
        assert sum(record.down) == 180.0 + TIMING.refusal_s


@pytest.mark.parametrize("name", ["greedy", "round-robin", "ewma", "roost"])
def test_no_policy_sees_the_future(name: str) -> None:
    rng = np.random.default_rng(4)
    past = ["".join(rng.choice([".", "#"], 30, p=[0.25, 0.75])) for _ in ZONES]
    calm, storm = (market(*[zone + end * 20 for zone in past]) for end in "#.")
    until_s = 29 * GAP_S  # at the 30th tick the futures part; a notice may say so 120 s before
    seen = [[p for p in play(trace, name).places if p[1] <= until_s] for trace in (calm, storm)]
    assert len(seen[0]) > 3
    assert seen[0] == seen[1]


def test_services_and_jobs_do_not_see_it_either() -> None:
    rng = np.random.default_rng(5)
    past = ["".join(rng.choice([".", "#"], 40, p=[0.3, 0.7])) for _ in ZONES]
    futures = [market(*[zone + end * 40 for zone in past]) for end in "#."]
    for name in run.SERVICE:
        cost = []
        for trace in futures:
            pools = pools_of(trace)
            policy = run.SERVICE[name](pools, Timing(notice_s=0.0))
            world = ServiceWorld(pools, policy, Timing(notice_s=0.0), Even(pools.up), 4)
            cost.append(world.run().cost[:40])
        assert cost[0] == cost[1], name
    for name in run.JOB:
        places = []
        for trace in futures:
            pools = pools_of(trace)
            task = Task(9000.0, 15_000.0, 300.0)
            done = run_job(pools, run.JOB[name](pools, TIMING), task, 0, Even(pools.up))
            places.append([p for p in done.places or [] if p[1] < 40 * GAP_S])
        assert places[0] == places[1], name


up_rows = st.lists(st.lists(st.booleans(), min_size=3, max_size=3), min_size=4, max_size=60)


@settings(max_examples=60, deadline=None)
@given(up_rows, st.sampled_from([0.0, 30.0, 120.0, 190.0]))
def test_no_policy_beats_the_oracle(rows: list[list[bool]], notice_s: float) -> None:
    trace = market(*("".join(".#"[state] for state in zone) for zone in zip(*rows, strict=True)))
    timing = Timing(notice_s=notice_s)
    best = oracle.session_j(pools_of(trace), timing)
    for name in run.SESSION:
        record = play(trace, name, timing)
        assert best <= record.j(timing.downtime_weight) + 1e-9, name
        assert 0.0 <= record.down_share <= 1.0


@settings(max_examples=40, deadline=None)
@given(st.lists(st.lists(st.booleans(), min_size=3, max_size=3), min_size=60, max_size=60))
def test_no_job_is_late_or_cheaper_than_the_oracle(rows: list[list[bool]]) -> None:
    pools = pools_of(
        market(*("".join(".#"[state] for state in zone) for zone in zip(*rows, strict=True)))
    )
    task = Task(work_s=5000.0, deadline_s=9000.0, restart_s=250.0)
    best = oracle.job_cost(pools, task, 0)
    for name in run.JOB:
        done = run_job(pools, run.JOB[name](pools, TIMING), task, 0, Even(pools.up))
        assert not done.late, name
        assert best <= done.cost + 1e-6, name


class TestService:
    def world(self, trace: Trace, name: str, notice_s: float = 0.0, wanted: int = 2) -> run.Record:
        pools = pools_of(trace)
        timing = Timing(launch_s=120.0, move_s=0.0, notice_s=notice_s, freeze_s=0.0)
        policy = run.SERVICE[name](pools, timing)
        return ServiceWorld(pools, policy, timing, Even(pools.up), wanted).run()

    def test_a_loss_without_notice_is_a_cold_start_short(self) -> None:
        record = self.world(market("#####.....", "##########"), "greedy")
        assert sum(record.down) == 120.0 + 120.0
        assert sum(record.cost) == pytest.approx(USUAL_SHARE * 2000.0)

    def test_a_notice_as_long_as_the_cold_start_leaves_nothing_missing(self) -> None:
        record = self.world(market("#####.....", "##########"), "greedy", notice_s=120.0)
        assert sum(record.down) == 120.0
        assert sum(record.cost) == pytest.approx(USUAL_SHARE * 2120.0)

    def test_counted_rooms_keep_only_what_fits(self) -> None:
        trace = market("#" * 10)
        trace.capacity[:, 0] = [3, 3, 3, 3, 3, 1, 1, 1, 1, 1]
        record = self.world(trace, "greedy", wanted=3)
        assert sum(record.reclaims) == 2
        assert sum(record.down) == 120.0 + 120.0  # two replicas go, on demand stands in for them

    def test_spothedge_tries_on_after_a_refusal_and_keeps_on_demand_a_look_longer(self) -> None:
        record = self.world(market("###.......", "..........", "##########"), "spothedge")
        # At 600 s one of two is lost; the first pool refuses, the next too, the third gives one.
        assert sum(record.down) == 120.0 + 120.0
        # On demand from the start to the look after both were ready, and again from the loss.
        bridges = 2 * 400.0 + 400.0
        assert sum(record.cost) == pytest.approx(USUAL_SHARE * 2000.0 + bridges / 2)

    def test_nobody_is_cheaper_than_the_floor_while_available(self) -> None:
        trace = market("##########", "##########", "##########")
        floor = run.service_floor(pools_of(trace), 4)
        assert floor == pytest.approx(USUAL_SHARE)
        for name in ("greedy", "spothedge", "spothedge+1", "roost"):
            assert sum(self.world(trace, name, wanted=4).cost) / 2000.0 >= floor - 1e-9


def test_a_job_pays_a_restart_at_every_launch() -> None:
    pools = pools_of(market("#####.####################"))
    task = Task(work_s=2000.0, deadline_s=5000.0, restart_s=300.0)
    done = run_job(pools, run.JOB["greedy"](pools, TIMING), task, 0, Even(pools.up))
    assert done.restarts == 2
    assert done.finished_s == 2000.0 + 2 * 300.0 + GAP_S
    assert done.cost == pytest.approx(USUAL_SHARE * 2600.0)
    assert oracle.job_cost(pools, task, 0) <= done.cost


def test_results_have_the_keys_that_are_read_and_names_are_checked() -> None:
    trace = market("#####.....", "##########", gap_s=3600.0)
    chosen = run.setting("session", "all", TIMING, 1)
    results = run.replay(trace, Even(pools_of(trace).up), chosen)
    assert [r.policy for r in results] == list(run.SESSION)
    for result in results:
        assert result.j == pytest.approx(result.cost + 10 * (1 - result.availability))
        assert result.over_oracle_pct >= -1e-9
        assert result.intervals["j"].low <= result.intervals["j"].high
    [first, *_] = run.overall([*results, *results])
    assert (first.policy, first.j) == (results[0].policy, pytest.approx(results[0].j))
    with pytest.raises(Invalid, match="no policy"):
        run.setting("session", "clever", TIMING, 1)
    with pytest.raises(Invalid, match="no workload"):
        run.setting("lambda", "all", TIMING, 1)
    assert "longest job" in run.too_short(trace, run.setting("job", "all", TIMING, 1))


def test_seen_says_what_is_open() -> None:
    seen = Seen(ZONES, ("us-east-1", "us-east-1", "us-west-2"), GAP_S, Even([[True] * 3]))
    seen.now_s, seen.tick = 450.0, 2
    seen.refused[0] = 500.0
    seen.lost[1] = 420.0
    assert [seen.open(z) for z in range(3)] == [False, False, True]
    assert ON_DEMAND not in range(3)


def test_the_command_reads_a_folder_and_says_what_is_wrong(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [
        {"dataset": "made", "zone": zone, "instance": "v100_1", "gap_s": 600.0, "tick": tick,
         "capacity": int((tick + shift) % 40 > 3), "price": None}
        for shift, zone in enumerate(ZONES) for tick in range(300)
    ]  # fmt: skip
    frame = pl.DataFrame(rows, schema_overrides={"price": pl.Float64})
    frame.write_parquet(tmp_path / "traces.parquet")
    command = get_command_from_info(
        CommandInfo(name="backtest", callback=backtest),
        pretty_exceptions_short=True,
        rich_markup_mode=None,
    )
    for workload in ("session", "service", "job"):
        argv = ["--data", str(tmp_path), "--workload", workload, "--policy", "roost", "--json"]
        command.main([*argv, "--starts", "2"], standalone_mode=False)
        said = json.loads(capsys.readouterr().out)
        if workload == "job":
            assert "longest job" in said["skipped"]["made"]  # 50 h are recorded
            continue
        assert 0.3 <= said["cost"] < 0.6
        assert said["results"][0]["over_oracle_pct"] >= 0.0
        assert {"availability", "reclaims_per_day", "down_min_per_day", "j", "late"} <= set(said)
    assert command.main(["--data", str(tmp_path / "none")], standalone_mode=False) == 2
    assert "not a folder" in " ".join(capsys.readouterr().err.split())
