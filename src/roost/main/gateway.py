"""``roost gateway``: the load balancer on its own. Wires the data plane to a configuration file."""

import asyncio
import itertools
import signal
import socket
from collections.abc import Iterator
from pathlib import Path

import msgspec

from roost.doors.cli.gateway import QuickStart
from roost.ports.errors import Invalid
from roost.proxy import policy
from roost.proxy.answers import Answer
from roost.proxy.exchange import Proxy
from roost.proxy.heads import Request
from roost.proxy.pool import Backend, BackendConnection, Pool
from roost.proxy.server import ProxyServer


def load(path: Path) -> policy.Gateway:
    try:
        return msgspec.toml.decode(path.read_bytes(), type=policy.Gateway)
    except (OSError, msgspec.DecodeError) as error:
        raise Invalid(f"{path.name}: {error}") from error


def address(text: str) -> tuple[str, int]:
    host, _, port = text.rpartition(":")
    return host.strip("[]"), int(port)


class PlainRouter:
    """The longest prefix wins; its backends take turns."""

    def __init__(self, gateway: policy.Gateway) -> None:
        services: dict[str, Iterator[Backend]] = {}
        for service in gateway.services:
            backends = []
            for spec in service.backends:
                text = spec if isinstance(spec, str) else spec.address
                host, port = address(text)
                backends.append(Backend(host=host, port=port))
            services[service.name] = itertools.cycle(backends)
        self._routes = sorted(
            (
                ((route.match.prefix or "/").rstrip("/"), services[route.service])
                for route in gateway.routes
                if route.service
            ),
            key=lambda item: -len(item[0]),
        )

    def decide(self, request: Request) -> Backend | Answer | None:
        for prefix, backends in self._routes:
            if request.path.startswith(prefix):
                return next(backends)
        return Answer(404, "there is no such route")

    async def find(self, request: Request, pool: Pool) -> BackendConnection | Answer:
        for _ in range(3):
            decision = self.decide(request)
            if not isinstance(decision, Backend):
                assert decision is not None
                return decision
            try:
                return await pool.connect(decision)
            except (OSError, TimeoutError):
                continue
        return Answer(502, "no backend can be reached", problem=False)


class Program:
    """Implements ``GatewayProgram``."""

    def run(self, source: Path | QuickStart) -> int:
        gateway = load(source) if isinstance(source, Path) else quick(source)
        with asyncio.Runner(loop_factory=_loop) as runner:
            runner.run(_serve(gateway))
        return 0

    def check(self, path: Path) -> list[str]:
        gateway = load(path)
        return [
            f"{len(gateway.listeners)} listeners, {len(gateway.routes)} routes, "
            f"{len(gateway.services)} services"
        ]


def quick(source: QuickStart) -> policy.Gateway:
    """The configuration of a quick start."""
    return msgspec.convert(
        {
            "listeners": [{"name": "main", "address": source.listen}],
            "services": [
                {"name": "main", "backends": source.backends, "balance": source.balance}
            ],
            "routes": [{"name": "main", "service": "main"}],
            "workers": source.workers,
            "admin": source.admin,
        },
        policy.Gateway,
    )


async def _serve(gateway: policy.Gateway) -> None:
    loop = asyncio.get_running_loop()
    stopped = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopped.set)
    server = ProxyServer(Proxy(PlainRouter(gateway)))
    for listener in gateway.listeners:
        sock = socket.create_server(address(listener.address), backlog=1024, reuse_port=True)
        await server.listen(sock)
    print(f"serving {', '.join(each.address for each in gateway.listeners)}", flush=True)
    await stopped.wait()
    await server.close(gateway.drain_s)


def _loop() -> asyncio.AbstractEventLoop:
    try:
        import uvloop
    except ImportError:
        return asyncio.new_event_loop()
    return uvloop.new_event_loop()
