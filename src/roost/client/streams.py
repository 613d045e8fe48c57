"""Open a raw byte stream to a session's host through the edge (``Upgrade: roost-stream``).

It speaks the few lines of HTTP of the upgrade and hands the connection over. It never retries: the
caller decides by the error's type.
"""

import asyncio
from contextlib import suppress
from urllib.parse import urlsplit

from roost.ports.errors import Denied, Gone, Retry, RoostError

Stream = tuple[asyncio.StreamReader, asyncio.StreamWriter]

OPEN_TIMEOUT_S = 120.0
"""Longer than an edge holds a route, so that the edge's own answer is the one that is seen."""


async def open_stream(
    base_url: str, path: str, token: str, *, timeout_s: float = OPEN_TIMEOUT_S
) -> Stream:
    """Connect to ``path`` (such as ``/_roost/files/<session>``) of the edge at ``base_url``.

    Raises ``Denied`` (401, 403), ``Gone`` (404), else ``Retry``: also when nobody listens.
    """
    url = urlsplit(base_url)
    secure = url.scheme == "https"
    port = url.port or (443 if secure else 80)
    writer: asyncio.StreamWriter | None = None
    try:
        async with asyncio.timeout(timeout_s):
            reader, writer = await asyncio.open_connection(
                url.hostname, port, ssl=True if secure else None
            )
            writer.write(
                f"GET {path} HTTP/1.1\r\nHost: {url.netloc}\r\nConnection: Upgrade\r\n"
                f"Upgrade: roost-stream\r\nAuthorization: Bearer {token}\r\n\r\n".encode()
            )
            await writer.drain()
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
    except (OSError, TimeoutError, asyncio.IncompleteReadError, asyncio.LimitOverrunError) as error:
        await _close(writer)
        raise Retry(f"the edge at {base_url} did not answer: {error}") from error
    except BaseException:
        if writer is not None:
            writer.close()
        raise
    status = _status(head)
    if status == 101:
        return reader, writer
    await _close(writer)
    raise _refusal(status, path)


def _status(head: str) -> int:
    words = head.split(" ", 2)
    return int(words[1]) if len(words) > 1 and words[1].isdigit() else 0


def _refusal(status: int, path: str) -> RoostError:
    if status in (401, 403):
        return Denied(f"the edge refused the token for {path}")
    if status == 404:
        return Gone(f"the edge has no route for {path}")
    return Retry(f"the edge answered {status} for {path}")


async def _close(writer: asyncio.StreamWriter | None) -> None:
    if writer is not None:
        writer.close()
        with suppress(OSError):
            await writer.wait_closed()
