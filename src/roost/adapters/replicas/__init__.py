"""``roost.ports.replicas.Replicas`` over the agents' control links: one method, one command. It keeps no
state."""

from roost.ports import wire
from roost.ports.errors import Never
from roost.ports.link import Links
from roost.ports.replicas import Executed, HostReplicas

ANSWER_S = 5.0
"""The set is only taken note of before it is answered; logs are read from a file."""


class LinkedReplicas:
    """Replicas on connected hosts."""

    def __init__(self, links: Links) -> None:
        self._links = links

    async def set(self, host_id: str, replicas: HostReplicas) -> None:
        body = wire.SetReplicas(replicas=replicas)
        await self._links.call(host_id, body, epoch=0, timeout_s=ANSWER_S)

    async def logs(self, host_id: str, replica_id: str, *, tail_bytes: int) -> str:
        body = wire.ReadReplicaLogs(replica_id=replica_id, tail_bytes=tail_bytes)
        answer = await self._links.call(host_id, body, epoch=0, timeout_s=ANSWER_S)
        if not isinstance(answer, wire.ReplicaLogs):
            raise Never(f"host {host_id} answered {type(answer).__name__} instead of logs")
        return answer.text

    async def execute(
        self, host_id: str, replica_id: str, argv: tuple[str, ...], *, timeout_s: float
    ) -> Executed:
        body = wire.ExecuteInReplica(replica_id=replica_id, argv=argv, timeout_s=timeout_s)
        answer = await self._links.call(host_id, body, epoch=0, timeout_s=timeout_s + ANSWER_S)
        if not isinstance(answer, wire.ReplicaExecuted):
            raise Never(f"host {host_id} answered {type(answer).__name__} instead of an exit code")
        return answer.executed
