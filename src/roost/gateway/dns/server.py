"""The DNS server: one UDP socket, one TCP listener, on the event loop of whoever starts it.

Nothing is queued: a datagram that cannot be sent at once is lost, as the network may lose it. Bounded:
connections, bytes read ahead, bytes not taken, time without a query.
"""

import asyncio
import errno
import logging
import random
import socket
from collections import Counter
from collections.abc import Callable
from ipaddress import IPv6Address, ip_address
from pathlib import Path
from typing import cast

from roost.gateway.dns import zonefile
from roost.gateway.dns.answer import QUERY_BYTES, Reply, reply
from roost.gateway.dns.choice import Address, Network
from roost.gateway.dns.limits import Limits, RateLimiter, Verdict
from roost.gateway.dns.memo import Memo
from roost.gateway.dns.probing import EndpointProbes
from roost.gateway.dns.zone import Zone
from roost.ports.errors import Invalid
from roost.proxy import policy

log = logging.getLogger(__name__)

BATCH = 32
"""Datagrams, or queries of one connection, answered before others get their turn."""
UNSENT = 256 << 10
"""Bytes of answers a TCP client may leave untaken before it is not read any more."""
SWEEP_S = 0.5
BACKLOG = 256
COMPLAINT_S = 60.0
PORT_TRIES = 20
_LENGTH = 2


class Counts:
    """What a server has done since it started."""

    __slots__ = ("connections", "dropped", "failed", "queries", "slipped", "tcp_queries")

    def __init__(self) -> None:
        self.queries = self.tcp_queries = self.dropped = self.slipped = self.failed = 0
        self.connections = 0


