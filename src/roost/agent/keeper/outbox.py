"""Everything that goes to the bridge: the kernel's messages numbered into the spool, and our own.

Our own are those a plain kernel would have sent itself (aborted, died, shut down), signed with the
session's key. Never waits for the bridge.
"""

from pathlib import Path

from roost.agent.keeper.spool import Spool
from roost.agent.keeper.stream import BridgeStream
from roost.ports.jupyter import Message, Parts, Signer, read
from roost.ports.wire import ToBridge


class Outbox:
    """Numbers, keeps and sends outputs of one session at one epoch."""

    def __init__(self, spool_path: Path) -> None:
        self.spool = Spool(spool_path, self._marker)
        self.stream: BridgeStream | None = None
        """The attached bridge."""
        self.signer = Signer("")
        self.epoch = 0
        self._seq = 0

    def begin(self, epoch: int) -> None:
        """Number from one again, at ``epoch``."""
        self.epoch, self._seq = epoch, 0

    def number(self, channel: str, parts: Parts, kind: str = "", parent: str = "") -> None:
        """Keep one message (``kind``: see ``Spool.append``) and send it when a bridge is attached."""
        self._seq += 1
        self.spool.append(self.epoch, self._seq, channel, parts, kind, parent)
        if self.stream is not None:
            self.stream.wake()

    def tell(self, message: ToBridge) -> None:
        """Send a message that needs no number, to whoever is attached now."""
        if self.stream is not None:
            self.stream.tell(message)

    def status(self, state: str, parent: Message | None = None) -> None:
        """Publish a status of our own."""
        self._emit("iopub", self.signer.status(state, parent))

    def reply(self, channel: str, request: Message, content: dict[str, object]) -> None:
        """Answer a request in the kernel's place, with the status messages around it."""
        self.status("busy", request)
        self._emit(channel, self.signer.reply(request, content))
        self.status("idle", request)

    def abort(self, request: Message) -> None:
        """Answer as ipykernel answers a request that an error before it took along."""
        self.reply("shell", request, {"status": "aborted"})

    def died(self, request: Message, why: str) -> None:
        """Answer a request that the kernel will never answer."""
        error = {"ename": "KernelDied", "evalue": why, "traceback": [f"KernelDied: {why}"]}
        if request.header.msg_type == "execute_request":
            self._emit("iopub", self.signer.build("error", error, parent=request))
        self.reply("shell", request, {"status": "error", **error})

    def _emit(self, channel: str, parts: Parts) -> None:
        self.number(channel, parts, "", read(parts).parent.msg_id)

    def _marker(self, count: int) -> Parts:
        text = f"\n[roost: {count} outputs were dropped here: nobody fetched them and the spool is full]\n"
        content = {"name": "stderr", "text": text}
        return self.signer.build("stream", content, identities=(b"stream.stderr",))
