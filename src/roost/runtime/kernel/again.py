"""After a restore: the cell that was under way and those that waited are run, before any new request.

They keep their requests: outputs and replies carry the ids the client knows. Nothing else of Roost is needed
for it than the journal beside the captures.
"""

import asyncio
import contextlib
import re
from collections import deque
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from roost.runtime.kernel import asking
from roost.runtime.kernel.format import KEPT, REBUILT, REFUSED, Entry, Manifest
from roost.runtime.kernel.journal import Facts, Journal, Message, Request, own
from roost.runtime.kernel.loops import Running
from roost.runtime.kernel.notice import Transformer, tree_of

WAITS_S = 0.005
"""What has not begun after this long waits for a cell. One that begins at once is noted as it begins."""


def entries(facts: Facts, manifest: Manifest) -> list[Entry]:
    """What becomes of the requests the capture does not contain."""
    found = []
    for place, request in enumerate(facts.open_after(manifest.finished, manifest.number)):
        name = f"cell {manifest.execution_count + place}"
        if request.tail and request.number == manifest.number:
            found.append(Entry(name, KEPT, "goes on in its loop where it was"))
        elif request.rest and not request.at_s:
            found.append(Entry(name, KEPT, "goes on in its loop where it was taken over"))
        elif request.rest:
            found.append(Entry(name, REBUILT, "run again from where it was taken over", _TWICE))
        elif request.ended:
            found.append(Entry(name, REBUILT, "run again: it ended after the last capture", _TWICE))
        elif request.begun:
            found.append(Entry(name, REBUILT, "run again from the state before it", _TWICE))
        else:
            found.append(Entry(name, KEPT, "waited for its turn"))
    return found


_TWICE = "what it did outside this kernel and its files, it does twice"
_ASKS = re.compile(r"\b(input|getpass|raw_input)\s*\(")


class Again:
    """Requests to run in a restored kernel."""

    def __init__(
        self, kernel: Any, running: Running, transformer: Transformer, ok: Callable[[], bool]
    ) -> None:
        self._kernel = kernel
        self._loops = running
        self._saved: dict[int, Any] = {}
        self._transformer = transformer
        self._ok = ok
        self._todo: deque[tuple[Request, str]] = deque()
        self.report: list[Entry] = []
        """What became of them."""
        self.told: Callable[[list[Entry]], None] = lambda _report: None
        """Called with it when all have ended."""
        self._running = False
        self.rest = ""
        """Tree of the cell that begins now, when it is the rest of one."""
        handlers = getattr(kernel, "shell_handlers", {})
        self._handler = handlers.get("execute_request")
        if self._handler is not None:
            handlers["execute_request"] = self._execute

    def load(self, facts: Facts, manifest: Manifest, saved: dict[int, Any]) -> None:
        """Take what the journal says is still to be run; ``saved``: iterators of the loops that go on."""
        self._saved = saved
        for request in facts.open_after(manifest.finished, manifest.number):
            goes_on = request.tail and request.number == manifest.number
            self._todo.append((request, request.tail if goes_on else request.rest))

    @property
    def loops(self) -> dict[int, Any]:
        """Iterators of the cell that will go on next: captures must hold them until it does."""
        return dict(self._saved) if self._todo and self._todo[0][1] else {}

    def waiting(self) -> list[Request]:
        """What is still to be run, as another journal may note it."""
        return [
            replace(
                request,
                begun=bool(rest),
                ended=False,
                files=-1,
                at_s=0.0,
                number=-1,
                tail="",
                rest=rest,
                went_on_s=0.0,
            )
            for request, rest in self._todo
        ]

    def schedule(self, loop: asyncio.AbstractEventLoop | None) -> None:
        """Run them as soon as the present request is answered."""
        if self._todo and loop is not None and self._handler is not None:
            self._task = loop.create_task(self._locked())

    async def _locked(self) -> None:
        lock = getattr(self._kernel, "_main_asyncio_lock", None)
        async with lock if lock is not None else contextlib.nullcontext():
            await self._run()

    async def _execute(self, stream: Any, ident: Any, parent: Message) -> None:
        """A new request comes: those before it go first."""
        if self._todo and not self._running and not own(parent):
            await self._run()
            self._kernel.set_parent(ident, parent, channel="shell")
        await self._handler(stream, ident, parent)  # type: ignore[misc]

    async def _run(self) -> None:
        self._running = True
        try:
            while self._todo:
                request, rest = self._todo.popleft()
                count = int(self._kernel.shell.execution_count)
                if not rest and _ASKS.search(str(request.message["content"].get("code", ""))):
                    why = "not run: it asks for input, and who would answer is not here"
                    self.report.append(Entry(f"cell {count}", REFUSED, why, "run it again"))
                    self._abort(count + 1)
                    continue
                await self._one(request, rest)
                if not self._ok():
                    self.report.append(
                        Entry(f"cell {count}", KEPT, "ended with an error of its own")
                    )
                if not self._ok() and request.message["content"].get("stop_on_error", True):
                    self._abort(int(self._kernel.shell.execution_count))
        finally:
            self._running = False
            self.rest = ""
            self.told(self.report)

    async def _one(self, request: Request, rest: str) -> None:
        kernel = self._kernel
        message = {
            "parent_header": {}, "buffers": [], "metadata": {}, **request.message,
            "msg_id": request.message_id, "msg_type": "execute_request",
        }  # fmt: skip
        # What the client has sent to this kernel itself is not thrown away for a cell of the former one.
        message["content"] = {
            **message["content"], "stop_on_error": False, "allow_stdin": False,
        }  # fmt: skip
        identity = [bytes.fromhex(part) for part in request.message.get("identity", ())]
        self.rest = rest
        self._transformer.instead = tree_of(rest)
        self._loops.saved = self._saved if rest else {}
        kernel.set_parent(identity, message, channel="shell")
        kernel._publish_status("busy", "shell")
        try:
            await self._handler(self._stream(), identity, message)  # type: ignore[misc]
        finally:
            self._transformer.instead = None
            kernel._publish_status("idle", "shell")

    def _stream(self) -> Any:
        thread = getattr(self._kernel, "shell_channel_thread", None)
        if thread is None:
            return self._kernel.shell_stream
        return thread.manager.get_subshell_to_shell_channel_socket(None)

    def _abort(self, first: int) -> None:
        """As a kernel does after an error: what waits behind it is not run."""
        self.report += [
            Entry(f"cell {place}", REFUSED, "not run: a cell before it failed", "run it again")
            for place, _ in enumerate(self._todo, first)
        ]
        self._todo.clear()


