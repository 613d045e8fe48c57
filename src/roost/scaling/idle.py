"""How long a service that may sleep stays up without a request: learned from the gaps there were.

Short enough to save hosts, long enough that starts from zero stay within their share of the late requests.
Never wakes anything: a request at zero does that at once.
"""

import numpy as np

from roost.scaling.arrivals import DAY, Floats, Minutes

UNKNOWN_S = 600.0
"""Without enough history."""
CLASSES = (8, 32)
"""Requests in the hour before a gap: few, some, many. What follows many comes back sooner."""
LIMITS_S: Floats = np.array(
    [30, 60, 120, 180, 300, 450, 600, 900, 1200, 1800, 2700, 3600, 7200, 14400], float
)
_LEAST = 30
"""Busy minutes before gaps say anything."""
_PRICES: Floats = np.geomspace(50.0, 1500.0, 30)
"""Host-seconds one late request is worth, tried from cheap to dear; staying up for more is not worth it."""
_FADE = 0.85
"""Weight of a gap that is one day older."""


def limits_s(y: Minutes, service_s: float, boot_s: float, share: float) -> tuple[float, ...]:
    """Idle seconds after which to sleep, per class of the hour before.

    Of all courses whose starts from zero stay within ``share`` of the requests, the one that costs the fewest
    host-seconds; every start costs ``boot_s`` on top.
    """
    busy = np.flatnonzero(y.values > 0)
    if len(busy) < _LEAST:
        return (UNKNOWN_S,) * (len(CLASSES) + 1)
    gap = np.diff(busy) * 60.0 - service_s
    after = busy[:-1] + 1
    whole = gap > 60.0
    if y.gaps is not None:
        whole &= y.gaps[busy[1:]] == y.gaps[after]
    gap, after = gap[whole], after[whole]
    before = y.sums[after] - y.sums[np.maximum(0, after - 60)]
    group = np.digitize(before, CLASSES)
    weight = _FADE ** ((y.size - after) / DAY)
    cost = np.zeros((len(CLASSES) + 1, len(LIMITS_S)))
    starts = np.zeros_like(cost)
    for one in range(len(cost)):
        mine = gap[group == one][:, None]
        sleeps = mine > LIMITS_S
        weigh = weight[group == one][:, None]
        cost[one] = (np.where(sleeps, LIMITS_S + boot_s, mine) * weigh).sum(0)
        starts[one] = (sleeps * weigh).sum(0)
    allowed = share * float((y.values[busy] * _FADE ** ((y.size - busy) / DAY)).sum())
    rows = np.arange(len(cost))
    best = rows
    for price in _PRICES:
        best = (cost + price * starts).argmin(1)
        if starts[rows, best].sum() <= allowed:
            break
    return tuple(float(limit) for limit in LIMITS_S[best])


def limit_s(limits: tuple[float, ...], last_hour: float) -> float:
    """The limit that holds after so many requests in the last hour."""
    return limits[int(np.digitize(last_hour, CLASSES))] if limits else UNKNOWN_S


def since_s(recent: Floats, recent_s: float) -> float:
    """Seconds since the last request; what is missing counts as a request, for it may have been one."""
    seen = np.flatnonzero(~(recent == 0))
    return (len(recent) - 1 - int(seen[-1])) * recent_s if len(seen) else len(recent) * recent_s
