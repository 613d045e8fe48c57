"""The history: order, duplicates, damage, full disks and killed writers change nothing of what is read."""

import os
import resource
import signal
import subprocess
import sys
import tempfile
import time
from io import BytesIO
from pathlib import Path

import polars as pl
import pytest
from blake3 import blake3
from hypothesis import given, settings
from hypothesis import strategies as st

from roost.market.history import History, Stored, schema_of
from roost.ports.errors import Invalid
from roost.ports.sources import InterruptionBand, OfferPrice, PlacementScore

T0 = 1_750_000_000.0
DAY = 86_400.0


def price(usd: float | None, at: float = T0, **more: str) -> OfferPrice:
    named = {"source": "s", "zone": "z1", "instance_type": "m5.large", "option": "spot", **more}
    return OfferPrice(observed_at=at, provider="aws", region="r1", usd_hour=usd, **named)


facts = st.lists(
    st.builds(
        price,
        st.sampled_from([0.1, 0.2, None]),
        st.sampled_from([T0, T0 + 1.0, T0 + DAY, T0 + 40 * DAY]),
        zone=st.sampled_from(["z1", "z2"]),
        source=st.sampled_from(["s", "t"]),
        option=st.sampled_from(["spot", "on_demand"]),
    ),
    max_size=12,
)


@settings(max_examples=30, deadline=None)
@given(told=facts, cuts=st.lists(st.integers(0, 12), max_size=3), compact=st.booleans())
def test_order_and_duplicates_change_nothing(
    told: list[OfferPrice], cuts: list[int], compact: bool
) -> None:
    with tempfile.TemporaryDirectory() as one, tempfile.TemporaryDirectory() as two:
        whole, parts = History(Path(one)), History(Path(two))
        stored = whole.append(told)
        assert stored.new + stored.known == len(told)
        places = sorted(min(cut, len(told)) for cut in cuts)
        for a, b in zip([0, *places], [*places, len(told)], strict=True):
            parts.append(reversed(told[a:b]))
        parts.append(told)
        if compact:
            parts.compact()
        for kept in (whole, parts):
            assert not kept.problems
        assert whole.read("offer_price").equals(parts.read("offer_price"))
        assert whole.latest_prices().equals(parts.latest_prices())
        assert parts.append(told) == Stored(0, len(told)) or _conflicts(told)


def _conflicts(told: list[OfferPrice]) -> bool:
    """Two values for one moment: a compaction keeps the dearer, so the other is new again."""
    keys = {(f.zone, f.source, f.option, f.observed_at, f.usd_hour) for f in told}
    return len({key[:4] for key in keys}) < len(keys)


def test_the_past_as_it_was_and_what_holds_now(tmp_path: Path) -> None:
    history = History(tmp_path)
    history.append(
        [price(0.2, T0 + DAY), price(0.1, T0), price(1.0, T0, zone="", option="on_demand")]
    )
    history.append([price(0.15, T0 + 0.5 * DAY, source="t")])  # late
    now = history.latest_prices().row(1, named=True)
    assert (now["spot_usd_hour"], now["on_demand_usd_hour"], now["source"]) == (0.2, 1.0, "s")
    then = history.latest_prices(as_of=T0 + 0.7 * DAY).row(1, named=True)
    assert (then["spot_usd_hour"], then["source"], then["observed_at"]) == (
        0.15,
        "t",
        T0 + 0.5 * DAY,
    )
    history.append([price(None, T0 + 2 * DAY)])
    left = history.latest_prices()
    assert left["zone"].to_list() == [""], "a withdrawn pool is gone; the on-demand price stays"
    assert left["spot_usd_hour"].to_list() == [None]
    assert history.latest("offer_price", since=T0 + 1.5 * DAY).height == 1
    empty = History(tmp_path / "none")
    assert empty.latest_prices().height == 0 and empty.latest_bands().height == 0


