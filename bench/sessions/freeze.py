"""``python -m bench.sessions.freeze [--mb 100,1000] [--moves N] [--json FILE]``: how long a page waits.

A real installation on this machine, a session with so much numpy and pandas state, a page that runs one
small cell after the other over its one connection, and a notice for its host once the standby is warm.
Printed per move: the longest wait for an answer, the time from the fence to the new routes, bytes sent.
"""

import argparse
import json
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from roost.client.api import RoostClient
from roost.client.model import SessionView, StartNotebook
from roost.main.local import LocalInstallation
from roost.main.page import Page
from roost.ports.errors import Retry

LIMITS_S = {100: 2.0, 1000: 4.0}
"""Goals of the project, by megabytes of state."""
STATE = """
import numpy as np, pandas as pd
rng = np.random.default_rng(0)
rows = int({mb} * 1e6 / 2 / 8 / 4)
arrays = [rng.random(int({mb} * 1e6 / 2 / 8 / 10)) for _ in range(10)]
frame = pd.DataFrame(rng.random((rows, 4)), columns=list("abcd"))
steps = []
print(sum(a.nbytes for a in arrays) + frame.memory_usage().sum())
"""
PATIENCE_S = 300.0
NOTICE_S = 60


def until(client: RoostClient, session_id: str, good: Callable[[SessionView], bool]) -> SessionView:
    """The session's view once it is ``good``. Raises ``TimeoutError``."""
    end = time.monotonic() + PATIENCE_S
    while time.monotonic() < end:
        try:
            view = client.notebook(session_id)
            if good(view):
                return view
        except Retry:
            pass
        time.sleep(0.1)
    raise TimeoutError(f"session {session_id} did not get there in {PATIENCE_S:.0f} s")


def move(client: RoostClient, page: Page, session_id: str) -> dict[str, Any]:
    """One notice while small cells run; what the page saw of it."""
    page.run("arrays[0][0] += 1")
    count = page.run("steps.append(len(steps))").count
    before = until(client, session_id, lambda v: v.standby_warm and v.checkpoint_cells >= count)
    client.interrupt_host(before.host_id, NOTICE_S, "bench")
    waits: list[float] = []
    restarts = 0
    moved_s = 0.0
    view = before
    while moved_s == 0.0 or time.monotonic() < moved_s + 2.0:
        result = page.run("steps.append(len(steps))", PATIENCE_S)
        waits.append(result.seconds)
        restarts += len(result.restarts)
        view = client.notebook(session_id)
        if not moved_s and view.state == "running" and view.epoch > before.epoch:
            moved_s = time.monotonic()
    whole = page.run("steps == list(range(len(steps)))").text.strip() == "True"
    record = view.moves[-1]
    return {
        "page_waits_s": round(max(waits), 2),
        "usual_s": round(sorted(waits)[len(waits) // 2], 3),
        "frozen_s": record.frozen_s,
        "mb_moved": round(record.bytes_moved / 1e6, 2),
        "warm": record.warm,
        "refused": len(record.refused),
        "restarts": restarts,
        "whole": whole,
    }


def measure(megabytes: int, moves: int) -> list[dict[str, Any]]:
    """The moves of one session with so much state."""
    # Not /tmp: hosts' environments are hard links into uv's cache, which must be on one file system.
    root = Path(tempfile.mkdtemp(prefix="rf-", dir="/var/tmp"))
    installation = LocalInstallation(str(root / "s"), port=0)
    installation.up(lambda _text: None)
    page: Page | None = None
    try:
        client = installation.client()
        started = client.start_notebook(StartNotebook(name="freeze", image="data-science"))
        view = until(client, started.id, lambda v: v.state == "running")
        page = Page(view.url)
        page.wait_open()
        page.connect("freeze.ipynb")
        made = page.run(STATE.format(mb=megabytes), PATIENCE_S)
        print(f"{megabytes} MB: {made.text.strip()} bytes of state", flush=True)
        return [move(client, page, view.id) for _ in range(moves)]
    finally:
        if page is not None:
            page.close()
        installation.down(lambda _text: None, keep_hosts=False)
        shutil.rmtree(root, ignore_errors=True)


def main(argv: list[str] | None = None) -> int:
    """Exit status 1 when a page saw more than the project's goal, or lost something."""
    parser = argparse.ArgumentParser(prog="python -m bench.sessions.freeze", description=__doc__)
    parser.add_argument("--mb", default="100,1000", help="megabytes of state (comma: several)")
    parser.add_argument("--moves", type=int, default=2)
    parser.add_argument("--json", type=Path, help="write all figures here")
    options = parser.parse_args(argv)
    found: dict[str, list[dict[str, Any]]] = {}
    good = True
    for size in map(int, options.mb.split(",")):
        found[str(size)] = measure(size, options.moves)
        for one in found[str(size)]:
            print(f"{size} MB: {json.dumps(one)}", flush=True)
            limit_s = LIMITS_S.get(size, max(LIMITS_S.values()))
            good &= one["page_waits_s"] <= limit_s and one["whole"] and not one["restarts"]
    if options.json:
        options.json.write_text(json.dumps(found, indent=1))
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
