"""The journal of requests: what it says of them in whatever order the kernel's threads tell it."""

import os
from pathlib import Path
from typing import Any

import pytest

from roost.runtime.kernel import journal
from roost.runtime.kernel.journal import Journal, read


def request(name: str, code: str = "x = 1") -> dict[str, Any]:
    return {"header": {"msg_id": name}, "content": {"code": code}, "identity": ["ab"]}


def waiting(folder: Path) -> list[str]:
    return [one.message_id for one in read(folder).open_after((), 0)]


def test_a_request_that_begins_at_once_is_noted_once(tmp_path: Path) -> None:
    noted = Journal(tmp_path)
    noted.begun(request("a"), files=3)
    assert noted.knows("a")
    noted.arrived(request("a"))
    noted.arrived(request("b"))
    noted.ended("a")
    found = read(tmp_path).requests
    assert list(found) == ["a", "b"]
    assert (found["a"].begun, found["a"].ended, found["a"].files) == (True, True, 3)
    assert found["a"].message["identity"] == ["ab"]
    assert not found["b"].begun
    assert (tmp_path / journal.NAME).read_bytes().count(b'"arrived"') == 2


def test_what_is_thrown_away_before_it_was_noted_does_not_wait(tmp_path: Path) -> None:
    noted = Journal(tmp_path)
    noted.begun(request("a"))
    noted.failed()
    noted.aborted("b")
    noted.arrived(request("b"))
    assert waiting(tmp_path) == ["a"]


def test_a_line_that_a_full_disk_cuts_costs_only_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    noted = Journal(tmp_path)
    noted.arrived(request("a"))
    whole = journal._write
    monkeypatch.setattr(
        journal, "_write", lambda file, text, size: os.write(file, text[: size // 2])
    )
    noted.arrived(request("b"))
    monkeypatch.setattr(journal, "_write", whole)
    noted.arrived(request("c"))
    assert waiting(tmp_path) == ["a", "c"]
