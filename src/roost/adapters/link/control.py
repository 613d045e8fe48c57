"""The agent's control connection: dials control, stays there, comes back after every cut.

Commands are answered once: the last ``REMEMBERED`` replies are kept by command id, and a command that
still runs when it is sent again is not run twice. It decides nothing; handlers do.
"""

import asyncio
import logging
import os
import ssl
from collections import OrderedDict
from collections.abc import Awaitable, Callable

from roost.adapters.link.identity import Identity, write_private
from roost.adapters.link.outbox import Outbox
from roost.adapters.link.peers import Connection
from roost.adapters.link.streams import dial, hang_up
from roost.adapters.link.tls import client_context, unpack_ticket
from roost.kit.retry import RetryPolicy
from roost.ports import wire
from roost.ports.clock import Clock
from roost.ports.errors import Denied, Never, Retry, RoostError, WireError, to_wire
from roost.ports.frames import BadFrame
from roost.ports.values import HostReport

log = logging.getLogger(__name__)

REMEMBERED = 256
HANDSHAKE_S = 5.0
BACK_OFF = RetryPolicy(first_s=0.1, factor=1.7, ceiling_s=5.0)


class Ticket:
    """What the host was given to join: its id, the token, and the authority to trust (or none)."""

    def __init__(self, host_id: str, join_ticket: str, identity: Identity) -> None:
        self.host_id = host_id
        self.token, self._authority = unpack_ticket(join_ticket)
        self.identity = identity

    def tls(self) -> ssl.SSLContext | None:
        """The context for the next connection (with the client certificate once there is one)."""
        if not self._authority:
            return None
        return client_context(
            self._authority,
            certificate=self.identity.certificate_path,
            key=self.identity.key_path,
        )


