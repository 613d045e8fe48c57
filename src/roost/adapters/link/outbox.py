"""Events of an agent that control has not acknowledged yet, kept over a restart of the agent.

Bounded: a newer outcome of a session's capture replaces an older one, and of the rest the oldest go
first. Events only wake controllers, so losing one costs time, never correctness.
"""

from pathlib import Path

import msgspec

from roost.ports import wire

LIMIT = 512


class _Kept(msgspec.Struct, frozen=True):
    last: int
    events: tuple[wire.Event, ...]


class Outbox:
    """Unacknowledged events, in order of their seq."""

    def __init__(self, path: Path, *, first_seq: int) -> None:
        """``first_seq``: where numbering begins when nothing was kept (rises from run to run)."""
        self._path = path
        self._events: dict[int, wire.Event] = {}
        self._last = first_seq
        try:
            kept = msgspec.msgpack.decode(path.read_bytes(), type=_Kept)
        except (OSError, msgspec.DecodeError):
            return
        self._last = max(kept.last, first_seq)
        self._events = {event.seq: event for event in kept.events}

    def add(self, body: wire.EventBody) -> wire.Event:
        """Number an event and keep it until it is acknowledged."""
        outdated = [seq for seq, event in self._events.items() if _replaces(body, event.body)]
        for seq in outdated:
            del self._events[seq]
        while len(self._events) >= LIMIT:
            del self._events[min(self._events)]
        self._last += 1
        event = wire.Event(seq=self._last, body=body)
        self._events[event.seq] = event
        self._save()
        return event

    def acknowledged(self, seq: int) -> None:
        """Control has this event."""
        if self._events.pop(seq, None) is not None:
            self._save()

    def seen(self, seq: int) -> None:
        """Control has every event up to ``seq``."""
        before = len(self._events)
        self._events = {s: event for s, event in self._events.items() if s > seq}
        if len(self._events) != before:
            self._save()

    def waiting(self) -> list[wire.Event]:
        """What is to be sent after a (re)connect."""
        return [self._events[seq] for seq in sorted(self._events)]

    def _save(self) -> None:
        # No fsync: the file lives and dies with the host, as do the kernels it speaks of.
        content = msgspec.msgpack.encode(_Kept(self._last, tuple(self.waiting())))
        part = self._path.with_name(self._path.name + ".part")
        try:
            part.write_bytes(content)
            part.replace(self._path)
        except OSError:
            part.unlink(missing_ok=True)  # a full disk costs the memory over a restart, nothing now


def _replaces(new: wire.EventBody, old: wire.EventBody) -> bool:
    def subject(body: wire.EventBody) -> str | None:
        if isinstance(body, wire.Checkpointed):
            return body.checkpoint.session_id
        return body.session_id if isinstance(body, wire.CaptureFailed) else None

    return subject(new) is not None and subject(new) == subject(old)
