"""The keeper itself: a kernel, the line of requests in front of it and the spool behind it.

    starting -> standby -> ready <-> busy -> fenced        (a higher epoch: fenced -> ready)
    the kernel ends by itself -> a fresh one, the session goes on; too often -> dead

Never decides about epochs: it refuses older ones. Never drops a request or a reply silently.
"""

import asyncio
import logging
import os
import signal
from collections.abc import Callable
from contextlib import suppress

import msgspec

from roost.agent.keeper.adoption import Adoption
from roost.agent.keeper.captures import Captures, reports
from roost.agent.keeper.engine import Fields
from roost.agent.keeper.life import Life, reason_of
from roost.agent.keeper.line import Line
from roost.agent.keeper.outbox import Outbox
from roost.agent.keeper.process import KernelConfig
from roost.agent.keeper.spool import Position
from roost.agent.keeper.standing import MARK, SEEN_TWICE, Standing
from roost.agent.keeper.stream import BridgeStream
from roost.kit.ids import Ids
from roost.ports.errors import Conflict, Gone, Invalid, Never, Retry, StaleEpoch
from roost.ports.jupyter import BadMessage, Message, Parts, Signer, read
from roost.ports.keeper import (
    Adopt,
    Adopted,
    CaptureNotMade,
    CaptureReady,
    KeeperCapture,
    KeeperEvent,
    KeeperStatus,
    KernelEnded,
    RunningCell,
    StateChanged,
    Warmed,
)
from roost.ports.kernels import RestoreReport
from roost.ports.wire import (
    Accepted,
    Ack,
    Attach,
    Attached,
    Fenced,
    Interrupt,
    KernelDied,
    Refused,
    Request,
    Restart,
    Settled,
    ToKeeper,
)

REPLY_GRACE_S = 3.0
"""A reply comes on another socket than the idle status; not every odd request has one."""
CAPTURE_GRACE_S = 2.0
INTERRUPT_DELAY_S = 0.05
"""An interrupt is lost in ipykernel until a moment after it announced the cell."""
BUSY_PAUSE_S = 0.02

log = logging.getLogger("roost.keeper")


class _Count(msgspec.Struct, frozen=True):
    execution_count: int = 0


_count = msgspec.json.Decoder(_Count)


