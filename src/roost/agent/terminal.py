"""A shell on this host over one stream: the first line says the window's size, then raw bytes.

The first line is JSON: ``{"rows": 24, "cols": 80, "term": "xterm-256color"}``. The shell ends with its
stream. It runs as the agent's own user; whoever may open the stream was checked by the edge.
"""

import asyncio
import contextlib
import fcntl
import os
import pty
import signal
import struct
import subprocess
import termios

import msgspec

from roost.ports.frames import BadFrame

CHUNK = 64 << 10
FIRST_LINE_S = 10.0
LAST_WORDS_S = 30.0
END_OF_INPUT = b"\x04"
"""Control-D: what a terminal sends for the end of input."""


class Window(msgspec.Struct, frozen=True):
    """What the terminal on the other end is like."""

    rows: int = 24
    cols: int = 80
    term: str = "xterm-256color"


async def serve_shell(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, home: str
) -> None:
    """Run a login shell in ``home`` until either end is closed."""
    window = await _window(reader)
    master, process = _spawn(window, home)
    os.set_blocking(master, False)
    try:
        typed = asyncio.create_task(_typed(reader, master))
        shown = asyncio.create_task(_shown(master, writer))
        await asyncio.wait({typed, shown}, return_when=asyncio.FIRST_COMPLETED)
        if typed.done() and not shown.done():
            # The typing has ended, as from a pipe: end of input for the shell, which says its last words.
            with contextlib.suppress(OSError):
                os.write(master, END_OF_INPUT)
            await asyncio.wait({shown}, timeout=LAST_WORDS_S)
        for task in (typed, shown):
            task.cancel()
        await asyncio.gather(typed, shown, return_exceptions=True)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGHUP)
            os.killpg(process.pid, signal.SIGKILL)
        os.close(master)
        await asyncio.to_thread(process.wait)


async def _window(reader: asyncio.StreamReader) -> Window:
    try:
        async with asyncio.timeout(FIRST_LINE_S):
            line = await reader.readline()
        return msgspec.json.decode(line, type=Window)
    except (TimeoutError, ValueError, msgspec.MsgspecError) as error:
        raise BadFrame(f"a shell begins with a line of JSON: {error}") from error


def _spawn(window: Window, home: str) -> tuple[int, "subprocess.Popen[bytes]"]:
    master, slave = pty.openpty()
    size = struct.pack("HHHH", window.rows & 0xFFFF, window.cols & 0xFFFF, 0, 0)
    fcntl.ioctl(slave, termios.TIOCSWINSZ, size)
    try:
        process = subprocess.Popen(
            ["/bin/bash", "-l"],
            stdin=slave,
            stdout=slave,
            stderr=slave,
            cwd=home,
            env={**os.environ, "TERM": window.term, "HOME": home},
            start_new_session=True,
            preexec_fn=_own_terminal,
        )
    except BaseException:
        os.close(master)
        raise
    finally:
        os.close(slave)
    return master, process


def _own_terminal() -> None:
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)


async def _ready(fd: int, *, write: bool) -> None:
    loop = asyncio.get_running_loop()
    ready: asyncio.Future[None] = loop.create_future()

    def wake() -> None:
        if not ready.done():
            ready.set_result(None)

    add, remove = (
        (loop.add_writer, loop.remove_writer) if write else (loop.add_reader, loop.remove_reader)
    )
    add(fd, wake)
    try:
        await ready
    finally:
        remove(fd)


async def _typed(reader: asyncio.StreamReader, master: int) -> None:
    while data := await reader.read(CHUNK):
        view = memoryview(data)
        while view:
            try:
                view = view[os.write(master, view) :]
            except BlockingIOError:
                await _ready(master, write=True)


async def _shown(master: int, writer: asyncio.StreamWriter) -> None:
    while True:
        await _ready(master, write=False)
        try:
            data = os.read(master, CHUNK)
        except BlockingIOError:
            continue
        except OSError:  # EIO: the shell has ended
            return
        if not data:
            return
        writer.write(data)
        await writer.drain()
