"""The body of a remote write, read back by a decoder written from the formats' descriptions."""

import struct

from hypothesis import given
from hypothesis import strategies as st

from roost.kit.exposition import Page, line
from roost.metrics.remote_write import body, samples, snappy


def varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7


def unsnappy(block: bytes) -> bytes:
    size, at = varint(block, 0)
    out = bytearray()
    while at < len(block):
        tag = block[at]
        at += 1
        assert tag & 3 == 0, "literals only"
        length = tag >> 2
        if length >= 60:
            wide = length - 59
            length = int.from_bytes(block[at : at + wide], "little")
            at += wide
        out += block[at : at + length + 1]
        at += length + 1
    assert len(out) == size
    return bytes(out)


def fields(data: bytes) -> list[tuple[int, bytes | int]]:
    found: list[tuple[int, bytes | int]] = []
    at = 0
    while at < len(data):
        key, at = varint(data, at)
        if key & 7 == 2:
            size, at = varint(data, at)
            found.append((key >> 3, data[at : at + size]))
            at += size
        elif key & 7 == 1:
            found.append((key >> 3, data[at : at + 8]))
            at += 8
        else:
            value, at = varint(data, at)
            found.append((key >> 3, value))
    return found


@given(st.binary(max_size=200_000))
def test_a_block_is_read_back(data: bytes) -> None:
    assert unsnappy(snappy(data)) == data


@given(st.text(max_size=30), st.floats(allow_nan=False, allow_infinity=False))
def test_every_sample_is_read_back(name: str, value: float) -> None:
    page = Page()
    page.family("roost_a_total", "counter", "A.", [line("roost_a_total", value, service=name)])
    page.family("roost_b", "gauge", "B.", [line("roost_b", 2)])
    shown = page.text()
    assert (("__name__", "roost_a_total"), ("service", name)) in [k for k, _ in samples(shown)]
    sent = fields(unsnappy(body(shown, 1700000000.25, (("cell", "x"),))))
    assert all(number == 1 for number, _ in sent)
    last = sent[-1][1]
    assert isinstance(last, bytes)
    parts = fields(last)
    labels = []
    for number, part in parts:
        assert isinstance(part, bytes)
        inner = fields(part)
        if number == 1:
            labels.append((inner[0][1], inner[1][1]))
        else:
            assert struct.unpack("<d", inner[0][1])[0] == 2.0  # type: ignore[arg-type]
            assert inner[1] == (2, 1700000000250)
    assert labels == [(b"__name__", b"roost_b"), (b"cell", b"x")]
    assert labels == sorted(labels)
