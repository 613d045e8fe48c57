"""What can be opened on this host over a data connection, by name.

    kernel/<session>   the session stream of its keeper       files/<session>   its workspace
    port/<n>           a TCP port of this host's own address  shell             a terminal
    svc/<service>      requests to the replicas of a service  (the host's balancer)

It refuses epochs that are over. After a fence no new workspace stream of the session opens here and the
open ones end, so that the capture that follows holds everything they wrote.
"""

import asyncio
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path

from roost.agent.balancer import Balancer
from roost.agent.files import serve
from roost.agent.model import Places, Task
from roost.agent.tasks import Tasks
from roost.agent.terminal import serve_shell
from roost.ports.errors import Gone, Invalid, Retry, StaleEpoch
from roost.ports.wire import Open

CONNECT_S = 5.0
BUFFER = 256 << 10

Stream = tuple[asyncio.StreamReader, asyncio.StreamWriter]
Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


class Services:
    """Opens services."""

    def __init__(
        self, places: Places, tasks: Tasks, balancer: Balancer, *, address: str, home: str
    ) -> None:
        """``address``: this host's own loopback address; ``home``: where shells begin."""
        self._places = places
        self._tasks = tasks
        self._balancer = balancer
        self._address = address
        self._home = home
        self._files: dict[str, set[asyncio.Task[None]]] = {}

    async def open(self, request: Open) -> Stream | Serve:
        """A stream to splice, or what serves the connection. Typed errors when it cannot be had."""
        kind, _, name = request.service.partition("/")
        match kind:
            case "kernel" if name:
                return await self._kernel(name, request.epoch)
            case "files" if name:
                return self._workspace(name, request.epoch)
            case "svc" if name:
                return self._service(name)
            case "port" if name.isdigit():
                return await self._port(int(name))
            case "shell" if not name:
                return partial(serve_shell, home=self._home)
        raise Invalid(
            f"no service {request.service!r}", hint="kernel/, files/, port/, svc/ or shell"
        )

    async def close_files(self, session_id: str) -> None:
        """End the session's workspace streams; an unanswered change is sent again by its client."""
        streams = self._files.pop(session_id, set())
        for stream in streams:
            stream.cancel()
        await asyncio.gather(*streams, return_exceptions=True)

    async def _kernel(self, session_id: str, epoch: int) -> Stream:
        task = self._current(session_id, epoch)
        if task.dead:
            raise Gone(f"the kernel of {session_id} has ended")
        path = self._places.keeper_socket(task.task_id)
        try:
            async with asyncio.timeout(CONNECT_S):
                return await asyncio.open_unix_connection(path, limit=BUFFER)
        except (OSError, TimeoutError) as error:
            raise Retry(f"the keeper of {session_id} does not answer") from error

    def _workspace(self, session_id: str, epoch: int) -> Serve:
        if self._current(session_id, epoch).state == "fenced":
            raise StaleEpoch(f"{session_id} is leaving this host")
        return partial(self._serve_files, session_id)

    async def _serve_files(
        self, session_id: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        root = Path(self._places.workspace(session_id))
        stream = asyncio.ensure_future(serve(reader, writer, root))
        streams = self._files.setdefault(session_id, set())
        streams.add(stream)
        try:
            await asyncio.wait({stream})
        finally:
            stream.cancel()
            streams.discard(stream)

    def _service(self, service_id: str) -> Serve:
        if not self._balancer.has(service_id):
            raise Gone(f"no replica of {service_id} can take requests on this host")
        return partial(self._balancer.serve, service_id)

    async def _port(self, port: int) -> Stream:
        try:
            async with asyncio.timeout(CONNECT_S):
                return await asyncio.open_connection(self._address, port, limit=BUFFER)
        except (OSError, OverflowError, TimeoutError) as error:
            raise Gone(f"nothing listens on port {port} of this host") from error

    def _current(self, session_id: str, epoch: int) -> Task:
        """The session's newest task here; ``epoch`` 0 = whichever it is."""
        mine = [task for task in self._tasks.all() if task.session_id == session_id]
        newest = max(mine, key=lambda task: task.epoch, default=None)
        if newest is None or newest.epoch < epoch:
            raise Retry(f"{session_id} is not at epoch {epoch} here yet", after_s=0.2)
        if 0 < epoch < newest.epoch:
            raise StaleEpoch(f"epoch {epoch} of {session_id} is over: {newest.epoch} runs here")
        return newest
