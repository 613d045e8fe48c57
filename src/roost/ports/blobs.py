"""Content-addressed bytes, off the hosts. The name of a blob is the BLAKE3 digest of its content (64 hex)."""

from collections.abc import Sequence
from typing import Protocol


class Blobs(Protocol):
    """A store of immutable blobs. Contract test: ``roost.testing.blobs``."""

    async def missing(self, digests: Sequence[str]) -> list[str]:
        """Those of ``digests`` that are not stored."""

    async def put(self, digest: str, content: bytes) -> None:
        """Store durably. ``Invalid`` when the content has another digest, ``Retry`` when the disk is full."""

    async def get(self, digest: str) -> bytes:
        """The content. ``Gone`` when it is not stored; damaged content raises ``Never``."""

    async def delete(self, digests: Sequence[str]) -> None:
        """Remove; unknown digests are ignored."""
