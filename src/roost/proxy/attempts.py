"""Getting one request to a backend: which one, over which connection, and another one when it fails.

The base of an ``Exchange``, which adds the way back. Never sends a request to the same backend twice, nor
anywhere again once a byte of the answer has gone to the client. Without a connection at hand there is a
task for the connect; everything else is callbacks.
"""

import asyncio
import logging
from typing import TYPE_CHECKING

from roost.ports.errors import RoostError
from roost.proxy.answers import FAILED_PROXY, LOST, NOBODY, UNREACHED, Answer, too_large
from roost.proxy.framing import Body
from roost.proxy.heads import Request
from roost.proxy.plan import Pairs, Plan, Release, Stream
from roost.proxy.pool import Backend, BackendConnection
from roost.proxy.upstream import Outcome, Upstream

if TYPE_CHECKING:
    from roost.proxy.front import ClientConnection

log = logging.getLogger(__name__)

INFINITE = float("inf")
JOIN_LIMIT = 16 << 10
"""Pieces are written as one up to this many bytes."""
REPLAY_LIMIT = 64 << 10
"""Most bytes of a request's body kept to send it again, where no plan says it."""
ATTEMPTS = 3
"""Most backends tried for one request, where no plan says it."""
PAUSE_S = 0.1
"""Before a request that failed everywhere asks again; doubles up to ..."""
PAUSES_S = 2.0
RACE_S = 0.1
"""A kept connection lost this soon after a request was sent was closing already: nobody's fault."""


def packed(pieces: list[bytes]) -> list[bytes]:
    """Few small pieces become one write, so one packet; a large body is never copied onto a head."""
    if len(pieces) < 2 or sum(map(len, pieces)) > JOIN_LIMIT:
        return pieces
    return [b"".join(pieces)]


