"""Why an object is not stored, said by name; what every handler of a kind of object has in common."""

import pickle
from collections.abc import Callable
from typing import Any, NoReturn, Protocol


class Refusal(pickle.PicklingError):
    """The object cannot be stored; carries the reason and what to do about it."""

    def __init__(self, reason: str, advice: str = "") -> None:
        super().__init__(reason)
        self.reason = reason
        self.advice = advice


class Storing(Protocol):
    """What a handler may ask of the pickler."""

    root: str
    """The session's folder."""

    def note(self, text: str) -> None:
        """Say that something comes back rebuilt rather than as it was."""


Handler = Callable[[Any, Any], Any]
CELL_ADVICE = "create it again after a move, or keep it inside a function"
ADVICE = {
    "Connection": "close it and connect again after a move",
    "Cursor": "fetch the rows and create the cursor again after a move",
    "socket": "connect again after a move",
    "HASH": "feed it again after a move, or keep the bytes and hash them at the end",
    "Compress": "finish the stream before the move",
    "Decompress": "read the stream to its end before the move",
}


def refuse(what: str, advice: str = CELL_ADVICE) -> Handler:
    """A handler that refuses this kind."""

    def handler(_pickler: Storing, _value: Any) -> NoReturn:
        raise Refusal(what, advice)

    return handler


def advice_for(error: BaseException) -> tuple[str, str]:
    """The reason and the advice for an error of the pickler."""
    if isinstance(error, Refusal):
        return f"it holds {error.reason}", error.advice
    if isinstance(error, RecursionError) or "recursion" in _text(error):
        return "nested too deeply", "use a flatter structure"
    text = _text(error)
    for kind, advice in ADVICE.items():
        if f"'{kind}'" in text or f".{kind}'" in text:
            return text, advice
    return text, CELL_ADVICE


def _text(error: BaseException) -> str:
    try:
        return f"{type(error).__name__}: {error}"[:300]
    except Exception:  # a user's exception may fail to print itself
        return type(error).__name__
