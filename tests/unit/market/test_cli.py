"""``roost market`` as a person and a program call it."""

import json
import subprocess
import sys

import pytest
from typer.testing import CliRunner

from roost.main.cli import app

runner = CliRunner()


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
