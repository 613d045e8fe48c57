"""Placement: how long a decision takes on 10,000 hosts, how well containers of recorded traces are packed.

    OMP_NUM_THREADS=1 .venv/bin/python -m bench.placement --data DIR [--only timing,openb,dlrm] [--json FILE]

``timing``: three resources, GPUs and slots, with every constraint on: groups, labels, spread by region, zone,
pool and host, containers that stay apart, survival odds, boot time. Median, 99th percentile and fastest, as
CPU time of the process, which holds on a machine that others use too.

``openb``, ``dlrm``: containers come and go as recorded; a host is opened when nothing fits and closed when it
is empty. Host-hours over those of everything alive being packed anew by first-fit-decreasing at every moment
(``dlrm``: every four hours), and host-hours saved per move against the same rule without consolidation. The
reference is written here, apart from the code it judges.
"""

import argparse
import gzip
import json
import math
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from roost.placement.consolidate import Worth, consolidate
from roost.placement.hosts import Hosts
from roost.placement.model import Affinity, Ask, By, Choice, HostFacts, Spread, Weights
from roost.placement.place import place, place_many

HOSTS = 10_000
SHAPES = 32


# --- how long -------------------------------------------------------------------------------------------


def fleet(draw: np.random.Generator) -> Hosts:
    """Ten thousand hosts of five regions and forty pools; a third has GPUs, some boot, some may go."""
    return Hosts(
        HostFacts(
            id=f"host-{n}",
            vcpus=16.0,
            memory_mib=65_536.0,
            gpus=4 * (n % 3 == 0),
            slots=16,
            provider="aws",
            region=f"region-{n % 5}",
            zone=f"zone-{n % 15}",
            pool=f"pool-{n % 40}",
            group="default",
            labels=("ssd",) if n % 2 else (),
            survival=float(draw.choice((1.0, 0.99, 0.95, 0.9))),
            ready_in_s=float(draw.choice((0.0, 0.0, 0.0, 60.0))),
        )
        for n in range(HOSTS)
    )


def shapes(draw: np.random.Generator) -> list[Ask]:
    """Thirty-two services, every constraint on all of them."""
    return [
        Ask(
            service=f"service-{n}",
            vcpus=float(draw.choice((0.5, 1.0, 2.0, 4.0))),
            memory_mib=float(draw.choice((512.0, 1024.0, 4096.0))),
            gpus=(0.0, 0.0, 0.5, 1.0)[n % 4],
            wanted=2_000,
            spread=(
                Spread(by=By.REGION, share=0.5),
                Spread(by=By.ZONE, share=0.4),
                Spread(by=By.POOL, share=0.34),
                Spread(by=By.HOST, most=3),
            ),
            affinity=(Affinity(service=f"service-{(n + 1) % SHAPES}", apart=True),),
            groups=("default",),
            labels=("ssd",) if n % 2 else (),
            min_survival=0.9,
            max_wait_s=300.0,
        )
        for n in range(SHAPES)
    ]


def timing() -> dict[str, dict[str, float]]:
    """Milliseconds of CPU: one container, and a thousand at once, on hosts that carry 20,000 already."""
    draw = np.random.default_rng(17)
    hosts, asks = fleet(draw), shapes(draw)
    place_many([asks[n % SHAPES] for n in range(20_000)], hosts)
    picks = iter(draw.integers(SHAPES, size=200_000).tolist())

    def one() -> list[Choice]:
        return [place(asks[next(picks)], hosts)]

    def many() -> list[Choice]:
        return place_many([asks[next(picks)] for _ in range(1_000)], hosts)

    return {
        "one_container_ms": _timed(one, 1_000, hosts),
        "thousand_containers_ms": _timed(many, 100, hosts),
    }


def _timed(decide: Callable[[], list[Choice]], times: int, hosts: Hosts) -> dict[str, float]:
    took = []
    for _ in range(times):
        began = time.process_time()
        made = decide()
        took.append(1e3 * (time.process_time() - began))
        assert all(choice.host for choice in made), made[0].why
        for choice in made:
            hosts.take(choice.container)
    took.sort()
    return {
        "median": round(statistics.median(took), 3),
        "p99": round(took[int(0.99 * len(took))], 3),
        "fastest": round(took[0], 3),
    }


