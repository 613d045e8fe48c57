"""A session's JupyterLab for tests: the real server, a local workspace, and a plain kernel as 'bridge'.

python lab_process.py DIR        reads DIR/setup.json {session_id, key, token, base_url, files}
"""

import asyncio
import json
import os
import sys
import time
import uuid
from pathlib import Path

from roost.client.stream import Stream
from roost.doors.jupyter.server import Setup, serve
from roost.notebooks.workspace import Workspace


class WallClock:
    def now_s(self) -> float:
        return time.time()

    def monotonic_s(self) -> float:
        return time.monotonic()


def main() -> None:
    directory = Path(sys.argv[1])
    given = json.loads((directory / "setup.json").read_text())
    for kind in ("config", "data", "runtime"):
        os.environ[f"JUPYTER_{kind.upper()}_DIR"] = str(directory / "jupyter" / kind)
    os.environ.update(JUPYTER_NO_CONFIG="1", JUPYTER_PLATFORM_DIRS="1")

    async def connect() -> Stream:
        return await asyncio.open_unix_connection(given["files"], limit=1 << 20)

    setup = Setup(
        directory=directory,
        session_id=given["session_id"],
        kernel_id=str(uuid.uuid5(uuid.NAMESPACE_URL, given["session_id"])),
        key=given["key"],
        token=given["token"],
        base_url=given["base_url"],
        socket=directory / "http.sock",
        bridge_command=[
            *(sys.executable, "-m", "ipykernel_launcher"),
            *("-f", str(directory / "kernel.json")),
        ],
    )
    serve(setup, lambda: Workspace(directory / "workspace", connect, WallClock(), wait_s=20))


if __name__ == "__main__":
    main()
