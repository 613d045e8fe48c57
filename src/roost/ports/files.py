"""The workspace protocol: the files of a session on its present host, as seen from outside.

Service ``files/<session>``, spliced through the edge. The client sends requests, the host answers each
once and in order, so requests may be pipelined. Changes carry a ``seq`` that rises by one per change of
the session: the host remembers the highest it applied (``files_seq`` of a checkpoint), so after a move
the client asks ``Applied`` and sends the later ones again; a seq the host has is answered without effect.

Paths are relative POSIX paths inside the workspace; everything else is ``Denied``. It never carries
output of kernels, and it never follows a link out of the workspace.
"""

import msgspec

from roost.ports.errors import Denied, WireError
from roost.ports.frames import STREAM_LIMIT, Frames

CHUNK = 4 << 20
"""Bytes per read, write part and stored chunk."""


def clean(path: str) -> str:
    """``path`` without empty parts (``""`` is the workspace itself); ``Denied`` when it leads outside."""
    if "\0" in path or path.startswith("/"):
        raise Denied(f"{path!r} is not a path inside the workspace", hint="use a relative path")
    parts = [part for part in path.split("/") if part not in ("", ".")]
    if ".." in parts:
        raise Denied(f"{path!r} leads out of the workspace", hint="use a path without ..")
    return "/".join(parts)


class Entry(msgspec.Struct, frozen=True, kw_only=True):
    """A file or folder as it is now."""

    path: str
    kind: str
    """``file``, ``dir`` or ``other`` (socket, pipe, broken link)."""
    size: int = 0
    mtime_ns: int = 0
    writable: bool = True
    hash: str = ""
    """SHA-256 in hex, where asked for."""


class TreeEntry(msgspec.Struct, frozen=True, kw_only=True):
    """One captured path. A file is its chunks of ``CHUNK`` bytes, named by BLAKE3 digest (64 hex)."""

    kind: str
    """``file``, ``dir`` or ``link``."""
    digests: tuple[str, ...] = ()
    size: int = 0
    mtime_ns: int = 0
    mode: int = 0o644
    target: str = ""
    """Of a link: relative, inside the workspace."""


class LeftOut(msgspec.Struct, frozen=True, kw_only=True):
    """A path that was not captured or copied, and why: said, never silent."""

    path: str
    reason: str
    size: int = 0


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """What of a workspace is captured."""

    file_bytes: int = 2 << 30
    total_bytes: int = 8 << 30
    count: int = 100_000
    ignored: tuple[str, ...] = (".ipynb_checkpoints", "__pycache__", ".cache", ".git")
    """Names of files and folders that are left out without a word."""


# --- requests --------------------------------------------------------------------------------------


class _Message(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Base: the msgpack map carries the class name as its tag."""


class ListDir(_Message, frozen=True, kw_only=True):
    """-> Entries: what is in a folder. ``Gone`` when it is not there."""

    path: str


class Stat(_Message, frozen=True, kw_only=True):
    """-> Entries with one entry (``hash=True``: with its SHA-256), or none when nothing is there."""

    path: str
    hash: bool = False


class Read(_Message, frozen=True, kw_only=True):
    """-> Content: up to ``size`` (at most ``CHUNK``) bytes from ``offset``."""

    path: str
    offset: int = 0
    size: int = CHUNK


class Tree(_Message, frozen=True, kw_only=True):
    """-> TreeIs: every captured path with its digests."""


class Applied(_Message, frozen=True, kw_only=True):
    """-> AppliedIs. Also the heartbeat of the stream."""


class WritePart(_Message, frozen=True, kw_only=True):
    """-> Done: ``content`` at ``offset`` of the pending write ``seq``; visible only after ``Write``."""

    seq: int
    offset: int
    content: bytes


class Write(_Message, frozen=True, kw_only=True):
    """-> Done: replace ``path`` in one step by the parts sent for ``seq``."""

    seq: int
    path: str
    size: int
    mtime_ns: int


class Delete(_Message, frozen=True, kw_only=True):
    """-> Done: remove a file, or a folder with what is in it. ``again``: absent is fine."""

    seq: int
    path: str
    again: bool = False


class Rename(_Message, frozen=True, kw_only=True):
    """-> Done. ``Conflict`` when ``to`` exists. ``again``: already renamed is fine."""

    seq: int
    path: str
    to: str
    again: bool = False


class MakeDir(_Message, frozen=True, kw_only=True):
    """-> Done; an existing folder is fine."""

    seq: int
    path: str


# --- answers ---------------------------------------------------------------------------------------


class Done(_Message, frozen=True, kw_only=True):
    entry: Entry | None = None


class Entries(_Message, frozen=True, kw_only=True):
    entries: tuple[Entry, ...]


class Content(_Message, frozen=True, kw_only=True):
    content: bytes
    entry: Entry
    """The file at that moment: another size or mtime in the next part means that it changed meanwhile."""


class TreeIs(_Message, frozen=True, kw_only=True):
    entries: dict[str, TreeEntry]
    left_out: tuple[LeftOut, ...] = ()


class AppliedIs(_Message, frozen=True, kw_only=True):
    seq: int
    """Every change up to here is applied on this host."""
    durable_seq: int = 0
    """Every change up to here is in a checkpoint off the host: the client may forget them."""


class Failed(_Message, frozen=True, kw_only=True):
    error: WireError


ToHost = ListDir | Stat | Read | Tree | Applied | WritePart | Write | Delete | Rename | MakeDir
ToClient = Done | Entries | Content | TreeIs | AppliedIs | Failed
Change = Write | Delete | Rename | MakeDir


def to_host() -> Frames[ToHost]:
    """Codec of what the client of a workspace sends."""
    return Frames(ToHost, limit=STREAM_LIMIT)


def to_client() -> Frames[ToClient]:
    """Codec of what the host of a workspace answers."""
    return Frames(ToClient, limit=STREAM_LIMIT)
