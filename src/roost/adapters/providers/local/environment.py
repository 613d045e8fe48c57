"""The package environment of an instance: an immutable layer per image, and a small layer of its own.

An image is built once per state directory, in ``<state>/images/<digest>``: ``uv venv``, ``uv pip install``
from the pinned lines (from uv's cache by hard links when it has everything), and the kernel runtime of
this very installation. An instance gets a virtual environment of its own that sees the image's packages
behind its own: what a user installs is the instance's alone and goes with it. Making or deleting one
touches a few dozen files, where a copy or a tree of hard links costs 15,000 (seconds of disk, measured).
It never puts any other part of Roost into a user's environment.
"""

import contextlib
import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec

import roost
from roost.ports.values import Image

Say = Callable[[str], None]

PASSED = frozenset(
    (
        *("PATH", "SHELL", "USER", "LOGNAME", "LANG", "LANGUAGE", "TZ", "TERM", "LD_LIBRARY_PATH"),
        *("SSL_CERT_FILE", "SSL_CERT_DIR", "NIX_SSL_CERT_FILE"),
        *("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"),
        *("http_proxy", "https_proxy", "no_proxy", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY"),
    )
)
"""What an instance takes over from the shell that started Roost: no credential, no path of a person."""
_INSTALL_LIMIT_S = 900
_LAYERS_KEPT = 4


class BuildError(Exception):
    """The environment could not be made; the message is the end of the tool's output."""


def clean_environ() -> dict[str, str]:
    """The part of this process's environment that an instance may see."""
    return {
        name: value
        for name, value in os.environ.items()
        if name in PASSED or name.startswith("LC_")
    }


class Builder:
    """Makes environments of one image below one state directory."""

    def __init__(self, images: Path, image: Image, *, python: str, uv: str, cache: str) -> None:
        self._images = images
        self._image = image
        self._python = python
        self._uv = uv
        self._cache = cache
        self._runtime = Path(roost.__file__).parent
        self._name = _digest(image, python, self._runtime)
        images.mkdir(mode=0o700, parents=True, exist_ok=True)

    def hold(self) -> int:
        """Keep the image's layer from being pruned for as long as the descriptor is open."""
        descriptor = _open_lock(self._images / f"{self._name}.use")
        fcntl.flock(descriptor, fcntl.LOCK_SH)
        return descriptor

    def make(self, folder: Path, say: Say) -> None:
        """Make or renew ``folder``, a virtual environment over the image. Safe to repeat after a kill.

        ``BuildError`` when a tool fails; ``OSError`` for the disk.
        """
        layer = self._images / self._name
        with _locked(self._images / f"{self._name}.build"):
            if not layer.exists():
                self._build(layer, say)
                self._prune()
        os.utime(layer)
        if not folder.exists():
            part = folder.with_name(folder.name + ".part")
            shutil.rmtree(part, ignore_errors=True)
            _copy_frame(layer, part)
            part.rename(folder)
        # Written at each boot: the installation may have been upgraded meanwhile.
        behind = _packages(layer)
        (_packages(folder) / "image.pth").write_text(
            f"import site; site.addsitedir({str(behind)!r})\n"
        )

    def _build(self, layer: Path, say: Say) -> None:
        part = layer.with_name(layer.name + ".part")
        shutil.rmtree(part, ignore_errors=True)
        say(f"creating the environment {self._image.name} (Python {self._image.python})")
        self._run(["venv", "--relocatable", "--python", self._interpreter(), str(part)])
        lines = part / "requirements.txt"
        lines.write_text("\n".join(self._image.requirements) + "\n")
        command = ["pip", "install", "--python", str(part / "bin" / "python")]
        command += ["--link-mode", "hardlink", "-r", str(lines)]
        try:
            say("installing from the cache")
            self._run([*command, "--offline"])
        except BuildError:
            say(f"downloading {len(self._image.requirements)} packages")
            self._run(command)
        for path in _runtime_files(self._runtime):
            target = _packages(part) / "roost" / path.relative_to(self._runtime)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target)
        part.rename(layer)

    def _prune(self) -> None:
        """Keep the layers used last and those in use: an upgrade of Roost leaves one behind each time."""
        others = [
            path
            for path in self._images.iterdir()
            if path.is_dir() and path.name != self._name and path.suffix != ".part"
        ]
        others.sort(key=lambda path: path.stat().st_mtime, reverse=True)
        for path in others[_LAYERS_KEPT - 1 :]:
            descriptor = _open_lock(path.with_name(f"{path.name}.use"))
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(path, ignore_errors=True)
            except BlockingIOError:
                pass  # an instance runs on it
            finally:
                os.close(descriptor)

    def _interpreter(self) -> str:
        """The interpreter of this installation when it has the image's version, else any that uv finds."""
        own = f"{sys.version_info.major}.{sys.version_info.minor}"
        return self._python if self._image.python in ("", own) else self._image.python

    def _run(self, arguments: list[str]) -> None:
        environ = {**os.environ, "UV_CACHE_DIR": self._cache, "UV_NO_CONFIG": "1"}
        environ.pop("VIRTUAL_ENV", None)
        _execute([self._uv, "--quiet", "--no-progress", *arguments], environ)


def uv_cache() -> str:
    """uv's cache folder as this user has it: shared by all instances, outside of all."""
    if os.environ.get("UV_CACHE_DIR"):
        return os.environ["UV_CACHE_DIR"]
    base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return str(Path(base) / "uv")


def _execute(argv: list[str], environ: dict[str, str]) -> None:
    try:
        done = subprocess.run(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=environ,
            timeout=_INSTALL_LIMIT_S,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise BuildError(f"{Path(argv[0]).name} took longer than {_INSTALL_LIMIT_S} s") from error
    if done.returncode != 0:
        said = done.stdout.decode(errors="replace").strip()
        raise BuildError(said[-800:] or f"{Path(argv[0]).name} ended with {done.returncode}")


def _digest(image: Image, python: str, runtime: Path) -> str:
    """Names a layer: what is installed, for which interpreter, with which kernel runtime."""
    digest = hashlib.blake2b(digest_size=10)
    digest.update(msgspec.msgpack.encode((image.python, image.requirements, python)))
    for path in _runtime_files(runtime):
        digest.update(str(path.relative_to(runtime)).encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()


def _runtime_files(runtime: Path) -> list[Path]:
    """``roost/__init__.py`` and ``roost/runtime``: all of Roost that enters a user's environment."""
    inner = runtime / "runtime"
    found = [
        path for path in inner.rglob("*") if path.is_file() and "__pycache__" not in path.parts
    ]
    return sorted([runtime / "__init__.py", *found])


def _packages(env: Path) -> Path:
    """The site-packages folder of a virtual environment."""
    return next((env / "lib").glob("python*")) / "site-packages"


def _copy_frame(layer: Path, env: Path) -> None:
    """A virtual environment like ``layer`` without its packages: configuration, scripts, shared data."""
    env.mkdir(mode=0o700)
    shutil.copyfile(layer / "pyvenv.cfg", env / "pyvenv.cfg")
    for name in ("bin", "share", "etc"):
        if (layer / name).exists():
            shutil.copytree(layer / name, env / name, symlinks=True)
    version = _packages(layer).parent.name
    (env / "lib" / version / "site-packages").mkdir(parents=True)
    (env / "lib64").symlink_to("lib")


def _open_lock(path: Path) -> int:
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Held by one process at a time; released by the kernel when it dies."""
    descriptor = _open_lock(path)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
