"""The bridge's journal: requests before they are forwarded, and how far the client was served.

An append-only file of msgpack records, written anew when mostly dead. A request stays until it is
answered; an executed cell until its effects are durable, since a host that dies without notice takes
them along. Survives a kill at any byte (a torn last record is ignored); not fsynced: it outlives the
process, not the machine, on which the client lives too.
"""

import os
from collections import OrderedDict
from contextlib import suppress
from pathlib import Path

import msgspec

from roost.ports.frames import HEADER

ANSWERED_KEPT = 1000
"""Answered cells remembered while nobody said that their effects are durable."""
REWRITE_BYTES = 4 << 20
"""The file is written anew when it grew by this (and to twice its live size)."""
Position = tuple[int, int]


class Entry(msgspec.Struct, tag=True):
    """A request of the client."""

    msg_id: str
    channel: str
    msg_type: str
    frames: tuple[bytes, ...]
    answered: bool = False
    shown: bool = False
    """Some output of it reached the client."""
    again: int = 0
    """Answered, and run again unseen from this epoch on, because its effects were lost."""


class Again(msgspec.Struct, frozen=True, tag=True):
    msg_id: str
    epoch: int


class Answered(msgspec.Struct, frozen=True, tag=True):
    msg_id: str


class Shown(msgspec.Struct, frozen=True, tag=True):
    msg_id: str


class Forgotten(msgspec.Struct, frozen=True, tag=True):
    msg_ids: tuple[str, ...]


class Served(msgspec.Struct, frozen=True, tag=True):
    epoch: int
    seq: int


Record = Entry | Again | Answered | Shown | Forgotten | Served


class Journal:
    """See the module."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._path = folder / "journal"
        self._encoder = msgspec.msgpack.Encoder()
        self.entries: OrderedDict[str, Entry] = OrderedDict()
        """Requests in the order the client sent them."""
        self.served: Position = (0, 0)
        self._size = 0
        self._limit = REWRITE_BYTES
        self._file = -1
        self._load()
        self._rewrite()

    def add(self, entry: Entry) -> bool:
        """Remember a request; False when it is known already."""
        if entry.msg_id in self.entries:
            return False
        self._apply(entry)
        self._write(entry)
        return True

    def answered(self, msg_id: str) -> None:
        """The client has the reply: a cell stays, anything else is done with."""
        entry = self.entries.get(msg_id)
        if entry is None or entry.answered:
            return
        if entry.msg_type != "execute_request":
            return self.forget((msg_id,))
        record = Answered(msg_id)
        self._apply(record)
        self._write(record)
        answered = [e.msg_id for e in self.entries.values() if e.answered]
        if len(answered) > ANSWERED_KEPT:
            self.forget(tuple(answered[: len(answered) - ANSWERED_KEPT]))

    def shown(self, msg_id: str) -> None:
        """The client has some output of this request."""
        entry = self.entries.get(msg_id)
        if entry is not None and not entry.shown:
            record = Shown(msg_id)
            self._apply(record)
            self._write(record)

    def again(self, msg_id: str, epoch: int) -> None:
        """An answered cell runs again at ``epoch``: the client has its outputs already."""
        record = Again(msg_id, epoch)
        self._apply(record)
        self._write(record)

    def unseen(self, msg_id: str, epoch: int) -> bool:
        """Whether an output at ``epoch`` is of such a run."""
        entry = self.entries.get(msg_id)
        return entry is not None and 0 < entry.again <= epoch

    def settled(self, msg_ids: tuple[str, ...]) -> None:
        """The effects of these are durable: forget those that are answered."""
        done = tuple(m for m in msg_ids if m in self.entries and self.entries[m].answered)
        self.forget(done)

    def forget(self, msg_ids: tuple[str, ...]) -> None:
        """Done with these."""
        known = tuple(m for m in msg_ids if m in self.entries)
        if known:
            record = Forgotten(known)
            self._apply(record)
            self._write(record)

    def serve(self, position: Position) -> None:
        """The client was served up to here."""
        if position > self.served:
            record = Served(*position)
            self._apply(record)
            self._write(record)

    def close(self, *, delete: bool = False) -> None:
        """Close the file; ``delete`` it when the session is over."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1
        if delete:
            self._path.unlink(missing_ok=True)

    def _apply(self, record: Record) -> None:
        match record:
            case Entry():
                self.entries[record.msg_id] = record
            case Again() if record.msg_id in self.entries:
                self.entries[record.msg_id].again = record.epoch
            case Answered() if record.msg_id in self.entries:
                self.entries[record.msg_id].answered = True
            case Shown() if record.msg_id in self.entries:
                self.entries[record.msg_id].shown = True
            case Forgotten():
                for msg_id in record.msg_ids:
                    self.entries.pop(msg_id, None)
            case Served():
                self.served = max(self.served, (record.epoch, record.seq))

    def _load(self) -> None:
        decoder = msgspec.msgpack.Decoder(Record)
        with suppress(FileNotFoundError):
            content = self._path.read_bytes()
            at = 0
            while at + HEADER <= len(content):
                size = int.from_bytes(content[at : at + HEADER], "big")
                body = content[at + HEADER : at + HEADER + size]
                if len(body) < size:
                    break
                try:
                    self._apply(decoder.decode(body))
                except msgspec.MsgspecError:
                    break
                at += HEADER + size

    def _frame(self, record: Record) -> bytes:
        body = self._encoder.encode(record)
        return len(body).to_bytes(HEADER, "big") + body

    def _write(self, record: Record) -> None:
        frame = self._frame(record)
        self._size += len(frame)
        # A full disk costs the guarantee for this one record, not the session.
        with suppress(OSError):
            os.write(self._file, frame)
        if self._size > self._limit:
            self._rewrite()

    def _rewrite(self) -> None:
        records: list[Record] = [Served(*self.served), *self.entries.values()]
        content = b"".join(self._frame(record) for record in records)
        fresh = self._path.with_suffix(".new")
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
        try:
            fresh.unlink(missing_ok=True)
            file = os.open(fresh, flags, 0o600)
            os.write(file, content)
            fresh.replace(self._path)
        except OSError:
            if self._file < 0:
                raise
            self._limit = self._size + REWRITE_BYTES
            return
        if self._file >= 0:
            os.close(self._file)
        self._file = file
        self._size = len(content)
        self._limit = max(2 * self._size, self._size + REWRITE_BYTES)
