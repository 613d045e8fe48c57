"""Basic, bearer and signed-cookie credentials, checked in the worker. Comparisons take constant time.

A slow hash (scrypt) is computed in a thread, at most two at once, and remembered by the hash of the
credentials; no password or token is kept.
"""

import asyncio
import base64
import binascii
import hashlib
import hmac
from collections.abc import Callable
from pathlib import Path
from urllib.parse import quote

from roost.proxy import cookies, policy
from roost.proxy.answers import Answer
from roost.proxy.heads import Request
from roost.proxy.plan import Pairs

REMEMBERED = 4096
"""Credentials whose check is remembered, right ones and wrong ones each."""
HASHING = 2
"""Slow hashes computed at once in one worker (16 MiB and some 50 ms each) ..."""
HASHES_WAITING = 64
"""... and waiting for that; beyond, 503."""
LONGEST = 4096
"""Longer credentials are refused unseen."""
SCRYPT_N, SCRYPT_R, SCRYPT_P = 2**14, 8, 1

_DUMMY = b"\0" * 32


class PasswordHash:
    """``sha256:<hex>`` or ``scrypt:<salt hex>:<hash hex>``. Raises ``ValueError``."""

    __slots__ = ("_salt", "_wanted", "slow")

    def __init__(self, text: str) -> None:
        kind, _, rest = text.partition(":")
        salt, colon, wanted = rest.rpartition(":")
        try:
            self._salt, self._wanted = bytes.fromhex(salt), bytes.fromhex(wanted)
        except ValueError:
            raise ValueError("the password hash is not in hex") from None
        self.slow = kind == "scrypt"
        if kind == "sha256" and not colon and len(self._wanted) == 32:
            return
        if kind == "scrypt" and self._salt and 16 <= len(self._wanted) <= 64:
            return
        raise ValueError("a password is sha256:<64 hex digits> or scrypt:<salt hex>:<hash hex>")

    def matches(self, password: bytes) -> bool:
        """Whether it is the password (slow for scrypt)."""
        if self.slow:
            found = hash_scrypt(password, self._salt, len(self._wanted))
        else:
            found = hashlib.sha256(password).digest()
        return hmac.compare_digest(found, self._wanted)


def hash_scrypt(password: bytes, salt: bytes, size: int = 32) -> bytes:
    """The hash of a ``scrypt:`` password (n = 16384, r = 8, p = 1)."""
    return hashlib.scrypt(password, salt=salt, n=SCRYPT_N, r=SCRYPT_R, p=SCRYPT_P, dklen=size)


class BasicUsers:
    """The users of one route (RFC 7617)."""

    def __init__(self, auth: policy.BasicAuth) -> None:
        self._users = {name.encode(): PasswordHash(text) for name, text in auth.users.items()}
        self.slow = any(each.slow for each in self._users.values())
        """Some checks take a thread: see ``check_later``."""
        # A name nobody has costs what a wrong password costs.
        self._nobody = PasswordHash(
            f"scrypt:00:{_DUMMY.hex()}" if self.slow else f"sha256:{_DUMMY.hex()}"
        )
        self._right: set[bytes] = set()
        self._wrong: set[bytes] = set()
        self._hashing = asyncio.Semaphore(HASHING)
        self._waiting = 0
        realm = auth.realm.replace("\\", "").replace('"', "")
        challenge = (("WWW-Authenticate", f'Basic realm="{realm}", charset="UTF-8"'),)
        self._refusal = Answer(401, "a name and its password are needed", fields=challenge)

    def check(self, request: Request) -> Answer | None:
        """Refuse what is known to be wrong at once; a slow check that is still to be made is not."""
        given = request.fields.get(b"authorization")
        found = _basic(given)
        if given is None or found is None:
            return self._refusal
        if self.slow:
            key = _digest(given)
            if key in self._right:
                return None
            if key in self._wrong:
                return self._refusal
        name, password = found
        user = self._users.get(name, self._nobody)
        if user.slow:
            return None
        known = user.matches(password) and user is not self._nobody
        return None if known else self._refusal

    def check_known(self, request: Request) -> Answer | None:
        """``check`` for requests that were ``known``, where nobody checks later."""
        refusal = self.check(request)
        if refusal is None and not self.known(request):
            return Answer(503, "it must be checked again", retry_after_s=1)
        return refusal

    def known(self, request: Request) -> bool:
        """Whether ``check`` alone decides: ``check_later`` need not be asked."""
        given = request.fields.get(b"authorization")
        found = _basic(given)
        if given is None or found is None:
            return True
        key = _digest(given)
        user = self._users.get(found[0], self._nobody)
        return not user.slow or key in self._right or key in self._wrong

    async def check_later(self, request: Request) -> Answer | Pairs:
        """The whole check (see ``plan.AdmitLater``)."""
        given = request.fields.get(b"authorization")
        found = _basic(given)
        if given is None or found is None:
            return self._refusal
        key = _digest(given)
        if key not in self._right and key not in self._wrong:
            if self._waiting >= HASHES_WAITING:
                return Answer(503, "too many passwords are being checked", retry_after_s=1)
            self._waiting += 1
            try:
                async with self._hashing:
                    await self._hash(key, *found)
            finally:
                self._waiting -= 1
        return () if key in self._right else self._refusal

    async def _hash(self, key: bytes, name: bytes, password: bytes) -> None:
        if key in self._right or key in self._wrong:
            return  # another request of the same client was first
        user = self._users.get(name, self._nobody)
        loop = asyncio.get_running_loop()
        good = await loop.run_in_executor(None, user.matches, password)
        kept = self._right if good and user is not self._nobody else self._wrong
        if len(kept) >= REMEMBERED:
            kept.clear()
        kept.add(key)


