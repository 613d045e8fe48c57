"""Purchase advice: the demand, the tariffs (never an invented price), the program against brute force."""

import itertools
import json

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from roost.doors.cli.market_purchase import read_use
from roost.market.advisor import loss_of
from roost.market.catalogue import Catalogue
from roost.market.demand import MONTH_H, Demand, assumed, metered, per_hour
from roost.market.history import History
from roost.market.purchase import crossovers, least_cost, sentence
from roost.market.tariffs import Tariff, family_of, read_options, tariffs, told
from roost.ports.errors import Invalid
from roost.ports.sources import SavingsRate
from roost.ports.values import Ask

ON_DEMAND = Tariff(option="on_demand", usd_hour=1.0, source="made up")
SPOT = Tariff(option="spot", usd_hour=0.3, risk_usd_hour=0.05, source="made up")
MONTH = Tariff(option="full_month", usd_hour=0.7, term_months=1, source="made up")
YEAR = Tariff(option="reserved_1y", usd_hour=0.6, term_months=12, source="made up")


@given(
    st.lists(st.tuples(st.integers(1, 3), st.floats(10, 700)), min_size=1, max_size=3),
    st.floats(0.4, 1.0),
    st.sampled_from([0.0, 0.5, 1.0]),
)
@settings(max_examples=30, deadline=None)
def test_the_mix_is_as_cheap_as_trying_everything(levels, ratio, never_spot):
    """Two months; 0 to 3 machines committed in each; the rest by use, spot as far as it may."""
    months = tuple({count: hours} for count, hours in levels)
    demand = Demand(months=months, described="")
    month = Tariff(option="full_month", usd_hour=ratio, term_months=1, source="made up")
    best = float("inf")
    for counts in itertools.product(range(4), repeat=len(months)):
        usd = sum(counts) * ratio * MONTH_H
        for committed, levels_of in zip(counts, months, strict=True):
            for count, hours in levels_of.items():
                rest = max(0, count - committed)
                spot = min(rest, (1.0 - never_spot) * count)
                usd += hours * (spot * SPOT.counted_usd_hour + rest - spot)
        best = min(best, usd)
    found = least_cost(demand, [ON_DEMAND, SPOT, month], never_spot)
    assert found.counted_usd == pytest.approx(best, rel=2e-4)


def test_a_commitment_is_for_what_always_runs_and_the_rest_is_bought_by_use():
    demand = assumed(10, 8, 5, always=4, months=12)
    mix = least_cost(demand, [ON_DEMAND, YEAR])
    by_option = {part.option: part for part in mix.parts}
    assert by_option["reserved_1y"].instances == 4
    assert by_option["reserved_1y"].starts == {0: 4}
    assert by_option["on_demand"].instances == 6
    assert mix.unused_hours == pytest.approx(0.0, abs=1e-6)
    assert mix.usd < mix.on_demand_usd == pytest.approx(demand.instance_hours)
    assert "reserved of 1 year for 4 machines" in sentence(demand, mix, [ON_DEMAND, YEAR], 0.0)


def test_a_commitment_that_outlives_the_months_asked_about_is_not_taken():
    mix = least_cost(assumed(3, months=11), [ON_DEMAND, YEAR])
    assert [part.option for part in mix.parts] == ["on_demand"]


def test_the_risk_of_spot_decides():
    safe = Tariff(option="spot", usd_hour=0.3, risk_usd_hour=0.9, source="made up")
    assert [p.option for p in least_cost(assumed(2), [ON_DEMAND, safe]).parts] == ["on_demand"]
    mix = least_cost(assumed(2), [ON_DEMAND, SPOT])
    assert mix.risk_usd == pytest.approx(0.05 * 2 * 12 * MONTH_H)


def test_crossovers_are_where_the_lines_meet():
    found = {(c.option, c.against): c.hours_a_month for c in crossovers([ON_DEMAND, SPOT, MONTH])}
    assert found["full_month", "on_demand"] == pytest.approx(0.7 * MONTH_H)
    assert found["full_month", "spot"] is None


def test_a_fee_for_dedicated_hardware_counts_once_a_month():
    own = Tariff(
        option="dedicated", usd_hour=1.1, fixed_usd_hour=2.0, dedicated=True, source="made up"
    )
    mix = least_cost(assumed(3, 10, 5, months=2), [own])
    assert mix.usd == pytest.approx(assumed(3, 10, 5, months=2).instance_hours * 1.1 + 4 * MONTH_H)


def test_metered_use_keeps_its_hours_and_spans_become_hours():
    assert per_hour([(0.0, 5400.0), (3600.0, 7200.0)]) == [1.0, 1.5]
    assert per_hour([]) == []
    demand = metered([2.0, 0.0, 2.5, 0.0], months=2)
    assert demand.instance_hours == pytest.approx(2 * 4.5 * MONTH_H / 4)
    assert demand.peak == 3
    many = metered([float(n) for n in range(100)])
    assert len(many.months[0]) <= 24
    assert many.instance_hours >= sum(range(100)) * MONTH_H / 100 * 12
    grown = assumed(10, growth=0.1, months=3)
    assert [max(month) for month in grown.months] == [10, 11, 13]


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: assumed(0),
        lambda: assumed(1, hours_a_day=25),
        lambda: assumed(1, days_a_week=8),
        lambda: assumed(2, always=3),
        lambda: assumed(1, months=0),
        lambda: metered([]),
        lambda: metered([0.0, 0.0]),
        lambda: metered([1.0, -1.0]),
        lambda: metered([float("nan")]),
        lambda: least_cost(assumed(1), [SPOT]),
        lambda: least_cost(assumed(1), [ON_DEMAND], 1.5),
    ],
)
def test_what_cannot_be_meant_is_refused(wrong):
    with pytest.raises(Invalid):
        wrong()