class DnsServer:
    """Answers for one zone at one address. The zone may change (in place) between any two queries."""

    def __init__(
        self,
        zone: Zone,
        address: str,
        *,
        limits: Limits | None = None,
        exempt: tuple[Network, ...] = (),
        rng: random.Random | None = None,
    ) -> None:
        self.zone = zone
        self.file: Path | None = None
        """The zone file, where it came from one."""
        self.limits = limits or Limits()
        self.counts = Counts()
        self.host, self.port = _split(address)
        self._rates = RateLimiter(self.limits, exempt)
        # Which answer comes first is no secret; a seeded source makes tests repeat.
        self._draw: Callable[[], float] = (rng or random.Random()).random
        self._memo = Memo(self._draw)
        self._probes = EndpointProbes(zone, rng=rng)
        self.sockets: tuple[socket.socket, socket.socket] | None = None
        """(udp, tcp) while it serves: a successor may be given duplicates, then nothing is lost."""
        self._udp: socket.socket | None = None
        self._tcp: asyncio.Server | None = None
        self._connections: dict[_Connection, None] = {}
        """In order of their last whole query: the one idle for longest first."""
        self._per_network: Counter[tuple[int, int]] = Counter()
        self._sweep: asyncio.TimerHandle | None = None
        self._complained_s = float("-inf")

    @property
    def address(self) -> str:
        """``host:port`` as bound."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    async def start(self, sockets: tuple[socket.socket, socket.socket] | None = None) -> None:
        """Serve, on (udp, tcp) ``sockets`` if given. Raises ``Invalid`` where the address cannot be used."""
        self.sockets = udp, tcp = sockets or bind(self.host, self.port)
        self.port = udp.getsockname()[1]
        loop = asyncio.get_running_loop()
        udp.setblocking(False)
        self._udp = udp
        self._tcp = await loop.create_server(lambda: _Connection(self), sock=tcp, backlog=BACKLOG)
        loop.add_reader(udp.fileno(), self._readable)
        self._probes.watch()
        self._sweep = loop.call_later(SWEEP_S, self._sweep_idle)

    async def close(self) -> None:
        """Stop. TCP clients with a query under way have had its answer: each is given at once."""
        if self._udp is not None:
            asyncio.get_running_loop().remove_reader(self._udp.fileno())
            self._udp.close()
            self._udp = self.sockets = None
        await self._probes.close()
        if self._sweep is not None:
            self._sweep.cancel()
        if self._tcp is not None:
            self._tcp.close()
            self._tcp = None
        for connection in list(self._connections):
            if connection.full:
                connection.transport.abort()
            else:
                connection.transport.close()

    async def reread(self) -> None:
        """Read the zone file again (in a thread: tables of networks are long). Raises ``Invalid``:
        nothing changed."""
        if self.file is not None:
            self.reload(await asyncio.to_thread(zonefile.load, self.file))

    def reload(self, loaded: zonefile.Loaded) -> None:
        """Serve another version of the zone file, with its limits. Raises ``Invalid``: nothing changed."""
        self.zone.replace(loaded.data)
        self._probes.watch()
        if loaded.limits != self.limits:
            self.limits = loaded.limits
            self._rates = RateLimiter(loaded.limits, loaded.exempt)

    # --- UDP -------------------------------------------------------------------------------------

    def _readable(self) -> None:
        udp = self._udp
        for _ in range(BATCH):
            if udp is None:
                return
            try:
                wire, peer = udp.recvfrom(QUERY_BYTES + 1)
            except (BlockingIOError, InterruptedError):
                return
            except OSError:
                continue  # an earlier answer met a closed port
            answer = self._datagram(wire, peer[0])
            if answer is None:
                continue
            try:
                udp.sendto(answer, peer)
            except OSError:
                self.counts.dropped += 1

    def _datagram(self, wire: bytes, host: str) -> bytes | None:
        self.counts.queries += 1
        client = _client(host)
        rates = self._rates
        free = rates.exempt(client)
        network = rates.network(client)
        now_s = asyncio.get_running_loop().time()
        verdict: Verdict = "pass" if free else rates.any_response(network, now_s)
        if verdict == "drop":
            self.counts.dropped += 1
            return None
        area, version = self.zone.locate(client).area, self.zone.version
        kept = self._memo.find(wire, area, version)
        found = self._reply(wire, client) if kept is None else None
        what = found or (kept and kept[0])
        if what is None:
            return None
        if verdict == "pass" and not free:
            verdict = rates.equal_response(network, (what.kind, what.name), now_s)
        if verdict == "drop":
            self.counts.dropped += 1
            return None
        if verdict == "slip":
            self.counts.slipped += 1
            found = found or self._reply(wire, client)
            return found.truncated() if found is not None else None
        if kept is not None:
            return kept[1]
        assert found is not None
        answer = found.udp()
        self._memo.keep(wire, area, found, answer)
        return answer

    def _reply(self, wire: bytes, client: Address) -> Reply | None:
        """The reply; None where none is due. A fault of ours costs one answer, never the server."""
        try:
            return reply(self.zone, wire, client, self._draw)
        except Exception:
            self.counts.failed += 1
            now_s = asyncio.get_running_loop().time()
            if now_s - self._complained_s >= COMPLAINT_S:
                self._complained_s = now_s
                log.exception("a query could not be answered: %s", wire[:64].hex())
            return None

    # --- TCP -------------------------------------------------------------------------------------

    def _admit(self, connection: "_Connection") -> bool:
        network = connection.network
        if self._per_network[network] >= self.limits.connections_per_network:
            return False
        if len(self._connections) >= self.limits.connections:
            longest_idle = next(iter(self._connections))
            self._leave(longest_idle)
            longest_idle.transport.abort()
        self._per_network[network] += 1
        self._connections[connection] = None
        self.counts.connections += 1
        return True

    def _leave(self, connection: "_Connection") -> None:
        if connection not in self._connections:
            return
        del self._connections[connection]
        self._per_network[connection.network] -= 1
        if not self._per_network[connection.network]:
            del self._per_network[connection.network]

    def _sweep_idle(self) -> None:
        loop = asyncio.get_running_loop()
        self._sweep = loop.call_later(SWEEP_S, self._sweep_idle)
        since_s = loop.time() - self.limits.idle_s
        for connection in list(self._connections):
            if connection.used_s > since_s:
                break
            connection.transport.abort()


class _Connection(asyncio.Protocol):
    """One TCP client: queries one after another, each answered at once and in order."""

    transport: asyncio.Transport

    def __init__(self, server: DnsServer) -> None:
        self._server = server
        self._buffer = bytearray()
        self.full = self._ended = False
        self._again: asyncio.Handle | None = None
        self.client: Address = ip_address("0.0.0.0")
        self.network = (0, 0)
        self.used_s = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # A cast: uvloop transports are no subclass of asyncio.Transport.
        self.transport = cast("asyncio.Transport", transport)
        self.transport.set_write_buffer_limits(high=UNSENT)
        peer = transport.get_extra_info("peername")
        if not isinstance(peer, tuple):
            self.transport.abort()  # it has gone already
            return
        self.client = _client(peer[0])
        self.network = self._server._rates.network(self.client)
        self.used_s = asyncio.get_running_loop().time()
        if not self._server._admit(self):
            self.transport.abort()

    def connection_lost(self, error: Exception | None) -> None:
        self._server._leave(self)
        if self._again is not None:
            self._again.cancel()

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        if self._again is None:
            self._answer()

    def eof_received(self) -> bool | None:
        # What came before the end has its answers in the transport: they are still sent.
        self._ended = True
        return self._again is not None or self.full

    def pause_writing(self) -> None:
        self.full = True

    def resume_writing(self) -> None:
        self.full = False
        if self._again is None:
            self._answer()

    def _answer(self) -> None:
        """Answer what is whole in the buffer, so many at a time."""
        self._again = None
        for _ in range(BATCH):
            if self.full or self.transport.is_closing():
                break
            size = int.from_bytes(self._buffer[:_LENGTH], "big")
            if size > QUERY_BYTES:
                self.transport.abort()
                return
            if len(self._buffer) < _LENGTH + size or len(self._buffer) < _LENGTH:
                self._read_on()
                return
            wire = bytes(self._buffer[_LENGTH : _LENGTH + size])
            del self._buffer[: _LENGTH + size]
            if not self._one(wire):
                self.transport.abort()
                return
        if self.transport.is_closing():
            return
        self.transport.pause_reading()
        if not self.full:
            self._again = asyncio.get_running_loop().call_soon(self._answer)

    def _read_on(self) -> None:
        if self.transport.is_closing():
            return
        if self._ended:
            self.transport.close()
        else:
            self.transport.resume_reading()

    def _one(self, wire: bytes) -> bool:
        """Answer one query; False = this client speaks no DNS."""
        server = self._server
        server.counts.tcp_queries += 1
        found = server._reply(wire, self.client)
        if found is None:
            return False
        if self in server._connections:
            self.used_s = asyncio.get_running_loop().time()
            del server._connections[self]
            server._connections[self] = None
        answer = found.tcp()
        self.transport.write(len(answer).to_bytes(_LENGTH, "big") + answer)
        return True


def bind(host: str, port: int) -> tuple[socket.socket, socket.socket]:
    """UDP and TCP sockets at one address and port (0 = any that is free for both).

    Raises ``Invalid``. A supervisor may call this before it gives up its rights or starts workers.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    for attempt in range(PORT_TRIES):
        tcp = socket.socket(family, socket.SOCK_STREAM)
        udp = socket.socket(family, socket.SOCK_DGRAM)
        try:
            tcp.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                for sock in (tcp, udp):
                    sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, host != "::")
            tcp.bind((host, port))
            udp.bind((host, tcp.getsockname()[1]))
            tcp.listen(BACKLOG)
        except OSError as error:
            tcp.close()
            udp.close()
            if port == 0 and error.errno == errno.EADDRINUSE and attempt + 1 < PORT_TRIES:
                continue
            raise Invalid(
                f"DNS cannot use port {port} on {host}: {error.strerror}",
                hint="ports below 1024 need the right to (CAP_NET_BIND_SERVICE); "
                "on many systems a resolver has 127.0.0.53:53 already",
            ) from error
        return udp, tcp
    raise AssertionError("unreachable")


