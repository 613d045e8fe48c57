"""HTTP/2 towards clients: frames and windows here (the ``h2`` library), exchanges where they always are.

Each stream is an in-memory transport (``http2_stream.py``) with an ordinary ``ClientConnection`` behind it,
so routing, retries, limits and logs exist once. Bytes waiting are bounded per stream in both directions.
Never pushes, never speaks HTTP/2 to a backend or in clear text.
"""

import asyncio
import socket
import sys
from collections.abc import Callable
from dataclasses import replace
from typing import Any, cast

from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.errors import ErrorCodes
from h2.events import (
    ConnectionTerminated,
    DataReceived,
    Event,
    PingAckReceived,
    RemoteSettingsChanged,
    RequestReceived,
    StreamEnded,
    StreamReset,
    TrailersReceived,
    WindowUpdated,
)
from h2.exceptions import ProtocolError
from h2.settings import SettingCodes, Settings
from hpack import NeverIndexedHeaderTuple
from hyperframe.frame import Frame, GoAwayFrame

from roost.proxy.framing import HEAD_LIMIT
from roost.proxy.front import ClientConnection, Proxy
from roost.proxy.http2_guard import CHEAP, DEAR, Guard
from roost.proxy.http2_heads import Malformed, request_head, trailer_lines
from roost.proxy.http2_reply import ReplyHead
from roost.proxy.http2_stream import StreamTransport
from roost.proxy.tunnel import WRITE_HIGH

STREAMS = 100
"""Most streams of one connection at once; more are refused (and may be repeated)."""
STREAM_WINDOW = 128 << 10
"""Most bytes of one request's body waiting for its backend."""
CONNECTION_WINDOW = 512 << 10
"""... and of all requests of the connection."""
SLICE = 16 << 10
"""Received bytes are handled in pieces of this size, so that a flood is noticed early."""
FLUSH = 64 << 10
TICK_S = 1.0
DRAIN_S = 1.0
"""How long requests that crossed our GOAWAY on the way are still taken."""
LAST_STREAM = (1 << 31) - 1
_PING = b"roostend"
_SECRET = frozenset((b"set-cookie", b"authorization", b"proxy-authenticate"))


class _Connection(H2Connection):
    MAX_CLOSED_STREAMS = 1000

    def _receive_goaway_frame(self, frame: GoAwayFrame) -> tuple[list[Frame], list[Event]]:
        # h2 would send nothing more, but a client that says goodbye still wants its answers.
        return [], [ConnectionTerminated()]


def _connection() -> _Connection:
    """A server's side, its first frame ready to be sent."""
    conn = _Connection(
        H2Configuration(
            client_side=False,
            header_encoding=None,
            # Ours are checked in http2_heads: a malformed head resets its stream, not the connection.
            validate_inbound_headers=False,
            normalize_inbound_headers=False,
            validate_outbound_headers=False,
            normalize_outbound_headers=False,
        )
    )
    conn.local_settings = Settings(
        client=False,
        initial_values={
            SettingCodes.MAX_CONCURRENT_STREAMS: STREAMS,
            SettingCodes.MAX_HEADER_LIST_SIZE: HEAD_LIMIT,
            SettingCodes.INITIAL_WINDOW_SIZE: STREAM_WINDOW,
        },
    )
    conn.decoder.max_header_list_size = 2 * HEAD_LIMIT  # a head over the limit is answered with 431
    conn.initiate_connection()
    conn.increment_flow_control_window(CONNECTION_WINDOW - conn.inbound_flow_control_window)
    # One stream too many is refused by us; h2 itself would end the connection.
    conn.local_settings[SettingCodes.MAX_CONCURRENT_STREAMS] = 2 * STREAMS
    conn.local_settings.acknowledge()
    return conn


