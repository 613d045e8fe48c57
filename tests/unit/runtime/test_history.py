"""Time travel: earlier moments of a session, back to one, and a branch of one."""

import pytest

from tests.unit.runtime.test_moving import Moves, moves

pytestmark = pytest.mark.e2e
__all__ = ["moves"]


def test_undo_and_branch(moves: Moves) -> None:
    kernel = moves.kernel()
    assert "first run" in kernel.run("%roost history")
    kernel.run(f"%roost track {moves.store}")
    kernel.run("import numpy as np; data = np.arange(5); words = ['a']; alias = words")
    kernel.run("words.append('b'); extra = 1")
    kernel.run("data[0] = 99; words.append('c'); del extra; later = 2")
    shown = kernel.run("%roost history")
    assert "data[0] = 99" in shown and "words.append('b')" in shown
    number = next(int(line.split()[0]) for line in shown.splitlines() if "np.arange" in line)
    kernel.run("%roost undo")
    assert kernel.run("print(data, words, alias is words, extra, 'later' in dir(), len(In))") == (
        "[0 1 2 3 4] ['a', 'b'] True 1 False 7\n"
    )
    other = moves.base / "branch"
    kernel.run(f"%roost branch {other} {number}")
    kernel.run("words.append('d')")
    moves.notice()
    kernel.kill()
    moves.kernels.remove(kernel)
    kernel = moves.kernel()
    told = kernel.run(f"%roost restore {moves.store}")
    assert "cell" not in told  # nothing that was undone is run again
    assert kernel.run("7") == "7" and kernel.run("print(_)") == "7\n"
    assert kernel.run("print(words, data[0])") == "['a', 'b', 'd'] 0\n"
    branched = moves.kernel()
    branched.run(f"%roost restore {other}")
    assert branched.run("print(words, 'extra' in dir())") == "['a'] False\n"
