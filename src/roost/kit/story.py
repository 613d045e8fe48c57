"""The digest of a story: equal digests mean that two runs made the same decisions in the same order."""

import hashlib
from collections.abc import Iterable


def story_digest(lines: Iterable[tuple[str, str, str]]) -> str:
    """Hash (object id, event, reason) triples in order. Hex, 32 characters."""
    digest = hashlib.blake2b(digest_size=16)
    for line in lines:
        for part in line:
            digest.update(part.encode())
            digest.update(b"\x1f")
        digest.update(b"\x1e")
    return digest.hexdigest()
