"""nbclient runs the examples with the Roost kernel while their hosts are interrupted: same outputs."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient

from roost.client.model import SessionView, StartNotebook
from tests.support.cluster import Cluster, eventually

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]

EXAMPLES = Path(__file__).parents[2] / "examples"
INTERRUPTIONS = 3


def outputs(notebook: Any) -> list[Any]:
    """What each code cell showed, without what may differ between two runs of the same thing."""
    found = []
    for cell in notebook.cells:
        if cell.cell_type != "code":
            continue
        text = ""
        pictures = 0
        for output in cell.outputs:
            data = output.get("data", {})
            text += output.get("text", "") + data.get("text/plain", "")
            pictures += "image/png" in data
        found.append((re.sub(r"0x[0-9a-f]+", "0x", text), pictures))
    return found


def run_plain(folder: Path, path: Path) -> list[Any]:
    """The outputs on a plain kernel."""
    notebook = nbformat.read(path, as_version=4)
    client = NotebookClient(
        notebook, timeout=300, kernel_name="python3", resources={"metadata": {"path": folder}}
    )
    client.execute()
    return outputs(notebook)


def interrupt(cluster: Cluster) -> SessionView:
    """Interrupt the one running session's host once its standby is warm; returns the session before."""
    (running,) = [s for s in cluster.client.notebooks() if s.state == "running"]
    before = cluster.warm(running.id)
    cluster.client.interrupt_host(before.host_id, 25, "nbclient test")
    return before


@pytest.fixture
def kernelspec(cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The Roost kernel as a user installs it, for this installation."""
    folder = Path(cluster.json("kernel", "install", "--prefix", str(tmp_path))["folder"])
    spec = json.loads((folder / "kernel.json").read_text())
    spec["env"] = {"ROOST_STATE_DIR": str(cluster.state.root), "ROOST_IMAGE": "data-science"}
    (folder / "kernel.json").write_text(json.dumps(spec))
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path / "share" / "jupyter"))
    monkeypatch.setenv("ROOST_STATE_DIR", str(cluster.state.root))
    return folder.name


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*/*.ipynb")), ids=lambda p: p.parent.name)
def test_three_interruptions_change_no_output(
    cluster: Cluster, kernelspec: str, tmp_path: Path, path: Path
) -> None:
    plain, roost = tmp_path / "plain", tmp_path / "roost"
    shutil.copytree(path.parent, plain)
    shutil.copytree(path.parent, roost)
    expected = run_plain(plain, plain / path.name)

    notebook = nbformat.read(roost / path.name, as_version=4)
    client = NotebookClient(
        notebook,
        timeout=300,
        startup_timeout=180,
        kernel_name=kernelspec,
        resources={"metadata": {"path": str(roost)}},
    )
    cells = [(n, c) for n, c in enumerate(notebook.cells) if c.cell_type == "code"]
    positions = {len(cells) * k // (INTERRUPTIONS + 1) for k in range(1, INTERRUPTIONS + 1)}
    assert len(positions) == INTERRUPTIONS
    with client.setup_kernel():
        for position, (number, cell) in enumerate(cells):
            before = interrupt(cluster) if position in positions else None
            # The cell is sent while the move is under way.
            client.execute_cell(cell, number)
            if before is not None:
                moved = cluster.moved(before)
                assert moved.moves[-1].refused == ()
        made = {p.name for p in plain.iterdir()}
        eventually(
            lambda: made <= {p.name for p in roost.iterdir()},
            "files written on the hosts came back to the notebook's folder",
        )
    assert outputs(notebook) == expected
    # The session ends with its client, and with it its hosts.
    eventually(
        lambda: all(s.state == "stopped" for s in cluster.client.notebooks()),
        "the session of the client has stopped",
    )


def test_a_start_request_says_what_it_takes(cluster: Cluster) -> None:
    view = cluster.client.start_notebook(StartNotebook(name="x", image="minimal", standby=False))
    assert view.state == "requested"
    cluster.client.stop_notebook(view.id)
