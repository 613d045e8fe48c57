"""Finds out which addresses of a zone's endpoints are well, where the zone file asks for it.

The probes are the data plane's (``proxy.health``): few at a time, jittered, with thresholds. What they
find goes to the zone; other sources of health may tell the zone as well. Never changes an answer itself.
"""

import asyncio
import contextlib
import random

from roost.gateway.dns.choice import Address, Endpoint
from roost.gateway.dns.zone import Zone
from roost.proxy import policy
from roost.proxy.health import Prober, table_key


class EndpointProbes:
    """One prober for all endpoints of a zone."""

    def __init__(self, zone: Zone, *, rng: random.Random | None = None) -> None:
        self._zone = zone
        self._prober = Prober(self._found, rng=rng)
        self._names: dict[str, tuple[str, Address]] = {}
        self._running: asyncio.Task[None] | None = None

    def watch(self) -> None:
        """Probe what the zone says now (again after each change of its file)."""
        probed = [e for e in self._zone.data.endpoints if e.probe is not None]
        before = self._names
        self._names = {
            table_key(endpoint.name, _target(endpoint, address)): (endpoint.name, address)
            for endpoint in probed
            for place in endpoint.places
            for address in place.addresses
        }
        for key in before.keys() - self._names.keys():
            endpoint_name, address = before[key]
            self._zone.set_health(str(address), True, endpoint=endpoint_name)
        loop = asyncio.get_running_loop()
        self._prober.watch(
            [_service(endpoint) for endpoint in probed],
            tcp=[e.name for e in probed if e.probe is not None and e.probe.protocol == "tcp"],
            now_s=loop.time(),
        )
        if self._running is None and probed:
            self._running = loop.create_task(self._prober.run())

    async def close(self) -> None:
        """Stop probing."""
        if self._running is not None:
            self._running.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._running
            self._running = None

    def _found(self, table: dict[str, bool]) -> None:
        for key, healthy in table.items():
            known = self._names.get(key)
            if known is not None:
                self._zone.set_health(str(known[1]), healthy, endpoint=known[0])


def _target(endpoint: Endpoint, address: Address) -> str:
    assert endpoint.probe is not None
    host = f"[{address}]" if address.version == 6 else str(address)
    return f"{host}:{endpoint.probe.port}"


def _service(endpoint: Endpoint) -> policy.Service:
    """An endpoint as the prober knows them."""
    probe = endpoint.probe
    assert probe is not None
    return policy.Service(
        name=endpoint.name,
        backends=tuple(
            _target(endpoint, address) for place in endpoint.places for address in place.addresses
        ),
        health=policy.ActiveHealth(
            path=probe.path,
            interval_s=probe.interval_s,
            timeout_s=probe.timeout_s,
            healthy_after=probe.healthy_after,
            unhealthy_after=probe.unhealthy_after,
        ),
    )