class Attempts:
    """The way to the backend of the present request of one client connection."""

    __slots__ = (
        "_changes",
        "_dials",
        "_finding",
        "_held",
        "_held_size",
        "_keep_bytes",
        "_pause_s",
        "_pauses_until_s",
        "_replayable",
        "_sent",
        "_time",
        "_tried",
        "_waiting",
        "back",
        "began_s",
        "begun",
        "blocked",
        "body",
        "bytes_in",
        "client",
        "hedge",
        "holding",
        "last",
        "plan",
        "proxy",
        "release",
        "request",
        "request_id",
        "retries",
        "simple",
        "waited_s",
        "was_hedged",
        "was_held",
        "watched",
    )

    def __init__(self, client: "ClientConnection") -> None:
        self.client = client
        self.proxy = client.proxy
        self._time = client.time
        self.request: Request | None = None
        """The one being answered."""
        self.plan: Plan | None = None
        self.back: BackendConnection | None = None
        self.began_s = 0.0
        self.simple = False
        """Nothing out of the ordinary has happened: a whole answer can be passed on as it is."""
        self.begun = False
        """Bytes of the answer have gone to the client."""
        self.blocked = False
        """The client does not take bytes."""
        self.request_id = b""
        """Where the request is numbered: its id."""
        self.watched = False
        """Looked at for hedging."""
        self._restart()

    def _restart(self) -> None:
        """Forget what only some requests need."""
        self.plan = None
        self.begun = self.holding = self.was_hedged = self.was_held = False
        self.body: Body | None = None
        """What is still to come of the request's body."""
        self.hedge: BackendConnection | None = None
        self.release: Release | None = None
        self.last: Upstream | None = None
        """Who was sent the request last."""
        self.retries = 0
        self.bytes_in = 0
        self.waited_s = 0.0
        """From its arrival until it was sent (for the last time)."""
        self._tried: list[Upstream] = []
        self._sent = 0
        self._pause_s = PAUSE_S
        self._pauses_until_s = 0.0
        self._changes: Pairs = ()
        self._held: list[bytes] = []
        self._held_size = 0
        self._keep_bytes = REPLAY_LIMIT
        self._replayable = True
        self._dials: dict[asyncio.Task[None], Upstream] = {}
        self._finding: asyncio.Task[None] | None = None
        self._waiting: asyncio.Future[None] | None = None

    # --- what an exchange adds -------------------------------------------------------------------

    def own(self, answer: Answer) -> None:
        """Answer without a backend and go on."""
        raise NotImplementedError

    def fail(self, answer: Answer) -> None:
        """Answer, if it can still be, and close."""
        raise NotImplementedError

    def join(self, stream: Stream) -> None:
        """Answer 101 and become a tunnel."""
        raise NotImplementedError

    # --- the request's body ----------------------------------------------------------------------

    def upload(self, data: bytes) -> bytes:
        """Pass on a piece of the body; what lies after it. Raises ``FramingError``."""
        assert self.body is not None
        out, rest = self.body.feed(data)
        self.bytes_in += len(out)
        if self.body.done:
            self.body = None
        plan = self.plan
        if plan is not None and 0 < plan.body_bytes < self.bytes_in:
            self.fail(too_large(plan.body_bytes))
            return b""
        if self.back is None or self._replayable:
            self._hold(out)
        if self.back is not None:
            self.client.deadline_s = self._time() + self._wait_s()
            self.back.send(out)
        return rest

    def _hold(self, data: bytes) -> None:
        self._held.append(data)
        self._held_size += len(data)
        if self._held_size > self._keep_bytes:
            self._replayable = False
            if self.back is not None:
                self._held = []

    @property
    def takes_body(self) -> bool:
        """There is room for more of the body."""
        if self.back is None:
            return self._held_size <= REPLAY_LIMIT
        return not self.back.blocked

    def _wait_s(self) -> float:
        """How long the next thing may take: more of the body, or the answer."""
        times = self.plan.timeouts if self.plan is not None else self.client.limits
        return times.response_s if self.body is None else times.upload_s

    # --- where to --------------------------------------------------------------------------------

    @property
    def waits(self) -> bool:
        """There is no backend for it yet."""
        return self.back is None and self.request is not None

    def admit(self, plan: Plan) -> None:
        """The checks of a plan, then its backends."""
        request = self.request
        assert request is not None
        self.plan = plan
        self._keep_bytes = plan.retries.replay_bytes
        if 0 < plan.body_bytes < request.fields.length:
            self.fail(too_large(plan.body_bytes))
            return
        if plan.admit is not None:
            verdict = plan.admit(request)
            if isinstance(verdict, Answer):
                self.own(verdict)
                return
            self.release = verdict
        if plan.admit_later is not None:
            self._finding = asyncio.get_running_loop().create_task(self._ask(request, plan))
        else:
            self.place()

    async def _ask(self, request: Request, plan: Plan) -> None:
        assert plan.admit_later is not None
        try:
            verdict = await plan.admit_later(request)
        except Exception:  # a defect must not leave a client waiting
            log.exception("asking whether %r may pass failed", request.path)
            verdict = FAILED_PROXY
        self._finding = None
        if isinstance(verdict, Answer):
            self.own(verdict)
            self.client.proceed()
        else:
            self._changes = verdict
            self.place()

    def place(self, waited: asyncio.Future[None] | None = None) -> None:
        """Choose a backend and send the request there. ``waited``: the place in line that came up."""
        request, plan = self.request, self.plan
        assert request is not None
        assert plan is not None
        now_s = self._time()
        upstream = plan.upstreams.pick(
            now_s,
            key=plan.key(request) if plan.key is not None else b"",
            tried=self._tried,
            idempotent=request.idempotent,
            waited=waited,
        )
        if upstream is not None:
            upstream.begin()
            self.reach(upstream, now_s)
        elif self._tried:
            self.fail_softly(UNREACHED)
        else:
            self._queue(plan, now_s)

    def reach(self, upstream: Upstream, now_s: float) -> None:
        """Send the request to a chosen backend, over a kept connection or a new one."""
        request = self.request
        assert request is not None
        back = upstream.backend.take(now_s, repeatable=request.idempotent)
        if back is not None:
            self.attach(back, upstream)
            return
        self.client.deadline_s = now_s + upstream.backend.connect_s + 1.0
        task = asyncio.get_running_loop().create_task(self._dial(upstream))
        self._dials[task] = upstream

    async def _dial(self, upstream: Upstream) -> None:
        task = asyncio.current_task()
        assert task is not None
        try:
            back = await self.proxy.pool.connect(upstream.backend)
        except (OSError, TimeoutError, RoostError):
            if self._dials.pop(task, None) is not None:
                self._lost(upstream, Outcome.REFUSED, True)
            return
        if self._dials.pop(task, None) is None:  # the exchange ended meanwhile
            back.transport.abort()
            return
        if self.back is None:
            self.attach(back, upstream)
        elif not self.begun and self.hedge is None:
            self._attach_hedge(back, upstream)
        else:
            self.proxy.pool.give(back, self._time())
            upstream.end(Outcome.CANCELLED, 0.0, self._time())

    def attach(self, back: BackendConnection, upstream: Upstream | None) -> None:
        """Send the request (again, if it was sent before)."""
        if back.transport.is_closing():  # lost between its connect and now
            self._lost(upstream, Outcome.RESET, True)
            return
        self.back = back
        self._give(back, upstream)
        for piece in packed([self._head(), *self._held]):
            back.send(piece)
        if not self._replayable:
            self._held = []
        if self.blocked:
            back.set_reading(False)
        self.client.deadline_s = back.began_s + self._wait_s()
        self.client.adjust_reading()

    def _give(self, back: BackendConnection, upstream: Upstream | None) -> None:
        back.user = self  # type: ignore[assignment]  # an Exchange
        back.upstream = upstream
        back.reader = None
        back.began_s = self._time()
        self.waited_s = back.began_s - self.began_s
        self.last = upstream
        self._sent += 1

    def _head(self) -> bytes:
        """The head as it goes to the backend."""
        request, plan = self.request, self.plan
        assert request is not None
        target, changes = request.target, self._changes
        if plan is not None and plan.rewrite is not None:
            target, changes = plan.rewrite.request(request)
            changes += self._changes
        if changes or target != request.target:
            head = request.forward_changed(target, changes)
        else:
            head = request.forward()
        return self.numbered(head) if request.numbered else head

    def numbered(self, head: bytes) -> bytes:
        """``head`` with the id of ours."""
        return head[:-2] + b"X-Request-Id: " + self.request_id + b"\r\n\r\n"

    # --- nobody can take it now ------------------------------------------------------------------

    def _queue(self, plan: Plan, now_s: float) -> None:
        """Wait for a slot, or for a backend where the plan holds requests."""
        if plan.upstreams.anybody:
            slot = plan.upstreams.pending()
            if slot is not None:
                self._waiting = slot
                slot.add_done_callback(self._slot_freed)
                self.client.deadline_s = INFINITE  # the line has its own bound
                return
        elif self._hold_it(plan):
            return
        self.fail_softly(NOBODY)

    def _hold_it(self, plan: Plan) -> bool:
        """Wait until the service has a backend, within the plan's bounds."""
        if plan.hold is None or not self.proxy.hold(self, plan):
            return False
        self.simple = False
        self.holding = self.was_held = True
        self.client.deadline_s = self.began_s + plan.hold.wait_s
        return True

    def wait_for_another(self, *, unsent: bool) -> bool:
        """Everybody failed: where the plan is patient, whoever is there later may be asked, the same one too.

        What was sent is not repeated for ever: it may be what its backends die of.
        """
        plan = self.plan
        assert plan is not None
        if not plan.patient or not self.safe(unsent):
            return False
        if not unsent and self.retries + 1 >= plan.retries.attempts:
            return False
        if self.holding or not self._hold_it(plan):
            return False
        self._tried.clear()
        self._pauses_until_s = self._time() + self._pause_s
        self._pause_s = min(PAUSES_S, 2 * self._pause_s)
        return True

    def fail_softly(self, answer: Answer) -> None:
        """Answer without a backend, from a callback."""
        self.own(answer)
        self.client.proceed()

    def _slot_freed(self, slot: asyncio.Future[None]) -> None:
        if self._waiting is not slot:
            return
        self._waiting = None
        if slot.cancelled() or slot.exception() is not None:
            self.fail_softly(NOBODY)
        else:
            self.place(slot)

    def look_again(self) -> None:
        """A held request asks again: the routes or the backends may have changed."""
        request = self.request
        assert request is not None
        if self._time() < self._pauses_until_s:
            return
        decision = self.proxy.router.decide(request)
        if isinstance(decision, Plan):
            upstream = decision.upstreams.pick(self._time(), idempotent=request.idempotent)
            if upstream is None:
                return
            self._unhold()
            self.plan = decision
            self.retries += self._sent > 0
            upstream.begin()
            self.reach(upstream, self._time())
        else:
            self._unhold()
            self.fail_softly(decision if isinstance(decision, Answer) else NOBODY)

    def _unhold(self) -> None:
        if self.holding:
            self.holding = False
            self.proxy.unhold(self)

    # --- a router that waits ---------------------------------------------------------------------

    def find(self, backend: Backend | None) -> None:
        """An idle connection to ``backend``, else whatever the router finds."""
        request = self.request
        assert request is not None
        if backend is not None:
            back = backend.take(self._time(), repeatable=request.idempotent)
            if back is not None:
                self.attach(back, None)
                return
        self.client.deadline_s = INFINITE
        self._finding = asyncio.get_running_loop().create_task(self._find(request))

    async def _find(self, request: Request) -> None:
        try:
            found = await self.proxy.router.find(request, self.proxy.pool)
        except Exception:  # a defect must not leave a client waiting
            log.exception("routing %r failed", request.path)
            found = FAILED_PROXY
        self._finding = None
        if self.request is not request:  # refused meanwhile (a broken body)
            if not isinstance(found, Answer):
                found.transport.abort()
            return
        if isinstance(found, Answer):
            self.fail_softly(found)
        elif isinstance(found, Stream):
            self.join(found)
        else:
            self.attach(found, None)

    # --- when it fails ---------------------------------------------------------------------------

    def _lost(self, upstream: Upstream | None, outcome: Outcome, unsent: bool) -> None:
        """A backend failed before a byte of its answer: another one, where that is safe."""
        now_s = self._time()
        if upstream is not None:
            upstream.end(outcome, 0.0, now_s)
        if self.back is not None or self._dials:  # the other copy goes on
            return
        if not self.again(upstream, now_s, unsent=unsent):
            if self._sent:
                self.fail(LOST)
            else:
                self.fail_softly(UNREACHED)

    def again(self, upstream: Upstream | None, now_s: float, *, unsent: bool) -> bool:
        """Try elsewhere. False when that is not safe, not allowed, or there is nowhere else."""
        if self.plan is None:
            if not self.safe(unsent) or self._sent >= ATTEMPTS:
                return False
            self.find(None)
            return True
        other = self.other_than(upstream, now_s, unsent=unsent)
        if other is None:
            return self.wait_for_another(unsent=unsent)
        self.go(other, now_s)
        return True

    def safe(self, unsent: bool) -> bool:
        """Whether it may be sent once more."""
        request = self.request
        assert request is not None
        self.simple = False
        whole = self._replayable or not self._sent  # until it is sent all of a body is kept
        return whole and (unsent or request.idempotent) and not self.begun

    def other_than(
        self, upstream: Upstream | None, now_s: float, *, unsent: bool
    ) -> Upstream | None:
        """Where a request that failed at ``upstream`` may go next; taken from the retry budget."""
        request, plan = self.request, self.plan
        assert request is not None
        assert plan is not None
        if not self.safe(unsent):
            return None
        if upstream is not None and upstream not in self._tried:
            self._tried.append(upstream)
        if self.retries + 1 >= plan.retries.attempts:
            return None
        other = plan.upstreams.pick(now_s, tried=self._tried, idempotent=request.idempotent)
        if other is None:
            return None
        if not plan.upstreams.may_retry(now_s, plan.retries):
            other.unpicked()
            return None
        return other

    def go(self, other: Upstream, now_s: float) -> None:
        """Send it once more."""
        self.retries += 1
        other.begin()
        self.reach(other, now_s)

    def once_more(self, upstream: Upstream) -> bool:
        """After the keep-alive race: elsewhere, else the same backend over a new connection."""
        now_s = self._time()
        other = self.other_than(upstream, now_s, unsent=False)
        if other is not None:
            self.go(other, now_s)
            return True
        if not self.safe(False) or self.retries or upstream.spec.state == "gone":
            return self.wait_for_another(unsent=False)
        upstream.backend.retire()
        self.go(upstream, now_s)
        return True

    # --- a second copy ---------------------------------------------------------------------------

    def due(self, now_s: float) -> bool:
        """Look whether a second copy is to be sent. False when there is no need to look again."""
        request, plan, back = self.request, self.plan, self.back
        if request is None or self.begun or plan is None or self.was_hedged or self.was_held:
            return False
        if not plan.hedging.enabled or not request.idempotent or request.has_body:
            return False
        if request.upgrade:
            return False
        after_s = max(plan.hedging.after_s, plan.upstreams.hedge_after_s())
        if now_s - self.began_s < after_s or (back is None and not self._dials):
            return True
        tried = [*self._tried, *self._dials.values()]
        if back is not None and back.upstream is not None:
            tried.append(back.upstream)
        other = plan.upstreams.pick(now_s, tried=tried, idempotent=True)
        if other is None:
            return True
        if not plan.upstreams.may_hedge(now_s, plan.hedging):
            other.unpicked()
            return True
        self.was_hedged = True
        self.simple = False
        other.begin()
        kept = other.backend.take(now_s, repeatable=True)
        if kept is not None and back is not None:
            self._attach_hedge(kept, other)
        elif kept is not None:
            self.attach(kept, other)
        else:
            task = asyncio.get_running_loop().create_task(self._dial(other))
            self._dials[task] = other
        return False

    def _attach_hedge(self, back: BackendConnection, upstream: Upstream) -> None:
        self.hedge = back
        self._give(back, upstream)
        back.send(self._head())

    def chosen(self, back: BackendConnection) -> None:
        """This copy is answered: the others are let go."""
        was_first = back is not self.back
        loser = self.back if was_first else self.hedge
        self.back, self.hedge = back, None
        if loser is not None and loser is not back:
            # The first copy of two was outrun: that says something about its backend.
            _let_go(loser, self._time(), Outcome.OUTRUN if was_first else Outcome.CANCELLED)
        self._stop_dials()

    def _stop_dials(self) -> None:
        if not self._dials:
            return
        now_s = self._time()
        dials, self._dials = self._dials, {}
        for task, upstream in dials.items():
            task.cancel()
            upstream.end(Outcome.CANCELLED, 0.0, now_s)

    # --- the end ---------------------------------------------------------------------------------

    def stop(self, outcome: Outcome) -> None:
        """Nothing more is wanted from any backend."""
        now_s = self._time()
        if self._finding is not None:
            self._finding.cancel()
            self._finding = None
        if self._waiting is not None:
            waiting, self._waiting = self._waiting, None
            if self.plan is not None:
                self.plan.upstreams.line.leave(waiting, now_s)
        self._unhold()
        self._stop_dials()
        for back in (self.back, self.hedge):
            if back is not None:
                _let_go(back, now_s, outcome)
        self.back = self.hedge = None


def _let_go(back: BackendConnection, now_s: float, outcome: Outcome = Outcome.CANCELLED) -> None:
    back.user = None
    back.transport.abort()
    if back.upstream is not None:
        back.upstream.end(outcome, now_s - back.began_s, now_s)
        back.upstream = None
