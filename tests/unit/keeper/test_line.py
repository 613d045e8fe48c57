"""The line of requests: one at a time, aborted as ipykernel does, taken back by a fence."""

from roost.agent.keeper.line import Line
from roost.ports.jupyter import Message, Signer, read

SIGNER = Signer("key")


def ask(msg_type: str = "execute_request", **content: object) -> Message:
    return read(SIGNER.build(msg_type, content, identities=(b"client",)))


def settle(line: Line, message: Message, status: str = "ok") -> bool:
    msg_id = message.header.msg_id
    line.status(msg_id, "busy")
    return [line.reply(msg_id, status), line.status(msg_id, "idle")][-1]


def test_one_request_at_a_time_in_order():
    line, first, second = Line(), ask(), ask("complete_request")
    assert not line.give(first)
    assert not line.give(second)
    taken = line.next()
    assert taken is not None
    assert taken.message is first
    assert line.next() is None
    assert line.received() == (first.header.msg_id, second.header.msg_id)
    assert settle(line, first)
    assert list(line.finished) == [first.header.msg_id]
    taken = line.next()
    assert taken is not None
    assert taken.message is second


def test_settled_only_with_reply_and_idle_in_any_order():
    line, request = Line(), ask()
    line.give(request)
    line.next()
    msg_id = request.header.msg_id
    assert not line.status(msg_id, "idle")
    assert line.in_hand is not None
    assert line.reply(msg_id, "ok")
    assert line.in_hand is None


def test_a_request_that_is_never_answered_does_not_block_the_line():
    line, request = Line(), ask()
    line.give(request)
    line.next()
    assert not line.give_up_reply(request.header.msg_id)
    line.status(request.header.msg_id, "idle")
    assert line.give_up_reply(request.header.msg_id)


def test_an_error_aborts_the_executions_behind_it_but_nothing_else():
    line, failing, later, info = Line(), ask(), ask(), ask("kernel_info_request")
    for request in (failing, later, info):
        line.give(request)
    line.next()
    settle(line, failing, "error")
    new = ask()
    line.give(new)
    outcomes = []
    while (taken := line.next()) is not None:
        outcomes.append((taken.message, taken.aborted))
        if not taken.aborted:
            settle(line, taken.message)
    assert outcomes == [(later, True), (info, False), (new, False)]


def test_an_error_that_should_not_stop_or_is_silent_aborts_nothing():
    for content in ({"stop_on_error": False}, {"silent": True}):
        line, failing, later = Line(), ask(**content), ask()
        line.give(failing)
        line.give(later)
        line.next()
        settle(line, failing, "error")
        taken = line.next()
        assert taken is not None
        assert not taken.aborted


def test_a_fence_leaves_what_runs_and_forgets_what_waits():
    line, running, waiting = Line(), ask(), ask()
    line.give(running)
    line.give(waiting)
    line.next()
    line.fence()
    assert line.received() == (running.header.msg_id,)
    assert not line.known(waiting.header.msg_id)
    assert settle(line, running)
    assert line.next() is None


def test_comms_pass_a_running_cell_but_not_a_queued_one():
    line = Line()
    assert not line.give(ask("comm_msg"))
    line.next()
    assert line.give(ask("comm_msg"))
    line.give(ask())
    assert not line.give(ask("comm_msg"))


def test_a_capture_contains_what_was_settled_before_it():
    line = Line()
    line.adopt(("old",))
    requests = [ask() for _ in range(3)]
    for request in requests:
        line.give(request)
        line.next()
        settle(line, request)
    ids = [request.header.msg_id for request in requests]
    assert line.contained(()) == ("old",)
    assert line.contained((ids[1],)) == ("old", ids[0], ids[1])


def test_the_memory_of_finished_requests_is_bounded():
    line = Line()
    line.adopt(tuple(f"m{i}" for i in range(10_500)))
    assert len(line.finished) == 10_000
    assert not line.known("m0")
    assert line.known("m10499")