def listen(kernel: Any, journal: Callable[[], Journal | None]) -> bool:
    """Note execute requests as they arrive, also while a cell runs, and those the kernel throws away.

    Needs ipykernel 7's shell thread.
    """
    thread = getattr(kernel, "shell_channel_thread", None)
    stream = getattr(kernel, "shell_stream", None)
    if thread is None or stream is None or not hasattr(kernel, "shell_channel_thread_main"):
        return False

    def note(frames: Any) -> None:
        with contextlib.suppress(Exception):  # never in the way of other requests
            noted = journal()
            found = None if noted is None else message_of(kernel.session, frames, noted.knows)
            if found is not None and noted is not None:
                noted.arrived(found)

    async def heard(frames: Any) -> None:
        await kernel.shell_channel_thread_main(frames)
        thread.io_loop.call_later(WAITS_S, note, frames)

    abort = kernel._send_abort_reply

    def aborts(stream: Any, message: Message, identity: Any) -> None:
        noted = journal()
        if noted is not None:
            noted.aborted(str(message["header"]["msg_id"]))
        abort(stream, message, identity)

    kernel._send_abort_reply = aborts
    thread.io_loop.add_callback(lambda: stream.on_recv(heard, copy=False))
    return True


def message_of(session: Any, frames: Any, known: Callable[[str], bool]) -> Message | None:
    """An execute request out of its frames, its signature checked; None for anything else."""
    identity, parts = session.feed_identities(frames, copy=False)
    raw = [bytes(part.buffer) for part in parts[:5]]
    header = session.unpack(raw[1])
    if header.get("msg_type") != "execute_request" or header.get("subshell_id"):
        return None
    if known(header["msg_id"]):
        return None
    if session.auth is not None and session.sign(raw[1:5]) != raw[0]:
        return None
    content = session.unpack(raw[4])
    if content.get("silent"):
        return None
    return {
        "header": header,
        "metadata": session.unpack(raw[3]),
        "content": content,
        "identity": asking.hexed(identity),
    }
