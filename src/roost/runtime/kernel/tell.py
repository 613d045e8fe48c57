"""``roost capture DIR --within SECONDS``: tell the kernel that tracks into DIR that a notice has come.

Returns when all is durable. Standard library only, and never in the kernel's own process.
"""

import argparse
import json
import os
import socket
import sys
from pathlib import Path
from typing import Any

DOOR = "engine.json"
WITHIN_S = 30.0
PATIENCE_S = 30.0
"""Beyond the time of the notice: a slow disk may still finish."""


class NotTold(Exception):
    """Nobody could be told, or it failed; the message says what to do."""


def tell(directory: Path, within_s: float) -> dict[str, Any]:
    """The kernel's report. Raises ``NotTold``."""
    return _ask(directory, {"op": "notice", "within_s": within_s}, within_s)


def call_off(directory: Path) -> dict[str, Any]:
    """The machine stays: what was paused goes on. Raises ``NotTold``."""
    return _ask(directory, {"op": "call_off"}, 0.0)


def _ask(directory: Path, request: dict[str, Any], within_s: float) -> dict[str, Any]:
    try:
        door = json.loads((directory / DOOR).read_text())
        pid, path = int(door["pid"]), str(door["socket"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise NotTold(
            f"no kernel tracks into {directory}: run %load_ext roost and %roost track {directory} in it"
        ) from error
    if not _alive(pid):
        raise NotTold(f"the kernel that tracked into {directory} (process {pid}) has ended")
    with socket.socket(socket.AF_UNIX) as door_socket:
        door_socket.settimeout(within_s + PATIENCE_S)
        try:
            door_socket.connect(path)
            door_socket.sendall(json.dumps({"id": 1, **request}).encode() + b"\n")
            return _answer(door_socket)
        except OSError as error:
            raise NotTold(f"the kernel (process {pid}) does not answer: {error}") from error


def _answer(door: socket.socket) -> dict[str, Any]:
    with door.makefile("rb") as lines:
        for line in lines:
            fields: dict[str, Any] = json.loads(line)
            if fields.get("id") == 1:
                if not fields.pop("ok", False):
                    raise NotTold(f"not captured: {fields.get('message')}")
                fields.pop("id")
                return fields
    raise NotTold("the kernel ended before it answered")


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def main(argv: list[str]) -> int:
    """Exit status: 0 when everything is durable, 1 when not (the reason on stderr), 2 for a wrong call."""
    parser = argparse.ArgumentParser(
        prog="roost capture",
        description="Tell the kernel that tracks into DIR of a notice; returns when all is durable.",
    )
    parser.add_argument("directory", metavar="DIR", type=Path)
    parser.add_argument(
        "--within", metavar="SECONDS", type=float, default=WITHIN_S, help="time left (%(default)s)"
    )
    parser.add_argument("--call-off", action="store_true", help="the machine stays: go on")
    options = parser.parse_args(argv)
    if not options.within > 0:
        parser.error("--within must be more than 0")
    try:
        off = options.call_off
        report = call_off(options.directory) if off else tell(options.directory, options.within)
    except NotTold as error:
        print(f"roost capture: {error}", file=sys.stderr)
        return 1
    print(json.dumps(report, indent=1))
    return 0
