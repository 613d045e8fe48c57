"""The control side of the agents' control connections: ``roost.ports.link.Links`` over sockets.

It carries commands and events and knows who is there. It never decides who may join (the join book
does), and keeps nothing on disk: after a restart agents come back and send again what was not
acknowledged.
"""

import asyncio
import contextlib
import hashlib
import hmac
import logging
import socket
import ssl
from collections.abc import Callable, Mapping
from typing import Protocol

from roost.adapters.link.identity import signed
from roost.adapters.link.peers import Connection, Peers
from roost.adapters.link.streams import hang_up, is_loopback, watch_peer
from roost.adapters.link.tls import Authority, peer_host
from roost.kit.ids import Ids
from roost.ports import wire
from roost.ports.clock import Clock
from roost.ports.errors import Denied, Invalid, Retry, RoostError, from_wire
from roost.ports.frames import BadFrame
from roost.ports.values import HostReport

log = logging.getLogger(__name__)

HANDSHAKE_S = 5.0
SILENCE_S = 5.0
PENDING_MAX = 512
"""Connections that have not introduced themselves yet, at most."""


class JoinBook(Protocol):
    """Who may join."""

    async def admit(self, host_id: str, join_token: str, public_key: bytes) -> None:
        """Bind the token to the first key that uses it. ``Denied`` for a wrong, used or ended one.

        The same key may come again with the same token, as often as it likes.
        """


class Tls:
    """What a listener beyond loopback needs."""

    def __init__(self, authority: Authority, hosts: tuple[str, ...]) -> None:
        self.authority = authority
        self.context = authority.server_context(hosts, require_client=False)


