"""The loop of notebooks, one key per session: read, observe, plan, act. May be cancelled at any await.

Each step's outcome is durable before the next is planned; every call it makes may be made again.
"""

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

import msgspec

from roost.fleet import demand
from roost.fleet import plan as claims
from roost.fleet.model import Advise, Better, ClaimView
from roost.fleet.service import FleetService
from roost.kit.ids import Ids
from roost.notebooks import machine
from roost.notebooks import plan as planning
from roost.notebooks.model import Phase, Routes, Servers, Session, SessionState
from roost.notebooks.service import NotebookService
from roost.ports.clock import Clock
from roost.ports.errors import Gone, Never, Retry, RoostError, StaleEpoch
from roost.ports.kernels import KernelOrder, Kernels
from roost.ports.store import Row, Store, Stored, StoryLine

WATCH_S = 1.0
URGENT_S = 0.1
LOOK_S = 300.0
"""Between looks for a better place: facts of the market come as often."""
ALIVE_CHECK_S = 0.1
HOPELESS_S = 5.0
"""How often what failed for good is tried again: a person may have mended it."""

T = TypeVar("T")


class HostWentAway(Exception):
    """The host a call was made to ended before it answered."""


class NotebookController:
    """Brings every session to where it should be."""

    def __init__(
        self,
        service: NotebookService,
        fleet: FleetService,
        store: Store,
        clock: Clock,
        ids: Ids,
        kernels: Kernels,
        routes: Routes,
        servers: Servers,
        advise: Advise,
    ) -> None:
        self._service = service
        self._table = service.sessions
        self._fleet = fleet
        self._store = store
        self._clock = clock
        self._ids = ids
        self._kernels = kernels
        self._routes = routes
        self._servers = servers
        self._advise = advise
        self._looked: dict[str, tuple[float, Better | None]] = {}
        """When the market was looked at last for each session, and what was better."""
        self._silent_since: dict[str, float] = {}
        self._missing_since: dict[str, float] = {}
        self._warmed: dict[str, tuple[str, ...]] = {}
        self._warming: dict[str, asyncio.Task[None]] = {}
        self._fetched: dict[tuple[str, str], tuple[str, float]] = {}
        """Host and session -> the checkpoint whose chunks are there, and when it was asked for."""
        self._fetching: dict[tuple[str, str], asyncio.Task[None]] = {}

    async def keys(self) -> list[str]:
        """All sessions that still need looking after."""
        found = await self._table.find()
        return [s.value.id for s in found if s.value.state is not SessionState.STOPPED]

    async def stop(self) -> None:
        """Cancel what runs beside the keys."""
        beside = [*self._warming.values(), *self._fetching.values()]
        for task in beside:
            task.cancel()
        await asyncio.gather(*beside, return_exceptions=True)

    async def handle(self, session_id: str) -> float | None:
        """One round for a session; returns the seconds until the next look, None when it has stopped."""
        stored = await self._table.get(session_id)
        if stored is None or stored.value.state is SessionState.STOPPED:
            return None
        snapshot = await self._snapshot(stored.value)
        if await self._observe(stored, snapshot):
            return 0.0
        if stored.value.page and stored.value.desired == "running":
            await self._servers.ensure(stored.value)
        if stored.value.state is SessionState.REQUESTED and stored.value.epoch == 0:
            await self._routes.hold(stored.value, 0)
        instructions = planning.plan(snapshot)
        waits = [await self._run(i, stored) for i in instructions]
        delays = [w for w in waits if w is not None]
        if delays:
            return min(delays)
        if instructions:
            return 0.0
        return WATCH_S if stored.value.state is SessionState.RUNNING else URGENT_S

    # --- observe -----------------------------------------------------------------------------------

    async def _snapshot(self, session: Session) -> planning.Snapshot:
        active = await self._fleet.view(session.claim_id) if session.claim_id else None
        standby = None
        if session.standby_claim_id:
            standby = await self._fleet.view(session.standby_claim_id)
        fetched = self._fetched.get((self._host_of(standby), session.id), ("", 0.0))
        snapshot = planning.Snapshot(
            session=session,
            active=active,
            standby=standby,
            now_s=self._clock.now_s(),
            silent_s=self._since(self._silent_since, session, self._silent(session, active)),
            missing_s=self._since(self._missing_since, session, self._missing(session, active)),
            warmed=self._warmed.get(self._host_of(standby)),
            fetched=fetched[0],
            fetched_s=fetched[1],
        )
        if not planning.may_move_at_will(snapshot):
            self._looked.pop(session.id, None)
            return snapshot
        return msgspec.structs.replace(snapshot, better=await self._better(session, active))

    async def _better(self, session: Session, active: ClaimView | None) -> Better | None:
        """Where the session should be, looked at now and then."""
        now_s = self._clock.monotonic_s()
        known = self._looked.get(session.id)
        if known is not None and now_s - known[0] < LOOK_S:
            return known[1]
        assert active is not None and active.instance is not None, "it may move at will"
        held = active.instance.offer
        need = demand.NeedHost(role="standby", away_from=(held,), reason="")
        claim = demand.wanted(session, need, session.ask, claim_id="", now_s=now_s)
        pools = [p.value for p in await self._fleet.tables.pools.find()]
        found = await self._advise(held, claims.narrowed(claim, pools, self._clock.now_s()))
        self._looked[session.id] = now_s, found
        return found

    @staticmethod
    def _host_of(view: ClaimView | None) -> str:
        return view.instance.id if view is not None and view.instance is not None else ""

    def _since(self, memory: dict[str, float], session: Session, holds: bool) -> float:
        """For how long ``holds`` has been true for this session, in seconds."""
        if not holds:
            memory.pop(session.id, None)
            return 0.0
        now_s = self._clock.monotonic_s()
        return now_s - memory.setdefault(session.id, now_s)

    @staticmethod
    def _silent(session: Session, active: ClaimView | None) -> bool:
        running = session.state is SessionState.RUNNING
        return running and active is not None and not active.connected

    @staticmethod
    def _missing(session: Session, active: ClaimView | None) -> bool:
        if session.state is not SessionState.RUNNING or active is None or not active.connected:
            return False
        if active.report is None or active.report.at_s <= session.kernel_since_s:
            return False
        task = planning.kernel_task(active, session)
        return task is None or task.epoch != session.epoch

    async def _observe(self, stored: Stored[Session], snapshot: planning.Snapshot) -> bool:
        """Fold durable captures that the host reports into the session; True if it changed."""
        session = stored.value
        task = planning.kernel_task(snapshot.active, session)
        if task is None or task.checkpoint is None or task.checkpoint.epoch != session.epoch:
            return False
        new = machine.noted(session, task.checkpoint)
        if new == session:
            return False
        await self._save(stored, new)
        return True

    # --- act ---------------------------------------------------------------------------------------

    async def _run(
        self, instruction: planning.Instruction, stored: Stored[Session]
    ) -> float | None:
        change = self._change(stored.value, instruction)
        if change is not None:
            new, event, reason = change
            await self._save(stored, new, event, reason)
            return None
        match instruction:
            case demand.NeedHost():
                await self._need_host(stored, instruction)
            case demand.DropHost():
                await self._drop_host(stored, instruction)
            case planning.WarmHost():
                self._warm(stored.value.id, instruction)
                return WATCH_S if stored.value.state is SessionState.RUNNING else URGENT_S
            case planning.Prefetch():
                self._prefetch(stored.value.id, instruction)
                return WATCH_S if stored.value.state is SessionState.RUNNING else URGENT_S
            case planning.StartKernel():
                return await self._start_kernel(stored, instruction)
            case planning.Capture():
                return await self._capture(stored, instruction)
            case planning.Fallback():
                await self._fall_back(stored, instruction)
            case planning.Stop():
                return await self._stop_session(stored)
        return None

    def _change(
        self, session: Session, instruction: planning.Instruction
    ) -> tuple[Session, str, str] | None:
        """Instructions that only change the session: (new session, event, reason)."""
        now_s = self._clock.now_s()
        match instruction:
            case planning.Begin(host_id=host_id):
                return machine.begin(session, host_id), "Starting", f"on {host_id}"
            case planning.BackToRequested(reason=reason):
                return machine.step(session, SessionState.REQUESTED), "HostGone", reason
            case planning.BeginMove(cause=cause, reason=reason, deadline_s=deadline_s, offer=offer):
                begun = machine.begin_move(
                    session,
                    cause=cause,
                    reason=reason,
                    now_s=now_s,
                    deadline_s=deadline_s,
                    offer=offer,
                )
                return begun, "MoveBegun", reason
            case planning.Urge(cause=cause, reason=reason, deadline_s=deadline_s):
                urged = machine.urge(session, cause=cause, reason=reason, deadline_s=deadline_s)
                return urged, "MoveUrged", reason
            case planning.Freeze(reason=reason):
                return machine.freeze(session, now_s), "Frozen", reason
            case planning.Aim(host_id=host_id):
                aimed = machine.aim(session, host_id)
                return aimed, "TargetChosen", f"{host_id} at epoch {aimed.epoch}"
        return None

    async def _save(
        self, stored: Stored[Session], new: Session, event: str = "", reason: str = ""
    ) -> None:
        lines = [self._line(new.id, event, reason)] if event else []
        await self._store.commit([self._table.row(new, stored)], lines)

    async def _need_host(self, stored: Stored[Session], need: demand.NeedHost) -> None:
        session = stored.value
        ask = session.ask
        if need.role == "active" and session.epoch == 0 and session.start_clouds:
            ask = msgspec.structs.replace(ask, clouds=session.start_clouds)
        claim = demand.wanted(
            session, need, ask, claim_id=self._ids.new("c"), now_s=self._clock.now_s()
        )
        if need.role == "active":
            new = msgspec.structs.replace(session, claim_id=claim.id)
        else:
            new = msgspec.structs.replace(session, standby_claim_id=claim.id)
        rows: list[Row] = [self._table.row(new, stored), self._fleet.tables.claims.row(claim)]
        lines = [self._line(session.id, "HostWanted", f"{need.role}: {need.reason}")]
        await self._store.commit(rows, lines)
        await self._fleet.claim(claim)

    async def _drop_host(self, stored: Stored[Session], drop: demand.DropHost) -> None:
        self._looked.pop(stored.value.id, None)  # the place it was for may have refused
        await self._fleet.release(drop.claim_id, drop.reason)
        fresh = await self._table.get(stored.value.id)
        if fresh is None:
            return
        new = demand.without(fresh.value, drop.claim_id, "claim_id", "standby_claim_id")
        await self._save(fresh, new)

    def _warm(self, session_id: str, warm: planning.WarmHost) -> None:
        """Warm beside the key's handler: imports take seconds and a notice must not wait for them."""
        if warm.host_id in self._warming:
            return

        async def work() -> None:
            try:
                await self._kernels.warm(warm.host_id, warm.imports)
                self._warmed[warm.host_id] = warm.imports
                reason = f"{warm.host_id} has {len(warm.imports)} modules imported"
                await self._service.note(session_id, "StandbyWarm", reason)
            except RoostError:
                pass  # planned again at the next look, as long as the host is usable
            finally:
                self._warming.pop(warm.host_id, None)

        self._warming[warm.host_id] = asyncio.get_running_loop().create_task(work())

    def _prefetch(self, session_id: str, fetch: planning.Prefetch) -> None:
        """Beside the key's handler, like warming. What does not come must not hold up a move."""
        key = (fetch.host_id, session_id)
        if key in self._fetching:
            return

        asked_s = self._clock.now_s()

        async def work() -> None:
            try:
                await self._kernels.prefetch(fetch.host_id, session_id, fetch.checkpoint)
                self._fetched[key] = (fetch.checkpoint, asked_s)
            except RoostError:
                self._fetched[key] = ("", asked_s)
            finally:
                self._fetching.pop(key, None)

        self._fetching[key] = asyncio.get_running_loop().create_task(work())

    async def _start_kernel(
        self, stored: Stored[Session], start: planning.StartKernel
    ) -> float | None:
        session = stored.value
        order = KernelOrder(
            session_id=session.id,
            epoch=session.epoch,
            key=session.key,
            checkpoint=session.checkpoint.digest if session.checkpoint else "",
            kernel=session.kernel,
        )
        if session.state is SessionState.MOVING:
            # Again, in case a crash came between the decision to restore and the hold.
            await self._routes.hold(session, session.epoch)
        try:
            kernel = await self._while_alive(
                start.claim_id, self._kernels.start(start.host_id, order)
            )
        except HostWentAway:
            return 0.0
        except Retry as error:
            return error.after_s
        except (Gone, StaleEpoch) as error:
            # That epoch is over on its host: the kernel died before it was routed, or was called off.
            reason = f"epoch {session.epoch} cannot start on {start.host_id}: {error.message}"
            await self._save(stored, machine.again(session), "StartsAgain", reason)
            return WATCH_S
        except Never as error:
            await self._tell(session, f"the kernel does not start: {error}")
            return HOPELESS_S
        await self._routes.point(session, start.host_id, session.epoch)
        now_s = self._clock.now_s()
        if session.state is SessionState.STARTING:
            new = machine.up(session, kernel, now_s)
            reason = f"epoch {session.epoch} on {start.host_id} ({start.offer.key})"
            await self._save(stored, new, "Running", reason)
            return None
        new = machine.moved(session, kernel, start.offer, now_s)
        record = new.moves[-1]
        reason = (
            f"epoch {session.epoch} on {start.host_id} ({start.offer.key}); frozen "
            f"{record.frozen_s:.2f} s, kept {len(record.kept)}, rebuilt {len(record.rebuilt)}, "
            f"refused {len(record.refused)}"
        )
        await self._save(stored, new, "Moved", reason)
        return None

    async def _tell(self, session: Session, message: str) -> None:
        """Show a person a lasting trouble, once."""
        fresh = await self._table.get(session.id)
        if fresh is not None and fresh.value.message != message:
            told = msgspec.structs.replace(fresh.value, message=message)
            await self._save(fresh, told, "Troubled", message)

    async def _capture(self, stored: Stored[Session], capture: planning.Capture) -> float | None:
        session = stored.value
        move = session.move
        assert move is not None

        async def work() -> Any:
            # Fencing comes first and together: the edge holds new streams, the keeper takes no more work.
            await asyncio.gather(
                self._routes.hold(session, session.epoch),
                self._kernels.fence(capture.host_id, session.id, move.from_epoch),
            )
            return await self._kernels.capture(
                capture.host_id, session.id, move.from_epoch, capture.budget_s
            )

        try:
            checkpoint = await self._while_alive(capture.claim_id, work())
        except HostWentAway:
            return 0.0
        except (Retry, Gone, StaleEpoch) as error:
            fresh = await self._table.get(session.id)
            if fresh is not None and fresh.value.move is not None:
                failed = machine.capture_failed(fresh.value)
                await self._save(fresh, failed, "CaptureFailed", str(error))
            return URGENT_S
        fresh = await self._table.get(session.id)
        if (
            fresh is None
            or fresh.value.move is None
            or fresh.value.move.phase is not Phase.CAPTURING
        ):
            return 0.0
        new = machine.to_restore(fresh.value, self._clock.now_s(), checkpoint)
        size_mb = checkpoint.bytes_moved / 1e6
        reason = f"capture {checkpoint.number}: {size_mb:.2f} MB moved"
        await self._save(fresh, new, "Captured", reason)
        return None

    async def _fall_back(self, stored: Stored[Session], fall: planning.Fallback) -> None:
        session = stored.value
        new = machine.to_restore(session, fall.since_s, None)
        number = session.checkpoint.number if session.checkpoint else 0
        reason = f"{fall.reason}; back to checkpoint {number}"
        await self._save(stored, new, "FellBack", reason)
        await self._routes.hold(new, new.epoch)

    async def _stop_session(self, stored: Stored[Session]) -> float | None:
        session = stored.value
        if session.state is not SessionState.STOPPING:
            await self._save(stored, machine.step(session, SessionState.STOPPING), "Stopping")
            return None
        await self._routes.remove(session)
        await self._servers.remove(session)
        for claim_id in (session.claim_id, session.standby_claim_id, *session.old_claims):
            if claim_id:
                await self._fleet.release(claim_id, "the session was stopped")
        stopped = msgspec.structs.replace(
            machine.step(session, SessionState.STOPPED), old_claims=(), move=None
        )
        await self._save(stored, stopped, "Stopped", "asked to")
        return None

    async def _while_alive(self, claim_id: str, call: Coroutine[Any, Any, T]) -> T:
        """The call's result; ``HostWentAway`` as soon as fleet knows that its host has ended.

        Without this a call to a dead host would wait for its whole time limit.
        """
        task = asyncio.get_running_loop().create_task(call)
        try:
            while True:
                done, _ = await asyncio.wait({task}, timeout=ALIVE_CHECK_S)
                if done:
                    return task.result()
                view = await self._fleet.view(claim_id)
                if view is None or view.instance is None or view.instance.ended:
                    raise HostWentAway
        finally:
            if not task.done():
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)

    def _line(self, object_id: str, event: str, reason: str) -> StoryLine:
        return StoryLine(object_id=object_id, at_s=self._clock.now_s(), event=event, reason=reason)