def test_a_series_of_a_pool_holds_what_is_told_of_its_region(tmp_path: Path) -> None:
    history = History(tmp_path)
    pool = {"source": "s", "provider": "aws", "region": "r1", "instance_type": "m5.large"}
    band = InterruptionBand(
        **pool, observed_at=T0, scale="share_month", label="<5%", low=0.0, high=0.05
    )
    score = PlacementScore(**pool, observed_at=T0 + 1, zone="z2", scale="aws_1_10", score=None)
    history.append([price(0.1), price(0.2, T0 + 2, zone="z2"), band, score])
    one = history.series("z1", "m5.large")
    assert one.select("kind", "value").rows() == [
        ("interruption_band", 0.025),
        ("offer_price", 0.1),
    ]
    assert history.series("r1", "m5.large").height == 4, "a region: all of its zones"
    assert history.series("z1", "c5.large").height == 0
    assert history.latest_bands().row(0, named=True)["label"] == "<5%"


@pytest.mark.parametrize(
    ("fact", "said"),
    [
        (price(-0.1), "negative usd_hour"),
        (price(float("nan")), "no number"),
        (price(float("inf")), "no number"),
        (price(0.1, 1_750_000_000_000.0), "outside 2000 to 2100"),
        (price(0.1, source="../up"), "cannot name a source"),
        (price(0.1, source=""), "cannot name a source"),
    ],
)
def test_facts_that_cannot_be_true_are_refused_whole(
    tmp_path: Path, fact: OfferPrice, said: str
) -> None:
    history = History(tmp_path)
    with pytest.raises(Invalid, match=said):
        history.append([price(0.1), fact])
    assert history.read("offer_price").height == 0, "nothing of the page is stored"


def test_tables_of_another_shape_are_refused(tmp_path: Path) -> None:
    history = History(tmp_path)
    with pytest.raises(Invalid, match="no kind of fact"):
        history.read("weather")
    with pytest.raises(Invalid, match="lack"):
        history.append_frame("offer_price", pl.DataFrame({"provider": ["aws"]}))
    row = {name: ["x"] for name in schema_of("offer_price")}
    with pytest.raises(Invalid, match="wrong types"):
        history.append_frame("offer_price", pl.DataFrame(row))
    unknown = pl.DataFrame([{**_row(), "region": None}], schema=schema_of("offer_price"))
    with pytest.raises(Invalid, match="1 facts of kind offer_price have no region"):
        history.append_frame("offer_price", unknown)


def _row() -> dict[str, object]:
    return {name: getattr(price(0.1), name) for name in schema_of("offer_price")}


