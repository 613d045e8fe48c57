"""One health check of a replica: a GET that must answer 2xx or 3xx, or a connect. Never retries."""

import asyncio
from typing import NamedTuple

from roost.ports.replicas import Health

LINE_BYTES = 4096
"""Longest status line."""


class Finding(NamedTuple):
    """What a check found."""

    bad: str
    """What is wrong; empty = it is well."""
    slow: bool = False
    """There was no answer in time: it may only have a lot to do."""


async def check(address: str, port: int, health: Health) -> Finding:
    """Ask once."""
    what = f"GET {health.path}" if health.path else "connect"
    try:
        async with asyncio.timeout(health.timeout_s):
            return Finding(await _ask(address, port, health.path))
    except TimeoutError:
        return Finding(f"{what}: no answer within {health.timeout_s:g} s", slow=True)
    except (OSError, ValueError, asyncio.IncompleteReadError) as error:
        if isinstance(error, ConnectionRefusedError):
            return Finding(f"{what}: nothing listens on port {port} yet")
        return Finding(f"{what}: {getattr(error, 'strerror', None) or error}")


async def _ask(address: str, port: int, path: str) -> str:
    reader, writer = await asyncio.open_connection(address, port, limit=LINE_BYTES)
    try:
        if not path:
            return ""
        writer.write(
            f"GET {path} HTTP/1.1\r\nHost: {address}:{port}\r\nUser-Agent: roost-health\r\n"
            "Accept: */*\r\nConnection: close\r\n\r\n".encode()
        )
        parts = (await reader.readline()).split(b" ", 2)
        if len(parts) < 2 or not parts[0].startswith(b"HTTP/1.") or not parts[1].isdigit():
            return f"GET {path}: the answer is not HTTP"
        status = int(parts[1])
        return "" if 200 <= status < 400 else f"GET {path}: status {status}"
    finally:
        writer.transport.abort()
