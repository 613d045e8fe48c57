"""How many servers keep the share of late requests small: Erlang C with measured variability.

Rates are per second, times in seconds. Never looks at time series: rates and their odds come in.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import gammaln, pdtr

from roost.scaling.arrivals import Floats

Ints = NDArray[np.int64]


def waits(servers: Floats, offered: Floats) -> Floats:
    """Odds that a request has to wait (Erlang C), for ``offered`` = rate x service time, in servers.

    Broadcasts; 1 where the load is not below the servers. The Erlang-B part is a Poisson point probability
    over a Poisson tail: the same as the usual recurrence, for all numbers of servers at once.
    """
    c, a = np.broadcast_arrays(np.asarray(servers, float), np.asarray(offered, float))
    out = np.ones(c.shape)
    fits = (a < c) & (a > 0)
    out[a <= 0] = 0.0
    c, a = c[fits], a[fits]
    blocked = np.exp(c * np.log(a) - a - gammaln(c + 1.0)) / pdtr(c, a)
    out[fits] = blocked / (1.0 - (a / c) * (1.0 - blocked))
    return out


def late_share(
    servers: Floats, rate: Floats, service_s: Floats, spread: Floats, slack_s: Floats
) -> Floats:
    """Share of requests that wait longer than ``slack_s`` (Allen-Cunneen in the exponent of M/M/c).

    Broadcasts. ``spread`` = (dispersion of arrivals + squared variation of service times) / 2.
    """
    offered = rate * service_s
    relief = np.maximum(servers - offered, 0.0) * (slack_s / (service_s * spread))
    return waits(servers, offered) * np.exp(-np.minimum(relief, 60.0))


@dataclass(frozen=True, slots=True)
class Loads:
    """What turns rates into servers, one entry per service."""

    service_s: Floats
    spread: Floats
    """(dispersion of arrivals + squared coefficient of variation of service times) / 2."""
    slack_s: Floats
    """The waiting time one may spend: what the bound leaves beside a request of twice the mean."""
    concurrency: Floats

    @classmethod
    def of(
        cls, service_s: Floats, cv: Floats, dispersion: Floats, bound_s: Floats, concurrency: Floats
    ) -> "Loads":
        """From what is measured and asked for."""
        return cls(
            service_s=service_s,
            spread=np.maximum((dispersion + cv * cv) / 2.0, 0.05),
            slack_s=np.maximum(0.5 * service_s, bound_s - 2.0 * service_s),
            concurrency=concurrency,
        )


_WAYS = 8
"""Each look at the search interval cuts it into so many parts."""


def fewest(rates: Floats, odds: Floats, loads: Loads, risk: Floats, most: int = 100_000) -> Ints:
    """Fewest replicas with a request-weighted late share of at most ``risk`` over uncertain rates.

    ``rates`` [service, level] per second, ``odds`` [level]; all services at once; ``risk`` [service].
    """
    weight = rates * odds
    total = weight.sum(1)
    top = rates.max(1) * loads.service_s
    reach = top + 6.0 * np.sqrt(top * loads.spread) + 8.0 * loads.spread + 4.0
    high = np.where(total > 0, np.minimum(np.ceil(reach / loads.concurrency), most), 0.0)
    low = np.zeros(len(high))
    part = np.arange(1, _WAYS)
    rows = np.arange(len(high))
    share = weight / np.where(total > 0, total, 1.0)[:, None]
    while (high - low).max(initial=0.0) > 1.0:
        tried = low[:, None] + np.floor((high - low)[:, None] * part / _WAYS)
        late = late_share(
            (tried * loads.concurrency[:, None])[:, :, None],
            rates[:, None, :],
            loads.service_s[:, None, None],
            loads.spread[:, None, None],
            loads.slack_s[:, None, None],
        )
        good = (late * share[:, None, :]).sum(2) <= risk[:, None]
        first = np.where(good.any(1), good.argmax(1), _WAYS - 1)
        edges = np.concatenate([low[:, None], tried, high[:, None]], 1)
        low, high = edges[rows, first], edges[rows, first + 1]
    return high.astype(np.int64)
