"""Every process may be killed with -9 at any moment: one test each."""

import os
import signal
import threading
import time

import pytest

from roost.client.model import SessionView
from roost.main.page import CellResult, Page
from tests.support.cluster import Cluster, eventually

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]

LINES = 60
SLOW = f"""
import time
for line in range({LINES}):
    print('line', line, flush=True)
    time.sleep(0.05)
'finished'
"""


@pytest.fixture(scope="module")
def session(cluster: Cluster) -> SessionView:
    view = cluster.start()
    return cluster.saved(view.id, cluster.page(view).run("kept = 'yes'"))


@pytest.fixture
def page(cluster: Cluster, session: SessionView) -> Page:
    return cluster.page(session)


class Running:
    """A slow cell on its way in a thread."""

    def __init__(self, page: Page) -> None:
        self.result: CellResult | None = None
        self._thread = threading.Thread(target=self._run, args=(page,))
        self._thread.start()
        time.sleep(0.6)

    def _run(self, page: Page) -> None:
        self.result = page.run(SLOW)

    def finish(self) -> CellResult:
        self._thread.join(120)
        assert self.result is not None, "the cell never answered"
        return self.result


def whole(result: CellResult) -> None:
    """Every line once, in order, and the reply."""
    assert result.status == "ok", result.error
    lines = [x for x in result.text.splitlines() if x.startswith("line ")]
    assert lines == [f"line {n}" for n in range(LINES)]
    assert "finished" in result.text


def test_bridge_killed_in_mid_cell(cluster: Cluster, page: Page) -> None:
    running = Running(page)
    for pid in cluster.pids("roost.main.bridge"):
        os.kill(pid, signal.SIGKILL)
    whole(running.finish())


def test_agent_killed_in_mid_cell(cluster: Cluster, session: SessionView, page: Page) -> None:
    running = Running(page)
    host = cluster.client.notebook(session.id).host_id
    (agent,) = cluster.pids("roost.main.agent", ROOST_INSTANCE=host)
    os.kill(agent, signal.SIGKILL)
    whole(running.finish())
    assert cluster.client.notebook(session.id).host_id == host, "the kernel was adopted, not moved"
    assert page.run("kept").text.strip() == "'yes'"


def test_control_killed_in_mid_cell(cluster: Cluster, session: SessionView, page: Page) -> None:
    running = Running(page)
    old = cluster.kill9("control")
    whole(running.finish())
    cluster.restarted("control", old)
    assert cluster.client.notebook(session.id).state == "running"


def test_edge_killed_in_mid_cell_loses_no_output(
    cluster: Cluster, session: SessionView, page: Page
) -> None:
    page.run("heard = []")
    running = threading.Thread(target=lambda: _ignore_lost(page))
    running.start()
    time.sleep(0.6)
    cluster.kill9("edge-0")
    running.join(60)
    again = cluster.page(session)
    assert again.run("kept, done").text.strip() == "('yes', 60)", "the cell ran to its end"


def _ignore_lost(page: Page) -> None:
    try:
        page.run(f"import time\nfor done in range(1, {LINES + 1}): time.sleep(0.05)")
    except Exception:  # the page's own TCP connection ended in the edge: documented
        return


def test_server_killed_keeps_kernel_and_ids(cluster: Cluster, session: SessionView) -> None:
    page = cluster.page(session)
    first = page.connect("test.ipynb")
    page.run("before_the_kill = 1")
    old = cluster.kill9(f"server-{session.id}")
    cluster.restarted(f"server-{session.id}", old)
    again = cluster.page(session)
    assert again.connect("test.ipynb") == first, "the same kernel id"
    assert again.run("before_the_kill, kept").text.strip() == "(1, 'yes')"


def test_supervisor_killed_is_replaced_and_adopts(cluster: Cluster, session: SessionView) -> None:
    control, edge = cluster.pid("control"), cluster.pid("edge-0")
    cluster.kill9("supervisor")
    assert cluster.json("status")["sessions"]["running"] == 1
    assert (cluster.pid("control"), cluster.pid("edge-0")) == (control, edge), "adopted"
    assert cluster.pid("supervisor")
    old = cluster.kill9("control")
    cluster.restarted("control", old)
    assert cluster.page(session).run("kept").text.strip() == "'yes'"


def test_keeper_killed_is_a_death_of_the_kernel(cluster: Cluster, session: SessionView) -> None:
    page = cluster.page(session)
    before = cluster.saved(session.id, page.run("to_restore = [1, 2, 3]"))
    host = before.host_id
    pids = cluster.pids("roost.main.keeper", ROOST_INSTANCE=host)
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
    after = cluster.moved(before)
    assert after.moves[-1].cause in ("kernel_lost", "lost")
    assert page.run("to_restore, kept").text.strip() == "([1, 2, 3], 'yes')"


def test_kernel_killed_restarts_fresh_as_jupyter_does(
    cluster: Cluster, session: SessionView
) -> None:
    page = cluster.page(session)
    before = cluster.client.notebook(session.id)
    kernel = page.run("import os; os.getpid()")
    assert kernel.status == "ok"
    (pid, *_) = cluster.pids("roost.runtime.kernel", ROOST_INSTANCE=before.host_id)
    for pid in cluster.pids("roost.runtime.kernel", ROOST_INSTANCE=before.host_id):
        os.kill(pid, signal.SIGKILL)
    result = eventually(lambda: _answers(cluster, session), "a kernel answers again")
    assert result.status == "ok"


def _answers(cluster: Cluster, session: SessionView) -> CellResult | None:
    try:
        return cluster.page(session).run("1 + 1", timeout_s=20)
    except Exception:  # the page reconnects until it works
        return None


def test_control_killed_in_the_middle_of_a_move(cluster: Cluster) -> None:
    view = cluster.start()
    page = cluster.page(view)
    made = page.run("big = list(range(1000)); alias = big")
    cluster.warm(view.id)
    before = cluster.saved(view.id, made)
    hosts = {h.id for h in cluster.client.hosts()}
    cluster.client.interrupt_host(before.host_id, 60, "test")
    for _ in range(3):
        old = cluster.kill9("control")
        cluster.restarted("control", old)
        time.sleep(0.4)
    moved = cluster.moved(before)
    assert page.run("len(big), alias is big").text.strip() == "(1000, True)"
    assert moved.host_id in hosts, "the standby that was there was adopted and used"
    assert moved.moves[-1].refused == ()
