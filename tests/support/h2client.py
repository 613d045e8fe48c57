"""A client that speaks HTTP/2 over TLS frame by frame, for tests that need to misbehave."""

import asyncio
import ssl
from collections.abc import Callable
from dataclasses import dataclass, field

from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.events import (
    ConnectionTerminated,
    DataReceived,
    Event,
    InformationalResponseReceived,
    RemoteSettingsChanged,
    ResponseReceived,
    StreamEnded,
    StreamReset,
    TrailersReceived,
)
from h2.settings import SettingCodes
from hyperframe.frame import Frame, GoAwayFrame

Pair = tuple[bytes, bytes]


class _Connection(H2Connection):
    def _receive_goaway_frame(self, frame: GoAwayFrame) -> tuple[list[Frame], list[Event]]:
        # A client may go on with its streams after a GOAWAY; h2 would not let it.
        event = ConnectionTerminated()
        event.error_code, event.last_stream_id = frame.error_code, frame.last_stream_id
        return [], [event]


@dataclass
class Reply:
    """What has arrived on one stream."""

    interim: list[int] = field(default_factory=list)
    fields: list[Pair] = field(default_factory=list)
    body: bytearray = field(default_factory=bytearray)
    trailers: list[Pair] = field(default_factory=list)
    ended: bool = False
    reset: int | None = None

    @property
    def status(self) -> int:
        return int(dict(self.fields)[b":status"])


class H2Client:
    """One connection. ``auto``: give windows back as data arrives."""

    def __init__(self, *, auto: bool = True) -> None:
        config = H2Configuration(
            client_side=True,
            header_encoding=None,
            validate_outbound_headers=False,
            normalize_outbound_headers=False,
        )
        self.h2 = _Connection(config)
        self.replies: dict[int, Reply] = {}
        self.goaways: list[tuple[int, int]] = []
        self.closed = False
        self._auto = auto
        self._changed = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    async def connect(
        self, port: int, tls: ssl.SSLContext, settings: dict[int, int] | None = None
    ) -> None:
        self.reader, self.writer = await asyncio.open_connection(
            "127.0.0.1", port, ssl=tls, server_hostname="localhost"
        )
        chosen = self.writer.get_extra_info("ssl_object").selected_alpn_protocol()
        assert chosen == "h2"
        self.h2.initiate_connection()
        if settings:
            self.h2.update_settings(settings)  # type: ignore[arg-type]
        self.flush()
        self._task = asyncio.create_task(self._read())

    def flush(self) -> None:
        data = self.h2.data_to_send()
        if data and not self.closed:
            self.writer.write(data)

    def raw(self, data: bytes) -> None:
        """Bytes that h2 would not send."""
        self.flush()
        if not self.closed:
            self.writer.write(data)

    def ask(
        self,
        path: bytes = b"/",
        *,
        method: bytes = b"GET",
        fields: list[Pair] | None = None,
        end: bool = True,
        pseudo: list[Pair] | None = None,
    ) -> int:
        stream_id = self.h2.get_next_available_stream_id()
        self.replies[stream_id] = Reply()
        head = [
            (b":method", method),
            (b":scheme", b"https"),
            (b":authority", b"localhost"),
            (b":path", path),
        ]
        self.h2.send_headers(stream_id, (pseudo or head) + (fields or []), end_stream=end)
        self.flush()
        return stream_id

    async def upload(self, stream_id: int, data: bytes, *, end: bool = True) -> None:
        """Send a body as the windows allow."""
        view = memoryview(data)
        while view:
            reply = self.replies[stream_id]
            room = 0
            if reply.reset is None and not self.closed:
                room = self.h2.local_flow_control_window(stream_id)
            if reply.reset is not None or self.closed:
                return
            if not room:
                await self._change()
                continue
            size = min(room, self.h2.max_outbound_frame_size, len(view))
            self.h2.send_data(stream_id, bytes(view[:size]), end_stream=end and size == len(view))
            view = view[size:]
            self.flush()
            await self.writer.drain()

    async def reply(self, stream_id: int) -> Reply:
        """Wait for its end."""
        reply = self.replies[stream_id]
        await self.until(lambda: reply.ended or reply.reset is not None or self.closed)
        return reply

    async def until(self, true: Callable[[], bool], timeout_s: float = 15) -> None:
        async with asyncio.timeout(timeout_s):
            while not true():
                await self._change()

    async def _change(self) -> None:
        self._changed.clear()
        await self._changed.wait()

    async def close(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        self.writer.transport.abort()

    async def _read(self) -> None:
        try:
            while data := await self.reader.read(1 << 16):
                for event in self.h2.receive_data(data):
                    self._note(event)
                self.flush()
                self._changed.set()
        except OSError:
            pass
        finally:
            self.closed = True
            self._changed.set()

    def _note(self, event: Event) -> None:
        if isinstance(event, ConnectionTerminated):
            self.goaways.append((int(event.error_code or 0), event.last_stream_id or 0))
            return
        if isinstance(
            event, RemoteSettingsChanged
        ):  # the client in h2 keeps to the rules: not here
            self.h2.remote_settings[SettingCodes.MAX_CONCURRENT_STREAMS] = 1 << 20
            self.h2.remote_settings.acknowledge()
        reply = self.replies.get(getattr(event, "stream_id", None) or 0)
        if reply is None:
            return
        if isinstance(event, InformationalResponseReceived):
            reply.interim.append(int(dict(event.headers)[b":status"]))
        elif isinstance(event, ResponseReceived):
            reply.fields = list(event.headers)
        elif isinstance(event, DataReceived):
            reply.body += event.data or b""
            if self._auto and event.flow_controlled_length:
                self.h2.acknowledge_received_data(
                    event.flow_controlled_length, event.stream_id or 0
                )
        elif isinstance(event, TrailersReceived):
            reply.trailers = list(event.headers)
        elif isinstance(event, StreamEnded):
            reply.ended = True
        elif isinstance(event, StreamReset):
            reply.reset = int(event.error_code or 0)
