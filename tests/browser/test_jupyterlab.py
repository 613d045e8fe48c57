"""In a real browser: same page, same address, the variable is still there after the machine is gone."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect, sync_playwright

from roost.client.model import StartNotebook
from tests.support.cluster import Cluster

pytestmark = [pytest.mark.browser, pytest.mark.e2e]
CHROMIUM = Path(os.environ.get("ROOST_CHROMIUM", "/usr/bin/chromium"))
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
]
LONG_MS = 120_000


@pytest.fixture
def page() -> Iterator[Page]:
    if not CHROMIUM.exists():
        pytest.skip(f"NO BROWSER TEST: {CHROMIUM} is not installed (apt-get install chromium)")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=str(CHROMIUM), args=FLAGS)
        opened = browser.new_page(viewport={"width": 1280, "height": 800})
        yield opened
        browser.close()


def type_cell(page: Page, code: str) -> None:
    """Type into the last cell of the notebook and run it."""
    cell = page.locator(".jp-Notebook .jp-Cell .cm-content").last
    for _ in range(5):  # a page that is still loading takes keys and forgets them
        cell.click()
        page.keyboard.press("Control+a")
        page.keyboard.type(code)
        if cell.inner_text().strip() == code:
            break
    expect(cell).to_have_text(code)
    page.keyboard.press("Shift+Enter")


def expect_output(page: Page, text: str) -> None:
    output = page.locator(".jp-OutputArea-output").last
    expect(output).to_have_text(text, timeout=LONG_MS)


def open_lab(page: Page, url: str) -> None:
    page.goto(url)
    page.locator(".jp-Launcher").wait_for(timeout=LONG_MS)


def upload(page: Page, file: Path) -> None:
    with page.expect_file_chooser() as chooser:
        page.click('jp-button[title="Upload Files"], [title="Upload Files"]')
    chooser.value.set_files(str(file))
    page.locator(".jp-DirListing-item", has_text=file.name).wait_for()


def new_notebook(page: Page) -> None:
    page.click('jp-button[title*="New Launcher"]')
    page.locator('.jp-LauncherCard[data-category="Notebook"]:visible').first.click()
    page.locator(".jp-Notebook .jp-Cell").first.wait_for()
    page.locator("text=/Python 3 .Roost. . Idle/").wait_for(timeout=LONG_MS)


def test_same_page_after_the_machine_is_gone(page: Page, cluster: Cluster, tmp_path: Path) -> None:
    ask = StartNotebook(vcpus=2, memory_gib=4, near="Seoul", spread="provider")
    view = cluster.start(ask)
    open_lab(page, view.url)
    file = tmp_path / "numbers.csv"
    file.write_text("a,b\n1,2\n3,4\n")
    upload(page, file)
    new_notebook(page)
    address = page.url
    troubles: list[str] = []
    page.on("websocket", lambda socket: troubles.append(f"connected again: {socket.url}"))
    page.on("load", lambda _: troubles.append("loaded again"))
    type_cell(page, "x = 41; print('set')")
    expect_output(page, "set")
    before = cluster.warm(view.id)
    cluster.client.interrupt_host(before.host_id, None, "browser test")
    moved = cluster.moved(before)
    type_cell(page, "print(x + 1)")
    expect_output(page, "42")
    assert moved.host_id != before.host_id
    assert page.url == address
    assert troubles == []
    type_cell(page, "import pandas as pd; print(pd.read_csv('numbers.csv')['b'].sum())")
    expect_output(page, "6")
    page.keyboard.press("Control+s")
    page.get_by_role("button", name="Rename and Save").click()
    page.locator(".jp-Dialog").wait_for(state="detached")
    type_cell(page, "import os; print(sorted(os.listdir()))")
    expect_output(page, "['Untitled.ipynb', 'numbers.csv']")
    page.reload()  # the page of tomorrow: same address, same notebook, same kernel
    page.locator("text=/Python 3 .Roost. . Idle/").wait_for(timeout=LONG_MS)
    type_cell(page, "print(x + 2)")
    expect_output(page, "43")
    for name in (file.name, "Untitled.ipynb"):
        page.locator(".jp-DirListing-item", has_text=name).wait_for(timeout=LONG_MS)
    if folder := os.environ.get("ROOST_SCREENSHOTS"):
        page.screenshot(path=str(Path(folder) / "jupyterlab.png"))


SLIDER = (
    "import ipywidgets as w; s = w.IntSlider(description='speed'); seen = []; "
    "s.observe(lambda c: seen.append(c['new']), 'value'); display(s)"
)


def test_a_slider_of_the_page_is_the_moved_session_s(page: Page, cluster: Cluster) -> None:
    view = cluster.start(StartNotebook(vcpus=2, memory_gib=4, near="Seoul", spread="provider"))
    open_lab(page, view.url)
    new_notebook(page)
    type_cell(page, SLIDER)
    number = page.locator(".widget-readout")
    expect(number).to_have_text("0", timeout=LONG_MS)
    page.locator(".noUi-handle").focus()
    page.keyboard.press("ArrowRight")
    expect(number).to_have_text("1")
    type_cell(page, "print(s.value, seen)")
    expect_output(page, "1 [1]")
    before = cluster.warm(view.id)
    cluster.client.interrupt_host(before.host_id, None, "browser test")
    cluster.moved(before)
    page.locator(".noUi-handle").focus()
    page.keyboard.press("ArrowRight")
    type_cell(page, "s.max = 9; print(s.value, seen)")
    expect_output(page, "2 [1, 2]")
    page.locator(".noUi-handle").focus()
    page.keyboard.press("End")
    expect(number).to_have_text("9")
    if folder := os.environ.get("ROOST_SCREENSHOTS"):
        page.screenshot(path=str(Path(folder) / "widgets.png"))
