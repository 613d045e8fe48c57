"""``roost demo``: the main job, end to end, on this machine, with a report.

Real processes, a real kernel, the real notebook of ``examples/``; only the gap between two recorded
market events is compressed. Leaves nothing running (unless told to keep it) and ``demo-report.json``.
"""

import json
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import msgspec
import typer
from rich.panel import Panel
from rich.rule import Rule

from roost.client.api import RoostClient
from roost.client.model import CostView, SessionView, StartNotebook
from roost.doors.cli import render
from roost.doors.cli.context import errors, out, progress
from roost.doors.cli.market_render import show_ranking
from roost.doors.cli.notebook import wait_moved, wait_running
from roost.main.local import LocalInstallation
from roost.main.page import CellResult, Page, code_cells
from roost.main.processes import marked
from roost.market.catalogue import Catalogue
from roost.market.replay import event, recording
from roost.market.service import Market
from roost.ports.errors import Never, Retry
from roost.ports.values import Ask

REPORT = Path("demo-report.json")
EXAMPLE = Path("examples/wine")
NOTEBOOK = "train.ipynb"
RECORDING = "aws-p3"
FROZEN_LIMIT_S = 3.0
WARM_S = 120.0
AFTER_MOVE = """
print(f"{notebook_state['cells_run']} cells of state, model fitted: {hasattr(model, 'classes_')}")
"""


class Demo:
    """One run of the demo."""

    def __init__(self, installation: LocalInstallation, example: Path) -> None:
        self.installation = installation
        self.example = example
        self.client: RoostClient
        self.page: Page
        self.before_s = time.time()

    def step(self, number: int, text: str) -> None:
        """A headline."""
        out.print()
        out.print(Rule(f"[bold]{number}. {text}", align="left"))

    def start(self) -> SessionView:
        """Control plane, ranking, session on the winner."""
        self.step(1, "The control plane and its edge, on this machine")
        with progress("starting") as say:
            addresses = self.installation.up(say)
        self.client = self.installation.client()
        out.print(
            f"public address {addresses['public_url']}, state in {self.installation.state.root}"
        )
        self.step(2, "Which offer is best: cost, stability, speed, near Seoul")
        market = Market(Catalogue.load())
        ask = Ask(vcpus=4, memory_gib=16, near="Seoul", max_usd_hour=0.25)
        show_ranking(out, market.catalogue, ask, market.rank(ask, 8))
        self.step(
            3, "A Jupyter session on the best AWS offer (120 s of notice), with a warm standby"
        )
        body = StartNotebook(
            name="demo",
            vcpus=4,
            memory_gib=16,
            near="Seoul",
            max_usd_hour=0.25,
            spread="provider",
            start_clouds=("aws",),
        )
        view = wait_running(self.client, self.client.start_notebook(body).id)
        assert view.offer is not None
        out.print(f"runs on [green]{view.offer.key}[/] at ${view.offer.price_usd_hour:.4f}/h")
        out.print(render.hosts(self.client.hosts()))
        return view

    def work(self, view: SessionView) -> None:
        """Upload the example through the browser's door and run its cells over one connection."""
        self.page = Page(view.url)
        self.page.wait_open()
        for path in sorted(self.example.iterdir()):
            if path.is_file():
                self.page.upload(path.name, path.read_bytes())
        self.page.connect(NOTEBOOK)
        cells = code_cells(self.example / NOTEBOOK)
        pictures = 0
        with progress(f"running {len(cells)} cells") as say:
            for number, code in enumerate(cells, 1):
                say(f"cell {number} of {len(cells)}")
                result = self.page.run(code)
                check(result, f"cell {number}")
                pictures += result.pictures
        out.print(f"{len(cells)} cells of {NOTEBOOK} ran, {pictures} plots drawn; last output:")
        out.print(Panel(result.text.strip()[-800:] or "-", expand=False))

    def warm(self, session_id: str) -> SessionView:
        """Wait for the standby kernel and for a durable checkpoint of all that ran."""
        deadline_s = time.monotonic() + WARM_S
        with progress("waiting for the standby host and its kernel") as say:
            while time.monotonic() < deadline_s:
                view = self.client.notebook(session_id)
                if view.standby_warm and view.checkpoint_number > 0 and view.state == "running":
                    return view
                detail = view.standby.detail if view.standby else "claiming one"
                say(f"standby: {detail or 'warming'}")
                time.sleep(0.2)
        raise Retry("the standby host is not ready", hint=f"`roost story {session_id}`")

    def interrupted(self, session_id: str) -> None:
        """A recorded market takes the machine, with its cloud's notice."""
        self.step(4, "The recorded market takes this machine back: with notice")
        recorded = recording(RECORDING)
        loss = event(recorded, 0)
        out.print(
            f"{recorded.what} ({recorded.licence}): its first loss came after {loss.gap_s:.0f} s; "
            "the wait is compressed, the notice is not"
        )
        self.warm(session_id)
        result = self.run_cell("first_mark = 41; notebook_state = {'cells_run': len(In) - 1}")
        before = self.saved(session_id, result)
        self.client.interrupt_host(before.host_id, None, f"replayed from {RECORDING}")
        view = wait_moved(self.client, before)
        self.after(view, "first_mark + 1", "42")

    def killed(self, session_id: str) -> None:
        """The machine dies without notice."""
        self.step(5, "This machine dies without notice (SIGKILL)")
        self.warm(session_id)
        result = self.run_cell("second_mark = first_mark * 2")
        before = self.saved(session_id, result)
        self.client.kill_host(before.host_id)
        view = wait_moved(self.client, before)
        self.after(view, "first_mark, second_mark", "(41, 82)")

    def saved(self, session_id: str, cell: CellResult) -> SessionView:
        """Wait until what ran just now is durable off the host (a second or two, in the background)."""
        deadline_s = time.monotonic() + 30
        with progress("the checkpoint of this cell goes off the host"):
            while time.monotonic() < deadline_s:
                view = self.client.notebook(session_id)
                if view.checkpoint_cells >= cell.count:
                    return view
                time.sleep(0.05)
        raise Retry("no checkpoint was made", hint=f"`roost story {session_id}`")

    def run_cell(self, code: str) -> CellResult:
        """Run one cell and show it as a page would."""
        result = self.page.run(code)
        check(result, code)
        out.print(f"[blue]In :[/] {code}", highlight=False)
        if result.text.strip():
            out.print(f"[green]Out:[/] {result.text.strip()}", highlight=False)
        return result

    def after(self, view: SessionView, code: str, expected: str) -> None:
        """Same connection, same variables, same files."""
        record = view.moves[-1]
        out.print(render.moves([record]))
        out.print(
            f"same URL, same connection; frozen for [bold]{record.frozen_s:.2f} s[/], "
            f"{record.bytes_moved / 1e6:.2f} MB moved, kept {len(record.kept)} variables, "
            f"rebuilt {len(record.rebuilt)}, refused {len(record.refused)}"
        )
        result = self.run_cell(code)
        if result.text.strip() != expected:
            raise Never(f"{code} gave {result.text.strip()!r}, expected {expected!r}")
        if result.restarts:
            raise Never(f"the page saw the kernel as {result.restarts}")
        found = self.run_cell(AFTER_MOVE.strip())
        files = self.run_cell("import os; print(sorted(os.listdir('.')))")
        if "True" not in found.text or NOTEBOOK not in files.text:
            raise Never("state or files are missing after the move")

    def bill(self, session_id: str) -> CostView:
        """The bill and the story."""
        self.step(6, "The bill by the second, and the story")
        view = self.client.cost()
        out.print(render.cost(view))
        out.print(render.saving(view))
        out.print(render.story(self.client.story(session_id)))
        return view

    def report(self, session_id: str, cost: CostView) -> dict[str, Any]:
        """Write ``demo-report.json``; raises ``Never`` when a promise was broken."""
        view = self.client.notebook(session_id)
        moves = [msgspec.to_builtins(m) for m in view.moves]
        content = {
            "moves": moves,
            "bill_usd": cost.usd,
            "on_demand_usd": cost.on_demand_usd,
            "seconds": round(time.time() - self.before_s, 1),
        }
        REPORT.write_text(json.dumps(content, indent=2) + "\n")
        broken = []
        if len(moves) != 2:
            broken.append(f"{len(moves)} moves instead of 2")
        for move in view.moves:
            if move.frozen_s > FROZEN_LIMIT_S:
                broken.append(f"frozen for {move.frozen_s:.2f} s at epoch {move.epoch}")
            if move.refused:
                broken.append(f"refused {[p.name for p in move.refused]}")
            if move.from_offer.split("/")[0] == move.to_offer.split("/")[0]:
                broken.append(f"moved within one cloud: {move.from_offer} to {move.to_offer}")
        if broken:
            raise Never("the demo broke a promise: " + "; ".join(broken))
        return content