def _basic(given: bytes | None) -> tuple[bytes, bytes] | None:
    """Name and password of an Authorization field."""
    if given is None or len(given) > LONGEST:
        return None
    scheme, _, encoded = given.partition(b" ")
    if scheme.lower() != b"basic":
        return None
    try:
        name, colon, password = base64.b64decode(encoded.strip(), validate=True).partition(b":")
    except (binascii.Error, ValueError):
        return None
    return (name, password) if colon else None


def _digest(text: bytes) -> bytes:
    return hashlib.sha256(text).digest()


class Tokens:
    """The bearer tokens of one route (RFC 6750)."""

    def __init__(self, auth: policy.BearerAuth) -> None:
        """Raises ``ValueError`` for a digest that is none."""
        self._digests = tuple(bytes.fromhex(text) for text in auth.sha256)
        if any(len(digest) != 32 for digest in self._digests):
            raise ValueError("a token is given by the 64 hex digits of its SHA-256")
        challenge = (("WWW-Authenticate", "Bearer"),)
        self._refusal = Answer(401, "a valid bearer token is needed", fields=challenge)

    def check(self, request: Request) -> Answer | None:
        """See ``plan.Admit``."""
        given = request.fields.get(b"authorization") or b""
        scheme, _, token = given.partition(b" ")
        if scheme.lower() != b"bearer" or len(token) > LONGEST:
            return self._refusal
        digest = _digest(token.strip())
        # All are compared: how long it takes says nothing about which one it was.
        found = any([hmac.compare_digest(digest, each) for each in self._digests])
        return None if found else self._refusal


class Sessions:
    """Roost's signed cookie on one route."""

    def __init__(self, auth: policy.CookieAuth, unix_s: Callable[[], float]) -> None:
        """Reads the key file. Raises ``OSError`` and ``ValueError``."""
        text = Path(auth.key_file).read_text(encoding="ascii")
        self._keys = cookies.SessionKeys(auth.cookie, cookies.read_keys(text))
        self._login = auth.login
        self._unix_s = unix_s

    def check(self, request: Request) -> Answer | None:
        """See ``plan.Admit``."""
        header = request.fields.get(b"cookie")
        if header:
            value = cookies.read(header, self._keys.name)
            if value and self._keys.check(value, self._unix_s()) is not None:
                return None
        if self._login is None or not _is_browsing(request):
            return Answer(401, "a session is needed: log in first")
        # The path alone: where a login leads is never another host.
        target = "/" + request.target.decode("latin-1").lstrip("/\\")
        mark = "&" if "?" in self._login else "?"
        location = f"{self._login}{mark}next={quote(target, safe='/')}"
        return Answer(302, fields=(("Location", location),), body=b"", content_type="text/plain")


def _is_browsing(request: Request) -> bool:
    accept = request.fields.get(b"accept") or b""
    return request.method in (b"GET", b"HEAD") and b"text/html" in accept and not request.upgrade
