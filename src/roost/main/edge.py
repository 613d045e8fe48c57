"""An edge process: the public port, requests on hold, the far end of the agents' data connections.

    python -m roost.main.edge --index 0 --state DIR [--public-fd N] [--data-fd N]
                              [--public HOST:PORT] [--data HOST:PORT]
                              [--dns HOST:PORT --zone NAME|FILE.toml]

Prints one JSON line with its addresses when it serves. SIGTERM: requests in flight may end, then exit 0.
Never needs control: its routes are on disk.
"""

import argparse
import asyncio
import fcntl
import importlib
import json
import logging
import signal
import socket
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from roost.adapters.blobs.local import LocalBlobs
from roost.adapters.clock import SystemClock
from roost.gateway.model import HoldWaiting, HostDataDown, HostDataUp
from roost.gateway.receiver import RouteReceiver
from roost.gateway.router import EdgeRouter
from roost.gateway.streams import DataHosts
from roost.gateway.transfer import BlobTransfer
from roost.kit.ids import SystemIds
from roost.ports.errors import Invalid, RoostError
from roost.proxy.front import Proxy
from roost.proxy.leaving import Leaving
from roost.proxy.server import ProxyServer

if TYPE_CHECKING:
    from roost.main.edge_dns import EdgeNames

log = logging.getLogger("roost.edge")

LOOPBACK = "127.0.0.1:0"
SEEN_S = 1.0


@dataclass(frozen=True)
class EdgeSettings:
    """What one edge process is told."""

    index: int
    state: Path
    public: socket.socket
    data: socket.socket
    dns: str | None = None
    zone: str | None = None


class Edge:
    """Wires proxy, router, data connections, blobs and the route socket of one process."""

    def __init__(self, settings: EdgeSettings) -> None:
        self._settings = settings
        state = settings.state
        ids = SystemIds()
        self.router = EdgeRouter(
            ids, on_waiting=lambda name: self.receiver.tell(HoldWaiting(name=name))
        )
        self.receiver = RouteReceiver(
            self.router, state / "run" / f"edge-{settings.index}.sock", state / "routes.json"
        )
        blobs = LocalBlobs(state / "blobs")
        self.router.hosts = self.hosts = DataHosts(
            _secret(state / "data.secret"),
            ids,
            BlobTransfer(blobs).answer,
            self.router.changed.fire,
            self._host_changed,
        )
        counting = self.router.counting
        self.proxy = Proxy(self.router, observer=counting, tally=counting.tally)
        self.router.look_again = self.proxy.look_again
        self.router.abandon = self.proxy.pool.abandon
        self.server = ProxyServer(self.proxy)
        self.names = self._names()

    def _names(self) -> "EdgeNames | None":
        """The DNS server of the notebooks' names, if it is wanted."""
        told = self._settings
        if told.dns is None and told.zone is None:
            return None
        if told.dns is None or told.zone is None:
            raise Invalid("--dns and --zone go together")
        # By name: it takes longer to load than all the rest, and few edges serve names.
        module = importlib.import_module("roost.main.edge_dns")
        names: EdgeNames = module.EdgeNames(
            told.dns, told.zone, told.public, self.router, self.hosts
        )
        return names

    def _host_changed(self, host_id: str, up: bool) -> None:
        self.router.host_changed()
        self.receiver.tell(HostDataUp(host_id=host_id) if up else HostDataDown(host_id=host_id))

    async def run(self) -> None:
        """Serve until SIGTERM or SIGINT."""
        stopped = asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, stopped.set)
        leaving = Leaving(self.proxy.tunnels, unix_offset_s=SystemClock().now_s() - loop.time())
        self.router.emptied = leaving.look
        self.receiver.load()
        await self.receiver.listen()
        await self.hosts.listen(self._settings.data)
        await self.server.listen(self._settings.public)
        addresses = {
            "public": _shown(self._settings.public),
            "data": _shown(self._settings.data),
            "routes": str(self._settings.state / "run" / f"edge-{self._settings.index}.sock"),
        }
        if self.names is not None:
            await self.names.start()
            addresses["dns"] = self.names.server.address
        print(json.dumps({"serving": addresses}), flush=True)
        telling = loop.create_task(self._tell_seen())
        await stopped.wait()
        telling.cancel()
        leaving.close()
        if self.names is not None:
            await self.names.close()
        await self.server.close()
        self.hosts.close()
        await self.receiver.close()

    async def _tell_seen(self) -> None:
        """Each second: what was asked of the services."""
        clock = SystemClock()
        began_s = clock.now_s()
        counting, index = self.router.counting, self._settings.index
        while True:
            await asyncio.sleep(SEEN_S)
            states = self.router.services(self.proxy.held_by_plan())
            for seen in counting.report(states, edge=index, began_s=began_s, at_s=clock.now_s()):
                self.receiver.tell(seen)


