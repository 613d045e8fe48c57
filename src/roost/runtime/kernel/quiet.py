"""What a user's objects print or warn about while they are pickled is not the user's cell speaking."""

import contextlib
import io
import sys
import threading
import warnings
from collections.abc import Iterator
from typing import Any


class _Hush(io.TextIOBase):
    """Drops what this thread writes; the user's other threads go on printing."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream
        self._thread = threading.get_ident()

    def write(self, text: str) -> int:
        if threading.get_ident() != self._thread:
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        if threading.get_ident() != self._thread:
            self._stream.flush()


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Nothing that this thread prints or warns about inside is shown."""
    out, err = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = _Hush(out), _Hush(err)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        sys.stdout, sys.stderr = out, err
