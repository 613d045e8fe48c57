"""A real client, bridge, keeper and kernel: everything a notebook does goes through unchanged."""

import signal
import time

import pytest

pytestmark = pytest.mark.e2e


def test_a_notebook_works_through_the_bridge(world, tools):
    keeper, bridge, client = world.session()
    msg_id = client.execute("print('hello'); 6 * 7")
    messages = tools.follow(client, msg_id)
    assert tools.text_of(messages) == "hello\n"
    kinds = [m["msg_type"] for m in messages]
    assert kinds == ["status", "execute_input", "stream", "execute_result", "status"]
    assert messages[3]["content"]["data"]["text/plain"] == "42"
    reply = tools.reply_to(client, msg_id)
    assert (reply["status"], reply["execution_count"]) == ("ok", 1)

    # completion
    reply = client.complete("pri", reply=True, timeout=10)
    assert "print" in reply["content"]["matches"]

    # a prompt
    msg_id = client.execute("name = input('who? '); print('hi', name)")
    prompt = client.get_stdin_msg(timeout=10)
    assert prompt["content"]["prompt"] == "who? "
    client.input("ann")
    assert tools.text_of(tools.follow(client, msg_id)) == "hi ann\n"

    # display update keeps its id
    code = "h = display('one', display_id='d'); h.update('two')"
    messages = tools.follow(client, client.execute(code))
    shown = [m for m in messages if m["msg_type"] in ("display_data", "update_display_data")]
    assert [m["content"]["data"]["text/plain"] for m in shown] == ["'one'", "'two'"]
    assert {m["content"]["transient"]["display_id"] for m in shown} == {"d"}

    # interrupt by a signal to the bridge, as a kernel manager does
    msg_id = client.execute("import time\nprint('go')\ntime.sleep(60)")
    while client.get_iopub_msg(timeout=10)["msg_type"] != "stream":
        pass
    begun = time.monotonic()
    bridge.process.send_signal(signal.SIGINT)
    messages = tools.follow(client, msg_id)
    assert time.monotonic() - begun < 5
    errors = [m["content"]["ename"] for m in messages if m["msg_type"] == "error"]
    assert errors == ["KeyboardInterrupt"]

    # and by a message, sent before the cell has begun
    msg_id = client.execute("import time\ntime.sleep(60)")
    while client.get_iopub_msg(timeout=10)["parent_header"].get("msg_id") != msg_id:
        pass
    client.control_channel.send(client.session.msg("interrupt_request", {}))
    reply = tools.reply_to(client, msg_id, 10)
    assert reply["status"] == "error"
    assert client.get_control_msg(timeout=10)["msg_type"] == "interrupt_reply"
    assert keeper.status().execution_count == 5


def test_an_error_takes_the_queued_cells_along_as_in_a_plain_kernel(world, tools):
    _, _, client = world.session()
    client.execute("import time; time.sleep(0.5); 1 / 0")
    later = [client.execute("print('never')"), client.execute("print('never')")]
    tolerant = client.execute("print('never')", stop_on_error=False)
    info = client.kernel_info()
    for msg_id in (*later, tolerant):
        messages = tools.follow(client, msg_id)
        assert [m["msg_type"] for m in messages] == ["status", "status"]
        reply = tools.reply_to(client, msg_id)
        assert reply["status"] == "aborted"
    assert tools.reply_to(client, info)["status"] == "ok"
    # what comes after the error runs, and an error that does not stop lets the next one run
    careless = client.execute("1 / 0", stop_on_error=False)
    after = client.execute("print('runs')")
    assert tools.reply_to(client, careless)["status"] == "error"
    assert tools.text_of(tools.follow(client, after)) == "runs\n"


def test_restart_gives_a_fresh_kernel_and_a_death_is_told(world, tools):
    keeper, bridge, client = world.session()
    tools.follow(client, client.execute("x = 1"))
    first = keeper.status().kernel_pid
    dying = client.execute("import os, time; print('last words'); time.sleep(0.5); os._exit(3)")
    waiting = client.execute("print('never')")
    messages = tools.follow(client, dying)
    assert tools.text_of(messages) == "last words\n"
    assert [m["content"]["ename"] for m in messages if m["msg_type"] == "error"] == ["KernelDied"]
    assert tools.reply_to(client, dying)["status"] == "error"
    assert tools.reply_to(client, waiting)["status"] == "aborted"
    states = []
    while "idle" not in states[-1:] or "starting" not in states:
        message = client.get_iopub_msg(timeout=30)
        if message["msg_type"] == "status" and not message["parent_header"]:
            states.append(message["content"]["execution_state"])
    assert states == ["restarting", "starting", "idle"]
    answer = tools.reply_to(client, client.execute("x"))
    assert answer["ename"] == "NameError"
    assert answer["execution_count"] == 1
    second = keeper.status().kernel_pid
    assert second != first
    ended = [e for e in keeper.events if type(e).__name__ == "KernelEnded"]
    assert [e.exit_code for e in ended] == [3]

    # the client asks for a restart as a kernel manager does: the bridge ends, a new one finds a fresh kernel
    client.execute("y = 1")
    client.shutdown(restart=True)
    assert bridge.process.wait(10) == 0
    bridge.start()
    again = world.client(bridge)
    assert tools.reply_to(again, again.execute("y"))["ename"] == "NameError"
    assert keeper.status().kernel_pid != second

    # and a shutdown leaves a keeper that starts a fresh kernel when it is needed
    again.shutdown()
    assert bridge.process.wait(10) == 0
    tools.until(lambda: keeper.status().kernel_pid == 0)
    bridge.start()
    third = world.client(bridge)
    assert tools.text_of(tools.follow(third, third.execute("print('back')"))) == "back\n"
