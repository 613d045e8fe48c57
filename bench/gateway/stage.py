"""What both benchmarks stand on: proxies with equivalent configurations, backends, CPU and memory."""

import contextlib
import functools
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from tests.conformance.gateway import peers
from tests.conformance.gateway.wire import Lane, Origin

TICKS = os.sysconf("SC_CLK_TCK")
PROXIES: dict[str, Callable[[list[Lane], Path], list[str]]] = {
    "roost": peers.roost,
    "nginx": functools.partial(peers.nginx, usual=True),
    "haproxy": functools.partial(peers.haproxy, usual=True),
    "envoy": functools.partial(peers.envoy, usual=True),
}


def installed(wanted: list[str]) -> list[str]:
    """Those of ``wanted`` that are here; says which are not."""
    for name in wanted:
        if peers.missing(name):
            print(f"{name} is not installed here: left out", file=sys.stderr)
    return [name for name in wanted if not peers.missing(name)]


def lane(kind: str, port: int, backends: list[int]) -> Lane:
    """A listener before backends that are already there."""
    origins = []
    for backend in backends:
        origin = Origin()
        origin.port = backend
        origins.append(origin)
    return Lane(kind, port, origins)


@contextlib.contextmanager
def proxy(name: str, lanes: list[Lane], folder: Path) -> Iterator[peers.Running]:
    """The proxy ``name``, listening by the time it is given."""
    folder.mkdir()
    peers.certificate(folder)
    running = peers.Running(PROXIES[name](lanes, folder), folder)
    try:
        running.wait([each.port for each in lanes])
        yield running
    finally:
        running.stop()


@contextlib.contextmanager
def process(command: list[str]) -> Iterator[subprocess.Popen[bytes]]:
    child = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    try:
        yield child
    finally:
        with contextlib.suppress(ProcessLookupError):
            child.send_signal(signal.SIGCONT)
            child.kill()
        child.wait()


def cpu_s(pids: list[int]) -> float:
    """User and system time of processes, in seconds."""
    total = 0
    for pid in pids:
        with contextlib.suppress(OSError):
            fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
            total += int(fields[11]) + int(fields[12])
    return total / TICKS


def rss_mib(pids: list[int]) -> float:
    total = 0
    for pid in pids:
        with contextlib.suppress(OSError):
            total += int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return total * os.sysconf("SC_PAGE_SIZE") / (1 << 20)
