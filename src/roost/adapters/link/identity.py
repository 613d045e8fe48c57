"""An agent's own key pair, kept on its host. The private key never leaves the file's machine."""

import os
from pathlib import Path

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

KEY_FILE = "agent.key"
CERTIFICATE_FILE = "agent.pem"


class Identity:
    """Ed25519 key of one host; the same after a restart of its agent."""

    def __init__(self, folder: Path, key: Ed25519PrivateKey) -> None:
        self._folder = folder
        self._key = key

    @classmethod
    def load(cls, folder: Path) -> "Identity":
        """The key in ``folder`` (0600), made at first use."""
        path = folder / KEY_FILE
        if path.exists():
            key = serialization.load_pem_private_key(path.read_bytes(), password=None)
            if not isinstance(key, Ed25519PrivateKey):
                raise ValueError(f"{path} is not an Ed25519 key")
            return cls(folder, key)
        key = Ed25519PrivateKey.generate()
        pem = key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
        write_private(path, pem)
        return cls(folder, key)

    @property
    def public_key(self) -> bytes:
        """Raw 32 bytes."""
        return self._key.public_key().public_bytes_raw()

    @property
    def key_path(self) -> Path:
        """PEM of the private key."""
        return self._folder / KEY_FILE

    @property
    def certificate_path(self) -> Path:
        """PEM of the certificate the cell gave this host (there only after joining over TLS)."""
        return self._folder / CERTIFICATE_FILE

    def sign(self, nonce: bytes, host_id: str) -> bytes:
        """The answer to a Challenge."""
        return self._key.sign(nonce + host_id.encode())


def signed(public_key: bytes, signature: bytes, nonce: bytes, host_id: str) -> bool:
    """Whether the holder of ``public_key`` answered this nonce for this host."""
    try:
        Ed25519PublicKey.from_public_bytes(public_key).verify(signature, nonce + host_id.encode())
    except (InvalidSignature, ValueError):
        return False
    return True


def write_private(path: Path, content: bytes) -> None:
    """Write atomically with mode 0600."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    part.unlink(missing_ok=True)
    fd = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(fd, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    part.replace(path)
