"""Bring a checkpoint to this host: its chunks, its workspace, its packages. Starts no kernel.

Everything fetched is verified by digest. A workspace is built beside the old one and takes its place
in one step, so a restore that fails half-way has changed nothing.
"""

import asyncio
import shutil
from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec

from roost.agent.engine_files import EngineFiles
from roost.agent.environment import Environment
from roost.agent.files import Files, applied_seq, restore_tree, set_applied_seq
from roost.agent.groups import together
from roost.agent.model import Places
from roost.ports import checkpoint as checkpoints
from roost.ports import files as protocol
from roost.ports.blobs import Blobs
from roost.ports.checkpoint import CheckpointBlob
from roost.ports.errors import Never, Retry, from_wire
from roost.ports.files import TreeEntry
from roost.ports.kernels import FileChange, RestoreReport, VariableReport

PARALLEL = 4
SAID = 2000
"""Variables listed in a report, so that it fits in a control frame; the rest is counted."""


class Fetched(msgspec.Struct, frozen=True, kw_only=True):
    """A checkpoint whose data lies on this host."""

    blob: CheckpointBlob
    manifest_path: str
    bytes_fetched: int
    packages: tuple[VariableReport, ...] = ()
    """What became of packages that were not the same here."""


class Restorer:
    """Fetches checkpoints."""

    def __init__(self, places: Places, blobs: Blobs, environment: Environment) -> None:
        self._places = places
        self._blobs = blobs
        self._environment = environment
        self._parallel = asyncio.Semaphore(PARALLEL)
        self._ahead: dict[str, asyncio.Task[int]] = {}

    async def ahead(self, session_id: str, digest: str) -> None:
        """Get the chunks of a checkpoint that a session may be restored from here. Errors as ``fetch``.

        A newer one, or the restore itself, takes its place; what has come stays.
        """
        await self._give_up(session_id)
        job = self._ahead[session_id] = asyncio.create_task(self._get_ahead(session_id, digest))
        try:
            await asyncio.wait({job})
        finally:
            if self._ahead.get(session_id) is job:
                await self._give_up(session_id)
        if job.cancelled():
            raise Retry(f"what {session_id} needs comes in another way")
        job.result()

    async def _get_ahead(self, session_id: str, digest: str) -> int:
        blob = checkpoints.decode(await self._blobs.get(digest))
        engine = EngineFiles(Path(self._places.captures(session_id)))
        # At once and first: nothing that comes from now on may be taken for an older one's.
        engine.keep_only(blob.chunks)
        return await self._chunks(engine, blob.chunks)

    async def _give_up(self, session_id: str) -> None:
        """End fetching ahead for a session."""
        job = self._ahead.pop(session_id, None)
        if job is not None:
            job.cancel()
            await asyncio.wait({job})

    async def fetch(self, session_id: str, digest: str) -> Fetched:
        """Get what is missing here. ``Retry``, ``Gone`` (a blob is lost), ``Never`` (damaged)."""
        await self._give_up(session_id)
        content = await self._blobs.get(digest)
        blob = checkpoints.decode(content)
        engine = EngineFiles(Path(self._places.captures(session_id)))
        async with together() as group:
            chunks = group.create_task(self._chunks(engine, blob.chunks))
            files = group.create_task(self._workspace(session_id, blob))
            packages = group.create_task(self._packages(blob))
        manifest = await asyncio.to_thread(engine.keep_manifest, blob.engine)
        return Fetched(
            blob=blob,
            manifest_path=manifest,
            bytes_fetched=len(content) + chunks.result() + files.result(),
            packages=packages.result(),
        )

    async def empty(self, session_id: str) -> None:
        """A session that starts without a checkpoint has an empty workspace."""
        root = Path(self._places.workspace(session_id))
        await asyncio.to_thread(_replace, root, _fresh(root))
        set_applied_seq(root, 0)

    async def change(self, session_id: str, changes: Sequence[FileChange]) -> None:
        """Apply what was changed from outside since the checkpoint, in order."""
        root = Path(self._places.workspace(session_id))
        files = Files(root)
        for change in sorted(changes, key=lambda c: c.seq):
            if change.seq > applied_seq(root):
                await self._apply(files, change)

    async def _chunks(self, engine: EngineFiles, digests: Sequence[str]) -> int:
        absent = await asyncio.to_thread(engine.absent, digests)
        async with together() as group:
            jobs = [group.create_task(self._chunk(engine, digest)) for digest in absent]
        return sum(job.result() for job in jobs)

    async def _chunk(self, engine: EngineFiles, digest: str) -> int:
        async with self._parallel:
            content = await self._blobs.get(digest)
            await asyncio.to_thread(engine.keep, digest, content)
        return len(content)

    async def _workspace(self, session_id: str, blob: CheckpointBlob) -> int:
        root = Path(self._places.workspace(session_id))
        fresh = await asyncio.to_thread(_fresh, root)
        ahead = _Ahead(self._blobs, blob.workspace)
        try:
            fetched = await restore_tree(fresh, dict(blob.workspace), ahead.fetch)
        finally:
            ahead.close()
        await asyncio.to_thread(_replace, root, fresh)
        set_applied_seq(root, blob.files_seq)
        return fetched

    async def _packages(self, blob: CheckpointBlob) -> tuple[VariableReport, ...]:
        lacking = self._environment.lacking(blob.environment)
        return await self._environment.install(lacking) if lacking else ()

    async def _apply(self, files: Files, change: FileChange) -> None:
        for request in await self._requests(change):
            answer = await asyncio.to_thread(files.answer, request)
            if isinstance(answer, protocol.Failed):
                raise from_wire(answer.error)

    async def _requests(self, change: FileChange) -> list[protocol.ToHost]:
        seq, path = change.seq, change.path
        match change.op:
            case "write":
                content = await self._blobs.get(change.digest) if change.digest else b""
                steps = range(0, len(content), protocol.CHUNK)
                parts: list[protocol.ToHost] = [
                    protocol.WritePart(seq=seq, offset=i, content=content[i : i + protocol.CHUNK])
                    for i in steps
                ]
                mtime_ns = int(change.mtime_s * 1e9)
                return [
                    *parts,
                    protocol.Write(seq=seq, path=path, size=len(content), mtime_ns=mtime_ns),
                ]
            case "delete":
                return [protocol.Delete(seq=seq, path=path, again=True)]
            case "mkdir":
                return [protocol.MakeDir(seq=seq, path=path)]
            case "rename":
                return [protocol.Rename(seq=seq, path=path, to=change.to, again=True)]
        raise Never(f"unknown change of a file: {change.op!r}")


