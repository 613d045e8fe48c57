"""A Jupyter page without a browser: what JupyterLab does over the stable address, for the demo.

It opens one WebSocket and keeps it: a move that it noticed would be a move that failed.
"""

import base64
import contextlib
import itertools
import json
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
from websockets.sync.client import connect

from roost.ports.errors import Never, Retry

REPLY_S = 120.0


@dataclass
class CellResult:
    """What a cell printed, showed and answered."""

    status: str = "?"
    text: str = ""
    pictures: int = 0
    error: str = ""
    seconds: float = 0.0
    count: int = 0
    """The cell's execution count."""
    restarts: list[str] = field(default_factory=list)
    """Kernel states a page would show as a restart or a loss."""


class Page:
    """A client of a session's JupyterLab at its stable URL."""

    def __init__(self, url: str) -> None:
        """``url``: the session's address with its token."""
        parts = urlsplit(url)
        self.address = f"{parts.scheme}://{parts.netloc}{parts.path.removesuffix('/lab')}"
        self.token = parts.query.removeprefix("token=")
        headers = {"Authorization": f"token {self.token}"}
        self._http = httpx.Client(headers=headers, timeout=90.0, trust_env=False)
        self._ids = itertools.count(1)
        self._open = contextlib.ExitStack()
        self._socket: Any = None
        self._session = f"page-{time.time_ns():x}"

    def close(self) -> None:
        """Close the page."""
        self._open.close()
        self._http.close()

    def wait_open(self, timeout_s: float = 60.0) -> None:
        """Wait until the server answers (its route holds until it is up)."""
        deadline_s = time.monotonic() + timeout_s
        while time.monotonic() < deadline_s:
            try:
                if self._http.get(f"{self.address}/api/status").status_code == 200:
                    return
            except httpx.TransportError:
                pass
            time.sleep(0.1)
        raise Retry(f"JupyterLab does not answer at {self.address}")

    def upload(self, path: str, content: bytes) -> None:
        """Save a file into the workspace, as the file browser does."""
        body = {
            "type": "file",
            "format": "base64",
            "content": base64.b64encode(content).decode(),
        }
        response = self._http.put(f"{self.address}/api/contents/{path}", json=body)
        if response.status_code not in (200, 201):
            raise Never(f"upload of {path} failed: {response.status_code} {response.text[:200]}")

    def download(self, path: str) -> bytes:
        """Read a file of the workspace."""
        params = {"format": "base64", "type": "file", "content": "1"}
        response = self._http.get(f"{self.address}/api/contents/{path}", params=params)
        if response.status_code != 200:
            raise Never(f"reading {path} failed: {response.status_code} {response.text[:200]}")
        return base64.b64decode(response.json()["content"])

    def connect(self, notebook: str) -> str:
        """Open the notebook's kernel connection; returns the kernel id."""
        body = {"path": notebook, "name": notebook, "type": "notebook", "kernel": {"name": ""}}
        response = self._http.post(f"{self.address}/api/sessions", json=body)
        if response.status_code not in (200, 201):
            raise Never(f"no kernel: {response.status_code} {response.text[:200]}")
        kernel_id: str = response.json()["kernel"]["id"]
        address = self.address.replace("http", "ws", 1)
        channels = connect(
            f"{address}/api/kernels/{kernel_id}/channels?session_id={self._session}",
            additional_headers={"Authorization": f"token {self.token}"},
            max_size=None,
            open_timeout=60,
        )
        self._open.close()
        self._socket = self._open.enter_context(channels)
        return kernel_id

    def run(self, code: str, timeout_s: float = REPLY_S) -> CellResult:
        """Run a cell over the one connection and gather its outputs until it is idle."""
        msg_id = f"{self._session}-{next(self._ids)}"
        header = {
            "msg_id": msg_id,
            "username": "demo",
            "session": self._session,
            "msg_type": "execute_request",
            "version": "5.3",
        }
        content = {"code": code, "silent": False, "store_history": True, "stop_on_error": True}
        content |= {"user_expressions": {}, "allow_stdin": False}
        message = {
            "channel": "shell",
            "header": header,
            "parent_header": {},
            "metadata": {},
            "content": content,
            "buffers": [],
        }
        started_s = time.monotonic()
        self._socket.send(json.dumps(message))
        result = CellResult()
        waiting = {"reply", "idle"}
        while waiting:
            left_s = started_s + timeout_s - time.monotonic()
            if left_s <= 0:
                raise Retry(f"no answer in {timeout_s:.0f} s; still waiting for {waiting}")
            received = json.loads(self._socket.recv(timeout=left_s))
            self._take(received, msg_id, result, waiting)
        result.seconds = time.monotonic() - started_s
        return result

    @staticmethod
    def _take(message: Any, msg_id: str, result: CellResult, waiting: set[str]) -> None:
        kind, content = message["header"]["msg_type"], message["content"]
        if kind == "status" and content["execution_state"] in ("restarting", "dead", "starting"):
            result.restarts.append(content["execution_state"])
        if message["parent_header"].get("msg_id") != msg_id:
            return
        if kind == "execute_reply":
            result.status = content["status"]
            result.count = content.get("execution_count") or 0
            waiting.discard("reply")
        elif kind == "status" and content["execution_state"] == "idle":
            waiting.discard("idle")
        elif kind == "stream":
            result.text += content["text"]
        elif kind in ("execute_result", "display_data"):
            result.text += content["data"].get("text/plain", "") + "\n"
            result.pictures += "image/png" in content["data"]
        elif kind == "error":
            result.error = f"{content['ename']}: {content['evalue']}"


def code_cells(notebook: Path) -> list[str]:
    """The code of a notebook's cells, in order."""
    cells = json.loads(notebook.read_text())["cells"]
    found = [c["source"] for c in cells if c["cell_type"] == "code"]
    return ["".join(s) if isinstance(s, list) else s for s in found]
