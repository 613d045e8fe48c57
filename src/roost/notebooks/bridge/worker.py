"""The worker of the bridge: journal on one side, the session's stream through the edge on the other.

Reconnects for as long as the session exists and holds the client's requests meanwhile: the client
sees "busy", nothing else. May be killed at any moment: the front starts another, the journal and the
keeper's spool have the rest. Never touches the client's sockets.
"""

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from roost.kit.retry import RetryPolicy
from roost.notebooks.bridge.journal import Entry, Journal, Position
from roost.notebooks.bridge.pipe import (
    Deliver,
    Delivered,
    Ending,
    FromClient,
    Interrupted,
    Kept,
    Leave,
    Subscribed,
    ToFront,
    Welcome,
    to_front,
    to_worker,
)
from roost.notebooks.bridge.replay import plan
from roost.ports.errors import Denied, Gone, Never, Retry, RoostError
from roost.ports.frames import BadFrame
from roost.ports.jupyter import BadMessage, Message, Signer, read
from roost.ports.wire import (
    Accepted,
    Ack,
    Attach,
    Attached,
    Fenced,
    Interrupt,
    KernelDied,
    Output,
    Refused,
    Request,
    Settled,
    ToBridge,
    ToKeeper,
    to_bridge,
    to_keeper,
)

ACK_PAUSE_S = 0.02
GONE_PATIENCE_S = 8.0
"""A route may be a moment late, or away while a control plane restarts; then the session is gone."""
ATTACH_TIMEOUT_S = 20.0
FOLDER_TIMEOUT_S = 60.0
FOLDER_LAST_S = 2.0
"""At a shutdown: clients kill what takes longer."""
SHOWN = frozenset({"stream", "display_data", "update_display_data", "execute_result", "error"})
COMMS = frozenset({"comm_open", "comm_msg", "comm_close"})
Stream = tuple[asyncio.StreamReader, asyncio.StreamWriter]

log = logging.getLogger("roost.bridge")


@dataclass(frozen=True, slots=True)
class Place:
    """Where the worker's session is, and how it gets there."""

    session_id: str
    key: str
    """Signing key of the client's connection file and of the session."""
    open_stream: Callable[[], Awaitable[Stream]]
    """Dials the session through the edge; raises ``Retry``, ``Gone`` or ``Denied``."""
    give_back: Callable[[], Awaitable[None]] | None = None
    """Ends a session that this bridge had asked for."""
    after_cell: Callable[[], Awaitable[list[str]]] | None = None
    """Brings the notebook's folder in step; returns sentences for the person, usually none."""


class _Link:
    """One stream to one keeper."""

    def __init__(self, stream: Stream) -> None:
        self.reader, self._writer = stream
        self._encode = to_keeper()
        self.decode = to_bridge()
        self.fenced = False
        self.over = asyncio.Event()
        """Fenced or ended: time to dial again."""

    def send(self, message: ToKeeper) -> None:
        """Queue a message; a broken stream is noticed by its reader."""
        if not self._writer.is_closing():
            self._writer.write(self._encode.encode(message))

    async def receive(self) -> ToBridge | None:
        """The next message, None at the end or when the stream broke."""
        try:
            return await self.decode.read(self.reader)
        except (OSError, BadFrame) as error:
            log.info("the stream broke: %s", error)
            return None

    async def close(self) -> None:
        """End the stream."""
        self._writer.close()
        with suppress(OSError):
            await self._writer.wait_closed()


