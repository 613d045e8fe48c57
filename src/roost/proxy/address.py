"""A backend's address of the configuration, as the pool wants it. Resolves no name and reads no file."""

import ssl
from collections.abc import Callable

from roost.proxy import policy
from roost.proxy.pool import Backend

Contexts = Callable[[policy.TlsOrigin], ssl.SSLContext]
"""Makes the TLS context of a service's backends (``tls.origin_context``)."""
Made = dict[str, tuple[policy.BackendSpec, Backend]]
"""The backends of a service by address."""
Make = Callable[[policy.Service, Contexts | None], Made]


def backend_of(
    address: str, service: policy.Service | None = None, context: ssl.SSLContext | None = None
) -> Backend:
    """The address of a ``policy.BackendSpec``, taken apart. Raises ``ValueError``."""
    path = host = ""
    number = 0
    if address.startswith("unix:") and len(address) > 5:
        path = address[5:]
    else:
        host, colon, port = address.rpartition(":")
        if not colon or not host or not port.isdecimal() or not 0 < int(port) < 65536:
            raise ValueError(f"{address!r} is not host:port, [v6]:port or unix:/path")
        number = int(port)
        if host.startswith("[") and host.endswith("]"):
            host = host[1:-1]
    if service is None:
        return Backend(path=path, host=host, port=number)
    name = service.tls.server_name if service.tls is not None else None
    return Backend(
        path=path,
        host=host,
        port=number,
        tls=context,
        server_name=(name or host or "localhost") if context is not None else None,
        connect_s=service.connect_s,
        idle_s=service.idle_s,
    )


def backends_of(service: policy.Service, contexts: Contexts | None) -> Made:
    """The backends of a service by address. Raises ``ValueError``, or what ``contexts`` raises."""
    context = None
    if service.tls is not None:
        if contexts is None:
            raise ValueError(f"service {service.name!r}: TLS to backends needs contexts")
        context = contexts(service.tls)
    specs = [
        policy.BackendSpec(address=spec) if isinstance(spec, str) else spec
        for spec in service.backends
    ]
    return {spec.address: (spec, backend_of(spec.address, service, context)) for spec in specs}
