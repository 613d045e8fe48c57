"""The page for Prometheus as a body of its remote-write protocol (version 1.0). Pure.

Two fields of protobuf and a block of snappy that only has literals: both formats are small and frozen,
and a body of some 100 KiB each quarter of a minute is not worth a compiled library. Sends nothing.
"""

import re
import struct
from collections.abc import Iterator

HEADERS = {
    "Content-Encoding": "snappy",
    "Content-Type": "application/x-protobuf",
    "X-Prometheus-Remote-Write-Version": "0.1.0",
}
LITERAL = 1 << 16
"""Longest literal whose length has two bytes."""

_SAMPLE = re.compile(r"([a-z_]+)(?:\{(.*)\})? (\S+)")
_LABEL = re.compile(r'([a-z_]+)="((?:[^"\\]|\\.)*)"')
_ESCAPED = re.compile(r"\\(.)")

Labels = tuple[tuple[str, str], ...]


def body(page: str, at_s: float, extra: Labels = ()) -> bytes:
    """What is posted: every sample of a page as of ``at_s`` (UTC seconds), with more labels."""
    at_ms = round(at_s * 1000)
    series = [_series(labels, value, at_ms) for labels, value in samples(page, extra)]
    return snappy(b"".join(_field(1, each) for each in series))


def samples(page: str, extra: Labels = ()) -> Iterator[tuple[Labels, float]]:
    """Labels (the name is one, sorted as the protocol wants them) and value of each sample."""
    for line in page.split("\n"):
        match = _SAMPLE.fullmatch(line)
        if match is None:
            continue  # help and type
        found = {name: _ESCAPED.sub(_plain, text) for name, text in _LABEL.findall(match[2] or "")}
        labels = {**dict(extra), **found, "__name__": match[1]}
        yield tuple(sorted(labels.items())), float(match[3])


def _plain(escaped: re.Match[str]) -> str:
    return "\n" if escaped[1] == "n" else escaped[1]


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _field(number: int, content: bytes) -> bytes:
    """A length-delimited field."""
    return bytes((number << 3 | 2,)) + _varint(len(content)) + content


def _series(labels: Labels, value: float, at_ms: int) -> bytes:
    out = b"".join(
        _field(1, _field(1, name.encode()) + _field(2, text.encode())) for name, text in labels
    )
    sample = b"\x09" + struct.pack("<d", value) + b"\x10" + _varint(at_ms)
    return out + _field(2, sample)


def snappy(data: bytes) -> bytes:
    """A snappy block without compression."""
    out = [_varint(len(data))]
    for at in range(0, len(data), LITERAL):
        part = data[at : at + LITERAL]
        out += [b"\xf4", struct.pack("<H", len(part) - 1), part]
    return b"".join(out)
