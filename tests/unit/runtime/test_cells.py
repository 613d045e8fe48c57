"""Which names a cell touches."""

import pytest

from roost.runtime.kernel.cells import BLOCK, Blocks, Cell, from_block, names_of


@pytest.mark.parametrize(
    ("code", "names"),
    [
        ("x = y + 1", {"x", "y"}),
        ("import numpy as np, os.path", {"np", "os"}),
        ("def f(a):\n    global z\n    return a + b", {"f", "a", "b", "z"}),
        ("for i in r: pass", {"i", "r"}),
        ("try:\n    1\nexcept E as e: pass", {"E", "e"}),
        ("match v:\n    case {'k': [a, *b], **c}: pass", {"v", "a", "b", "c"}),
        ("from m import *", None),
        ("exec('x = 1')", None),
        ("get_ipython().run_line_magic('run', 'a.py')", None),
        ("is this python?", None),
    ],
)
def test_names(code: str, names: set[str] | None) -> None:
    assert names_of(code) == names


def test_full_blocks_never_change() -> None:
    log = [Cell(f"x = {n}", n, f"id{n}") for n in range(BLOCK + 3)]
    made = Blocks()
    first = made.of(log)
    assert [cell for block in first for cell in from_block(block)] == log
    assert made.of([*log, Cell("y")])[0] == first[0]


def test_blocks_follow_a_log_that_is_cut() -> None:
    log = [Cell(f"x = {n}", n, f"id{n}") for n in range(2 * BLOCK)]
    made = Blocks()
    made.of(log)
    for other in (log[: BLOCK - 1], [*log[:3], Cell("y"), *log[4:]], log[: BLOCK + 1], []):
        assert made.of(other) == Blocks().of(other)
