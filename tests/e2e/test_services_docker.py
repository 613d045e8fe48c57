"""The sample web service as containers of a real engine, under load: adopted, replaced, rolled back, gone.

Skipped, with the reason, where no engine answers.
"""

import os
import signal
import subprocess
from collections.abc import Iterator

import pytest

from roost.client.services import CreateService, RolloutBody, ServiceBody, ServiceCalls, ServiceView
from roost.ports.errors import Retry
from roost.ports.replicas import Health
from tests.e2e.test_services import Load
from tests.support.cluster import Cluster, eventually
from tests.support.docker import need_web

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(400)]
NAME = "boxed"


@pytest.fixture(scope="module")
def calls(cluster: Cluster) -> Iterator[ServiceCalls]:
    """Calls, with a group of hosts of two slots that is gone afterwards."""
    image = need_web()
    cluster.roost(
        "group", "create", "boxes", "--image", "minimal", "--vcpus", "2", "--memory", "4",
        "--slots", "2", "--max", "3", "--near", "Seoul",
    )  # fmt: skip
    made = ServiceCalls(cluster.client)
    body = ServiceBody(
        image=image,
        vcpus=0.25,
        memory_mib=64.0,
        group="boxes",
        min=3,
        max=5,
        health=Health(path="/health", interval_s=0.5),
        rollout=RolloutBody(settle_s=0.5, drain_s=5.0, timeout_s=60.0),
    )
    made.create(CreateService(name=NAME, body=body))
    yield made
    made.delete(NAME)
    eventually(lambda: not any(s.name == NAME for s in made.list()), "the service is deleted")
    cluster.roost("group", "delete", "boxes")


def steady(calls: ServiceCalls, ready: int = 3) -> ServiceView:
    """The service once so many replicas of its revision serve, and nothing else is there."""

    def look() -> ServiceView | None:
        try:
            view = calls.get(NAME)
        except Retry:
            return None
        good = [r for r in view.replicas if r.state == "ready" and r.revision == view.revision]
        whole = view.state == "running" and len(good) == len(view.replicas) >= ready
        return view if whole else None

    return eventually(look, f"{ready} containers serve", 120)


def containers(replica_id: str) -> list[str]:
    """Ids of the running containers of a replica."""
    argv = ["docker", "ps", "--quiet", "--no-trunc", "--filter", f"label=roost.task={replica_id}"]
    return subprocess.run(argv, capture_output=True, text=True, check=True).stdout.split()


def rolled_back(calls: ServiceCalls, number: int) -> str:
    """Why a revision failed, once what was good before runs again."""

    def look() -> str | None:
        view = calls.get(NAME)
        failed = [r for r in view.revisions if r.number == number and r.outcome == "failed"]
        return failed[0].message if failed and view.state == "running" else None

    return eventually(look, f"revision {number} is rolled back", 120)


def test_containers_are_adopted_replaced_and_rolled_back(
    cluster: Cluster, calls: ServiceCalls
) -> None:
    before = steady(calls)
    load = Load(f"{before.url}wait?ms=20")
    load.start()
    ids = {replica.id: containers(replica.id) for replica in before.replicas}
    assert all(len(found) == 1 for found in ids.values())

    hosts = [replica.host_id for replica in before.replicas]
    host = max(set(hosts), key=hosts.count)
    (agent,) = cluster.pids("roost.main.agent", ROOST_HOST_ID=host)
    os.kill(agent, signal.SIGKILL)
    eventually(
        lambda: [p for p in cluster.pids("roost.main.agent", ROOST_HOST_ID=host) if p != agent],
        "another agent",
    )
    steady(calls)
    assert {replica: containers(replica) for replica in ids} == ids, "containers run on"

    victim = next(iter(ids))
    subprocess.run(["docker", "kill", *ids[victim]], capture_output=True, check=True)
    eventually(lambda: containers(victim) not in ([], ids[victim]), "started again", 60)
    steady(calls)

    cluster.client.kill_host(host)
    lost = [replica.id for replica in before.replicas if replica.host_id == host]
    eventually(lambda: not any(map(containers, lost)), "its containers end with the host", 60)
    after = steady(calls)
    assert host not in {replica.host_id for replica in after.replicas}

    calls.update(NAME, ServiceBody(env={"BROKEN": "1"}, rollout=RolloutBody(timeout_s=8.0)))
    rolled = rolled_back(calls, before.revision + 1)
    assert "500" in rolled or "ready" in rolled, rolled
    load.end()


def test_an_image_that_is_nowhere_is_told(calls: ServiceCalls) -> None:
    newest = max(revision.number for revision in steady(calls).revisions)
    calls.update(
        NAME, ServiceBody(image="roost.invalid/nothing:1", rollout=RolloutBody(timeout_s=10.0))
    )

    def told() -> bool:
        return any(
            "roost.invalid/nothing:1 is not on this host" in replica.detail
            for replica in calls.get(NAME).replicas
        )

    eventually(told, "the replica says that the image is not there", 60)
    rolled_back(calls, newest + 1)
    steady(calls)
