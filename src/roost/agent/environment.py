"""The package environment of this host's kernels: what is installed, and what a checkpoint lacks here.

Reads the names of ``*.dist-info`` folders only; imports nothing of the environment. Packages that came
from a local path cannot be named for another host and are left out.
"""

import asyncio
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from roost.ports.kernels import VariableReport

INSTALL_S = 300.0
OWN = "roost"
_NAME = re.compile(r"[-_.]+")


def normal(name: str) -> str:
    """The comparable form of a package name."""
    return _NAME.sub("-", name).lower()


class Environment:
    """One virtual environment; an empty path has no packages and installs none."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._known: tuple[tuple[int, ...], tuple[str, ...]] = ((), ())

    def pinned(self) -> tuple[str, ...]:
        """``name==version`` of every installed package, sorted. One ``stat`` while nothing changed."""
        if not self._path:
            return ()
        folders = sorted(Path(self._path).glob("lib/python*/site-packages"))
        stamp = tuple(folder.stat().st_mtime_ns for folder in folders)
        if stamp != self._known[0]:
            found = {pin for folder in folders for pin in _pins(folder)}
            self._known = (stamp, tuple(sorted(found)))
        return self._known[1]

    def lacking(self, wanted: Sequence[str]) -> tuple[str, ...]:
        """Those of ``wanted`` that are missing here or have another version."""
        if not self._path:
            return ()
        have = set(self.pinned())
        return tuple(pin for pin in wanted if pin not in have)

    async def install(self, pins: Sequence[str]) -> tuple[VariableReport, ...]:
        """Install them; what could not be had is told by name."""
        argv = [sys.executable, "-m", "uv", "pip", "install", "--no-deps", "--quiet"]
        argv += ["--python", f"{self._path}/bin/python", *pins]
        process = await asyncio.create_subprocess_exec(
            *argv,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.PIPE,
        )
        try:
            async with asyncio.timeout(INSTALL_S):
                _, complaint = await process.communicate()
        except TimeoutError:
            complaint = b"it took too long"
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
        left = set(self.lacking(pins))
        reason = " ".join(complaint.decode(errors="replace").split())[:300]
        return tuple(
            VariableReport(
                name=f"package {pin}",
                outcome="refused" if pin in left else "rebuilt",
                reason=f"not installed: {reason}" if pin in left else "installed again",
            )
            for pin in pins
        )


def _pins(site_packages: Path) -> list[str]:
    pins = []
    for folder in site_packages.glob("*.dist-info"):
        name, _, version = folder.name.removesuffix(".dist-info").partition("-")
        if normal(name) != OWN and version and not (folder / "direct_url.json").exists():
            pins.append(f"{normal(name)}=={version}")
    return pins
