"""The notebook's folder of a person's own Jupyter, kept equal with the session's workspace by content.

    up    at the start, and before a cell: files changed here go to the workspace
    down  after a cell: files changed there come here

What both sides changed is kept twice: the workspace's as ``name (from roost).ext``. Nothing is ever
deleted here or there, hidden files and links stay where they are, and what is too large or too many is
named in the report. For whoever starts a kernel without a session (the bridge):

    folder = FolderSync(Path.cwd(), workspace)       # workspace: a started ``Workspace``
    report = await folder.up()                       # then after each cell: await folder.down()
    report.lines()                                   # sentences for the person, usually none
"""

import asyncio
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

import msgspec
from blake3 import blake3

from roost.notebooks.workspace import Workspace
from roost.ports.errors import RoostError
from roost.ports.files import CHUNK, LeftOut, Limits, TreeEntry, clean

FOLDER_LIMITS = Limits(file_bytes=64 << 20, total_bytes=256 << 20, count=2000)
_ABSENT = ""


@dataclass(slots=True)
class FolderReport:
    """What one direction did."""

    sent: list[str] = field(default_factory=list)
    received: list[str] = field(default_factory=list)
    kept_both: list[str] = field(default_factory=list)
    """Names given to the workspace's version of files that both sides changed."""
    left_out: list[LeftOut] = field(default_factory=list)

    def lines(self) -> list[str]:
        """What a person should know; empty when all is well."""
        said = [
            f"both sides changed it: the session's version is {name!r}" for name in self.kept_both
        ]
        said += [f"{one.path!r} was not copied: {one.reason}" for one in self.left_out[:20]]
        if len(self.left_out) > 20:
            said.append(f"and {len(self.left_out) - 20} more were not copied")
        return said


class _Both(msgspec.Struct, frozen=True, kw_only=True):
    """Identities of a path at the last time both sides were looked at."""

    here: str = _ABSENT
    there: str = _ABSENT


