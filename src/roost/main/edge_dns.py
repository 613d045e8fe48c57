"""An edge's DNS server: its notebooks have names that follow its routes.

``--zone`` is a zone file (docs/dns.md), or just a name: then the zone's addresses are the edge's own.
"""

import socket
import time
from ipaddress import ip_address
from pathlib import Path

from roost.gateway.dns import zonefile
from roost.gateway.dns.following import RouteFollower, Routes
from roost.gateway.dns.server import DnsServer
from roost.gateway.dns.zone import Zone
from roost.gateway.streams import DataHosts
from roost.ports.errors import Invalid


class EdgeNames:
    """Serves the zone and keeps it in step with the routes and the hosts of one edge."""

    def __init__(
        self, address: str, zone: str, public: socket.socket, routes: Routes, hosts: DataHosts
    ) -> None:
        if zone.endswith(".toml"):
            loaded = zonefile.load(Path(zone))
        else:
            loaded = zonefile.for_edges(zone, [_own(public, address)])
        served = Zone(loaded.data, serial=int(time.time()))
        self.server = DnsServer(served, address, limits=loaded.limits, exempt=loaded.exempt)
        self._follower = RouteFollower(served, routes, lambda: hosts.peers)

    async def start(self) -> None:
        """Follow and serve: nobody is told that a name is not there because its route was not read yet."""
        self._follower.start()
        await self.server.start()

    async def close(self) -> None:
        """Stop both."""
        await self._follower.close()
        await self.server.close()


def _own(public: socket.socket, address: str) -> str:
    """The address clients reach this edge at: the public socket's, or else the DNS server's."""
    for text in (public.getsockname()[0], address.rpartition(":")[0].strip("[]")):
        try:
            found = ip_address(text)
        except ValueError:
            continue
        if not found.is_unspecified:
            return str(found)
    raise Invalid(
        "--zone: the edge listens on all addresses, so its own is not known",
        hint="give a zone file with its addresses, or --dns with the address to be reached at",
    )
