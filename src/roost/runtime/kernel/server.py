"""What is asked of the engine through its door, on a thread of its own.

Never touches a user object: what does is handed to the main thread.
"""

import asyncio
import contextlib
import threading
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from roost.runtime.kernel.door import Door, Op
from roost.runtime.kernel.engine import Engine
from roost.runtime.kernel.jobs import Fields
from roost.runtime.kernel.restore import CannotRestore

BUDGET_S = 30.0
"""Time for a capture when the request names none."""
BECOME_S = 0.05
"""The answer is out by then."""
POKE_S = 0.5
"""How often the main thread is asked again to look for a place to pause at."""

Become = Callable[[Fields], Callable[[], None]]


class Server:
    """Serves one engine."""

    def __init__(self, engine: Engine, path: Path, become: Become | None = None) -> None:
        """``become``: for a request, what puts a kernel of another language in the place of this process."""
        self._engine = engine
        self._path = path
        self._become = become
        self._loop = asyncio.new_event_loop()
        self._ready = threading.Event()
        ops: dict[str, Op] = {
            "status": self._status,
            "warm": self._warm,
            "adopt": self._adopt,
            "restore": self._restore,
            "capture": self._capture,
            "configure": self._configure,
            "hold": self._hold,
            "release": self._release,
            "notice": self._notice,
            "call_off": self._call_off,
            "pause": self._pause,
            "go_on": self._go_on,
            "continue": self._continue,
        }
        self._door = Door(ops)

    def start(self) -> None:
        """Listen; returns when clients can connect."""
        thread = threading.Thread(target=self._run, name="roost-engine", daemon=True)
        thread.start()
        self._ready.wait(10)
        self._engine.listeners.append(self._push)

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        server = self._loop.run_until_complete(self._door.listen(self._path))
        self._ready.set()
        with contextlib.suppress(RuntimeError):
            self._loop.run_until_complete(server.serve_forever())

    def _push(self, fields: Fields) -> None:
        if not self._door.clients:
            return  # to wake a thread for nobody costs the cells
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._door.push, fields)

    async def _on_main(self, work: Callable[[], Any]) -> Any:
        return await asyncio.wrap_future(self._engine.on_main(work))

    async def _between_cells(self, work: Callable[[], Any]) -> Any:
        """Like ``_on_main``, and not while a cell awaits something."""
        while True:
            done, result = await self._on_main(
                lambda: (False, None) if self._engine.busy else (True, work())
            )
            if done:
                return result
            await asyncio.sleep(0.02)

    # --- operations ------------------------------------------------------------------------------

    async def _status(self, _request: Fields) -> Fields:
        return self._engine.status()

    async def _warm(self, request: Fields) -> Fields:
        """One import at a time, so that other work gets its turn."""
        made: Fields = {"imported": [], "failed": [], "missing": {}, "seconds": 0.0}
        for name in [str(name) for name in request["imports"]]:
            one = await self._between_cells(lambda name=name: self._engine.warm([name]))  # type: ignore[misc]
            made["imported"] += one["imported"]
            made["failed"] += one["failed"]
            made["missing"].update(one["missing"])
            made["seconds"] += one["seconds"]
        return made

    async def _adopt(self, request: Fields) -> Fields:
        if request.get("kernel"):
            if self._become is None:
                raise CannotRestore("no_kernel", "this kernel stays what it is")
            become = self._become(request)
            self._path.unlink(missing_ok=True)  # whoever comes now waits for the next
            self._loop.call_later(BECOME_S, become)
            return {"becomes": True}
        found: Fields = await self._between_cells(lambda: self._engine.adopt(request))
        return found

    async def _restore(self, request: Fields) -> Fields:
        directory, manifest = Path(request["dir"]), Path(request["manifest"])
        done = await self._between_cells(lambda: self._engine.restore(directory, manifest))
        if request.get("wait", True):
            if done.unproven:
                verified = asyncio.Event()
                done.unproven.then(lambda: self._loop.call_soon_threadsafe(verified.set))
                await verified.wait()
            await self._between_cells(self._engine.prove_told)  # also where that was over by now
        return {
            "report": [asdict(entry) for entry in done.report],
            "seconds": done.seconds,
            "execution_count": done.manifest.execution_count,
            "number": done.manifest.number,
            "finished": list(done.manifest.finished),
        }

    async def _capture(self, request: Fields) -> Fields:
        budget_s = float(request.get("budget_s", BUDGET_S))
        until = self._loop.time() + budget_s
        asked = asyncio.wrap_future(self._engine.on_main(self._engine.capture))
        try:
            async with asyncio.timeout_at(until):
                done = await asked
        except TimeoutError as error:
            raise CannotRestore("busy", f"a cell still runs after {budget_s:.1f} s") from error
        try:
            async with asyncio.timeout_at(until):
                found: Fields = await asyncio.shield(asyncio.wrap_future(done))
                return found
        except TimeoutError as error:
            self._engine.on_main(lambda: self._engine.withdraw(done))
            why = "a cell still runs" if self._engine.busy else "the capture is not finished"
            raise CannotRestore("busy", f"{why} after {budget_s:.1f} s") from error
        except OSError as error:
            raise CannotRestore("disk", error.strerror or str(error)) from error

    async def _notice(self, request: Fields) -> Fields:
        """Everything durable within ``within_s``: what runs is paused, finished, or given up."""
        engine, mover = self._engine, self._engine.mover
        if mover is None:
            raise CannotRestore("no_directory", "this kernel tracks into no directory")
        within_s = float(request.get("within_s", BUDGET_S))
        done = mover.begin(within_s, busy=engine.busy)
        engine.on_main(lambda: None if engine.busy else mover.idle(done))
        waiting = asyncio.wrap_future(done)
        left_s = mover.give_up_at - time.monotonic()
        await asyncio.wait({waiting}, timeout=max(0.0, left_s))
        if not waiting.done():
            mover.late()
        try:
            found: Fields = await asyncio.wait_for(waiting, timeout=BUDGET_S)
        except OSError as error:
            raise CannotRestore("disk", error.strerror or str(error)) from error
        return found

    async def _call_off(self, _request: Fields) -> Fields:
        if self._engine.mover is not None:
            self._engine.mover.call_off()
        return {}

    async def _pause(self, request: Fields) -> Fields:
        """Pause the running cell in a loop, for a keeper; answered when it stands, ended, or cannot."""
        engine, pauser = self._engine, self._engine.pauser
        if pauser is None:
            raise CannotRestore("no_directory", "this kernel tracks into no directory")
        asked = pauser.ask(str(request.get("token", "")))
        waiting = asyncio.wrap_future(asked.done)
        while not waiting.done():
            pauser.poke()
            engine.on_main(lambda: None if engine.busy else asked.answer({"mode": "over"}))
            await asyncio.wait({waiting}, timeout=POKE_S)
        return dict(waiting.result())

    async def _go_on(self, _request: Fields) -> Fields:
        if self._engine.pauser is not None:
            self._engine.pauser.go_on()
        return {}

    async def _continue(self, request: Fields) -> Fields:
        message_id, tail = str(request["msg_id"]), str(request["tail"])
        expect = self._engine.continued.expect
        await self._between_cells(lambda: expect(message_id, tail))
        return {}

    async def _configure(self, request: Fields) -> Fields:
        if "captures" in request:
            where = Path(request["captures"]) if request["captures"] else None
            await self._between_cells(lambda: self._engine.track(where))
        return {}

    async def _hold(self, request: Fields) -> Fields:
        return await self._simple(lambda: self._engine.hold(int(request["number"])))

    async def _release(self, request: Fields) -> Fields:
        return await self._simple(lambda: self._engine.release(int(request["number"])))

    async def _simple(self, work: Callable[[], Fields]) -> Fields:
        found: Fields = await self._on_main(work)
        return found