class LinkServer:
    """All connected hosts. Implements ``Links``."""

    def __init__(
        self,
        *,
        clock: Clock,
        ids: Ids,
        book: JoinBook,
        data_secret: bytes,
        data_addresses: Callable[[], tuple[str, ...]],
        tls: Tls | None = None,
        heartbeat_s: float = 1.0,
        silence_s: float = SILENCE_S,
        handshake_s: float = HANDSHAKE_S,
        patience_s: float = 5.0,
    ) -> None:
        """``patience_s``: how long a command waits for a host that is not connected."""
        self._clock = clock
        self._ids = ids
        self._book = book
        self._data_secret = data_secret
        self._data_addresses = data_addresses
        self._tls = tls
        self._heartbeat_s = heartbeat_s
        self._silence_s = silence_s
        self._handshake_s = handshake_s
        self._peers = Peers(patience_s=patience_s)
        self._in, self._out = wire.to_control(), wire.to_agent()
        self._server: asyncio.Server | None = None
        self._handlers: set[asyncio.Task[None]] = set()
        self._pending = 0

    # --- life ---------------------------------------------------------------------------------

    async def serve(self, sock: socket.socket) -> None:
        """Answer agents on a bound socket. ``Invalid`` beyond loopback without TLS."""
        host = sock.getsockname()[0]
        if self._tls is None and not is_loopback(host):
            raise Invalid(
                f"agents would reach {host} without encryption",
                hint="listen on a loopback address, or turn on TLS for the link",
            )
        self._server = await asyncio.start_server(
            self._accept,
            sock=sock,
            ssl=self._tls.context if self._tls else None,
            ssl_handshake_timeout=self._handshake_s if self._tls else None,
        )

    async def close(self) -> None:
        """Stop listening and drop every connection. Waiting calls get ``Retry``."""
        if self._server is not None:
            self._server.close()
        self._peers.close()
        for handler in self._handlers:
            handler.cancel()
        await asyncio.gather(*self._handlers, return_exceptions=True)

    # --- Links --------------------------------------------------------------------------------

    def reports(self) -> Mapping[str, HostReport]:
        return self._peers.reports()

    def connected(self, host_id: str) -> bool:
        return self._peers.connection(host_id) is not None

    def subscribe(
        self, on_event: Callable[[str, wire.EventBody], None], on_change: Callable[[str], None]
    ) -> None:
        self._peers.subscribe(on_event, on_change)

    async def call(
        self, host_id: str, body: wire.CommandBody, *, epoch: int, timeout_s: float
    ) -> wire.ReplyBody:
        command = wire.Command(id=self._ids.new("c"), body=body, epoch=epoch)
        try:
            frame = self._out.encode(command)
        except BadFrame as error:
            raise Invalid(
                str(error), hint="the command is too large for the control link"
            ) from None
        what = type(body).__name__
        with self._peers.calling(host_id, command.id, frame) as answer:
            try:
                async with asyncio.timeout(timeout_s):
                    reply = await answer
            except TimeoutError:
                raise Retry(f"{what}: no answer from {host_id} within {timeout_s:g} s") from None
        if reply.error is not None:
            raise from_wire(reply.error)
        return reply.body

    def forget(self, host_id: str) -> None:
        """The host has ended for good: drop it, and fail its waiting calls with ``Gone``."""
        self._peers.forget(host_id)

    # --- one connection -----------------------------------------------------------------------

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._handlers.add(task)
        try:
            await self._converse(reader, writer)
        except asyncio.CancelledError:
            log.debug("link closed by this side")
        finally:
            self._handlers.discard(task)
            await hang_up(writer)

    async def _converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        name = str(writer.get_extra_info("peername"))
        try:
            hello = await self._introduce(reader, writer)
            name = f"{hello.host_id} at {name}"
            await self._attend(hello.host_id, reader, writer)
        except BadFrame as error:
            log.warning("link: closing %s: %s", name, error)
            await self._refuse(writer, str(error), "speak the Roost link protocol", final=False)
        except RoostError as error:
            log.warning("link: refused %s: %s", name, error)
            final = isinstance(error, (Denied, Invalid))
            await self._refuse(writer, error.message, error.hint, final=final)
        except TimeoutError:
            log.warning("link: %s was silent for too long", name)
        except (ConnectionError, ssl.SSLError) as error:
            log.info("link: %s went away: %s", name, error)

    async def _introduce(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> wire.Hello:
        """Challenge, Hello, Welcome. Raises what the refusal shall say."""
        if self._pending >= PENDING_MAX:
            raise Retry("too many hosts are joining at this moment")
        self._pending += 1
        try:
            async with asyncio.timeout(self._handshake_s):
                if (sock := writer.get_extra_info("socket")) is not None:
                    watch_peer(sock)
                nonce = self._ids.secret().encode()
                writer.write(self._out.encode(wire.Challenge(nonce=nonce)))
                hello = await self._in.read(reader)
                await self._check(hello, nonce, writer)
        finally:
            self._pending -= 1
        assert isinstance(hello, wire.Hello)
        return hello

    async def _check(
        self, hello: wire.ToControl | None, nonce: bytes, writer: asyncio.StreamWriter
    ) -> None:
        if hello is None:
            raise ConnectionError("left before the handshake")
        if not isinstance(hello, wire.Hello):
            raise BadFrame(f"a handshake begins with Hello, not {type(hello).__name__}")
        if hello.protocol != wire.PROTOCOL:
            raise Invalid(
                f"the agent speaks protocol {hello.protocol}, this control plane {wire.PROTOCOL}",
                hint="install the same version of Roost on the host",
            )
        shown = peer_host(writer.get_extra_info("ssl_object"))
        if shown is not None and shown != hello.host_id:
            raise Denied(f"the certificate is for {shown!r}, not for {hello.host_id!r}")
        if not signed(hello.public_key, hello.signature, nonce, hello.host_id):
            raise Denied(
                "the signature does not answer this challenge",
                hint="the host must hold its own key",
            )
        await self._book.admit(hello.host_id, hello.join_token, hello.public_key)
        writer.write(self._out.encode(self._welcome(hello)))

    def _welcome(self, hello: wire.Hello) -> wire.Welcome:
        credential = hmac.new(self._data_secret, hello.host_id.encode(), hashlib.sha256)
        certificate = b""
        if self._tls is not None:
            certificate = self._tls.authority.client_certificate(hello.host_id, hello.public_key)
        return wire.Welcome(
            heartbeat_s=self._heartbeat_s,
            data_addresses=self._data_addresses(),
            data_credential=credential.hexdigest(),
            events_seen=self._peers.events_seen(hello.host_id),
            now_s=self._clock.now_s(),
            certificate=certificate,
        )

    async def _attend(
        self, host_id: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        connection = Connection(writer)
        self._peers.arrive(host_id, connection)
        sender = asyncio.create_task(connection.send_all())
        try:
            while True:
                async with asyncio.timeout(self._silence_s):
                    message = await self._in.read(reader)
                if message is None:
                    return
                self._take(host_id, connection, message)
        finally:
            self._peers.leave(host_id, connection)
            sender.cancel()
            with contextlib.suppress(asyncio.CancelledError, OSError, ssl.SSLError):
                await sender

    def _take(self, host_id: str, connection: Connection, message: wire.ToControl) -> None:
        match message:
            case wire.Heartbeat(report=report):
                self._peers.report(host_id, connection, report)
            case wire.Reply():
                self._peers.reply(host_id, message)
            case wire.Event(seq=seq, body=body):
                self._peers.event(host_id, seq, body)
                connection.send(self._out.encode(wire.EventAck(seq=seq)))
            case _:
                raise BadFrame("a second Hello")

    async def _refuse(
        self, writer: asyncio.StreamWriter, reason: str, hint: str, *, final: bool
    ) -> None:
        refusal = wire.Refused(reason=reason[:500], hint=hint, final=final)
        with contextlib.suppress(OSError, TimeoutError, ssl.SSLError):
            async with asyncio.timeout(1.0):
                writer.write(self._out.encode(refusal))
                await writer.drain()