# --- how well -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Event:
    """A container comes or goes."""

    at_s: float
    comes: bool
    container: int
    need: tuple[float, ...]


@dataclass(frozen=True)
class Trace:
    """Containers over time and the one kind of host they run on."""

    events: list[Event]
    host: tuple[float, ...]
    """vCPUs, MiB, GPUs, then the others."""
    others: tuple[str, ...] = ()
    step_s: float = 0.0
    """How often the reference packs anew; 0 = at every event."""


def _rows(path: Path) -> Iterator[dict[str, str]]:
    with gzip.open(path, "rt") as lines:
        names = next(lines).strip().split(",")
        for line in lines:
            yield dict(zip(names, line.strip().split(","), strict=True))


def _events(spans: list[tuple[float, float, tuple[float, ...]]]) -> list[Event]:
    events = []
    for n, (begins, ends, need) in enumerate(spans):
        if ends > begins:
            events += [Event(begins, True, n, need), Event(ends, False, n, need)]
    return sorted(events, key=lambda e: (e.at_s, e.comes, e.container))


def openb(data: Path) -> Trace:
    """Containers of a GPU cluster on hosts of 96 cores, 384 GiB and 8 GPUs; a GPU share is a sum."""
    spans: list[tuple[float, float, tuple[float, ...]]] = []
    for row in _rows(data / "openb_pods.csv.gz"):
        gpus = float(row["num_gpu"]) * float(row["gpu_milli"]) / 1_000
        need = (float(row["cpu_milli"]) / 1_000, float(row["memory_mib"]), gpus)
        spans.append((float(row["creation_time"]), float(row["deletion_time"]), need))
    return Trace(_events(spans), (96.0, 393_216.0, 8.0))


def dlrm(data: Path) -> Trace:
    """Large inference containers on hosts of 192 cores, 960 GiB, 8 GPUs, 4,000 GB of disk, 100 of network."""
    spans: list[tuple[float, float, tuple[float, ...]]] = []
    columns = ("cpu_request", "memory_request", "gpu_request", "disk_request", "rdma_request")
    rows = list(_rows(data / "dlrm_instances.csv.gz"))
    last = max(float(row["deletion_time"] or 0.0) for row in rows)
    for row in rows:
        cpu, memory, gpus, disk, network = (float(row[c] or 0.0) for c in columns)
        need = (cpu, 1_024 * memory, gpus, disk, network)
        spans.append(
            (float(row["creation_time"] or 0.0), float(row["deletion_time"] or last), need)
        )
    host = (192.0, 1_024 * 960.0, 8.0, 4_000.0, 100.0)
    return Trace(_events(spans), host, ("disk", "network"), step_s=4 * 3_600.0)


def first_fit_decreasing(needs: list[tuple[float, ...]], host: tuple[float, ...]) -> int:
    """Hosts in use when all of these are packed anew, by the largest share of a host first."""
    size = np.array(host)
    wants = np.array(needs).reshape(-1, len(host))
    free = np.tile(size, (len(wants), 1))
    used = 0
    for want in wants[np.argsort(-(wants / size).max(axis=1), kind="stable")]:
        fits = (free[: used + 1] >= want - 1e-9).all(axis=1)
        row = int(fits.argmax())
        free[row] -= want
        used = max(used, row + 1)
    return used


def reference(trace: Trace) -> float:
    """Host-hours when everything alive is packed anew at every moment."""
    alive: dict[int, tuple[float, ...]] = {}
    hours, used, last, packed_s = 0.0, 0, 0.0, -math.inf
    for at, event in enumerate(trace.events):
        hours += used * (event.at_s - last) / 3_600
        last = event.at_s
        if event.comes:
            alive[event.container] = event.need
        else:
            del alive[event.container]
        more = at + 1 < len(trace.events) and trace.events[at + 1].at_s == event.at_s
        if not more and event.at_s - packed_s >= trace.step_s:
            used, packed_s = first_fit_decreasing(list(alive.values()), trace.host), event.at_s
    return hours


