"""The cell's own certificate authority, and the TLS contexts of both ends.

A join ticket is ``secret`` or ``secret~ca``: the agent trusts exactly that authority, never the
system's. After joining, an agent holds a client certificate for the key it joined with. Nothing here
decides who may join; that is the join book's.
"""

import base64
import datetime
import ipaddress
import ssl
from collections.abc import Sequence
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from roost.adapters.link.identity import write_private
from roost.ports.clock import Clock
from roost.ports.errors import Invalid

AUTHORITY_DAYS = 3650
LEAF_DAYS = 365
SEPARATOR = "~"


def pack_ticket(secret: str, authority_pem: bytes = b"") -> str:
    """What a host is given to join with."""
    if not authority_pem:
        return secret
    der = ssl.PEM_cert_to_DER_cert(authority_pem.decode())
    return secret + SEPARATOR + base64.urlsafe_b64encode(der).decode().rstrip("=")


def unpack_ticket(ticket: str) -> tuple[str, bytes]:
    """The join token and the authority's PEM (empty = no TLS). ``Invalid`` when it is damaged."""
    secret, separator, packed = ticket.partition(SEPARATOR)
    if not separator:
        return secret, b""
    try:
        der = base64.urlsafe_b64decode(packed + "=" * (-len(packed) % 4))
        certificate = x509.load_der_x509_certificate(der)
    except ValueError as error:
        raise Invalid("the join ticket is damaged", hint="copy it again as a whole") from error
    return secret, certificate.public_bytes(serialization.Encoding.PEM)


class Authority:
    """Certificate authority in ``<folder>/ca.key`` (0600) and ``ca.pem``, made at first use."""

    def __init__(self, folder: Path, clock: Clock) -> None:
        self._folder = folder
        self._clock = clock
        self._key, self._certificate = self._load_or_make()

    @property
    def pem(self) -> bytes:
        """The authority's certificate, to be trusted by agents."""
        return self._certificate.public_bytes(serialization.Encoding.PEM)

    def server_context(self, hosts: Sequence[str], *, require_client: bool) -> ssl.SSLContext:
        """Context of a listener reached as ``hosts`` (names or addresses).

        ``require_client`` refuses peers without a certificate of this authority (data listeners); the
        control listener asks for one but must also hear those who only join now.
        """
        key = ec.generate_private_key(ec.SECP256R1())
        names: list[x509.GeneralName] = [_general_name(host) for host in hosts]
        certificate = self._sign(
            hosts[0],
            key.public_key(),
            [
                (x509.SubjectAlternativeName(names), False),
                (x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), False),
            ],
        )
        path = self._folder / f"server-{hosts[0].replace(':', '_')}.pem"
        write_private(path, _key_pem(key) + certificate)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        context.load_cert_chain(path)
        context.load_verify_locations(cadata=self.pem.decode())
        context.verify_mode = ssl.CERT_REQUIRED if require_client else ssl.CERT_OPTIONAL
        return context

    def client_certificate(self, host_id: str, public_key: bytes) -> bytes:
        """PEM for the holder of the Ed25519 ``public_key``; its common name is the host id."""
        return self._sign(
            host_id,
            Ed25519PublicKey.from_public_bytes(public_key),
            [(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH]), False)],
        )

    def _load_or_make(self) -> tuple[ec.EllipticCurvePrivateKey, x509.Certificate]:
        key_path, certificate_path = self._folder / "ca.key", self._folder / "ca.pem"
        if key_path.exists() and certificate_path.exists():
            key = serialization.load_pem_private_key(key_path.read_bytes(), password=None)
            if not isinstance(key, ec.EllipticCurvePrivateKey):
                raise Invalid(f"{key_path} is not a key of this authority", hint="remove it")
            return key, x509.load_pem_x509_certificate(certificate_path.read_bytes())
        key = ec.generate_private_key(ec.SECP256R1())
        name = _name("Roost cell")
        now = self._now()
        certificate = (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(hours=1))
            .not_valid_after(now + datetime.timedelta(days=AUTHORITY_DAYS))
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), False)
            .sign(key, hashes.SHA256())
        )
        write_private(key_path, _key_pem(key))
        write_private(certificate_path, certificate.public_bytes(serialization.Encoding.PEM))
        return key, certificate

    def _sign(
        self,
        name: str,
        public_key: ec.EllipticCurvePublicKey | Ed25519PublicKey,
        extensions: list[tuple[x509.ExtensionType, bool]],
    ) -> bytes:
        now = self._now()
        builder = (
            x509.CertificateBuilder()
            .subject_name(_name(name))
            .issuer_name(self._certificate.subject)
            .public_key(public_key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(hours=1))
            .not_valid_after(now + datetime.timedelta(days=LEAF_DAYS))
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key()), False
            )
        )
        for extension, critical in extensions:
            builder = builder.add_extension(extension, critical)
        return builder.sign(self._key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)

    def _now(self) -> datetime.datetime:
        return datetime.datetime.fromtimestamp(self._clock.now_s(), datetime.UTC)


def client_context(
    authority_pem: bytes, *, certificate: Path | None = None, key: Path | None = None
) -> ssl.SSLContext:
    """Context of an agent: trusts this authority only, shows its certificate once it has one."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.load_verify_locations(cadata=authority_pem.decode())
    if certificate is not None and certificate.exists():
        context.load_cert_chain(certificate, key)
    return context


def peer_host(tls: ssl.SSLObject | None) -> str | None:
    """The host id in the certificate the peer showed, or None when it showed none."""
    if tls is None or not (der := tls.getpeercert(binary_form=True)):
        return None
    names = x509.load_der_x509_certificate(der).subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    return str(names[0].value) if names else ""


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


def _general_name(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def _key_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
