"""The main job on real processes: run, interrupt, move; kill, come back; same page, same variables."""

import json

import pytest

from tests.support.cluster import Cluster, eventually

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(400)]


def test_a_session_moves_on_notice_and_comes_back_after_a_death(cluster: Cluster) -> None:
    view = cluster.start()
    page = cluster.page(view)
    page.upload("numbers.csv", b"a,b\n1,2\n3,4\n")
    assert (
        page.run("x = 41; rows = open('numbers.csv').read().splitlines(); y = [x]; z = y").text
        == ""
    )
    made = page.run("open('made.txt', 'w').write('by a cell')")
    cluster.warm(view.id)
    before = cluster.saved(view.id, made)
    first = before.offer
    assert first is not None

    noticed = cluster.client.interrupt_host(before.host_id, None, "test")
    assert noticed.notice_deadline_s is None or noticed.notice_deadline_s > 0
    moved = cluster.moved(before)
    assert moved.offer is not None
    assert moved.offer.provider != first.provider, "another cloud was asked for"
    assert moved.url == view.url
    assert page.run("x + 1, z is y, len(rows), open('made.txt').read()").text.strip() == (
        "(42, True, 3, 'by a cell')"
    )
    assert page.download("made.txt") == b"by a cell"
    record = moved.moves[-1]
    assert record.cause == "notice"
    assert {"x", "y", "z", "rows"} <= set(record.kept)
    assert record.refused == ()
    assert record.warm
    assert not record.rerun

    appended = page.run("y.append(x * 2)")
    cluster.warm(view.id)
    ready = cluster.saved(view.id, appended)
    cluster.client.kill_host(ready.host_id)
    back = cluster.moved(ready)
    result = page.run("y, z is y, In[-1]")
    assert result.text.strip().startswith("([41, 82], True")
    assert result.restarts == [], "the page never sees a restart"
    assert back.moves[-1].cause == "lost"
    assert back.moves[-1].rerun

    ended = [h for h in cluster.client.hosts(all_=True) if h.ended_s is not None]
    assert {h.id for h in ended} >= {before.host_id, ready.host_id}


def test_the_commands_tell_the_same_story(cluster: Cluster) -> None:
    (listed,) = [n for n in cluster.json("notebook", "list") if n["state"] == "running"]
    events = [line["event"] for line in cluster.json("story", listed["id"])]
    for event in (
        "Requested",
        "HostChosen",
        "Running",
        "Noticed",
        "MoveBegun",
        "Captured",
        "Moved",
    ):
        assert event in events, events
    cost = cluster.json("cost")
    assert cost["usd"] > 0
    assert cost["on_demand_usd"] > cost["usd"]
    assert cost["differences"] == [], "metered equals the provider's ledger"
    status = cluster.json("status")
    assert status["sessions"]["running"] == 1
    hosts = cluster.json("host", "list")
    assert {h["state"] for h in hosts} <= {"ready", "booting", "draining", "requested"}
    table = cluster.roost("notebook", "show").stdout
    assert listed["id"] in table
    assert "lost" in table
    env = cluster.json("env")
    assert set(env) == {"ROOST_STATE_DIR", "ROOST_URL", "ROOST_TOKEN"}
    assert json.dumps(env)


def test_a_shell_on_a_host_is_inside_the_instance(cluster: Cluster) -> None:
    (running,) = [n for n in cluster.client.notebooks() if n.state == "running"]
    done = cluster.shell(running.host_id, "echo in-$((40 + 2)) $ROOST_INSTANCE; exit\n")
    assert f"in-42 {running.host_id}" in done


def test_a_person_moves_and_stops_a_session(cluster: Cluster) -> None:
    (listed,) = [n for n in cluster.client.notebooks() if n.state == "running"]
    before = cluster.warm(listed.id)
    out = cluster.json("notebook", "move", listed.id)
    assert out["epoch"] > before.epoch
    stopped = cluster.json("notebook", "stop", listed.id)
    assert stopped["state"] == "stopped"
    cluster.until(listed.id, lambda v: v.state == "stopped", "stopped")

    def gone() -> bool:
        return all(h.ended_s is not None for h in cluster.client.hosts(all_=True))

    eventually(gone, "every host of the stopped session ended")
