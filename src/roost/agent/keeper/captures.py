"""What the engine captured, joined with the spool and the finished requests of the same moment.

A capture may be announced before the reply of its last cell arrived on another socket; it is held
back until then, else a restored session would know the cell as done while its reply exists nowhere.
Never reads the captured data.
"""

from collections import OrderedDict

from roost.agent.keeper.engine import Fields
from roost.agent.keeper.line import Line
from roost.agent.keeper.spool import Spool
from roost.ports.keeper import KeeperCapture, RunningCell
from roost.ports.kernels import VariableReport

REMEMBERED = 16
"""Captures whose contents are remembered until the agent says which became durable."""


class Captures:
    """Numbers captures over restarts of the kernel and remembers what each contains."""

    def __init__(self) -> None:
        self.last: KeeperCapture | None = None
        self.durable: tuple[str, ...] = ()
        """msg_ids whose effects are durable off the host."""
        self._pending: Fields | None = None
        self._base = 0
        self._floor = 0
        """The last number of the kernel before a restart."""
        self._answered = -1
        self._contents: OrderedDict[int, tuple[str, ...]] = OrderedDict()
        self._held: int | None = None

    def adopted(self, finished: tuple[str, ...]) -> None:
        """The session began from a durable checkpoint with these."""
        self.durable = finished

    def restarted(self) -> None:
        """A fresh kernel may number from the start again; ours keep rising."""
        self._base = 0
        self._floor = self.last.number if self.last else 0
        self._pending = None
        self._answered = -1
        self._held = None

    def hold(self) -> int | None:
        """The engine's number of a capture it must not delete while the agent stores it, if it is new.

        Without this a long upload would be overtaken again and again and nothing become durable.
        """
        if self.last is None or self._held is not None:
            return None
        self._held = self.last.number - self._base
        return self._held

    def release(self, number: int) -> int | None:
        """The engine's number of the held capture, when ``number`` or an older one is durable now."""
        held = self._held
        if held is None or number - self._base < held:
            return None
        self._held = None
        return held

    def announced(self, fields: Fields) -> None:
        """The engine says that it captured; see ``ready``."""
        if int(fields.get("number", 0)) > self._answered:
            self._pending = fields

    @property
    def pending(self) -> bool:
        """A capture waits for the replies of its cells."""
        return self._pending is not None

    def ready(self, line: Line, spool: Spool, epoch: int, *, force: bool) -> KeeperCapture | None:
        """The pending capture, once all its requests are settled (or at once by ``force``)."""
        fields = self._pending
        if fields is None:
            return None
        if not force and any(not line.settled(m) for m in fields.get("finished", ())):
            return None
        self._pending = None
        return self.build(fields, line, spool, epoch)

    def build(
        self,
        fields: Fields,
        line: Line,
        spool: Spool,
        epoch: int,
        running: RunningCell | None = None,
    ) -> KeeperCapture:
        """Join the engine's answer with spool and line as they are now.

        ``running``: the cell in hand stands in a loop and goes on from here; what it showed belongs to it.
        """
        number = int(fields.get("number", 0))
        self._answered = max(self._answered, number)
        if self._base + number <= self._floor:
            self._base = self._floor
        finished = line.contained(tuple(fields.get("finished", ())))
        begun = set(line.received()) - set(finished)
        begun.update((set(line.finished) | set(line.others)) - set(finished))
        if running is not None and line.in_hand is not None:
            begun.discard(line.in_hand.message.header.msg_id)
        capture = KeeperCapture(
            manifest_path=str(fields.get("manifest", "")),
            number=self._base + number,
            epoch=epoch,
            spool=spool.snapshot(without=begun),
            finished=finished,
            bytes_new=int(fields.get("bytes_new", 0)),
            bytes_total=int(fields.get("bytes_total", 0)),
            refused=reports(fields.get("refused", ())),
            seconds=float(fields.get("seconds", 0.0)),
            running=running,
        )
        self.last = capture
        self._contents[capture.number] = finished
        while len(self._contents) > REMEMBERED:
            self._contents.popitem(last=False)
        return capture

    def settle(self, number: int) -> tuple[str, ...]:
        """The capture ``number`` is durable: what the bridge may forget now (empty: unknown number)."""
        finished = self._contents.get(number, ())
        known = set(self.durable)
        news = tuple(msg_id for msg_id in finished if msg_id not in known)
        if news:
            self.durable = finished
        return news


def reports(items: object) -> tuple[VariableReport, ...]:
    """The engine's list of ``{name, outcome, reason}`` as value types."""
    if not isinstance(items, list | tuple):
        return ()
    return tuple(
        VariableReport(
            name=str(item.get("name", "")),
            outcome=str(item.get("outcome", "refused")),
            reason=str(item.get("reason", "")),
        )
        if isinstance(item, dict)
        else VariableReport(name=str(item), outcome="refused")
        for item in items
    )
