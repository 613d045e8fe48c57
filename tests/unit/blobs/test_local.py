"""Blobs on disk: durable, verified, whole or absent; a full disk is a Retry."""

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from roost.adapters.blobs import local
from roost.adapters.blobs.local import LocalBlobs
from roost.ports.errors import Never, Retry
from roost.testing.blobs import digest_of


async def test_blobs_survive_a_restart(tmp_path: Path) -> None:
    await LocalBlobs(tmp_path / "b").put(digest_of(b"x"), b"x")
    assert await LocalBlobs(tmp_path / "b").get(digest_of(b"x")) == b"x"


async def test_the_name_appears_only_after_the_bytes_are_synced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = digest_of(b"content")
    final = tmp_path / name[:2] / name
    synced: list[tuple[str, bool]] = []
    real = local._fsync

    def fsync(path: Path) -> None:
        synced.append((path.name, final.exists()))
        real(path)

    monkeypatch.setattr(local, "_fsync", fsync)
    await LocalBlobs(tmp_path).put(name, b"content")
    assert len(synced) == 2
    assert synced[0][0].startswith(name)
    assert synced[0][1] is False
    assert synced[1] == (name[:2], True)


async def test_damaged_content_is_never_given_and_can_be_healed(tmp_path: Path) -> None:
    blobs = LocalBlobs(tmp_path)
    name = digest_of(b"precious")
    await blobs.put(name, b"precious")
    (tmp_path / name[:2] / name).write_bytes(b"precioux")
    with pytest.raises(Never, match="damaged"):
        await blobs.get(name)
    assert await blobs.missing([name]) == [name]
    await blobs.put(name, b"precious")
    assert await blobs.get(name) == b"precious"
    assert (tmp_path / "damaged" / name).exists()


async def test_parts_of_a_dead_process_are_swept(tmp_path: Path) -> None:
    ended = subprocess.Popen(["true"])
    ended.wait()
    (tmp_path / "new").mkdir()
    dead = tmp_path / "new" / f"{'a' * 64}.{ended.pid}.0"
    alive = tmp_path / "new" / f"{'a' * 64}.{os.getppid()}.0"
    dead.write_bytes(b"half")
    alive.write_bytes(b"half")
    LocalBlobs(tmp_path)
    assert not dead.exists()
    assert alive.exists()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 1 MiB, where we may mount one."""
    folder = tmp_path / "small"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=1m", "none", str(folder)]
    if os.geteuid() != 0 or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("mounting a small file system is not permitted here")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


async def test_a_full_disk_is_a_retry_and_leaves_nothing(small_disk: Path) -> None:
    blobs = LocalBlobs(small_disk)
    large, small = os.urandom(2 << 20), b"still fits"
    with pytest.raises(Retry, match="disk is full") as caught:
        await blobs.put(digest_of(large), large)
    assert caught.value.hint
    assert caught.value.after_s >= 1
    assert await blobs.missing([digest_of(large)]) == [digest_of(large)]
    assert list((small_disk / "new").glob("*")) == []
    await blobs.put(digest_of(small), small)
    assert await blobs.get(digest_of(small)) == small


async def test_an_error_of_the_store_is_typed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(local, "_fsync", full)
    blobs = LocalBlobs(tmp_path)
    with pytest.raises(Retry, match="full"):
        await blobs.put(digest_of(b"x"), b"x")
    assert await blobs.missing([digest_of(b"x")]) == [digest_of(b"x")]
