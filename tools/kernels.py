"""Makes an environment per Python that kernels run on beside our own; prints their interpreters.

``ROOST_TEST_PYTHONS=$(python tools/kernels.py)`` has every test of the session engine run on each of them.
What is not installed on this machine is told on stderr, loudly: it is not tested.
"""

import subprocess
import sys
from pathlib import Path
from shutil import which

ROOT = Path(__file__).parents[1]
PLACE = ROOT / ".venv-kernels"
WANTED = ("3.12", "3.13")
NEEDS = (
    "ipykernel", "cloudpickle", "blake3", "numpy", "pandas", "scikit-learn", "matplotlib", "ipywidgets",
)  # fmt: skip


def interpreter(version: str) -> str:
    """An interpreter of this minor version: on the path or of pyenv; empty when there is none."""
    found = sorted(Path.home().glob(f".pyenv/versions/{version}.*/bin/python"))
    return str(found[-1]) if found else which(f"python{version}") or ""


def environment(version: str) -> str:
    """The interpreter of the environment for this version, made when needed; empty: not on this machine."""
    python = PLACE / version / "bin" / "python"
    ready = PLACE / version / ".ready"
    if ready.exists() and ready.read_text() == " ".join(NEEDS):
        return str(python)
    base = interpreter(version)
    if not base:
        return ""
    uv = str(Path(sys.executable).with_name("uv"))
    pins = str(ROOT / "requirements" / "dev.txt")
    subprocess.run([uv, "venv", "-q", "--clear", "--python", base, PLACE / version], check=True)
    subprocess.run([uv, "pip", "install", "-q", "--python", python, "-c", pins, *NEEDS], check=True)
    ready.write_text(" ".join(NEEDS))
    return str(python)


def main() -> int:
    """Print the list."""
    found = []
    for version in WANTED:
        try:
            python = environment(version)
        except (OSError, subprocess.CalledProcessError) as error:
            python = ""
            print(f"tools/kernels.py: {error}", file=sys.stderr)
        if python:
            found.append(python)
        else:
            told = f"!!! SKIPPED: the session engine is not tested on Python {version}: none could be set up"
            print(told, file=sys.stderr)
    print(":".join(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