class Http2Front(asyncio.Protocol):
    """One client connection that speaks HTTP/2."""

    transport: asyncio.Transport

    def __init__(
        self, proxy: Proxy, *, client: tuple[str, int] | None = None, listener: str = ""
    ) -> None:
        self.proxy = proxy
        self._given = client
        self._client = ""
        self._listener = listener
        self._limits = proxy.listeners.get(listener, proxy.limits)
        # A stream is no connection: what is counted is this one.
        self._stream_limits = replace(
            self._limits, connections=sys.maxsize, connections_per_client=0
        )
        self._loop = asyncio.get_running_loop()
        now_s = self._loop.time()
        self.deadline_s = now_s + TICK_S
        self._idle_s = now_s + self._limits.head_s
        """When it has been without a request for too long."""
        self._h2 = _connection()
        self._guard = Guard(now_s)
        self._streams: dict[int, StreamTransport] = {}
        """Streams whose response is not wholly sent."""
        self._ready: dict[int, StreamTransport] = {}
        """Those with something to send that no window holds back, in turn."""
        self._retired: list[StreamTransport] = []
        self._resumed: list[StreamTransport] = []
        self._flushing = False
        self._blocked = False
        self._blocked_size = 0
        self._blocked_s = 0.0
        self._last_id = LAST_STREAM
        """Streams after this one are refused."""
        self._drain_s = 0.0
        """When draining: from when on nothing new is taken; 0 = not draining."""
        self._closing = False

    # --- what the proxy's sweep asks -------------------------------------------------------------

    @property
    def request(self) -> object:
        """Not None while something is to be sent (a stream's own connection counts its exchange)."""
        crossing = self._drain_s and self._last_id == LAST_STREAM
        return self if self._streams or (crossing and not self._closing) else None

    def expired(self) -> None:
        """A look once a second: silence, stalls, the end of draining."""
        now_s = self._loop.time()
        self.deadline_s = now_s + TICK_S
        if self._closing:
            return
        stall_s = self._limits.stall_s
        if self._blocked:
            size = self.transport.get_write_buffer_size()
            if size < self._blocked_size:
                self._blocked_size, self._blocked_s = size, now_s
            elif now_s - self._blocked_s > stall_s:
                self.transport.abort()
                return
        for stream in list(self._streams.values()):
            if stream.retired and now_s - stream.progress_s > stall_s:
                self._reset(stream, ErrorCodes.CANCEL)
        if self.proxy.draining:
            self.drain()
        if self._drain_s and now_s >= self._drain_s:
            self._refuse_new()
        if not self._streams and now_s >= self._idle_s:
            self._goodbye()
        self._flush()

    def drain(self) -> None:
        """Take no new requests, end when those in flight have ended (RFC 9113 section 6.8)."""
        if self._drain_s or self._closing:
            return
        self._drain_s = self._loop.time() + DRAIN_S
        self._goaway(LAST_STREAM)
        self._h2.ping(_PING)  # its answer comes after all that crossed the GOAWAY
        self._flush()

    # --- asyncio.Protocol ------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # A cast: uvloop transports are no subclass of asyncio.Transport.
        self.transport = cast("asyncio.Transport", transport)
        self.transport.set_write_buffer_limits(high=WRITE_HIGH)
        sock = transport.get_extra_info("socket")
        if sock is not None and sock.family in (socket.AF_INET, socket.AF_INET6):
            # asyncio leaves it out where the listening socket was made without a protocol number.
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        peer = self._given or transport.get_extra_info("peername")
        client = str(peer[0]) if isinstance(peer, tuple) else "unix"
        proxy, most = self.proxy, self._limits.connections_per_client
        full = len(proxy.clients) >= self._limits.connections
        if full or 0 < most <= proxy.per_client[client]:
            self._end(ErrorCodes.REFUSED_STREAM)
            return
        # A cast: to the sweep this is one more client, by the attributes it asks.
        proxy.clients.add(cast("ClientConnection", self))
        if most:
            self._client = client
            proxy.per_client[client] += 1
        self._flush()

    def data_received(self, data: bytes) -> None:
        for at in range(0, len(data), SLICE):
            if self._closing:
                return
            try:
                self._handle(self._h2.receive_data(data[at : at + SLICE]))
            except ProtocolError:  # h2 has made the GOAWAY that says why
                self._end(None)
                return
            if self._guard.broken(self._loop.time()):
                self._end(ErrorCodes.ENHANCE_YOUR_CALM)
                return
        self._flush()

    def eof_received(self) -> bool:
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        self._closing = True
        proxy = self.proxy
        proxy.clients.discard(cast("ClientConnection", self))
        if self._client:  # it was counted
            proxy.per_client[self._client] -= 1
            if not proxy.per_client[self._client]:
                del proxy.per_client[self._client]
            self._client = ""
        self._drop(exc or ConnectionResetError("the client left"))

    def pause_writing(self) -> None:
        self._blocked = True
        self._blocked_size = self.transport.get_write_buffer_size()
        self._blocked_s = self._loop.time()
        if not self._closing:
            # Heads and acknowledgements know no window: who does not read them may not ask for more.
            self.transport.pause_reading()

    def resume_writing(self) -> None:
        self._blocked = False
        if not self._closing:
            self.transport.resume_reading()
            self._schedule()

    # --- the client's frames ---------------------------------------------------------------------

    def _handle(self, events: list[Event]) -> None:
        cancelled: set[int | None] = set()
        if len(events) > 1:  # requests cancelled in the same breath are not begun
            cancelled = {e.stream_id for e in events if isinstance(e, StreamReset)}
        for event in events:
            if self._closing:
                return
            if isinstance(event, DataReceived):
                self._on_data(event)
            elif isinstance(event, RequestReceived):
                if event.stream_id not in cancelled:
                    self._on_request(event)
            elif isinstance(event, (StreamEnded, TrailersReceived)):
                self._on_end(event)
            else:
                self._on_control(event)

    def _on_control(self, event: Event) -> None:
        """What carries no request: each costs the client a little."""
        self._guard.spend(
            DEAR if isinstance(event, (StreamReset, RemoteSettingsChanged)) else CHEAP
        )
        if isinstance(event, StreamReset):
            stream = self._streams.get(event.stream_id or 0)
            if stream is not None:
                self._forget(stream)
        elif isinstance(event, WindowUpdated):
            self._on_window(event.stream_id or 0)
        elif isinstance(event, RemoteSettingsChanged):  # perhaps all windows
            self._ready.update(self._streams)
        elif isinstance(event, PingAckReceived) and self._drain_s and event.ping_data == _PING:
            self._refuse_new()

    def _on_request(self, event: RequestReceived) -> None:
        stream_id = event.stream_id
        assert stream_id is not None
        if stream_id > self._last_id or len(self._streams) >= STREAMS:
            self._guard.spend(DEAR)
            self._h2.reset_stream(stream_id, ErrorCodes.REFUSED_STREAM)
            return
        try:
            method, head, chunked = request_head(
                event.headers, ended=event.stream_ended is not None
            )
        except Malformed:
            self._guard.spend(DEAR)
            self._h2.reset_stream(stream_id, ErrorCodes.PROTOCOL_ERROR)
            return
        if self.proxy.draining:
            self.drain()
        stream = StreamTransport(self, stream_id, method, chunked=chunked)
        stream.request_ended = event.stream_ended is not None
        self._streams[stream_id] = stream
        peer = self.transport.get_extra_info("peername")
        client = self._given or (peer[:2] if isinstance(peer, tuple) else None)
        exchange = ClientConnection(self.proxy, client=client, secure=True, listener=self._listener)
        exchange.limits = self._stream_limits
        stream.protocol = exchange
        exchange.connection_made(stream)
        exchange.data_received(head)

    def _on_data(self, event: DataReceived) -> None:
        stream_id, data = event.stream_id, event.data
        cost = event.flow_controlled_length
        assert stream_id is not None and data is not None and cost is not None
        if not data and event.stream_ended is None:
            self._guard.spend(DEAR)
        else:
            self._guard.earn(len(data) / 1024)
        stream = self._streams.get(stream_id)
        if stream is None or stream.retired:
            self._acknowledge(stream_id, cost)
            return
        stream.body(bytes(data), cost)
        self._acknowledge(stream_id, stream.deliver())

    def _on_end(self, event: StreamEnded | TrailersReceived) -> None:
        stream = self._streams.get(event.stream_id or 0)
        if stream is None or stream.request_ended:
            return
        trailers = b""
        if isinstance(event, TrailersReceived):
            try:
                trailers = trailer_lines(event.headers)
            except Malformed:
                self._guard.spend(DEAR)
                self._reset(stream, ErrorCodes.PROTOCOL_ERROR)
                return
        stream.body_end(trailers)
        self._acknowledge(stream.stream_id, stream.deliver())

    def _on_window(self, stream_id: int) -> None:
        if stream_id == 0:
            self._ready.update(self._streams)
        elif stream_id in self._streams:
            self._ready[stream_id] = self._streams[stream_id]

    def _acknowledge(self, stream_id: int, size: int) -> None:
        if size:
            self._h2.acknowledge_received_data(size, stream_id)

    # --- what streams ask (``Carrier``) ----------------------------------------------------------

    def head(self, stream: StreamTransport, head: ReplyHead, *, last: bool) -> None:
        """See ``Carrier``."""
        fields = [
            NeverIndexedHeaderTuple(name, value) if name in _SECRET else (name, value)
            for name, value in head.fields
        ]
        if self._send(stream, lambda: self._h2.send_headers(stream.stream_id, fields, last)):
            stream.progress_s = self._loop.time()
            if last:
                self._sent(stream)
        self._schedule()

    def wrote(self, stream: StreamTransport) -> None:
        """See ``Carrier``."""
        if stream.stream_id in self._streams:
            self._ready[stream.stream_id] = stream
            self._schedule()

    def retire(self, stream: StreamTransport) -> None:
        """See ``Carrier``."""
        self._retired.append(stream)
        self._schedule()

    def broke(self, stream: StreamTransport) -> None:
        """See ``Carrier``."""
        if stream.stream_id in self._streams:
            self._reset(stream, ErrorCodes.INTERNAL_ERROR)
            self._schedule()

    def resumed(self, stream: StreamTransport) -> None:
        """See ``Carrier``."""
        self._resumed.append(stream)
        self._schedule()

    def extra(self, name: str, default: Any) -> Any:
        """See ``Carrier``."""
        return self.transport.get_extra_info(name, default)

    # --- sending ---------------------------------------------------------------------------------

    def _schedule(self) -> None:
        if not self._flushing:
            self._flushing = True
            self._loop.call_soon(self._flush)

    def _flush(self) -> None:
        """Do what was noted: tell protocols, fill windows, write."""
        self._flushing = False
        resumed, self._resumed = self._resumed, []
        for stream in resumed:
            self._acknowledge(stream.stream_id, stream.deliver())
        self._pump()
        retired, self._retired = self._retired, []
        for stream in retired:
            self._retire(stream, None)
        if self._closing:
            return
        if self._drain_s and self._last_id != LAST_STREAM and not self._streams:
            self._goodbye()
            return
        self._write()

    def _write(self) -> None:
        data = self._h2.data_to_send()
        if data and not self.transport.is_closing():
            self.transport.write(data)

    def _pump(self) -> None:
        """One frame of each ready stream in turn, until windows or the socket are full."""
        ready = self._ready
        waiting = 0
        while ready and not self._blocked and not self._closing:
            stream = ready.pop(next(iter(ready)))
            before = stream.pending
            if self._fill(stream):
                ready[stream.stream_id] = stream
            waiting += before - stream.pending
            if waiting >= FLUSH:
                waiting = 0
                self._write()

    def _fill(self, stream: StreamTransport) -> bool:
        """Send one frame; whether more can be sent at once."""
        stream_id, conn = stream.stream_id, self._h2
        if stream_id not in self._streams:
            return False
        if stream.pending:
            room = min(conn.local_flow_control_window(stream_id), conn.max_outbound_frame_size)
            if room <= 0:
                return False
            held_back = room < min(stream.pending, 1024)
            piece = stream.take(room)
            last = stream.ended and not stream.pending and not stream.trailers
            if not self._send(stream, lambda: conn.send_data(stream_id, piece, last)):
                return False
            if not held_back:  # a client that dribbles its window earns nothing by it
                self._guard.earn(2.0)
            stream.progress_s = self._loop.time()
            stream.relieve()
            if last:
                self._sent(stream)
            return stream.pending > 0 or (stream.ended and not last)
        if stream.ended:
            trailers = stream.trailers
            if trailers:
                done = self._send(stream, lambda: conn.send_headers(stream_id, trailers, True))
            else:
                done = self._send(stream, lambda: conn.end_stream(stream_id))
            if done:
                self._sent(stream)
        return False

    def _send(self, stream: StreamTransport, send: Callable[[], None]) -> bool:
        """Hand a frame to h2; False where the stream has ended meanwhile (its reset is on its way)."""
        if stream.stream_id not in self._streams:
            return False
        try:
            send()
        except ProtocolError:
            self._forget(stream)
            return False
        return True

    def _sent(self, stream: StreamTransport) -> None:
        """The response is wholly sent."""
        if not stream.request_ended:  # what is still being uploaded is not wanted
            self._send(stream, lambda: self._h2.reset_stream(stream.stream_id, ErrorCodes.NO_ERROR))
        self._guard.earn(DEAR)
        self._forget(stream)

    def _reset(self, stream: StreamTransport, code: ErrorCodes) -> None:
        self._send(stream, lambda: self._h2.reset_stream(stream.stream_id, code))
        self._forget(stream)

    def _forget(self, stream: StreamTransport) -> None:
        if self._streams.pop(stream.stream_id, None) is None:
            return
        self._ready.pop(stream.stream_id, None)
        self._retired.append(stream)
        self._schedule()
        if not self._streams:
            self._idle_s = self._loop.time() + self._limits.idle_s

    def _retire(self, stream: StreamTransport, error: Exception | None) -> None:
        """End the protocol behind a stream."""
        if stream.retired:
            return
        stream.retired = True
        if stream.stream_id in self._streams and not stream.ended:
            self._reset(stream, ErrorCodes.INTERNAL_ERROR)
        self._acknowledge(stream.stream_id, stream.discard())
        stream.protocol.connection_lost(error)

    # --- the end ---------------------------------------------------------------------------------

    def _goaway(self, last_id: int) -> None:
        # By hand: after h2's own nothing more could be sent.
        self._write()
        frame = GoAwayFrame(0, last_stream_id=last_id, error_code=int(ErrorCodes.NO_ERROR))
        if not self.transport.is_closing():
            self.transport.write(frame.serialize())

    def _refuse_new(self) -> None:
        if self._last_id == LAST_STREAM:
            self._last_id = self._h2.highest_inbound_stream_id
            self._goaway(self._last_id)
            self._schedule()

    def _goodbye(self) -> None:
        """Close a connection without streams."""
        if not self._closing:
            self._last_id = self._h2.highest_inbound_stream_id
            self._goaway(self._last_id)
            self._closing = True
            self.transport.close()

    def _end(self, code: ErrorCodes | None) -> None:
        """Say why, close, and cancel what is in flight; None: h2 has said why."""
        if code is not None:
            self._h2.close_connection(code)
        self._write()
        self._closing = True
        self.transport.close()
        self._drop(ConnectionAbortedError("the client broke HTTP/2"))

    def _drop(self, error: Exception) -> None:
        streams = [*self._streams.values(), *self._retired]
        self._streams.clear()
        self._ready.clear()
        self._retired = []
        for stream in streams:
            if not stream.retired:
                stream.retired = True
                stream.protocol.connection_lost(error)


class AlpnFront(asyncio.Protocol):
    """Until the handshake is over: then the protocol the client has chosen takes its place."""

    def __init__(
        self, proxy: Proxy, *, client: tuple[str, int] | None = None, listener: str = ""
    ) -> None:
        self._proxy = proxy
        self._client = client
        self._listener = listener

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        tls = transport.get_extra_info("ssl_object")
        chosen = tls.selected_alpn_protocol() if tls is not None else None
        proxy, client, listener = self._proxy, self._client, self._listener
        protocol: asyncio.Protocol
        if chosen == "h2":
            protocol = Http2Front(proxy, client=client, listener=listener)
        else:
            protocol = ClientConnection(proxy, client=client, secure=True, listener=listener)
        transport.set_protocol(protocol)
        protocol.connection_made(transport)
