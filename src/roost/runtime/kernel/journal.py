"""The journal of requests beside the captures: what had arrived, begun and ended when a kernel was lost.

One JSON line a fact, appended and never synced: a killed process loses nothing of it. Never opens a pickle.
"""

import contextlib
import ctypes
import os
import re
import threading
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from json import dumps, loads
from pathlib import Path
from typing import Any

NAME = "journal.jsonl"
LIMIT_BYTES = 1 << 20
"""Past this size the journal is written anew without what captures contain."""

_OWN = re.compile(r"\s*(%roost\b|%(re)?load_ext\s+roost\b|#)")

_write = ctypes.PyDLL(None).write
"""Keeps the interpreter: at the begin and the end of a cell other threads of the kernel wait for it, and the
cell would have to wait for their work."""
_write.argtypes = (ctypes.c_int, ctypes.c_char_p, ctypes.c_size_t)
_write.restype = ctypes.c_ssize_t

Message = dict[str, Any]
"""Header, metadata, content and identity of an execute request."""


@dataclass(slots=True)
class Request:
    """One execute request and how far it got."""

    message_id: str
    message: Message
    begun: bool = False
    ended: bool = False
    files: int = -1
    """Index of the working directory's files as they stood before it; -1: not known."""
    at_s: float = 0.0
    """Unix time of its beginning; 0: this kernel has taken it over and not begun."""
    number: int = -1
    """The capture inside this cell that it can be continued from; -1: there is none."""
    rest: str = ""
    """Pickled syntax tree (base64) of what it ran: a cell continued from another kernel."""
    tail: str = ""
    """Pickled syntax tree (base64) of what was left to run at ``number``."""
    paused_files: int = -1
    """Index of the files as they stood at ``number``."""
    went_on_s: float = 0.0
    """Unix time when it went on after that capture, as the machine had stayed; 0: it never did."""


@dataclass(slots=True)
class Facts:
    """What a journal says."""

    requests: dict[str, Request] = field(default_factory=dict)
    """In order of arrival."""

    def open_after(self, finished: Iterable[str], number: int) -> list[Request]:
        """Requests whose effects capture ``number`` does not contain, in order."""
        done = set(finished)
        found: list[Request] = []
        for request in self.requests.values():
            if request.message_id in done:
                found = []  # they run in order: what came before it has run too, or never will
            else:
                found.append(request)
        for request in found:
            if request.number not in (-1, number):
                request.number = -1
        return found

    def files_before(self, finished: Iterable[str], number: int) -> tuple[int, float] | None:
        """Index of the files to put back before anything is run again, and since when they changed;
        None when nothing has changed them."""
        for request in self.open_after(finished, number):
            if request.tail and request.number == number:
                return (request.paused_files, request.went_on_s) if request.went_on_s else None
            if request.begun and request.at_s:
                return request.files, request.at_s
        return None


