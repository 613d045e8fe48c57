"""Open a raw byte stream to a session or a host through the edge (HTTP upgrade ``roost-stream``).

Never retries and never interprets the bytes: callers own their protocol and their back-off.
"""

import asyncio
import ssl
from urllib.parse import urlsplit

from roost.ports.errors import Denied, Gone, Never, Retry, RoostError

HEAD_LIMIT = 16 << 10
"""Longest answer head accepted, in bytes."""
REASON_LIMIT = 2000
Stream = tuple[asyncio.StreamReader, asyncio.StreamWriter]


async def open_stream(
    url: str, path: str, token: str, *, timeout_s: float = 75.0, connect_timeout_s: float = 10.0
) -> Stream:
    """Connect to the edge at ``url`` and upgrade ``path``; returns reader and writer of the raw stream.

    ``timeout_s`` covers the wait while the route is on hold. Raises ``Denied`` (401, 403), ``Gone``
    (404), ``Retry`` (the edge cannot be reached, 5xx, time-out) or ``Never`` (not an edge).
    """
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise Never(f"not an address of an edge: {url!r}", hint="expected http://host:port")
    tls = ssl.create_default_context() if parts.scheme == "https" else None
    port = parts.port or (443 if tls else 80)
    try:
        async with asyncio.timeout(connect_timeout_s):
            reader, writer = await asyncio.open_connection(
                parts.hostname, port, ssl=tls, limit=1 << 20
            )
    except (OSError, TimeoutError) as error:
        raise Retry(f"the edge at {url} cannot be reached: {error}", after_s=0.5) from error
    try:
        async with asyncio.timeout(timeout_s):
            writer.write(_head(parts.netloc, parts.path.rstrip("/") + path, token))
            await writer.drain()
            await _accepted(reader, path)
    except (OSError, EOFError, TimeoutError, asyncio.LimitOverrunError) as error:
        writer.close()
        raise Retry(f"the edge did not open {path}: {error or 'time-out'}", after_s=0.5) from error
    except BaseException:
        writer.close()
        raise
    return reader, writer


def _head(host: str, path: str, token: str) -> bytes:
    lines = (
        f"GET {path} HTTP/1.1",
        f"Host: {host}",
        "Connection: Upgrade",
        "Upgrade: roost-stream",
        f"Authorization: Bearer {token}",
    )
    if any("\r" in line or "\n" in line for line in lines):
        raise Never("a line break in the path or the token")
    return ("\r\n".join(lines) + "\r\n\r\n").encode()


async def _accepted(reader: asyncio.StreamReader, path: str) -> None:
    """Read the answer's head; anything but 101 becomes the typed error it means."""
    head = await reader.readuntil(b"\r\n\r\n")
    if len(head) > HEAD_LIMIT:
        raise Never(f"the answer to {path} has a head of {len(head)} bytes")
    first, *lines = head.decode("latin-1").split("\r\n")
    words = first.split(" ", 2)
    if len(words) < 2 or not words[0].startswith("HTTP/1.") or not words[1].isdigit():
        raise Never(f"the answer to {path} is not HTTP: {first[:80]!r}")
    status = int(words[1])
    if status == 101:
        return
    headers = {
        name.strip().lower(): value.strip()
        for name, _, value in (line.partition(":") for line in lines)
    }
    raise _error(status, headers, await _reason(reader, headers), path)


async def _reason(reader: asyncio.StreamReader, headers: dict[str, str]) -> str:
    length = headers.get("content-length", "0")
    size = min(int(length), REASON_LIMIT) if length.isdigit() else 0
    return (await reader.readexactly(size)).decode("utf-8", "replace").strip()


def _error(status: int, headers: dict[str, str], reason: str, path: str) -> RoostError:
    what = f"{path}: HTTP {status}" + (f", {reason}" if reason else "")
    if status in (401, 403):
        return Denied(what, hint="check the token (`roost env` prints the owner's)")
    if status in (404, 410):
        return Gone(what)
    if status == 429 or status >= 500:
        wait = headers.get("retry-after", "")
        return Retry(what, after_s=float(wait) if wait.isdigit() else 0.5)
    return Never(what)
