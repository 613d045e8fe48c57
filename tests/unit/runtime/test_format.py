"""The stored form: what is written is read back, and nothing bad is believed."""

import json
from pathlib import Path

import pytest

from roost.runtime.kernel.format import (
    Buffer,
    Entry,
    Extent,
    FormatError,
    Group,
    Manifest,
    Rebuild,
    chunk_digests,
    chunk_path,
    dumps,
    loads,
    manifest_numbers,
    manifest_path,
    variables,
)

A, B, C = ("a" * 64, "b" * 64, "c" * 64)
FULL = Manifest(
    number=3,
    python="3.11",
    machine="x86_64",
    groups=(
        Group(
            names=("a", "b"),
            fingerprint=A,
            extents=(Extent(A, 0, 3),),
            buffers=(Buffer((Extent(B, 0, 9), Extent(A, 3, 1)), 10, True),),
            seconds=0.25,
            notes=(Entry("a", "rebuilt", "its traceback stayed behind"),),
        ),
    ),
    modules={"np": "numpy"},
    namespaces=("g",),
    rebuilds=(Rebuild(("it",), "it = iter([])", "made again"),),
    state={"random": (Extent(C, 1, 2),)},
    cells=(Extent(C, 3, 4),),
    imports=("numpy",),
    finished=("1", "2"),
    report=(Entry("s", "refused", "it holds a socket", "connect again"),),
)


def test_written_is_read() -> None:
    assert loads(dumps(FULL)) == FULL
    assert dumps(loads(dumps(FULL))) == dumps(FULL)


def test_chunks_and_variables() -> None:
    assert chunk_digests(FULL) == (C, A, B)
    assert variables(FULL) == {
        "a": ("a", "b"),
        "b": ("a", "b"),
        "np": ("np",),
        "g": ("g",),
        "it": ("it",),
    }


@pytest.mark.parametrize(
    "content",
    [b"", b"[]", b"{}", b"\xff", b'{"format": "1"}', b'{"format": 1}'],
)
def test_no_manifest(content: bytes) -> None:
    with pytest.raises(FormatError):
        loads(content)


def test_a_newer_format_is_named() -> None:
    with pytest.raises(FormatError, match=r"format 2.*newer version"):
        loads(json.dumps({**json.loads(dumps(FULL)), "format": 2}).encode())


@pytest.mark.parametrize("chunk", ["../../etc/passwd", "A" * 64, "a" * 63, ""])
def test_a_path_is_no_digest(chunk: str) -> None:
    fields = json.loads(dumps(FULL))
    fields["cells"] = [[chunk, 0, 1]]
    with pytest.raises(FormatError):
        loads(json.dumps(fields).encode())
    with pytest.raises(FormatError):
        chunk_path(Path("/x"), chunk)


def test_manifests_are_found_in_order(tmp_path: Path) -> None:
    assert manifest_numbers(tmp_path / "none") == []
    for number in (10, 9, 2):
        manifest_path(tmp_path, number).write_bytes(b"{}")
    (tmp_path / "manifest-x.json").write_bytes(b"{}")
    assert manifest_numbers(tmp_path) == [2, 9, 10]
