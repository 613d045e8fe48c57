"""A long loop while its hosts are interrupted: it goes on where it was, each step done and shown once."""

import threading

import pytest

from roost.main.page import CellResult
from tests.support.cluster import Cluster

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(500)]

LOOP = """
import os, time
for i in range(5000):
    with open("steps.txt", "a") as f: f.write(f"{i}\\n")
    print(i)
    time.sleep(0.2)
    if os.path.exists("stop"): break
print("done")
"""


def test_a_loop_goes_on_where_it_was_over_two_notices(cluster: Cluster) -> None:
    view = cluster.start()
    page = cluster.page(view)
    before = cluster.saved(view.id, page.run("open('steps.txt', 'w').close()"))
    results: list[CellResult] = []
    cell = threading.Thread(target=lambda: results.append(page.run(LOOP, 400)), daemon=True)
    cell.start()
    for _ in range(2):
        before = cluster.warm(view.id)
        cluster.client.interrupt_host(before.host_id, 25, "in a loop")
        before = cluster.moved(before)
        record = before.moves[-1]
        assert not record.rerun, "it was captured in the loop"
        assert record.refused == ()
    page.upload("stop", b"")
    cell.join(60)
    assert results, "the cell ended, over the same connection"
    (result,) = results
    assert result.status == "ok" and result.restarts == []
    lines = result.text.split()
    steps = page.download("steps.txt").decode().split()
    assert lines == [*steps, "done"], "no output is lost or doubled"
    assert steps == [str(i) for i in range(len(steps))], "each step was done once"
    assert result.count == 2
    assert page.run("i").text.strip() == steps[-1]
