"""The journal: what was asked and not yet answered survives a kill at any byte."""

from pathlib import Path

from roost.notebooks.bridge.journal import ANSWERED_KEPT, Entry, Journal
from roost.notebooks.bridge.replay import plan


def entry(name: str, msg_type: str = "execute_request", size: int = 10) -> Entry:
    return Entry(name, "shell", msg_type, (b"client", b"x" * size))


def reopened(journal: Journal, folder: Path) -> Journal:
    journal.close()
    return Journal(folder)


def test_requests_and_position_survive(tmp_path):
    journal = Journal(tmp_path)
    for name in ("a", "b", "c"):
        assert journal.add(entry(name))
    assert not journal.add(entry("a"))
    assert journal.add(entry("info", "kernel_info_request"))
    journal.answered("a")
    journal.answered("info")
    journal.shown("b")
    journal.serve((1, 17))
    journal.serve((1, 9))
    journal = reopened(journal, tmp_path)
    assert list(journal.entries) == ["a", "b", "c"]
    assert journal.served == (1, 17)
    assert journal.entries["a"].answered
    assert journal.entries["b"].shown
    assert journal.entries["c"].frames == (b"client", b"x" * 10)
    journal.settled(("a", "b"))
    assert list(reopened(journal, tmp_path).entries) == ["b", "c"]


def test_a_torn_record_is_ignored(tmp_path):
    journal = Journal(tmp_path)
    journal.add(entry("a"))
    journal.close()
    whole = (tmp_path / "journal").read_bytes()
    journal = Journal(tmp_path)
    journal.add(entry("b"))
    journal.close()
    full = (tmp_path / "journal").read_bytes()
    for cut in range(len(whole), len(full)):
        (tmp_path / "journal").write_bytes(full[:cut])
        journal = Journal(tmp_path)
        assert list(journal.entries) == ["a"]
        assert journal.add(entry("c"))
        assert list(reopened(journal, tmp_path).entries) == ["a", "c"]


def test_the_file_and_the_memory_are_bounded(tmp_path):
    journal = Journal(tmp_path)
    for i in range(ANSWERED_KEPT + 200):
        journal.add(entry(f"m{i}", size=10_000))
        journal.answered(f"m{i}")
    assert len(journal.entries) == ANSWERED_KEPT
    assert next(iter(journal.entries)) == "m200"
    for i in range(1000):
        journal.add(entry(f"i{i}", "complete_request", size=50_000))
        journal.answered(f"i{i}")
    assert (tmp_path / "journal").stat().st_size < 3 * ANSWERED_KEPT * 10_000
    assert next(iter(reopened(journal, tmp_path).entries)) == "m200"


def test_replay_sends_what_the_kernel_needs_and_hides_what_the_client_has(tmp_path):
    journal = Journal(tmp_path)
    for name in ("durable", "lost", "running", "waiting", "held"):
        journal.add(entry(name))
    journal.answered("durable")
    journal.answered("lost")
    journal.shown("lost")
    journal.shown("running")
    steps = plan(journal.entries.values(), {"durable"}, {"held"})
    assert [(s.entry.msg_id, s.quiet, s.clear) for s in steps] == [
        ("lost", True, False),
        ("running", False, True),
        ("waiting", False, False),
    ]
    journal.again("lost", 2)
    journal = reopened(journal, tmp_path)
    assert [journal.unseen("lost", epoch) for epoch in (1, 2, 3)] == [False, True, True]
    assert not journal.unseen("running", 2)
