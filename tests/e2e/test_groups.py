"""A group of hosts on real processes: made, lost, noticed, stopped and started, refreshed, ended."""

import json
from collections.abc import Iterator

import pytest

from roost.client.groups import GroupBody, GroupCalls, GroupHostView, RefreshGroup
from roost.ports.errors import Gone, Invalid
from tests.support.cluster import Cluster, eventually


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    made = Cluster().up()
    yield made
    made.close()


@pytest.fixture
def groups(cluster: Cluster) -> GroupCalls:
    return GroupCalls(cluster.client)


def serving(groups: GroupCalls, name: str) -> list[GroupHostView]:
    return [host for host in groups.show(name).hosts if host.state == "serving" and host.connected]


def wait_for(groups: GroupCalls, name: str, count: int) -> list[GroupHostView]:
    def look() -> bool:
        return len(serving(groups, name)) == count == len(groups.show(name).hosts)

    eventually(look, f"{count} hosts serve in {name}", timeout_s=90)
    return serving(groups, name)


def body(**more: object) -> GroupBody:
    return GroupBody(vcpus=2, memory_gib=4, near="Seoul", image="minimal", **more)  # type: ignore[arg-type]


def test_a_group_replaces_what_is_lost_and_what_is_noticed(
    cluster: Cluster, groups: GroupCalls
) -> None:
    made = groups.create("web", body(min=2, max=4))
    assert (made.desired, made.slots) == (2, 4)
    first, second = wait_for(groups, "web", 2)
    assert first.offer is not None
    assert second.offer is not None
    assert first.offer.key != second.offer.key, "not both in one pool"
    cluster.client.kill_host(first.host_id)
    cluster.client.interrupt_host(second.host_id, 5.0, "a test")
    lost = {first.host_id, second.host_id}
    eventually(
        lambda: len({h.host_id for h in groups.show("web").hosts} - lost) == 2,
        "both are replaced before the second is gone",
        timeout_s=30,
    )
    new = wait_for(groups, "web", 2)
    assert lost.isdisjoint(h.host_id for h in new)
    story = [f"{line.event} {line.reason}" for line in cluster.client.story("g-web")]
    assert any("under notice" in line for line in story)
    smaller = groups.change("web", GroupBody(min=0))
    assert smaller.desired == 2, "the scaler's number stands"
    groups.desired("web", 1)
    (left,) = wait_for(groups, "web", 1)
    story = [f"{line.event} {line.reason}" for line in cluster.client.story("g-web")]
    assert any(line.startswith("Draining") and "0 of 4 slots" in line for line in story)
    groups.protect(left.host_id, "scale-in")
    shown = groups.desired("web", 0)
    assert shown.hosts[0].protection == "scale-in"
    groups.protect(left.host_id, "none")
    wait_for(groups, "web", 0)
    groups.delete("web")
    eventually(lambda: _gone(groups, "web"), "the group is gone")


def test_a_warm_host_is_stopped_and_started_and_a_refresh_goes_through(
    cluster: Cluster, groups: GroupCalls
) -> None:
    warm = {"size": 1, "state": "stopped"}
    groups.create("warm", body(min=1, max=3, warm=warm))
    instances = eventually(
        lambda: [h for h in cluster.client.hosts() if h.state == "stopped"],
        "the warm host is stopped",
        timeout_s=90,
    )
    wait_for_warm = groups.show("warm")
    assert [h.state for h in wait_for_warm.hosts].count("warm") == 1
    groups.desired("warm", 2)
    eventually(
        lambda: instances[0].id in [h.host_id for h in serving(groups, "warm")],
        "the stopped host serves",
        timeout_s=60,
    )
    groups.change("warm", GroupBody(warm={"size": 0}))
    before = {h.host_id for h in wait_for(groups, "warm", 2)}
    groups.refresh("warm", RefreshGroup(all_hosts=True, min_healthy=1.0, max_healthy=1.5))

    def refreshed() -> bool:
        view = groups.show("warm")
        assert len([h for h in view.hosts if h.state == "serving"]) >= 2
        return view.refresh is not None and view.refresh.state == "successful"

    eventually(refreshed, "the refresh went through", timeout_s=120)
    assert before.isdisjoint(h.host_id for h in serving(groups, "warm"))
    groups.delete("warm")
    eventually(lambda: not cluster.client.hosts(), "no host is left", timeout_s=60)


def test_the_command_and_what_it_refuses(cluster: Cluster, groups: GroupCalls) -> None:
    with pytest.raises(Invalid, match="min 3 and max 2"):
        groups.create("bad", body(min=3, max=2))
    with pytest.raises(Invalid):
        groups.create("bad", GroupBody(vcpus=4000, memory_gib=1_000_000))
    with pytest.raises(Gone):
        groups.show("nothing")
    done = cluster.roost(
        "group", "create", "cli", "--max", "2", "--hook", "launch:bake:30", "--json"
    )
    assert json.loads(done.stdout)["spec"]["hooks"][0]["name"] == "bake"
    done = cluster.roost("group", "set", "cli", "--hook", "none", "--on-demand-base", "1", "--json")
    shown = json.loads(done.stdout)
    assert shown["spec"]["hooks"] == []
    assert shown["spec"]["on_demand_base"] == 1
    assert "cli" in cluster.roost("group", "list").stdout
    failed = cluster.roost("group", "set", "cli", "--desired", "9", check=False)
    assert failed.returncode == 2
    assert "not within 0 and 2" in failed.stderr
    cluster.roost("group", "delete", "cli")


def _gone(groups: GroupCalls, name: str) -> bool:
    try:
        groups.show(name)
    except Gone:
        return True
    return False
