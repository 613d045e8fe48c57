"""Settings and the state directory: the only reader of environment variables.

The state directory is the whole of an installation: delete it and Roost was never there. It never
holds anything of another version: a newer layout is refused untouched.
"""

import contextlib
import ipaddress
import json
import os
import secrets
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from roost.ports.errors import Invalid

LAYOUT_VERSION = 1
LONGEST_PATH = 70
"""Unix socket addresses hold 108 bytes; the longest name below the state directory needs the rest."""


@dataclass(frozen=True, slots=True)
class Settings:
    """What a person may choose; each field has an environment variable ``ROOST_<FIELD>``."""

    state_dir: Path
    """Where everything lives (``ROOST_STATE_DIR``)."""
    host: str = "127.0.0.1"
    """Address of the public listener (``ROOST_HOST``)."""
    port: int = 8860
    """Port of the public listener; 0 picks a free one (``ROOST_PORT``)."""
    edges: int = 1
    """Edge worker processes (``ROOST_EDGES``)."""
    image: str = "data-science"
    """Package environment of hosts (``ROOST_IMAGE``)."""
    scale_period_s: float = 10.0
    """Seconds between two scaling decisions (``ROOST_SCALE_PERIOD_S``)."""
    remote_write: str = ""
    """Where the metrics are sent to, by Prometheus' remote write (``ROOST_REMOTE_WRITE``, a URL)."""

    @property
    def market(self) -> Path:
        """Where the history of the market lies."""
        return StateDir(self.state_dir).market


def settings(state_dir: str | None = None) -> Settings:
    """Settings from the environment; ``state_dir`` overrides."""
    env = os.environ
    base = state_dir or env.get("ROOST_STATE_DIR")
    if not base:
        home = env.get("XDG_STATE_HOME") or str(Path.home() / ".local" / "state")
        base = str(Path(home) / "roost")
    return Settings(
        state_dir=Path(base).absolute(),
        host=_address(env.get("ROOST_HOST", "127.0.0.1")),
        port=_number("ROOST_PORT", 8860),
        edges=max(1, _number("ROOST_EDGES", 1)),
        image=env.get("ROOST_IMAGE", "data-science"),
        scale_period_s=max(1, _number("ROOST_SCALE_PERIOD_S", 10)),
        remote_write=_url("ROOST_REMOTE_WRITE"),
    )


def _url(name: str) -> str:
    text = os.environ.get(name, "")
    if text and not text.startswith(("http://", "https://")):
        raise Invalid(
            f"{name}={text} is no URL", hint=f"{name}=http://prometheus:9090/api/v1/write"
        )
    return text


def _address(text: str) -> str:
    given = "127.0.0.1" if text == "localhost" else text
    try:
        return str(ipaddress.ip_address(given))
    except ValueError as error:
        raise Invalid(f"ROOST_HOST={text} is no address", hint="ROOST_HOST=127.0.0.1") from error


def _number(name: str, default: int) -> int:
    text = os.environ.get(name, "")
    if not text:
        return default
    if not text.isdigit():
        raise Invalid(f"{name}={text} is not a number", hint=f"for example {name}={default}")
    return int(text)


class StateDir:
    """Paths and secrets of one installation."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.run = root / "run"
        self.desired = root / "run" / "desired"
        self.logs = root / "logs"
        self.servers = root / "servers"
        self.instances = root / "instances"
        self.blobs = root / "blobs"
        self.database = root / "control.sqlite"
        self.routes = root / "routes.json"
        self.market = root / "market"
        """The history of the market."""
        self.played = root / "market-play.json"
        """The recorded market that local instances live in."""

    def prepare(self) -> "StateDir":
        """Make it (0700) or check it. ``Invalid`` when it cannot be used, with what to do."""
        if len(str(self.root)) > LONGEST_PATH:
            raise Invalid(
                f"the state directory's path is longer than {LONGEST_PATH} characters: {self.root}",
                hint="set ROOST_STATE_DIR to a shorter path (unix sockets allow 108 bytes)",
            )
        try:
            for folder in (self.root, self.run, self.desired, self.logs, self.servers):
                folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            for folder in (self.instances, self.blobs):
                folder.mkdir(mode=0o700, exist_ok=True)
            self._check_version()
            self._secret("owner.token")
            self._secret("data.secret")
            self._secret("join.secret")
        except OSError as error:
            raise Invalid(
                f"the state directory {self.root} cannot be used: {error.strerror}",
                hint="check its owner and free space, or set ROOST_STATE_DIR to another folder",
            ) from error
        return self

    def _check_version(self) -> None:
        path = self.root / "VERSION"
        if not path.exists():
            write_atomic(path, f"{LAYOUT_VERSION}\n".encode())
            return
        text = path.read_text().strip()
        if text != str(LAYOUT_VERSION):
            raise Invalid(
                f"the state directory {self.root} has layout {text}, this Roost knows {LAYOUT_VERSION}",
                hint="use the Roost that made it, or set ROOST_STATE_DIR to another folder",
            )
        probe = self.run / ".writable"
        probe.write_bytes(b"")
        probe.unlink()

    def _secret(self, name: str) -> None:
        path = self.root / name
        if path.exists():
            return
        with contextlib.suppress(FileExistsError):
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with os.fdopen(descriptor, "w") as file:
                file.write(secrets.token_urlsafe(32))

    def read_secret(self, name: str) -> str:
        """The content of ``owner.token``, ``data.secret`` or ``join.secret``."""
        try:
            return (self.root / name).read_text().strip()
        except OSError as error:
            raise Invalid(f"{self.root / name} cannot be read", hint="run `roost up`") from error

    def endpoints(self) -> dict[str, Any]:
        """Addresses of the running installation; empty when it never ran."""
        try:
            found: dict[str, Any] = json.loads((self.root / "endpoints.json").read_text())
        except (OSError, ValueError):
            return {}
        return found

    def write_endpoints(self, endpoints: dict[str, Any]) -> None:
        """Record the addresses."""
        write_atomic(self.root / "endpoints.json", json.dumps(endpoints, indent=1).encode())


def write_atomic(path: Path, content: bytes) -> None:
    """Replace a file in one step: a reader sees the old or the new content, never a part."""
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    part.write_bytes(content)
    part.replace(path)
