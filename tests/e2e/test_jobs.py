"""A job on real processes: moved by a notice, taken by a kill -9 of its host, run to its end once."""

import json
import os
import signal
from pathlib import Path

import pytest

from roost.client.jobs import fetch, submit
from roost.client.model import JobView, StartJob
from roost.ports.errors import Retry
from tests.support.cluster import Cluster, eventually

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(400)]

STEPS = 240
TRAIN = f"""
import pathlib, sys, time
import roost

state = roost.resume() or {{"step": 0, "seen": []}}
print("begins at", state["step"], "with", sys.argv[1:])
while state["step"] < {STEPS}:
    step = state["step"]
    with open("steps.txt", "a") as file:
        file.write(f"{{step}}\\n")
    state["seen"].append(step)
    state["step"] += 1
    roost.checkpoint(state)
    print("step", step)
    time.sleep(0.1)
assert state["seen"] == list(range({STEPS}))
print("done", pathlib.Path("data/numbers.txt").read_text().strip())
"""
ASK = StartJob(argv=("python", "train.py"), memory_gib=4, near="Seoul", image="minimal")


def project(folder: Path, script: str = TRAIN) -> Path:
    (folder / "data").mkdir(parents=True)
    (folder / "data" / "numbers.txt").write_text("1 2 3\n")
    (folder / "train.py").write_text(script)
    return folder


def steps_seen(cluster: Cluster, job_id: str) -> int:
    text = b""
    try:
        while more := cluster.client.job_output(job_id, len(text)):
            text += more
    except Retry:  # control is being restarted
        return 0
    lines = [x for x in text.decode().splitlines() if x.startswith("step ")]
    return len(set(lines))


def ended(cluster: Cluster, job_id: str) -> JobView:
    def look() -> JobView | None:
        view = cluster.client.job(job_id)
        return view if view.ended_s is not None else None

    return eventually(look, "the job ends", 240)


def test_a_script_goes_on_after_a_notice_and_after_a_death(
    cluster: Cluster, tmp_path: Path
) -> None:
    root = project(tmp_path / "project")
    options = ["--memory", "4", "--near", "Seoul", "--image", "minimal", "--json"]
    script = [str(root / "train.py"), "--epochs", "3"]
    job_id = json.loads(cluster.roost("job", "run", *options, *script).stdout)["id"]
    eventually(lambda: steps_seen(cluster, job_id) >= 10, "ten steps", 120)

    first = cluster.client.job(job_id).host_id
    (agent,) = cluster.pids("roost.main.agent", ROOST_INSTANCE=first)
    os.kill(agent, signal.SIGKILL)
    cluster.restarted("control", cluster.kill9("control"))
    before = steps_seen(cluster, job_id)
    eventually(lambda: steps_seen(cluster, job_id) >= before + 10, "it runs on, unseen", 60)
    assert cluster.client.job(job_id).epoch == 1

    cluster.client.interrupt_host(first, 20, "test")
    eventually(lambda: cluster.client.job(job_id).epoch == 2, "it runs elsewhere", 120)
    told = cluster.client.job(job_id).runs[0]
    assert "notice" in told.reason
    assert told.exit_code == -15
    before = steps_seen(cluster, job_id)
    eventually(lambda: steps_seen(cluster, job_id) >= before + 20, "twenty more steps", 120)

    second = cluster.client.job(job_id).host_id
    assert second != first
    cluster.client.kill_host(second)
    view = ended(cluster, job_id)
    assert (view.state, view.exit_code, len(view.runs)) == ("finished", 0, 3)
    assert "lost" in view.runs[1].reason

    results = tmp_path / "results"
    assert "steps.txt" in fetch(cluster.client, job_id, results)
    steps = [int(x) for x in (results / "steps.txt").read_text().split()]
    assert sorted(set(steps)) == list(range(STEPS)), "every step is there"
    repeated = len(steps) - STEPS
    assert repeated <= 20, f"{repeated} steps were run again"
    logs = cluster.json("job", "logs", job_id)["output"]
    assert "done 1 2 3" in logs
    assert "begins at 0 with ['--epochs', '3']" in logs


def test_the_commands_tell_how_it_went(cluster: Cluster) -> None:
    (listed,) = cluster.json("job", "list")
    job_id = listed["id"]
    assert listed["state"] == "finished"
    events = [line["event"] for line in cluster.json("story", job_id)]
    for event in ("Accepted", "HostChosen", "RunBegun", "Noticed", "Leaving", "Finished"):
        assert event in events, events
    assert events.count("Finished") == 1
    hosts = {run["host_id"] for run in listed["runs"]}
    cost = cluster.json("cost")
    assert hosts <= {line["host_id"] for line in cost["lines"]}, "every second is metered"
    assert "exit code 0" in cluster.roost("job", "show", job_id).stdout
    assert job_id in cluster.roost("job", "list").stdout

    def gone() -> bool:
        return all(h.ended_s is not None for h in cluster.client.hosts(all_=True))

    eventually(gone, "its hosts are let go")


def test_a_job_without_time_to_spare_runs_on_demand_and_says_why(
    cluster: Cluster, tmp_path: Path
) -> None:
    root = project(tmp_path / "hurried", "print('in time', flush=True)")
    options = ["--memory", "4", "--image", "minimal", "--deadline", "2h", "--takes", "115m"]
    done = cluster.roost("job", "run", *options, "--name", "hurried", str(root / "train.py"))
    assert "hurried" in done.stdout
    view = ended(cluster, cluster.client.job("hurried").id)
    assert (view.state, [r.offer.rsplit("/", 1)[1] for r in view.runs]) == (
        "finished",
        ["on_demand"],
    )
    shown = cluster.roost("job", "show", "hurried").stdout
    assert "deadline" in shown
    events = {x["event"]: x["reason"] for x in cluster.json("story", view.id)}
    assert "on demand to be in time" in events["OnDemand"]


def test_exit_codes_retries_and_stopping(cluster: Cluster, tmp_path: Path) -> None:
    stuck, _ = submit(
        cluster.client,
        project(tmp_path / "stuck", "import time\nprint('here', flush=True)\ntime.sleep(600)"),
        ASK,
    )
    failing = project(tmp_path / "failing", "import sys; print('no'); sys.exit(3)")
    options = ["--memory", "4", "--image", "minimal", "--retries", "1", "--follow"]
    done = cluster.roost("job", "run", *options, str(failing / "train.py"), check=False)
    assert (done.returncode, done.stdout) == (3, "no\nno\n")
    failed = cluster.client.job("train")
    assert (failed.state, failed.exit_code, failed.failures) == ("failed", 3, 1)

    eventually(lambda: cluster.client.job_output(stuck.id, 0), "its output", 120)
    stopped = cluster.json("job", "stop", stuck.id)
    assert (stopped["state"], stopped["exit_code"]) == ("stopped", -15)
    assert json.loads(cluster.roost("job", "logs", stuck.id, "--json").stdout)["output"] == "here\n"
