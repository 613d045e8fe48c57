"""Services on real processes, through a real edge: no request fails while anything below it is replaced."""

import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from roost.client.services import ServiceCalls, ServiceView
from roost.ports.errors import Gone, Retry
from tests.support.cluster import Cluster, eventually

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(400)]

SERVER = """
import http.server, os, socketserver, time

class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        time.sleep(0.01)
        body = f"{os.environ['WORD']} {self.path}".encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass

class Server(socketserver.ThreadingMixIn, http.server.HTTPServer):
    daemon_threads = True
    request_queue_size = 128

print("listening as", os.environ["WORD"], flush=True)
Server((os.environ["HOST"], int(os.environ["PORT"])), Handler).serve_forever()
"""
FILE = """
services:
  web:
    command: python server.py
    files: site
    group: svc
    environment: {WORD: one}
    min: 1
    max: 6
    memory: 128M
    cpu: 0.25
    restart: always
    rollout: {settle_s: 0.5, drain_s: 10}
"""


class Load(threading.Thread):
    """Requests one after the other, until told to stop; what came back is counted."""

    def __init__(self, url: str) -> None:
        super().__init__(daemon=True)
        self.url = url
        self.seen: Counter[str] = Counter()
        self.slowest_s = 0.0
        self.over = threading.Event()

    def run(self) -> None:
        with httpx.Client(timeout=60, trust_env=False) as client:
            while not self.over.is_set():
                began_s = time.monotonic()
                try:
                    answer = client.get(self.url)
                    self.seen[str(answer.status_code)] += 1
                except httpx.HTTPError as error:
                    self.seen[type(error).__name__] += 1
                self.slowest_s = max(self.slowest_s, time.monotonic() - began_s)

    def end(self) -> None:
        """Stop, and fail for any answer that was not 200."""
        self.over.set()
        self.join()
        assert set(self.seen) == {"200"}, f"{dict(self.seen)}, slowest {self.slowest_s:.1f} s"


@pytest.fixture(scope="module")
def group(cluster: Cluster) -> Iterator[str]:
    """A group of small hosts, gone afterwards."""
    cluster.roost(
        "group", "create", "svc", "--image", "minimal", "--vcpus", "2", "--memory", "4",
        "--max", "4", "--near", "Seoul",
    )  # fmt: skip
    yield "svc"
    calls = ServiceCalls(cluster.client)
    for view in calls.list():
        calls.delete(view.id)
    eventually(lambda: not ServiceCalls(cluster.client).list(), "services are deleted")
    cluster.roost("group", "delete", "svc")


def service(cluster: Cluster, name: str = "web") -> ServiceView | None:
    try:
        return ServiceCalls(cluster.client).get(name)
    except Retry:  # control is being restarted
        return None


def steady(cluster: Cluster, *, ready: int, revision: int, timeout_s: float = 120) -> ServiceView:
    """The service once exactly so many replicas of a revision serve."""

    def look() -> ServiceView | None:
        view = service(cluster)
        if view is None or view.state != "running" or view.revision != revision:
            return None
        good = [r for r in view.replicas if r.state == "ready" and r.revision == revision]
        return view if len(good) == len(view.replicas) >= ready else None

    return eventually(look, f"{ready} replicas of revision {revision} serve", timeout_s)


def test_one_address_while_everything_below_it_changes(
    cluster: Cluster, group: str, tmp_path: Path
) -> None:
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "server.py").write_text(SERVER)
    file = tmp_path / "compose.yaml"
    file.write_text(FILE)
    cluster.roost("apply", "-f", str(file))
    public = cluster.state.endpoints()["public_url"]
    url = f"{public}/s/web/a?b=c"
    first = httpx.get(url, timeout=120, trust_env=False)
    assert (first.status_code, first.text) == (200, "one /a?b=c"), "it waited for the first replica"
    port = public.rsplit(":", 1)[1]
    named = httpx.get(
        f"{public}/x", headers={"Host": f"web.localhost:{port}"}, trust_env=False, timeout=30
    )
    assert named.text == "one /x"
    assert "unchanged" in cluster.roost("apply", "-f", str(file)).stdout

    cluster.roost("service", "scale", "web", "2", "--wait", "60")
    load = Load(url)
    load.start()
    file.write_text(FILE.replace("WORD: one", "WORD: two"))
    cluster.roost("apply", "-f", str(file))
    steady(cluster, ready=2, revision=2)
    assert httpx.get(url, timeout=30, trust_env=False).text.startswith("two")

    cluster.roost("service", "update", "web", "--command", "python nothing.py")
    view = steady(cluster, ready=2, revision=2)
    assert view.revisions[-1].outcome == "failed"
    assert "back at revision 2" in view.message

    cluster.restarted("control", cluster.kill9("control"))
    eventually(lambda: service(cluster), "control answers again")
    host_id = steady(cluster, ready=2, revision=2).replicas[0].host_id
    (agent,) = cluster.pids("roost.main.agent", ROOST_INSTANCE=host_id)
    pids = sorted(r.id for r in steady(cluster, ready=2, revision=2).replicas)
    os.kill(agent, signal.SIGKILL)
    eventually(lambda: load.seen["200"] > 50, "requests went on")
    view = steady(cluster, ready=2, revision=2)
    assert sorted(r.id for r in view.replicas) == pids, "replicas outlive their agent"
    load.end()


