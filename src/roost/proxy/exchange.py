"""One request and its answer: streamed back to the client while it arrives.

One object per client connection, used for its requests one after the other. An answer that is whole in one
read and has a length takes a short way: no reader, no events, no copies beyond one. Bytes in flight are
bounded in both directions: a side that does not take bytes stops the other from being read.
"""

from roost.proxy.answers import LOST, Answer
from roost.proxy.attempts import JOIN_LIMIT, RACE_S, Attempts, packed
from roost.proxy.framing import HEAD_LIMIT, FramingError
from roost.proxy.heads import Request
from roost.proxy.plan import Finished, Plan, Stream
from roost.proxy.pool import Backend, BackendConnection
from roost.proxy.responses import ResponseHead, ResponseReader, read_response
from roost.proxy.tunnel import Tunnel
from roost.proxy.upstream import Outcome, Upstream

_OK = Outcome.OK
EARLY_LIMIT = 64 << 10
"""Answers of patient plans are kept back up to this size until they are whole, if they can be had again."""
LAST_CHUNK = b"0\r\n\r\n"


class Exchange(Attempts):
    """Implements ``pool.BackendUser``."""

    __slots__ = ("_left", "_status", "bytes_out", "outcome", "refused")

    def _restart(self) -> None:
        super()._restart()
        self._left = 0
        """Bytes still to come of an answer that is passed on as it is."""
        self._status = 0
        self.bytes_out = 0
        self.outcome = "ok"
        self.refused = ""

    # --- the request -----------------------------------------------------------------------------

    def begin(self, request: Request) -> None:
        """A request has arrived; of its body perhaps nothing yet."""
        self.request = request
        now_s = self.began_s = self._time()
        proxy = self.proxy
        proxy.requests += 1
        if request.numbered:
            self.request_id = proxy.new_id()
        plan = proxy.router.decide(request)
        if plan.__class__ is not Plan or not plan.plain or request.has_body:
            self._begin(request, plan)
            return
        assert isinstance(plan, Plan)
        self.plan = plan
        self.simple = request.direct
        if plan.arrivals is not None:
            plan.arrivals.count += 1
        upstream = plan.upstreams.pick(now_s, idempotent=request.idempotent)
        if upstream is None:
            self._sent = 0
            self.place()
            return
        upstream.begin()
        if not self.watched and plan.hedging.enabled:
            proxy.watch(self)
        back = upstream.backend.take(now_s, repeatable=request.idempotent)
        if back is None:
            self._sent = 0
            self.reach(upstream, now_s)
            return
        self.back = back
        back.user = self
        back.upstream = self.last = upstream
        back.began_s = now_s
        self._sent = 1
        self.waited_s = 0.0
        head = request.forwarded or request.forward()
        back.transport.write(self.numbered(head) if request.numbered else head)
        self.client.deadline_s = now_s + plan.timeouts.response_s

    def _begin(self, request: Request, decision: Plan | Backend | Answer | None) -> None:
        """The long way: a body, hooks, an answer of our own, or a router that waits."""
        self.simple = False
        self._sent = 0
        if isinstance(decision, Plan) and decision.arrivals is not None:
            decision.arrivals.count += 1
        self.client.deadline_s = self.began_s + self.client.limits.upload_s
        self.body = request.body()
        if self.body is not None:
            if isinstance(decision, Plan):
                self.plan = decision
                self._keep_bytes = decision.retries.replay_bytes
            if not self.client.take_body():
                return
            if self.body is None and isinstance(decision, Plan) and decision.straight:
                self.simple = request.direct
        elif isinstance(decision, Plan) and decision.straight:
            self.simple = request.direct
        if isinstance(decision, Answer):
            self.own(decision)
        elif isinstance(decision, Plan):
            self.admit(decision)
            hedged = decision.hedging.enabled and not request.has_body
            if hedged and not self.watched and self.request is not None:
                self.proxy.watch(self)
        else:
            self.find(decision)

    # --- the answer ------------------------------------------------------------------------------

    def answered(self, back: BackendConnection, data: bytes) -> None:
        """See ``BackendUser``."""
        if not self.simple:
            self._answered(back, data)
            return
        left = self._left
        if left:
            self._pass(back, data, left)
            return
        end = data.find(b"\r\n\r\n") + 4
        if back.reader is not None or not 3 < end <= HEAD_LIMIT or self.proxy.draining:
            self._answered(back, data)
            return
        try:
            head = read_response(data[:end])
        except FramingError as error:
            self._broke(back, error.message)
            return
        if not head.plain:
            self._answered(back, data)
            return
        left = head.length + end - len(data)  # type: ignore[operator]  # plain: it has a length
        transport = self.client.transport
        if left or self.request.closes or transport.is_closing():  # type: ignore[union-attr]
            self._stream(back, data, end, head, left)
            return
        mark = self.plan.mark  # type: ignore[union-attr]  # as above
        whole = head.whole if mark is None else head.whole[:-2] + mark() + b"\r\n"
        if end < 1024 and len(data) < 8192:
            transport.write(whole + data[end:])
        else:
            transport.write(whole)
            transport.write(memoryview(data)[end:])
        now_s = self._time()
        if head.load is not None:
            back.upstream.report(*head.load, now_s)  # type: ignore[union-attr]  # simple: it has one
        upstream: Upstream = back.upstream  # type: ignore[assignment]
        upstream.end(_OK, now_s - back.began_s, now_s)
        self.back = None
        proxy = self.proxy
        proxy.pool.give(back, now_s)
        if self.bytes_in:  # a request with a body has left more behind
            self._status = head.status
            self.bytes_out = len(data)
            self.finish()
        elif proxy.tally is not None:
            seconds = now_s - self.began_s
            proxy.tally(self.plan.name, upstream, head.status, seconds, len(data))  # type: ignore[union-attr]
        elif proxy.observer is not None:
            self._status = head.status
            self.bytes_out = len(data)
            self._observe()
        self.request = None
        self.client.again(now_s)

    def _kept_back(self, back: BackendConnection, data: bytes, left: int) -> bool:
        """The beginning of a small answer waits for its rest: its sender may die before that is here, and
        then somebody else can be asked."""
        plan, request = self.plan, self.request
        assert plan is not None
        assert request is not None
        if not plan.patient or not 0 < left < EARLY_LIMIT - len(data):
            return False
        if not request.idempotent or not self._replayable:
            return False
        back.early = data
        return True

    def _stream(
        self, back: BackendConnection, data: bytes, end: int, head: ResponseHead, left: int
    ) -> None:
        """The first piece of an answer that is passed on as it is, or all of the client's last one."""
        transport = self.client.transport
        if left < 0 or transport.is_closing():
            self._answered(back, data)
            return
        if self._kept_back(back, data, left):
            return
        self._left = left
        self.begun = True
        self._status = head.status
        self._loads(back, head)
        now_s = self._time()
        back.first_s = now_s - back.began_s
        self.chosen(back)
        self.client.deadline_s = now_s + self.silence_s
        self.bytes_out += len(data)
        closes = self.request.closes  # type: ignore[union-attr]  # one is being answered
        if closes and not left:
            self.client.hold()
        first = head.closing if closes else head.whole
        if self.plan is not None and self.plan.mark is not None:
            first = first[:-2] + self.plan.mark() + b"\r\n"
        if len(data) < JOIN_LIMIT:
            transport.write(first + data[end:])
        else:
            transport.write(first)
            transport.write(memoryview(data)[end:])
        if not left:
            self._complete(back, reusable=True, close=True)

    def _pass(self, back: BackendConnection, data: bytes, left: int) -> None:
        """A later piece of an answer that is passed on as it is."""
        left -= len(data)
        self._left = left
        if left < 0:  # the backend says more than it promised: its connection is of no use any more
            data = data[:left]
        self.bytes_out += len(data)
        self.client.send(data)
        if left > 0:
            if not self.blocked:
                self.client.deadline_s = self._time() + self.silence_s
            return
        self._left = 0
        close = self.proxy.draining or self.request.closes  # type: ignore[union-attr]  # not yet over
        self._complete(back, reusable=left == 0, close=close)

    def _answered(self, back: BackendConnection, data: bytes) -> None:
        request = self.request
        assert request is not None
        reader = back.reader
        if reader is None:
            reader = back.reader = ResponseReader(request.method, decode=not request.http11)
        try:
            events = reader.feed(data)
        except FramingError as error:
            self._broke(back, error.message)
            return
        pieces: list[bytes] = []
        for event in events:
            if isinstance(event, bytes):
                pieces.append(event)
            elif event.status < 200 and event.status != 101:
                pieces += self._interim(event, request)
            elif self._elsewhere(back, event):
                return
            else:
                self._first(back, event)
                if event.status == 101:
                    self._switch(back, event, reader)
                    return
                pieces.append(self._head_bytes(event, request, reader.rechunked))
        close = reader.head is not None and reader.done and self._will_close(reader.head, request)
        if close:
            self.client.hold()
        for piece in packed(pieces):
            self.bytes_out += len(piece)
            self.client.send(piece)
        if reader.done and reader.head is not None:
            self._complete(back, reusable=reader.head.keep and not reader.rest, close=close)
        elif not self.blocked:
            wait_s = self.silence_s if reader.head is not None else self._wait_s()
            self.client.deadline_s = self._time() + wait_s

    def _interim(self, head: ResponseHead, request: Request) -> list[bytes]:
        """A 1xx head, passed on where the client knows them and it is from the only copy."""
        if not request.http11 or self.hedge is not None:
            return []
        self.begun = True
        return [head.kept + b"\r\n"]

    @property
    def silence_s(self) -> float:
        """How long the answer may pause."""
        times = self.plan.timeouts if self.plan is not None else self.client.limits
        return times.stream_s

    def _first(self, back: BackendConnection, head: ResponseHead) -> None:
        """A final head: this is the answer."""
        back.first_s = self._time() - back.began_s
        self._status = head.status
        self.chosen(back)
        self._loads(back, head)

    def _loads(self, back: BackendConnection, head: ResponseHead) -> None:
        if head.load is not None and back.upstream is not None:
            back.upstream.report(*head.load, self._time())

    def _elsewhere(self, back: BackendConnection, head: ResponseHead) -> bool:
        """An answer that says that the backend is unwell: another backend, if that is safe."""
        plan, upstream, request = self.plan, back.upstream, self.request
        assert request is not None
        if plan is None or upstream is None or head.status < 500 or self.begun:
            return False
        if head.status not in plan.retries.statuses and not upstream.half_open:
            return False
        # A balancer that refused says so by what it leaves out: nobody has seen the request.
        unseen = plan.patient and head.status == 503 and head.load is None
        if not self.safe(unseen):
            return False
        now_s = self._time()
        other = None
        if self.hedge is None:
            other = self.other_than(upstream, now_s, unsent=unseen)
            if other is None and not (unseen and self.wait_for_another(unsent=True)):
                return False
        self._loads(back, head)
        self._drop(back, Outcome.FAILED)
        if other is not None:
            self.go(other, now_s)
        return True

    def _drop(self, back: BackendConnection, outcome: Outcome) -> None:
        """This copy is of no use any more."""
        if back is self.hedge:
            self.hedge = None
        elif back is self.back:
            self.back, self.hedge = self.hedge, None
        back.user = None
        upstream, back.upstream = back.upstream, None
        if upstream is not None:
            now_s = self._time()
            upstream.end(outcome, now_s - back.began_s, now_s)
        back.transport.abort()

    def _head_bytes(self, head: ResponseHead, request: Request, rechunked: bool) -> bytes:
        self.begun = True
        kept = head.kept
        plan = self.plan
        if plan is not None and plan.rewrite is not None and self.back is not None:
            upstream = self.back.upstream
            changes = plan.rewrite.response(request, upstream) if upstream is not None else ()
            if changes:
                kept = head.changed(changes)
        if plan is not None and plan.mark is not None:
            kept += plan.mark()
        tail = b"\r\n"
        if rechunked or (head.chunked and request.http11):
            tail = b"Transfer-Encoding: chunked\r\n\r\n"
        if self._will_close(head, request):
            tail = b"Connection: close\r\n" + tail
        elif not request.http11:
            tail = b"Connection: keep-alive\r\n" + tail
        return kept + tail

    def _will_close(self, head: ResponseHead, request: Request) -> bool:
        if request.closes or self.proxy.draining or self.body is not None:
            return True
        bodiless = request.method == b"HEAD" or head.status in (204, 304)
        return not (bodiless or request.http11) and head.length is None

    def _complete(self, back: BackendConnection, *, reusable: bool, close: bool) -> None:
        """The answer has ended."""
        now_s = self._time()
        upstream, back.upstream = back.upstream, None
        if upstream is not None:
            bad = self._status >= 500 or self._status == 429
            upstream.end(Outcome.FAILED if bad else _OK, back.first_s, now_s)
        self.back = None
        whole = self.body is None
        if reusable and whole:
            self.proxy.pool.give(back, now_s)
        else:
            back.user = None
            back.transport.close()
        self.end(close=close or not whole)

    # --- the backend fails -----------------------------------------------------------------------

    @property
    def movable(self) -> bool:
        """See ``BackendUser``."""
        return self.request is not None and self.safe(False)

    def backend_flow(self) -> None:
        """See ``BackendUser``."""
        self.client.adjust_reading()

    def backend_lost(self, back: BackendConnection, error: Exception | None) -> None:
        """See ``BackendUser``."""
        reader, upstream = back.reader, back.upstream
        now_s = self._time()
        untouched = reader is None or reader.untouched
        if self.begun and back is self.back:
            self._cut(back, error)
            return
        raced = back.reused and untouched and now_s - back.began_s < RACE_S
        outcome = Outcome.CANCELLED if raced else Outcome.RESET
        self._drop(back, outcome)
        if self.back is not None or self._dials:  # the other copy goes on
            return
        again = False
        if untouched:
            if raced and upstream is not None:
                again = self.once_more(upstream)
            else:
                again = self.again(upstream, now_s, unsent=False)
        if not again:
            self.fail(LOST)

    def _cut(self, back: BackendConnection, error: Exception | None) -> None:
        """The backend has gone in the middle of its answer (or at its end: no length was given)."""
        reader, request = back.reader, self.request
        assert request is not None
        clean = reader is not None and reader.ended() == "clean" and error is None
        self._drop(back, _OK if clean else Outcome.RESET)
        if not clean:
            self.outcome = "cut"
            unframed = self._unframed(reader)
            self.finish()
            if unframed:
                self.client.reset()
            else:
                self.client.transport.close()
            return
        assert reader is not None
        assert reader.head is not None
        if reader.rechunked:
            self.client.send(LAST_CHUNK)
        self.end(close=self._will_close(reader.head, request))

    def _unframed(self, reader: ResponseReader | None) -> bool:
        """The client takes the end of its connection for the end of the body."""
        if reader is None or reader.head is None or self.request is None:
            return False
        return reader.head.length is None and not self.request.http11

    def _broke(self, back: BackendConnection, why: str) -> None:
        """The backend broke the protocol."""
        reader = back.reader
        self._drop(back, Outcome.FAILED)
        if self.begun:
            self._abort(reader)
        elif self.back is None and not self._dials:
            self.fail(Answer(502, why, problem=False))

    # --- the end of an exchange ------------------------------------------------------------------

    def own(self, answer: Answer) -> None:
        """Answer without a backend and go on (the caller lets the client ``proceed``)."""
        request = self.request
        assert request is not None
        close = self.body is not None or request.closes or self.proxy.draining
        self.outcome = "own"
        self.refused = answer.detail
        self._status = answer.status
        self.client.write_answer(answer, request, close=close)
        self.stop(Outcome.CANCELLED)
        if close:
            self.end(close=True)
            return
        self.finish()
        self.client.idle()

    def fail(self, answer: Answer) -> None:
        """Answer, unless one has begun, and close: the connection's state cannot be trusted."""
        status = answer.status
        reader = self.back.reader if self.back is not None else None
        self.stop(Outcome.TIMED_OUT if status == 504 else Outcome.CANCELLED)
        if self.begun:
            self._abort(reader)
            return
        self.outcome = "own"
        self.refused = answer.detail
        self._status = status
        self.client.write_answer(answer, self.request, close=True)
        self.finish()
        self.client.linger()

    def _abort(self, reader: ResponseReader | None) -> None:
        """Cut the client off in the middle of an answer."""
        self.outcome = "cut"
        unframed = self._unframed(reader)
        self.stop(Outcome.CANCELLED)
        self.finish()
        if unframed:
            self.client.reset()
        else:
            self.client.transport.abort()

    def gone(self) -> None:
        """The client left."""
        if self.request is None:
            return
        self.outcome = "gone"
        self.stop(Outcome.CANCELLED)
        self.finish()

    def end(self, *, close: bool) -> None:
        """The answer is with the client: close, or go on with the next request."""
        pending = self.body is not None
        asked = self.request is not None and self.request.closes
        self.finish()
        self.client.ended(close=close, pending=pending, asked=asked)

    def finish(self) -> None:
        """Report and forget."""
        if self.proxy.observer is not None and self.request is not None:
            self._observe()
        if self.release is not None:
            self.release()
        self.request = None
        self._restart()

    def _observe(self) -> None:
        request, observer, plan = self.request, self.proxy.observer, self.plan
        assert request is not None
        assert observer is not None
        record = Finished()
        record.route = plan.name if plan is not None else ""
        record.upstream = self.last
        record.client = request.client
        record.method = request.method
        record.target = request.target
        record.host = request.host
        record.status = self._status
        record.bytes_in = self.bytes_in
        record.bytes_out = self.bytes_out
        record.began_s = self.began_s
        record.seconds = self._time() - self.began_s
        record.waited_s = self.waited_s
        record.outcome = self.outcome
        record.retries = self.retries
        record.hedged = self.was_hedged
        record.held = self.was_held
        record.request_id = self.request_id if request.numbered else request.request_id
        record.refused = self.refused
        observer.done(record)

    # --- tunnels ---------------------------------------------------------------------------------

    def _switch(self, back: BackendConnection, head: ResponseHead, reader: ResponseReader) -> None:
        """The backend agreed to another protocol."""
        request = self.request
        assert request is not None
        if not request.upgrade:
            self._broke(back, "the backend switched protocols without being asked")
            return
        self.begun = True
        self.client.send(
            head.kept + b"Connection: Upgrade\r\nUpgrade: " + head.upgrade + b"\r\n\r\n"
        )
        back.set_reading(True)
        gone = back.detach()
        upstream, first_s = back.upstream, back.first_s
        back.upstream = None
        release, self.release = self.release, None
        idle_s = self.plan.timeouts.stream_s if self.plan is not None else 0.0
        route = self.plan.name if self.plan is not None else ""
        self.back = None
        self.finish()
        time = self._time
        began_s, told = time(), self.proxy.on_tunnel

        def ended(tunnel: Tunnel) -> None:
            if upstream is not None:
                upstream.end(_OK, first_s, time())
            if told is not None:
                told(route, upstream, tunnel, time() - began_s)
            if release is not None:
                release()
            if gone is not None:
                gone()

        self.client.tunnel(
            back.transport,
            reader.rest,
            ended,
            protocol=head.upgrade.lower(),
            idle_s=idle_s,
            owner=upstream,
        )

    def join(self, stream: Stream) -> None:
        """See ``Attempts``."""
        self.client.send(
            b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: "
            + stream.protocol
            + b"\r\n\r\n"
        )
        self._status = 101
        self.finish()
        stream.joined(
            self.client.tunnel(
                stream.transport, stream.first, stream.ended, protocol=stream.protocol
            )
        )