def check(result: CellResult, what: str) -> None:
    """Raise ``Never`` when a cell failed."""
    if result.status != "ok":
        raise Never(f"{what} failed: {result.status} {result.error}")


def demo(
    keep: Annotated[
        bool, typer.Option("--keep", help="Leave everything running at the end.")
    ] = False,
    example: Annotated[Path, typer.Option(help="Folder with the notebook and its data.")] = EXAMPLE,
) -> None:
    """The main job, end to end: rank, run, interrupt, move, kill, recover, bill."""
    with errors():
        if not (example / NOTEBOOK).exists():
            hint = "run the demo in Roost's checkout"
            raise Never(f"there is no {example / NOTEBOOK}", hint=hint)
        folder = Path.home() / ".local" / "state" / "roost-demo"
        _run(folder, example, keep=keep)


def _run(folder: Path, example: Path, *, keep: bool) -> None:
    installation = LocalInstallation(str(folder), port=0)
    quiet: Callable[[str], None] = lambda _text: None  # noqa: E731
    installation.down(quiet, keep_hosts=False)
    shutil.rmtree(folder, ignore_errors=True)
    run = Demo(installation, example)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    finished = False
    try:
        view = run.start()
        run.work(view)
        run.interrupted(view.id)
        run.killed(view.id)
        cost = run.bill(view.id)
        run.report(view.id, cost)
        finished = True
    finally:
        if keep and finished:
            _tell_kept(run, view, folder)
        else:
            run_id = str(installation.state.root)
            installation.down(quiet, keep_hosts=False)
            left = marked("ROOST_CELL", run_id)
            if finished:
                shutil.rmtree(folder, ignore_errors=True)
            elif folder.exists():
                out.print(f"[yellow]logs of the failed run are in {folder / 'logs'}[/]")
            if left:
                raise Never(f"processes were left running: {left}")
    if not keep:
        out.print(f"\n[green]done[/]: nothing is left running; the report is in {REPORT}")


def _tell_kept(run: Demo, view: SessionView, folder: Path) -> None:
    run.page.close()
    out.print()
    out.print(f"kept: JupyterLab at [link={view.url}]{view.url}[/link]", soft_wrap=True)
    out.print(f"stop it with: roost --state {folder} down", soft_wrap=True)
