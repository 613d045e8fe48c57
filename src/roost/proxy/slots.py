"""Slots of backends counted over all workers, in memory they share: a backend with one slot gets one request.

Each worker writes only its own row and reads the others', so there is no lock to die with: it says what
it is going to have, then looks whether all together have too much, and takes it back if so. Two that
come in the same moment may both step back; never do both go ahead. Never waits.
"""

import hashlib
import mmap
import threading

COLUMNS = 1 << 14
"""Backends with slots there is room for; pages never written cost nothing."""

_FENCE = threading.Lock()
"""Taking it is a full memory barrier: our own number is out before the others' are read."""


class Cell:
    """One backend in one worker's row."""

    __slots__ = ("_counts", "_first", "_mine", "_used")

    def __init__(self, counts: memoryview, first: int, row: int, used: memoryview) -> None:
        self._counts = counts
        self._first = first
        self._mine = first + row
        self._used = used

    def set(self, active: int) -> None:
        """So many are under way here."""
        self._counts[self._mine] = active

    def others(self) -> int:
        """So many are under way in the other workers."""
        counts, first = self._counts, self._first
        return sum(counts[first : first + self._used[0]]) - int(counts[self._mine])

    def values(self) -> list[int]:
        """What all workers have set."""
        return self._counts[self._first : self._first + self._used[0]].tolist()

    def reserve(self, active: int, slots: int) -> bool:
        """One more than the ``active`` ones here, if all together stay within ``slots``."""
        self._counts[self._mine] = active + 1
        with _FENCE:
            taken = self.others()
        if active + 1 + taken > slots:
            self._counts[self._mine] = active
            return False
        return True


class SlotTable:
    """The memory of all workers: made before they are forked."""

    def __init__(self, rows: int, columns: int = COLUMNS) -> None:
        self._rows = rows
        self._columns = columns
        memory = memoryview(mmap.mmap(-1, 8 + columns * 8 + rows * columns * 4))
        self._used = memory[:8].cast("Q")
        """Rows any worker has had: the others need not be looked at."""
        self._tags = memory[8 : 8 + columns * 8].cast("Q")
        self._counts = memory[8 + columns * 8 :].cast("I")
        """A backend's rows side by side."""

    def clear(self, row: int) -> None:
        """Its worker has ended, or is about to begin."""
        for column, tag in enumerate(self._tags):
            if tag:
                self._counts[column * self._rows + row] = 0

    def row(self, row: int) -> "SlotRow":
        """What the worker of this row counts in."""
        self._used[0] = max(self._used[0], row + 1)
        return SlotRow(self, row)

    def cell(self, row: int, name: str) -> Cell | None:
        """The place of a backend; None: there is no room for more."""
        tag = int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "big") or 1
        tags, columns = self._tags, self._columns
        for step in range(columns):
            column = (tag + step) % columns
            if not tags[column]:
                tags[column] = tag
                with _FENCE:
                    pass
            if tags[column] == tag:  # ours, unless another worker took it in this moment
                return Cell(self._counts, column * self._rows, row, self._used)
        return None


class SlotRow:
    """One worker's row."""

    def __init__(self, table: SlotTable, row: int) -> None:
        self._table = table
        self._row = row

    def cell(self, service: str, address: str) -> Cell | None:
        """The place of a backend of a service."""
        return self._table.cell(self._row, f"{service}/{address}")
