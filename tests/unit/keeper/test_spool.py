"""The spool: in order, bounded, replies never dropped."""

import os
from pathlib import Path

import pytest

from roost.agent.keeper.spool import Spool


def marker(count: int) -> tuple[bytes, ...]:
    return (f"dropped {count}".encode(),)


def drain(spool: Spool, position=(0, 0)):
    outputs = []
    while (output := spool.after(position)) is not None:
        outputs.append(output)
        position = (output.epoch, output.seq)
    return outputs


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "spool"


def test_outputs_come_back_in_order_and_leave_when_acknowledged(path):
    spool = Spool(path, marker)
    for seq in range(1, 11):
        spool.append(1, seq, "iopub", (b"x%d" % seq,), "stream")
    assert [o.seq for o in drain(spool)] == list(range(1, 11))
    assert [o.seq for o in drain(spool, (1, 7))] == [8, 9, 10]
    spool.acknowledge((1, 9))
    assert [o.seq for o in drain(spool)] == [10]
    spool.acknowledge((2, 0))
    assert len(spool) == 0
    assert spool.total_bytes == 0


def test_above_the_memory_limit_outputs_go_to_a_file_and_come_back_whole(path):
    spool = Spool(path, marker, memory_bytes=10_000)
    bodies = [os.urandom(1000) for _ in range(50)]
    for seq, body in enumerate(bodies, 1):
        spool.append(1, seq, "iopub", (b"topic", body), "display_data")
    assert path.stat().st_size > 35_000
    assert path.stat().st_mode & 0o077 == 0
    assert [o.frames[1] for o in drain(spool)] == bodies
    spool.acknowledge((1, 50))
    assert not path.exists()
    spool.append(1, 51, "shell", (b"reply",))
    assert drain(spool)[0].frames == (b"reply",)


def test_above_the_hard_limit_text_goes_first_then_displays_never_a_reply(path):
    spool = Spool(path, marker, memory_bytes=2_000, hard_bytes=20_000)
    spool.append(1, 1, "shell", (b"r" * 5000,))
    spool.append(1, 2, "iopub", (b"d" * 3000,), "display_data")
    for seq in range(3, 60):
        spool.append(1, seq, "iopub", (b"s" * 1000,), "stream")
    spool.append(1, 60, "shell", (b"reply",))
    assert spool.total_bytes <= 20_000
    assert path.stat().st_size <= 25_000
    outputs = drain(spool)
    assert outputs[0].frames == (b"r" * 5000,)
    assert outputs[1].frames == (b"d" * 3000,)
    assert outputs[2].frames[0].startswith(b"dropped ")
    assert outputs[-1].frames == (b"reply",)
    seqs = [o.seq for o in outputs]
    assert seqs == sorted(seqs)
    assert spool.dropped > 30

    for seq in range(61, 71):
        spool.append(1, seq, "iopub", (b"D" * 3000,), "display_data")
    assert spool.total_bytes <= 20_000
    assert drain(spool)[0].frames == (b"r" * 5000,)
    for seq in range(71, 81):
        spool.append(1, seq, "shell", (b"R" * 3000,))
    assert sum(o.frames == (b"R" * 3000,) for o in drain(spool)) == 10


def test_a_snapshot_leaves_out_requests_that_are_not_in_the_capture(path):
    spool = Spool(path, marker)
    spool.append(1, 1, "iopub", (b"a",), "stream", "done")
    spool.append(1, 2, "iopub", (b"b",), "stream", "begun")
    spool.append(1, 3, "iopub", (b"c",), "status", "")
    assert [o.frames for o in spool.snapshot(without={"begun"})] == [(b"a",), (b"c",)]
    other = Spool(path.with_suffix(".2"), marker)
    other.load(spool.snapshot())
    other.append(2, 1, "iopub", (b"d",), "stream")
    assert [(o.epoch, o.seq) for o in drain(other, (1, 2))] == [(1, 3), (2, 1)]