def test_a_host_that_goes_and_one_that_dies(cluster: Cluster, group: str) -> None:
    url = f"{cluster.state.endpoints()['public_url']}/s/web/"
    view = steady(cluster, ready=2, revision=2)
    taken = {r.host_id for r in view.replicas}
    load = Load(url)
    load.start()
    for host_id in taken:
        cluster.client.interrupt_host(host_id, 60, "test")

    def moved() -> bool:
        now = service(cluster)
        return now is not None and not taken & {r.host_id for r in now.replicas} and now.ready >= 2

    eventually(moved, "replicas left the hosts under notice", 55)
    killed = {r.host_id for r in steady(cluster, ready=2, revision=2).replicas}
    cluster.client.kill_host(next(iter(killed)))
    eventually(
        lambda: not {next(iter(killed))} & {h.id for h in cluster.client.hosts()}, "it is gone"
    )
    steady(cluster, ready=2, revision=2)
    load.end()
    events = [line["event"] for line in cluster.json("story", view.id)]
    for event in ("ReplicasWanted", "ReplicaPlaced", "ReplicaReady", "ReplicaDraining"):
        assert event in events


def test_asleep_and_woken_by_a_request(cluster: Cluster, group: str) -> None:
    cluster.roost("service", "update", "web", "--min", "0")
    cluster.roost("service", "scale", "web", "0", "--wait", "60")
    cluster.roost("service", "scale", "web", "auto")
    url = f"{cluster.state.endpoints()['public_url']}/s/web/"
    assert httpx.get(url, timeout=100, trust_env=False).status_code == 200
    view = steady(cluster, ready=1, revision=2)
    logs = cluster.json("service", "logs", "web", "--replica", view.replicas[0].id)
    assert "listening as two" in logs["text"]
    ran = cluster.roost(
        "service", "exec", "web", "--", "sh", "-c", "echo $WORD; exit 3", check=False
    )
    assert (ran.stdout, ran.returncode) == ("two\n", 3)


def test_the_commands_say_what_is_and_what_is_wrong(cluster: Cluster, group: str) -> None:
    assert "web" in cluster.roost("service", "list").stdout
    shown = cluster.roost("service", "show", "web").stdout
    assert "back at revision 2" in shown or "Revisions" in shown
    for arguments, said in (
        (("create", "web", "--command", "x", "--group", "svc"), "there is a service web already"),
        (("create", "a", "--command", "x", "--min", "3", "--max", "1"), "max 1 is below min 3"),
        (("create", "a", "--command", "x", "--cpu", "512"), "fits no host"),
        (("create", "a", "--command", "x", "--group", "none"), "there is no group none"),
        (("create", "a"), "needs a command or an image"),
        (("show", "none"), "no service none"),
        (("rollback", "web", "--revision", "99"), "no other revision 99"),
    ):
        done = cluster.roost("service", *arguments, check=False)
        assert done.returncode == 2, done.stdout
        assert said in done.stderr.replace("\n", " "), done.stderr
    cluster.roost("service", "delete", "web", "--wait", "60")
    with pytest.raises(Gone):
        ServiceCalls(cluster.client).get("web")
    url = f"{cluster.state.endpoints()['public_url']}/s/web/"
    assert httpx.get(url, timeout=30, trust_env=False).status_code == 404
