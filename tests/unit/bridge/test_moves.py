"""The session moves from one keeper to another: the client sees "busy", nothing else."""

import pytest

from roost.ports.errors import Retry, StaleEpoch

pytestmark = pytest.mark.e2e


def note(text):
    """A cell that leaves a trace on the disk each time it runs."""
    return f"print({text!r}); _ = open('trace.txt', 'a').write({text!r} + ' ')"


def trace(keeper):
    return (keeper.folder / "work" / "trace.txt").read_text().split()


def test_a_planned_move_runs_queued_cells_once_and_in_order(world, tools):
    a, bridge, client = world.session()
    b = world.keeper("b")
    first = client.execute("value = 41; " + note("first"))
    assert tools.text_of(tools.follow(client, first)) == "first\n"
    slow = client.execute("import time; time.sleep(1); value += 1; " + note("slow"))
    ids = [client.execute(note(f"cell-{i}")) for i in range(4)]
    tools.until(lambda: a.status().state == "busy")
    worker = bridge.worker()

    world.splice.target = None
    a.call(a.client.fence(1))
    assert a.status().state == "fenced"
    ids.append(client.execute(note("cell-4")))
    capture = a.call(a.client.capture(20))
    assert slow in capture.finished
    assert not set(ids) & set(capture.finished)
    b.adopt(
        epoch=2,
        restore_manifest=capture.manifest_path,
        chunks_dir=str(a.folder / "captures-a"),
        spool=capture.spool,
        finished=capture.finished,
    )
    world.splice.target = b.socket

    assert tools.text_of(tools.follow(client, slow)) == "slow\n"
    assert tools.reply_to(client, slow)["status"] == "ok"
    statuses = []
    for i, msg_id in enumerate(ids):
        messages = tools.follow(client, msg_id)
        assert tools.text_of(messages) == f"cell-{i}\n"
        statuses += [m["content"].get("execution_state") for m in messages]
        assert tools.reply_to(client, msg_id)["status"] == "ok"
    assert trace(b) == ["first", "slow", *(f"cell-{i}" for i in range(5))]
    assert not {"starting", "restarting"} & set(statuses)
    last = client.execute("print(value)")
    assert tools.text_of(tools.follow(client, last)) == "42\n"
    assert tools.reply_to(client, last)["execution_count"] == 8
    assert bridge.worker() == worker
    with pytest.raises(StaleEpoch):
        a.call(a.client.fence(0))


@pytest.mark.parametrize("worker_dies", [False, True])
def test_a_death_without_notice_runs_again_what_was_lost_and_nothing_else(
    world, tools, worker_dies
):
    a, bridge, client = world.session()
    b = world.keeper("b")
    kept = client.execute(note("kept"))
    assert tools.text_of(tools.follow(client, kept)) == "kept\n"
    tools.reply_to(client, kept)
    # answered, but newer than the last checkpoint: its effects die with the host
    lost = client.execute(note("lost") + "; import time; time.sleep(0.5); print('late')")
    assert tools.text_of(tools.follow(client, lost)) == "lost\nlate\n"
    tools.reply_to(client, lost)
    running = client.execute("print('part'); import time; time.sleep(1); " + note("whole"))
    queued = client.execute(note("queued"))
    while client.get_iopub_msg(timeout=20)["msg_type"] != "stream":
        pass
    world.splice.target = None
    a.process.kill()
    a.process.wait()
    world.splice.cut()
    b.adopt(epoch=2, finished=(kept,))
    world.splice.target = b.socket
    if worker_dies:
        tools.until(lambda: b.status().state == "busy")
        bridge.kill_worker()

    seen = []
    while True:
        message = client.get_iopub_msg(timeout=30)
        assert message["parent_header"].get("msg_id") != lost, "shown twice"
        if message["parent_header"].get("msg_id") == running:
            seen.append(message)
            if message["content"].get("execution_state") == "idle":
                break
    assert seen[0]["msg_type"] == "clear_output"
    assert tools.text_of(seen) == "part\nwhole\n"
    assert tools.reply_to(client, running)["status"] == "ok"
    assert tools.text_of(tools.follow(client, queued)) == "queued\n"
    assert trace(b) == ["kept", "lost", "lost", "whole", "queued"]


def test_a_move_called_off_goes_on_at_the_next_epoch(world, tools):
    a, _, client = world.session()
    tools.follow(client, client.execute("x = 1"))
    a.call(a.client.fence(1))
    waiting = client.execute("x + 1")
    a.adopt(epoch=2)
    assert tools.reply_to(client, waiting)["status"] == "ok"
    assert a.status().epoch == 2
    with pytest.raises(StaleEpoch):
        a.adopt(epoch=1)


def test_a_capture_of_a_busy_kernel_says_so_within_its_budget(world, tools):
    a, _, client = world.session()
    client.execute("import time; time.sleep(5)")
    tools.until(lambda: a.status().state == "busy")
    with pytest.raises(Retry, match="busy"):
        a.call(a.client.capture(0.5))


def test_what_is_durable_is_forgotten_by_the_journal(world, tools):
    a, bridge, client = world.session()
    msg_id = client.execute("1")
    tools.reply_to(client, msg_id)
    tools.follow(client, msg_id)
    capture = a.call(a.client.capture(10))
    a.call(a.client.durable(capture.number))
    journals = list((world.folder / "bridges").glob("*/journal"))
    assert len(journals) == 1
    tools.until(lambda: b"Forgotten" in journals[0].read_bytes())
    assert bridge.process.poll() is None
