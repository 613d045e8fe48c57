"""The files of the capture engine on this host: manifests and chunks of one session.

Reads names and bytes; never opens a pickle. Blocks on the disk: call it in a thread.
"""

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from roost.ports.errors import Never, Retry
from roost.runtime.kernel import format as engine


@dataclass(frozen=True, slots=True)
class EngineManifest:
    """A manifest as it travels."""

    content: bytes
    chunks: tuple[str, ...]
    imports: tuple[str, ...]
    cells: int
    """Cells that had run when it was captured."""


class EngineFiles:
    """One session's captures folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def manifest(self, path: str) -> EngineManifest:
        """Read a manifest; an empty path means a kernel without state. ``Never`` when it is damaged."""
        if not path:
            return EngineManifest(b"", (), (), 0)
        content = Path(path).read_bytes()
        manifest = _load(content)
        return EngineManifest(
            content,
            engine.chunk_digests(manifest),
            tuple(manifest.imports),
            max(0, manifest.execution_count - 1),
        )

    def keep_manifest(self, content: bytes) -> str:
        """Write a restored manifest as the only one of the folder; its path ("" for no state)."""
        for number in engine.manifest_numbers(self._folder):
            engine.manifest_path(self._folder, number).unlink(missing_ok=True)
        if not content:
            return ""
        path = engine.manifest_path(self._folder, _load(content).number)
        _write(path, content)
        return str(path)

    def absent(self, digests: Sequence[str]) -> list[str]:
        """Those whose chunks do not lie here."""
        (self._folder / "chunks").mkdir(mode=0o700, parents=True, exist_ok=True)
        return [digest for digest in digests if not self._place(digest).exists()]

    def keep_only(self, digests: Sequence[str]) -> None:
        """Remove the chunks that a newer checkpoint does not need any more."""
        (self._folder / "chunks").mkdir(mode=0o700, parents=True, exist_ok=True)
        wanted = set(digests)
        for path in (self._folder / "chunks").iterdir():
            if path.name not in wanted:
                path.unlink(missing_ok=True)

    def keep(self, digest: str, content: bytes) -> None:
        """Write a verified chunk."""
        _write(self._place(digest), content)

    def read(self, digest: str) -> bytes:
        """A chunk's bytes. ``Retry`` when it is not here (a newer capture has replaced it)."""
        try:
            return self._place(digest).read_bytes()
        except OSError as error:
            raise Retry(f"chunk {digest[:12]}: {error.strerror or error}", after_s=0.5) from error

    def _place(self, digest: str) -> Path:
        try:
            return engine.chunk_path(self._folder, digest)
        except engine.FormatError as error:
            raise Never(str(error)) from error


def _load(content: bytes) -> engine.Manifest:
    try:
        return engine.loads(content)
    except engine.FormatError as error:
        raise Never(f"the capture cannot be read: {error}") from error


def _write(path: Path, content: bytes) -> None:
    """In one step: whoever sees the name sees the whole content."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.{threading.get_ident()}.part")
    try:
        part.write_bytes(content)
        part.replace(path)
    except OSError as error:
        part.unlink(missing_ok=True)
        raise Retry(f"{path.name} cannot be written: {error.strerror or error}") from error
