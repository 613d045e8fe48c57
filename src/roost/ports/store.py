"""The durable truth: versioned rows with compare-and-set, and stories.

One table of rows for every kind of object keeps a second implementation (PostgreSQL) small. A row's
body is the msgspec-JSON of a domain type; ``Table`` gives it back typed. Domain packages never see
SQL. The contract test is ``roost.testing.store``.
"""

from collections.abc import Sequence
from typing import Any, Generic, Protocol, TypeVar

import msgspec

DEFAULT_TENANT = "main"


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """A stored object."""

    kind: str
    id: str
    tenant: str = DEFAULT_TENANT
    version: int = 0
    """Rises by one with each write; 0 = not stored yet."""
    epoch: int = 0
    """A write with a lower epoch than the stored one is refused with ``StaleEpoch``."""
    state: str = ""
    """Indexed: the object's state."""
    parent: str = ""
    """Indexed: the owner (a session of a claim, ...)."""
    body: bytes = b""


class StoryLine(msgspec.Struct, frozen=True, kw_only=True):
    """One line of an object's story."""

    object_id: str
    at_s: float
    event: str
    """Past tense: ``Noticed``, ``Captured``, ``Routed``."""
    reason: str = ""
    data: dict[str, Any] = {}
    seq: int = 0
    """Given by the store; rises over all stories."""
    tenant: str = DEFAULT_TENANT


class Store(Protocol):
    """Rows and stories. Every commit is atomic and durable before it returns."""

    async def get(self, kind: str, id: str) -> Row | None:
        """The row, or None."""

    async def find(
        self, kind: str, *, state: str | None = None, parent: str | None = None
    ) -> list[Row]:
        """All rows of a kind (filtered), ordered by id."""

    async def commit(self, rows: Sequence[Row], story: Sequence[StoryLine] = ()) -> None:
        """Write all rows and story lines or nothing.

        Each row's ``version`` is the version that was read (0 = must not exist); it is stored as
        version + 1. Raises ``Conflict`` when another write came first, ``StaleEpoch`` when the stored
        epoch is higher, ``Retry`` when the disk is full.
        """

    async def story(
        self, object_id: str | None = None, *, after: int = 0, limit: int = 10_000
    ) -> list[StoryLine]:
        """Story lines of one object (None = all) with ``seq`` above ``after``, in order."""

    async def close(self) -> None:
        """Release files; further calls raise."""


T = TypeVar("T", bound=msgspec.Struct)


class Stored(Generic[T]):
    """A value with the row it was read from (needed to write it back)."""

    __slots__ = ("row", "value")

    def __init__(self, value: T, row: Row) -> None:
        self.value = value
        self.row = row


class Table(Generic[T]):
    """Typed access to the rows of one kind.

    ``T`` must have ``id: str``; ``state``, ``epoch``, ``parent`` and ``tenant`` are copied to the
    row's columns where the type has them.
    """

    def __init__(self, store: Store, kind: str, type_: type[T]) -> None:
        self._store = store
        self._kind = kind
        self._decoder = msgspec.json.Decoder(type_)
        self._encoder = msgspec.json.Encoder()

    async def get(self, id: str) -> Stored[T] | None:
        row = await self._store.get(self._kind, id)
        return None if row is None else Stored(self._decoder.decode(row.body), row)

    async def find(self, *, state: str | None = None, parent: str | None = None) -> list[Stored[T]]:
        rows = await self._store.find(self._kind, state=state, parent=parent)
        return [Stored(self._decoder.decode(row.body), row) for row in rows]

    def row(self, value: T, old: Stored[T] | None = None) -> Row:
        """The row that stores ``value`` over ``old`` (None = it must not exist yet)."""
        fields: Any = value
        return Row(
            kind=self._kind,
            id=fields.id,
            tenant=getattr(value, "tenant", DEFAULT_TENANT),
            version=0 if old is None else old.row.version,
            epoch=getattr(value, "epoch", 0),
            state=str(getattr(value, "state", "")),
            parent=getattr(value, "parent", ""),
            body=self._encoder.encode(value),
        )
