"""A keeper's pause: the running cell stands in its loop, and goes on in another kernel under its own id."""

import time
from typing import Any

from tests.unit.runtime.conftest import Bench, Kernel

LOOP = """
total = 0
for i in range(40):
    with open("steps.txt", "a") as f: f.write(f"{i}\\n")
    total += i
    print(i)
    time.sleep(0.05)
print("total", total)
"""


def begin(kernel: Kernel, code: str) -> dict[str, Any]:
    """Send a cell; its whole request, once it has begun."""
    kernel.run("import time")
    message = kernel.client.session.msg(
        "execute_request",
        {"code": code, "silent": False, "store_history": True, "user_expressions": {},
         "allow_stdin": False, "stop_on_error": True},
    )  # fmt: skip
    kernel.client.shell_channel.send(message)
    return message


def begun(kernel: Kernel, message_id: str) -> int:
    """Wait until a cell has begun; its count."""
    while True:
        got = kernel.client.get_iopub_msg(timeout=60)
        mine = got["parent_header"].get("msg_id") == message_id
        if mine and got["msg_type"] == "execute_input":
            return int(got["content"]["execution_count"])


def outputs(kernel: Kernel, message_id: str, until: str) -> str:
    """What a cell printed until a message of this type."""
    text = ""
    while True:
        got = kernel.client.get_iopub_msg(timeout=60)
        if got["msg_type"] == until == "roost_mark":
            return text
        if got["parent_header"].get("msg_id") != message_id:
            continue
        if got["msg_type"] == "stream":
            text += got["content"]["text"]
        elif got["msg_type"] == until and got["content"].get("execution_state") == "idle":
            return text


def test_a_loop_pauses_and_goes_on_in_another_kernel_twice(bench: Bench) -> None:
    kernel = bench.session()
    message = begin(kernel, LOOP)
    message_id = message["header"]["msg_id"]
    shown = ""
    counts = [begun(kernel, message_id)]
    for _ in range(2):
        time.sleep(0.4)  # some iterations
        paused = kernel.door.demand("pause", token="t")
        assert paused["mode"] == "paused", paused
        shown += outputs(kernel, message_id, "roost_mark")
        kernel.kill()
        kernel = bench.session()
        bench.restore(kernel, paused["manifest"])
        kernel.door.demand("continue", msg_id=message_id, tail=paused["tail"])
        kernel.client.session.send(kernel.client.shell_channel.socket, message)
        counts.append(begun(kernel, message_id))
    shown += outputs(kernel, message_id, "status")
    expected = "".join(f"{i}\n" for i in range(40))
    assert shown == expected + "total 780\n"
    assert (bench.work / "steps.txt").read_text() == expected
    assert set(counts) == {counts[0]}, "it keeps its count"
    assert kernel.run("total") == "780"


def test_a_pause_called_off_changes_nothing(bench: Bench) -> None:
    kernel = bench.session()
    message = begin(kernel, LOOP)
    begun(kernel, message["header"]["msg_id"])
    assert kernel.door.demand("pause", token="t")["mode"] == "paused"
    again = kernel.door.demand("pause", token="u")
    assert again["mode"] == "paused", "asked twice: the same answer"
    kernel.door.demand("go_on")
    text = outputs(kernel, message["header"]["msg_id"], "status")
    assert text.endswith("total 780\n")
    assert len((bench.work / "steps.txt").read_text().splitlines()) == 40


def test_what_cannot_pause_says_so(bench: Bench) -> None:
    kernel = bench.session()
    assert kernel.door.demand("pause")["mode"] == "over"
    begun(kernel, begin(kernel, "time.sleep(1.5)")["header"]["msg_id"])
    assert kernel.door.demand("pause")["mode"] == "over", "it has ended meanwhile"
