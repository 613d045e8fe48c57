"""Run as a program by ``test_kinds``: arrays, frames and their views, stored and opened elsewhere."""

import sys
from typing import Any

import numpy as np
import pandas as pd
from kinds_trials import REFUSED, TRIALS, leave, main, refused, trial

TRIALS.clear()
REFUSED.clear()


class Info(np.ndarray):
    def __new__(cls, x: Any, info: str) -> Any:
        made = np.asarray(x).view(cls)
        made.info = info
        return made

    def __array_finalize__(self, other: Any) -> None:
        self.info = getattr(other, "info", "")


def shared() -> Any:
    a = np.arange(6)
    masked = np.ma.masked_array(a, mask=[0, 1, 0, 0, 0, 0], copy=False)
    return a, a.view(np.matrix), Info(a, "meta"), a[2:].view(np.recarray), masked


@trial(shared)
def _(made: Any) -> None:
    a, matrix, info, record, masked = made
    a[0], a[2] = 50, 9
    assert matrix[0, 0] == 50 and info[2] == 9 and info.info == "meta" and record[0] == 9
    assert masked[0] == 50 and masked[1] is np.ma.masked and masked.sum() == 50 + 9 + 3 + 4 + 5


def objects() -> Any:
    o = np.empty(4, dtype=object)
    o[:] = [[1], [2], [3], [4]]
    fixed = o.copy()
    fixed.flags.writeable = False
    return o, o[1:3], o[::-2], o.reshape(2, 2).T, fixed


@trial(objects)
def _(made: Any) -> None:
    o, part, back, square, fixed = made
    o[1] = "new"
    assert part[0] == "new" and part[1] is o[2] and back[1] == "new" and square[1, 0] == "new"
    assert not fixed.flags.writeable


def mapped() -> Any:
    m = np.memmap("d.bin", dtype="i4", mode="w+", shape=(10,))
    m[:] = range(10)
    return m, m[2:5], np.asarray(m)


@trial(mapped)
def _(made: Any) -> None:
    m, part, plain = made
    m[3] = 33
    m.flush()
    assert part[1] == 33 and plain[3] == 33 and np.fromfile("d.bin", dtype="i4")[3] == 33
    assert isinstance(m, np.memmap) and m.mode == "w+"


def moving() -> Any:
    a = np.arange(6)
    flat = a.flat
    next(flat)
    counted = np.ndenumerate(a.reshape(2, 3))
    next(counted)
    rng = np.random.default_rng(7)
    rng.random()
    return a, flat, counted, rng, rng.bit_generator, rng.bit_generator.state


@trial(moving)
def _(made: Any) -> None:
    a, flat, counted, rng, bits, state = made
    a[1] = 77
    assert next(flat) == 77 and next(counted) == ((0, 1), 77) and rng.bit_generator is bits
    assert bits.state == state


def frames() -> Any:
    pd.DataFrame({"a": range(10)}).to_csv("t.csv", index=False)
    reader = pd.read_csv("t.csv", chunksize=3)
    next(reader)
    df = pd.DataFrame({"a": [1.0, 2.0], "k": ["x", "y"]})
    return reader, df, df.groupby("k"), df.rolling(1), df["a"]


@trial(frames)
def _(made: Any) -> None:
    reader, df, groups, rolling, column = made
    assert next(reader).a.tolist() == [3, 4, 5] and len(next(reader)) == 3
    assert groups.a.sum().tolist() == [1, 2] and rolling.a.sum().tolist() == [1, 2]
    assert column.tolist() == df.a.tolist()


def windows_on_moved_memory() -> Any:
    moved = np.frombuffer(bytearray(64), dtype="u1").reshape(8, 8)
    return moved, np.lib.stride_tricks.sliding_window_view(moved, (2, 2))[::2]


@trial(windows_on_moved_memory)
def _(made: Any) -> None:
    moved, windows = made
    moved[1, 1] = 7
    assert windows[0, 0, 1, 1] == 7 and not windows.flags.writeable


def copied_on_write() -> Any:
    df = pd.DataFrame({"a": [1.0, 2.0], "b": [3.0, 4.0]})
    return df, df["a"], df[:], pd.Index(df["b"]), np.finfo("f4")


@trial(copied_on_write)
def _(made: Any) -> None:
    df, column, whole, index, limits = made
    df.loc[0, "a"] = df.loc[0, "b"] = 9.0
    assert column.tolist() == whole["a"].tolist() == [1.0, 2.0] and index.tolist() == [3.0, 4.0]
    whole.iloc[1, 0] = 8.0
    assert column.tolist() == [1.0, 2.0] and df["a"].tolist() == [9.0, 2.0] and limits.bits == 32


def universal() -> Any:
    seen: list[int] = []
    np.savez("three.npz", q=np.ones(3))

    def add(x: int, y: int) -> int:
        seen.append(x)
        return x + y

    archive: Any = np.load("three.npz")
    return seen, np.frompyfunc(add, 2, 1), np.add, archive


@trial(universal)
def _(made: Any) -> None:
    seen, own, add, archive = made
    assert own.reduce([1, 2, 3]) == 6 and seen == [1, 3] and add is np.add
    assert archive["q"].sum() == archive.f.q.sum() == 3 and archive.files == ["q"]


@refused
def part_of_records() -> Any:
    return np.array([(1, "a")], dtype=[("n", "i4"), ("o", object)])["o"]


if __name__ == "__main__":
    leave(main(sys.argv[1], sys.argv[2] if len(sys.argv) > 2 else ""))
