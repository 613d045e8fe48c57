"""Make a capture durable off this host: kernel state, workspace, spool and packages as one checkpoint.

Only missing chunks travel. It counts when everything is stored: until then the last checkpoint
stands. It never stops or changes a kernel.
"""

import asyncio
from dataclasses import dataclass
from pathlib import Path

from blake3 import blake3

from roost.agent.engine_files import EngineFiles
from roost.agent.environment import Environment
from roost.agent.files import TreeCache, applied_seq, capture_tree, read_chunk, set_durable_seq
from roost.agent.groups import together
from roost.agent.model import Places
from roost.agent.tree import CapturedTree
from roost.ports import checkpoint as checkpoints
from roost.ports.blobs import Blobs
from roost.ports.checkpoint import CheckpointBlob
from roost.ports.clock import Clock
from roost.ports.errors import Retry
from roost.ports.files import Limits
from roost.ports.keeper import KeeperCapture
from roost.ports.kernels import Checkpoint, VariableReport

PARALLEL = 4
ATTEMPTS = 5
"""How often a workspace that changes while it is read is looked at again."""


@dataclass(frozen=True, slots=True)
class _Upload:
    """Where to read the bytes of every chunk of one checkpoint."""

    engine: EngineFiles
    chunks: frozenset[str]
    """Those of the engine."""
    root: Path
    tree: CapturedTree

    def read(self, digest: str) -> bytes | None:
        """The bytes; None when a file of the workspace has changed since."""
        if digest in self.chunks:
            return self.engine.read(digest)
        return read_chunk(self.root, self.tree, digest)


class Checkpoints:
    """Composes and uploads checkpoints."""

    def __init__(
        self,
        *,
        places: Places,
        blobs: Blobs,
        environment: Environment,
        clock: Clock,
        limits: Limits | None = None,
    ) -> None:
        self._places = places
        self._blobs = blobs
        self._environment = environment
        self._clock = clock
        self._limits = limits or Limits()
        self._caches: dict[str, TreeCache] = {}

    async def save(self, session_id: str, capture: KeeperCapture) -> Checkpoint:
        """Durable when it returns. ``Retry`` when it cannot be made durable now."""
        engine = EngineFiles(Path(self._places.captures(session_id)))
        try:
            manifest = await asyncio.to_thread(engine.manifest, capture.manifest_path)
        except OSError as error:
            raise Retry(f"the capture cannot be read: {error.strerror or error}") from error
        moved = 0
        for _ in range(ATTEMPTS):
            seq, tree = await self._look(session_id)
            blob = CheckpointBlob(
                format=checkpoints.PLAIN if capture.running is None else checkpoints.FORMAT,
                session_id=session_id,
                epoch=capture.epoch,
                number=capture.number,
                engine=manifest.content,
                chunks=manifest.chunks,
                spool=capture.spool,
                finished=capture.finished,
                running=capture.running,
                workspace=tree.entries,
                left_out=tree.left_out,
                files_seq=seq,
                environment=self._environment.pinned(),
            )
            root = Path(self._places.workspace(session_id))
            upload = _Upload(engine, frozenset(blob.chunks), root, tree)
            whole, sent = await self._upload(upload, blob.digests())
            moved += sent
            if whole:
                break
        else:
            raise Retry("files of the workspace change faster than they can be read", after_s=5.0)
        content = checkpoints.encode(blob)
        digest = blake3(content).hexdigest()
        await self._blobs.put(digest, content)
        set_durable_seq(root, seq)
        return Checkpoint(
            session_id=session_id,
            epoch=capture.epoch,
            digest=digest,
            number=capture.number,
            at_s=self._clock.now_s(),
            bytes_total=capture.bytes_total + tree.size,
            bytes_moved=moved + len(content),
            files_seq=seq,
            imports=manifest.imports,
            cells=manifest.cells,
            refused=capture.refused + _told(tree),
        )

    def forget(self, session_id: str) -> None:
        """The session's workspace was replaced or has left this host."""
        self._caches.pop(session_id, None)

    async def _look(self, session_id: str) -> tuple[int, CapturedTree]:
        root = Path(self._places.workspace(session_id))
        cache = self._caches.setdefault(session_id, TreeCache())
        # The number first: a change that slips in between is captured but not counted, and is applied
        # again without effect; the other order would lose it.
        seq = applied_seq(root)
        try:
            return seq, await asyncio.to_thread(capture_tree, root, cache, self._limits)
        except OSError as error:
            raise Retry(f"the workspace cannot be read: {error.strerror or error}") from error

    async def _upload(self, upload: _Upload, digests: tuple[str, ...]) -> tuple[bool, int]:
        """Send what is missing; (False, bytes) when a file changed meanwhile."""
        absent = iter(await self._blobs.missing(digests))
        sent = 0
        whole = True

        async def work() -> None:
            nonlocal sent, whole
            for digest in absent:
                content = await asyncio.to_thread(upload.read, digest)
                if content is None:
                    whole = False
                    return
                await self._blobs.put(digest, content)
                sent += len(content)

        async with together() as group:
            for _ in range(PARALLEL):
                group.create_task(work())
        return whole, sent


def _told(tree: CapturedTree) -> tuple[VariableReport, ...]:
    return tuple(
        VariableReport(name=f"file {left.path}", outcome="refused", reason=left.reason)
        for left in tree.left_out
    )
