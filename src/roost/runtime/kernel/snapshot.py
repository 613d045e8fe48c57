"""What a look has found: everything that a capture writes, the buffers still the user's own memory."""

from dataclasses import dataclass, field

from roost.runtime.kernel.format import Entry, Rebuild
from roost.runtime.kernel.pickling import Dump
from roost.runtime.kernel.watched import Watched

INLINE_BYTES = 4 << 20
"""Buffers up to this size together are copied at once, so that the next cell never waits for them."""
LIGHT_BYTES = 1 << 20
"""Pickles up to this size may wait in memory."""


@dataclass(slots=True)
class Fresh:
    """A group as pickled just now."""

    names: tuple[str, ...]
    dump: Dump
    notes: tuple[Entry, ...]


@dataclass(slots=True)
class Snapshot:
    """All that a manifest needs, the buffers still the user's own memory."""

    fresh: list[Fresh] = field(default_factory=list)
    kept: list[tuple[str, ...]] = field(default_factory=list)
    """Groups that stay as they were stored last, by their names."""
    modules: dict[str, str] = field(default_factory=dict)
    namespaces: tuple[str, ...] = ()
    rebuilds: list[Rebuild] = field(default_factory=list)
    refused: list[Entry] = field(default_factory=list)
    shared: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """Refused variable -> all names of its group."""
    state: dict[str, bytes] = field(default_factory=dict)
    imports: tuple[str, ...] = ()
    log: list[bytes] = field(default_factory=list)
    execution_count: int = 1
    home: set[str] = field(default_factory=set)
    """In a forked child: names that only their own process can store."""

    looked: bool = False
    """The system was asked what was written to the watched memory in it."""

    @property
    def groups(self) -> list[tuple[str, ...]]:
        """Names of every group in it."""
        return [*(one.names for one in self.fresh), *self.kept]

    @property
    def light(self) -> bool:
        """Whether it is small pickles and nothing else: no memory of the user is read for it."""
        dumps = [one.dump for one in self.fresh]
        size = sum(len(dump_.content) for dump_ in dumps)
        return size <= LIGHT_BYTES and not any(dump_.buffers for dump_ in dumps)

    def own_memory(self, limit: int, watched: Watched) -> bool:
        """Copy buffers up to ``limit`` bytes, of watched ones what may have changed; whether no memory of
        the user is needed any more."""
        dumps = [one.dump for one in self.fresh]
        if sum(watched.unread(view) for dump_ in dumps for view in dump_.buffers) > limit:
            return False
        for dump_ in dumps:
            dump_.buffers = [watched.own(view) for view in dump_.buffers]
            dump_.alive = []
        return True
