"""A session's workspace as seen from the control plane's machine: durable changes, reads that wait.

    change ── blob + journal (fsync) ──> sent to the host ──> applied ──> answered
                                   │ stream lost: wait, connect again, ask what the (new) host has,
                                   └ send the later changes again in order; only then answer reads

A change is forgotten when the host says that a checkpoint off the host contains it. A move never makes
a change fail; it waits. Reads wait at most ``wait_s`` and then raise ``Retry``. This module never looks
at the content of files.
"""

import asyncio
import logging
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import TypeVar

import msgspec
from blake3 import blake3

from roost.client.files import FilesClient, StreamLost
from roost.client.stream import Stream
from roost.kit.retry import RetryPolicy
from roost.ports.clock import Clock
from roost.ports.errors import Gone, Invalid, Never, Retry, RoostError
from roost.ports.files import (
    CHUNK,
    Delete,
    Done,
    Entry,
    MakeDir,
    Rename,
    ToHost,
    TreeIs,
    Write,
    WritePart,
    clean,
)
from roost.ports.kernels import FileChange

_log = logging.getLogger(__name__)

WAIT_S = 120.0
_IDLE_S = 5.0
_RETRY = RetryPolicy(first_s=0.05, ceiling_s=1.0)
_COMPACT_LINES = 500
_SEEN = 5000

T = TypeVar("T")


