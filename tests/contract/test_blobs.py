"""Every blob store passes the same contract."""

from pathlib import Path

from roost.adapters.blobs.local import LocalBlobs
from roost.testing.blobs import MemoryBlobs, check_blobs


async def test_on_disk(tmp_path: Path) -> None:
    await check_blobs(LocalBlobs(tmp_path / "blobs"))


async def test_in_memory() -> None:
    await check_blobs(MemoryBlobs())
