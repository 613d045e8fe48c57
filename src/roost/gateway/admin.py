"""What people and Prometheus see of a gateway: /metrics, /health and /state, from the sum of all workers.

Served by the supervisor on a port of its own, so that it answers whatever the workers do. Read only.
"""

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import msgspec

from roost.kit.exposition import CONTENT_TYPE, Page, line
from roost.proxy.answers import Answer
from roost.proxy.counters import BOUNDS_S, BackendState, Count, Sheet, Summary
from roost.proxy.heads import Request
from roost.proxy.plan import Stream
from roost.proxy.pool import BackendConnection, Pool

CLASSES = ("none", "1xx", "2xx", "3xx", "4xx", "5xx")
_STATES = ("ready", "draining", "gone", "down", "ejected", "half-open")
_WORST = {state: rank for rank, state in enumerate(_STATES)}

Facts = Callable[[], dict[str, Any]]
"""What only the supervisor knows: workers, versions, certificates, the last reload."""


class AdminRouter:
    """Implements ``plan.Router``: answers everything itself."""

    def __init__(self, summary: Summary, facts: Facts) -> None:
        self._summary = summary
        self._facts = facts

    def decide(self, request: Request) -> Answer:
        """See ``Router``."""
        if request.method not in (b"GET", b"HEAD"):
            return Answer(405, "only GET", fields=(("Allow", "GET, HEAD"),))
        if request.path == b"/metrics":
            text = metrics(self._summary, self._facts())
            return Answer(200, body=text.encode(), content_type=CONTENT_TYPE)
        if request.path == b"/state":
            return Answer(200, body=msgspec.json.encode(state(self._summary, self._facts())))
        if request.path == b"/health":
            facts = self._facts()
            well = facts["running"] > 0 and not facts["stopping"]
            said = {"status": "ok" if well else "down", "workers": facts["running"]}
            return Answer(200 if well else 503, body=msgspec.json.encode(said))
        return Answer(404, "/metrics, /health, /state")

    async def find(self, request: Request, pool: Pool) -> BackendConnection | Stream | Answer:
        """Never asked: every decision is made at once."""
        raise NotImplementedError


# --- state -----------------------------------------------------------------------------------------


def backends(sheets: Iterable[Sheet]) -> list[BackendState]:
    """Every backend once: the worst state any worker sees, the sum of what is under way."""
    found: dict[tuple[str, str], BackendState] = {}
    seen: dict[tuple[str, str], int] = {}
    for sheet in sheets:
        for one in sheet.backends:
            key = (one.service, one.backend)
            known = found.get(key)
            seen[key] = seen.get(key, 0) + (one.ewma_s > 0)
            if known is None:
                found[key] = msgspec.structs.replace(one)
                continue
            known.active += one.active
            for name in ("failures", "refused", "reset", "timed_out", "ejections"):
                setattr(known, name, getattr(known, name) + getattr(one, name))
            known.ewma_s += one.ewma_s
            if _WORST.get(one.state, 0) > _WORST.get(known.state, 0):
                known.state = one.state
    for key, one in found.items():
        one.ewma_s /= seen[key] or 1
    return list(found.values())


def state(summary: Summary, facts: dict[str, Any]) -> dict[str, Any]:
    """Everything, for programs (``roost gateway top``)."""
    total = summary.total()
    return {
        **facts,
        "totals": total.totals,
        "gauges": total.gauges,
        "refused": total.refused,
        "routes": [_route(name, counts) for name, counts in _by_route(total.counts).items()],
        "backends": _backends(summary, total.counts),
    }


def _by_route(counts: Iterable[Count]) -> dict[str, list[Count]]:
    routes: dict[str, list[Count]] = {}
    for count in counts:
        routes.setdefault(count.route, []).append(count)
    return routes


def _summed(counts: Iterable[Count]) -> Count:
    total = Count()
    for count in counts:
        total.add(count)
    return total


def _figures(total: Count) -> dict[str, Any]:
    return {
        "requests": total.requests,
        "statuses": dict(zip(CLASSES, total.statuses, strict=True)),
        "cut": total.cut,
        "client_gone": total.gone,
        "retries": total.retries,
        "hedges": total.hedges,
        "bytes_in": total.bytes_in,
        "bytes_out": total.bytes_out,
        "seconds": total.seconds,
        "p50_s": quantile(total.buckets, 0.5),
        "p99_s": quantile(total.buckets, 0.99),
        "buckets": total.buckets,
    }


def _route(name: str, counts: list[Count]) -> dict[str, Any]:
    return {"route": name, **_figures(_summed(counts))}


def _backends(summary: Summary, counts: list[Count]) -> list[dict[str, Any]]:
    by_backend: dict[tuple[str, str], list[Count]] = {}
    for count in counts:
        if count.backend:
            by_backend.setdefault((count.service, count.backend), []).append(count)
    return [
        {
            "service": one.service,
            "backend": one.backend,
            "state": one.state,
            "in_flight": one.active,
            "latency_s": one.ewma_s,
            "failures": one.failures,
            "refused": one.refused,
            "reset": one.reset,
            "timed_out": one.timed_out,
            "ejections": one.ejections,
            **_figures(_summed(by_backend.get((one.service, one.backend), ()))),
        }
        for one in backends(summary.sheets())
    ]


