"""A bridge that a client started by itself: asks the REST door for a session and gives it back."""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from roost.notebooks.bridge.create import create_session, delete_session
from roost.ports.errors import Denied, Never, Retry

SESSION = "s-test"


class Door(ThreadingHTTPServer):
    """Two routes of the REST door."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.calls = []
        self.url = f"http://127.0.0.1:{self.server_port}"
        threading.Thread(target=self.serve_forever, daemon=True).start()


class Handler(BaseHTTPRequestHandler):
    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.answer(("POST", self.path, body), 201, {"id": SESSION, "token": "secret", "more": 1})

    def do_DELETE(self):
        self.answer(("DELETE", self.path, None), 200, {})

    def answer(self, call, status, content):
        if self.headers["Authorization"] != "Bearer owner":
            status, content = 401, {"error": "denied"}
        elif call[2] is not None and call[2]["name"] == "bad":
            status, content = 422, {"error": "no such thing"}
        self.server.calls.append(call)
        body = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


@pytest.fixture
def door():
    door = Door()
    yield door
    door.shutdown()
    door.server_close()


async def test_errors_are_typed(door):
    session = await create_session(door.url, "owner", name="n", key="k")
    assert (session.id, session.token) == (SESSION, "secret")
    with pytest.raises(Denied):
        await create_session(door.url, "thief", name="n", key="k")
    with pytest.raises(Never, match="no such thing"):
        await create_session(door.url, "owner", name="bad", key="k")
    await delete_session(door.url, "owner", SESSION)
    door.shutdown()
    door.server_close()
    with pytest.raises(Retry):
        await create_session(door.url, "owner", name="n", key="k")


@pytest.mark.e2e
def test_a_session_is_asked_for_once_and_given_back(world, tools, door):
    keeper = world.keeper()
    keeper.adopt()
    world.splice.target = keeper.socket
    (world.folder / "owner.token").write_text("owner\n")
    endpoints = {"public_url": world.splice.url, "control_url": door.url, "link_address": "x"}
    (world.folder / "endpoints.json").write_text(json.dumps(endpoints))
    bridge = world.bridge(own=True)
    client = world.client(bridge)
    assert tools.reply_to(client, client.execute("x = 1"))["status"] == "ok"
    # a manager that restarts a killed bridge gets the same session
    bridge.process.kill()
    bridge.process.wait()
    bridge.start()
    again = world.client(bridge)
    assert tools.text_of(tools.follow(again, again.execute("print(x)"))) == "1\n"
    key = json.loads(bridge.file.read_text())["key"]
    posts = [call for call in door.calls if call[0] == "POST"]
    body = {"name": "kernel", "key": key, "page": False}
    assert posts == [("POST", "/api/v1/notebooks", body)]
    again.shutdown()
    assert bridge.process.wait(15) == 0
    assert door.calls[-1] == ("DELETE", f"/api/v1/notebooks/{SESSION}", None)
