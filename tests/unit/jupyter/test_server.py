"""A session's Jupyter server as a real process over a unix socket, with a plain kernel as its bridge."""

import asyncio
import base64
import contextlib
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from jupyter_client import BlockingKernelClient

from roost.agent.files import serve
from roost.doors.jupyter.kernelspec import install_kernelspec
from roost.doors.jupyter.provisioner import PORT_NAMES, connection_info

pytestmark = pytest.mark.e2e
TOKEN = "page-token"


class Files(threading.Thread):
    """The host's half of the workspace on a unix socket; may be away for a while."""

    def __init__(self, directory: Path) -> None:
        super().__init__(daemon=True)
        self.root = directory / "host" / "s-1"
        self.path = directory / "files.sock"
        self.root.mkdir(parents=True)
        self._loop = asyncio.new_event_loop()
        self._tasks: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None
        self.start()
        self.come()

    def run(self) -> None:
        self._loop.run_forever()
        self._loop.close()

    def _do(self, work: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(10)

    def come(self) -> None:
        async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            task = asyncio.current_task()
            assert task is not None
            self._tasks.add(task)
            try:
                await serve(reader, writer, self.root)
            except asyncio.CancelledError:
                writer.close()
            finally:
                self._tasks.discard(task)

        async def begin() -> None:
            self.path.unlink(missing_ok=True)
            self._server = await asyncio.start_unix_server(handle, self.path)

        self._do(begin())

    def leave(self) -> None:
        async def end() -> None:
            assert self._server is not None
            self._server.close()
            for task in list(self._tasks):
                task.cancel()
            await asyncio.sleep(0)

        self._do(end())

    def end(self) -> None:
        self.leave()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self.join(10)


class Lab:
    """One server process and a client of it."""

    def __init__(self) -> None:
        self.directory = Path(tempfile.mkdtemp(prefix="rt-", dir="/tmp"))
        self.files = Files(self.directory)
        content = {"session_id": "s-1", "key": "signing-key", "token": TOKEN}
        content |= {"base_url": "/n/s-1/", "files": str(self.files.path)}
        (self.directory / "setup.json").write_text(json.dumps(content))
        transport = httpx.HTTPTransport(uds=str(self.directory / "http.sock"))
        self.http = httpx.Client(
            transport=transport,
            base_url="http://127.0.0.1/n/s-1/",
            headers={"Authorization": f"token {TOKEN}"},
            timeout=60,
        )
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        program = Path(__file__).with_name("lab_process.py")
        with (self.directory / "server.log").open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, str(program), str(self.directory)], stdout=log, stderr=log
            )
        until(lambda: self.answers(), "the server answers")

    def answers(self) -> bool:
        assert self.process is not None
        assert self.process.poll() is None, (self.directory / "server.log").read_text()
        try:
            return self.http.get("api/kernels").status_code == 200
        except httpx.TransportError:
            return False

    def kill(self) -> None:
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    def get(self, path: str, **params: Any) -> Any:
        answer = self.http.get(path, params=params)
        answer.raise_for_status()
        return answer.json()

    def save(self, path: str, text: str, **more: Any) -> httpx.Response:
        model = {"type": "file", "format": "text", "content": text, **more}
        return self.http.put(f"api/contents/{path}", json=model)

    def bridge_pid(self) -> int:
        return int(json.loads((self.directory / "bridge.json").read_text())["pid"])

    def kernel(self) -> BlockingKernelClient:
        end = time.monotonic() + 60
        while True:
            client = BlockingKernelClient(connection_file=str(self.directory / "kernel.json"))
            client.load_connection_file()
            client.start_channels()
            try:
                client.wait_for_ready(timeout=20)
            except RuntimeError:  # said to be dead when the first heartbeat takes over a second
                client.stop_channels()
                assert time.monotonic() < end
            else:
                return client

    def run(self, code: str) -> str:
        client = self.kernel()
        printed: list[str] = []

        def hook(message: dict[str, Any]) -> None:
            if message["msg_type"] == "stream":
                printed.append(message["content"]["text"])

        try:
            client.execute_interactive(code, output_hook=hook, timeout=60)
        finally:
            client.stop_channels()
        return "".join(printed).strip()

    def close(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.terminate()
            self.process.wait(20)
        with contextlib.suppress(OSError, KeyError):
            os.kill(self.bridge_pid(), signal.SIGKILL)
        self.http.close()
        self.files.end()
        shutil.rmtree(self.directory)


def until(check: Callable[[], bool], what: str, limit_s: float = 60) -> None:
    end = time.monotonic() + limit_s
    while not check():
        assert time.monotonic() < end, f"{what}: not within {limit_s} s"
        time.sleep(0.05)


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    made = Lab()
    try:
        made.start()
        yield made
    finally:
        made.close()


def test_page_and_assets(lab: Lab) -> None:
    page = lab.http.get("lab")
    assert page.status_code == 200
    assert "JupyterLab" in page.text
    transport = httpx.HTTPTransport(uds=str(lab.directory / "http.sock"))
    with httpx.Client(transport=transport) as stranger:
        assert stranger.get("http://127.0.0.1/n/s-1/api/contents").status_code == 403
    specs = lab.get("api/kernelspecs")
    assert [s["spec"]["display_name"] for s in specs["kernelspecs"].values()] == [
        "Python 3 (Roost)"
    ]
    logo = lab.http.get("kernelspecs/python3/logo-64x64.png")
    assert logo.content.startswith(b"\x89PNG")
    assert lab.http.get("api/terminals").status_code == 404
    home = Path.home() / ".jupyter"
    assert not list(home.glob("lab/workspaces/s-1*"))


def test_files(lab: Lab) -> None:
    saved = lab.save("a.csv", "x\n1\n")
    assert saved.status_code == 201
    model = lab.get("api/contents/a.csv", hash=1)
    assert model["content"] == "x\n1\n"
    assert model["hash"] == hashlib.sha256(b"x\n1\n").hexdigest()
    assert model["last_modified"] == saved.json()["last_modified"]
    assert lab.get("api/contents/a.csv", content=0, hash=1)["hash"] == model["hash"]
    assert lab.http.get("files/a.csv").text == "x\n1\n"
    (lab.files.root / "picture").write_bytes(b"\x00\xff")
    assert base64.b64decode(lab.get("api/contents/picture")["content"]) == b"\x00\xff"
    assert lab.http.get("api/contents/picture?format=text").status_code == 400
    assert lab.http.put("api/contents/sub", json={"type": "directory"}).status_code == 201
    assert lab.http.post("api/contents/sub", json={"copy_from": "a.csv"}).status_code == 201
    assert [m["name"] for m in lab.get("api/contents/sub")["content"]] == ["a.csv"]
    moved = lab.http.patch("api/contents/sub/a.csv", json={"path": "b.csv"})
    assert moved.status_code == 200
    assert lab.http.patch("api/contents/a.csv", json={"path": "b.csv"}).status_code == 409
    assert lab.http.delete("api/contents/sub").status_code == 204
    assert lab.http.get("api/contents/sub").status_code == 404
    assert lab.http.get("api/contents/sub?content=0").status_code == 404
    assert lab.http.get("api/contents/../../etc/passwd").status_code in (403, 404)
    assert lab.save(".hidden", "").status_code == 400
    new = lab.http.post("api/contents", json={"type": "notebook"}).json()
    assert new["path"] == "Untitled.ipynb"
    notebook = lab.get("api/contents/Untitled.ipynb")
    assert (notebook["type"], notebook["content"]["nbformat"]) == ("notebook", 4)


def test_chunked_upload(lab: Lab) -> None:
    content = os.urandom(3_000_000)
    for number, start in ((1, 0), (2, 1_000_000), (-1, 2_000_000)):
        part = base64.b64encode(content[start : start + 1_000_000]).decode()
        model = {"type": "file", "format": "base64", "content": part, "chunk": number}
        answer = lab.http.put("api/contents/big.bin", json=model)
        assert answer.status_code in (200, 201)
        assert (lab.files.root / "big.bin").exists() == (number == -1)
    assert (lab.files.root / "big.bin").read_bytes() == content
    assert lab.http.get("files/big.bin").content == content


def test_checkpoints(lab: Lab) -> None:
    lab.save("c.txt", "one")
    made = lab.http.post("api/contents/c.txt/checkpoints").json()
    lab.save("c.txt", "two")
    assert [c["id"] for c in lab.get("api/contents/c.txt/checkpoints")] == [made["id"]]
    assert lab.http.post(f"api/contents/c.txt/checkpoints/{made['id']}").status_code == 204
    assert lab.get("api/contents/c.txt")["content"] == "one"
    lab.http.patch("api/contents/c.txt", json={"path": "d.txt"})
    assert [c["id"] for c in lab.get("api/contents/d.txt/checkpoints")] == [made["id"]]
    assert lab.http.delete("api/contents/d.txt").status_code == 204


def test_a_save_waits_while_the_host_is_away(lab: Lab) -> None:
    lab.save("w.txt", "before")
    lab.files.leave()
    answers: list[httpx.Response] = []
    saving = threading.Thread(target=lambda: answers.append(lab.save("w.txt", "after")))
    saving.start()
    journal = lab.directory / "workspace" / "journal.jsonl"
    until(lambda: journal.read_text().count('"w.txt"') >= 2, "the change is durable")
    assert lab.get("api/contents/w.txt", content=0)["size"] == len("before")
    assert not answers
    lab.files.come()
    saving.join(30)
    assert answers[0].status_code == 200
    assert lab.get("api/contents/w.txt")["content"] == "after"


def test_every_notebook_has_the_one_kernel_and_ids_survive_kill(lab: Lab) -> None:
    kernel = lab.get("api/kernels")[0]["id"]
    ids = []
    for path in ("one.ipynb", "two.ipynb"):
        body = {"path": path, "type": "notebook", "name": path, "kernel": {"name": "whatever"}}
        answer = lab.http.post("api/sessions", json=body)
        assert answer.status_code == 201
        assert answer.json()["kernel"]["id"] == kernel
        ids.append(answer.json()["id"])
    lab.run("x = 41")
    bridge = lab.bridge_pid()
    lab.kill()
    lab.start()
    assert [s["id"] for s in lab.get("api/sessions")] == ids
    assert [k["id"] for k in lab.get("api/kernels")] == [kernel]
    assert lab.bridge_pid() == bridge
    assert lab.run("print(x + 1)") == "42"
    assert lab.http.delete(f"api/sessions/{ids[0]}").status_code == 204
    assert lab.run("print(x + 1)") == "42"  # the other notebook still uses it


def test_a_dead_bridge_is_started_again_on_its_ports(lab: Lab) -> None:
    before = (lab.directory / "kernel.json").read_bytes()
    kernel, bridge = lab.get("api/kernels")[0]["id"], lab.bridge_pid()
    os.kill(bridge, signal.SIGKILL)
    until(lambda: lab.bridge_pid() != bridge, "another bridge")
    assert (lab.directory / "kernel.json").read_bytes() == before
    assert lab.get("api/kernels")[0]["id"] == kernel
    assert lab.run("print('here')") == "here"


def test_interrupt_restart_shutdown(lab: Lab) -> None:
    kernel = lab.get("api/kernels")[0]["id"]
    lab.run("y = 1")
    client = lab.kernel()
    client.execute("import time; time.sleep(60)")
    until(lambda: client.get_iopub_msg(timeout=30)["msg_type"] == "execute_input", "the cell runs")
    assert lab.http.post(f"api/kernels/{kernel}/interrupt").status_code == 204
    reply = client.get_shell_msg(timeout=30)
    while reply["msg_type"] != "execute_reply":
        reply = client.get_shell_msg(timeout=30)
    assert reply["content"]["ename"] == "KeyboardInterrupt"
    client.stop_channels()
    assert lab.http.post(f"api/kernels/{kernel}/restart").status_code == 200
    assert lab.run("print('y' in dir())") == "False"
    bridge = lab.bridge_pid()
    assert lab.http.delete(f"api/kernels/{kernel}").status_code == 204
    assert lab.get("api/kernels") == []
    body = {"path": "three.ipynb", "type": "notebook", "name": "", "kernel": {"name": "python3"}}
    assert lab.http.post("api/sessions", json=body).json()["kernel"]["id"] == kernel
    assert lab.bridge_pid() != bridge
    assert lab.run("print('again')") == "again"


def test_the_end_of_the_server_leaves_bridge_and_kernel(lab: Lab) -> None:
    lab.run("z = 7")
    bridge = lab.bridge_pid()
    assert lab.process is not None
    lab.process.terminate()
    assert lab.process.wait(30) == 0
    lab.start()
    assert lab.bridge_pid() == bridge
    assert lab.run("print(z)") == "7"


def test_connection_info_never_changes(tmp_path: Path) -> None:
    file = tmp_path / "kernel.json"
    first = connection_info(file, "s-1", "key")
    assert file.stat().st_mode & 0o777 == 0o600
    assert len({first[name] for name in PORT_NAMES}) == 5
    assert connection_info(file, "s-1", "other") == first


def test_install_kernelspec(tmp_path: Path) -> None:
    folder = install_kernelspec(tmp_path, python="/opt/roost/bin/python")
    assert install_kernelspec(tmp_path, python="/opt/roost/bin/python") == folder
    spec = json.loads((folder / "kernel.json").read_text())
    assert spec["argv"] == [
        *("/opt/roost/bin/python", "-m", "roost.main.bridge", "-f", "{connection_file}")
    ]
    assert (spec["display_name"], spec["interrupt_mode"]) == ("Python 3 (Roost)", "message")
    assert sorted(p.name for p in folder.iterdir()) == [
        *("kernel.json", "logo-32x32.png", "logo-64x64.png")
    ]