class Keeper:
    """See the module. ``publish`` gets every event for the agent."""

    def __init__(
        self, config: KernelConfig, ids: Ids, publish: Callable[[KeeperEvent], None]
    ) -> None:
        self._task_id = config.task_id
        self._publish = publish
        self._life = Life(config, ids, self)
        self._adoption = Adoption(self._life)
        self._line = Line()
        self._ids = ids
        self._captures = Captures()
        self._standing = Standing(self._life.ask)
        self._out = Outbox(config.run_dir / f"s-{config.task_id}.spool")
        self._session: Adopt | None = None
        self._adopted = Adopted()
        self._adopting = asyncio.Lock()
        self._fresh = True
        self._open = False
        """The kernel is the session's: its messages count, requests may go to it."""
        self._held: list[tuple[str, Message]] = []
        self._imports: tuple[str, ...] = ()
        self._execution_count = 0
        self._interrupt_wanted = False
        self._settled = asyncio.Event()
        self._state = "starting"

    # --- status and end ----------------------------------------------------------------------------

    def status(self) -> KeeperStatus:
        """What the keeper and its kernel are doing."""
        return KeeperStatus(
            task_id=self._task_id,
            session_id=self._session.session_id if self._session else "",
            epoch=self._out.epoch,
            state=self._state,
            kernel_pid=self._life.pid,
            keeper_pid=os.getpid(),
            execution_count=self._execution_count,
            imports=self._imports,
            attached=self._out.stream is not None,
        )

    @property
    def last_capture(self) -> KeeperCapture | None:
        """The last capture, for an agent that was away when it was made."""
        return self._captures.last

    def start(self) -> None:
        """Start a kernel (in the background)."""
        self._life.start()

    async def stop(self, grace_s: float) -> None:
        """End the kernel and everything else."""
        self._open = False
        await self._life.stop(grace_s)
        if self._out.stream is not None:
            await self._out.stream.close()
        self._out.spool.close()

    def _show(self) -> None:
        """Recompute the state and publish it when it changed."""
        if self._life.failure:
            state = "dead"
        elif self._line.fenced:
            state = "fenced"
        elif not self._life.up:
            state = "starting"
        elif self._session is None:
            state = "standby"
        else:
            state = "busy" if self._line.in_hand else "ready"
        if state != self._state:
            self._state = state
            self._publish(StateChanged(status=self.status()))

    # --- the kernel's life (LifeHooks) -------------------------------------------------------------

    async def on_started(self, key: str) -> None:
        """A kernel answers: with a session it becomes that session's (fresh) kernel."""
        if self._session is None:
            return
        await self._adoption.run(self._session)
        self._fresh = True
        self._execution_count = 0
        self._open = True
        self._out.status("starting")
        self._out.status("idle")
        await self._flush()

    def on_up(self) -> None:
        """Go on with what waits."""
        self._pump()

    def on_died(self, exit_code: int, restarting: bool) -> None:
        """Answer what it had, tell everybody; a fresh one comes by itself."""
        if self._session is not None:
            self._lost(f"the kernel ended by itself with exit code {exit_code}", died=True)
            self._out.status("restarting" if restarting else "dead")
            self._out.tell(KernelDied(exit_code=exit_code, restarting=restarting))
        self._imports = ()
        self._publish(KernelEnded(exit_code=exit_code, restarting=restarting))
        self._show()

    def _lost(self, why: str, *, died: bool = False) -> None:
        """Answer everything that the kernel, now gone, will not answer."""
        self._open = False
        self._standing.over()
        hand, waiting = self._line.lose()
        self._held.clear()
        self._captures.restarted()
        if hand is not None and died:
            self._out.died(hand, why)
        elif hand is not None:
            self._out.abort(hand)
        for message in waiting:
            self._out.abort(message)
        self._settled.set()

    async def _replace(self) -> None:
        """A person asked for a restart."""
        await self._life.end()
        self._lost("the kernel was restarted")
        self._out.status("restarting")
        self._life.start()
        self._show()

    def on_engine(self, fields: Fields) -> None:
        """A background capture was made, or could not be."""
        if fields.get("event") == "captured":
            if not self._standing.counts(fields.get("finished", ())):
                return
            self._captures.announced(fields)
            self._offer_capture()
            if self._captures.pending:
                loop = asyncio.get_running_loop()
                loop.call_later(CAPTURE_GRACE_S, lambda: self._offer_capture(force=True))
        elif fields.get("event") in ("capture_failed", "amended"):
            refused = reports(fields.get("refused", ()))
            self._publish(CaptureNotMade(reason=str(fields.get("reason", "")), refused=refused))

    def _offer_capture(self, *, force: bool = False) -> None:
        capture = self._captures.ready(self._line, self._out.spool, self._out.epoch, force=force)
        if capture is not None:
            self._publish(CaptureReady(capture=capture))
            self._hold_last()

    def _hold_last(self) -> None:
        number = self._captures.hold()
        if number is not None:
            self._life.spawn(self._tell_engine("hold", number))

    async def _tell_engine(self, op: str, number: int) -> None:
        with suppress(Retry):  # its kernel is gone, and what it held with it
            await self._life.ask(op, number=number)

    # --- what the agent asks -----------------------------------------------------------------------

    async def warm(self, imports: tuple[str, ...]) -> Warmed:
        """Import modules in the kernel."""
        await self._life.wait_up()
        answer = await self._life.demand("warm", imports=list(imports))
        failed = tuple(str(name) for name in answer.get("failed", ()))
        known = dict.fromkeys((*self._imports, *(i for i in imports if i not in failed)))
        self._imports = tuple(known)
        seconds = float(answer.get("seconds", 0.0))
        return Warmed(imports=self._imports, failed=failed, seconds=seconds)

    async def adopt(self, order: Adopt) -> Adopted:
        """Become the keeper of a session at an epoch. Raises ``StaleEpoch``, ``Conflict``, ``Never``."""
        async with self._adopting:
            if self._session is None:
                return await self._adopt_first(order)
            if order.session_id != self._session.session_id:
                raise Conflict(f"this kernel belongs to session {self._session.session_id}")
            if order.epoch < self._out.epoch:
                raise StaleEpoch(f"epoch {order.epoch} is older than {self._out.epoch}")
            if order.epoch > self._out.epoch:
                self._renew(order.epoch)
            return self._adopted

    async def _adopt_first(self, order: Adopt) -> Adopted:
        if not order.session_id or order.epoch < 1:
            raise Invalid("a session id and an epoch from 1 are needed")
        await self._life.wait_up()
        loop = asyncio.get_running_loop()
        begun = loop.time()
        await self._adoption.run(order)
        report = RestoreReport()
        if order.restore_manifest:
            chunks, manifest = order.chunks_dir or order.captures_dir, order.restore_manifest
            answer = await self._life.demand("restore", dir=chunks, manifest=manifest, wait=False)
            variables = reports(answer.get("report", ()))
            report = RestoreReport(variables=variables, seconds=float(answer.get("seconds", 0.0)))
            self._execution_count = int(answer.get("execution_count", 0))
        self._session = msgspec.structs.replace(order, spool=(), finished=(), running=None)
        self._fresh = not order.restore_manifest
        self._out.signer = Signer(order.key)
        self._out.begin(order.epoch)
        self._out.spool.load(order.spool)
        self._line.adopt(order.finished)
        self._captures.adopted(order.finished)
        if order.running is not None:
            await self._go_on_with(order.running, order.running_epoch)
        self._open = True
        self._adopted = Adopted(report=report, seconds=loop.time() - begun)
        self._show()
        return self._adopted

    async def _go_on_with(self, running: RunningCell, epoch: int) -> None:
        """The cell that stood on the old host is in hand here; its outputs and reply are under its own id."""
        message = read(running.frames)
        await self._life.demand("continue", msg_id=message.header.msg_id, tail=running.tail)
        self._standing.goes_on(message, epoch)
        self._line.go_on(message)
        self._life.spawn(self._life.send("shell", message.parts))

    def _renew(self, epoch: int) -> None:
        """The move was called off: same kernel, next epoch, work is accepted again."""
        self._out.begin(epoch)
        self._life.spawn(self._standing.go_on())
        self._line.fenced = False
        self._adopted = Adopted()
        if self._out.stream is not None:
            # The bridge learns the new epoch by attaching again.
            stream, self._out.stream = self._out.stream, None
            self._life.spawn(stream.close())
        self._pump()

    def fence(self, epoch: int) -> None:
        """Accept no more work for every epoch up to ``epoch``."""
        if epoch < self._out.epoch:
            raise StaleEpoch(f"epoch {epoch} is older than {self._out.epoch}")
        if self._session is None:
            raise Gone("no session to fence: this is a standby kernel")
        self._line.fence()
        self._out.tell(Fenced(epoch=self._out.epoch))
        self._show()

    async def capture(self, budget_s: float) -> KeeperCapture:
        """Capture within ``budget_s``; ``Retry`` while a cell runs longer than that."""
        if self._session is None:
            raise Gone("no session to capture: this is a standby kernel")
        loop = asyncio.get_running_loop()
        end = loop.time() + budget_s
        try:
            async with asyncio.timeout(budget_s):
                while True:
                    while self._line.in_hand is not None:
                        if (standing := await self._stand(self._line.in_hand.message)) is not None:
                            return standing
                    settled = tuple(self._line.finished)
                    answer = await self._life.ask("capture", budget_s=max(0.1, end - loop.time()))
                    if answer.get("ok", True):
                        return self._build_capture(answer, settled)
                    if answer.get("error") != "busy":
                        raise Never(f"the capture failed: {reason_of(answer)}")
                    await asyncio.sleep(BUSY_PAUSE_S)
        except TimeoutError as error:
            raise Retry(f"no capture within {budget_s:.1f} s: the kernel is busy") from error

    async def _stand(self, message: Message) -> KeeperCapture | None:
        """The capture of the request in hand, standing in a loop; None once it is settled instead."""
        if self._standing.capture is not None:
            return self._standing.capture
        settled = tuple(self._line.finished)
        self._settled.clear()
        try:
            answer = await self._standing.pause_unless(self._settled, self._ids.secret())
            if answer is not None:
                running = RunningCell(frames=message.parts, tail=str(answer["tail"]))
                self._standing.capture = self._build_capture(answer, settled, running)
            return self._standing.capture
        finally:
            if self._standing.capture is None:
                self._life.spawn(self._standing.go_on())

    def _build_capture(
        self, answer: Fields, settled: tuple[str, ...], running: RunningCell | None = None
    ) -> KeeperCapture:
        # What was settled before the engine was asked is contained, whether it names it or not.
        finished = tuple(dict.fromkeys((*settled, *answer.get("finished", ()))))
        fields = {**answer, "finished": finished}
        self._standing.counts(finished)
        return self._captures.build(fields, self._line, self._out.spool, self._out.epoch, running)

    def durable(self, number: int) -> None:
        """A capture is durable: the bridge may forget the requests in it."""
        news = self._captures.settle(number)
        if news:
            self._out.tell(Settled(msg_ids=news))
        held = self._captures.release(number)
        if held is not None:
            self._life.spawn(self._tell_engine("release", held))
            last = self._captures.last
            if last is not None and last.number > number:
                self._hold_last()

    # --- what the bridge says ----------------------------------------------------------------------

    async def attach(self, attach: Attach, writer: asyncio.StreamWriter) -> BridgeStream | None:
        """A bridge takes its place; None when it was refused."""
        seen: Position = (attach.seen_epoch, attach.seen_seq)
        stream = BridgeStream(writer, self._out.spool, seen)
        if self._session is None or attach.session_id != self._session.session_id:
            stream.tell(Refused(reason="this kernel is not the session's", hint="attach again"))
            return None
        if attach.seen_epoch > self._out.epoch:
            stream.tell(Refused(reason=f"epoch {self._out.epoch} is over", hint="attach again"))
            return None
        former, self._out.stream = self._out.stream, stream
        if former is not None:
            await former.close()
        self._out.spool.acknowledge(seen)
        self._tell_twice(attach.seen_epoch)
        self._greet(stream)
        stream.start()
        if not self._line.fenced:
            self._life.start()
        return stream

    def _tell_twice(self, seen_epoch: int) -> None:
        """The client saw a part of the continued cell from a kernel that is lost: it is told, once."""
        hand = self._line.in_hand
        if hand is not None and self._standing.seen_twice(seen_epoch, self._out.epoch):
            content = {"name": "stderr", "text": SEEN_TWICE}
            frames = self._out.signer.build("stream", content, parent=hand.message)
            self._out.number("iopub", frames, "stream", hand.message.header.msg_id)

    def detach(self, stream: BridgeStream) -> None:
        """The bridge's connection is gone."""
        if self._out.stream is stream:
            self._out.stream = None

    async def take(self, message: ToKeeper) -> None:
        """Handle one message of the attached bridge."""
        match message:
            case Request():
                await self._request(message)
            case Ack():
                self._out.spool.acknowledge((message.epoch, message.seq))
            case Interrupt():
                self._interrupt()
            case Restart():
                await self._replace()
            case Attach():
                raise BadMessage("a second Attach on one stream")

    def _greet(self, stream: BridgeStream) -> None:
        attached = Attached(
            epoch=self._out.epoch,
            fresh=self._fresh,
            finished=(*self._line.finished, *self._line.others),
            received=self._line.received(),
        )
        stream.tell(attached)
        if self._captures.durable:
            stream.tell(Settled(msg_ids=self._captures.durable))
        if self._line.fenced:
            stream.tell(Fenced(epoch=self._out.epoch))

    async def _request(self, request: Request) -> None:
        if self._line.fenced:
            return
        self._out.tell(Accepted(msg_id=request.msg_id))
        try:
            message = read(request.frames)
        except BadMessage as error:
            log.warning("dropped a request: %s", error)
            return
        if not self._out.signer.genuine(message):
            log.warning("dropped %s: its signature is not this session's", request.msg_id)
        elif not self._line.known(message.header.msg_id):
            await self._accept(request.channel, message)

    async def _accept(self, channel: str, message: Message) -> None:
        if channel == "stdin":
            self._line.pass_by(message.header.msg_id)
            await self._forward("stdin", message)
        elif message.header.msg_type == "shutdown_request":
            await self._shut_down(channel, message)
        elif message.header.msg_type == "interrupt_request":
            # Here, not in the kernel: only the line knows whether the cell has begun.
            self._line.pass_by(message.header.msg_id)
            self._out.reply(channel, message, {"status": "ok"})
            self._interrupt()
        elif self._life.failure:
            why = self._life.failure
            self._line.pass_by(message.header.msg_id)
            error = {"ename": "KernelDied", "evalue": why, "traceback": [why]}
            self._out.reply(channel, message, {"status": "error", **error})
        else:
            self._life.start()
            await self._enter(channel, message)

    async def _enter(self, channel: str, message: Message) -> None:
        if channel == "control":
            self._line.beside[message.header.msg_id] = None
            await self._forward("control", message)
        elif self._line.give(message):
            await self._forward("shell", message)
        else:
            self._pump()

    async def _shut_down(self, channel: str, message: Message) -> None:
        """The kernel itself must not do it: a keeper's kernel is replaced, or ended, by the keeper."""
        restart = message.status().restart
        self._line.pass_by(message.header.msg_id)
        self._out.reply(channel, message, {"status": "ok", "restart": restart})
        if restart:
            await self._replace()
        else:
            await self._life.end()
            self._lost("the kernel was shut down")
            self._show()

    async def _forward(self, channel: str, message: Message) -> None:
        """Send beside the line; while the kernel starts, keep it."""
        if self._open:
            await self._life.send(channel, message.parts)
        else:
            self._held.append((channel, message))

    async def _flush(self) -> None:
        held, self._held = self._held, []
        for channel, message in held:
            await self._forward(channel, message)

    def _interrupt(self) -> None:
        hand = self._line.in_hand
        if hand is not None and not hand.begun:
            self._interrupt_wanted = True
        else:
            self._life.signal(signal.SIGINT)

    def _pump(self) -> None:
        """Give the kernel its next request when it is free; answer aborted ones."""
        while self._life.up and self._open and (waiting := self._line.next()) is not None:
            if waiting.aborted:
                self._out.abort(waiting.message)
            else:
                self._life.spawn(self._life.send("shell", waiting.message.parts))
        self._show()

    # --- messages of the kernel (LifeHooks) --------------------------------------------------------

    def on_message(self, channel: str, parts: Parts) -> None:
        """Number what the kernel sends and follow what it works on."""
        if not self._open:
            self._adoption.take(channel, parts)
            return
        try:
            message = read(parts)
        except BadMessage as error:
            log.warning("the kernel sent something odd on %s: %s", channel, error)
            return
        if channel == "iopub":
            self._on_iopub(message)
            return
        self._out.number(channel, parts, parent=message.parent.msg_id)
        if channel == "shell":
            hand = self._line.in_hand
            mine = hand is not None and hand.message.header.msg_id == message.parent.msg_id
            if mine and self._line.reply(message.parent.msg_id, message.status().status):
                self._after_settling()

    def _on_iopub(self, message: Message) -> None:
        kind = message.header.msg_type
        state = message.status().execution_state if kind == "status" else ""
        if kind == "iopub_welcome" or state == "starting":
            return
        if kind == MARK:
            self._standing.marked(message)
            return
        if not self._standing.hides(message.parent.msg_id, kind, state):
            self._out.number("iopub", message.parts, kind, message.parent.msg_id)
        if kind == "execute_input":
            self._execution_count = _count.decode(message.content).execution_count
            self._life.proven()
            self._begun(message.parent.msg_id)
        elif state:
            self._on_state(message.parent.msg_id, state)

    def _on_state(self, parent_id: str, state: str) -> None:
        loop = asyncio.get_running_loop()
        hand = self._line.in_hand
        if self._line.status(parent_id, state):
            self._after_settling()
        elif state == "busy" and hand is not None and hand.begun:
            self._begun(parent_id)
        elif state == "idle" and hand is not None and hand.idle:
            loop.call_later(REPLY_GRACE_S, self._give_up_reply, parent_id)
        elif state == "idle":
            self._offer_capture()

    def _begun(self, parent_id: str) -> None:
        """The kernel has announced a cell; an interrupt that came before that is due."""
        if self._line.begin(parent_id) and self._interrupt_wanted:
            self._interrupt_wanted = False
            asyncio.get_running_loop().call_later(INTERRUPT_DELAY_S, self._interrupt)

    def _give_up_reply(self, msg_id: str) -> None:
        hand = self._line.in_hand
        if hand is None or not self._line.give_up_reply(msg_id):
            return
        if hand.message.header.msg_type == "execute_request":
            # An interrupt just before a cell begins: ipykernel ends it without a word.
            self._out.died(hand.message, "the kernel ended this request without a reply")
        self._after_settling()

    def _after_settling(self) -> None:
        self._settled.set()
        self._interrupt_wanted = False
        self._offer_capture()
        self._pump()