class ControlLink:
    """One agent's side of the control connection."""

    def __init__(
        self,
        *,
        address: str,
        ticket: Ticket,
        outbox: Outbox,
        clock: Clock,
        draw: Callable[[], float],
        handle: Callable[[wire.Command], Awaitable[wire.ReplyBody]],
        report: Callable[[], HostReport],
        on_welcome: Callable[[wire.Welcome], None],
    ) -> None:
        """``draw`` gives jitter in [0, 1)."""
        self._address = address
        self._ticket = ticket
        self._outbox = outbox
        self._clock = clock
        self._draw = draw
        self._handle = handle
        self._report = report
        self._on_welcome = on_welcome
        self._in, self._out = wire.to_agent(), wire.to_control()
        self._connection: Connection | None = None
        self._replies: OrderedDict[str, bytes] = OrderedDict()
        self._running: dict[str, asyncio.Task[None]] = {}

    @property
    def connected(self) -> bool:
        """Whether control has welcomed this agent on the present connection."""
        return self._connection is not None

    async def run(self) -> None:
        """Stay connected until cancelled. ``Denied`` when control will never have this host."""
        attempt = 0
        try:
            while True:
                attempt += 1
                before_s = self._clock.monotonic_s()
                try:
                    await self._connect_once()
                except (Retry, BadFrame, OSError, TimeoutError) as error:
                    log.info("link: %s", error or type(error).__name__)
                if self._clock.monotonic_s() - before_s > BACK_OFF.ceiling_s:
                    attempt = 1
                await asyncio.sleep(BACK_OFF.delay_s(attempt, self._draw()))
        finally:
            for task in self._running.values():
                task.cancel()
            await asyncio.gather(*self._running.values(), return_exceptions=True)

    def emit(self, body: wire.EventBody) -> None:
        """Tell control: now, or after the next connect; kept until acknowledged."""
        event = self._outbox.add(body)
        if self._connection is not None:
            self._send_event(self._connection, event)

    def beat(self) -> None:
        """Send a report at once (something changed)."""
        if self._connection is not None:
            self._connection.send(self._out.encode(wire.Heartbeat(report=self._report())))

    # --- one connection -----------------------------------------------------------------------

    async def _connect_once(self) -> None:
        reader, writer = await dial(self._address, tls=self._ticket.tls(), timeout_s=HANDSHAKE_S)
        try:
            async with asyncio.timeout(HANDSHAKE_S):
                welcome = await self._introduce(reader, writer)
            log.info("link: connected to %s", self._address)
            await self._attend(welcome, reader, writer)
        finally:
            self._connection = None
            await hang_up(writer)

    async def _introduce(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> wire.Welcome:
        challenge = await self._in.read(reader)
        if not isinstance(challenge, wire.Challenge):
            raise _unwelcome(challenge)
        identity = self._ticket.identity
        hello = wire.Hello(
            host_id=self._ticket.host_id,
            join_token=self._ticket.token,
            public_key=identity.public_key,
            signature=identity.sign(challenge.nonce, self._ticket.host_id),
            agent_pid=os.getpid(),
        )
        writer.write(self._out.encode(hello))
        welcome = await self._in.read(reader)
        if not isinstance(welcome, wire.Welcome):
            raise _unwelcome(welcome)
        if welcome.certificate:
            write_private(identity.certificate_path, welcome.certificate)
        return welcome

    async def _attend(
        self, welcome: wire.Welcome, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        connection = Connection(writer)
        self._connection = connection
        self._outbox.seen(welcome.events_seen)
        self._on_welcome(welcome)
        self.beat()
        for event in self._outbox.waiting():
            self._send_event(connection, event)
        helpers = [
            asyncio.create_task(connection.send_all()),
            asyncio.create_task(self._keep_beating(welcome.heartbeat_s)),
        ]
        try:
            while (message := await self._in.read(reader)) is not None:
                self._take(connection, message)
            raise Retry("control closed the connection")
        finally:
            for helper in helpers:
                helper.cancel()
            await asyncio.gather(*helpers, return_exceptions=True)

    async def _keep_beating(self, period_s: float) -> None:
        while True:
            await asyncio.sleep(period_s)
            self.beat()

    def _take(self, connection: Connection, message: wire.ToAgent) -> None:
        match message:
            case wire.Command():
                self._command(connection, message)
            case wire.EventAck(seq=seq):
                self._outbox.acknowledged(seq)
            case wire.Refused(reason=reason):
                raise Retry(f"control closed the connection: {reason}")
            case _:
                raise BadFrame(f"{type(message).__name__} after the handshake")

    # --- commands -----------------------------------------------------------------------------

    def _command(self, connection: Connection, command: wire.Command) -> None:
        if command.id in self._replies:
            connection.send(self._replies[command.id])
        elif command.id not in self._running:
            task = asyncio.create_task(self._answer(command))
            self._running[command.id] = task

    async def _answer(self, command: wire.Command) -> None:
        try:
            reply = await self._reply(command)
            frame = self._encode(reply)
            self._replies[command.id] = frame
            while len(self._replies) > REMEMBERED:
                self._replies.popitem(last=False)
            if self._connection is not None:
                self._connection.send(frame)
        finally:
            del self._running[command.id]

    async def _reply(self, command: wire.Command) -> wire.Reply:
        try:
            return wire.Reply(id=command.id, body=await self._handle(command))
        except RoostError as error:
            return wire.Reply(id=command.id, error=to_wire(error))
        except Exception as error:  # a defect in one handler must be answered, not waited for
            log.exception("command %s failed", type(command.body).__name__)
            text = f"{type(error).__name__}: {error}"
            return wire.Reply(id=command.id, error=to_wire(Never(text, hint="see the agent's log")))

    def _encode(self, reply: wire.Reply) -> bytes:
        try:
            return self._out.encode(reply)
        except BadFrame as error:
            wrong = WireError(code=Never.code, message=str(error))
            return self._out.encode(wire.Reply(id=reply.id, error=wrong))

    def _send_event(self, connection: Connection, event: wire.Event) -> None:
        try:
            connection.send(self._out.encode(event))
        except BadFrame as error:
            log.error("an event cannot be told: %s", error)
            self._outbox.acknowledged(event.seq)


def _unwelcome(message: wire.ToAgent | None) -> Exception:
    """What a handshake that did not end in Welcome means to the caller."""
    if isinstance(message, wire.Refused):
        if message.final:
            return Denied(message.reason, hint=message.hint)
        return Retry(f"control refused: {message.reason}", hint=message.hint)
    return BadFrame(f"{type(message).__name__} in the handshake")
