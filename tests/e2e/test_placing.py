"""Rules of placement on real processes: the group grows for them, each replica says why it is there."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from roost.client.services import ServiceCalls, ServiceView
from tests.support.cluster import Cluster, eventually

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]

SERVER = "exec python -m http.server --bind $HOST $PORT"


@pytest.fixture(scope="module")
def group(cluster: Cluster) -> Iterator[str]:
    """Hosts of at least 2 vCPUs and 4 GiB, gone afterwards."""
    cluster.roost(
        "group", "create", "placing", "--image", "minimal", "--vcpus", "2", "--memory", "4",
        "--max", "3", "--near", "Seoul",
    )  # fmt: skip
    yield "placing"
    calls = ServiceCalls(cluster.client)
    for view in calls.list():
        calls.delete(view.id)
    eventually(lambda: not ServiceCalls(cluster.client).list(), "services are deleted")
    cluster.roost("group", "delete", "placing")


def ready(cluster: Cluster, name: str, count: int) -> ServiceView:
    """The service once so many serve."""

    def look() -> ServiceView | None:
        view = ServiceCalls(cluster.client).get(name)
        return view if view.ready >= count else None

    return eventually(look, f"{count} replicas of {name} serve", 120)


def test_replicas_apart_make_the_group_grow_and_say_why_they_are_where_they_are(
    cluster: Cluster, group: str, tmp_path: Path
) -> None:
    common = ("--group", group, "--cpu", "0.25", "--command", SERVER)
    cluster.roost("service", "create", "one", *common, "--min", "2", "--spread", "host=1")
    one = ready(cluster, "one", 2)
    hosts = {r.host_id for r in one.replicas if r.host_id}
    assert len(hosts) == 2, "never two on one host"

    cluster.roost("service", "create", "far", *common, "--apart", "one")
    far = ready(cluster, "far", 1)
    assert far.replicas[0].host_id not in hosts
    said = cluster.roost("service", "why", "far").stdout
    assert "1 wanted:" in said and f"on {far.replicas[0].host_id}: " in said
    assert "left free, ready" in " ".join(said.split())

    # The group is at its most: who is apart from both waits, and says what is in the way.
    cluster.roost("service", "create", "late", *common, "--apart", "one", "--apart", "far")

    def waits() -> str | None:
        said = " ".join(cluster.roost("service", "why", "late").stdout.split())
        return said if "waits: " in said and "none of 3 hosts" in said else None

    said = eventually(waits, "the reason is told", 60)
    assert "in the same host as" in said