def test_damage_is_told_by_file_and_skipped(tmp_path: Path) -> None:
    history = History(tmp_path)
    history.append([price(0.1), price(0.2, T0 + DAY)])
    first, second = sorted(tmp_path.rglob("*.parquet"))
    (second.parent / "empty.parquet").write_bytes(b"")
    (second.parent / "rubbish.parquet").write_bytes(b"PAR1 and no more")
    content = second.read_bytes()
    (second.parent / "cut.parquet").write_bytes(content[: len(content) // 2])
    flipped = bytearray(content)
    flipped[len(content) // 2] ^= 1
    (second.parent / second.name.replace(second.stem[:4], "0000", 1)).write_bytes(flipped)
    other = _as_written(second.parent, pl.DataFrame({"other": [1]}))
    norows = _as_written(second.parent, pl.DataFrame(schema=schema_of("offer_price")))
    (tmp_path / "offer_price" / "s" / "2025-01-01").mkdir()
    assert history.read("offer_price")["usd_hour"].to_list() == [0.1, 0.2]
    why = {Path(p.path).name: p.why for p in history.problems}
    assert len(why) == 7 and {
        "empty.parquet",
        "rubbish.parquet",
        "cut.parquet",
        "2025-01-01",
    } < set(why)
    assert "other columns" in why[other] and "no rows" in why[norows]
    assert why["empty.parquet"] == "empty" and "damaged" in why["cut.parquet"]
    done = history.compact()
    assert len(done.problems) >= 5 and (second.parent / "cut.parquet").exists(), "kept to look at"
    assert history.read("offer_price").height == 2
    assert first.exists()


def _as_written(folder: Path, rows: pl.DataFrame) -> str:
    """A whole file, as another version of Roost might have written it."""
    buffer = BytesIO()
    rows.write_parquet(buffer)
    name = f"{blake3(buffer.getvalue()).hexdigest()[:24]}.parquet"
    (folder / name).write_bytes(buffer.getvalue())
    return name


def test_many_small_pages_stay_few_files(tmp_path: Path) -> None:
    history = History(tmp_path)
    for step in range(40):
        assert history.append([price(0.1 + step / 100, T0 + step)]).new == 1
    assert len(list(tmp_path.rglob("*.parquet"))) <= 16
    assert history.read("offer_price")["observed_at"].to_list() == [T0 + n for n in range(40)]


def test_compaction_makes_one_file_a_partition(tmp_path: Path) -> None:
    history = History(tmp_path)
    for step in range(10):
        history.append([price(0.1 + step / 100, T0 + step), price(0.5, T0 + DAY)])
    left = next(tmp_path.rglob("*.parquet")).with_suffix(".part")
    left.write_bytes(b"of a killed writer")
    before = history.read("offer_price")
    done = history.compact()
    assert (done.files_before, done.files_after, done.duplicates) == (11, 2, 0)
    assert not left.exists()
    assert history.read("offer_price").equals(before)
    assert history.compact().files_after == 2
    assert history.summary().select("facts", "files").row(0) == (11, 2)


WRITER = """
import sys
from pathlib import Path
from roost.market.history import History
from roost.ports.sources import OfferPrice
history = History(Path(sys.argv[1]))
print("ready", flush=True)
for step in range(int(sys.argv[2]), 10_000):
    history.append([
        OfferPrice(source="s", observed_at=1.75e9 + step, provider="aws", region="r", zone=zone,
                   instance_type="t", option="spot", usd_hour=1.0)
        for zone in ("a", "b")
    ])
    if step % 5 == 0:
        history.compact()
"""


def test_killed_writers_leave_whole_facts(tmp_path: Path) -> None:
    for round_ in range(2):
        writers = [
            subprocess.Popen(
                [sys.executable, "-c", WRITER, str(tmp_path), str(1000 * (2 * round_ + number))],
                stdout=subprocess.PIPE,
            )
            for number in range(2)
        ]
        for writer in writers:
            assert writer.stdout is not None
            writer.stdout.readline()
        time.sleep(0.15)
        for writer in writers:
            writer.send_signal(signal.SIGKILL)
            writer.wait()
            assert writer.stdout is not None
            writer.stdout.close()
        history = History(tmp_path)
        rows = history.read("offer_price")
        assert not history.problems
        pairs = rows.group_by("observed_at").len()
        assert rows.height and set(pairs["len"]) == {2}, "a page of one partition is there or not"
    History(tmp_path).compact()
    assert not list(tmp_path.rglob("*.part"))


FULL = """
import resource, signal, sys
from pathlib import Path
from roost.market.history import History
from roost.ports.errors import Retry
from roost.ports.sources import OfferPrice
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
facts = [OfferPrice(source="s", observed_at=1.75e9 + i, provider="aws", region="r", zone=f"z{i * 7919}",
                    instance_type=f"t{i * 104729}", option="spot", usd_hour=i / 7) for i in range(500)]
try:
    History(Path(sys.argv[1])).append(facts)
except Retry as error:
    print(error)
"""


def test_a_full_disk_leaves_nothing_half_written(tmp_path: Path) -> None:
    History(tmp_path).append([price(0.1)])
    run = subprocess.run(
        [sys.executable, "-c", FULL, str(tmp_path)], capture_output=True, text=True, timeout=60
    )
    assert "cannot be written: File too large" in run.stdout, run.stderr
    assert "--history" in run.stdout
    history = History(tmp_path)
    assert history.read("offer_price").height == 1 and not history.problems
    assert not list(tmp_path.rglob("*.part"))
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] == resource.RLIM_INFINITY


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere: tried as another user only")
def test_a_folder_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(Invalid, match="--history"):
        History(tmp_path / "h").append([price(0.1)])
    tmp_path.chmod(0o700)
