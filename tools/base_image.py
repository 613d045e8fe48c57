"""A small base image with Python for where no registry is reached: Debian's packages, imported.

    python tools/base_image.py [--tag roost-base:bookworm] [--web]

Makes it only when the engine does not have it. ``--web`` builds examples/web on it as well. Needs root, a
running engine, mmdebstrap and a Debian mirror; says in one line what is missing and ends with 2.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

TAG = "roost-base:bookworm"
WEB_TAG = "roost-web:example"
SUITE = "bookworm"
PACKAGES = "python3-minimal,libpython3-stdlib"
LIMIT_S = 600
_WEB = Path(__file__).parents[1] / "examples" / "web"
_LEFT_OUT = ("/usr/share/doc/*", "/usr/share/man/*", "/usr/share/locale/*")


def missing() -> str:
    """Why no image can be made here; empty when one can."""
    if shutil.which("docker") is None:
        return "the docker command is not installed"
    if _run(["docker", "info"]).returncode != 0:
        return "no Docker engine answers"
    return ""


def have(tag: str) -> bool:
    """Whether the engine has the image."""
    return _run(["docker", "image", "inspect", tag]).returncode == 0


def make_base(tag: str = TAG) -> str:
    """The tag of the base image, made if it was not there. ``RuntimeError`` says why it cannot be."""
    if have(tag):
        return tag
    if shutil.which("mmdebstrap") is None:
        raise RuntimeError("mmdebstrap is not installed")
    with tempfile.TemporaryDirectory(prefix="rt-", dir="/tmp") as folder:
        tar = Path(folder) / "base.tar"
        leave_out = [f"--dpkgopt=path-exclude={path}" for path in _LEFT_OUT]
        chosen = ["--variant=essential", f"--include={PACKAGES}", *leave_out]
        made = _run(["mmdebstrap", *chosen, SUITE, str(tar)])
        if made.returncode != 0:
            raise RuntimeError(f"mmdebstrap failed: {made.stderr[-400:]}")
        done = _run(["docker", "import", "--change", 'CMD ["python3"]', str(tar), tag])
        if done.returncode != 0:
            raise RuntimeError(f"docker import failed: {done.stderr[-400:]}")
    return tag


def make_web(base: str = TAG, tag: str = WEB_TAG) -> str:
    """The image of examples/web on ``base``; built each time, which takes a second."""
    build = ["docker", "build", "--quiet", "--build-arg", f"BASE={base}", "--tag", tag, str(_WEB)]
    # The classic builder: the newer one is a plugin that not every installation has.
    done = _run(build, env={**os.environ, "DOCKER_BUILDKIT": "0"})
    if done.returncode != 0:
        raise RuntimeError(f"docker build failed: {done.stderr[-400:]}")
    return tag


def _run(argv: list[str], env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        argv, capture_output=True, text=True, timeout=LIMIT_S, check=False, env=env
    )


def main() -> int:
    """Entry point; returns the exit code."""
    parser = argparse.ArgumentParser(description="Make the base image.")
    parser.add_argument("--tag", default=TAG)
    parser.add_argument("--web", action="store_true")
    chosen = parser.parse_args()
    try:
        why = missing()
        if why:
            raise RuntimeError(why)
        print(make_base(chosen.tag))
        if chosen.web:
            print(make_web(chosen.tag))
    except RuntimeError as error:
        print(f"no image: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
