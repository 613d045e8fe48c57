"""What the field lines of a head mean to the proxy, and which of them are passed on. Pure.

Lines repeat even where whole heads do not, so their meanings are remembered by their bytes.
"""

from typing import NamedTuple

from roost.proxy import framing
from roost.proxy.framing import FramingError

LEARNED = 2048
"""Most field lines and spellings of field names that are remembered."""
LINE = 256
"""Longer lines are read each time."""

# What a field is to the proxy.
PLAIN, DROP, OURS, CONNECTION, LENGTH, CODING, HOST, UPGRADE, EXPECT, REQUEST_ID, LOAD = range(11)
MEANINGS = {
    b"connection": CONNECTION,
    b"content-length": LENGTH,
    b"transfer-encoding": CODING,
    b"upgrade": UPGRADE,
    b"keep-alive": DROP,
    b"proxy-connection": DROP,
    b"proxy-authenticate": DROP,
    b"proxy-authorization": DROP,
    b"te": DROP,
    b"http2-settings": DROP,
}
# Set by this proxy: a client's own claim is dropped, unless the client is a trusted proxy.
FORWARDING = (
    b"x-forwarded-for",
    b"x-forwarded-proto",
    b"x-forwarded-host",
    b"x-forwarded-port",
    b"x-forwarded-prefix",
    b"x-real-ip",
    b"forwarded",
)
# Servers that map fields to CGI-style names read `content_length` as Content-Length.
_TWINS = frozenset((b"content-length", b"transfer-encoding", b"host", b"connection", *FORWARDING))
# A Connection field naming one of these must not make it disappear on the way. The options of its own
# name no field that is not dropped anyway.
_NOT_NOMINATED = frozenset(
    b"host content-length authorization cookie expect close keep-alive upgrade".split()
)


class Names:
    """What field lines mean, by their bytes: most lines of a head that differs were in others before."""

    __slots__ = ("_meanings", "_spellings", "lines")

    def __init__(self, meanings: dict[bytes, int]) -> None:
        self._meanings = meanings
        self._spellings: dict[bytes, int] = {}
        self.lines: dict[bytes, int] = {}
        """Meanings of well-formed lines met lately."""

    def learn(self, line: bytes) -> int:
        """The meaning of a line that is not in ``lines``; -1 when it is malformed."""
        if framing.FIELD_LINE.fullmatch(line) is None:
            return -1
        name = line[: line.index(b":")]
        meaning = self._spellings.get(name)
        if meaning is None:
            meaning = self._spell(name)
        if len(line) <= LINE:
            if len(self.lines) >= LEARNED:
                self.lines.clear()
            self.lines[line] = meaning
        return meaning

    def _spell(self, name: bytes) -> int:
        lower = name.lower()
        meaning = self._meanings.get(lower, PLAIN)
        if meaning == PLAIN and b"_" in lower and lower.replace(b"_", b"-") in _TWINS:
            meaning = DROP
        if len(name) <= 64 and len(self._spellings) < LEARNED:
            self._spellings[name] = meaning
        return meaning


def tokens(values: list[bytes]) -> list[bytes]:
    """The comma-separated members of ``values``, lower case."""
    members = b",".join(values).lower().split(b",")
    return [member.strip(b" \t") for member in members if member.strip(b" \t")]


def content_length(values: list[bytes]) -> int | None:
    """What the Content-Length fields say."""
    if not values:
        return None
    if len(values) > 1:
        raise FramingError(400, "Content-Length is given more than once", desync=True)
    if not values[0].isdigit() or len(values[0]) > 18:
        raise FramingError(400, "Content-Length is not a plain number", desync=True)
    return int(values[0])


def is_chunked(values: list[bytes], length: int | None) -> bool:
    """What the Transfer-Encoding fields say."""
    if not values:
        return False
    if length is not None:
        raise FramingError(400, "both Content-Length and Transfer-Encoding", desync=True)
    if len(values) > 1 or values[0].lower() != b"chunked":
        raise FramingError(400, "the only transfer coding served is chunked", desync=True)
    return True


class Options(NamedTuple):
    """Connection options."""

    close: bool
    keep_alive: bool
    upgrade: bool
    nominated: frozenset[bytes]
    """Fields that go no further because of it."""


_options: dict[bytes, Options] = {}


def options(values: list[bytes]) -> Options:
    """What Connection fields say, remembered by their bytes."""
    text = b",".join(values)
    known = _options.get(text)
    if known is None:
        members = frozenset(tokens([text]))
        known = Options(
            close=b"close" in members,
            keep_alive=b"keep-alive" in members,
            upgrade=b"upgrade" in members,
            nominated=members - _NOT_NOMINATED,
        )
        if len(text) <= LINE:
            if len(_options) >= LEARNED:
                _options.clear()
            _options[text] = known
    return known


class Special:
    """The fields of a block that mean something to the proxy, and the lines that are passed on."""

    __slots__ = ("kept", "values")

    def __init__(self, block: bytes, names: Names) -> None:
        lines = block[:-4].split(b"\r\n") if len(block) > 2 else []
        if len(lines) > framing.FIELD_LIMIT:
            raise FramingError(431, f"more than {framing.FIELD_LIMIT} fields")
        known = names.lines
        values: dict[int, list[bytes]] = {}
        self.values = values
        self.kept = block[:-2] if lines else b""
        dropped: list[bytes] = []
        for line in lines:
            meaning = known.get(line)
            if meaning is None:
                meaning = names.learn(line)
                if meaning < 0:
                    raise framing.bad_fields(block)
            if meaning:
                value = line.partition(b":")[2].strip(b" \t")
                if meaning in values:
                    values[meaning].append(value)
                else:
                    values[meaning] = [value]
                if meaning not in _PASSED:
                    dropped.append(line)
        if dropped:
            self._drop(lines, dropped)

    def _drop(self, lines: list[bytes], dropped: list[bytes]) -> None:
        nominated = self.options.nominated
        if nominated:
            kept = [
                line
                for line in lines
                if line not in dropped and line[: line.index(b":")].lower() not in nominated
            ]
        else:
            kept = [line for line in lines if line not in dropped]
        self.kept = b"\r\n".join(kept) + b"\r\n" if kept else b""

    @property
    def options(self) -> "Options":
        """What the Connection fields say."""
        return options(self.values.get(CONNECTION, []))


_PASSED = frozenset((PLAIN, LENGTH, HOST, EXPECT))
