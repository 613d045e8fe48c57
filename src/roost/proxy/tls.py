"""TLS contexts: for listeners (certificates by name, reload, resumption) and towards backends.

A listener's ``ssl.SSLContext`` stays the same for as long as the listener lives and may be older than
the workers: it holds the keys of the session tickets, so that a client resumes its session in any
worker forked after it was made. The certificate comes from another context, chosen by name in each
handshake from the present table; a reload swaps the table between two handshakes. Never touches sockets.
"""

import datetime
import hashlib
import logging
import ssl
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from roost.ports.errors import Invalid
from roost.proxy import policy

log = logging.getLogger(__name__)

VERSIONS = {"1.2": ssl.TLSVersion.TLSv1_2, "1.3": ssl.TLSVersion.TLSv1_3}
SPARE_HOLDERS = 64
"""Ticket keys made ahead, for listeners that appear after the workers were forked."""
TICKETS = 2
"""Session tickets after a full TLS 1.3 handshake (a client may use each only once)."""
FALLBACK_NAME = "localhost"


# --- certificates ---------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Facts:
    """What is known about a certificate in use."""

    file: str
    names: tuple[str, ...]
    """Lower case; ``*.example.org`` stands for one label."""
    kind: str
    """Of the key: an RSA and an ECDSA certificate for the same names are offered together."""
    ends_s: float
    """Unix time at which it ends."""


def _read(path: str, what: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise Invalid(f"the {what} {path} cannot be read: {error.strerror}") from None


def _names(certificate: x509.Certificate) -> tuple[str, ...]:
    try:
        san = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        common = certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
        return tuple(str(name.value).lower() for name in common)
    return tuple(name.lower() for name in san.get_values_for_type(x509.DNSName))


def inspect(pair: policy.Certificate) -> Facts:
    """Read a certificate and its key. ``Invalid`` says what is wrong with which file."""
    chain = _read(pair.certificate, "certificate")
    try:
        leaf = x509.load_pem_x509_certificates(chain)[0]
        names = _names(leaf)
    except ValueError:
        raise Invalid(f"the certificate {pair.certificate} is no PEM certificate") from None
    try:
        key = serialization.load_pem_private_key(_read(pair.key, "key"), None)
    except TypeError:
        raise Invalid(
            f"the key {pair.key} is encrypted",
            hint="store it without a password: openssl pkey -in KEY -out NEW",
        ) from None
    except ValueError:
        raise Invalid(f"the key {pair.key} is no PEM private key") from None
    spki = (serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    if leaf.public_key().public_bytes(*spki) != key.public_key().public_bytes(*spki):
        raise Invalid(
            f"the key {pair.key} does not belong to the certificate {pair.certificate}",
            hint="in a chain the server's own certificate comes first",
        )
    ends_s = leaf.not_valid_after_utc.timestamp()
    return Facts(pair.certificate, names, type(leaf.public_key()).__name__, ends_s)


def _no_password() -> bytes:
    """Instead of OpenSSL's question on the terminal."""
    return b""


def _load(context: ssl.SSLContext, certificate: str, key: str) -> None:
    try:
        context.load_cert_chain(certificate, key, _no_password)
    except (ssl.SSLError, OSError) as error:
        raise Invalid(f"the certificate {certificate} with {key}: {reason(error)}") from None


def check(pair: policy.Certificate) -> Facts:
    """Read a pair and have OpenSSL accept it. Raises ``Invalid``."""
    facts = inspect(pair)
    _load(ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), pair.certificate, pair.key)
    return facts


def reason(error: BaseException) -> str:
    """A TLS or connection error in words."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"the certificate is not trusted: {error.verify_message}"
    if isinstance(error, ssl.SSLError):
        return (error.reason or str(error) or "TLS failed").replace("_", " ").lower()
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error) or type(error).__name__


def _self_signed(directory: Path) -> policy.Certificate:
    """Something to answer with until the first real certificate has arrived (ACME)."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, FALLBACK_NAME)])
    begin = datetime.datetime(2000, 1, 1, tzinfo=datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(begin)
        .not_valid_after(begin + datetime.timedelta(days=36500))
        .sign(key, hashes.SHA256())
    )
    pair = policy.Certificate(
        certificate=str(directory / "certificate.pem"), key=str(directory / "key.pem")
    )
    Path(pair.certificate).write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    Path(pair.key).write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    return pair


# --- listeners ------------------------------------------------------------------------------------


class Tickets:
    """Contexts holding the keys of session tickets. Make it before the workers are forked.

    Python cannot set a context's ticket keys, but a forked context keeps them. So each listener claims
    one made beforehand. Which one follows from its key, so that a worker forked later and one that has
    seen other listeners come and go claim the same (but for rare collisions: those cost resumption).
    """

    def __init__(self, spare: int = SPARE_HOLDERS) -> None:
        self._spare: list[ssl.SSLContext | None] = [
            ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER) for _ in range(spare)
        ]
        self._claimed: dict[str, ssl.SSLContext] = {}

    def claim(self, key: str) -> ssl.SSLContext:
        """The holder of ``key``, always the same."""
        if key not in self._claimed:
            self._claimed[key] = self._take(key)
        return self._claimed[key]

    def _take(self, key: str) -> ssl.SSLContext:
        spare = self._spare
        first = int.from_bytes(hashlib.sha256(key.encode()).digest()[:4], "big")
        for step in range(len(spare)):
            at = (first + step) % len(spare)
            holder = spare[at]
            if holder is not None:
                spare[at] = None
                return holder
        log.warning("no ticket keys left for %s: its sessions resume in one worker only", key)
        return ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)


