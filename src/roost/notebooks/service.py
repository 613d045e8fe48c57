"""Commands and queries of notebooks. Writes intent and wakes the controller; never moves anything."""

from collections.abc import Callable

import msgspec

from roost.fleet.model import Spread
from roost.kit.ids import Ids
from roost.notebooks.machine import noted
from roost.notebooks.model import Session, SessionState
from roost.ports.clock import Clock
from roost.ports.errors import Conflict, Gone, Invalid
from roost.ports.kernels import Checkpoint
from roost.ports.store import Store, StoryLine, Table
from roost.ports.values import Ask, Image

WRITE_ATTEMPTS = 10


class NotebookService:
    """What doors call."""

    def __init__(self, store: Store, clock: Clock, ids: Ids, wake: Callable[[str], None]) -> None:
        self._store = store
        self._clock = clock
        self._ids = ids
        self._wake = wake
        self.sessions = Table(store, "session", Session)

    async def start(
        self,
        *,
        name: str,
        ask: Ask,
        image: Image,
        key: str = "",
        spread: Spread = Spread.POOL,
        kernel: str = "",
        start_clouds: tuple[str, ...] = (),
        standby: bool = True,
        stay: bool = False,
        page: bool = True,
    ) -> Session:
        """Record a session and return it at once; its routes hold until its kernel is up."""
        session = Session(
            id=self._ids.new("s"),
            name=name,
            state=SessionState.REQUESTED,
            epoch=0,
            key=key or self._ids.secret(),
            token=self._ids.secret(),
            ask=ask,
            image=image,
            spread=spread,
            kernel=kernel,
            start_clouds=start_clouds,
            standby=standby,
            stay=stay,
            page=page,
            created_s=self._clock.now_s(),
        )
        line = self._line(
            session.id, "Requested", f"{name}: {ask.vcpus:g} vCPU, {ask.memory_gib:g} GiB"
        )
        await self._store.commit([self.sessions.row(session)], [line])
        self._wake(session.id)
        return session

    async def get(self, name_or_id: str) -> Session:
        """A session by id, or the newest one that has not stopped by name. ``Gone`` if there is none."""
        stored = await self.sessions.get(name_or_id)
        if stored is not None:
            return stored.value
        named = [s for s in await self.list_all() if s.name == name_or_id]
        alive = [s for s in named if s.state is not SessionState.STOPPED]
        if not named:
            raise Gone(f"no notebook {name_or_id}", hint="`roost notebook list` shows them")
        return max(alive or named, key=lambda s: s.created_s)

    async def list_all(self) -> list[Session]:
        """All sessions, oldest first."""
        found = [s.value for s in await self.sessions.find()]
        return sorted(found, key=lambda s: (s.created_s, s.id))

    async def stop(self, session_id: str) -> Session:
        """It shall end; returns the session as recorded."""

        def change(session: Session) -> Session:
            return msgspec.structs.replace(session, desired="stopped")

        return await self._change(session_id, change, "StopAsked", "asked to stop")

    async def move(self, session_id: str, reason: str) -> Session:
        """It shall change place now."""

        def change(session: Session) -> Session:
            if session.desired == "stopped":
                raise Invalid(f"{session.name} is stopped", hint="start a new one")
            if session.state is SessionState.MOVING:
                return session
            return msgspec.structs.replace(session, move_asked=reason)

        return await self._change(session_id, change, "MoveAsked", reason)

    async def note_checkpoint(self, checkpoint: Checkpoint) -> None:
        """A capture became durable. Old epochs and repeated reports change nothing."""

        def change(session: Session) -> Session:
            if not session.epoch - 1 <= checkpoint.epoch <= session.epoch:
                return session
            told = msgspec.structs.replace(session, message="") if session.message else session
            return noted(told, checkpoint)

        size_mb = checkpoint.bytes_moved / 1e6
        reason = f"capture {checkpoint.number} of epoch {checkpoint.epoch}, {size_mb:.2f} MB moved"
        await self._change(checkpoint.session_id, change, "Checkpointed", reason)

    async def note_trouble(self, session_id: str, message: str) -> None:
        """Something a person should know; the session goes on."""

        def change(session: Session) -> Session:
            return msgspec.structs.replace(session, message=message)

        await self._change(session_id, change, "CaptureFailed", message)

    async def note(self, session_id: str, event: str, reason: str) -> None:
        """Add a line to the session's story and wake it."""
        await self._store.commit([], [self._line(session_id, event, reason)])
        self._wake(session_id)

    async def _change(
        self, session_id: str, change: Callable[[Session], Session], event: str, reason: str
    ) -> Session:
        for _ in range(WRITE_ATTEMPTS):
            stored = await self.sessions.get(session_id)
            if stored is None:
                raise Gone(f"no notebook {session_id}", hint="`roost notebook list` shows them")
            if (changed := change(stored.value)) == stored.value:
                return changed
            line = self._line(session_id, event, reason)
            try:
                await self._store.commit([self.sessions.row(changed, stored)], [line])
            except Conflict:
                continue
            self._wake(session_id)
            return changed
        raise Conflict(f"{session_id} changes too quickly", hint="try again")

    def _line(self, object_id: str, event: str, reason: str) -> StoryLine:
        return StoryLine(object_id=object_id, at_s=self._clock.now_s(), event=event, reason=reason)
