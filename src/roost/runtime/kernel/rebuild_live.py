"""What stored pickles of locks, threads, pools and sockets call. Part of the format: only add."""

import _queue
import contextlib
import importlib
import socket
import subprocess
import threading
import time
from pathlib import Path
from typing import Any

WAIT_S = 2.0


def reentrant(count: int) -> Any:
    """A reentrant lock that the main thread holds ``count`` times."""
    made = threading.RLock()
    for _ in range(count):
        made.acquire()
    return made


def simple_queue() -> Any:
    """An empty queue."""
    return _queue.SimpleQueue()


def fill_queue(made: Any, items: list[Any]) -> None:
    """Its items, in order."""
    for item in items:
        made.put(item)


# --- threads -------------------------------------------------------------------------------------


def new_thread(cls: type[threading.Thread]) -> threading.Thread:
    """A thread to be filled, see ``fill_thread``."""
    return cls.__new__(cls)


def fill_thread(made: threading.Thread, state: tuple[Any, ...]) -> None:
    """A thread that nobody has started yet."""
    name, daemon, (target, args, kwargs), own = state
    threading.Thread.__init__(made, None, target, name, args, kwargs, daemon=daemon)
    made.__dict__.update(own)


def timer(cls: type[threading.Timer]) -> threading.Timer:
    """A timer to be filled, see ``start_timer``."""
    return cls.__new__(cls)


def start_timer(made: threading.Timer, state: tuple[Any, ...]) -> None:
    """A timer that waits for the time that was left; its ``interval`` reads as before."""
    name, daemon, left, interval, own = state
    threading.Timer.__init__(made, left, own.get("function", id))
    made.__dict__.update(own)
    made.name, made.daemon, made.interval = name, daemon, left
    made.start()
    condition: Any = made.finished._cond  # type: ignore[attr-defined]
    until = time.monotonic() + WAIT_S
    while not condition._waiters and made.is_alive() and time.monotonic() < until:
        time.sleep(0.001)
    made.interval = interval


# --- pools ---------------------------------------------------------------------------------------


def executor(cls: Any, kind: str, options: dict[str, Any], ended: bool) -> Any:
    """A pool of ``concurrent.futures``."""
    made: Any = cls.__new__(cls)
    word, _, method = kind.partition(" ")
    home = importlib.import_module(f"concurrent.futures.{word}")
    if method:
        options = {**options, "mp_context": _start_method(method)}
    base: Any = home.ThreadPoolExecutor if word == "thread" else home.ProcessPoolExecutor
    base.__init__(made, **options)
    if ended:
        made.shutdown()
    return made


def _start_method(name: str) -> Any:
    return importlib.import_module("multiprocessing").get_context(name)


def multi_pool(cls: type, arguments: tuple[Any, ...], method: str, state: str) -> Any:
    """A pool of ``multiprocessing``."""
    options = {"context": _start_method(method)} if method else {}
    made: Any = cls(*arguments, **options)
    if state == "CLOSE":
        made.close()
    elif state == "TERMINATE":
        made.terminate()
    return made


def pool_result(cls: Any) -> Any:
    """A result of a pool, its attributes to come."""
    made = cls.__new__(cls)
    made._cache, made._pool = {}, None
    return made


# --- sockets and children ------------------------------------------------------------------------


def closed_socket() -> socket.socket:
    """A socket that was closed already."""
    made = socket.socket()
    made.close()
    return made


def bound_socket(
    family: int,
    kind: int,
    protocol: int,
    name: Any,
    listening: bool,
    timeout: float | None,
    options: list[tuple[int, int, int]],
) -> socket.socket:
    """A socket at the same address; raises when that is taken here."""
    made = socket.socket(family, kind, protocol)
    for level, option, value in options:
        if value:
            with contextlib.suppress(OSError):
                made.setsockopt(level, option, value)
    if name is not None:
        if family == socket.AF_INET or family == socket.AF_INET6:
            made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        elif isinstance(name, str) and name and Path(name).is_socket():
            Path(name).unlink()
        made.bind(name)
    if listening:
        made.listen()
    made.settimeout(timeout)
    return made


def child(cls: type[subprocess.Popen[Any]]) -> Any:
    """A finished child process, see ``fill_child``."""
    return cls.__new__(cls)


def fill_child(made: Any, state: dict[str, Any]) -> None:
    """Its arguments and its return code."""
    made.__dict__.update(state)
    made._waitpid_lock = threading.Lock()
