"""Processes and connections die in mid-cell: no line and no reply is lost, none comes twice."""

import os
import signal
import time
from pathlib import Path

import pytest

pytestmark = pytest.mark.e2e

LINES = """
import time
for i in range(500):
    print("line", i, flush=True)
    time.sleep(0.004)
"""
EXPECTED = "".join(f"line {i}\n" for i in range(500))


def wait_for_line(client, number):
    """Read iopub until line ``number`` was seen; returns what was read."""
    text = ""
    while f"line {number}\n" not in text:
        message = client.get_iopub_msg(timeout=20)
        if message["msg_type"] == "stream":
            text += message["content"]["text"]
    return text


def test_a_worker_killed_in_mid_cell_loses_no_line_and_no_reply(world, tools):
    _, bridge, client = world.session()
    msg_id = client.execute(LINES)
    text = wait_for_line(client, 50)
    bridge.kill_worker()
    text += wait_for_line(client, 300)
    bridge.kill_worker()
    second = client.execute("print('next')")
    text += tools.text_of(tools.follow(client, msg_id))
    assert text == EXPECTED
    assert tools.reply_to(client, msg_id)["status"] == "ok"
    assert tools.reply_to(client, second)["status"] == "ok"


def test_a_cut_stream_in_mid_cell_loses_no_line_and_no_reply(world, tools):
    _, _, client = world.session()
    msg_id = client.execute(LINES)
    queued = client.execute("print('next')")
    text = ""
    for line in (40, 120, 260, 400):
        text += wait_for_line(client, line)
        world.splice.cut()
    text += tools.text_of(tools.follow(client, msg_id))
    assert text == EXPECTED
    assert tools.reply_to(client, msg_id)["status"] == "ok"
    assert tools.text_of(tools.follow(client, queued)) == "next\n"
    assert world.splice.served > 4


def test_requests_made_while_the_edge_is_away_wait_and_run_in_order(world, tools):
    keeper, _, client = world.session()
    world.splice.target = None
    world.splice.cut()
    ids = [client.execute(f"print({i})") for i in range(5)]
    time.sleep(0.3)
    world.splice.target = keeper.socket
    for i, msg_id in enumerate(ids):
        assert tools.text_of(tools.follow(client, msg_id)) == f"{i}\n"
        assert tools.reply_to(client, msg_id)["execution_count"] == i + 1


def test_the_whole_bridge_killed_and_started_again_goes_on(world, tools):
    _, bridge, client = world.session()
    worker = bridge.worker()
    msg_id = client.execute(LINES)
    wait_for_line(client, 50)
    bridge.process.kill()
    bridge.process.wait()

    def worker_gone():
        try:
            os.kill(worker, 0)
        except ProcessLookupError:
            return True
        return "\nState:\tZ" in Path(f"/proc/{worker}/status").read_text()

    tools.until(worker_gone)
    bridge.start()
    messages = tools.follow(client, msg_id)
    assert tools.text_of(messages).endswith("line 498\nline 499\n")
    assert tools.reply_to(client, msg_id)["status"] == "ok"


def test_a_session_that_is_gone_answers_with_an_error_and_ends_the_bridge(world, tools):
    _, bridge, client = world.session()
    world.splice.target, world.splice.status = None, "404 Not Found"
    world.splice.cut()
    msg_id = client.execute("1")
    messages = tools.follow(client, msg_id)
    assert [m["content"]["ename"] for m in messages if m["msg_type"] == "error"] == ["SessionEnded"]
    assert tools.reply_to(client, msg_id)["status"] == "error"
    assert bridge.process.wait(10) == 1


def test_sigterm_ends_bridge_and_worker(world):
    _, bridge, _ = world.session()
    worker = bridge.worker()
    bridge.process.send_signal(signal.SIGTERM)
    assert bridge.process.wait(10) == 0
    with pytest.raises(ProcessLookupError):
        os.kill(worker, 0)


def test_a_flood_of_displays_arrives_whole(world, tools):
    _, _, client = world.session()
    msg_id = client.execute("for i in range(8000): display(i)")
    shown = [m for m in tools.follow(client, msg_id, 120) if m["msg_type"] == "display_data"]
    assert [m["content"]["data"]["text/plain"] for m in shown] == [str(i) for i in range(8000)]