def _secret(path: Path) -> bytes:
    try:
        return path.read_bytes().strip()
    except OSError as error:
        raise Invalid(
            f"{path} cannot be read: {error.strerror}", hint="run `roost up`, which makes it"
        ) from error


def _shown(sock: socket.socket) -> str:
    host, port = sock.getsockname()[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _listener(descriptor: int | None, address: str, what: str) -> socket.socket:
    """The inherited socket, or one bound to ``address``. ``Invalid`` says which port is taken."""
    if descriptor is not None:
        try:
            return socket.socket(fileno=descriptor)
        except OSError as error:
            raise Invalid(
                f"file descriptor {descriptor} is not a socket: {error.strerror}"
            ) from error
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit() or int(port) > 65535:
        raise Invalid(f"not an address: {address!r}", hint="write it as host:port")
    host = host.strip("[]")
    sock = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((host, int(port)))
        # The kernel tells only a listener that another one is already there.
        sock.listen()
    except OSError as error:
        sock.close()
        raise Invalid(
            f"port {port} on {host} for {what} cannot be used: {error.strerror}",
            hint="stop what uses it, or choose another port (0 = any free one)",
        ) from error
    return sock


def _only_one(state: Path, index: int) -> TextIO:
    """The lock of this edge; ``Invalid`` when one with this index runs. Keep it open."""
    (state / "run").mkdir(mode=0o700, parents=True, exist_ok=True)
    lock = (state / "run" / f"edge-{index}.lock").open("w")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        lock.close()
        raise Invalid(
            f"edge {index} of {state} runs already", hint="end it first, or give another --index"
        ) from None
    return lock


def _arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="roost.main.edge", description="An edge process of Roost."
    )
    parser.add_argument("--index", type=int, default=0, help="number of this edge")
    parser.add_argument("--state", type=Path, required=True, help="the state directory")
    parser.add_argument("--public-fd", type=int, help="inherited listening socket for clients")
    parser.add_argument("--data-fd", type=int, help="inherited listening socket for agents")
    parser.add_argument("--public", default=LOOPBACK, help="host:port for clients")
    parser.add_argument("--data", default=LOOPBACK, help="host:port for agents")
    parser.add_argument("--dns", help="host:port of a DNS server for the notebooks' names")
    parser.add_argument("--zone", help="its zone: a name, or a zone file (docs/dns.md)")
    return parser.parse_args(argv)


def _loop() -> asyncio.AbstractEventLoop:
    """uvloop where there is a wheel for it: 8 % less CPU; nothing depends on it."""
    try:
        import uvloop
    except ImportError:
        return asyncio.new_event_loop()
    return uvloop.new_event_loop()


def main(argv: list[str] | None = None) -> int:
    """Exit status: 0 after SIGTERM, 2 when it cannot start (one line on stderr says why)."""
    arguments = _arguments(argv)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(levelname)s %(message)s")
    try:
        lock = _only_one(arguments.state, arguments.index)
        settings = EdgeSettings(
            index=arguments.index,
            state=arguments.state,
            public=_listener(arguments.public_fd, arguments.public, "clients"),
            data=_listener(arguments.data_fd, arguments.data, "agents' data connections"),
            dns=arguments.dns,
            zone=arguments.zone,
        )
        with lock, asyncio.Runner(loop_factory=_loop) as runner:
            runner.run(_serve(settings))
    except (RoostError, OSError) as error:
        print(f"roost edge: {error}", file=sys.stderr)
        return 2
    return 0


async def _serve(settings: EdgeSettings) -> None:
    await Edge(settings).run()


if __name__ == "__main__":
    sys.exit(main())
