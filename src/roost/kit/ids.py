"""Identifiers. The only place, with the clock adapter, where randomness enters the program.

Controllers take an ``Ids`` as argument; the simulator passes ``SeededIds`` so that a run repeats.
"""

import random
import secrets
from typing import Protocol

# Crockford's base 32 without look-alikes (no i, l, o, u): safe in URLs, paths and DNS labels.
ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"
ID_LENGTH = 10


class Ids(Protocol):
    """A source of identifiers and secrets."""

    def new(self, prefix: str) -> str:
        """Return a fresh id such as ``s-4k2m9x0p1q`` (50 random bits)."""

    def secret(self) -> str:
        """Return a fresh URL-safe secret of 256 bits."""


class SystemIds:
    """Identifiers from the operating system's random source."""

    def new(self, prefix: str) -> str:
        return f"{prefix}-" + "".join(secrets.choice(ALPHABET) for _ in range(ID_LENGTH))

    def secret(self) -> str:
        return secrets.token_urlsafe(32)


class SeededIds:
    """Repeatable identifiers for the simulator and tests."""

    def __init__(self, seed: int | str = 0) -> None:
        self._random = random.Random(seed)

    def new(self, prefix: str) -> str:
        return f"{prefix}-" + "".join(self._random.choice(ALPHABET) for _ in range(ID_LENGTH))

    def secret(self) -> str:
        return f"{self._random.getrandbits(256):064x}"
