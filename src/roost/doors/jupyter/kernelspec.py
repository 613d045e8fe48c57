"""The kernelspec "Python 3 (Roost)": how any Jupyter on this machine starts a bridge.

VS Code ignores provisioners and other environments have nothing of Roost installed, so the command is
all there is: Roost's own interpreter and the bridge's module.
"""

import shutil
import sys
from pathlib import Path
from typing import Any

import msgspec
from jupyter_core.paths import jupyter_data_dir

RESOURCES = Path(__file__).parent / "resources"
DISPLAY_NAME = "Python 3 (Roost)"
INSTALLED_NAME = "roost"


def spec_fields(argv: list[str]) -> dict[str, Any]:
    """The fields of ``kernel.json``."""
    return {
        "argv": argv,
        "display_name": DISPLAY_NAME,
        "language": "python",
        "interrupt_mode": "message",
        "metadata": {"debugger": False},
    }


def install_kernelspec(prefix: Path | None = None, python: str = sys.executable) -> Path:
    """Put the kernelspec where Jupyter looks and return its folder.

    ``prefix`` is an environment's root (``<prefix>/share/jupyter``); None means the user's own folder.
    Repeating it replaces the earlier one.
    """
    data = prefix / "share" / "jupyter" if prefix is not None else Path(jupyter_data_dir())
    target = data / "kernels" / INSTALLED_NAME
    target.mkdir(parents=True, exist_ok=True)
    for logo in RESOURCES.glob("logo-*.png"):
        shutil.copyfile(logo, target / logo.name)
    argv = [python, "-m", "roost.main.bridge", "-f", "{connection_file}"]
    content = msgspec.json.format(msgspec.json.encode(spec_fields(argv)), indent=1)
    (target / "kernel.json").write_bytes(content + b"\n")
    return target
