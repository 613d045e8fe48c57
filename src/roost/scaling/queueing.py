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

    def only(self, rows: Ints) -> "Loads":
        """Those of ``rows``."""
        return Loads(
            self.service_s[rows], self.spread[rows], self.slack_s[rows], self.concurrency[rows]
        )


_GRID = 40
"""Numbers of replicas that are tried at once; around the best one all are tried that lie between."""


def cheapest(
    rates: Floats, odds: Floats, loads: Loads, price: Floats, means: Floats, most: int = 100_000
) -> Ints:
    """Replicas with the lowest sum of late requests and cost over uncertain rates.

    ``rates`` [service, level] per second, ``odds`` [level]; all services at once. ``means`` [service] is each
    one's usual rate: late requests count as a share of it, replicas as a multiple of what it keeps busy, and
    ``price`` [service] is what that multiple is worth. So late requests are spent where they save most: not
    the same share at every moment, but the same gain per replica.
    """
    top = rates.max(1) * loads.service_s
    reach = top + 6.0 * np.sqrt(top * loads.spread) + 8.0 * loads.spread + 4.0
    high = np.where(top > 0, np.minimum(np.ceil(reach / loads.concurrency), most), 0.0)
    usual = np.maximum(means, 1e-9)
    busy = usual * loads.service_s / loads.concurrency
    weight = odds * rates / usual[:, None]
    low = np.zeros(len(high))
    rows = np.arange(len(high))
    while True:
        step = np.maximum(1.0, np.ceil((high - low) / _GRID))
        tried = np.minimum(low[:, None] + step[:, None] * np.arange(_GRID + 1), high[:, None])
        late = late_share(
            (tried * loads.concurrency[:, None])[:, :, None],
            rates[:, None, :],
            loads.service_s[:, None, None],
            loads.spread[:, None, None],
            loads.slack_s[:, None, None],
        )
        cost = (late * weight[:, None, :]).sum(2) + (price / busy)[:, None] * tried
        best = tried[rows, cost.argmin(1)]
        if step.max(initial=1.0) <= 1.0:
            found: Ints = best.astype(np.int64)
            return found
        low, high = np.maximum(0.0, best - step), np.minimum(high, best + step)
