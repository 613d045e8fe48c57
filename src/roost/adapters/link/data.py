"""The agent's data connections: a few parked at every edge, each opened once for one service.

Everything that may be large goes through here, never through the control connection. Which services
there are is the agent's business; this file only parks, opens and hands over.
"""

import asyncio
import logging
import ssl
from collections.abc import Awaitable, Callable

from roost.adapters.link.streams import dial, hang_up, splice
from roost.kit.retry import RetryPolicy
from roost.ports import wire
from roost.ports.errors import Invalid, Retry, RoostError, to_wire
from roost.ports.frames import BadFrame

log = logging.getLogger(__name__)

PARKED = 2
PARKED_MOST = 12
"""At one edge; the edge keeps no more than 16."""
STREAMS_A_PARKED = 8
"""One more is parked for so many that carry a service: where many come, many more may."""
DIAL_S = 5.0
BACK_OFF = RetryPolicy(first_s=0.1, factor=1.7, ceiling_s=5.0)

Stream = tuple[asyncio.StreamReader, asyncio.StreamWriter]
Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
OpenService = Callable[[wire.Open], Awaitable[Stream | Serve]]
"""A stream to splice with the connection, or what serves it; a typed error when it cannot be had."""


async def data_connection(
    address: str, host_id: str, credential: str, purpose: str, tls: ssl.SSLContext | None
) -> Stream:
    """Dial an edge and introduce the host. ``Retry`` when it does not answer."""
    reader, writer = await dial(address, tls=tls, timeout_s=DIAL_S)
    try:
        async with asyncio.timeout(DIAL_S):
            challenge = await wire.data_to_agent().read(reader)
        if not isinstance(challenge, wire.Challenge):
            raise Retry(f"the edge at {address} did not begin a handshake")
        if challenge.protocol != wire.PROTOCOL:
            raise Invalid(f"the edge speaks protocol {challenge.protocol}, this {wire.PROTOCOL}")
        hello = wire.DataHello(host_id=host_id, credential=credential, purpose=purpose)
        writer.write(wire.data_to_edge().encode(hello))
    except (OSError, TimeoutError, BadFrame, RoostError) as error:
        await hang_up(writer)
        if isinstance(error, RoostError):
            raise
        raise Retry(f"the edge at {address}: {error or type(error).__name__}") from error
    return reader, writer


class DataPool:
    """Keeps a few idle connections at every data address and serves those that are opened."""

    def __init__(
        self,
        host_id: str,
        *,
        open_service: OpenService,
        draw: Callable[[], float],
        tls: Callable[[], ssl.SSLContext | None] = lambda: None,
        parked: int = PARKED,
    ) -> None:
        self._host_id = host_id
        self._open_service = open_service
        self._draw = draw
        self._tls = tls
        self._parked = parked
        self._credential = ""
        self._parkers: dict[str, list[asyncio.Task[None]]] = {}
        self._streams: set[asyncio.Task[None]] = set()
        self._in, self._out = wire.data_to_agent(), wire.data_to_edge()

    @property
    def open_streams(self) -> int:
        """Connections that carry a service now."""
        return len(self._streams)

    def welcome(self, addresses: tuple[str, ...], credential: str) -> None:
        """Park at these addresses from now on (called again after each reconnect of control)."""
        self._credential = credential
        for address in set(self._parkers) - set(addresses):
            for task in self._parkers.pop(address):
                task.cancel()
        for address in addresses:
            if address not in self._parkers:
                self._parkers[address] = []
                self._park_more(address)

    async def close(self) -> None:
        """End all parked and open connections."""
        tasks = [task for tasks in self._parkers.values() for task in tasks] + list(self._streams)
        self._parkers.clear()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _park_more(self, address: str) -> bool:
        """Have as many parkers as the streams that are open call for. False: there is one too many."""
        parkers = self._parkers.get(address)
        if parkers is None:  # nothing is parked there any more
            return False
        parkers[:] = [task for task in parkers if not task.done()]
        while len(parkers) < self._wanted:
            parkers.append(asyncio.create_task(self._keep_parked(address)))
        return len(parkers) == self._wanted

    @property
    def _wanted(self) -> int:
        more = len(self._streams) // STREAMS_A_PARKED
        return max(self._parked, min(PARKED_MOST, self._parked + more))

    async def _keep_parked(self, address: str) -> None:
        attempt = 0
        while True:
            try:
                if await self._park(address):
                    attempt = 0
                    if self._park_more(address):
                        continue
                    return
            except (RoostError, OSError, BadFrame) as error:
                log.debug("data: %s: %s", address, error)
            attempt += 1
            await asyncio.sleep(BACK_OFF.delay_s(attempt, self._draw()))

    async def _park(self, address: str) -> bool:
        """Wait on one connection until it is opened (True) or ends (False)."""
        reader, writer = await data_connection(
            address, self._host_id, self._credential, "park", self._tls()
        )
        try:
            message = await self._in.read(reader)
        except BaseException:
            await hang_up(writer)
            raise
        if not isinstance(message, wire.Open):
            await hang_up(writer)
            if isinstance(message, wire.Refused):
                raise Retry(message.reason, hint=message.hint)
            return False
        task = asyncio.create_task(self._serve(message, reader, writer))
        self._streams.add(task)
        task.add_done_callback(self._streams.discard)
        return True

    async def _serve(
        self, request: wire.Open, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        try:
            await self._connect(request, reader, writer)
        except (OSError, BadFrame) as error:
            log.info("data: stream %s ended: %s", request.service, error)
        except Exception:  # a defect in one stream ends that stream only
            log.exception("data: stream %s failed", request.service)
        finally:
            await hang_up(writer)

    async def _connect(
        self, request: wire.Open, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        try:
            service = await self._open_service(request)
        except RoostError as error:
            await self._answer(writer, wire.OpenFailed(error=to_wire(error)))
            return
        await self._answer(writer, wire.Opened())
        if isinstance(service, tuple):
            await splice((reader, writer), service)
        else:
            await service(reader, writer)

    async def _answer(
        self, writer: asyncio.StreamWriter, message: wire.Opened | wire.OpenFailed
    ) -> None:
        writer.write(self._out.encode(message))
        await writer.drain()
