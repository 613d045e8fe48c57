# ruff: noqa: E501
"""``python -m bench.sessions.scramble [--seeds 0-20] [--jobs N] [--json FILE]``: random sessions.

Each makes, shares, changes in place, cuts and drops arrays, frames, tables, buffers and long lists for some
dozen cells: small ones are captured at once, long lists by a forked child, big memory by its pages. Then it is
moved like a case of ``bench.sessions.run``; every variable must hold what it holds in a kernel left alone.
"""

import argparse
import random
import sys
from pathlib import Path

from bench.sessions.cases import Case
from bench.sessions.run import judged

NAMES = "abcdefgh"
BEGIN = """
import hashlib, time
import numpy as np, pandas as pd, polars as pl, pyarrow as pa

class Box:
    def __init__(self, value): self.value = value

def feed(found, value):
    found.update(type(value).__name__.encode())
    if isinstance(value, np.ndarray):
        found.update(f"{value.dtype}{value.shape}".encode() + np.ascontiguousarray(value).tobytes())
    elif isinstance(value, pd.DataFrame):
        found.update(repr(list(value)).encode() + pd.util.hash_pandas_object(value).to_numpy().tobytes())
    elif isinstance(value, pl.DataFrame):
        found.update(value.hash_rows(seed=0).to_numpy().tobytes())
    elif isinstance(value, pa.Table):
        feed(found, value.to_pandas())
    elif isinstance(value, bytearray):
        found.update(value)
    elif isinstance(value, Box):
        feed(found, value.value)
    elif isinstance(value, dict):
        for key in value: feed(found, key); feed(found, value[key])
    elif isinstance(value, list) and len(value) < 100:
        for one in value: feed(found, one)
    else:
        found.update(repr(value).encode())

def content(name):
    found = hashlib.sha1()
    feed(found, globals().get(name, "gone"))
    return found.hexdigest()[:12]
"""
CHECK = f"print({{name: content(name) for name in {NAMES!r}}})"
SIZES = (300, 50_000, 150_000, 400_000, 1_200_000)


def session(seed: int) -> Case:
    """One session: the same for the same number."""
    chance = random.Random(seed)
    cells = [BEGIN, "; ".join(f"{name} = 0" for name in NAMES)]
    for _ in range(chance.randrange(8, 40)):
        pause = (
            f"time.sleep({chance.choice((0.02, 0.1, 0.3, 0.8))})\n" if chance.random() < 0.4 else ""
        )
        cells.append(pause + _cell(chance))
    kind = chance.choice(("state", "death"))
    return Case(f"scramble/{seed}", kind, tuple(cells), check=(CHECK,), asked=frozenset(NAMES))


def _cell(chance: random.Random) -> str:
    name, other, third = (chance.choice(NAMES) for _ in range(3))
    rng = f"np.random.default_rng({chance.randrange(10**6)})"
    size, place = chance.choice(SIZES), chance.randrange(10**6)
    array = f"if isinstance({name}, np.ndarray) and {name}.flags.writeable and {name}.size"
    made = (
        f"{name} = {rng}.random({size})",
        f"{name} = {rng}.random({size})",
        f"{name} = {rng}.random({size})",
        f"{name} = {rng}.integers(0, 255, {4 * size}, dtype='u1')",
        f"{name} = pd.DataFrame({rng}.random(({chance.choice((1000, 60_000, 200_000))}, 4)), columns=list('wxyz'))",
        f"{name} = pa.table({{'x': {rng}.random({size})}})",
        f"{name} = pl.DataFrame({{'x': {rng}.random({size})}})",
        f"{name} = [[i, str(i)] for i in range({chance.choice((10, 2000, 100_000, 250_000))})]",
        f"{name} = bytearray({rng}.bytes({chance.choice((100, 2_000_000, 6_000_000))}))",
    )
    shared = (
        f"{name} = {other}",
        f"{name} = [{other}, {third}]",
        f"{name} = Box({other})",
        f"{name} = {{'a': {other}, 'b': np.full({size}, {place % 99})}}",
        f"if isinstance({other}, np.ndarray): {name} = {other}[{place % 50}:{chance.choice(('', '-3', '200000'))}]",
        f"if isinstance({other}, np.ndarray): {name} = {other}[::2]",
        f"if isinstance({other}, pa.Table): {name} = {other}.slice({place % 20}, {chance.choice((5, 100_000))})",
        f"if isinstance({other}, pd.DataFrame) and 'z' in {other}: {name} = {other}[['w', 'z']].iloc[::2]",
        f"{name} = None",
    )
    changed = (
        f"{array}: {name}[{place} % {name}.size :][: {chance.choice((1, 10, 5000, 100_000))}] = {place % 200}",
        f"{array}: {name}[{place} % {name}.size :][: {chance.choice((1, 10, 5000, 100_000))}] = {place % 200}",
        f"{array}: {name} += 1",
        f"if isinstance({name}, pd.DataFrame): {name}.iloc[{place % 400}, 0] = {place}",
        f"if isinstance({name}, pd.DataFrame): {name}['w'] = {name}['w'] * {place % 7}",
        f"if isinstance({name}, list) and len({name}) > 5: {name}[{place % 5}] = [{place}, 'q']",
        f"if isinstance({name}, bytearray): {name}[{place % 90}] = {place % 255}",
    )
    return chance.choice(chance.choices((made, shared, changed), (3, 2, 3))[0])


def main(argv: list[str] | None = None) -> int:
    """Exit status 1 when a variable is silently wrong."""
    parser = argparse.ArgumentParser(prog="python -m bench.sessions.scramble", description=__doc__)
    parser.add_argument("--seeds", default="0-20", help="from-to")
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--json", type=Path, help="write all outcomes here")
    options = parser.parse_args(argv)
    first, _, last = options.seeds.partition("-")
    sessions = [session(seed) for seed in range(int(first), int(last or first) + 1)]
    return judged(sessions, options.jobs, options.json)


if __name__ == "__main__":
    sys.exit(main())