@dataclass(frozen=True, slots=True)
class _Table:
    """Which context answers for which name. Never changed, only replaced."""

    default: ssl.SSLContext
    exact: dict[str, ssl.SSLContext]
    wildcard: dict[str, ssl.SSLContext]
    """By what follows the first label."""
    facts: tuple[Facts, ...]

    def find(self, name: str | None) -> ssl.SSLContext:
        if not name:
            return self.default
        name = name.lower().rstrip(".")
        found = self.exact.get(name)
        if found is None:
            found = self.wildcard.get(name.partition(".")[2], self.default)
        return found


def _tune(context: ssl.SSLContext, tls: policy.Tls, alpn: Sequence[str]) -> None:
    """What a handshake takes from either context: the holder's when it begins, the table's later."""
    context.minimum_version = VERSIONS[tls.minimum]
    context.options |= ssl.OP_NO_RENEGOTIATION | ssl.OP_NO_COMPRESSION
    context.num_tickets = TICKETS
    if alpn:
        context.set_alpn_protocols(list(alpn))
    if tls.client_ca is not None:
        context.verify_mode = ssl.CERT_REQUIRED
        try:
            context.load_verify_locations(tls.client_ca)
        except (ssl.SSLError, OSError) as error:
            raise Invalid(f"the client CA {tls.client_ca}: {reason(error)}") from None


def _table(tls: policy.Tls, obtained: Sequence[policy.Certificate], alpn: Sequence[str]) -> _Table:
    pairs = (*tls.certificates, *obtained)
    if not pairs:
        with tempfile.TemporaryDirectory() as directory:
            fallback = (_self_signed(Path(directory)),)
            return _fill(tls, fallback, alpn)
    return _fill(tls, pairs, alpn)


def _fill(tls: policy.Tls, pairs: Sequence[policy.Certificate], alpn: Sequence[str]) -> _Table:
    facts = tuple(inspect(pair) for pair in pairs)
    together: dict[frozenset[str], tuple[ssl.SSLContext, set[str]]] = {}
    exact: dict[str, ssl.SSLContext] = {}
    wildcard: dict[str, ssl.SSLContext] = {}
    default: ssl.SSLContext | None = None
    for pair, fact in zip(pairs, facts, strict=True):
        context, kinds = together.get(frozenset(fact.names), (None, {fact.kind}))
        if context is None or fact.kind in kinds:
            context, kinds = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), set()
            _tune(context, tls, alpn)
            together[frozenset(fact.names)] = (context, kinds)
        kinds.add(fact.kind)
        _load(context, pair.certificate, pair.key)
        default = default or context
        for name in fact.names:
            if name.startswith("*."):
                wildcard.setdefault(name[2:], context)
            else:
                exact.setdefault(name, context)
    assert default is not None
    return _Table(default, exact, wildcard, facts)


