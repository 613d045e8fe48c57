"""Routes, rewriting and protection through a whole proxy, on real sockets."""

import asyncio
import base64
import socket
import struct
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import Any, cast

import msgspec

from roost.proxy import policy
from roost.proxy.credentials import hash_scrypt
from roost.proxy.plan import Router
from roost.proxy.protect import Guards
from roost.proxy.routing import RouteSet
from roost.proxy.upstream import upstreams_of
from tests.unit.proxy.conftest import Setup

Proxied = Callable[..., AbstractAsyncContextManager[Setup]]


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Answers with the head it got; says no to those who ask whether they may without a token."""
    while True:
        head = await reader.readuntil(b"\r\n\r\n")
        if head.startswith(b"GET /may") and b"X-Token" not in head:
            writer.write(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 2\r\n\r\nno")
            continue
        if head.startswith(b"GET /slow"):
            await reader.read()  # until the proxy leaves
            return
        said = b"HTTP/1.1 200 OK\r\nX-User: ann\r\nServer: echo\r\nContent-Length: %d\r\n\r\n"
        writer.write(said % len(head) + head)


def take(setup: Setup, *routes: dict[str, Any], balance: str = "least-work") -> Guards:
    port = setup.router.backend.port
    gateway = msgspec.convert(
        {
            "listeners": [{"name": "web", "address": "127.0.0.1:0"}],
            "services": [{"name": "s", "backends": [f"127.0.0.1:{port}"], "balance": balance}],
            "routes": [{"name": str(i), "service": "s", **each} for i, each in enumerate(routes)],
        },
        policy.Gateway,
    )
    clock = asyncio.get_running_loop().time
    guards = Guards(now=clock, unix_s=clock)
    routes_now = RouteSet(gateway, "", upstreams_of(gateway.services), guards)
    setup.proxy.router = cast("Router", routes_now)
    return guards


async def ask(setup: Setup, target: str, *lines: str) -> tuple[int, str]:
    head = "\r\n".join([f"GET {target} HTTP/1.1", "Host: a", "Connection: close", *lines, "", ""])
    answer = (await setup.ask(head.encode())).decode()
    return int(answer.split()[1]), answer


async def test_a_rewritten_request_and_answer(proxied: Proxied) -> None:
    async with proxied(echo) as setup:
        rewrite = {
            "strip_prefix": "/api",
            "host": "b.internal",
            "request_headers": {"X-Team": "blue", "X-Gone": ""},
            "response_headers": {"Server": "", "X-Seen": "1"},
        }
        take(setup, {"match": {"prefix": "/api"}, "rewrite": rewrite})
        status, answer = await ask(setup, "/api/x?y", "X-Gone: 1", "X_Team: red")
        assert status == 200
        answer = answer.lower()
        head, _, body = answer.partition("\r\n\r\n")
        assert "server:" not in head and "x-seen: 1" in head
        assert body.startswith("get /x?y http/1.1\r\n")
        assert body.count("\r\nhost: ") == 1 and "\r\nhost: b.internal\r\n" in body
        assert "x-team: blue" in body and "x-gone" not in body and "red" not in body
        assert (await ask(setup, "/other"))[0] == 404
        assert (await ask(setup, "/api/../x"))[0] == 400


async def test_a_sticky_client_has_its_cookie_set_once(proxied: Proxied) -> None:
    async with proxied(echo) as setup:
        take(setup, {}, balance="sticky")
        _, answer = await ask(setup, "/")
        cookie = answer.split("set-cookie: ", 1)[1].split(";", 1)[0]
        assert cookie.startswith("roost_backend=")
        _, again = await ask(setup, "/", f"Cookie: {cookie}")
        assert "set-cookie" not in again


async def test_slow_passwords_and_another_servers_word(proxied: Proxied) -> None:
    async with proxied(echo) as setup:
        port = setup.router.backend.port
        secret = "scrypt:0a:" + hash_scrypt(b"pw", b"\x0a").hex()
        may = {
            "kind": "forward",
            "url": f"http://127.0.0.1:{port}/may",
            "copy_headers": ["X-User"],
        }
        guards = take(
            setup,
            {"auth": {"kind": "basic", "users": {"ann": secret}}, "match": {"path": "/basic"}},
            {"auth": may, "match": {"path": "/forward"}},
        )
        good, bad = (base64.b64encode(text).decode() for text in (b"ann:pw", b"ann:no"))
        assert (await ask(setup, "/basic"))[0] == 401
        for _ in range(2):
            assert (await ask(setup, "/basic", f"Authorization: Basic {good}"))[0] == 200
            assert (await ask(setup, "/basic", f"Authorization: Basic {bad}"))[0] == 401
        assert (await ask(setup, "/forward"))[0] == 403
        status, answer = await ask(setup, "/forward", "X-Token: 1", "X-User: eve", "X_User: eve")
        assert status == 200
        assert "x-user: ann" in answer.partition("\r\n\r\n")[2].lower() and "eve" not in answer
        guards.close()


async def test_a_client_that_leaves_gives_its_place_back(proxied: Proxied) -> None:
    async with proxied(echo) as setup:
        take(setup, {"limits": {"connections_per_client": 1}})
        _, writer = await setup.client()
        writer.write(b"GET /slow HTTP/1.1\r\nHost: a\r\n\r\n")
        loop = asyncio.get_running_loop()
        end_s = loop.time() + 10
        while (await ask(setup, "/x"))[0] != 429:
            assert loop.time() < end_s
        # A reset: a client that only ends its side may still want its answer.
        raw = writer.get_extra_info("socket")
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        writer.transport.abort()
        while (await ask(setup, "/x"))[0] != 200:
            assert loop.time() < end_s
