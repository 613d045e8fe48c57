"""Starts a proxy with one listener per lane, each before its own origins: Roost, nginx, HAProxy or Envoy."""

# ruff: noqa: E501 - tables of raw bytes and configurations, a line each

import contextlib
import datetime
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from tests.conformance.gateway.wire import Lane, Origin

KINDS = {"plain": 12, "short": 4, "two": 1, "dead": 1, "tls": 1}
"""How many lanes of each kind; ``short`` has times of 1 s and bodies of 1 MiB."""
START_S = 20.0


def free_ports(count: int) -> list[int]:
    """Ports below the range of outgoing connections, so that none is taken before the proxy binds."""
    found: list[socket.socket] = []
    start = 10_000 + os.getpid() * 37 % 15_000
    with contextlib.ExitStack() as held:
        for port in range(start, start + 5_000):
            with contextlib.suppress(OSError):
                found.append(held.enter_context(socket.create_server(("127.0.0.1", port))))
            if len(found) == count:
                break
        return [sock.getsockname()[1] for sock in found]


def certificate(folder: Path, name: str = "a.test") -> tuple[Path, Path]:
    """A self-signed certificate and its key (PEM files); ``both.pem`` has the two."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = datetime.datetime.now(datetime.UTC)
    cert = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=30))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
        .sign(key, hashes.SHA256())
    )
    pem = cert.public_bytes(serialization.Encoding.PEM)
    secret = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    paths = folder / "cert.pem", folder / "key.pem"
    paths[0].write_bytes(pem)
    paths[1].write_bytes(secret)
    (folder / "both.pem").write_bytes(pem + secret)
    return paths


def roost(lanes: list[Lane], folder: Path) -> list[str]:
    parts = ["workers = 1", "drain_s = 1.0"]
    for at, lane in enumerate(lanes):
        short = lane.kind == "short"
        parts += ["[[listeners]]", f'name = "l{at}"', f'address = "127.0.0.1:{lane.port}"']
        if short:
            parts.append("limits = { head_s = 1.0, idle_s = 1.0 }")
        if lane.kind == "tls":
            parts.append('tls = { certificates = [{ certificate = "cert.pem", key = "key.pem" }] }')
        backends = ", ".join(f'"127.0.0.1:{origin.port}"' for origin in lane.origins)
        parts += ["[[services]]", f'name = "s{at}"', f"backends = [{backends}]"]
        parts += ["[[routes]]", f'name = "r{at}"', f'listeners = ["l{at}"]', f'service = "s{at}"']
        if short:
            parts.append("timeouts = { response_s = 1.0, upload_s = 1.0 }")
            parts.append(f"limits = {{ body_bytes = {1 << 20} }}")
    (folder / "routes.toml").write_text("\n".join(parts) + "\n")
    program = Path(sys.executable).with_name("roost")
    return [str(program), "gateway", "--config", str(folder / "routes.toml")]


def nginx_user() -> str:
    """nginx started by root drops to a user that cannot read our directories."""
    return "user root; " if os.geteuid() == 0 else ""


def nginx(lanes: list[Lane], folder: Path, *, usual: bool = False) -> list[str]:
    """``usual``: as most run it (buffers, failing backends left out); else streaming everything."""
    parts = [
        f"{nginx_user()}worker_processes 1; daemon off; pid {folder}/pid; error_log {folder}/error.log;",
        "events { worker_connections 4096; }",
        "http { access_log off; proxy_http_version 1.1; default_type text/plain;",
        "proxy_next_upstream error timeout http_500 http_502 http_503;"
        if usual
        else "proxy_buffering off; proxy_request_buffering off;",
        "client_max_body_size 0; keepalive_requests 100000;",
        "map $http_upgrade $conn { default upgrade; '' ''; }",
        *(f"{kind}_temp_path {folder}/{kind};" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")),
    ]  # fmt: skip
    for at, lane in enumerate(lanes):
        servers = " ".join(
            f"server 127.0.0.1:{o.port} {'fail_timeout=1s' if usual else 'max_fails=0'};"
            for o in lane.origins
        )
        parts.append(f"upstream u{at} {{ {servers} keepalive 32; }}")
        tls = f"ssl_certificate {folder}/cert.pem; ssl_certificate_key {folder}/key.pem; ssl_protocols TLSv1.2 TLSv1.3;"
        short = (
            "client_header_timeout 1s; client_body_timeout 1s; keepalive_timeout 1s;"
            "proxy_read_timeout 1s; client_max_body_size 1m;"
        )
        parts.append(
            f"server {{ listen 127.0.0.1:{lane.port} {'ssl' if lane.kind == 'tls' else ''};"
            f"{tls if lane.kind == 'tls' else ''} {short if lane.kind == 'short' else ''}"
            f"location / {{ proxy_pass http://u{at}; proxy_set_header Host $http_host;"
            "proxy_set_header Upgrade $http_upgrade; proxy_set_header Connection $conn;"
            "proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for;"
            "proxy_set_header X-Forwarded-Proto $scheme; } }"
        )
    (folder / "nginx.conf").write_text("\n".join([*parts, "}"]))
    return ["nginx", "-p", str(folder), "-c", str(folder / "nginx.conf")]


def haproxy(lanes: list[Lane], folder: Path, *, usual: bool = False) -> list[str]:
    """``usual``: with checks, failing backends left out."""
    check = " check inter 1s observe layer7 error-limit 5 on-error mark-down" if usual else ""
    parts = [
        "global", "  maxconn 4000", "  nbthread 1", "  ssl-default-bind-options ssl-min-ver TLSv1.2",
        "defaults", "  mode http", "  timeout connect 2s", "  timeout client 60s",
        "  timeout server 60s", "  timeout tunnel 60s", "  timeout http-request 15s",
        "  option forwardfor", "  retry-on conn-failure empty-response", "  option redispatch", "  retries 2",
    ]  # fmt: skip
    for at, lane in enumerate(lanes):
        tls = f" ssl crt {folder}/both.pem alpn h2,http/1.1" if lane.kind == "tls" else ""
        parts += [
            f"frontend f{at}",
            f"  bind 127.0.0.1:{lane.port}{tls}",
            f"  default_backend b{at}",
        ]
        parts.append(f"  http-request set-header X-Forwarded-Proto {'https' if tls else 'http'}")
        if lane.kind == "short":
            parts += [
                "  timeout http-request 1s",
                "  timeout http-keep-alive 1s",
                "  timeout client 1s",
            ]
            parts.append("  http-request deny status 413 if { req.body_size gt 1048576 }")
        parts.append(f"backend b{at}")
        if lane.kind == "short":
            parts.append("  timeout server 1s")
        parts += ["  http-request disable-l7-retry if METH_POST"]
        parts += [f"  server s{n} 127.0.0.1:{o.port}{check}" for n, o in enumerate(lane.origins)]
    (folder / "haproxy.cfg").write_text("\n".join(parts) + "\n")
    return ["haproxy", "-W", "-db", "-f", str(folder / "haproxy.cfg")]


def envoy_program() -> str | None:
    """``ENVOY``, the one on the path, or the one of a virtual environment below /var/tmp."""
    found = os.environ.get("ENVOY") or shutil.which("envoy")
    if found:
        return found
    wheels = sorted(Path("/var/tmp").glob("envoy*/**/envoy/_bin/envoy"))
    return str(wheels[0]) if wheels else None


def envoy(lanes: list[Lane], folder: Path, *, usual: bool = False) -> list[str]:
    """``usual``: failing backends left out, never retried."""
    outlier = (
        "outlier_detection: {base_ejection_time: 1s, interval: 1s, max_ejection_percent: 50},"
        if usual
        else ""
    )
    other = (
        "retry_host_predicate: [{name: p, typed_config: {'@type': type.googleapis.com/"
        "envoy.extensions.retry.host.previous_hosts.v3.PreviousHostsPredicate}}],"
        " host_selection_retry_max_attempts: 5,"
        if usual
        else ""
    )
    listeners, clusters = [], []
    for at, lane in enumerate(lanes):
        short = lane.kind == "short"
        tls = (
            "\n      transport_socket: {name: tls, typed_config: {'@type': type.googleapis.com/"
            "envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext, common_tls_context: "
            f"{{alpn_protocols: [h2, http/1.1], tls_certificates: [{{certificate_chain: {{filename: {folder}/cert.pem}}, "
            f"private_key: {{filename: {folder}/key.pem}}}}]}}}}}}"
            if lane.kind == "tls"
            else ""
        )
        limits = "request_headers_timeout: 1s, stream_idle_timeout: 1s," if short else ""
        buffer = (
            "{name: envoy.filters.http.buffer, typed_config: {'@type': type.googleapis.com/"
            "envoy.extensions.filters.http.buffer.v3.Buffer, max_request_bytes: 1048576}},"
            if short
            else ""
        )
        listeners.append(
            f"""  - name: l{at}
    address: {{socket_address: {{address: 127.0.0.1, port_value: {lane.port}}}}}
    filter_chains:
    - filters:
      - name: hcm
        typed_config: {{'@type': type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager,
          stat_prefix: s, use_remote_address: true, upgrade_configs: [{{upgrade_type: websocket}}], {limits}
          common_http_protocol_options: {{idle_timeout: {1 if short else 75}s, headers_with_underscores_action: REJECT_REQUEST}},
          http_protocol_options: {{accept_http_10: true, default_host_for_http_10: a, enable_trailers: true}},
          route_config: {{virtual_hosts: [{{name: v, domains: ['*'], routes: [{{match: {{prefix: /}}, route: {{cluster: c{at}, timeout: {1 if short else 60}s,
            retry_policy: {{{other} retry_on: 'connect-failure,refused-stream,reset-before-request', num_retries: 2}}}}}}]}}]}},
          http_filters: [{buffer} {{name: envoy.filters.http.router, typed_config: {{'@type': type.googleapis.com/envoy.extensions.filters.http.router.v3.Router}}}}]}}{tls}"""
        )
        ends = ", ".join(
            f"{{endpoint: {{address: {{socket_address: {{address: 127.0.0.1, port_value: {o.port}}}}}}}}}"
            for o in lane.origins
        )
        clusters.append(
            f"  - {{name: c{at}, connect_timeout: 2s, type: STATIC, {outlier} load_assignment: {{cluster_name: c{at}, endpoints: [{{lb_endpoints: [{ends}]}}]}},"
            " typed_extension_protocol_options: {envoy.extensions.upstreams.http.v3.HttpProtocolOptions: {'@type': type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions,"
            " explicit_http_config: {http_protocol_options: {enable_trailers: true}}}}}"
        )
    text = "static_resources:\n  listeners:\n" + "\n".join(listeners)
    text += "\n  clusters:\n" + "\n".join(clusters) + "\n"
    (folder / "envoy.yaml").write_text(text)
    return [
        envoy_program() or "envoy", "-c", str(folder / "envoy.yaml"), "--concurrency", "1",
        "--disable-hot-restart", "--use-dynamic-base-id", "-l", "error",
    ]  # fmt: skip


PROXIES = {"roost": roost, "nginx": nginx, "haproxy": haproxy, "envoy": envoy}


def missing(name: str) -> bool:
    """Whether this proxy is not installed here."""
    if name == "roost":
        return False
    return (envoy_program() if name == "envoy" else shutil.which(name)) is None


class Running:
    """A proxy that was started; ``stop`` ends it and what it started."""

    def __init__(self, command: list[str], folder: Path) -> None:
        self.log = folder / "log"
        with self.log.open("wb") as log:
            self._process = subprocess.Popen(
                command, stdout=log, stderr=log, stdin=subprocess.DEVNULL, start_new_session=True
            )

    def pids(self) -> list[int]:
        """The process and all below it."""
        with contextlib.suppress(psutil.Error):
            process = psutil.Process(self._process.pid)
            return [process.pid, *(child.pid for child in process.children(recursive=True))]
        return []

    def wait(self, ports: list[int]) -> None:
        """Until it accepts on all ports."""
        deadline_s = time.monotonic() + START_S
        for port in ports:
            while True:
                try:
                    socket.create_connection(("127.0.0.1", port)).close()
                    break
                except OSError as error:
                    if self._process.poll() is not None or time.monotonic() > deadline_s:
                        raise RuntimeError(
                            f"the proxy does not listen: {self.log.read_text()[-2000:]}"
                        ) from error
                    time.sleep(0.05)

    def stop(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGTERM)
        try:
            self._process.wait(5)
        except subprocess.TimeoutExpired:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait(5)


async def lanes() -> list[Lane]:
    """All lanes with origins that listen, before a proxy is there."""
    found: list[Lane] = []
    ports = free_ports(sum(KINDS.values()))
    for kind, count in KINDS.items():
        for _ in range(count):
            origins = [Origin() for _ in range(2 if kind == "two" else 1)]
            for origin in origins:
                await origin.start()
                if kind == "dead":
                    await origin.stop()
            found.append(Lane(kind, ports.pop(), origins))
    return found


@contextlib.contextmanager
def started(name: str, found: list[Lane], folder: Path) -> Iterator[Running]:
    certificate(folder)
    running = Running(PROXIES[name](found, folder), folder)
    for lane in found:
        lane.pids = running.pids
    try:
        yield running
    finally:
        running.stop()
