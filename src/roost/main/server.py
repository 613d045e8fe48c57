"""``python -m roost.main.server --session-dir DIR``: the JupyterLab of one session.

Reads ``DIR/server.json``, keeps everything of its own under ``DIR`` (never the user's ``~/.jupyter``) and
holds ``DIR/server.lock`` so that two never serve one session.
"""

import argparse
import fcntl
import logging
import os
import sys
import uuid
from pathlib import Path

import msgspec

from roost.adapters.clock import SystemClock
from roost.client.stream import Stream, open_stream
from roost.doors.jupyter.server import ServerFile, Setup, serve
from roost.notebooks.workspace import Workspace

_NAMESPACE = uuid.UUID("6f1e1f5e-8b0f-4d5b-9d0c-2f6d3f3c9a01")


def main() -> None:
    """Run until stopped."""
    parser = argparse.ArgumentParser(prog="roost.main.server", description=__doc__)
    parser.add_argument("--session-dir", type=Path, required=True)
    directory: Path = parser.parse_args().session_dir.absolute()
    file = msgspec.json.decode((directory / "server.json").read_bytes(), type=ServerFile)
    lock = (directory / "server.lock").open("wb")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        sys.exit(f"another server already serves {directory}")
    _own_directories(directory)
    logging.getLogger("asyncio").setLevel(logging.WARNING)
    serve(_setup(directory, file), lambda: _workspace(directory, file))


def _own_directories(directory: Path) -> None:
    """Jupyter reads these when its packages ask for a path."""
    for kind in ("config", "data", "runtime"):
        folder = directory / "jupyter" / kind
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        os.environ[f"JUPYTER_{kind.upper()}_DIR"] = str(folder)
    os.environ["JUPYTER_NO_CONFIG"] = "1"
    os.environ["JUPYTER_PLATFORM_DIRS"] = "1"


def _setup(directory: Path, file: ServerFile) -> Setup:
    connection_file = directory / "kernel.json"
    return Setup(
        directory=directory,
        session_id=file.session_id,
        kernel_id=str(uuid.uuid5(_NAMESPACE, file.session_id)),
        key=file.key,
        token=file.token,
        base_url=file.base_url,
        socket=Path(file.socket),
        bridge_command=[
            *(sys.executable, "-m", "roost.main.bridge"),
            *("-f", str(connection_file), "--session", file.session_id),
        ],
    )


def _workspace(directory: Path, file: ServerFile) -> Workspace:
    async def connect() -> Stream:
        return await open_stream(
            file.edge_url, f"/_roost/files/{file.session_id}", file.stream_token
        )

    return Workspace(directory / "workspace", connect, SystemClock())


if __name__ == "__main__":
    main()
