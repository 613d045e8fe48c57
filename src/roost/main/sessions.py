"""A session's addresses and its Jupyter server, plugged into notebooks by ``main.control``.

A server is wanted by a file (``run/desired/server-<id>.json``): the supervisor starts, restarts and
stops it. Nothing here waits for it.
"""

import contextlib
import json
import sys
from pathlib import Path

from roost.fleet.service import token_hash
from roost.gateway.model import Hold, Host, Unix
from roost.gateway.service import GatewayService
from roost.main.settings import StateDir, write_atomic
from roost.notebooks.model import Session
from roost.ports.errors import StaleEpoch

STREAMS = ("kernel", "files")
REMOVED_EPOCH = 1 << 40


class SessionRoutes:
    """``kernel/<session>``, ``files/<session>`` and ``n/<session>`` at the gateway."""

    def __init__(self, gateway: GatewayService, state: StateDir, owner_token: str) -> None:
        self._gateway = gateway
        self._state = state
        self._owner = token_hash(owner_token)

    def _tokens(self, session: Session) -> tuple[str, ...]:
        return (token_hash(session.token), self._owner)

    async def point(self, session: Session, host_id: str, epoch: int) -> None:
        """Send the session's streams to its kernel's host."""
        await self._page(session)
        for kind in STREAMS:
            name = f"{kind}/{session.id}"
            target = Host(host_id=host_id, service=name)
            await self._gateway.point(name, target, epoch=epoch, tokens=self._tokens(session))

    async def hold(self, session: Session, epoch: int) -> None:
        """Keep the session's streams waiting."""
        await self._page(session)
        for kind in STREAMS:
            name = f"{kind}/{session.id}"
            known = self._gateway.route(name)
            if known is not None and known.epoch == epoch and isinstance(known.target, Hold):
                continue
            await self._gateway.hold(name, epoch=epoch, tokens=self._tokens(session))

    async def _page(self, session: Session) -> None:
        """The Jupyter server stays where it is; its own token guards it."""
        name = f"n/{session.id}"
        if session.page and self._gateway.route(name) is None:
            target = Unix(path=str(server_socket(self._state, session.id)))
            with contextlib.suppress(StaleEpoch):
                await self._gateway.point(name, target, epoch=1)

    async def remove(self, session: Session) -> None:
        """The session's addresses are unknown from now on."""
        for kind in (*STREAMS, "n"):
            await self._gateway.remove(f"{kind}/{session.id}")


def server_socket(state: StateDir, session_id: str) -> Path:
    """Where the session's Jupyter server listens."""
    return state.servers / session_id / "http.sock"


class SessionServers:
    """The Jupyter server of each session, as files that the supervisor follows."""

    def __init__(self, state: StateDir, public_url: str) -> None:
        self._state = state
        self._public_url = public_url

    async def ensure(self, session: Session) -> None:
        """It runs, or will be started."""
        folder = self._state.servers / session.id
        desired = self._state.desired / f"server-{session.id}.json"
        if desired.exists():
            return
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        content = {
            "session_id": session.id,
            "token": session.token,
            "key": session.key,
            "base_url": f"/n/{session.id}/",
            "edge_url": self._public_url,
            "stream_token": session.token,
            "socket": str(server_socket(self._state, session.id)),
        }
        write_atomic(folder / "server.json", json.dumps(content).encode())
        argv = [sys.executable, "-m", "roost.main.server", "--session-dir", str(folder)]
        write_atomic(desired, json.dumps({"argv": argv}).encode())

    async def remove(self, session: Session) -> None:
        """It ends."""
        (self._state.desired / f"server-{session.id}.json").unlink(missing_ok=True)
