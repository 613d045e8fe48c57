"""A terminal on a host, through the edge and the agent's tunnel. Restores the caller's terminal always."""

import asyncio
import contextlib
import json
import os
import shutil
import sys
import termios
import tty
from collections.abc import Iterator

from roost.client.stream import open_stream


@contextlib.contextmanager
def _raw(descriptor: int) -> Iterator[None]:
    if not os.isatty(descriptor):
        yield
        return
    before = termios.tcgetattr(descriptor)
    tty.setraw(descriptor)
    try:
        yield
    finally:
        termios.tcsetattr(descriptor, termios.TCSADRAIN, before)


async def connect(url: str, host_id: str, token: str) -> int:
    """Run a shell on ``host_id`` until it ends or input ends; returns 0."""
    reader, writer = await open_stream(url, f"/_roost/shell/{host_id}", token)
    size = shutil.get_terminal_size()
    term = os.environ.get("TERM", "dumb")
    hello = {"rows": size.lines, "cols": size.columns, "term": term}
    writer.write(json.dumps(hello).encode() + b"\n")
    loop = asyncio.get_running_loop()
    stdin = sys.stdin.fileno()
    ended = asyncio.Event()

    def typed() -> None:
        content = os.read(stdin, 65_536)
        if content:
            writer.write(content)
            return
        loop.remove_reader(stdin)
        with contextlib.suppress(OSError):
            writer.write_eof()

    async def show() -> None:
        while content := await reader.read(65_536):
            sys.stdout.buffer.write(content)
            sys.stdout.buffer.flush()
        ended.set()

    with _raw(stdin):
        loop.add_reader(stdin, typed)
        shown = loop.create_task(show())
        try:
            await ended.wait()
        finally:
            with contextlib.suppress(ValueError, OSError):
                loop.remove_reader(stdin)
            shown.cancel()
            writer.close()
    return 0
