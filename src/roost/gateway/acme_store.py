"""What is kept of an ACME account: its key, the certificates obtained, when to try again. Files only.

Every file is written whole under another name and then renamed, readable by its owner alone. A certificate
and its key are one file named after its serial number: a new one never overwrites the one in use.
"""

import contextlib
import os
import re
from dataclasses import dataclass
from pathlib import Path

import msgspec
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from roost.ports.errors import Invalid
from roost.proxy import policy

KEPT = 2
"""Certificates kept of each name: the one in use and the one before."""
_NAME = re.compile(r"(?!-)[a-z0-9-]{1,63}(?<!-)(\.(?!-)[a-z0-9-]{1,63}(?<!-))+")


class Attempt(msgspec.Struct):
    """What went wrong with a name, so that a restart does not ask again too soon."""

    failures: int
    not_before_s: float
    error: str = ""


class _Account(msgspec.Struct):
    directory: str
    uri: str


@dataclass(frozen=True)
class Held:
    """A certificate that is here."""

    path: Path
    not_before_s: float
    not_after_s: float

    def policy(self) -> policy.Certificate:
        """As listeners are told of it."""
        return policy.Certificate(certificate=str(self.path), key=str(self.path))


def check_name(name: str) -> str:
    """Raises ``Invalid`` for what http-01 cannot prove."""
    if name.startswith("*."):
        raise Invalid(
            f"acme: {name}: a wildcard cannot be proved over HTTP",
            hint="name each host, or give the certificate as files",
        )
    if _NAME.fullmatch(name) is None or len(name) > 253:
        raise Invalid(f"acme: {name!r} is not a host name in lower case")
    return name


def new_key() -> ec.EllipticCurvePrivateKey:
    """A private key of the kind all clients know."""
    return ec.generate_private_key(ec.SECP256R1())


def key_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    """PKCS#8, not encrypted: the file's mode protects it."""
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )


class Store:
    """The directory."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._certificates = directory / "certificates"

    def account_key(self) -> ec.EllipticCurvePrivateKey:
        """The account's key: made at the first call."""
        path = self._directory / "account.key"
        if not path.exists():
            _write(path, key_pem(new_key()))
        key = serialization.load_pem_private_key(path.read_bytes(), None)
        if not isinstance(key, ec.EllipticCurvePrivateKey):
            raise Invalid(f"{path} is not an elliptic curve key", hint="move it away")
        return key

    def account(self, directory: str) -> str | None:
        """The account's address at this ACME server."""
        try:
            found = msgspec.json.decode(self._account_file.read_bytes(), type=_Account)
        except (OSError, msgspec.MsgspecError):
            return None
        return found.uri if found.directory == directory else None

    def save_account(self, directory: str, uri: str) -> None:
        """Keep it."""
        _write(self._account_file, msgspec.json.encode(_Account(directory, uri)))

    def newest(self, name: str) -> Held | None:
        """The certificate of ``name`` that is valid longest."""
        held = self._all(name)
        return held[-1] if held else None

    def save(self, name: str, chain: bytes, key: bytes) -> Held:
        """Keep a new certificate. Raises ``Invalid`` where it is not one for this name and key."""
        leaf = x509.load_pem_x509_certificate(chain)
        private = serialization.load_pem_private_key(key, None)
        if leaf.public_key() != private.public_key() or name not in _names(leaf):
            raise Invalid(f"the ACME server's certificate is not for {name} and our key")
        path = self._certificates / f"{name}~{leaf.serial_number:x}.pem"
        _write(path, chain.rstrip(b"\n") + b"\n" + key)
        for old in self._all(name)[:-KEPT]:
            old.path.unlink(missing_ok=True)
        return Held(path, *_validity(leaf))

    def attempts(self) -> dict[str, Attempt]:
        """Names with which something went wrong."""
        try:
            return msgspec.json.decode(self._attempts_file.read_bytes(), type=dict[str, Attempt])
        except (OSError, msgspec.MsgspecError):
            return {}

    def save_attempts(self, attempts: dict[str, Attempt]) -> None:
        """Keep them."""
        _write(self._attempts_file, msgspec.json.encode(attempts))

    @property
    def _account_file(self) -> Path:
        return self._directory / "account.json"

    @property
    def _attempts_file(self) -> Path:
        return self._directory / "attempts.json"

    def _all(self, name: str) -> list[Held]:
        """Oldest end first; files that are no certificate are not ours."""
        held = []
        for path in self._certificates.glob(f"{name}~*.pem"):
            with contextlib.suppress(OSError, ValueError):
                leaf = x509.load_pem_x509_certificate(path.read_bytes())
                held.append(Held(path, *_validity(leaf)))
        return sorted(held, key=lambda one: (one.not_after_s, one.not_before_s))


def _validity(leaf: x509.Certificate) -> tuple[float, float]:
    return leaf.not_valid_before_utc.timestamp(), leaf.not_valid_after_utc.timestamp()


def _names(leaf: x509.Certificate) -> list[str]:
    names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    return names.get_values_for_type(x509.DNSName)


def _write(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path)
    except BaseException:
        draft.unlink(missing_ok=True)
        raise
