"""Cookies the proxy itself reads and sets: the sticky backend and Roost's signed session.

A signed session is ``v1.<key id>.<expiry, Unix seconds>.<subject>.<HMAC-SHA256>``, so a worker checks it
with the key alone: the control plane may be down. Several keys may be valid at once (rotation); the first
one signs. Pure: never reads a clock or a file.
"""

import base64
import binascii
import hashlib
import hmac
import re
from collections.abc import Mapping
from dataclasses import dataclass

MEMO_ENTRIES = 4096
"""Cookie values whose meaning is remembered; forgotten all at once when there are more."""
LONGEST_COOKIE = 1024
"""A longer session value is not looked at."""

_TOKEN = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
_KEY_LINE = re.compile(r"([A-Za-z0-9_\-]{1,32}):([0-9A-Fa-f]{32,256})")
_SIGNED = re.compile(
    rb"(v1\.([A-Za-z0-9_\-]{1,32})\.([0-9]{1,12})\.([A-Za-z0-9_\-]*))\.([A-Za-z0-9_\-]{43})"
)


def is_name(name: str) -> bool:
    """Whether a cookie may be called that (RFC 6265: a token)."""
    return _TOKEN.fullmatch(name) is not None


def read(header: bytes, name: bytes) -> bytes | None:
    """The value of the first cookie called ``name`` in a Cookie field."""
    if name not in header:
        return None
    for part in header.split(b";"):
        key, equals, value = part.partition(b"=")
        if equals and key.strip() == name:
            return value.strip().strip(b'"')
    return None


def without(header: bytes, name: bytes) -> bytes:
    """A Cookie field without the cookies called ``name``."""
    parts = (part.strip() for part in header.split(b";"))
    return b"; ".join(part for part in parts if part and part.partition(b"=")[0].strip() != name)


# --- sticky --------------------------------------------------------------------------------------------


def backend_id(service: str, address: str) -> bytes:
    """What a sticky cookie calls a backend: the same in all workers, and not its address."""
    digest = hashlib.blake2b(address.encode(), key=service.encode()[:64], digest_size=9).digest()
    return base64.urlsafe_b64encode(digest)


def sticky_value(name: bytes, backend: bytes, *, secure: bool) -> bytes:
    """The Set-Cookie value that keeps a client on ``backend`` for its session."""
    tail = b"; Path=/; HttpOnly; SameSite=Lax"
    return name + b"=" + backend + tail + (b"; Secure" if secure else b"")


# --- signed sessions -----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Session:
    """A session whose signature was right."""

    subject: str
    expires_s: int
    """Unix time."""


def read_keys(text: str) -> dict[str, bytes]:
    """The keys of a key file: one ``<id>:<hex>`` a line, the signing one first. Raises ``ValueError``."""
    keys: dict[str, bytes] = {}
    for number, raw in enumerate(text.splitlines(), 1):
        line = raw.strip()
        if not line or line.startswith("#"):
            continue
        match = _KEY_LINE.fullmatch(line)
        if match is None or len(match[2]) % 2:
            raise ValueError(f"line {number} is not <id>:<hex of at least 16 bytes>")
        if match[1] in keys:
            raise ValueError(f"line {number}: the key id {match[1]!r} is there twice")
        keys[match[1]] = bytes.fromhex(match[2])
    if not keys:
        raise ValueError("it has no key")
    return keys


class SessionKeys:
    """Signs and checks the sessions of one cookie name."""

    def __init__(self, name: str, keys: Mapping[str, bytes]) -> None:
        if not keys:
            raise ValueError("a signed cookie needs a key")
        self.name = name.encode()
        self._keys = dict(keys)
        self._signing = next(iter(self._keys))
        self._known: dict[bytes, Session] = {}

    def sign(self, subject: str, expires_s: int) -> bytes:
        """A cookie value for ``subject`` that is good until ``expires_s`` (Unix time)."""
        encoded = base64.urlsafe_b64encode(subject.encode()).rstrip(b"=").decode()
        text = f"v1.{self._signing}.{expires_s}.{encoded}".encode()
        return text + b"." + self._mac(self._keys[self._signing], text)

    def check(self, value: bytes, unix_s: float) -> Session | None:
        """The session of a cookie value, None when it is forged, expired or of an unknown key."""
        session = self._known.get(value)
        if session is None:
            session = self._verified(value)
            if session is None:
                return None
            if len(self._known) >= MEMO_ENTRIES:
                self._known.clear()
            self._known[value] = session
        return session if unix_s < session.expires_s else None

    def _verified(self, value: bytes) -> Session | None:
        match = _SIGNED.fullmatch(value) if len(value) <= LONGEST_COOKIE else None
        if match is None:
            return None
        text, key_id, expires, subject, mac = match.groups()
        key = self._keys.get(key_id.decode())
        if key is None or not hmac.compare_digest(self._mac(key, text), mac):
            return None
        try:
            name = base64.urlsafe_b64decode(subject + b"=" * (-len(subject) % 4)).decode()
        except (binascii.Error, UnicodeDecodeError):
            return None
        return Session(name, int(expires))

    def _mac(self, key: bytes, text: bytes) -> bytes:
        # The cookie's name is signed too: a value of one cookie is none of another.
        digest = hmac.new(key, self.name + b"\0" + text, hashlib.sha256).digest()
        return base64.urlsafe_b64encode(digest).rstrip(b"=")