def test_the_shipped_tariffs_name_their_source_and_invent_nothing():
    catalogue = Catalogue.load()
    context = catalogue.context(Ask())
    found = {}
    for pool in (
        "aws/use1-az1/m5.xlarge",
        "gcp/us-central1-a/n2-standard-4",
        "azure/koreacentral/Standard_D4s_v5",
    ):
        spot = catalogue.resolve(f"{pool}/spot")
        on_demand = catalogue.resolve(f"{pool}/on_demand")
        made = tariffs(on_demand, spot, loss_of(spot, context), read_options())
        found[pool.split("/")[0]] = made
        assert all(t.source and t.usd_hour > 0 for t in made.priced)
        assert {t.option for t in made.priced}.isdisjoint(u.option for u in made.unpriced)
        assert {"spot", "on_demand"} <= {t.option for t in made.priced}
    gcp = {t.option: t for t in found["gcp"].priced}
    assert gcp["cud_3y"].usd_hour == pytest.approx(0.45 * gcp["on_demand"].usd_hour, rel=0.01)
    assert gcp["cud_3y"].term_months == 36
    azure = {u.option: u for u in found["azure"].unpriced}
    assert {t.option for t in found["azure"].priced} == {"spot", "on_demand"}
    assert azure["reserved_3y"].best_case_discount_pct == 72
    assert "only a best case" in azure["reserved_3y"].why
    assert "best case" in {u.option: u for u in found["aws"].unpriced}["reserved_standard_3y"].why


def test_a_rate_that_was_told_counts_instead_of_a_best_case(tmp_path):
    catalogue = Catalogue.load()
    on_demand = catalogue.resolve("azure/koreacentral/Standard_D4s_v5/on_demand")
    rate = {
        "source": "azure-retail-prices", "observed_at": 1.79e9, "provider": "azure",
        "region": "koreacentral", "instance_type": "Standard_D4s_v5",
    }  # fmt: skip
    history = History(tmp_path)
    history.append(
        [
            SavingsRate(
                **rate, plan="reserved_standard", term_years=3, payment="all_upfront", usd_hour=0.09
            ),
            SavingsRate(
                **rate, plan="savings_plan", term_years=3, payment="monthly", usd_hour=0.11
            ),
        ]
    )
    newer = told(history.latest("savings_rate"), on_demand)
    made = tariffs(on_demand, None, None, read_options(), newer)
    priced = {t.option: t for t in made.priced}
    assert priced["reserved_standard_3y_all_upfront"].usd_hour == 0.09
    assert priced["reserved_standard_3y_all_upfront"].term_months == 36
    assert priced["savings_plan_3y_monthly"].as_of == "2026-09-21"
    assert {u.option for u in made.unpriced}.isdisjoint({"reserved_3y", "savings_plan_3y"})


def test_a_pool_without_spot_says_so_and_families_are_those_of_the_cloud():
    catalogue = Catalogue.load()
    on_demand = catalogue.resolve("aws/use1-az1/m5.xlarge/on_demand")
    made = tariffs(on_demand, None, None, read_options())
    assert "spot" not in {t.option for t in made.priced}
    assert made.unpriced[0].why == "the catalogue has no spot price for it"
    assert family_of("aws", "m5.xlarge") == "m5"
    assert family_of("gcp", "n2-standard-4") == "n2"


def test_purchase_options_of_ones_own_are_read_and_checked(tmp_path):
    row = "aws,m5,us-east-1,reserved_1y,ratio_to_on_demand,{},computed,mine,2026-01-01\n"
    head = "cloud,scope,region,option,metric,value,basis,source,as_of\n"
    good, bad, short = tmp_path / "good.csv", tmp_path / "bad.csv", tmp_path / "short.csv"
    good.write_text(head + row.format(0.6))
    bad.write_text(head + row.format("free"))
    short.write_text("cloud,value\naws,1\n")
    assert read_options(good)["value"].to_list() == [0.6]
    with pytest.raises(Invalid, match="row 2"):
        read_options(bad)
    with pytest.raises(Invalid, match="no column scope"):
        read_options(short)
    with pytest.raises(Invalid, match="cannot be read"):
        read_options(tmp_path / "none.csv")
    parquet = tmp_path / "good.parquet"
    pl.read_csv(good).write_parquet(parquet)
    assert read_options(parquet).height == 1


def test_use_is_read_from_numbers_a_table_or_a_bill(tmp_path):
    numbers, table, bill = tmp_path / "u.json", tmp_path / "u.csv", tmp_path / "cost.json"
    numbers.write_text("[1, 2.5, 0]")
    table.write_text("hour,instances\n0,1\n1,2.5\n2,0\n")
    assert read_use(numbers) == read_use(table) == [1.0, 2.5, 0.0]
    line = {
        "host_id": "i", "session_id": "s", "role": "active", "offer": "x", "usd": 1.0,
        "purchase_option": "spot", "seconds": 5400, "price_usd_hour": 1.0,
        "on_demand_usd": 1.0, "running": False, "started_s": 7200.0,
    }  # fmt: skip
    whole = {"at_s": 0.0, "usd": 1.0, "on_demand_usd": 1.0, "saved_usd": 0.0, "lines": [line]}
    bill.write_text(json.dumps(whole))
    assert read_use(bill) == [1.0, 0.5]
    table.write_text("hour,instances\n0,many\n1,few\n")
    with pytest.raises(Invalid, match="line 1"):
        read_use(table)
    numbers.write_text('{"a": 1}')
    with pytest.raises(Invalid):
        read_use(numbers)
