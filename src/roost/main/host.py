"""Entry point of the host process of a local instance: ``python -m roost.main.host --dir D ... -- AGENT``.

Started by the local provider; plugs the metadata service of the instance's cloud into it.
"""

import argparse
import sys
from pathlib import Path

from roost.adapters.clock import SystemClock
from roost.adapters.notices import Facts, MetadataServer, dialect
from roost.adapters.providers.local import records
from roost.adapters.providers.local.first import Setting
from roost.adapters.providers.local.host import HostProcess, Options
from roost.ports.errors import RoostError
from roost.ports.values import PurchaseOption

CLOCK = SystemClock()


def serve_metadata(setting: Setting) -> str:
    """Start the metadata service on the instance's own address; returns its base address."""
    offer = setting.record.order.offer
    facts = Facts(
        instance_id=setting.record.order.host_id,
        instance_type=offer.instance_type,
        region=offer.region,
        zone=offer.zone,
        spot=offer.purchase_option is PurchaseOption.SPOT,
    )
    speaks = dialect(offer.provider, facts, clock=CLOCK)
    server = MetadataServer(
        setting.record.address, speaks, lambda: records.notices(setting.folder), clock=CLOCK
    )
    return server.url


def run(argv: list[str] | None = None) -> int:
    """Run one instance from boot to end; the exit status of the process."""
    parser = argparse.ArgumentParser(prog="roost-host", description=__doc__)
    parser.add_argument("--dir", type=Path, required=True, help="the instance's folder")
    parser.add_argument("--python", default=sys.executable, help="interpreter of environments")
    parser.add_argument("--uv", required=True, help="the uv program")
    parser.add_argument("--uv-cache", required=True, help="uv's cache folder")
    parser.add_argument("--force-mark", action="store_true", help="do without namespaces")
    parser.add_argument("agent", nargs="+", help="command of the agent, after --")
    found = parser.parse_args(argv)
    options = Options(
        folder=found.dir.absolute(),
        agent_argv=tuple(found.agent),
        python=found.python,
        uv=found.uv,
        uv_cache=found.uv_cache,
        force_mark=found.force_mark,
    )
    try:
        return HostProcess(options, clock=CLOCK, serve=serve_metadata).run()
    except RoostError as error:
        print(f"roost-host: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(run())
