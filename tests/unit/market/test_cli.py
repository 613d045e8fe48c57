"""``roost market`` as a person and a program call it."""

import json
import subprocess
import sys

import pytest
from typer.testing import CliRunner

from roost.main.cli import app

runner = CliRunner()


@pytest.fixture(autouse=True)
def no_history(tmp_path, monkeypatch):
    monkeypatch.setenv("ROOST_STATE_DIR", str(tmp_path / "state"))


@pytest.mark.parametrize("columns", ["60", "120", "240"])
def test_rank_shows_the_table_and_each_reason(columns):
    result = runner.invoke(
        app,
        ["market", "rank", "--vcpus", "4", "--memory", "16", "--near", "Seoul", "--limit", "3"],
        env={"COLUMNS": columns},
    )
    assert result.exit_code == 0, result.output
    words = " ".join(result.output.replace("│", " ").split())
    assert "offers fit; the best 3" in words
    assert "unknown" in words
    assert words.count("pooled prior") >= 1
    assert "Spare Cores" in words


def test_rank_prints_json():
    args = [
        "market",
        "rank",
        "--cloud",
        "aws,gcp",
        "--option",
        "on-demand",
        "--limit",
        "2",
        "--json",
    ]
    result = runner.invoke(app, args)
    rows = json.loads(result.stdout)
    assert [row["rank"] for row in rows] == [1, 2]
    assert all(row["offer"]["key"].endswith("/on_demand") for row in rows)
    assert all(row["survival_known"] for row in rows)


@pytest.mark.parametrize(
    ("args", "message", "hint"),
    [
        (["market", "rank", "--max-price", "0.001"], "max_usd_hour=0.001 leaves nothing", "loosen"),
        (["market", "rank", "--type", "m5.xlarg"], "did you mean m5.xlarge", "loosen"),
        (
            ["market", "rank", "--option", "stolen"],
            "stolen is not a purchase option",
            "options are",
        ),
        (["market", "rank", "--near", "Soul"], "near=Soul", "did you mean Seoul"),
        (
            ["market", "why", "m5.xlarge"],
            "m5.xlarge is not an offer",
            "write provider/zone/type/option",
        ),
    ],
)
def test_an_error_has_a_message_a_hint_and_exit_code_2(args, message, hint):
    result = runner.invoke(app, args, env={"COLUMNS": "400"})
    assert result.exit_code == 2
    said = " ".join(result.stderr.split())
    assert message in said
    assert f"→ {hint}" in said
    assert not result.stdout


def test_why_explains_the_terms_and_what_the_best_has():
    args = ["market", "why", "aws/apne2-az1/m5.xlarge", "--vcpus", "4", "--max-price", "0.05"]
    result = runner.invoke(app, args, env={"COLUMNS": "200"})
    assert result.exit_code == 0, result.output
    for said in (
        "excluded by max_usd_hour=0.05",
        "losses",
        "the best is",
        "against it: price +",
    ):
        assert said in result.output
    made = json.loads(runner.invoke(app, [*args, "--json"]).stdout)
    assert made["offer"]["key"] == "aws/apne2-az1/m5.xlarge/spot"
    assert made["excluded_by"] == ["max_usd_hour=0.05"]
    assert made["winner"]["offer"]["key"]


M5 = "aws/use1-az1/m5.xlarge"


def test_compare_puts_every_term_side_by_side():
    args = ["market", "compare", M5, f"{M5}/on_demand"]
    shown = runner.invoke(app, args, env={"COLUMNS": "160"})
    assert shown.exit_code == 0, shown.output
    for said in ("losses", "down a loss", "42 s", "total", f"{M5}/on_demand: +"):
        assert said in shown.output
    rows = json.loads(runner.invoke(app, [*args, "--json"]).stdout)
    assert [row["offer"]["key"] for row in rows] == [f"{M5}/spot", f"{M5}/on_demand"]
    for row in rows:
        terms = row["cost"]
        parts = ("price", "floor", "speed", "distance", "losses")
        assert sum(terms[part] for part in parts) == pytest.approx(terms["total"])
        loss = row["loss"]
        assert loss["down_s"] == max(
            loss["freeze_s"], loss["launch_s"] + loss["move_s"] - loss["notice_s"]
        )
        assert terms["losses"] == pytest.approx(loss["hazard"]["expected"] * loss["usd"])
        assert loss["hazard"]["source"]


def test_replicas_are_spread_over_regions():
    args = ["market", "rank", "--replicas", "6", "--json"]
    rows = json.loads(runner.invoke(app, args).stdout)
    regions = [(row["offer"]["provider"], row["offer"]["region"]) for row in rows]
    assert len(rows) == 6
    assert max(regions.count(region) for region in regions) <= 2


def test_purchase_says_what_to_buy_and_what_has_no_price(tmp_path):
    chart = tmp_path / "crossover.png"
    use = ["--instances", "4", "--hours-a-day", "10", "--always", "1", "--never-spot", "1"]
    args = ["market", "purchase", M5, *use, "--chart", str(chart)]
    shown = runner.invoke(app, args, env={"COLUMNS": "200"})
    assert shown.exit_code == 0, shown.output
    words = " ".join(shown.output.split())
    assert "Buy reserved standard of 1 year all upfront for 1 machine and on demand" in words
    assert "not counted: reserved standard of 3 years: only a best case is published" in words
    assert chart.read_bytes().startswith(b"\x89PNG")
    made = json.loads(runner.invoke(app, [*args, "--json"]).stdout)
    assert made["mix"]["usd"] == pytest.approx(sum(p["usd"] for p in made["mix"]["parts"]))
    assert made["sentence"] in words
    refused = runner.invoke(app, [*args, "--dedicated", "--use", str(tmp_path / "none")])
    assert refused.exit_code == 2


def test_the_picture_is_drawn_where_asked(tmp_path):
    picture = tmp_path / "market.png"
    ask = ["--cloud", "aws,gcp", "--region", "us-east-1,us-east4", "--max-price", "0.3"]
    done = runner.invoke(app, ["market", "picture", str(picture), *ask])
    assert done.exit_code == 0, done.output
    assert "on the frontier" in done.stdout
    assert picture.read_bytes().startswith(b"\x89PNG")
    wrong = runner.invoke(app, ["market", "picture", str(tmp_path / "market.doc"), *ask])
    assert wrong.exit_code == 2
    assert "end it in .png" in wrong.stderr


def test_watch_tells_the_ranking_and_whether_a_move_pays():
    args = ["market", "watch", "--once", "--limit", "2", "--holding", M5, "--json"]
    done = runner.invoke(app, args)
    assert done.exit_code == 0, done.output
    first, second = [json.loads(line) for line in done.stdout.splitlines()]
    assert (first["event"], len(first["offers"])) == ("ranking", 2)
    assert (second["event"], second["offer"]) == ("holding", f"{M5}/spot")
    assert second["move"] is True
    assert "a day, the move costs $" in second["why"]


def test_ranking_pays_for_no_library_of_training_or_drawing():
    code = (
        "import sys\n"
        "from roost.main.cli import app\n"
        "try: app(['market', 'rank', '--limit', '1', '--json'])\n"
        "except SystemExit: pass\n"
        "heavy = ('sklearn', 'scipy', 'matplotlib', 'pandas', 'roost.main.local')\n"
        "print('heavy:', *[m for m in heavy if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout.endswith("heavy:\n")