class _Ahead:
    """Chunks of a workspace in the order a restore asks for them, some requests ahead."""

    def __init__(self, blobs: Blobs, tree: Mapping[str, TreeEntry]) -> None:
        self._blobs = blobs
        self._coming = (d for path in sorted(tree) for d in tree[path].digests)
        self._asked: deque[tuple[str, asyncio.Task[bytes]]] = deque()

    async def fetch(self, digest: str) -> bytes:
        """The next chunk."""
        while len(self._asked) < PARALLEL and (coming := next(self._coming, "")):
            self._asked.append((coming, asyncio.create_task(self._get(coming))))
        if self._asked and self._asked[0][0] == digest:
            return await self._asked.popleft()[1]
        return await self._blobs.get(digest)

    def close(self) -> None:
        """Forget what was asked for and not taken."""
        for _, job in self._asked:
            job.cancel()

    async def _get(self, digest: str) -> bytes:
        return await self._blobs.get(digest)


def said(
    report: RestoreReport, extra: Sequence[VariableReport] = (), limit: int = SAID
) -> RestoreReport:
    """The report with ``extra`` lines, cut to ``limit``: what was not kept is named first."""
    lines = [*extra, *report.variables]
    lines.sort(key=lambda line: line.outcome == "kept")
    if len(lines) > limit:
        rest = len(lines) - limit
        lines = lines[:limit]
        lines.append(VariableReport(name=f"({rest} more)", outcome=lines[-1].outcome))
    return RestoreReport(variables=tuple(lines), seconds=report.seconds)


def _fresh(root: Path) -> Path:
    """An empty folder beside ``root``."""
    fresh = root.parent / f".{root.name}.new"
    if fresh.exists():
        shutil.rmtree(fresh)
    fresh.mkdir(parents=True)
    return fresh


def _replace(root: Path, fresh: Path) -> None:
    """``fresh`` takes the place of ``root``."""
    old = root.parent / f".{root.name}.old"
    if old.exists():
        shutil.rmtree(old)
    if root.exists():
        root.rename(old)
    fresh.rename(root)
    if old.exists():
        shutil.rmtree(old)
