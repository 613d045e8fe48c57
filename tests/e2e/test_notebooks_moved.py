"""Three whole notebooks moved by the engine alone: everything later is shown as on a kernel left alone."""

from pathlib import Path

import pytest

from bench.sessions.notebooks.run import BOOKS, compare, read, undisturbed

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]

MOVES = {"simulation": {4, 9}, "redefined_classes": {3, 8}, "random_processes": {5, 6}}


@pytest.mark.parametrize("name", sorted(MOVES))
def test_a_notebook_moved_twice_shows_the_same(tmp_path: Path, name: str) -> None:
    book = read(BOOKS / f"{name}.cells")
    (tmp_path / "plain").mkdir()
    (tmp_path / "moved").mkdir()
    expected = undisturbed(book, tmp_path / "plain")
    outcome = compare(book, expected, tmp_path / "moved", 0, MOVES[name])
    assert outcome.verdict == "right", (outcome.detail, outcome.differences, outcome.report)
