"""``roost market update|record|import|history`` end to end, on vendors of this machine."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from roost.main.cli import app
from roost.market.history import History

from . import shapes
from .conftest import Answer, Vendor
from .opened import PRICE_LIST

REGION = PRICE_LIST + "/20260720220804/{}/index.csv"


@pytest.fixture
def world(vendor: Vendor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Vendor:
    """Two vendors that work; the state directory is the test's."""
    monkeypatch.setenv("ROOST_STATE_DIR", str(tmp_path / "state"))
    monkeypatch.setenv("ROOST_MIRROR_AWS_PRICE_LIST", vendor.url)
    monkeypatch.setenv("ROOST_MIRROR_AWS_SPOT_ADVISOR", f"{vendor.url}/advisor.json")
    monkeypatch.setenv("ROOST_MIRROR_SKYPILOT", vendor.url)
    monkeypatch.setenv("ROOST_MIRROR_SPOTLAKE", vendor.url)
    monkeypatch.setenv("COLUMNS", "200")
    vendor.on(f"{PRICE_LIST}/current/region_index.json", shapes.REGION_INDEX)
    for region in ("us-east-1", "eu-west-1"):
        vendor.on(REGION.format(region), Answer(shapes.price_csv({}), etag='"1"'))
    vendor.on("/advisor.json", shapes.ADVISOR)
    for cloud, text in shapes.SKYPILOT.items():
        vendor.on(f"/{cloud}/vms.csv", text)
    vendor.on("/data/aws/2025/12/31/23-50-00.csv.gz", shapes.spotlake())
    return vendor


def _roost(*argv: str) -> Any:
    return CliRunner().invoke(app, ["market", *argv])


def _json(*argv: str) -> Any:
    return json.loads(_roost(*argv, "--json").stdout)


def test_update_tells_what_came_and_what_failed(world: Vendor, tmp_path: Path) -> None:
    world.on("/gcp/vms.csv", "InstanceType,Price\n")
    names = ("aws-price-list", "aws-spot-advisor", "skypilot", "spotlake", "gcp-prices")
    argv = [word for name in names for word in ("--source", name)]
    run = _roost("update", *argv, "--json")
    assert run.exit_code == 1, "one failed"
    told = {source["source"]: source for source in json.loads(run.stdout)["sources"]}
    assert told["aws-price-list"]["ok"] and told["aws-price-list"]["new"] == 2
    assert told["aws-spot-advisor"]["new"] == 3
    assert told["skypilot"]["new"] == 8 and "lacks" in told["skypilot"]["error"]
    assert "CC BY-NC" in told["spotlake"]["error"]
    assert told["spotlake"]["hint"] == "--accept-licence spotlake"
    assert told["gcp-prices"]["hint"] == "set GCP_API_KEY"
    assert _roost("update", "--source", "aws-price-list").exit_code == 0
    shown = _roost("update", "--source", "skypilot", "--source", "aws-spot-advisor").output
    assert "failed: skypilot: gcp/vms.csv lacks" in shown and "left out 1" in shown
    lake = _json("update", "--source", "spotlake", "--accept-licence", "spotlake")
    assert lake["sources"][0]["new"] == 11
    facts = History(tmp_path / "state" / "market")
    prices = facts.latest_prices().filter(type="m5.large", zone="use1-az1")
    assert prices["spot_usd_hour"].to_list() == [0.0391]
    assert prices["on_demand_usd_hour"].to_list() == [0.096]


def test_update_says_what_it_cannot_do(world: Vendor) -> None:
    unknown = _roost("update", "--source", "weather")
    assert unknown.exit_code == 2 and "no such source" in unknown.output
    other = _json("update", "--source", "aws-price-list", "--region", "koreacentral")
    assert "none of koreacentral" in other["sources"][0]["error"]
    closed = _json("update", "--source", "aws-price-list", "--region", "xx-mars-1")
    assert "no such region" in closed["sources"][0]["error"]
    listed = {about["name"]: about for about in _json("update", "--list")}
    assert len(listed) == 14 and listed["spotlake"]["consent"]
    assert all(about["licence"] and about["what"] for about in listed.values())
    chosen = {name for name, about in listed.items() if about["default"]}
    assert chosen == {"aws-spot-advisor", "skypilot", "sparecores"}
    assert not world.asked or all("mars" not in r.path for r in world.asked)