class _Line(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One line of the journal: a change, or that changes are not to be sent (any more)."""

    change: FileChange | None = None
    dropped: int = 0
    """This change was refused by the host."""
    forgotten: int = 0
    """Changes up to here are in a checkpoint."""
    last: int = 0
    """The highest seq given so far."""


class Journal:
    """Changes on disk with the content they name. Every method blocks on the disk."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._blobs = directory / "blobs"
        self._blobs.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._file = directory / "journal.jsonl"
        self.changes: dict[int, FileChange] = {}
        self.last = 0
        self._lines = 0
        self._load()

    def _load(self) -> None:
        decoder = msgspec.json.Decoder(_Line)
        content = self._file.read_bytes() if self._file.exists() else b""
        whole = content[: content.rfind(b"\n") + 1]  # a torn last line was never answered
        for raw in whole.splitlines():
            self._fold(decoder.decode(raw))
            self._lines += 1
        if len(whole) != len(content):
            os.truncate(self._file, len(whole))

    def _fold(self, line: _Line) -> None:
        if line.change is not None:
            self.changes[line.change.seq] = line.change
            self.last = max(self.last, line.change.seq)
        self.last = max(self.last, line.last)
        self.changes.pop(line.dropped, None)
        for seq in [seq for seq in self.changes if seq <= line.forgotten]:
            del self.changes[seq]

    def _append(self, line: _Line) -> None:
        with self._file.open("ab") as file:
            file.write(msgspec.json.encode(line) + b"\n")
            file.flush()
            os.fsync(file.fileno())
        self._lines += 1
        self._fold(line)

    def add(self, change: FileChange) -> None:
        """Durable when this returns."""
        self._append(_Line(change=change))

    def drop(self, seq: int) -> None:
        """The host refused this change: it is not sent again."""
        self._append(_Line(dropped=seq))

    def forget(self, durable_seq: int) -> None:
        """A checkpoint holds every change up to here: drop them and the blobs only they name."""
        if not any(seq <= durable_seq for seq in self.changes):
            return
        self._append(_Line(forgotten=durable_seq, last=self.last))
        named = {change.digest for change in self.changes.values()}
        for blob in self._blobs.iterdir():
            if len(blob.name) == 64 and blob.name not in named:
                blob.unlink(missing_ok=True)
        if self._lines > _COMPACT_LINES:
            self._compact()

    def _compact(self) -> None:
        lines = [_Line(last=self.last), *(_Line(change=c) for c in self.changes.values())]
        temporary = self._file.with_suffix(".new")
        with temporary.open("wb") as file:
            file.write(b"".join(msgspec.json.encode(line) + b"\n" for line in lines))
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(self._file)
        self._lines = len(lines)

    def skip_to(self, seq: int) -> None:
        """A host already has changes up to ``seq`` (this journal was lost): go on after them."""
        if seq > self.last:
            self._append(_Line(last=seq))

    def keep(self, content: bytes | Path) -> tuple[str, int]:
        """Store content (a path is moved into the store); (digest, size), durable on return."""
        if isinstance(content, bytes):
            staged = self._directory / "incoming"
            staged.write_bytes(content)
        else:
            staged = content
        hasher = blake3()
        with staged.open("r+b") as file:
            while part := file.read(CHUNK):
                hasher.update(part)
            size = file.tell()
            os.fsync(file.fileno())
        digest: str = hasher.hexdigest()
        staged.replace(self.blob(digest))
        folder = os.open(self._blobs, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
        return digest, size

    def blob(self, digest: str) -> Path:
        """Where the content of ``digest`` is."""
        return self._blobs / digest


class Workspace:
    """The files of one session. ``connect`` opens a ``files/<session>`` stream; it may fail or wait."""

    def __init__(
        self,
        directory: Path,
        connect: Callable[[], Awaitable[Stream]],
        clock: Clock,
        *,
        wait_s: float = WAIT_S,
    ) -> None:
        self._journal = Journal(directory)
        self.directory = directory
        self._connect = connect
        self._clock = clock
        self._wait_s = wait_s
        self._sent = 0
        """Every change up to here is applied on the connected host."""
        self._seen: dict[str, Entry] = {}
        self._waiters: dict[int, asyncio.Future[Entry | None]] = {}
        self._submitting = asyncio.Lock()
        self._wake = asyncio.Event()
        self._ready = asyncio.Event()
        self._client: FilesClient | None = None
        self._task: asyncio.Task[None] | None = None
        self.trouble = ""
        """Why there is no connection at present, for the log and for error messages."""

    async def start(self) -> None:
        """Begin to connect; returns at once."""
        self._task = asyncio.create_task(self._run(), name="workspace")

    async def stop(self) -> None:
        """Close the stream; changes that wait stay in the journal."""
        if self._task is not None:
            self._task.cancel()
            with suppress(asyncio.CancelledError):
                await self._task

    # --- reading -----------------------------------------------------------------------------------

    @property
    def connected(self) -> bool:
        """Whether reads are answered by a host now."""
        return self._ready.is_set()

    def remembers(self, path: str) -> bool:
        """Whether ``stat`` of ``path`` is answered during a move too."""
        return path in self._seen

    async def list(self, path: str) -> tuple[Entry, ...]:
        """What is in a folder. ``Gone`` when it is not there."""
        entries = await self._read(lambda client: client.list(clean(path)))
        for entry in entries:
            self._remember(entry)
        return entries

    async def stat(self, path: str, *, hash: bool = False) -> Entry | None:
        """The entry at ``path`` or None; ``hash``: with the SHA-256 of its content.

        During a move the entry last seen is given, if it was: a move changes no time and no content,
        and whoever saves asks for it first.
        """
        path = clean(path)
        seen = self._seen.get(path)
        if seen is not None and not self.connected and (seen.hash or not hash):
            return seen
        entry = await self._read(lambda client: client.stat(path, hash=hash))
        if entry is None:
            self._seen.pop(path, None)
        else:
            self._remember(entry)
        return entry

    async def read(self, path: str) -> tuple[bytes, Entry]:
        """A file's content and its entry."""
        return await self._read(lambda client: client.read(clean(path)))

    def _remember(self, entry: Entry) -> None:
        known = self._seen.pop(entry.path, None)
        if known is not None and not entry.hash and known.mtime_ns == entry.mtime_ns:
            entry = known  # it may have its hash
        if len(self._seen) >= _SEEN:
            self._seen.pop(next(iter(self._seen)))
        self._seen[entry.path] = entry

    async def tree(self) -> TreeIs:
        """Every path with size, time and digests."""
        return await self._read(lambda client: client.tree())

    async def _read(self, ask: Callable[[FilesClient], Awaitable[T]]) -> T:
        try:
            async with asyncio.timeout(self._wait_s):
                while True:
                    await self._ready.wait()
                    client = self._client
                    if client is None or client.ended:
                        self._ready.clear()  # set again when the next host is up to date
                        continue
                    with suppress(StreamLost):
                        return await ask(client)
        except TimeoutError as error:
            raise Retry(
                f"the session's host did not answer within {self._wait_s:.0f} s",
                hint=self.trouble or "the session is moving or stopped; see `roost notebook list`",
            ) from error

    # --- changing ----------------------------------------------------------------------------------

    async def write(
        self, path: str, content: bytes | Path, *, mtime_s: float | None = None
    ) -> Entry:
        """Replace a file in one step; answered when durable here and applied on the host."""
        path = _named(path)
        async with self._submitting:
            digest, _ = await asyncio.to_thread(self._journal.keep, content)
            at_s = self._clock.now_s() if mtime_s is None else mtime_s
            # Milliseconds: exact in every representation a time passes through.
            at_s = round(at_s * 1000) / 1000
            waiter = await self._submit("write", path, digest=digest, mtime_s=at_s)
        entry = await waiter
        if entry is None:
            raise Gone(f"{path!r} was removed at once")
        self._seen.pop(path, None)
        self._remember(entry)
        return entry

    async def delete(self, path: str) -> None:
        """Remove a file, or a folder with its content."""
        async with self._submitting:
            waiter = await self._submit("delete", _named(path))
        await waiter
        self._seen.clear()

    async def rename(self, path: str, to: str) -> None:
        """``Conflict`` when ``to`` exists."""
        async with self._submitting:
            waiter = await self._submit("rename", _named(path), to=_named(to))
        await waiter
        self._seen.clear()

    async def make_dir(self, path: str) -> None:
        """An existing folder is fine."""
        async with self._submitting:
            waiter = await self._submit("mkdir", _named(path))
        await waiter

    async def _submit(
        self, op: str, path: str, *, digest: str = "", to: str = "", mtime_s: float = 0.0
    ) -> asyncio.Future[Entry | None]:
        change = FileChange(
            seq=self._journal.last + 1, op=op, path=path, digest=digest, to=to, mtime_s=mtime_s
        )
        waiter: asyncio.Future[Entry | None] = asyncio.get_running_loop().create_future()
        self._waiters[change.seq] = waiter
        await asyncio.to_thread(self._journal.add, change)
        self._wake.set()
        return waiter

    # --- the connection ----------------------------------------------------------------------------

    async def _run(self) -> None:
        attempt = 0
        while True:
            try:
                async with self._connected() as client:
                    attempt = 0
                    await self._follow(client)
            except (RoostError, OSError) as error:
                self.trouble = str(error)
            except Exception as error:  # a defect here must not make every later save wait for ever
                self.trouble = repr(error)
                _log.exception("the workspace connection failed")
            attempt += 1
            await asyncio.sleep(_RETRY.delay_s(attempt))

    @asynccontextmanager
    async def _connected(self) -> AsyncIterator[FilesClient]:
        client = FilesClient(await self._connect(), on_end=self._wake.set)
        try:
            yield client
        finally:
            self._ready.clear()
            self._client = None
            await client.close()

    async def _follow(self, client: FilesClient) -> None:
        """Bring the host up to date, let reads through, then send each new change."""
        host = await client.applied()
        self._journal.skip_to(host.seq)
        self._sent = host.seq
        await self._settle_applied(client)
        await self._send_pending(client, again=True)
        self._client = client
        self.trouble = ""
        self._ready.set()
        while not client.ended:
            self._wake.clear()
            await self._send_pending(client, again=False)
            try:
                async with asyncio.timeout(_IDLE_S):
                    await self._wake.wait()
            except TimeoutError:
                if client.idle:
                    await self._forget((await client.applied()).durable_seq)

    async def _settle_applied(self, client: FilesClient) -> None:
        """Changes whose answer was lost although the host has them."""
        for seq in [seq for seq in self._waiters if seq <= self._sent]:
            change = self._journal.changes.get(seq)
            path = (change.to or change.path) if change is not None else ""
            entry = None
            with suppress(RoostError):
                entry = await client.stat(path) if path else None
            self._resolve(seq, entry)

    async def _send_pending(self, client: FilesClient, *, again: bool) -> None:
        while True:
            # A copy: the journal's thread may add one meanwhile.
            seqs = [seq for seq in self._journal.changes.copy() if seq > self._sent]
            if not seqs:
                return
            seq = min(seqs)
            entry: Entry | None = None
            error: RoostError | None
            try:
                entry = await self._send(client, self._journal.changes[seq], again)
            except FileNotFoundError:
                error = Never(f"the content of change {seq} is missing on this machine")
            except RoostError as refused:
                error = refused
            else:
                error = None
            if error is not None:
                await asyncio.to_thread(self._journal.drop, seq)
            self._sent = seq
            self._resolve(seq, entry, error)

    async def _send(self, client: FilesClient, change: FileChange, again: bool) -> Entry | None:
        if change.op == "write":
            await self._send_parts(client, change)
        answer = await client.request(_message(change, self._journal, again))
        return answer.entry if isinstance(answer, Done) else None

    async def _send_parts(self, client: FilesClient, change: FileChange) -> None:
        offset = 0
        with self._journal.blob(change.digest).open("rb") as file:
            while content := file.read(CHUNK):
                await client.request(WritePart(seq=change.seq, offset=offset, content=content))
                offset += len(content)

    def _resolve(self, seq: int, entry: Entry | None, error: RoostError | None = None) -> None:
        waiter = self._waiters.pop(seq, None)
        if waiter is None or waiter.done():
            return  # sent again after a restart, or the browser has gone
        if error is not None:
            waiter.set_exception(error)
        else:
            waiter.set_result(entry)

    async def _forget(self, durable_seq: int) -> None:
        async with self._submitting:
            await asyncio.to_thread(self._journal.forget, durable_seq)


def _named(path: str) -> str:
    cleaned = clean(path)
    if not cleaned:
        raise Invalid("the workspace itself cannot be replaced", hint="name a file or folder in it")
    return cleaned


def _message(change: FileChange, journal: Journal, again: bool) -> ToHost:
    match change.op:
        case "write":
            return Write(
                seq=change.seq,
                path=change.path,
                size=journal.blob(change.digest).stat().st_size,
                mtime_ns=round(change.mtime_s * 1000) * 1_000_000,
            )
        case "delete":
            return Delete(seq=change.seq, path=change.path, again=again)
        case "rename":
            return Rename(seq=change.seq, path=change.path, to=change.to, again=again)
        case "mkdir":
            return MakeDir(seq=change.seq, path=change.path)
    raise Never(f"unknown change {change.op!r}")
