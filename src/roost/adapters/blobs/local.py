"""Blobs on a local disk, through obstore. Never names a blob before its bytes are on the disk.

A blob is written under ``new/``, synced, renamed to ``<2 hex>/<digest>`` and its folder synced: after
a power loss a name is either absent or complete. Another object store needs another ``LocalStore`` and
no syncing.
"""

import asyncio
import contextlib
import errno
import itertools
import os
import re
from collections.abc import Sequence
from pathlib import Path

import obstore
from blake3 import blake3
from obstore.exceptions import BaseError
from obstore.store import LocalStore

from roost.ports.errors import Gone, Invalid, Never, Retry, RoostError

_DIGEST = re.compile(r"[0-9a-f]{64}")
NEW = "new"
DAMAGED = "damaged"
FULL_S = 30.0
"""When to try again after the disk was full."""
HASH_INLINE = 1 << 20
"""Contents up to this size are hashed at once (about 1 ms), larger ones in a thread."""


class LocalBlobs:
    """Implements ``roost.ports.blobs.Blobs`` in a folder. ``sync=False`` only for tests of other things."""

    def __init__(self, folder: Path, *, sync: bool = True) -> None:
        self._folder = folder
        self._sync = sync
        self._store = LocalStore(folder, mkdir=True)
        self._numbers = itertools.count()
        self._sweep()

    async def missing(self, digests: Sequence[str]) -> list[str]:
        """See ``Blobs``."""
        for digest in digests:
            _check(digest)
        return await asyncio.to_thread(
            lambda: [d for d in digests if not (self._folder / _key(d)).exists()]
        )

    async def put(self, digest: str, content: bytes) -> None:
        """See ``Blobs``."""
        _check(digest)
        if await _digest(content) != digest:
            raise Invalid(
                f"the content sent as {digest[:12]} has another digest", hint="send it again"
            )
        if (self._folder / _key(digest)).exists():
            await self._synced(str(Path(_key(digest)).parent))  # another put may be in between
            return
        part = f"{NEW}/{digest}.{os.getpid()}.{next(self._numbers)}"
        try:
            await obstore.put_async(self._store, part, content, use_multipart=False)
            await self._synced(part)
            await obstore.rename_async(self._store, part, _key(digest))
            await self._synced(str(Path(_key(digest)).parent))
        except (BaseError, OSError) as error:
            with contextlib.suppress(BaseError, OSError):
                await obstore.delete_async(self._store, part)
            raise _typed(error) from error

    async def get(self, digest: str) -> bytes:
        """See ``Blobs``. Damaged content is put aside, so that ``missing`` names it and a put heals it."""
        _check(digest)
        try:
            found = await obstore.get_async(self._store, _key(digest))
            content = bytes(await found.bytes_async())
        except FileNotFoundError as error:
            raise Gone(f"blob {digest[:12]} is not stored") from error
        except (BaseError, OSError) as error:
            raise _typed(error) from error
        if await _digest(content) != digest:
            with contextlib.suppress(BaseError, OSError):
                await obstore.rename_async(self._store, _key(digest), f"{DAMAGED}/{digest}")
            raise Never(f"blob {digest[:12]} is damaged", hint="its bytes were put aside")
        return content

    async def delete(self, digests: Sequence[str]) -> None:
        """See ``Blobs``."""
        for digest in digests:
            _check(digest)
            with contextlib.suppress(FileNotFoundError):
                await obstore.delete_async(self._store, _key(digest))

    async def _synced(self, key: str) -> None:
        if self._sync:
            await asyncio.to_thread(_fsync, self._folder / key)

    def _sweep(self) -> None:
        """Parts of processes that ended in the middle of a put."""
        for part in (self._folder / NEW).glob("*"):
            pid = part.name.split(".")[1] if part.name.count(".") >= 2 else ""
            if not pid.isdigit() or not Path(f"/proc/{pid}").exists() or int(pid) == os.getpid():
                part.unlink(missing_ok=True)


def _key(digest: str) -> str:
    return f"{digest[:2]}/{digest}"


def _check(digest: str) -> None:
    if _DIGEST.fullmatch(digest) is None:
        raise Invalid(f"not a digest: {digest[:80]!r}", hint="64 hexadecimal digits of BLAKE3")


async def _digest(content: bytes) -> str:
    if len(content) <= HASH_INLINE:
        return blake3(content).hexdigest()
    return await asyncio.to_thread(lambda: blake3(content).hexdigest())


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _typed(error: Exception) -> RoostError:
    """obstore keeps the system's error number only in its text."""
    number = error.errno if isinstance(error, OSError) else None
    if number in (errno.ENOSPC, errno.EDQUOT) or "os error 28" in str(error):
        return Retry("the blob store's disk is full", after_s=FULL_S, hint="free space and go on")
    return Retry(f"the blob store failed: {str(error).splitlines()[0]}", after_s=1.0)
