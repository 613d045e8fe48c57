"""``roost up --market``: chooses the recorded market that local instances live in. Read by
``played.py``."""

import time
from pathlib import Path

import msgspec

from roost.main.settings import StateDir, settings, write_atomic
from roost.market.play import play
from roost.market.traces import read_traces
from roost.ports.errors import Invalid

OFF = "off"


def choose(state_dir: str | None, market: str, speed: float) -> str:
    """Record which market is played from the next start of control on; returns its name, empty for none.

    ``market``: ``DIR`` or ``DIR:DATASET`` (a part of its name is enough), or ``off``. ``Invalid`` with
    what to do.
    """
    state = StateDir(settings(state_dir).state_dir).prepare()
    if market == OFF:
        state.played.unlink(missing_ok=True)
        return ""
    folder, _, name = market.partition(":")
    traces = read_traces(Path(folder))
    found = [trace for trace in traces if name in trace.name]
    if not found:
        known = ", ".join(trace.name for trace in traces) or "none"
        raise Invalid(f"{folder} has no data set {name or 'at all'}", hint=f"there are: {known}")
    trace = found[0]
    playing = play(
        trace.name,
        trace.zones,
        trace.regions,
        trace.gap_s,
        trace.up.tolist(),
        began_s=time.time(),
        speed=speed,
    )
    write_atomic(state.played, msgspec.json.encode(playing))
    return playing.name
