"""The access log: its two formats, rotation, and that a stuck reader never stops a worker."""

import json
import os
import re
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from roost.ports.errors import Invalid
from roost.proxy.access import PENDING_BYTES, RECORDS, AccessWriter, as_combined, as_json
from roost.proxy.plan import Finished
from roost.proxy.policy import AccessLog
from tests.unit.proxy.test_counters import finished, upstream

LINE = re.compile(rb'[!-~]+ - - \[[^\]]+\] "[ -!#-\[\]-~\\]*" \d+ \d+ "-" "-"')


def until(condition: Callable[[], bool]) -> None:
    end_s = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < end_s
        time.sleep(0.005)


def test_json_says_everything() -> None:
    line = json.loads(as_json(finished(upstream(), retries=2), 1_700_000_000.25))
    assert line["time"] == "2023-11-14T22:13:20.250Z"
    assert (line["method"], line["target"], line["status"], line["ms"]) == ("GET", "/a", 200, 3.0)
    assert (line["backend"], line["retries"], line["hedged"]) == ("127.0.0.1:80", 2, True)


def test_combined_is_what_tools_expect() -> None:
    line = as_combined(finished(), 1_700_000_000.25)
    assert line == (b'192.0.2.1 - - [14/Nov/2023:22:13:20 +0000] "GET /a HTTP/1.1" 200 100 "-" "-"')
    assert b'" 499 ' in as_combined(finished(status=0, outcome="gone"), 0.0)


@given(st.binary(max_size=60), st.binary(max_size=10))
def test_no_client_writes_a_line_of_its_own(target: bytes, method: bytes) -> None:
    record = finished()
    record.target, record.method, record.host = target, method, target
    combined = as_combined(record, 0.0)
    assert LINE.fullmatch(combined), combined
    line = as_json(record, 0.0)
    assert b"\n" not in line
    assert json.loads(line)["target"].encode("latin-1") == target


def write(writer: AccessWriter, *records: Finished) -> None:
    for record in records:
        writer.done(record)
    writer.flush()


def test_a_moved_file_is_opened_anew(tmp_path: Path) -> None:
    log = tmp_path / "access.log"
    writer = AccessWriter(AccessLog(path=str(log)), 0.0)
    write(writer, finished())
    until(lambda: log.read_bytes().count(b"\n") == 1)
    log.rename(tmp_path / "moved")
    write(writer, finished())
    until(lambda: (tmp_path / "moved").read_bytes().count(b"\n") == 2)
    writer.reopen()
    write(writer, finished(), finished())
    writer.close()
    assert log.read_bytes().count(b"\n") == 2
    assert writer.lost == 0


def test_a_file_that_cannot_be_opened_is_said(tmp_path: Path) -> None:
    with pytest.raises(Invalid, match="cannot be opened"):
        AccessWriter(AccessLog(path=str(tmp_path / "no" / "log")), 0.0)


def test_a_stuck_reader_loses_lines_and_never_blocks(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    writer = AccessWriter(AccessLog(path=str(pipe)), 0.0)
    record = finished()
    record.target = b"/" + b"x" * 8000
    rounds = PENDING_BYTES // 8000 // 100 + 10
    for _ in range(rounds):
        write(writer, *[record] * 100)
    assert writer.lost >= 100
    os.close(reader)  # the writing thread gets an error instead of waiting for ever
    writer.close()


def test_records_between_two_flushes_are_bounded(tmp_path: Path) -> None:
    writer = AccessWriter(AccessLog(path=str(tmp_path / "log")), 0.0)
    record = finished()
    for _ in range(RECORDS + 7):
        writer.done(record)
    assert writer.lost == 7
    writer.close(10.0)
