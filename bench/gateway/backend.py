"""A backend for the scenarios: ``python -m bench.gateway.backend PORT [--fail] [--log FILE]``. One process.

Answers after a few milliseconds, echoes WebSockets, and writes down every POST it has taken.
"""

import argparse
import asyncio
import os
import random
from pathlib import Path

import uvloop

SERVICE_S = 0.003


class Server(asyncio.Protocol):
    """One connection; requests have no body but what Content-Length says, in one piece or more."""

    def __init__(self, fail: bool, log: int | None, chance: random.Random) -> None:
        self._fail = fail
        self._log = log
        self._chance = chance
        self._data = b""
        self._tunnel = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        if self._tunnel:
            self._write(data)
            return
        self._data += data
        while True:
            head, end, rest = self._data.partition(b"\r\n\r\n")
            if not end:
                return
            low = head.lower()
            length = 0
            if b"content-length:" in low:
                length = int(low.split(b"content-length:")[1].split(b"\r\n")[0])
            if len(rest) < length:
                return
            self._data = rest[length:]
            self._request(head)

    def _request(self, head: bytes) -> None:
        if b"\r\nupgrade:" in head.lower():
            self._tunnel = True
            self._write(
                b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
                b"Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n"
            )
            return
        if self._log is not None and head.startswith(b"POST"):
            os.write(self._log, head.split(b" ")[1] + b"\n")
        if self._fail:
            self._write(b"HTTP/1.1 500 No\r\nContent-Length: 2\r\n\r\nno")
            return
        wait_s = SERVICE_S * self._chance.lognormvariate(0, 0.5)
        asyncio.get_running_loop().call_later(
            wait_s, self._write, b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
        )

    def _write(self, data: bytes) -> None:
        if not self._transport.is_closing():
            self._transport.write(data)  # type: ignore[attr-defined]


async def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("port", type=int)
    parser.add_argument("--fail", action="store_true")
    parser.add_argument("--log", type=Path)
    options = parser.parse_args()
    log = os.open(options.log, os.O_WRONLY | os.O_APPEND | os.O_CREAT) if options.log else None
    chance = random.Random(options.port)
    server = await asyncio.get_running_loop().create_server(
        lambda: Server(options.fail, log, chance), "127.0.0.1", options.port, reuse_address=True
    )
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(main())