class FolderSync:
    """See the module. Not for the home folder or the root: those are refused by ``allowed``."""

    def __init__(self, folder: Path, workspace: Workspace, limits: Limits = FOLDER_LIMITS) -> None:
        self._folder = folder.resolve()
        self._workspace = workspace
        self._limits = limits
        self._memory = workspace.directory / "folder.json"
        self._last: dict[str, _Both] = self._remembered()
        self._known: dict[str, tuple[tuple[int, int, int], str]] = {}
        self._told: set[str] = set()
        self._turn = asyncio.Lock()

    @property
    def allowed(self) -> bool:
        """Whether this folder may be copied: a project's folder, not somebody's whole home."""
        return self._folder not in (Path.home().resolve(), Path("/"), Path("/tmp"))

    async def up(self) -> FolderReport:
        """Send what changed here. Typed errors when the workspace cannot be reached."""
        return await self._sync(receive=False)

    async def down(self) -> FolderReport:
        """Fetch what changed there (and send what changed here meanwhile)."""
        return await self._sync(receive=True)

    async def _sync(self, *, receive: bool) -> FolderReport:
        report = FolderReport()
        if not self.allowed:
            self._leave_out(report, str(self._folder), "a home or system folder is not copied")
            return report
        async with self._turn:
            there = await self._workspace.tree()
            here = await asyncio.to_thread(self._scan, report)
            for one in there.left_out:
                self._leave_out(report, one.path, one.reason, one.size)
            paths = sorted({*here, *(p for p, e in there.entries.items() if e.kind == "file")})
            received = 0
            for path in paths:
                entry = there.entries.get(path)
                if entry is not None and entry.kind != "file":
                    self._leave_out(report, path, "a folder or link on the other side")
                    continue
                size = entry.size if entry is not None else 0
                if self._over(report, path, size, received):
                    continue
                received += await self._settle(
                    path, here.get(path, _ABSENT), entry, receive, report
                )
            await asyncio.to_thread(self._remember)
        return report

    async def _settle(
        self, path: str, here: str, entry: TreeEntry | None, receive: bool, report: FolderReport
    ) -> int:
        """Bring one path in step; returns the bytes that came."""
        there = _identity(entry)
        last = self._last.get(path, _Both())
        mine, theirs = here != last.here, there != last.there
        if here == there:
            self._last[path] = _Both(here=here, there=there)
        elif mine and theirs and here and there:
            if receive:
                await self._keep_both(path, report)
                self._last[path] = _Both(here=here, there=there)
        elif mine and here:
            await self._send(path, report)
        elif theirs and there:
            return await self._receive(path, path, report) if receive else 0
        elif not here or not there:
            self._last[path] = _Both(
                here=here, there=there
            )  # removed on one side: the other keeps it
        return 0

    # --- one file ----------------------------------------------------------------------------------

    async def _send(self, path: str, report: FolderReport) -> None:
        place = self._folder / path
        try:
            content = await asyncio.to_thread(place.read_bytes)
            await self._workspace.write(path, content, mtime_s=place.stat().st_mtime)
        except OSError as error:
            self._leave_out(report, path, error.strerror or str(error))
        except RoostError as error:
            self._leave_out(report, path, str(error), len(content))
        else:
            identity = _content_identity(content)
            self._last[path] = _Both(here=identity, there=identity)
            report.sent.append(path)

    async def _receive(self, path: str, name: str, report: FolderReport) -> int:
        """Fetch the workspace's ``path`` into this folder's ``name``."""
        target = self._folder / clean(name)
        if not target.parent.resolve().is_relative_to(self._folder):
            self._leave_out(report, path, "a link here leads out of the folder")
            return 0
        content, entry = await self._workspace.read(path)
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            part = target.with_name(f".{target.name}.roost-part")
            part.write_bytes(content)
            os.utime(part, ns=(entry.mtime_ns, entry.mtime_ns))
            part.replace(target)
        except OSError as error:
            self._leave_out(report, path, error.strerror or str(error))
            return 0
        identity = _content_identity(content)
        self._last[name] = _Both(here=identity, there=identity if name == path else _ABSENT)
        report.received.append(name)
        return len(content)

    async def _keep_both(self, path: str, report: FolderReport) -> None:
        name = self._free_name(path)
        await self._receive(path, name, report)
        report.kept_both.append(name)

    def _free_name(self, path: str) -> str:
        given = PurePosixPath(path)
        for number in range(1, 1000):
            count = "" if number == 1 else f" {number}"
            name = given.with_name(f"{given.stem} (from roost{count}){given.suffix}")
            if not (self._folder / name).exists():
                break
        return str(name)

    # --- looking -----------------------------------------------------------------------------------

    def _over(self, report: FolderReport, path: str, size: int, received: int) -> bool:
        if size > self._limits.file_bytes:
            return self._leave_out(
                report, path, f"larger than {self._limits.file_bytes} bytes", size
            )
        if received + size > self._limits.total_bytes:
            reason = f"more than {self._limits.total_bytes} bytes in one step"
            return self._leave_out(report, path, reason, size)
        return False

    def _leave_out(self, report: FolderReport, path: str, reason: str, size: int = 0) -> bool:
        """Note it, once per path and reason; always True."""
        said = f"{path}: {reason}"
        if said not in self._told:
            self._told.add(said)
            report.left_out.append(LeftOut(path=path, reason=reason, size=size))
        return True

    def _scan(self, report: FolderReport) -> dict[str, str]:
        """Identity of every file here, within the limits."""
        found: dict[str, str] = {}
        total = 0
        for path, info in self._walk(""):
            if info.st_size > self._limits.file_bytes:
                reason = f"larger than {self._limits.file_bytes} bytes"
            elif total + info.st_size > self._limits.total_bytes:
                reason = f"the folder is larger than {self._limits.total_bytes} bytes"
            elif len(found) >= self._limits.count:
                reason = f"more than {self._limits.count} files"
            else:
                total += info.st_size
                try:
                    found[path] = self._identity_here(path, info)
                except OSError as error:
                    self._leave_out(report, path, error.strerror or str(error))
                continue
            self._leave_out(report, path, reason, info.st_size)
        return found

    def _walk(self, folder: str) -> Iterator[tuple[str, os.stat_result]]:
        try:
            with os.scandir(self._folder / folder) as listing:
                items = sorted(listing, key=lambda item: item.name)
        except OSError:
            return
        for item in items:
            if item.name.startswith(".") or item.name in self._limits.ignored:
                continue
            path = f"{folder}/{item.name}" if folder else item.name
            info = item.stat(follow_symlinks=False)
            if stat.S_ISREG(info.st_mode):
                yield path, info
            elif stat.S_ISDIR(info.st_mode):
                yield from self._walk(path)

    def _identity_here(self, path: str, info: os.stat_result) -> str:
        key = (info.st_ino, info.st_size, info.st_mtime_ns)
        known = self._known.get(path)
        if known is None or known[0] != key:
            known = (key, _content_identity((self._folder / path).read_bytes()))
            self._known[path] = known
        return known[1]

    # --- memory ------------------------------------------------------------------------------------

    def _remembered(self) -> dict[str, _Both]:
        try:
            return msgspec.json.decode(self._memory.read_bytes(), type=dict[str, _Both])
        except (OSError, msgspec.MsgspecError):
            return {}

    def _remember(self) -> None:
        part = self._memory.with_suffix(".part")
        part.write_bytes(msgspec.json.encode(self._last))
        part.replace(self._memory)


def _content_identity(content: bytes) -> str:
    digests = [
        blake3(content[start : start + CHUNK]).hexdigest()
        for start in range(0, len(content), CHUNK)
    ]
    return f"{len(content)}:{'-'.join(digests)}"


def _identity(entry: TreeEntry | None) -> str:
    return _ABSENT if entry is None else f"{entry.size}:{'-'.join(entry.digests)}"
