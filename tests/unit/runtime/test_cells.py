"""Which names a cell touches, and which cell may be run again."""

import pytest

from roost.runtime.kernel.cells import BLOCK, Cell, Values, blocks, from_block, names_of, recipe

VALUES = Values(
    generators=frozenset({"gen"}),
    settled=frozenset({"gen", "n", "np"}),
    plain=frozenset({"data"}),
    bound=frozenset({"gen", "n", "np", "data", "g", "obj"}),
)


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


@pytest.mark.parametrize(
    ("cells", "found"),
    [
        (["g = (i for i in data)"], True),
        (["g = gen(data)"], True),
        (["k = 1\ng = map(abs, [1, 2])"], True),
        (["g = (i for i in range(n))", "print(n)"], True),
        (["g = (i for i in data)", "next(g)"], False),
        (["g = (i for i in data)", "h = g"], False),
        (["g = (i for i in data)", "data.append(1)"], False),
        (["g = (i for i in range(n))", "n = 5"], False),
        (["g = (i for i in obj)"], False),
        (["g = (i for i in data)\nnext(g)"], False),
        (["g = open('x')"], False),
        (["print('once'); g = gen(data)"], False),
        (["g = np.nditer(data)"], False),
        (["g = (i for i in data)", "exec('x')"], False),
        (["for x in data: g = gen(x)"], False),
        (["x = 1"], False),
    ],
)
def test_recipes(cells: list[str], found: bool) -> None:
    log = [Cell(code, count) for count, code in enumerate(cells, 1)]
    assert recipe("g", log, VALUES) == (cells[0] if found else None)


def test_a_failed_cell_is_no_recipe() -> None:
    assert recipe("g", [Cell("g = (i for i in data)", 1, ok=False)], VALUES) is None


def test_full_blocks_never_change() -> None:
    log = [Cell(f"x = {n}", n, f"id{n}") for n in range(BLOCK + 3)]
    first = blocks(log)
    assert [cell for block in first for cell in from_block(block)] == log
    assert blocks([*log, Cell("y")])[0] == first[0]
