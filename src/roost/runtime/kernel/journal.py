"""The journal of requests beside the captures: what had arrived, begun and ended when a kernel was lost.

One JSON line a fact, appended and never synced: a killed process loses nothing of it. Never opens a pickle.
"""

import contextlib
import json
import os
import threading
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

NAME = "journal.jsonl"
LIMIT_BYTES = 1 << 20
"""Past this size the journal is written anew without what captures contain."""

Message = dict[str, Any]
"""Header, metadata, content and identity of an execute request."""


@dataclass(slots=True)
class Request:
    """One execute request and how far it got."""

    message_id: str
    message: Message
    begun: bool = False
    ended: bool = False
    number: int = -1
    """The capture inside this cell that it can be continued from; -1: there is none."""
    rest: str = ""
    """Pickled syntax tree (base64) of what it ran: a cell continued from another kernel."""
    tail: str = ""
    """Pickled syntax tree (base64) of what was left to run at ``number``."""


@dataclass(slots=True)
class Facts:
    """What a journal says."""

    requests: dict[str, Request] = field(default_factory=dict)
    """In order of arrival."""

    def open_after(self, finished: Iterable[str], number: int) -> list[Request]:
        """Requests whose effects capture ``number`` does not contain, in order."""
        done = set(finished)
        found = [r for r in self.requests.values() if r.message_id not in done]
        for request in found:
            if request.number not in (-1, number):
                request.number = -1
        return found


class Journal:
    """Appends to one directory's journal. From any thread."""

    def __init__(self, directory: Path) -> None:
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._path = directory / NAME
        self._lock = threading.Lock()
        self._known: set[str] = set()
        self._file = self._open("wb")

    def arrived(self, message: Message) -> None:
        """A request waits for its turn."""
        with self._lock:
            self._known.add(message["header"]["msg_id"])
            self._add({"arrived": message})

    def begun(self, message: Message, rest: str = "") -> None:
        """A cell begins; ``rest`` where it continues another kernel's."""
        message_id = message["header"]["msg_id"]
        with self._lock:
            if message_id not in self._known:
                self._known.add(message_id)
                self._add({"arrived": message})
            self._add({"begun": message_id, **({"rest": rest} if rest else {})})

    def ended(self, message_id: str) -> None:
        """A cell has ended."""
        with self._lock:
            self._add({"ended": message_id})

    def paused(self, message_id: str, number: int, tail: str) -> None:
        """Capture ``number`` was made inside this cell; ``tail`` is what is left of it. -1: it went on."""
        with self._lock:
            self._add({"paused": message_id, "number": number, "tail": tail})

    def trim(self, finished: Iterable[str]) -> None:
        """Drop what a capture contains, when the journal has grown."""
        with self._lock:
            if self._file.tell() < LIMIT_BYTES:
                return
            facts = read(self._path.parent)
            done = set(finished)
            part = self._path.with_suffix(".part")
            former, self._file = self._file, part.open("wb", buffering=0)
            former.close()
            for request in facts.requests.values():
                if request.message_id in done:
                    continue
                self._add({"arrived": request.message})
                if request.begun:
                    self._add({"begun": request.message_id, "rest": request.rest})
                if request.ended:
                    self._add({"ended": request.message_id})
            part.rename(self._path)

    def sync(self) -> None:
        """Make it durable."""
        with self._lock, contextlib.suppress(OSError):
            os.fsync(self._file.fileno())

    def close(self) -> None:
        """No more facts."""
        with self._lock:
            self._file.close()

    def _open(self, mode: str) -> Any:
        handle = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        return os.fdopen(handle, mode, buffering=0)

    def _add(self, fact: dict[str, Any]) -> None:
        # A full disk costs the journal, never the cell.
        with contextlib.suppress(OSError, ValueError):
            self._file.write(json.dumps(fact, default=str, separators=(",", ":")).encode() + b"\n")


def read(directory: Path) -> Facts:
    """What the journal of a directory says; a torn last line is ignored."""
    facts = Facts()
    try:
        lines = (directory / NAME).read_bytes().split(b"\n")
    except OSError:
        return facts
    for line in lines:
        try:
            _learn(facts, json.loads(line))
        except (ValueError, KeyError, TypeError, AttributeError):
            continue
    return facts


def _learn(facts: Facts, fact: dict[str, Any]) -> None:
    if "arrived" in fact:
        message = fact["arrived"]
        message_id = str(message["header"]["msg_id"])
        facts.requests.setdefault(message_id, Request(message_id, message))
    elif "begun" in fact:
        request = facts.requests[fact["begun"]]
        request.begun, request.rest = True, str(fact.get("rest", ""))
    elif "ended" in fact:
        facts.requests[fact["ended"]].ended = True
    elif "paused" in fact:
        request = facts.requests[fact["paused"]]
        request.number, request.tail = int(fact["number"]), str(fact["tail"])
