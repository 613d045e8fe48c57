"""A command beside a running process: its folder, its environment, its mark, so that its end is swept too.

Never leaves the command running past its time, and never keeps more of its output than is told.
"""

import asyncio
import contextlib
import os
import signal
from pathlib import Path

from roost.ports.errors import Gone, Invalid, Never
from roost.ports.replicas import EXECUTED_MOST, Executed

OVER = 124
"""Exit status of what was ended because its time was over (as of ``timeout``)."""
_CHUNK = 64 << 10


async def run_beside(pid: int, argv: tuple[str, ...], *, timeout_s: float) -> Executed:
    """Run ``argv`` as the process ``pid`` would. ``Gone`` when that has ended, ``Never`` for no program."""
    if not argv:
        raise Invalid("there is no command to run")
    try:
        raw = Path(f"/proc/{pid}/environ").read_bytes()
        folder = str(Path(f"/proc/{pid}/cwd").readlink())
    except OSError as error:
        raise Gone("the process has ended") from error
    pairs = (one.partition(b"=") for one in raw.split(b"\0") if one)
    environment = {os.fsdecode(name): os.fsdecode(value) for name, _, value in pairs}
    try:
        process = await asyncio.create_subprocess_exec(
            *argv,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            cwd=folder,
            env=environment,
            start_new_session=True,
        )
    except (OSError, ValueError) as error:
        raise Never(f"{argv[0]} cannot be run: {error}") from error
    kept = bytearray()
    try:
        async with asyncio.timeout(timeout_s):
            await _read(process, kept)
            code = await process.wait()
    except TimeoutError:
        code = OVER
    finally:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        await process.wait()
    return Executed(
        exit_code=128 - code if code < 0 else code, output=kept.decode(errors="replace")
    )


async def _read(process: asyncio.subprocess.Process, kept: bytearray) -> None:
    assert process.stdout is not None, "its output is a pipe"
    while content := await process.stdout.read(_CHUNK):
        kept += content
        del kept[:-EXECUTED_MOST]