def _split(address: str) -> tuple[str, int]:
    host, _, port = address.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not port.isascii() or not port.isdigit() or int(port) > 65535:
        raise Invalid(f"dns.address: {address!r} is not host:port")
    try:
        return str(ip_address(host or "0.0.0.0")), int(port)
    except ValueError as error:
        raise Invalid(
            f"dns.address: {host!r} is not an IP address",
            hint="write it as 127.0.0.1:53 or [::]:53",
        ) from error


def _client(host: str) -> Address:
    """The address of a peer; IPv4 seen through an IPv6 socket is IPv4."""
    address = ip_address(host.partition("%")[0])
    if isinstance(address, IPv6Address) and address.ipv4_mapped is not None:
        return address.ipv4_mapped
    return address


def from_policy(dns: policy.Dns, *, folder: Path, serial: int) -> DnsServer:
    """The server a gateway's ``[dns]`` asks for, not started yet. Raises ``Invalid``.

    ``folder`` is the gateway file's, relative to which the zone file is named. ``serial`` is the SOA's
    first one: the Unix time keeps it rising across restarts.
    """
    file = folder / dns.zone
    loaded = zonefile.load(file)
    server = DnsServer(
        Zone(loaded.data, serial=serial), dns.address, limits=loaded.limits, exempt=loaded.exempt
    )
    server.file = file
    return server
