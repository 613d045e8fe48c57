"""Contract of ``ports.blobs.Blobs``: run ``check_blobs`` on an empty store of your own. And a fake.

Never touches what an implementation keeps beside its port; damage and full disks are its own tests.
"""

import asyncio
from collections.abc import Sequence

from blake3 import blake3

from roost.ports.blobs import Blobs
from roost.ports.errors import Gone, Invalid


def digest_of(content: bytes) -> str:
    """The name of a blob."""
    return blake3(content).hexdigest()


class MemoryBlobs:
    """Blobs in memory, for tests and the simulator."""

    def __init__(self) -> None:
        self.contents: dict[str, bytes] = {}

    async def missing(self, digests: Sequence[str]) -> list[str]:
        """See ``Blobs``."""
        for digest in digests:
            _check(digest)
        return [digest for digest in digests if digest not in self.contents]

    async def put(self, digest: str, content: bytes) -> None:
        """See ``Blobs``."""
        _check(digest)
        if digest_of(content) != digest:
            raise Invalid(f"the content sent as {digest[:12]} has another digest")
        self.contents[digest] = bytes(content)

    async def get(self, digest: str) -> bytes:
        """See ``Blobs``."""
        _check(digest)
        try:
            return self.contents[digest]
        except KeyError as error:
            raise Gone(f"blob {digest[:12]} is not stored") from error

    async def delete(self, digests: Sequence[str]) -> None:
        """See ``Blobs``."""
        for digest in digests:
            _check(digest)
            self.contents.pop(digest, None)


def _check(digest: str) -> None:
    if len(digest) != 64 or not set(digest) <= set("0123456789abcdef"):
        raise Invalid(f"not a digest: {digest[:80]!r}")


async def check_blobs(blobs: Blobs) -> None:
    """Raises ``AssertionError`` where ``blobs`` (empty) breaks the contract."""
    one, two, empty, large = b"one", b"two", b"", bytes(range(256)) * (16 << 10)
    names = [digest_of(content) for content in (one, two, empty, large)]
    assert await blobs.missing(names) == names, "an empty store misses all, in the order asked"
    assert await blobs.missing([]) == []
    for name, content in zip(names, (one, two, empty, large), strict=True):
        await blobs.put(name, content)
        assert await blobs.get(name) == content
    assert await blobs.missing(names) == []
    await blobs.put(names[0], one)
    await asyncio.gather(*(blobs.put(names[3], large) for _ in range(4)))
    assert await blobs.get(names[3]) == large, "the same blob put at once stays whole"
    await _refusals(blobs, names[0])
    await blobs.delete([names[1], digest_of(b"never stored")])
    assert await blobs.missing(names) == [names[1]]
    await _expect(Gone, blobs.get(names[1]))
    await blobs.put(names[1], two)
    assert await blobs.get(names[1]) == two, "a deleted blob can be stored again"


async def _refusals(blobs: Blobs, stored: str) -> None:
    wrong = digest_of(b"something else")
    await _expect(Invalid, blobs.put(wrong, b"not that"))
    assert await blobs.missing([wrong]) == [wrong], "refused content leaves nothing"
    for name in (
        "",
        "../../etc/passwd",
        stored.upper(),
        stored[:-1],
        stored + "0",
        stored[:-1] + "\n",
    ):
        await _expect(Invalid, blobs.get(name))
        await _expect(Invalid, blobs.put(name, b"x"))
        await _expect(Invalid, blobs.missing([name]))


async def _expect(kind: type[Exception], call: object) -> None:
    try:
        await call  # type: ignore[misc]
    except kind:
        return
    raise AssertionError(f"{kind.__name__} expected")