class Replay:
    """Containers of a trace placed by ``place`` and gathered by ``consolidate``."""

    def __init__(self, trace: Trace, *, devices: bool) -> None:
        self.trace, self.devices = trace, devices
        self.hosts = Hosts(extra=trace.others if devices else ("gpu share", *trace.others))
        self.hours, self.last_s, self.opened, self.moves = 0.0, 0.0, 0, 0

    def run(self, every_s: float, worth: Worth, weights: Weights) -> "Replay":
        """All events; ``every_s`` 0 = without consolidation."""
        next_s = every_s or math.inf
        for event in self.trace.events:
            while next_s <= event.at_s:
                if self.hosts.index:
                    self._pass(next_s)
                    self._gather(next_s, worth, weights)
                next_s += every_s
            self._pass(event.at_s)
            if event.comes:
                self._come(event, weights)
            else:
                self._go(event)
        return self

    def _pass(self, at_s: float) -> None:
        self.hours += len(self.hosts.index) * (at_s - self.last_s) / 3_600
        self.last_s = at_s

    def _come(self, event: Event, weights: Weights) -> None:
        vcpus, memory, gpus, *others = event.need
        share = () if self.devices else (("gpu share", gpus),)
        ask = Ask(
            service="all",
            vcpus=vcpus,
            memory_mib=memory,
            gpus=gpus if self.devices else 0.0,
            extra=(*share, *zip(self.trace.others, others, strict=True)),
        )
        name = str(event.container)
        choice = place(ask, self.hosts, container=name, now_s=event.at_s, weights=weights)
        if choice.host is None:
            self.hosts.put(ask, self._open(event.at_s), name, since_s=event.at_s)

    def _open(self, at_s: float) -> int:
        self.opened += 1
        vcpus, memory, gpus, *others = self.trace.host
        share = () if self.devices else (("gpu share", gpus),)
        return self.hosts.add(
            HostFacts(
                id=f"host-{self.opened}",
                vcpus=vcpus,
                memory_mib=memory,
                gpus=int(gpus) if self.devices else 0,
                extra=(*share, *zip(self.trace.others, others, strict=True)),
                launched_s=at_s,
                price_usd_hour=1.0,
            )
        )

    def _go(self, event: Event) -> None:
        placed = self.hosts.take(str(event.container))
        if not self.hosts.on[placed.host]:
            self.hosts.remove(self.hosts.facts[placed.host].id)

    def _gather(self, at_s: float, worth: Worth, weights: Weights) -> None:
        for host in consolidate(self.hosts, at_s, worth=worth, weights=weights).emptied:
            for move in host.moves:
                old = self.hosts.take(move.container)
                row = self.hosts.row(move.target)
                self.hosts.put(old.ask, row, move.container, since_s=old.since_s)
                self.moves += 1
            self.hosts.remove(host.host)


def packing(trace: Trace, every_s: float, worth: Worth, weights: Weights) -> dict[str, object]:
    """The figures of one trace."""
    packed = reference(trace)
    found: dict[str, object] = {"repacked_host_hours": round(packed, 1)}
    for name, devices in (("gpu_share_summed", False), ("gpu_share_of_one_device", True)):
        alone = Replay(trace, devices=devices).run(0.0, worth, weights)
        gathered = Replay(trace, devices=devices).run(every_s, worth, weights)
        containers = len(trace.events) / 2
        found[name] = {
            "without_consolidation_over": round(alone.hours / packed - 1, 4),
            "over": round(gathered.hours / packed - 1, 4),
            "moves": gathered.moves,
            "moves_per_container": round(gathered.moves / containers, 3),
            "host_hours_saved_per_move": round(
                (alone.hours - gathered.hours) / max(1, gathered.moves), 2
            ),
            "hosts_opened": gathered.opened,
        }
    return found


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path)
    parser.add_argument("--only", default="timing,openb,dlrm")
    parser.add_argument("--every-s", type=float, default=600.0)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    found: dict[str, object] = {}
    for name in args.only.split(","):
        if name == "timing":
            found[name] = timing()
        elif args.data is None:
            parser.error(f"{name} needs --data: the folder with {name}_*.csv.gz")
        else:
            trace = {"openb": openb, "dlrm": dlrm}[name](args.data)
            found[name] = packing(trace, args.every_s, Worth(), Weights())
        print(name, json.dumps(found[name], indent=2), flush=True)
    if args.json:
        args.json.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
