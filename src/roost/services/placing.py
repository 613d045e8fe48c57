"""Which host gets a replica. Pure.

Replicas of one service on different hosts as far as there are several, then the fullest host that has
a free slot, so that hosts become empty and can be given back.
"""

from collections.abc import Mapping, Sequence

from roost.fleet.group_model import GroupHost, HostState
from roost.services.model import Replica


def place(
    replicas: Sequence[Replica],
    hosts: Sequence[GroupHost],
    used: Mapping[str, int],
    crowd: Mapping[str, int],
) -> dict[str, str]:
    """Replica id -> host id; who finds no room is left out.

    ``used`` slots per host, ``crowd`` replicas of the same service per host. Only connected hosts that
    stay get anything.
    """
    free = {h.host_id: h.slots - used.get(h.host_id, 0) for h in hosts if _open(h)}
    mine = dict(crowd)
    found: dict[str, str] = {}
    for replica in replicas:
        fitting = [host_id for host_id, slots in free.items() if slots > 0]
        if not fitting:
            break
        host_id = min(fitting, key=lambda h: (mine.get(h, 0), free[h], h))
        found[replica.id] = host_id
        free[host_id] -= 1
        mine[host_id] = mine.get(host_id, 0) + 1
    return found


def _open(host: GroupHost) -> bool:
    return bool(host.host_id) and host.state is HostState.READY and host.connected
