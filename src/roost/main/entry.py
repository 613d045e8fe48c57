"""Entry point of the ``roost`` command.

``roost capture`` works where only the kernel runtime is installed, and at once: it is handed on before the
command line's own libraries are loaded.
"""

import importlib
import sys

from roost.runtime.kernel import tell


def run() -> None:
    """``roost ...``."""
    if sys.argv[1:2] == ["capture"]:
        raise SystemExit(tell.main(sys.argv[2:]))
    importlib.import_module("roost.main.cli").run()