class Journal:
    """Appends to one directory's journal. From any thread."""

    def __init__(self, directory: Path, carried: Iterable[Request] = ()) -> None:
        """``carried``: requests that are still to be run here, from another kernel's journal."""
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._path = directory / NAME
        self._lock = threading.Lock()
        self._known: set[str] = set()
        self._waiting: dict[str, None] = {}
        """Requests that came to this kernel and have not begun."""
        self._torn = ""
        """Ends the line that a full disk has cut."""
        self._file = self._open(self._path)
        self.carry(carried)

    def carry(self, requests: Iterable[Request]) -> None:
        """Requests of another kernel that are still to be run in this one."""
        with self._lock:
            for request in requests:
                self._again(request)

    def knows(self, message_id: str) -> bool:
        """Whether a request is noted, or need not be."""
        return message_id in self._known

    def arrived(self, message: Message) -> None:
        """A request waits for its turn."""
        message_id = message["header"]["msg_id"]
        if own(message):
            return
        with self._lock:
            if message_id not in self._known:
                self._known.add(message_id)
                self._waiting[message_id] = None
                self._add({"arrived": message})

    def begun(self, message: Message, rest: str = "", files: int = -1) -> None:
        """A cell begins; ``rest`` where it continues another kernel's, ``files`` before it."""
        if own(message):
            return
        message_id = message["header"]["msg_id"]
        with self._lock:
            self._waiting.pop(message_id, None)
            facts = [_begun(message_id, rest, files, time.time())]
            if message_id not in self._known:
                self._known.add(message_id)
                facts.insert(0, {"arrived": message})
            self._add(*facts)

    def ended(self, message_id: str) -> None:
        """A cell has ended."""
        with self._lock:
            self._add({"ended": message_id})

    def paused(self, message_id: str, number: int, tail: str, files: int) -> None:
        """Capture ``number`` was made inside this cell; ``tail`` is what is left of it."""
        with self._lock:
            self._add({"paused": message_id, "number": number, "tail": tail, "files": files})

    def went_on(self, message_id: str) -> None:
        """The machine stayed: the paused cell goes on in this kernel."""
        with self._lock:
            self._add({"went_on": message_id, "at_s": time.time()})

    def aborted(self, message_id: str) -> None:
        """A request is not run: a cell before it failed."""
        with self._lock:
            if message_id in self._known:
                self._add({"aborted": message_id})
            self._known.add(message_id)

    def failed(self) -> None:
        """A cell failed: the kernel is about to throw away what waits behind it; nobody is to run that."""
        with self._lock:
            waiting, self._waiting = self._waiting, {}
            for message_id in waiting:
                self._add({"aborted": message_id})

    def undone(self) -> None:
        """An earlier moment was taken up again: what has run since is not to be run again anywhere."""
        with self._lock:
            self._add({"undone": True})

    def trim(self, finished: Iterable[str]) -> None:
        """Drop what a capture contains, when the journal has grown."""
        with self._lock:
            if self._file.tell() < LIMIT_BYTES:
                return
            facts = read(self._path.parent)
            done = set(finished)
            part = self._path.with_suffix(".part")
            former, self._file = self._file, self._open(part)
            former.close()
            for request in facts.requests.values():
                if request.message_id not in done:
                    self._again(request)
            part.rename(self._path)

    def sync(self) -> None:
        """Make it durable."""
        with self._lock, contextlib.suppress(OSError):
            os.fsync(self._file.fileno())

    def close(self) -> None:
        """No more facts."""
        with self._lock:
            self._file.close()

    def _open(self, path: Path) -> Any:
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        return os.fdopen(handle, "wb", buffering=0)

    def _again(self, request: Request) -> None:
        """All facts of a request that is known from elsewhere."""
        message_id = request.message_id
        self._known.add(message_id)
        self._add({"arrived": request.message})
        if request.begun:
            self._add(_begun(message_id, request.rest, request.files, request.at_s))
        if request.tail:
            fact = {"paused": message_id, "number": request.number, "tail": request.tail}
            self._add({**fact, "files": request.paused_files})
        if request.went_on_s:
            self._add({"went_on": message_id, "at_s": request.went_on_s})
        if request.ended:
            self._add({"ended": message_id})

    def _add(self, *facts: dict[str, Any]) -> None:
        # A full disk costs the journal, never the cell.
        with contextlib.suppress(ValueError):
            lines = [dumps(fact, default=str, separators=(",", ":")) + "\n" for fact in facts]
            content = (self._torn + "".join(lines)).encode()
            written = _write(self._file.fileno(), content, len(content))
            self._torn = "" if written == len(content) else "\n"


def own(message: Message) -> bool:
    """A request of ``%roost`` lines and nothing else: never run again in another kernel."""
    return own_lines(str(message["content"].get("code", "")))


def own_lines(code: str) -> bool:
    """The same of a cell's text."""
    lines = [line for line in code.splitlines() if line.strip()]
    return bool(lines) and all(_OWN.match(line) for line in lines)


def _begun(message_id: str, rest: str, files: int, at_s: float) -> dict[str, Any]:
    fact = {"begun": message_id, "files": files, "at_s": at_s}
    return {**fact, "rest": rest} if rest else fact


def read(directory: Path) -> Facts:
    """What the journal of a directory says; a torn last line is ignored."""
    facts = Facts()
    try:
        lines = (directory / NAME).read_bytes().split(b"\n")
    except OSError:
        return facts
    for line in lines:
        try:
            _learn(facts, loads(line))
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
        request.files, request.at_s = int(fact.get("files", -1)), float(fact.get("at_s", 0.0))
    elif "ended" in fact:
        facts.requests[fact["ended"]].ended = True
    elif "paused" in fact:
        request = facts.requests[fact["paused"]]
        request.number, request.tail = int(fact["number"]), str(fact["tail"])
        request.paused_files, request.went_on_s = int(fact.get("files", -1)), 0.0
    elif "aborted" in fact:
        facts.requests.pop(fact["aborted"], None)
    elif "undone" in fact:
        waiting = {n: r for n, r in facts.requests.items() if not r.begun}
        facts.requests.clear()
        facts.requests.update(waiting)
    elif "went_on" in fact:
        facts.requests[fact["went_on"]].went_on_s = float(fact["at_s"])
