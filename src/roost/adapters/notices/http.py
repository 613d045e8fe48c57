"""One small request to a metadata service, in a thread, past all proxies. Never raises: None is no answer."""

import asyncio
import http.client
from collections.abc import Mapping
from urllib.parse import urlsplit

import msgspec

TIMEOUT_S = 2.0
LONGEST_BODY = 1 << 20


class Reply(msgspec.Struct, frozen=True, kw_only=True):
    """Status, body and headers (names in lower case) of an answer."""

    status: int
    body: bytes
    headers: Mapping[str, str]


async def ask(
    base_url: str, target: str, *, method: str = "GET", headers: Mapping[str, str] | None = None
) -> Reply | None:
    """The answer of ``base_url + target``; None when there is none within ``TIMEOUT_S``."""
    return await asyncio.to_thread(_ask, base_url, target, method, dict(headers or {}))


def _ask(base_url: str, target: str, method: str, headers: dict[str, str]) -> Reply | None:
    try:
        place = urlsplit(base_url)
        host, port = place.hostname, place.port or 80
    except ValueError:
        return None
    if not host:
        return None
    connection = http.client.HTTPConnection(host, port, timeout=TIMEOUT_S)
    try:
        connection.request(method, target, headers=headers)
        reply = connection.getresponse()
        body = reply.read(LONGEST_BODY)
        return Reply(
            status=reply.status,
            body=body,
            headers={name.lower(): value for name, value in reply.getheaders()},
        )
    except (OSError, http.client.HTTPException, ValueError):
        return None
    finally:
        connection.close()