def test_import_and_history(world: Vendor, tmp_path: Path) -> None:
    rows = [
        {
            "AvailabilityZoneId": "use1-az1",
            "AvailabilityZone": "us-east-1a",
            "InstanceType": "m5.large",
            "ProductDescription": "Linux/UNIX",
            "SpotPrice": f"0.0{40 + day}",
            "Timestamp": f"2026-05-0{day}T00:00:00Z",
        }
        for day in range(1, 6)
    ]
    file = tmp_path / "prices.json"
    file.write_text(json.dumps({"SpotPriceHistory": rows}))
    assert _roost("history").exit_code == 2, "an empty history says what to do"
    (told,) = _json("import", str(file))
    assert (told["format"], told["new"]) == ("aws-spot-price-history", 5)
    assert _json("import", str(file))[0]["known"] == 5
    chart = tmp_path / "pool.png"
    shown = _roost("history", "aws/use1-az1/m5.large/spot", "--chart", str(chart))
    assert shown.exit_code == 0 and "0.045" in shown.output
    assert chart.read_bytes().startswith(b"\x89PNG")
    series = _json("history", "aws/us-east-1/m5.large", "--since", "2026-05-03")
    assert [point["value"] for point in series["series"]] == [0.043, 0.044, 0.045]
    damaged = next((tmp_path / "state" / "market" / "offer_price").rglob("*.parquet"))
    damaged.write_bytes(b"")
    shown = _roost("history", "--compact")
    assert shown.exit_code == 0 and "skipped" in shown.output and damaged.name in shown.output
    assert _roost("history", "aws/us-east-1").exit_code == 2
    assert "nothing of" in _roost("history", "gcp/us-central1/n2-standard-4").output
    bad = _roost("history", "aws/us-east-1/m5.large", "--chart", str(tmp_path / "x.nothing"))
    assert bad.exit_code == 2 and "cannot be written" in bad.output
    assert _roost("import", str(tmp_path / "none")).exit_code == 2


def test_record_survives_kill_9(world: Vendor, tmp_path: Path) -> None:
    held = threading.Event()
    first, second = "eu-west-1", "us-east-1"
    world.on(REGION.format(second), Answer(shapes.price_csv({}), hold=held))
    argv = [sys.executable, "-c", "from roost.main.cli import run; run()", "market", "record"]
    argv += ["--source", "aws-price-list", "--json"]
    recorder = subprocess.Popen(argv, stdout=subprocess.DEVNULL, env=os.environ.copy())
    try:
        deadline = time.monotonic() + 60
        while not any(second in request.path for request in world.asked):
            assert time.monotonic() < deadline and recorder.poll() is None
            time.sleep(0.02)
        assert "another" in _roost("record", "--once", "--source", "aws-price-list").output
    finally:
        recorder.send_signal(signal.SIGKILL)
        recorder.wait()
        held.set()
    history = History(tmp_path / "state" / "market")
    assert set(history.read("offer_price")["region"]) == {first}
    before = len(world.asked)
    run = _roost("record", "--once", "--source", "aws-price-list", "--json")
    assert run.exit_code == 0, run.output
    told = json.loads(run.stdout.splitlines()[-1])
    assert (told["new"], told["ok"]) == (1, True)
    paths = [request.path for request in world.asked[before:]]
    assert paths == [REGION.format(second)], "it goes on where it was"
    assert set(history.read("offer_price")["region"]) == {first, second}


def test_record_ends_when_told_to(world: Vendor, tmp_path: Path) -> None:
    argv = [sys.executable, "-c", "from roost.main.cli import run; run()", "market", "record"]
    argv += ["--source", "aws-spot-advisor", "--source", "skypilot", "--json"]
    recorder = subprocess.Popen(argv, stdout=subprocess.PIPE, env=os.environ.copy(), text=True)
    assert recorder.stdout is not None
    told = [json.loads(recorder.stdout.readline()) for _ in range(2)]
    assert {line["source"] for line in told} == {"aws-spot-advisor", "skypilot"}
    assert all(line["ok"] for line in told)
    recorder.send_signal(signal.SIGTERM)
    assert recorder.wait(30) == 0
    recorder.stdout.close()
    assert History(tmp_path / "state" / "market").latest_bands().height == 3
