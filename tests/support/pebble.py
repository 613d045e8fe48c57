"""Pebble, the ACME server for tests (Debian package ``pebble``), on loopback: nothing leaves this machine."""

import json
import os
import shutil
import socket
import ssl
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from tests.support.certificates import Authority

MISSING = "pebble and pebble-challtestsrv are not installed (apt-get install pebble)"


def installed() -> bool:
    return all(shutil.which(name) for name in ("pebble", "pebble-challtestsrv"))


def free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [sock.getsockname()[1] for sock in sockets]
    for sock in sockets:
        sock.close()
    return ports


@dataclass(frozen=True)
class Pebble:
    """A running server. It fetches challenges from ``http_port`` of 127.0.0.1, whatever the name."""

    directory: str
    management: str
    ca: Path
    """The authority of the server's own certificate."""
    http_port: int

    def root(self) -> bytes:
        """The authority that signs what it issues (PEM); new at every start."""
        return _fetch(f"{self.management}/roots/0", self.ca)


def _fetch(url: str, ca: Path) -> bytes:
    with urllib.request.urlopen(
        url, context=ssl.create_default_context(cafile=str(ca)), timeout=5
    ) as answer:
        body: bytes = answer.read()
        return body


@contextmanager
def pebble(directory: Path, *, valid_s: int = 90 * 86400, **environment: str) -> Iterator[Pebble]:
    """Start it; ``environment``: its own knobs, such as ``PEBBLE_WFE_NONCEREJECT``."""
    authority = Authority(directory, "pebble")
    pair = authority.issue("localhost", "127.0.0.1")
    api, management, http, tls, dns, control = free_ports(6)
    config = {
        "listenAddress": f"127.0.0.1:{api}",
        "managementListenAddress": f"127.0.0.1:{management}",
        "certificate": str(pair.certificate),
        "privateKey": str(pair.key),
        "httpPort": http,
        "tlsPort": tls,
        "certificateValidityPeriod": valid_s,
    }
    file = directory / "pebble.json"
    file.write_text(json.dumps({"pebble": config}))
    names = ["pebble-challtestsrv", "-defaultIPv4", "127.0.0.1", "-defaultIPv6", ""]
    names += ["-http01", "", "-https01", "", "-tlsalpn01", ""]
    names += ["-dns01", f"127.0.0.1:{dns}", "-management", f"127.0.0.1:{control}"]
    server = ["pebble", "-config", str(file), "-dnsserver", f"127.0.0.1:{dns}"]
    with (directory / "pebble.log").open("wb") as log:
        running = [
            subprocess.Popen(names, stdout=log, stderr=log),
            subprocess.Popen(
                server,
                stdout=log,
                stderr=log,
                env={**os.environ, "PEBBLE_VA_NOSLEEP": "1", **environment},
            ),
        ]
        base = f"https://127.0.0.1:{api}/dir"
        try:
            deadline = time.monotonic() + 10
            while True:
                with suppress(urllib.error.URLError, OSError):
                    _fetch(base, authority.file)
                    break
                if time.monotonic() > deadline:
                    raise RuntimeError((directory / "pebble.log").read_text())
                time.sleep(0.05)
            yield Pebble(base, f"https://127.0.0.1:{management}", authority.file, http)
        finally:
            for process in running:
                process.terminate()
                process.wait(10)
