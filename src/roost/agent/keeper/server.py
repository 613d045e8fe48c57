"""The keeper's unix socket: session streams of bridges and the agent's management connections.

A frame that does not decode closes its connection and harms nothing else.
"""

import asyncio
import logging
import os
import socket
from contextlib import suppress
from pathlib import Path

from roost.agent.keeper.keeper import Keeper
from roost.agent.keeper.process import KernelConfig
from roost.kit.ids import Ids
from roost.ports.errors import Never, RoostError, to_wire
from roost.ports.frames import BadFrame
from roost.ports.jupyter import BadMessage
from roost.ports.keeper import (
    Adopt,
    Answer,
    AnswerBody,
    Ask,
    AskBody,
    CaptureKernel,
    CaptureReady,
    DoneAsked,
    Durable,
    FenceOff,
    FromKeeper,
    GetStatus,
    KeeperEvent,
    StopKeeper,
    WarmKernel,
    first_frame,
    from_keeper,
)
from roost.ports.wire import Attach, to_keeper

FIRST_FRAME_S = 30.0
"""A connection that does not say what it is within this time is closed."""

log = logging.getLogger("roost.keeper")


class KeeperServer:
    """Serves one keeper on ``DIR/k-<task>.sock`` until it is stopped."""

    def __init__(self, config: KernelConfig, ids: Ids) -> None:
        self.path: Path = config.run_dir / f"k-{config.task_id}.sock"
        self._keeper = Keeper(config, ids, self._publish)
        self._first = first_frame()
        self._out = from_keeper()
        self._stream = to_keeper()
        self._managers: set[asyncio.StreamWriter] = set()
        self._answering: set[asyncio.Task[None]] = set()
        self._stopping = asyncio.Event()
        self._grace_s = 2.0

    def stop(self) -> None:
        """Ask for the end; ``run`` returns when everything is gone."""
        self._stopping.set()

    async def run(self) -> None:
        """Serve until ``stop`` or a ``StopKeeper``."""
        server = await asyncio.start_unix_server(self._serve, sock=self._listen(), limit=1 << 20)
        self._keeper.start()
        try:
            await self._stopping.wait()
        finally:
            server.close()
            await self._keeper.stop(self._grace_s)
            for task in list(self._answering):
                with suppress(TimeoutError):
                    await asyncio.wait_for(asyncio.shield(task), 1.0)
            self.path.unlink(missing_ok=True)

    def _listen(self) -> socket.socket:
        """The socket appears under its name when it listens: who sees it can connect."""
        fresh = self.path.with_suffix(".new")
        fresh.unlink(missing_ok=True)
        listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        former = os.umask(0o177)
        try:
            listening.bind(str(fresh))
        finally:
            os.umask(former)
        listening.listen(16)
        fresh.replace(self.path)
        return listening

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            async with asyncio.timeout(FIRST_FRAME_S):
                first = await self._first.read(reader)
            if isinstance(first, Attach):
                await self._bridge(first, reader, writer)
            elif isinstance(first, Ask):
                await self._manage(first, reader, writer)
        except (BadFrame, BadMessage, TimeoutError) as error:
            log.warning("closed a connection: %s", error or "it never said what it is")
        except OSError:
            pass
        finally:
            writer.close()

    async def _bridge(
        self, attach: Attach, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        stream = await self._keeper.attach(attach, writer)
        if stream is None:
            await writer.drain()
            return
        try:
            while (message := await self._stream.read(reader)) is not None:
                await self._keeper.take(message)
        finally:
            self._keeper.detach(stream)
            await stream.close()

    async def _manage(
        self, first: Ask, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        self._managers.add(writer)
        capture = self._keeper.last_capture
        if capture is not None:
            writer.write(self._out.encode(CaptureReady(capture=capture)))
        ask: object = first
        try:
            while isinstance(ask, Ask):
                task = asyncio.create_task(self._answer(ask, writer))
                self._answering.add(task)
                task.add_done_callback(self._answering.discard)
                ask = await self._first.read(reader)
        finally:
            self._managers.discard(writer)

    async def _answer(self, ask: Ask, writer: asyncio.StreamWriter) -> None:
        try:
            answer = Answer(id=ask.id, body=await self._do(ask.body))
        except RoostError as error:
            answer = Answer(id=ask.id, error=to_wire(error))
        except Exception as error:  # an ask must always be answered, else the agent waits for ever
            log.exception("could not %s", type(ask.body).__name__)
            answer = Answer(id=ask.id, error=to_wire(Never(f"the keeper failed: {error!r}")))
        self._write(writer, answer)
        with suppress(OSError):
            await writer.drain()

    async def _do(self, body: AskBody) -> AnswerBody:
        match body:
            case GetStatus():
                return self._keeper.status()
            case WarmKernel():
                return await self._keeper.warm(body.imports)
            case Adopt():
                return await self._keeper.adopt(body)
            case FenceOff():
                self._keeper.fence(body.epoch)
            case CaptureKernel():
                return await self._keeper.capture(body.budget_s)
            case Durable():
                self._keeper.durable(body.number)
            case StopKeeper():
                self._grace_s = body.grace_s
                self._stopping.set()
        return DoneAsked()

    def _publish(self, event: KeeperEvent) -> None:
        for writer in list(self._managers):
            self._write(writer, event)

    def _write(self, writer: asyncio.StreamWriter, message: FromKeeper) -> None:
        if not writer.is_closing():
            writer.write(self._out.encode(message))
