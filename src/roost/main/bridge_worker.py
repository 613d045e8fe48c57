"""Entry point of the bridge's worker; started by ``roost.main.bridge`` only, which describes settings.

A module of its own, so that the front starts at once and stays small.
"""

import argparse
import asyncio
import hashlib
import logging
import os
import signal
import socket
import sys
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path

import msgspec

from roost.adapters.clock import SystemClock
from roost.client.stream import open_stream
from roost.main.bridge import parser
from roost.notebooks.bridge.create import Session, create_session, delete_session
from roost.notebooks.bridge.front import ABORTED
from roost.notebooks.bridge.journal import Journal
from roost.notebooks.bridge.ports import Connection
from roost.notebooks.bridge.worker import Place, Stream, Worker
from roost.notebooks.folder import FolderSync
from roost.notebooks.workspace import Workspace
from roost.ports.errors import Invalid, Retry, RoostError

CREATE_PATIENCE_S = 60.0
FIRST_UP_S = 60.0
HOLD_TIMEOUT_S = 150.0
"""Longer than an edge holds a route, so that its own answer is the one that is seen."""

log = logging.getLogger("roost.bridge")


class Endpoints(msgspec.Struct, frozen=True):
    """``endpoints.json`` of the state directory: what a bridge needs of it."""

    public_url: str = ""
    control_url: str = ""


def main() -> int:
    """Run a worker; returns the exit code."""
    args = parser(worker=True).parse_args()
    logging.basicConfig(
        level=logging.INFO if args.verbose else logging.WARNING,
        stream=sys.stderr,
        format="%(asctime)s %(name)s %(levelname)s %(message)s",
    )
    return asyncio.run(_work(args))


async def _work(args: argparse.Namespace) -> int:
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        # The front interprets signals; the end of its socket is the end of this process.
        asyncio.get_running_loop().add_signal_handler(number, lambda: None)
    with socket.socket(fileno=args.worker) as ours:
        front: Stream = await asyncio.open_connection(sock=ours.dup(), limit=1 << 20)
    folder = args.journal or _default_journal(args.file)
    try:
        place = await _place(args, folder)
        await Worker(place, Journal(folder), front).run()
    except RoostError as error:
        print(f"roost bridge: {error}", file=sys.stderr)
        return ABORTED
    return 0


async def _place(args: argparse.Namespace, folder: Path) -> Place:
    """The session of this bridge: given, remembered from before a restart, or asked for."""
    key = Connection.load(args.file).key
    state = _state_dir()
    endpoints = _endpoints(state)
    edge = args.edge or endpoints.public_url
    token = os.environ.get("ROOST_TOKEN", "") or _owner_token(state)
    session = Session(id=args.session, token=token)
    owned = not args.session
    if owned:
        session = await _own_session(folder, endpoints.control_url, token, args.file.stem, key)
    if not edge:
        raise Invalid("no edge is known", hint="run `roost up`, or give --edge URL")

    async def connect_files() -> Stream:
        url = args.edge or _endpoints(state).public_url or edge
        path = f"/_roost/files/{session.id}"
        return await open_stream(url, path, session.token or token, timeout_s=HOLD_TIMEOUT_S)

    notebook = await _notebook_folder(folder, connect_files) if owned else None

    async def dial() -> Stream:
        if notebook is not None:
            await notebook.first  # the first cell finds its files
        # An edge may have another address after a restart of the cell.
        url = args.edge or _endpoints(state).public_url or edge
        path = f"/_roost/kernel/{session.id}"
        return await open_stream(url, path, session.token or token, timeout_s=HOLD_TIMEOUT_S)

    async def give_back() -> None:
        await delete_session(_endpoints(state).control_url, token, session.id)
        (folder / "session.json").unlink(missing_ok=True)

    return Place(
        session_id=session.id,
        key=key,
        open_stream=dial,
        give_back=give_back if owned else None,
        after_cell=notebook.after_cell if notebook is not None else None,
    )


class _NotebookFolder:
    """The folder a person's own Jupyter started this bridge in, kept in step with the workspace."""

    def __init__(self, sync: FolderSync) -> None:
        self._sync = sync
        self._lines: list[str] = []
        self.first = asyncio.ensure_future(self._up())

    async def _up(self) -> None:
        try:
            async with asyncio.timeout(FIRST_UP_S):
                self._lines = (await self._sync.up()).lines()
        except (RoostError, TimeoutError) as error:
            self._lines = [f"the notebook's folder could not be copied: {error or 'time-out'}"]

    async def after_cell(self) -> list[str]:
        """Fetch what the cell changed; what there is to tell a person."""
        lines, self._lines = self._lines, []
        return lines + (await self._sync.down()).lines()


async def _notebook_folder(
    journal: Path, connect: Callable[[], Awaitable[Stream]]
) -> _NotebookFolder | None:
    if os.environ.get("ROOST_FOLDER") == "off":
        return None
    workspace = Workspace(journal / "workspace", connect, SystemClock())
    await workspace.start()
    return _NotebookFolder(FolderSync(Path.cwd(), workspace))


async def _own_session(folder: Path, control_url: str, token: str, name: str, key: str) -> Session:
    remembered = folder / "session.json"
    with suppress(OSError, msgspec.MsgspecError):
        return msgspec.json.decode(remembered.read_bytes(), type=Session)
    if not control_url:
        raise Invalid("no control plane is known", hint="run `roost up`, or give --session ID")
    until = time.monotonic() + CREATE_PATIENCE_S
    while True:
        try:
            session = await create_session(control_url, token, name=name, key=key)
            break
        except Retry:
            if time.monotonic() > until:
                raise
            await asyncio.sleep(0.5)
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    fresh = remembered.with_suffix(".new")
    handle = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(handle, "wb") as file:
        file.write(msgspec.json.encode(session))
    fresh.replace(remembered)
    return session


def _state_dir() -> Path:
    given = os.environ.get("ROOST_STATE_DIR")
    if given:
        return Path(given)
    base = os.environ.get("XDG_STATE_HOME")
    return (Path(base) if base else Path.home() / ".local" / "state") / "roost"


def _endpoints(state: Path) -> Endpoints:
    with suppress(OSError, msgspec.MsgspecError):
        return msgspec.json.decode((state / "endpoints.json").read_bytes(), type=Endpoints)
    return Endpoints()


def _owner_token(state: Path) -> str:
    with suppress(OSError):
        return (state / "owner.token").read_text().strip()
    return ""


def _default_journal(connection_file: Path) -> Path:
    """One folder per connection file: a bridge started again on it finds its journal."""
    name = hashlib.blake2b(os.fsencode(connection_file.resolve()), digest_size=8).hexdigest()
    return _state_dir() / "bridges" / f"{connection_file.stem[:24]}-{name}"


if __name__ == "__main__":
    sys.exit(main())
