"""Entry point of a keeper: ``python -m roost.main.keeper --task ID --run-dir DIR --kernel-python PATH``.

Detaches from whoever started it (own session, no controlling terminal) and stays until it is told to
stop. Reads nothing of the environment but passes it on to the kernel.
"""

import argparse
import asyncio
import logging
import os
import signal
import sys
from contextlib import suppress
from pathlib import Path

from roost.agent.keeper.process import KernelConfig
from roost.agent.keeper.server import KeeperServer
from roost.kit.ids import SystemIds

LONGEST_RUN_DIR = 60
"""Names of sockets come behind it; a unix socket's path ends at 107 bytes."""


def main(argv: list[str] | None = None) -> int:
    """Run a keeper; returns the exit code."""
    parser = argparse.ArgumentParser(prog="roost.main.keeper", description=__doc__)
    parser.add_argument("--task", required=True, help="id of this task")
    parser.add_argument("--run-dir", required=True, type=Path, help="short directory for sockets")
    parser.add_argument(
        "--kernel-python", required=True, help="interpreter of the user's environment"
    )
    parser.add_argument("--hash-seed", default="0", help="PYTHONHASHSEED of the kernel")
    parser.add_argument(
        "--log", default="", help="file for the keeper's and the kernel's own output"
    )
    args = parser.parse_args(argv)
    if len(os.fsencode(args.run_dir)) > LONGEST_RUN_DIR:
        parser.error(f"--run-dir is longer than {LONGEST_RUN_DIR} bytes: sockets would not fit")
    args.run_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    _detach(args.log)
    config = KernelConfig(
        python=args.kernel_python,
        run_dir=args.run_dir,
        task_id=args.task,
        hash_seed=args.hash_seed,
        log_path=args.log,
    )
    asyncio.run(_serve(config))
    return 0


def _detach(log_path: str) -> None:
    """A session of its own, nothing of the starter's files, output to the log."""
    with suppress(PermissionError):  # already the leader of a session
        os.setsid()
    if log_path:
        handle = os.open(log_path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        os.dup2(handle, 1)
        os.dup2(handle, 2)
        os.close(handle)
    logging.basicConfig(
        level=logging.INFO,
        stream=sys.stderr,
        format="%(asctime)s %(name)s %(levelname)s %(message)s",
    )


async def _serve(config: KernelConfig) -> None:
    server = KeeperServer(config, SystemIds())
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, server.stop)
    loop.add_signal_handler(signal.SIGHUP, lambda: None)
    await server.run()


if __name__ == "__main__":
    sys.exit(main())
