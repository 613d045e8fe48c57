"""Requests of HTTP/2 as the lines of HTTP/1.1 (RFC 9113 sections 8.2 and 8.3). Pure.

A request that is malformed by the RFC is refused here, before its bytes become lines: no value can end a
line. What a head means is still ``heads.py``'s reading of those lines, so both versions obey one law.
"""

import re
from collections.abc import Iterable

Pair = tuple[bytes, bytes]

_NAME = re.compile(rb"[!#$%&'*+\-.^_`|~0-9a-z]+")
_VALUE = re.compile(rb"(?:[\x21-\x7e\x80-\xff](?:[\t\x20-\x7e\x80-\xff]*[\x21-\x7e\x80-\xff])?)?")
_METHOD = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]{1,32}")
_TARGET = re.compile(rb"/[\x21-\x7e]*|\*")
_PSEUDO = frozenset((b":method", b":scheme", b":path", b":authority"))
# RFC 9113 section 8.2.2: these speak of an HTTP/1.1 connection.
_CONNECTION = frozenset(
    (b"connection", b"proxy-connection", b"keep-alive", b"transfer-encoding", b"upgrade")
)
_APART = frozenset((b"host", b"cookie"))
_ONCE = frozenset((b"host", b"content-length"))
# Requests whose methods expect content say so even when there is none (RFC 9110 section 8.6).
_WITH_CONTENT = frozenset((b"POST", b"PUT", b"PATCH"))
# Acting on these after the body is how requests are smuggled.
_NOT_IN_TRAILERS = _CONNECTION | {b"content-length", b"host", b"authorization", b"cookie", b"te"}


class Malformed(Exception):
    """The stream is to be reset with PROTOCOL_ERROR."""


def request_head(fields: Iterable[Pair], *, ended: bool) -> tuple[bytes, bytes, bool]:
    """The method, the HTTP/1.1 head, and whether the body is to be sent in chunks.

    ``ended``: no body follows. Raises ``Malformed``.
    """
    pseudo: dict[bytes, bytes] = {}
    lines: list[bytes] = []
    cookies: list[bytes] = []
    once: dict[bytes, bytes] = {}
    for name, value in fields:
        if name[:1] == b":":
            if lines or name in pseudo or name not in _PSEUDO:
                raise Malformed(f"the pseudo-field {name!r}")
            pseudo[name] = value
            continue
        _check(name, value)
        if name in once:
            raise Malformed(f"{name.decode()} is given more than once")
        if name in _ONCE:
            once[name] = value
        if name == b"cookie" and value:
            cookies.append(value)
        # An empty line stands for the others: no pseudo-field may follow them either.
        lines.append(b"" if name in _APART else name + b": " + value + b"\r\n")
    method, target, authority = _line(pseudo, once.get(b"host"))
    length = once.get(b"content-length")
    if length is not None and not length.isdigit():
        raise Malformed("content-length")
    chunked = not ended and length is None
    if chunked:
        lines.append(b"transfer-encoding: chunked\r\n")
    elif ended and length is None and method in _WITH_CONTENT:
        lines.append(b"content-length: 0\r\n")
    if cookies:
        lines.append(b"cookie: " + b"; ".join(cookies) + b"\r\n")
    start = method + b" " + target + b" HTTP/1.1\r\nhost: " + authority + b"\r\n"
    return method, start + b"".join(lines) + b"\r\n", chunked


def trailer_lines(fields: Iterable[Pair]) -> bytes:
    """A request's trailers as lines. Raises ``Malformed``."""
    lines = []
    for name, value in fields:
        if name[:1] == b":":
            raise Malformed("a pseudo-field in the trailers")
        _check(name, value)
        if name in _NOT_IN_TRAILERS:
            raise Malformed(f"{name.decode()} in the trailers")
        lines.append(name + b": " + value + b"\r\n")
    return b"".join(lines)


def _check(name: bytes, value: bytes) -> None:
    if _NAME.fullmatch(name) is None:
        raise Malformed(f"the field name {name!r}")
    if _VALUE.fullmatch(value) is None:
        raise Malformed(f"the value of {name.decode()}")
    if name in _CONNECTION or (name == b"te" and value.lower() != b"trailers"):
        raise Malformed(f"{name.decode()} in an HTTP/2 request")


def _line(pseudo: dict[bytes, bytes], host: bytes | None) -> tuple[bytes, bytes, bytes]:
    method, target = pseudo.get(b":method", b""), pseudo.get(b":path", b"")
    if _METHOD.fullmatch(method) is None:
        raise Malformed(":method")
    if pseudo.get(b":scheme") not in (b"http", b"https"):
        raise Malformed(":scheme")
    if _TARGET.fullmatch(target) is None or (target == b"*" and method != b"OPTIONS"):
        raise Malformed(":path")
    authority = pseudo.get(b":authority", host)
    if not authority or _VALUE.fullmatch(authority) is None:
        raise Malformed("no :authority and no host")
    if host is not None and host.lower() != authority.lower():
        raise Malformed(":authority and host differ")
    return method, target, authority
