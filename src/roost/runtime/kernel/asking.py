"""What the engine asks of ipykernel and IPython: the request that runs, names of cells, threads.

Versions differ in these places; nothing else of the engine knows them.
"""

import sys
import threading
from typing import Any

from roost.runtime.kernel.cells import Cell
from roost.runtime.kernel.journal import Message


def words(error: BaseException) -> str:
    """An error for a person."""
    if isinstance(error, OSError):
        full = error.errno in (27, 28, 122)  # EFBIG, ENOSPC, EDQUOT
        text = error.strerror or str(error)
        return f"disk full: {text}; free some space, the next capture tries again" if full else text
    return f"{type(error).__name__}: {error}"[:300]


def message_id(kernel: Any) -> str:
    """The id of the request that runs now."""
    try:
        parent = kernel.get_parent("shell")
        return str(parent["header"]["msg_id"])
    except (AttributeError, KeyError, TypeError, LookupError):
        return ""


def message(kernel: Any) -> Message | None:
    """The request that runs now; None when it leaves no trace in the history."""
    try:
        parent = kernel.get_parent("shell")
        if parent["content"].get("silent") or parent["header"]["msg_type"] != "execute_request":
            return None
        found = {name: parent[name] for name in ("header", "metadata", "content")}
        return {**found, "identity": hexed(kernel._parent_ident["shell"])}
    except (AttributeError, KeyError, TypeError, LookupError):
        return None


def hexed(identity: Any) -> list[str]:
    """Who has sent a request: what a reply needs to get there."""
    return [bytes(getattr(part, "bytes", part)).hex() for part in identity or ()]


def file_name(shell: Any, code: str, parsed: str) -> str:
    """The name a cell's code objects carry."""
    try:
        return str(shell.compile.get_code_name(code, parsed, 0))
    except Exception:  # an older IPython names cells differently; only tracebacks suffer
        return ""


def running_count(shell: Any) -> int:
    """The number of the cell that runs: IPython raises the counter at its begin from 9.8 on, before at its
    end."""
    count = int(shell.execution_count)
    return count - 1 if count >= len(shell.history_manager.input_hist_raw) else count


def former_cells(shell: Any) -> list[Cell]:
    """Cells that ran before the engine was loaded."""
    raw = list(shell.history_manager.input_hist_raw)[1:]
    return [Cell(code=str(code), count=number) for number, code in enumerate(raw, 1) if code]


def beside() -> bool:
    """Whether this is a thread beside the one that runs the cells: a subshell's."""
    return threading.current_thread() is not threading.main_thread()


def other_threads() -> set[int]:
    """Threads besides the main one and the engine's own."""
    ours = {t.ident for t in threading.enumerate() if t.name.startswith("roost-")}
    return {ident for ident in sys._current_frames() if ident not in ours} - {
        threading.main_thread().ident or 0
    }
