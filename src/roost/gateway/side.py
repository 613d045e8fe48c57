"""What the gateway's supervisor runs beside the workers: admin port, probes, certificates, DNS.

None of it is on the way of a request: when a part fails, clients are served on.
"""

import asyncio
import contextlib
import logging
import socket
from collections.abc import Callable
from pathlib import Path
from random import Random

from roost.gateway import sockets
from roost.gateway.acme import Acme
from roost.gateway.admin import AdminRouter, Facts
from roost.gateway.dns import zonefile
from roost.gateway.dns.server import DnsServer, from_policy
from roost.ports.clock import Clock
from roost.proxy import policy
from roost.proxy.counters import Summary
from roost.proxy.front import Proxy
from roost.proxy.health import Prober
from roost.proxy.server import ProxyServer
from roost.proxy.tls import origin_context

log = logging.getLogger(__name__)


class SideServices:
    """Started and changed with each configuration."""

    def __init__(
        self,
        summary: Summary,
        *,
        facts: Facts,
        health: Callable[[dict[str, bool]], None],
        challenges: Callable[[dict[str, str]], None],
        obtained: Callable[[], None],
        clock: Clock,
        folder: Path,
    ) -> None:
        self._router = AdminRouter(summary, facts)
        self._health = health
        self._challenges = challenges
        self._obtained = obtained
        self._clock = clock
        self._folder = folder
        self._random = Random()
        self._admin: ProxyServer | None = None
        self._admin_wanted: str | None = None
        self.admin_address = ""
        self._prober: Prober | None = None
        self._probing: asyncio.Task[None] | None = None
        self._acme: Acme | None = None
        self._acme_wanted: tuple[policy.Acme, tuple[str, ...]] | None = None
        self._renewing: asyncio.Task[None] | None = None
        self._dns: DnsServer | None = None
        self._dns_wanted: str | None = None

    async def apply(self, gateway: policy.Gateway) -> None:
        """Follow a configuration. Raises ``Invalid`` for an address that cannot be used."""
        await self._apply_admin(gateway.admin)
        await self._apply_dns(gateway.dns)
        self._apply_probes(gateway)
        await self._apply_acme(gateway)

    async def close(self) -> None:
        """End all of it."""
        await _ended(self._probing)
        await _ended(self._renewing)
        if self._dns is not None:
            await self._dns.close()
            self._dns = None
        if self._admin is not None:
            await self._admin.close(0.0)
            self._admin = None

    def certificates(self, gateway: policy.Gateway) -> tuple[policy.Certificate, ...]:
        """Those obtained so far, an earlier run's included."""
        self._prepare_acme(gateway)
        return self._acme.certificates if self._acme is not None else ()

    # --- admin -----------------------------------------------------------------------------------

    async def _apply_admin(self, wanted: str | None) -> None:
        if wanted == self._admin_wanted:
            return
        made: ProxyServer | None = None
        address = ""
        if wanted is not None:
            sock: socket.socket = sockets.bind(wanted, 1, "the admin port")[0]
            address = sockets.shown(sock)
            made = ProxyServer(Proxy(self._router))
            await made.listen(sock)
        if self._admin is not None:
            await self._admin.close(0.0)
        self._admin, self._admin_wanted, self.admin_address = made, wanted, address

    # --- probes ----------------------------------------------------------------------------------

    def _apply_probes(self, gateway: policy.Gateway) -> None:
        wanted = any(service.health is not None for service in gateway.services)
        if self._prober is None:
            if not wanted:
                return
            self._prober = Prober(self._health, rng=self._random, contexts=origin_context)
            self._probing = asyncio.get_running_loop().create_task(self._prober.run())
        tcp = [each.service for each in gateway.listeners if each.service is not None]
        now_s = asyncio.get_running_loop().time()
        self._prober.watch(gateway.services, tcp=tcp, now_s=now_s)

    # --- certificates ----------------------------------------------------------------------------

    def _prepare_acme(self, gateway: policy.Gateway) -> None:
        names = tuple(
            name
            for listener in gateway.listeners
            if listener.tls is not None
            for name in listener.tls.acme
        )
        wanted = (gateway.acme, names) if gateway.acme is not None and names else None
        if wanted == self._acme_wanted:
            return
        made = None
        if wanted is not None:

            async def publish(tokens: dict[str, str]) -> None:
                self._challenges(tokens)

            made = Acme(
                wanted[0],
                wanted[1],
                self._folder,
                clock=self._clock,
                random=self._random,
                changed=lambda certificates: self._obtained(),
                publish=publish,
            )
        if self._renewing is not None:
            self._renewing.cancel()
            self._renewing = None
        self._acme, self._acme_wanted = made, wanted

    async def _apply_acme(self, gateway: policy.Gateway) -> None:
        self._prepare_acme(gateway)
        if self._acme is not None and self._renewing is None:
            self._renewing = asyncio.get_running_loop().create_task(self._acme.run())

    # --- DNS -------------------------------------------------------------------------------------

    async def _apply_dns(self, wanted: policy.Dns | None) -> None:
        if self._dns is not None and wanted is not None and wanted.address == self._dns_wanted:
            self._dns.reload(zonefile.load(self._folder / wanted.zone))
            return
        made = None
        if wanted is not None:
            made = from_policy(wanted, folder=self._folder, serial=int(self._clock.now_s()))
            await made.start()
        if self._dns is not None:
            await self._dns.close()
        self._dns = made
        self._dns_wanted = wanted.address if wanted is not None else None


async def _ended(task: asyncio.Task[None] | None) -> None:
    if task is not None:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
