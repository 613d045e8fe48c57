"""Outputs of a kernel, numbered (epoch, seq), kept until the bridge acknowledged them.

Bounded: above ``memory_bytes`` newer outputs go to a file; above ``hard_bytes`` the oldest text
outputs are replaced by a visible marker, then the oldest displays. Replies, input requests, status
and errors are never dropped, so a client never waits for ever. Never does network I/O.
"""

import os
from bisect import bisect_right
from collections import deque
from collections.abc import Callable, Container, Iterable
from contextlib import suppress
from pathlib import Path

import msgspec

from roost.ports.jupyter import Parts
from roost.ports.wire import Output

MEMORY_BYTES = 16 << 20
HARD_BYTES = 512 << 20
ROOM_SHARE = 0.8
"""After dropping, at most this share of the hard limit is in use: dropping stays rare."""
STREAMS = frozenset({"stream"})
DISPLAYS = frozenset({"display_data", "update_display_data", "execute_result"})
Position = tuple[int, int]


class _Entry(msgspec.Struct):
    """One output: its frames in memory, or where they lie in the file."""

    epoch: int
    seq: int
    channel: str
    kind: str
    parent: str
    size: int
    frames: Parts | None
    offset: int = 0
    length: int = 0


def _position(entry: _Entry) -> Position:
    return (entry.epoch, entry.seq)


class Spool:
    """Outputs in order. ``marker(count)`` builds the frames shown in place of dropped ones."""

    def __init__(
        self,
        path: Path,
        marker: Callable[[int], Parts],
        *,
        memory_bytes: int = MEMORY_BYTES,
        hard_bytes: int = HARD_BYTES,
    ) -> None:
        self._path = path
        self._marker = marker
        self._memory_limit = memory_bytes
        self._hard_limit = hard_bytes
        self._entries: deque[_Entry] = deque()
        self._memory = 0
        self._total = 0
        self._file: int | None = None
        self._file_end = 0
        self._encoder = msgspec.msgpack.Encoder()
        self._decoder = msgspec.msgpack.Decoder(Parts)
        self.dropped = 0
        """Outputs replaced by a marker so far."""

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def total_bytes(self) -> int:
        """Bytes of all outputs held, in memory and in the file."""
        return self._total

    def load(self, outputs: Iterable[Output]) -> None:
        """Take over the outputs of a checkpoint, in front of everything of this kernel."""
        for output in outputs:
            self._append(output.epoch, output.seq, output.channel, output.frames, "", "")

    def append(
        self, epoch: int, seq: int, channel: str, frames: Parts, kind: str = "", parent: str = ""
    ) -> None:
        """Keep one output of request ``parent``; ``kind`` is its message type on iopub, empty for what is
        never dropped."""
        self._append(epoch, seq, channel, frames, kind, parent)
        if self._total > self._hard_limit:
            self._make_room()

    def acknowledge(self, position: Position) -> None:
        """Forget everything up to ``position``."""
        while self._entries and _position(self._entries[0]) <= position:
            self._forget(self._entries.popleft())
        if not self._entries:
            self._truncate()

    def after(self, position: Position) -> Output | None:
        """The first output behind ``position``, or None."""
        entries = self._entries
        if not entries or _position(entries[-1]) <= position:
            return None
        return self._output(entries[bisect_right(entries, position, key=_position)])

    def snapshot(self, without: Container[str] = ()) -> tuple[Output, ...]:
        """All outputs held, but for those of the requests in ``without``."""
        return tuple(
            self._output(e) for e in self._entries if not e.parent or e.parent not in without
        )

    def close(self) -> None:
        """Delete the file."""
        self._entries.clear()
        self._truncate()

    def _append(
        self, epoch: int, seq: int, channel: str, frames: Parts, kind: str, parent: str
    ) -> None:
        size = sum(map(len, frames)) + 64
        entry = _Entry(epoch, seq, channel, kind, parent, size, frames)
        # Order is kept by the entries; only where the bytes lie differs.
        if self._memory + size > self._memory_limit:
            self._spill(entry)
        else:
            self._memory += size
        self._total += size
        self._entries.append(entry)

    def _spill(self, entry: _Entry) -> None:
        """Move the frames to the file; with no room on the disk they stay in memory."""
        body = self._encoder.encode(entry.frames)
        try:
            if self._file is None:
                flags = os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC
                self._file = os.open(self._path, flags, 0o600)
                self._file_end = 0
            done = 0
            while done < len(body):
                done += os.pwrite(self._file, body[done:], self._file_end + done)
        except OSError:
            self._memory += entry.size
            return
        entry.offset, entry.length, entry.frames = self._file_end, len(body), None
        self._file_end += len(body)

    def _output(self, entry: _Entry) -> Output:
        frames = entry.frames
        if frames is None:
            assert self._file is not None
            frames = self._decoder.decode(os.pread(self._file, entry.length, entry.offset))
        return Output(epoch=entry.epoch, seq=entry.seq, channel=entry.channel, frames=frames)

    def _forget(self, entry: _Entry) -> None:
        self._total -= entry.size
        if entry.frames is not None:
            self._memory -= entry.size

    def _make_room(self) -> None:
        target = int(self._hard_limit * ROOM_SHARE)
        for kinds in (STREAMS, DISPLAYS):
            if self._total > target:
                self._drop(kinds, target)
        self._compact()

    def _drop(self, kinds: frozenset[str], target: int) -> None:
        """Drop the oldest of ``kinds`` until under ``target``; runs of them leave one marker each."""
        kept: deque[_Entry] = deque()
        run: list[_Entry] = []
        for entry in self._entries:
            if entry.kind in kinds and self._total > target:
                self._forget(entry)
                run.append(entry)
                continue
            self._mark(kept, run)
            kept.append(entry)
        self._mark(kept, run)
        self._entries = kept

    def _mark(self, kept: deque[_Entry], run: list[_Entry]) -> None:
        if not run:
            return
        self.dropped += len(run)
        frames = self._marker(len(run))
        size = sum(map(len, frames)) + 64
        last = run[-1]
        kept.append(_Entry(last.epoch, last.seq, last.channel, "marker", "", size, frames))
        self._memory += size
        self._total += size
        run.clear()

    def _compact(self) -> None:
        """Write the file anew without the bytes of dropped outputs."""
        if self._file is None:
            return
        spilled = [entry for entry in self._entries if entry.frames is None]
        old, self._file = self._file, None
        fresh = self._path.with_suffix(".new")
        new = os.open(fresh, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        end = 0
        try:
            for entry in spilled:
                os.pwrite(new, os.pread(old, entry.length, entry.offset), end)
                end += entry.length
        except OSError:
            self._file = old
            os.close(new)
            return
        end = 0
        for entry in spilled:
            entry.offset, end = end, end + entry.length
        fresh.replace(self._path)
        os.close(old)
        self._file, self._file_end = new, end

    def _truncate(self) -> None:
        self._memory = self._total = 0
        if self._file is not None:
            os.close(self._file)
            self._file = None
            with suppress(OSError):
                self._path.unlink()
