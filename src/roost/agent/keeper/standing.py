"""The cell that stands in a loop on the old host, and goes on from there on the new one.

Pausing is tried at every capture that finds a cell running; a cell that cannot pause may still end in time.
Never gives a cell up, and never lets two kernels go on with one.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Container

import msgspec

from roost.agent.keeper.engine import Fields
from roost.ports.errors import Retry
from roost.ports.jupyter import Message
from roost.ports.keeper import KeeperCapture

MARK = "roost_mark"
"""The engine's word on iopub behind the last output of a cell that stands."""
MARK_S = 5.0
AGAIN_S = 0.2

SEEN_TWICE = (
    "\n[roost: a machine was lost: this cell goes on from its last capture, so some of its last outputs "
    "are shown twice]\n"
)


class _Mark(msgspec.Struct, frozen=True):
    token: str = ""


_mark = msgspec.json.Decoder(_Mark)
log = logging.getLogger("roost.keeper")


class Standing:
    """See the module. ``ask`` asks the engine."""

    def __init__(self, ask: Callable[..., Awaitable[Fields]]) -> None:
        self._ask = ask
        self.capture: KeeperCapture | None = None
        """The capture of the cell that stands here."""
        self.continued = ""
        """msg_id of the cell this kernel goes on with: no capture counts that is not from after it."""
        self._stood_epoch = 0
        self._unseen = False
        """It has not yet said that it begins: the client saw that on the old host."""
        self._token = ""
        self._marked = asyncio.Event()

    async def pause(self, token: str) -> Fields | None:
        """The engine's answer once the cell stands and all it showed is here; None: it ended, or cannot."""
        self._token, self._marked = token, asyncio.Event()
        try:
            answer = await self._ask("pause", token=token)
            while answer.get("mode") == "over":  # not begun yet, or its end is on its way to us
                await asyncio.sleep(AGAIN_S)
                answer = await self._ask("pause", token=token)
            if not answer.get("ok", True) or answer.get("mode") != "paused":
                log.info("the running cell does not pause: %s", answer.get("mode", answer))
                return None
            async with asyncio.timeout(MARK_S):
                await self._marked.wait()
            return answer
        except (Retry, TimeoutError) as error:
            log.warning("the running cell was not paused: %s", error or "its outputs did not come")
            return None

    async def go_on(self) -> None:
        """The move is off, or this try is."""
        self.capture = None
        try:
            await self._ask("go_on")
        except Retry:  # its kernel is gone
            log.info("no kernel to go on")

    async def pause_unless(self, settled: asyncio.Event, token: str) -> Fields | None:
        """``pause``, but None as soon as the cell is settled; one that cannot pause is waited for."""
        pausing = asyncio.create_task(self.pause(token))
        settling = asyncio.create_task(settled.wait())
        try:
            await asyncio.wait((pausing, settling), return_when=asyncio.FIRST_COMPLETED)
            answer = pausing.result() if pausing.done() else None
            if answer is None:
                await settling
            return answer
        finally:
            pausing.cancel()
            settling.cancel()

    def marked(self, message: Message) -> None:
        """The mark has come."""
        if _mark.decode(message.content).token == self._token:
            self._marked.set()

    def goes_on(self, message: Message, epoch: int) -> None:
        """This kernel continues a cell that stood at ``epoch``."""
        self.continued = message.header.msg_id
        self._stood_epoch = epoch
        self._unseen = True

    def seen_twice(self, seen_epoch: int, epoch: int) -> bool:
        """Whether the client saw a part of the cell from a kernel that went on with it and is lost. Once."""
        if not self.continued or not self._stood_epoch < seen_epoch < epoch:
            return False
        self._stood_epoch = epoch
        return True

    def hides(self, parent_id: str, kind: str, state: str) -> bool:
        """Whether the client has this message from the old host already: busy, and what is executed."""
        if not self._unseen or parent_id != self.continued:
            return False
        self._unseen = kind != "execute_input"
        return kind == "execute_input" or state == "busy"

    def counts(self, finished: Container[str]) -> bool:
        """Whether a capture with these may be used: not one from before the continued cell's end."""
        if self.continued and self.continued in finished:
            self.continued = ""
        return not self.continued

    def over(self) -> None:
        """The kernel is another one."""
        self.capture = None
        self.continued = ""
        self._unseen = False
