"""The line of requests in front of a kernel, as a machine: events in, requests to forward out.

One ordinary shell request at a time reaches the kernel, so that those behind it can still be taken
back (a fence) or aborted (an error), as ipykernel itself would. Pure: no clock, no I/O.

    Given -> waiting -> in hand -> settled        Fenced: waiting is emptied, in hand goes on
                     -> aborted -> settled        Lost (kernel gone): all are settled at once
"""

from collections import OrderedDict
from dataclasses import dataclass, field

from roost.ports.jupyter import Message

REMEMBERED = 10_000
"""Settled cells remembered: more than a bridge's journal can hold."""
REMEMBERED_OTHERS = 1_000
"""Other settled requests: a bridge forgets these as soon as they are answered."""
COMMS = frozenset({"comm_open", "comm_msg", "comm_close"})
"""These have no reply, and ipykernel takes them while an async cell runs."""


@dataclass(slots=True)
class Waiting:
    """A request not yet at the kernel."""

    message: Message
    aborted: bool = False


@dataclass(slots=True)
class InHand:
    """The request the kernel works on."""

    message: Message
    begun: bool = False
    """The kernel has announced it (for what it does not announce: it is busy with it)."""
    idle: bool = False
    replied: bool = False

    @property
    def announced(self) -> bool:
        """Whether the kernel will send an ``execute_input`` for it."""
        is_execute = self.message.header.msg_type == "execute_request"
        return is_execute and not self.message.options().silent

    @property
    def settled(self) -> bool:
        """Both ends were seen: the reply and, on the other socket, the idle status."""
        return self.idle and (self.replied or self.message.header.msg_type in COMMS)


@dataclass(slots=True)
class Line:
    """Requests of one session at one kernel."""

    waiting: list[Waiting] = field(default_factory=list)
    in_hand: InHand | None = None
    beside: OrderedDict[str, None] = field(default_factory=OrderedDict)
    """msg_ids forwarded at once beside the line (subshells, control, comms)."""
    finished: OrderedDict[str, None] = field(default_factory=OrderedDict)
    """msg_ids of cells settled here or before, in order."""
    others: OrderedDict[str, None] = field(default_factory=OrderedDict)
    """The latest other requests that were settled."""
    fenced: bool = False
    adopted: int = 0
    """How many of ``finished`` came with the checkpoint this kernel began from."""

    def received(self) -> tuple[str, ...]:
        """msg_ids waiting or at work."""
        at_work = (self.in_hand.message.header.msg_id,) if self.in_hand else ()
        return (*at_work, *(w.message.header.msg_id for w in self.waiting), *self.beside)

    def known(self, msg_id: str) -> bool:
        """Whether this request must not be given to the kernel (again)."""
        return self.settled(msg_id) or msg_id in self.received()

    def settled(self, msg_id: str) -> bool:
        """Whether it was answered."""
        return msg_id in self.finished or msg_id in self.others

    def give(self, message: Message) -> bool:
        """Take a shell request; True: forward it at once, it does not stand in the line."""
        header = message.header
        runs_beside = header.subshell_id is not None or (
            header.msg_type in COMMS and self.in_hand is not None and not self.waiting
        )
        if runs_beside:
            self.beside[header.msg_id] = None
            return True
        self.waiting.append(Waiting(message))
        return False

    def go_on(self, message: Message) -> None:
        """The kernel goes on with a request that another one began."""
        self.in_hand = InHand(message)

    def pass_by(self, msg_id: str) -> None:
        """Remember a request that is handled at once and never answered by an idle status."""
        self._finish_other(msg_id)

    def next(self) -> Waiting | None:
        """The request to handle now (forward it, or answer it when ``aborted``), or None."""
        if self.in_hand is not None or not self.waiting or self.fenced:
            return None
        waiting = self.waiting.pop(0)
        if waiting.aborted:
            self._finish(waiting.message)
        else:
            self.in_hand = InHand(waiting.message)
        return waiting

    def begin(self, parent_id: str) -> bool:
        """The kernel announced the cell in hand."""
        hand = self.in_hand
        if hand is None or hand.message.header.msg_id != parent_id:
            return False
        hand.begun = True
        return True

    def status(self, parent_id: str, state: str) -> bool:
        """A status message was seen; True: the request in hand is settled now."""
        hand = self.in_hand
        if hand is not None and hand.message.header.msg_id == parent_id:
            hand.begun = hand.begun or (state == "busy" and not hand.announced)
            hand.idle = hand.idle or state == "idle"
            return self._settle()
        if state == "idle" and parent_id in self.beside:
            self._finish_other(parent_id)
        return False

    def reply(self, parent_id: str, status: str) -> bool:
        """A shell reply was seen; True: the request in hand is settled now."""
        hand = self.in_hand
        if hand is None or hand.message.header.msg_id != parent_id:
            return False
        hand.replied = True
        options = hand.message.options()
        is_execute = hand.message.header.msg_type == "execute_request"
        if is_execute and status == "error" and options.stop_on_error and not options.silent:
            for waiting in self.waiting:
                waiting.aborted = waiting.message.header.msg_type == "execute_request"
        return self._settle()

    def give_up_reply(self, msg_id: str) -> bool:
        """The kernel is idle and the reply did not come: settle without it."""
        hand = self.in_hand
        if hand is None or hand.message.header.msg_id != msg_id or not hand.idle:
            return False
        hand.replied = True
        return self._settle()

    def fence(self) -> None:
        """Take no more, and forget what has not begun: the bridge still has it."""
        self.fenced = True
        self.waiting.clear()

    def lose(self) -> tuple[Message | None, list[Message]]:
        """The kernel is gone: what it had in hand and what waited are over; returns both."""
        hand = self.in_hand.message if self.in_hand else None
        waiting = [w.message for w in self.waiting]
        for message in ([hand] if hand else []) + waiting:
            self._finish(message)
        for msg_id in list(self.beside):
            self._finish_other(msg_id)
        self.in_hand = None
        self.waiting.clear()
        return hand, waiting

    def contained(self, captured: tuple[str, ...]) -> tuple[str, ...]:
        """msg_ids whose effects a capture has: those it names and whatever was settled before them."""
        wanted = set(captured)
        order = list(self.finished)
        last = self.adopted - 1
        for index, msg_id in enumerate(order):
            if msg_id in wanted:
                last = index
        head = order[: last + 1]
        return (*head, *(msg_id for msg_id in captured if msg_id not in self.finished))

    def adopt(self, finished: tuple[str, ...]) -> None:
        """Start from what a checkpoint contains."""
        self.finished = OrderedDict.fromkeys(finished[-REMEMBERED:])
        self.adopted = len(self.finished)

    def _settle(self) -> bool:
        hand = self.in_hand
        if hand is None or not hand.settled:
            return False
        self._finish(hand.message)
        self.in_hand = None
        return True

    def _finish(self, message: Message) -> None:
        if message.header.msg_type != "execute_request":
            return self._finish_other(message.header.msg_id)
        self.finished[message.header.msg_id] = None
        while len(self.finished) > REMEMBERED:
            self.finished.popitem(last=False)
            self.adopted = max(0, self.adopted - 1)

    def _finish_other(self, msg_id: str) -> None:
        self.beside.pop(msg_id, None)
        self.others[msg_id] = None
        while len(self.others) > REMEMBERED_OTHERS:
            self.others.popitem(last=False)