class Worker:
    """See the module. ``run`` returns when the bridge is to end."""

    def __init__(self, place: Place, journal: Journal, front: Stream) -> None:
        self._place = place
        self._journal = journal
        self._front_reader, self._front_writer = front
        self._encode = to_front()
        self._signer = Signer(place.key)
        self._link: _Link | None = None
        self._cursor: Position = journal.served
        self._effects: deque[tuple[Position, Callable[[], None]]] = deque()
        self._interrupt_wanted = False
        self._ack_due = False
        self._acked: Position = (0, 0)
        self._welcomed = asyncio.Event()
        """The front has said how far the client was served."""
        self._leaving = asyncio.Event()
        self._shutdown: dict[str, bool] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._retry = RetryPolicy(first_s=0.1, ceiling_s=3.0)

    async def run(self) -> None:
        """Serve until the client or the session ends."""
        front = asyncio.create_task(self._read_front())
        dialling = asyncio.create_task(self._stay_attached())
        leaving = asyncio.create_task(self._leaving.wait())
        done, rest = await asyncio.wait(
            (front, dialling, leaving), return_when=asyncio.FIRST_COMPLETED
        )
        for task in rest:
            task.cancel()
        await asyncio.gather(*rest, return_exceptions=True)
        if self._link is not None:
            await self._link.close()
        with suppress(OSError):
            await self._front_writer.drain()
        for task in done:
            task.result()

    # --- the front ---------------------------------------------------------------------------------

    async def _read_front(self) -> None:
        frames = to_worker()
        while (message := await frames.read(self._front_reader)) is not None:
            match message:
                case Welcome():
                    self._cursor = max(self._journal.served, (message.epoch, message.seq))
                    self._journal.serve(self._cursor)
                    self._welcomed.set()
                case FromClient():
                    await self._from_client(message)
                case Subscribed():
                    self._greet(message)
                case Delivered():
                    self._delivered((message.epoch, message.seq))
                case Interrupted():
                    self._interrupt()
                case Ending():
                    self._leaving.set()

    def _say(self, message: ToFront) -> None:
        self._front_writer.write(self._encode.encode(message))

    async def _from_client(self, message: FromClient) -> None:
        try:
            parsed = read(message.frames)
        except BadMessage as error:
            log.warning("dropped a message of the client: %s", error)
            self._say(Kept(number=message.number))
            return
        header = parsed.header
        entry = Entry(header.msg_id, message.channel, header.msg_type, message.frames)
        fresh = self._journal.add(entry)
        self._say(Kept(number=message.number))
        if header.msg_type == "shutdown_request":
            await self._shutdown_asked(parsed, message.channel)
        elif fresh and self._ready():
            self._request(entry)

    def _greet(self, message: Subscribed) -> None:
        topic = message.topic
        content = {"subscription": topic.decode("utf-8", "replace")}
        identities = (topic,) if topic else ()
        frames = self._signer.build("iopub_welcome", content, identities=identities)
        self._say(Deliver(channel="iopub", frames=frames))
        self._say(Kept(number=message.number))

    def _delivered(self, position: Position) -> None:
        while self._effects and self._effects[0][0] <= position:
            self._effects.popleft()[1]()
        self._journal.serve(position)
        if not self._ack_due:
            self._ack_due = True
            asyncio.get_running_loop().call_later(ACK_PAUSE_S, self._acknowledge)

    def _acknowledge(self) -> None:
        self._ack_due = False
        served = self._journal.served
        if self._link is not None and served > self._acked:
            self._acked = served
            self._link.send(Ack(epoch=served[0], seq=served[1]))

    # --- requests ----------------------------------------------------------------------------------

    def _ready(self) -> bool:
        return self._link is not None and not self._link.over.is_set()

    def _request(self, entry: Entry) -> None:
        if self._link is not None:
            message = Request(channel=entry.channel, msg_id=entry.msg_id, frames=entry.frames)
            self._link.send(message)

    def _interrupt(self) -> None:
        if self._ready() and self._link is not None:
            self._link.send(Interrupt())
        else:
            self._interrupt_wanted = True

    async def _shutdown_asked(self, message: Message, channel: str) -> None:
        """The client ends or restarts the kernel: with its reply this bridge ends too."""
        restart = message.status().restart
        self._shutdown[message.header.msg_id] = restart
        entry = self._journal.entries.get(message.header.msg_id)
        if self._ready() and entry is not None:
            self._request(entry)
            return
        if restart:
            return  # it waits for the move, as everything behind it
        # Nobody to ask at the moment: a client gives a shutdown a few seconds, a move may take more.
        reply = self._signer.reply(message, {"status": "ok", "restart": False})
        self._say(Deliver(channel=channel, frames=reply))
        await self._leave(restart=False)

    async def _leave(self, *, restart: bool) -> None:
        """Pending requests end with the kernel, as without a bridge."""
        self._journal.forget(tuple(self._journal.entries))
        await self._folder("", FOLDER_LAST_S)
        if not restart and self._place.give_back is not None:
            try:
                await self._place.give_back()
                self._journal.close(delete=True)
            except (Retry, Denied, Never) as error:
                log.warning("the session could not be ended: %s", error)
        self._say(Leave(code=0))
        self._leaving.set()

    def _refuse_all(self, why: str) -> None:
        """There is no kernel any more: every pending request gets an error."""
        error = {"ename": "SessionEnded", "evalue": why, "traceback": [why]}
        for entry in list(self._journal.entries.values()):
            if entry.answered or entry.msg_type in COMMS or entry.channel == "stdin":
                continue
            request = read(entry.frames)
            self._say(Deliver(channel="iopub", frames=self._signer.status("busy", request)))
            if entry.msg_type == "execute_request":
                frames = self._signer.build("error", error, parent=request)
                self._say(Deliver(channel="iopub", frames=frames))
            reply = self._signer.reply(request, {"status": "error", **error})
            self._say(Deliver(channel=entry.channel, frames=reply))
            self._say(Deliver(channel="iopub", frames=self._signer.status("idle", request)))
        self._journal.forget(tuple(self._journal.entries))
        self._say(Leave(code=1))
        self._leaving.set()

    # --- the stream --------------------------------------------------------------------------------

    async def _stay_attached(self) -> None:
        """Dial, attach, serve, and again; ends only when the session is gone or not ours."""
        await self._welcomed.wait()
        loop = asyncio.get_running_loop()
        attempt = 0
        gone_since: float | None = None
        while True:
            try:
                stream = await self._place.open_stream()
                gone_since = None
                link = await self._attach(stream)
                if link is not None:
                    attempt = 0 if not link.fenced else attempt
                    await link.over.wait()
            except Gone as error:
                gone_since = gone_since or loop.time()
                if loop.time() - gone_since > GONE_PATIENCE_S:
                    return self._refuse_all(f"the session has ended: {error}")
            except Retry as error:
                log.info("not connected: %s", error)
            except (Denied, Never) as error:
                return self._refuse_all(f"the session cannot be reached: {error}")
            attempt += 1
            await asyncio.sleep(self._retry.delay_s(attempt))

    async def _attach(self, stream: Stream) -> _Link | None:
        """Take our place at the keeper; the stream before it has said its last word."""
        if self._link is not None:
            # Closed first, so that what it still brought is behind us in one order.
            former, self._link = self._link, None
            await former.close()
        link = _Link(stream)
        epoch, seq = self._cursor
        link.send(Attach(session_id=self._place.session_id, seen_epoch=epoch, seen_seq=seq))
        try:
            async with asyncio.timeout(ATTACH_TIMEOUT_S):
                answer = await link.receive()
        except TimeoutError:
            answer = None
        if not isinstance(answer, Attached) or answer.epoch < self._cursor[0]:
            reason = answer.reason if isinstance(answer, Refused) else "no answer"
            log.info("not attached: %s", reason)
            await link.close()
            return None
        self._link = link
        log.info("attached at epoch %d, served up to %s", answer.epoch, self._cursor)
        self._replay(answer)
        self._spawn(self._serve(link))
        return link

    def _replay(self, attached: Attached) -> None:
        finished, received = set(attached.finished), set(attached.received)
        for replay in plan(list(self._journal.entries.values()), finished, received):
            entry = replay.entry
            if replay.quiet:
                self._journal.again(entry.msg_id, attached.epoch)
            if replay.clear:
                clear = self._signer.build(
                    "clear_output", {"wait": False}, parent=read(entry.frames)
                )
                self._say(Deliver(channel="iopub", frames=clear))
            self._request(entry)
        if self._interrupt_wanted:
            self._interrupt_wanted = False
            self._interrupt()

    async def _serve(self, link: _Link) -> None:
        """Handle what one keeper says, to the end of its stream."""
        try:
            while (message := await link.receive()) is not None:
                match message:
                    case Output():
                        self._output(message)
                        await self._front_writer.drain()
                    case Accepted():
                        self._accepted(message.msg_id)
                    case Settled():
                        self._journal.settled(message.msg_ids)
                    case Fenced():
                        link.fenced = True
                        link.over.set()
                    case KernelDied():
                        answered = [e.msg_id for e in self._journal.entries.values() if e.answered]
                        self._journal.forget(tuple(answered))
                    case Attached() | Refused():
                        break
        finally:
            link.over.set()

    def _accepted(self, msg_id: str) -> None:
        entry = self._journal.entries.get(msg_id)
        if entry is not None and entry.channel == "stdin":
            self._journal.forget((msg_id,))

    def _output(self, output: Output) -> None:
        position = (output.epoch, output.seq)
        if position <= self._cursor:
            return
        self._cursor = position
        try:
            message = read(output.frames)
        except BadMessage:
            return
        parent = message.parent.msg_id
        if output.channel != "stdin" and self._journal.unseen(parent, output.epoch):
            # Numbered all the same: the client is served up to here.
            self._say(Deliver(channel="", frames=(), epoch=position[0], seq=position[1]))
            return
        self._say(
            Deliver(
                channel=output.channel, frames=output.frames, epoch=output.epoch, seq=output.seq
            )
        )
        effect = self._effect(output.channel, message, parent)
        if effect is not None:
            self._effects.append((position, effect))

    def _effect(self, channel: str, message: Message, parent: str) -> Callable[[], None] | None:
        """What is known once the client has this message."""
        kind = message.header.msg_type
        if channel == "iopub":
            if kind in SHOWN:
                return lambda: self._journal.shown(parent)
            entry = self._journal.entries.get(parent)
            is_comm = entry is not None and entry.msg_type in COMMS
            if is_comm and kind == "status" and message.status().execution_state == "idle":
                return lambda: self._journal.forget((parent,))
            return None
        if channel == "stdin":
            return None
        if kind == "shutdown_reply" and parent in self._shutdown:
            restart = self._shutdown[parent]
            return lambda: self._leave_soon(restart)
        return lambda: self._answered(parent, kind)

    def _answered(self, parent: str, kind: str) -> None:
        self._journal.answered(parent)
        if kind == "execute_reply" and self._place.after_cell is not None:
            self._spawn(self._folder(parent, FOLDER_TIMEOUT_S))

    async def _folder(self, parent: str, limit_s: float) -> None:
        """After a cell: its files come to the notebook's folder; what a person should know is shown."""
        if self._place.after_cell is None:
            return
        try:
            async with asyncio.timeout(limit_s):
                lines = await self._place.after_cell()
        except (RoostError, OSError, TimeoutError) as error:
            log.warning("the notebook's folder is not in step: %s", error)
            return
        entry = self._journal.entries.get(parent)
        for line in lines:
            log.warning("%s", line)
            content = {"name": "stderr", "text": f"Roost: {line}\n"}
            request = read(entry.frames) if entry is not None else None
            frames = self._signer.build("stream", content, parent=request)
            self._say(Deliver(channel="iopub", frames=frames))

    def _leave_soon(self, restart: bool) -> None:
        self._spawn(self._leave(restart=restart))

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("%s", error, exc_info=error)
