"""Widgets after a move: the page goes on speaking to the models it has, over the same comms."""

from typing import Any

import pytest

pytestmark = pytest.mark.e2e

PANEL = """
import ipywidgets as w
from traitlets import Int
seen, shown = [], w.Output()
s = w.IntSlider(value=3, max=10)
s.observe(lambda change: seen.append(change["new"]), "value")
class Panel(w.VBox):
    count = Int(0).tag(sync=True)
    def __init__(self):
        self.button, self.label = w.Button(description="go"), w.Label()
        super().__init__([self.button, self.label])
        self.button.on_click(self.clicked)
    def clicked(self, _):
        self.count += 1
        self.label.value = f"{self.count} clicks"
panel = Panel()
@shown.capture()
def told(change): print("told", change.new)
s.observe(told, "value")
kept = w.interactive(lambda n: n * rate, n=(0, 9)); rate = 2
named = {"s": s, "button": panel.button, "label": panel.label, "n": kept.children[0]}
ids = {name: one.model_id for name, one in named.items()}
"""


def page(kernel: Any, comm: str, data: dict[str, Any], kind: str = "comm_msg") -> list[Any]:
    """Say something as the page does; what comes back for its models and its outputs."""
    client = kernel.client
    content = {"comm_id": comm, "data": data}
    message = client.session.msg(kind, content)
    client.shell_channel.send(message)
    found = []
    while True:
        got = client.get_iopub_msg(timeout=30)
        if got["parent_header"].get("msg_id") != message["header"]["msg_id"]:
            continue
        kind, content = got["msg_type"], got["content"]
        if kind == "comm_msg":
            found.append((content["comm_id"], content["data"].get("state", content["data"])))
        elif kind == "comm_close":
            found.append((content["comm_id"], "closed"))
        elif kind == "status" and content["execution_state"] == "idle":
            return found


def slide(kernel: Any, comm: str, value: int) -> list[Any]:
    return page(kernel, comm, {"method": "update", "state": {"value": value}, "buffer_paths": []})


def told_by(kernel: Any, code: str) -> list[Any]:
    """What a cell tells the page's models."""
    message = kernel.client.execute(code)
    found = []
    while True:
        got = kernel.client.get_iopub_msg(timeout=30)
        if got["parent_header"].get("msg_id") != message:
            continue
        if got["msg_type"] in ("comm_msg", "comm_close"):
            found.append((got["content"]["comm_id"], got["content"]["data"].get("state", "closed")))
        elif got["content"].get("execution_state") == "idle":
            return found


def reply(kernel: Any, message: str) -> Any:
    while True:
        got = kernel.client.get_shell_msg(timeout=30)
        if got["parent_header"].get("msg_id") == message:
            return got["content"]["comms"]


def test_the_page_goes_on_with_the_same_models(bench: Any) -> None:
    kernel = bench.session()
    kernel.run(PANEL)
    ids = eval(kernel.eval("ids"))
    slide(kernel, ids["s"], 5)  # the last thing before the notice is no cell
    page(kernel, ids["button"], {"method": "custom", "content": {"event": "click"}})
    told = kernel.client.comm_info()  # the page asks which models there are
    before = reply(kernel, told)
    target, report = bench.move(kernel)
    assert report["refused"] == {}
    assert reply(target, target.client.comm_info()) == before
    assert target.run("print(s.value, seen, panel.count, panel.label.value)") == (
        "5 [5] 1 1 clicks\n"
    )
    assert (ids["s"], {"value": 8}) in slide(target, ids["s"], 8)
    answer = page(target, ids["button"], {"method": "custom", "content": {"event": "click"}})
    assert (ids["label"], {"value": "2 clicks"}) in answer
    slide(target, ids["n"], 7)
    assert target.run("print(seen, panel.count, kept.result)") == "[5, 8] 2 14\n"
    assert (ids["s"], {"value": 1}) in told_by(target, "s.value = 1")


def test_pages_are_not_offered_threads_beside_the_cells(bench: Any) -> None:
    kernel = bench.session()
    message = kernel.client.kernel_info()
    while (got := kernel.client.get_shell_msg(timeout=30))["parent_header"]["msg_id"] != message:
        pass
    offered = got["content"].get("supported_features", [])
    assert not [one for one in offered if "subshell" in one]


def test_going_back_in_time_does_not_close_models_on_the_page(bench: Any) -> None:
    kernel = bench.session()
    kernel.run("%load_ext roost\nimport ipywidgets as w\ns = w.IntSlider(3)\ng = []")
    kernel.door.demand("capture", budget_s=30)
    comm = eval(kernel.eval("s.model_id"))
    kernel.run("s.value = 9")
    kernel.door.demand("capture", budget_s=30)
    told = told_by(kernel, "%roost undo")
    assert [state["value"] for one, state in told if one == comm] == [3]
    assert all(state != "closed" for _, state in told)
    assert (comm, {"value": 4}) in slide(kernel, comm, 4)
    assert kernel.run("print(s.value)") == "4\n"


def test_comms_of_the_notebook(bench: Any) -> None:
    kernel = bench.session()
    kernel.run(
        "from comm import create_comm, get_comm_manager\n"
        "got = []\n"
        "def heard(message):\n    got.append(message['content']['data']); mine.send({'n': len(got)})\n"
        "mine = create_comm(target_name='mine'); mine.on_msg(heard)\n"
        "bad = create_comm(target_name='bad'); bad.on_msg(lambda message: 1 / 0)\n"
        "get_comm_manager().register_target('asked', lambda comm, _: comm.send({'n': len(got)}))"
    )
    mine, bad = eval(kernel.eval("(mine.comm_id, bad.comm_id)"))
    page(kernel, bad, {})
    page(kernel, mine, {"a": 1})
    number = kernel.door.demand("status")["number"]
    kernel.run("after = 1")
    target, report = bench.move(kernel)
    assert report["refused"] == {} and report["capture"]["number"] > number
    assert page(target, mine, {"a": 2}) == [(mine, {"n": 2})]
    assert target.run("print(got, after)") == "[{'a': 1}, {'a': 2}] 1\n"
    message = target.client.session.msg(
        "comm_open", {"comm_id": "new", "target_name": "asked", "data": {}}
    )
    target.client.shell_channel.send(message)
    while True:
        got = target.client.get_iopub_msg(timeout=30)
        if got["msg_type"] == "comm_msg":
            assert got["content"]["data"] == {"n": 2}
            return
