"""What a bridge sends again when it attaches, and which outputs the client must not see twice.

Pure. A request is sent again unless the kernel has it: cells that were running or waiting, and cells
the client has the answer of but whose effects died with their host (those run again unseen).
"""

from collections.abc import Container, Iterable

import msgspec

from roost.notebooks.bridge.journal import Entry


class Replay(msgspec.Struct, frozen=True):
    """What to do for one request."""

    entry: Entry
    quiet: bool
    """The client has its outputs already: show none of this run."""
    clear: bool
    """The client has a part of its outputs: clear them first."""


def plan(
    entries: Iterable[Entry], finished: Container[str], received: Container[str]
) -> list[Replay]:
    """In order, the requests a kernel that has ``finished`` and ``received`` still needs."""
    return [
        Replay(entry=entry, quiet=entry.answered, clear=entry.shown and not entry.answered)
        for entry in entries
        if entry.msg_id not in finished and entry.msg_id not in received
    ]
