"""A kernel with the engine in it: ``-f CONNECTION_FILE --engine SOCKET [--state-dir DIR]``.

A plain ipykernel otherwise. It does not watch its parent: the keeper that started it ends it.
"""

import argparse
import asyncio
import os
import sys
from pathlib import Path
from typing import Any

from ipykernel.ipkernel import IPythonKernel
from ipykernel.kernelapp import IPKernelApp
from traitlets import Type

from roost.runtime.kernel import other
from roost.runtime.kernel.extension import load
from roost.runtime.kernel.server import Server


class SessionKernel(IPythonKernel):
    """An ipykernel that offers no subshells: a page would send its widgets' messages over one, to a thread
    beside the cells that no capture finds at rest, under an id that another kernel does not know."""

    @property
    def kernel_info(self) -> dict[str, Any]:
        """What a page asks first."""
        info: dict[str, Any] = dict(super().kernel_info)
        offered = info.get("supported_features", [])
        return {**info, "supported_features": [one for one in offered if "subshells" not in one]}


class KernelApp(IPKernelApp):
    """An ipykernel that no parent poller ends."""

    name = "roost-kernel"
    kernel_class = Type(SessionKernel, klass=IPythonKernel)

    def init_poller(self) -> None:
        """No poller."""


def main(argv: list[str]) -> None:
    """Run the kernel until it is told to end."""
    parser = argparse.ArgumentParser(prog="python -m roost.runtime.kernel", description=__doc__)
    parser.add_argument("-f", dest="connection_file", required=True, help="Jupyter connection file")
    parser.add_argument("--engine", required=True, help="unix socket for the engine")
    parser.add_argument("--state-dir", default="", help="capture here from the start")
    options = parser.parse_args(argv)
    here = str(Path.cwd())
    if sys.path and sys.path[0] in ("", here):
        del sys.path[0]  # put there by -m; ipykernel adds the session's folder as ''
    os.environ.pop("JPY_PARENT_PID", None)
    loop = asyncio.new_event_loop()
    asyncio.set_event_loop(loop)
    app = KernelApp.instance(connection_file=options.connection_file)
    app.initialize([])
    engine = load(app.shell)
    engine.loop = loop
    if options.state_dir:
        engine.track(Path(options.state_dir))
    become = other.becoming(Path(options.connection_file), Path(options.engine))
    Server(engine, Path(options.engine), become).start()
    app.start()