def quantile(buckets: list[int], share: float) -> float:
    """From a histogram: the upper bound of the bucket it falls into, by straight line inside it."""
    left = share * sum(buckets)
    low = 0.0
    for bound, count in zip((*BOUNDS_S, BOUNDS_S[-1]), buckets, strict=True):
        if count and left <= count:
            return low + (bound - low) * left / count
        left -= count
        low = bound
    return 0.0


# --- metrics ---------------------------------------------------------------------------------------


def metrics(summary: Summary, facts: dict[str, Any]) -> str:
    """The page Prometheus scrapes."""
    page = Page()
    total = summary.total()
    _traffic(page, total.counts)
    _histograms(page, _by_route(total.counts))
    _backend_families(page, backends(summary.sheets()))
    _totals(page, total)
    for name, kind, text in (
        ("running", "gauge", "Worker processes."),
        ("worker_restarts", "counter", "Workers that ended and were replaced."),
        ("version", "gauge", "Version of the configuration in use."),
        ("reloads", "counter", "Configurations read again."),
        ("reload_failures", "counter", "Configurations that were refused."),
        ("config_ok", "gauge", "Whether the file as last read is in use."),
    ):
        family = f"roost_gateway_{name}" + ("_total" if kind == "counter" else "")
        page.family(family, kind, text, [line(family, float(facts[name]))])
    return page.text()


def _labels(count: Count) -> dict[str, str]:
    return {"route": count.route, "service": count.service, "backend": count.backend}


def _traffic(page: Page, counts: list[Count]) -> None:
    requests = "roost_gateway_requests_total"
    page.family(
        requests,
        "counter",
        "Finished requests by first digit of the status.",
        (
            line(requests, value, **_labels(count), code=code)
            for count in counts
            for code, value in zip(CLASSES, count.statuses, strict=True)
            if value
        ),
    )
    errors = "roost_gateway_errors_total"
    page.family(
        errors,
        "counter",
        "Answers that broke off and clients that left first.",
        (
            line(errors, value, **_labels(count), kind=kind)
            for count in counts
            for kind, value in (("cut", count.cut), ("client_gone", count.gone))
            if value
        ),
    )
    for name, text in (
        ("retries", "Requests sent to another backend."),
        ("hedges", "Second copies of slow requests."),
        ("bytes_in", "Bytes of requests' bodies."),
        ("bytes_out", "Bytes of answers."),
    ):
        family = f"roost_gateway_{name}_total"
        page.family(
            family,
            "counter",
            text,
            (line(family, getattr(count, name), **_labels(count)) for count in counts),
        )


def _histograms(page: Page, routes: dict[str, list[Count]]) -> None:
    name = "roost_gateway_request_seconds"

    def samples() -> Iterator[str]:
        for route, counts in routes.items():
            total = _summed(counts)
            passed = 0
            for bound, value in zip((*map(str, BOUNDS_S), "+Inf"), total.buckets, strict=True):
                passed += value
                yield line(f"{name}_bucket", passed, route=route, le=bound)
            yield line(f"{name}_sum", total.seconds, route=route)
            yield line(f"{name}_count", passed, route=route)

    page.family(name, "histogram", "From a request to the end of its answer.", samples())


def _backend_families(page: Page, found: list[BackendState]) -> None:
    for name, kind, text in (
        ("active", "gauge", "Requests and tunnels under way."),
        ("ewma_s", "gauge", "Mean latency of good answers, seconds."),
        ("ejections", "gauge", "Times in a row it was taken out; 0 when it is well again."),
    ):
        family = f"roost_gateway_backend_{name}" + ("_total" if kind == "counter" else "")
        page.family(
            family,
            kind,
            text,
            (
                line(family, getattr(one, name), service=one.service, backend=one.backend)
                for one in found
            ),
        )
    family = "roost_gateway_backend_failures_total"
    page.family(
        family,
        "counter",
        "Requests that failed there: no connection, a broken one, no answer in time, a bad answer.",
        (
            line(family, value, service=one.service, backend=one.backend, kind=kind)
            for one in found
            for kind, value in _failures(one).items()
        ),
    )
    family = "roost_gateway_backend_state"
    page.family(
        family,
        "gauge",
        "1 for the state it is in (the worst any worker sees).",
        (
            line(family, state == one.state, service=one.service, backend=one.backend, state=state)
            for one in found
            for state in _STATES
        ),
    )


def _failures(one: BackendState) -> dict[str, int]:
    known = {"refused": one.refused, "reset": one.reset, "timeout": one.timed_out}
    return {**known, "answer": one.failures - sum(known.values())}


def _totals(page: Page, total: Sheet) -> None:
    refused = "roost_gateway_refused_total"
    page.family(
        refused,
        "counter",
        "Requests answered here, by reason.",
        (line(refused, value, reason=reason) for reason, value in total.refused.items()),
    )
    for name, value in total.totals.items():
        family = f"roost_gateway_{name}_total"
        if name != "requests":  # those finished are counted by route
            page.family(family, "counter", f"{name.replace('_', ' ')}.", [line(family, value)])
    for name, value in total.gauges.items():
        family = f"roost_gateway_{name}"
        page.family(family, "gauge", f"{name.replace('_', ' ')} now.", [line(family, value)])
