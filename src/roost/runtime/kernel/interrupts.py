"""An interrupt that comes while a cell is about to begin reaches the cell.

IPython prints what a hook raises and goes on: an interrupt that hits the engine's hooks, or somebody else's,
would be lost and the cell would run. It is kept until the cell's code is there.
"""

import signal
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any


class Interrupts:
    """Holds SIGINT back between the hooks and the code of a cell. Main thread; elsewhere it does nothing."""

    def __init__(self) -> None:
        self._kept: Callable[[int, FrameType | None], Any] | None = None
        self._came = False

    def hold(self) -> None:
        """From now on they are only noted."""
        handler = signal.getsignal(signal.SIGINT)
        here = threading.current_thread() is threading.main_thread()
        if here and self._kept is None and callable(handler):
            self._kept, self._came = handler, False
            signal.signal(signal.SIGINT, self._note)

    def begin(self) -> None:
        """The cell's code begins: if one came, the handler does what it would have done there."""
        kept, came = self._kept, self._came
        self.let_go()
        if kept is not None and came:
            kept(signal.SIGINT, None)

    def let_go(self) -> None:
        """Nothing is held back any more; what came is forgotten with its cell."""
        kept, self._kept, self._came = self._kept, None, False
        # Where the code was never reached, ipykernel may have put its own handler back already.
        if kept is not None and signal.getsignal(signal.SIGINT) == self._note:
            signal.signal(signal.SIGINT, kept)

    def _note(self, _number: int, _frame: FrameType | None) -> None:
        self._came = True
