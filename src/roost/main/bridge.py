"""Entry point of the bridge: ``python -m roost.main.bridge -f CONNECTION_FILE``.

Started by a kernelspec (Roost's own interpreter). This process is the front, which owns the ports; it
starts the worker (``roost.main.bridge_worker``). Settings come from the options, else from
``ROOST_SESSION``, ``ROOST_EDGE``, ``ROOST_TOKEN`` and the state directory (``ROOST_STATE_DIR``).
"""

import argparse
import logging
import os
import sys
import time
from pathlib import Path

from roost.notebooks.bridge.front import Front
from roost.notebooks.bridge.ports import Connection
from roost.ports.errors import RoostError


def main(argv: list[str] | None = None) -> int:
    """Run the front; returns the exit code."""
    args = parser().parse_args(argv)
    logging.basicConfig(
        level=logging.INFO if args.verbose else logging.WARNING,
        stream=sys.stderr,
        format="%(asctime)s %(name)s %(levelname)s %(message)s",
    )
    try:
        connection = Connection.load(args.file)
        return Front(connection, _worker_argv(args), time.monotonic).run()
    except RoostError as error:
        print(f"roost bridge: {error}", file=sys.stderr)
        return 1


def parser(*, worker: bool = False) -> argparse.ArgumentParser:
    """The options of front and worker."""
    parser = argparse.ArgumentParser(prog="roost.main.bridge", description=__doc__)
    parser.add_argument("-f", dest="file", required=True, type=Path, help="connection file")
    parser.add_argument("--session", default=os.environ.get("ROOST_SESSION", ""))
    parser.add_argument("--edge", default=os.environ.get("ROOST_EDGE", ""), help="URL of the edge")
    parser.add_argument("--journal", type=Path, help="folder of the journal")
    parser.add_argument("--verbose", action="store_true")
    if worker:
        parser.add_argument("--worker", type=int, required=True, help="socket to the front")
    return parser


def _worker_argv(args: argparse.Namespace) -> list[str]:
    argv = [sys.executable, "-m", "roost.main.bridge_worker", "-f", str(args.file)]
    for name in ("session", "edge", "journal"):
        if value := getattr(args, name):
            argv += [f"--{name}", str(value)]
    return [*argv, *(["--verbose"] if args.verbose else []), "--worker"]


if __name__ == "__main__":
    sys.exit(main())
