"""The cases of the CPU benchmark: what is asked, and by which load generator."""

import asyncio
import re
import socket
import ssl
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

BROWSER = {
    "User-Agent": "Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko)"
    " Chrome/126.0 Safari/537.36",
    "Accept": "text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,image/webp,*/*;q=0.8",
    "Accept-Language": "en-GB,en;q=0.9,de;q=0.8",
    "Accept-Encoding": "gzip, deflate, br, zstd",
    "Cookie": "session=" + "a1b2c3d4" * 12 + "; theme=dark; consent=yes",
    "Sec-Fetch-Dest": "document",
    "Sec-Fetch-Mode": "navigate",
    "Sec-Fetch-Site": "same-origin",
    "Upgrade-Insecure-Requests": "1",
    "Referer": "https://app.example.org/notebooks/0001/lab/tree/Untitled.ipynb",
    "Cache-Control": "max-age=0",
}
UNIQUE = """
local n = 0
request = function()
  n = n + 1
  wrk.headers["traceparent"] = string.format("00-%032x-%016x-01", n, n)
  return wrk.format()
end
"""
POST = 'wrk.method = "POST"\nwrk.body = string.rep("x", 1024)\n'
FRAME = b"\x82\xc0\x00\x00\x00\x00" + b"x" * 64


@dataclass(frozen=True)
class Target:
    """A listener of the proxy."""

    port: int
    tls_port: int
    folder: Path


def wrk(
    target: Target,
    seconds: float,
    path: str = "/",
    *,
    tls: bool = False,
    headers: dict[str, str] | None = None,
    script: str = "",
    connections: int = 32,
) -> int:
    """Requests answered with 2xx; anything else is an error of the run."""
    url = f"https://127.0.0.1:{target.tls_port}" if tls else f"http://127.0.0.1:{target.port}"
    command = ["wrk", "-t1", f"-c{connections}", f"-d{max(1, round(seconds))}s"]
    for name, value in (headers or {}).items():
        command += ["-H", f"{name}: {value}"]
    if script:
        lua = target.folder / "case.lua"
        lua.write_text(script)
        command += ["-s", str(lua)]
    done = subprocess.run(
        [*command, url + path], capture_output=True, text=True, timeout=60, check=True
    )
    bad = re.search(r"Non-2xx or 3xx responses: (\d+)", done.stdout)
    if bad:
        raise RuntimeError(f"{bad[1]} failed answers")
    found = re.search(r"(\d+) requests in", done.stdout)
    assert found is not None, done.stdout
    return int(found[1])


class _Echo(asyncio.Protocol):
    """A client that sends a frame for each frame it gets."""

    def __init__(self, counts: list[int]) -> None:
        self._counts = counts
        self._head = b""
        self._open = False
        self._got = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        transport.write(
            b"GET /ws HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
            b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
        )

    def data_received(self, data: bytes) -> None:
        if not self._open:
            self._head += data
            if b"\r\n\r\n" not in self._head:
                return
            if not self._head.startswith(b"HTTP/1.1 101"):
                raise RuntimeError(f"no tunnel: {self._head[:100]!r}")
            self._open = True
            self._transport.write(FRAME)
            return
        self._got += len(data)
        while self._got >= len(FRAME):
            self._got -= len(FRAME)
            self._counts[0] += 1
            self._transport.write(FRAME)


def echo(target: Target, seconds: float) -> int:
    """Echoes over 16 WebSockets, one frame under way on each."""

    async def run() -> int:
        counts = [0]
        loop = asyncio.get_running_loop()
        ends = [
            (await loop.create_connection(lambda: _Echo(counts), "127.0.0.1", target.port))[0]
            for _ in range(16)
        ]
        await asyncio.sleep(seconds)
        for end in ends:
            end.abort()
        return counts[0]

    return asyncio.run(run())


def resumed(target: Target, seconds: float, version: ssl.TLSVersion) -> int:
    """TLS connections that resume a session, with one request each."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.minimum_version = context.maximum_version = version
    session: ssl.SSLSession | None = None
    count = again = 0
    end_s = time.monotonic() + seconds
    while time.monotonic() < end_s:
        raw = socket.create_connection(("127.0.0.1", target.tls_port))
        # Else the request waits 40 ms for the proxy's delayed acknowledgement, and finds cold caches.
        raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        with context.wrap_socket(raw, server_hostname="a.test", session=session) as sock:
            sock.sendall(b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
            while sock.recv(65536):
                pass
            session = sock.session
            again += bool(sock.session_reused)
        count += 1
    if again < count * 0.9:
        print(f"  (only {again} of {count} TLS sessions were resumed)")
    return count


CASES: dict[str, Callable[[Target, float], int]] = {
    "small, keep-alive": lambda t, s: wrk(t, s),
    "every head different": lambda t, s: wrk(t, s, script=UNIQUE),
    "browser head": lambda t, s: wrk(t, s, headers=BROWSER),
    "POST 1 KiB": lambda t, s: wrk(t, s, script=POST),
    "new connection each": lambda t, s: wrk(t, s, headers={"Connection": "close"}),
    "64 KiB": lambda t, s: wrk(t, s, "/64k"),
    "1 MiB": lambda t, s: wrk(t, s, "/1m", connections=8),
    "WebSocket echo 64 B": echo,
    "TLS, keep-alive": lambda t, s: wrk(t, s, tls=True),
    "TLS 1.3, new, resumed": lambda t, s: resumed(t, s, ssl.TLSVersion.TLSv1_3),
    "TLS 1.2, new, resumed": lambda t, s: resumed(t, s, ssl.TLSVersion.TLSv1_2),
}
