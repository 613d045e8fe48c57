"""Make a run's files and output durable off this host. Only missing chunks travel; it runs nothing.

A save holds checkpoints and workspace of one moment: they are looked at until the checkpoints are the same
before and after the workspace, and a script that writes them faster than that is stopped for the last look.
"""

import asyncio
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

from blake3 import blake3

from roost.agent.tree import CapturedTree, TreeCache, capture_tree
from roost.ports import jobs as formats
from roost.ports.blobs import Blobs
from roost.ports.clock import Clock
from roost.ports.errors import Retry
from roost.ports.files import CHUNK, Limits
from roost.ports.jobs import JobFiles, JobOutput, SavedFiles, SavedOutput

ATTEMPTS = 5
"""How often files that change while they are read are looked at again."""
AGREEING = 2
"""How often checkpoints and workspace are read before the script is stopped for it."""
PIECE = 256 << 10
"""Output is stored in pieces of this size; the last one is stored again as it grows."""
MOST_OUTPUT = 256 << 20
"""Of a job's output, in bytes; what comes after is counted, not kept."""

Still = Callable[[], AbstractContextManager[None]]
"""While it is entered, the script stands still."""


class FileSaver:
    """Saves one run's workspace and checkpoints."""

    def __init__(
        self, work: Path, checkpoints: Path, blobs: Blobs, clock: Clock, still: Still
    ) -> None:
        self._work = work
        self._checkpoints = checkpoints
        self._blobs = blobs
        self._clock = clock
        self._still = still
        self._limits = Limits()
        self._caches = {work: TreeCache(), checkpoints: TreeCache()}
        self.saved: SavedFiles | None = None
        self.left_out = 0
        """Paths that the last save names as not kept."""

    async def save(self) -> bool:
        """Durable when it returns; True when there was something new. ``Retry`` when it cannot be now."""
        sent = 0
        for _ in range(AGREEING):
            try:
                checkpoints, workspace, some = await self._both()
            except Retry:  # too fast for us, or unreadable: the look below tells which
                continue
            sent += some
            now = await asyncio.to_thread(self._look, self._checkpoints)
            if now.entries == checkpoints.entries:
                break
        else:
            with self._still():
                checkpoints, workspace, some = await self._both()
            sent += some
        files = JobFiles(
            workspace=workspace.entries,
            checkpoints=checkpoints.entries,
            left_out=(*checkpoints.left_out, *workspace.left_out),
        )
        content = formats.encode(files)
        digest = blake3(content).hexdigest()
        if self.saved is not None and self.saved.digest == digest:
            return False
        await self._blobs.put(digest, content)
        self.left_out = len(files.left_out)
        number = self.saved.number + 1 if self.saved is not None else 1
        self.saved = SavedFiles(
            digest=digest,
            number=number,
            at_s=self._clock.now_s(),
            bytes_moved=sent + len(content),
        )
        return True

    async def _both(self) -> tuple[CapturedTree, CapturedTree, int]:
        checkpoints, some = await self._store(self._checkpoints)
        workspace, more = await self._store(self._work)
        return checkpoints, workspace, some + more

    def _look(self, root: Path) -> CapturedTree:
        return capture_tree(root, self._caches[root], self._limits)

    async def _store(self, root: Path) -> tuple[CapturedTree, int]:
        sent = 0
        for _ in range(ATTEMPTS):
            try:
                tree = await asyncio.to_thread(self._look, root)
            except OSError as error:
                raise Retry(f"files cannot be read: {error.strerror or error}") from error
            whole = True
            for digest in await self._blobs.missing(tuple(tree.places)):
                content = await asyncio.to_thread(_chunk, root, tree, digest)
                if content is None:
                    whole = False
                    break
                await self._blobs.put(digest, content)
                sent += len(content)
            if whole:
                return tree, sent
        raise Retry("files change faster than they can be read", after_s=1.0)


def _chunk(root: Path, tree: CapturedTree, digest: str) -> bytes | None:
    """A captured chunk; None when it has changed. A file that has only grown still has it."""
    path, offset = tree.places[digest]
    length = min(CHUNK, tree.entries[path].size - offset)
    try:
        with (root / path).open("rb") as file:
            file.seek(offset)
            content = file.read(length)
    except OSError:
        return None
    return content if blake3(content).hexdigest() == digest else None


class OutputSaver:
    """Saves what one run prints, behind what earlier runs printed."""

    def __init__(self, path: Path, blobs: Blobs, before: JobOutput) -> None:
        self._path = path
        self._blobs = blobs
        self._pieces = list(before.pieces)
        self._before = before.size
        self._lost = before.left_out
        self._sealed = 0
        """Bytes of this run's output that are in pieces which will not change."""
        self._open: tuple[str, int] | None = None
        self.saved: SavedOutput | None = None

    async def save(self) -> bool:
        """Store what is new; True when there was something."""
        changed = False
        while content := await asyncio.to_thread(self._read):
            if self._open is not None and self._open[1] == len(content):
                break
            digest = blake3(content).hexdigest()
            await self._blobs.put(digest, content)
            changed = True
            self._open = (digest, len(content))
            if len(content) < PIECE:
                break
            self._pieces.append(self._open)
            self._sealed += len(content)
            self._open = None
        if not changed:
            return False
        pieces = (*self._pieces, self._open) if self._open is not None else tuple(self._pieces)
        index = JobOutput(pieces=pieces, left_out=self._lost + await self._rest())
        encoded = formats.encode(index)
        name = blake3(encoded).hexdigest()
        await self._blobs.put(name, encoded)
        self.saved = SavedOutput(digest=name, size=index.size)
        return True

    def _read(self) -> bytes:
        room = MOST_OUTPUT - self._before - self._sealed
        try:
            with self._path.open("rb") as file:
                file.seek(self._sealed)
                return file.read(max(0, min(PIECE, room)))
        except FileNotFoundError:
            return b""

    async def _rest(self) -> int:
        size = await asyncio.to_thread(lambda: self._path.stat().st_size)
        return max(0, size - (MOST_OUTPUT - self._before))
