"""Jobs over the REST door: send a folder by content, submit, follow, fetch. Synchronous, like ``api``."""

import os
import stat
from collections.abc import Iterator
from pathlib import Path

import msgspec
from blake3 import blake3

from roost.client.api import RoostClient
from roost.client.model import JobView, MissingBlobs, StartJob
from roost.ports.errors import Invalid
from roost.ports.files import CHUNK, LeftOut, Limits, TreeEntry, clean

LIMITS = Limits(
    file_bytes=1 << 30,
    total_bytes=4 << 30,
    count=20_000,
    ignored=(*Limits().ignored, ".venv", ".mypy_cache", ".ruff_cache", ".pytest_cache"),
)
ASKED_AT_ONCE = 1000


class Folder(msgspec.Struct, frozen=True, kw_only=True):
    """A folder as it was looked at."""

    entries: dict[str, TreeEntry]
    left_out: tuple[LeftOut, ...]
    """Said to the person: what is too large, or no file."""
    places: dict[str, tuple[str, int]]
    """Digest -> (path, offset)."""


def look(root: Path, limits: Limits = LIMITS) -> Folder:
    """The folder's files by content. ``Invalid`` for a home folder or one that is too large as a whole."""
    if root in (Path.home().resolve(), Path("/"), Path("/tmp")):
        raise Invalid(f"{root} is not a project's folder", hint="put the script in one of its own")
    entries: dict[str, TreeEntry] = {}
    left_out: list[LeftOut] = []
    places: dict[str, tuple[str, int]] = {}
    total = 0
    for path, info in _walk(root, "", frozenset(limits.ignored)):
        if stat.S_ISDIR(info.st_mode):
            entries[path] = TreeEntry(kind="dir", mtime_ns=info.st_mtime_ns, mode=0o755)
            continue
        reason = _refusal(info, limits)
        if reason:
            left_out.append(LeftOut(path=path, reason=reason, size=info.st_size))
            continue
        entries[path] = _file(root, path, info, places)
        total += info.st_size
        if total > limits.total_bytes or len(entries) > limits.count:
            raise Invalid(
                f"{root} has more than {limits.total_bytes >> 30} GiB or {limits.count} files",
                hint="keep large data elsewhere and read it from there",
            )
    return Folder(entries=entries, left_out=tuple(left_out), places=places)


def _refusal(info: os.stat_result, limits: Limits) -> str:
    if not stat.S_ISREG(info.st_mode):
        return "not a regular file"
    return f"larger than {limits.file_bytes} bytes" if info.st_size > limits.file_bytes else ""


def _walk(root: Path, folder: str, ignored: frozenset[str]) -> Iterator[tuple[str, os.stat_result]]:
    with os.scandir(root / folder) as listing:
        found = sorted(listing, key=lambda item: item.name)
    for item in found:
        if item.name in ignored:
            continue
        path = f"{folder}/{item.name}" if folder else item.name
        # A link to a file is sent as the file; a link to a folder is not followed.
        info = item.stat(follow_symlinks=not (item.is_symlink() and item.is_dir()))
        yield path, info
        if stat.S_ISDIR(info.st_mode):
            yield from _walk(root, path, ignored)


def _file(
    root: Path, path: str, info: os.stat_result, places: dict[str, tuple[str, int]]
) -> TreeEntry:
    digests: list[str] = []
    size = 0
    with (root / path).open("rb") as file:
        while content := file.read(CHUNK):
            digest = blake3(content).hexdigest()
            places.setdefault(digest, (path, size))
            digests.append(digest)
            size += len(content)
    mode = stat.S_IMODE(info.st_mode)
    return TreeEntry(
        kind="file", digests=tuple(digests), size=size, mtime_ns=info.st_mtime_ns, mode=mode
    )


def send(client: RoostClient, root: Path, folder: Folder) -> int:
    """Send what the store does not have yet; returns bytes. ``Invalid`` when a file changed meanwhile."""
    sent = 0
    digests = list(folder.places)
    for start in range(0, len(digests), ASKED_AT_ONCE):
        asked = MissingBlobs(digests=tuple(digests[start : start + ASKED_AT_ONCE]))
        for digest in client.missing_blobs(asked).digests:
            path, offset = folder.places[digest]
            with (root / path).open("rb") as file:
                file.seek(offset)
                content = file.read(min(CHUNK, folder.entries[path].size - offset))
            if blake3(content).hexdigest() != digest:
                raise Invalid(f"{path} changed while it was sent", hint="try again")
            client.put_blob(digest, content)
            sent += len(content)
    return sent


def submit(client: RoostClient, root: Path, body: StartJob) -> tuple[JobView, Folder]:
    """Send the folder and submit the job; ``body.workspace`` is filled in here."""
    folder = look(root)
    send(client, root, folder)
    return client.start_job(msgspec.structs.replace(body, workspace=folder.entries)), folder


def fetch(client: RoostClient, job_id: str, target: Path) -> list[str]:
    """Write the job's newest durable files under ``target``; returns the paths written."""
    written = []
    for path, entry in sorted(client.job_files(job_id).items()):
        file = target / clean(path)
        if entry.kind == "dir":
            file.mkdir(parents=True, exist_ok=True)
        elif entry.kind == "file":
            file.parent.mkdir(parents=True, exist_ok=True)
            with file.open("wb") as output:
                for digest in entry.digests:
                    output.write(client.blob(digest))
            file.chmod(entry.mode)
            os.utime(file, ns=(entry.mtime_ns, entry.mtime_ns))
            written.append(path)
    return written