class ServerTls:
    """TLS of one listener: give ``context`` to the server, call ``updated`` when files changed.

    ``obtained`` are certificates beyond the file's (ACME). With none at all a self-signed one answers.
    Names nobody has a certificate for get the first one. Raises ``Invalid`` with the file at fault.
    """

    def __init__(
        self,
        listener: str,
        tls: policy.Tls,
        tickets: Tickets,
        *,
        alpn: Sequence[str] = ("http/1.1",),
        obtained: Sequence[policy.Certificate] = (),
    ) -> None:
        self._listener = listener
        self._tickets = tickets
        self._use(tls, _table(tls, obtained, alpn), alpn)
        self.context = tickets.claim(self._key(tls))
        self._configure()

    def _use(self, tls: policy.Tls, table: _Table, alpn: Sequence[str]) -> None:
        self._tls, self._alpn = tls, alpn
        self._trust = self._key(tls)
        self._table = table

    def _key(self, tls: policy.Tls) -> str:
        """Who is trusted is part of it: a session of another trust must not be resumed."""
        trust = b"" if tls.client_ca is None else _read(tls.client_ca, "client CA")
        return f"{self._listener} {hashlib.sha256(trust).hexdigest()[:16] if trust else ''}"

    def _configure(self) -> None:
        _tune(self.context, self._tls, self._alpn)
        self.context.sni_callback = self._choose

    def _choose(
        self, connection: ssl.SSLObject | ssl.SSLSocket, name: str | None, _: ssl.SSLContext
    ) -> None:
        connection.context = self._table.find(name)

    @property
    def facts(self) -> tuple[Facts, ...]:
        """The certificates in use."""
        return self._table.facts

    def updated(
        self,
        tls: policy.Tls,
        *,
        alpn: Sequence[str] = ("http/1.1",),
        obtained: Sequence[policy.Certificate] = (),
    ) -> "ServerTls":
        """Read the files again. From the next handshake on they hold; if one is broken, ``Invalid`` is
        raised and nothing changed. The result is this object, unless the client CA changed: then it
        is another one, and the listener has to listen with its ``context``."""
        table = _table(tls, obtained, alpn)
        if self._key(tls) != self._trust:
            return ServerTls(self._listener, tls, self._tickets, alpn=alpn, obtained=obtained)
        self._use(tls, table, alpn)
        self._configure()
        return self


def alpn_of(listener: policy.Listener) -> tuple[str, ...]:
    """What a listener offers to speak inside TLS."""
    if listener.protocol == "tcp":
        return ()
    return ("h2", "http/1.1") if listener.http2 else ("http/1.1",)


# --- backends -------------------------------------------------------------------------------------


def origin_context(origin: policy.TlsOrigin) -> ssl.SSLContext:
    """The context of connections to the backends of a service. Raises ``Invalid``."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    if origin.alpn:
        context.set_alpn_protocols(list(origin.alpn))
    if not origin.verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    elif origin.ca is None:
        context.load_default_certs(ssl.Purpose.SERVER_AUTH)
    else:
        try:
            context.load_verify_locations(origin.ca)
        except (ssl.SSLError, OSError) as error:
            raise Invalid(f"the CA {origin.ca}: {reason(error)}") from None
    if (origin.certificate is None) != (origin.key is None):
        raise Invalid("a certificate for the backends needs its key, and a key its certificate")
    if origin.certificate is not None and origin.key is not None:
        inspect(policy.Certificate(certificate=origin.certificate, key=origin.key))
        _load(context, origin.certificate, origin.key)
    return context


def origin_name(origin: policy.TlsOrigin, host: str) -> str:
    """The name the backend's certificate is checked for (``server_hostname``)."""
    return origin.server_name or host or FALLBACK_NAME
