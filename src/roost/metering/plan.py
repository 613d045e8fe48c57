"""From instance rows to lines, a bill and a reconciliation. Pure: rows and ``now_s`` in, values out.

Charging follows the clouds' rule: a run is charged per second begun, from its start. When the price
changes in mid-run (one span ends where the next begins) each second has the price of its beginning.
Nothing is charged between spans: a stopped instance costs nothing.
"""

import math
from collections.abc import Iterable, Iterator, Sequence

from roost.fleet.model import Instance, Span
from roost.kit.money import charge_nano_usd
from roost.metering.model import Bill, Difference, Line, Total
from roost.ports.provider import LedgerLine

EDGE_S = 1e-6
"""Slack for floating-point seconds: an end this close after a whole second begins no new one."""


def lines_of(instance: Instance, now_s: float) -> list[Line]:
    """The lines of one instance up to ``now_s``, in order of time; spans without a second give none."""
    lines = []
    for span, start_s, seconds in _whole_seconds(instance.spans, now_s):
        if seconds > 0:
            lines.append(_line(instance, span, start_s, seconds))
    return lines


def bill(instances: Iterable[Instance], now_s: float, session_id: str | None = None) -> Bill:
    """The bill of ``instances`` (of one session's only, if given), ordered by start and id."""
    lines = [
        line
        for instance in instances
        if session_id is None or instance.owner == session_id
        for line in lines_of(instance, now_s)
    ]
    lines.sort(key=lambda line: (line.started_s, line.instance_id))
    return Bill(
        now_s=now_s,
        total=_sum(lines),
        per_instance=_sums((line.instance_id, line) for line in lines),
        per_session=_sums((line.session_id, line) for line in lines),
        per_role=_sums((line.role, line) for line in lines),
        per_purchase_option=_sums((str(line.purchase_option), line) for line in lines),
        lines=tuple(lines),
    )


def per_second(line: Line) -> Iterator[tuple[float, int]]:
    """(UTC second, nano-dollars) for each second of ``line``; they sum to its charge exactly."""
    charged = 0
    for second in range(line.seconds):
        until = charge_nano_usd(line.price_usd_hour, second + 1)
        yield line.started_s + second, until - charged
        charged = until


def reconcile(
    instances: Iterable[Instance], ledger: Sequence[LedgerLine], now_s: float
) -> list[Difference]:
    """Where our rows and the provider's ledger disagree, ordered by instance; empty when they agree.

    What ended a moment ago may differ until the controller has seen the end: ask again later.
    """
    metered = {i.id: lines_of(i, now_s) for i in instances if i.spans}
    charged: dict[str, list[Span]] = {}
    for entry in ledger:
        charged.setdefault(entry.host_id, []).append(
            Span(
                started_s=entry.started_s,
                ended_s=entry.ended_s,
                price_usd_hour=entry.price_usd_hour,
                on_demand_usd_hour=entry.price_usd_hour,
            )
        )
    differences = []
    for host_id in sorted(metered.keys() | charged.keys()):
        ours = [(x.seconds, x.charge_nano_usd) for x in metered.get(host_id, ())]
        theirs = [
            (seconds, charge_nano_usd(span.price_usd_hour, seconds))
            for span, _, seconds in _whole_seconds(charged.get(host_id, ()), now_s)
        ]
        difference = _difference(host_id, ours, theirs)
        if difference is not None:
            differences.append(difference)
    return differences


def _difference(
    host_id: str, ours: Sequence[tuple[int, int]], theirs: Sequence[tuple[int, int]]
) -> Difference | None:
    metered_s, metered = sum(s for s, _ in ours), sum(c for _, c in ours)
    ledger_s, charged = sum(s for s, _ in theirs), sum(c for _, c in theirs)
    if (metered_s, metered) == (ledger_s, charged):
        return None
    if not ours:
        reason = "not metered"
    elif not theirs:
        reason = "not in the ledger"
    else:
        reason = "seconds differ" if metered_s != ledger_s else "price differs"
    return Difference(
        instance_id=host_id,
        metered_nano_usd=metered,
        ledger_nano_usd=charged,
        metered_s=metered_s,
        ledger_s=ledger_s,
        reason=reason,
    )


def _whole_seconds(spans: Iterable[Span], now_s: float) -> Iterator[tuple[Span, float, int]]:
    """(span, start of its first charged second, charged seconds) for each span, in order of time."""
    run_s = previous_s = None
    for span in sorted(spans, key=lambda s: s.started_s):
        end_s = max(span.ended_s if span.ended_s is not None else now_s, span.started_s)
        if run_s is None or previous_s is None or span.started_s - previous_s > EDGE_S:
            run_s = span.started_s
        first = _ceil(span.started_s - run_s)
        yield span, run_s + first, _ceil(end_s - run_s) - first
        previous_s = end_s


def _ceil(seconds: float) -> int:
    return math.ceil(seconds - EDGE_S)


def _line(instance: Instance, span: Span, start_s: float, seconds: int) -> Line:
    offer = instance.offer
    return Line(
        instance_id=instance.id,
        session_id=instance.owner,
        role=instance.role,
        provider=offer.provider,
        offer_key=offer.key,
        purchase_option=offer.purchase_option,
        started_s=start_s,
        seconds=seconds,
        price_usd_hour=span.price_usd_hour,
        on_demand_usd_hour=span.on_demand_usd_hour,
        charge_nano_usd=charge_nano_usd(span.price_usd_hour, seconds),
        on_demand_nano_usd=charge_nano_usd(span.on_demand_usd_hour, seconds),
        open=span.ended_s is None,
    )


def _sum(lines: Sequence[Line]) -> Total:
    return Total(
        seconds=sum(line.seconds for line in lines),
        charge_nano_usd=sum(line.charge_nano_usd for line in lines),
        on_demand_nano_usd=sum(line.on_demand_nano_usd for line in lines),
    )


def _sums(named: Iterable[tuple[str, Line]]) -> dict[str, Total]:
    groups: dict[str, list[Line]] = {}
    for name, line in named:
        groups.setdefault(name, []).append(line)
    return {name: _sum(lines) for name, lines in sorted(groups.items())}
