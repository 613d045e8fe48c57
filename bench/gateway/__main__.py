"""``python -m bench.gateway``: CPU µs a request of Roost, nginx, HAProxy and Envoy (those installed).

One worker each, the same nginx backends behind all, rounds interleaved; the CPU is that of all processes
of the proxy (/proc/<pid>/stat), so a busy machine disturbs it less than rates. Needs ``wrk`` and ``nginx``.
"""

import argparse
import contextlib
import json
import shutil
import statistics
import sys
import tempfile
import time
from pathlib import Path

from bench.gateway import load, scenarios, stage
from bench.gateway.load import Target
from tests.conformance.gateway import peers

BACKENDS = 2


def origin_nginx(folder: Path, ports: list[int], echo: int) -> list[str]:
    """nginx as the backend of all proxies; WebSockets go to ``echo`` directly from the proxies."""
    (folder / "www").mkdir(parents=True)
    (folder / "www" / "64k").write_bytes(b"x" * (64 << 10))
    (folder / "www" / "1m").write_bytes(b"x" * (1 << 20))
    listens = " ".join(f"listen 127.0.0.1:{port} backlog=1024;" for port in ports)
    temporary = " ".join(
        f"{kind}_temp_path {folder}/{kind};"
        for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    (folder / "nginx.conf").write_text(
        f"{peers.nginx_user()}worker_processes 1; daemon off; pid {folder}/pid;"
        f"error_log {folder}/error.log;"
        "events { worker_connections 4096; }"
        f"http {{ access_log off; {temporary} keepalive_requests 10000000; keepalive_timeout 600s;"
        f"sendfile on; server {{ {listens} root {folder}/www;"
        "location = / { default_type text/plain; return 200 ok; }"
        f"location /ws {{ proxy_pass http://127.0.0.1:{echo}; proxy_http_version 1.1;"
        "proxy_set_header Upgrade websocket; proxy_set_header Connection upgrade; } } }"
    )
    return ["nginx", "-p", str(folder), "-c", str(folder / "nginx.conf")]


def measure(names: list[str], cases: list[str], rounds: int, seconds: float) -> dict[str, object]:
    """CPU µs a request: case, proxy, a figure a round."""
    figures: dict[str, dict[str, list[float]]] = {
        case: {name: [] for name in names} for case in cases
    }
    memory: dict[str, float] = {}
    with contextlib.ExitStack() as stack:
        root = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="gwb-")))
        ports = peers.free_ports(BACKENDS + 1 + 2 * len(names))
        backends = [ports.pop() for _ in range(BACKENDS)]
        echo = ports.pop()
        stack.enter_context(
            stage.process([sys.executable, "-m", "bench.gateway.backend", str(echo)])
        )
        command = origin_nginx(root / "origin", backends, echo)
        origin = peers.Running(command, root / "origin")
        stack.callback(origin.stop)
        origin.wait([*backends, echo])
        running, targets = {}, {}
        for name in names:
            plain, tls = ports.pop(), ports.pop()
            lanes = [stage.lane("plain", plain, backends), stage.lane("tls", tls, backends)]
            running[name] = stack.enter_context(stage.proxy(name, lanes, root / name))
            targets[name] = Target(plain, tls, root / name)
        for number in range(rounds):
            for case in cases:
                for name in names if number % 2 == 0 else reversed(names):
                    pids = running[name].pids()
                    before_s = stage.cpu_s(pids)
                    count = load.CASES[case](targets[name], seconds)
                    time.sleep(0.05)
                    used_s = stage.cpu_s(pids) - before_s
                    figures[case][name].append(used_s / max(count, 1) * 1e6)
                    memory[name] = stage.rss_mib(pids)
    return {"cpu_us": figures, "rss_mib": memory}


def table(result: dict[str, object]) -> str:
    figures: dict[str, dict[str, list[float]]] = result["cpu_us"]  # type: ignore[assignment]
    names = list(next(iter(figures.values())))
    others = [name for name in names if name != "roost"]
    lines = ["CPU µs a request: min / median, and the ratio of the minima"]
    head = f"{'':22}" + "".join(f"{name:>18}" for name in names)
    lines.append(head + "".join(f"{'x ' + name:>11}" for name in others if "roost" in names))
    for case, row in figures.items():
        cells = "".join(
            f"{f'{min(row[n]):.1f} / {statistics.median(row[n]):.1f}':>18}" for n in names
        )
        ratios = ""
        if "roost" in names:
            ratios = "".join(f"{min(row['roost']) / max(min(row[o]), 1e-9):>11.2f}" for o in others)
        lines.append(f"{case:22}{cells}{ratios}")
    memory: dict[str, float] = result["rss_mib"]  # type: ignore[assignment]
    lines.append(f"{'RSS MiB':22}" + "".join(f"{memory[name]:>18.0f}" for name in names))
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.gateway", description=__doc__)
    parser.add_argument("--proxies", default="roost,nginx,haproxy,envoy")
    parser.add_argument("--only", default="", help="cases or scenarios whose name contains this")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=2.0, help="of each case in each round")
    parser.add_argument("--scenarios", action="store_true", help="failures instead of CPU")
    parser.add_argument("--json", type=Path, help="write all figures there")
    options = parser.parse_args()
    for program in ("wrk", "nginx"):
        if shutil.which(program) is None:
            print(f"{program} is not installed: this benchmark needs it")
            return 2
    names = stage.installed(options.proxies.split(","))
    known = scenarios.SCENARIOS if options.scenarios else load.CASES
    if not any(options.only in name for name in known):
        print(f"nothing is called like {options.only!r}; there are: {', '.join(known)}")
        return 2
    if options.scenarios:
        result = scenarios.run(names, options.only)
        print(scenarios.table(result))
    else:
        cases = [case for case in load.CASES if options.only in case]
        result = measure(names, cases, options.rounds, options.seconds)
        print(table(result))
    if options.json:
        options.json.write_text(json.dumps(result, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
