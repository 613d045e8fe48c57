"""What is run again to make a variable: the smallest part, never with effects outside, never a guess."""

import pytest

from roost.runtime.kernel.cells import Cell
from roost.runtime.kernel.recipes import CannotRebuild, Known, Log, cells_of, recipe

KNOWN = Known(
    modules={"hashlib": "hashlib", "np": "numpy", "os": "os", "random": "random", "re": "re"},
    atoms=frozenset({"n", "text"}),
    functions=frozenset({"pure", "dirty", "late"}),
    kept=frozenset({"n", "text", "data", "pure", "dirty", "late", "box", "hashlib", "np", "os"}),
)


def made(cells: list[str], name: str = "v", **options: object) -> str:
    log = Log()
    log.update([Cell(code, count) for count, code in enumerate(cells, 1)])
    return recipe(name, log, KNOWN, **options).code  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("cells", "code"),
    [
        (["import hashlib", "v = hashlib.md5(b'a')"], "v = hashlib.md5(b'a')"),
        (
            ["import hashlib", "print('x'); v = hashlib.md5(b'a'); open('f')", "v.update(b'b')"],
            "v = hashlib.md5(b'a')\nv.update(b'b')",
        ),
        (["v = iter([1])", "v = map(abs, [1, 2])", "next(v)"], "v = map(abs, [1, 2])\nnext(v)"),
        (["n = 3", "v = zip(range(n))"], "v = zip(range(n))"),
        (["n = 3", "v = zip(range(n))", "n = 4", "next(v)"], "n = 3\nv = zip(range(n))\nnext(v)"),
        (
            ["data = [1]\ndata.append(2)", "v = zip(data)"],
            "data = [1]\ndata.append(2)\nv = zip(data)",
        ),
        (["v = zip([1])", "w = v", "next(w)"], "v = zip([1])\nw = v\nnext(w)"),
        (
            ["v = zip([1])", "for x in range(3): next(v)"],
            "v = zip([1])\nfor x in range(3):\n    next(v)",
        ),
        (["def pure(x): return x + 1", "v = map(pure, [1])"], "v = map(pure, [1])"),
        (["import re", "v = re.match('a', 'ab')", "os.remove('x')"], "v = re.match('a', 'ab')"),
        (["from hashlib import md5 as m", "v = m()"], "v = m()"),
        (["v = zip([1])", "get_ipython().run_line_magic('matplotlib', 'inline')"], "v = zip([1])"),
    ],
)
def test_the_smallest_part(cells: list[str], code: str) -> None:
    assert made(cells) == code


@pytest.mark.parametrize(
    "cells",
    [
        ["v = open('x')"],
        ["import os", "v = zip(os.listdir('.'))"],
        ["import os", "v = zip(os.environ)"],
        ["import numpy as np", "v = zip(np.random.rand(3))"],
        ["import random", "v = zip([random.random()])"],
        ["import hashlib", "v = hashlib.md5()", "import requests; requests.post('x', v.digest())"],
        ["v = zip([1])", "exec('next(v)')"],
        ["v = zip([1])", "get_ipython().run_line_magic('time', 'next(v)')"],
        ["def dirty(x): open('log', 'a').write(x); return x", "v = map(dirty, [1])"],
        ["def dirty(x): box.append(x)", "v = map(dirty, [1])", "next(v)"],
        ["box = []\ndef late(x): return box", "v = map(late, [1])"],
        ["def pure(x): return x", "v = map(pure, [1])", "def pure(x): return x + 1"],
        ["def pure(x, acc=[]): return x", "v = map(pure, [1])"],
        ["v = zip([1])", "with lock: next(v)"],
        ["v = zip([1])", "try: next(v)\nexcept E: pass"],
        ["if n: v = zip([1])"],
        ["data = [3]", "v = zip(x for x in data)\nw = (x for x in v if data)"],
        ["v = zip([1])", "def step(): return next(v)", "step()"],
        ["class K:\n    def go(self): next(v)", "k = K()", "v = zip([1])", "k.go()"],
        ["v = input('name')"],
        ["v = zip([1])", "data.append(v)", "next(data[0])"],
        ["v = (data or []).pop()"],
        ["x = 1"],
        ["v = unknown()"],
        ["is this python"],
    ],
)
def test_what_is_not_sure_is_refused(cells: list[str]) -> None:
    with pytest.raises(CannotRebuild):
        made(cells)


def test_shared_objects_failed_cells_and_long_ones_are_refused() -> None:
    with pytest.raises(CannotRebuild, match="shares"):
        made(["v = zip([1])"], shared=("v", "data"))
    log = Log()
    log.update([Cell("v = zip([1])", 1, ok=False)])
    with pytest.raises(CannotRebuild, match="failed"):
        recipe("v", log, KNOWN)
    log.update([Cell("v = zip([1])", 1, seconds=60.0)])
    with pytest.raises(CannotRebuild, match="60 s"):
        recipe("v", log, KNOWN)


def test_where_a_variable_was_made() -> None:
    log = Log()
    log.update([Cell("v = 1", 1), Cell("v = open('x')", 2), Cell("w = 1", 3), Cell("v += 1", 4)])
    assert cells_of("v", log) == (2, 4)
