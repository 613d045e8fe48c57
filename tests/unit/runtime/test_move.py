"""Capture, kill -9, restore in a new kernel: what comes back, and how it is connected."""

import pytest

pytestmark = pytest.mark.e2e


def test_values_and_aliases(bench) -> None:
    kernel = bench.session()
    kernel.run("a = [1, 2]; b = a; c = {'x': a, 'y': (a, 'z')}; n = 41; s = 'words'; f = 1.5")
    kernel.run("loop = [1]; loop.append(loop)")
    kernel.run("import collections as co\nd = co.defaultdict(list, k=[1])")
    target, report = bench.move(kernel)
    assert target.run("a.append(3); print(b, c['x'] is a, c['y'][0] is b, n + 1, s, f)") == (
        "[1, 2, 3] True True 42 words 1.5\n"
    )
    assert target.run("print(loop[1] is loop, dict(d), co.__name__)") == (
        "True {'k': [1]} collections\n"
    )
    assert report["refused"] == {}
    assert {"a", "b", "c", "n", "s", "f", "loop", "d", "co"} <= set(report["kept"])
