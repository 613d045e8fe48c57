"""Value types that cross ports: offers, resources, images, notices, reports of hosts."""

from enum import StrEnum

import msgspec

from roost.ports.jobs import JobReport
from roost.ports.kernels import Checkpoint
from roost.ports.replicas import ReplicaReport, ServiceReport


class PurchaseOption(StrEnum):
    """How capacity is bought."""

    ON_DEMAND = "on_demand"
    SPOT = "spot"
    RESERVED = "reserved"
    SAVINGS_PLAN = "savings_plan"
    DEDICATED_INSTANCE = "dedicated_instance"
    DEDICATED_HOST = "dedicated_host"


class Allocation(StrEnum):
    """How the offers that satisfy an ask are put in order."""

    PRICE_CAPACITY = "price-capacity-optimized"
    """By what a useful hour costs: price, performance and the expected loss from being taken."""
    LOWEST_PRICE = "lowest-price"
    CAPACITY = "capacity-optimized"
    """By how long they last."""
    PRIORITIZED = "prioritized"
    """In the order of the ask's instance types."""


class Resources(msgspec.Struct, frozen=True, kw_only=True):
    """What a machine has or a task needs."""

    vcpus: float
    memory_gib: float
    gpus: float = 0.0


class Offer(msgspec.Struct, frozen=True, kw_only=True):
    """One thing that can be bought: a pool (provider, region, zone, type, purchase option) and its price."""

    provider: str
    """The cloud: ``aws``, ``azure``, ``gcp``."""
    region: str
    zone: str
    """Zone id; empty where the cloud does not name zones."""
    instance_type: str
    purchase_option: PurchaseOption
    price_usd_hour: float
    on_demand_usd_hour: float
    """The same machine on demand, for the comparison on the bill."""
    resources: Resources
    arch: str = "x86_64"
    notice_s: float = 30.0
    """Warning before an interruption, in seconds."""
    interruption_bucket: str | None = None
    """Share interrupted in the trailing month as published (``<5%`` ... ``>20%``); None = unknown."""

    @property
    def key(self) -> str:
        """The pool's name, e.g. ``aws/apne2-az1/m5.xlarge/spot``."""
        return f"{self.provider}/{self.zone or self.region}/{self.instance_type}/{self.purchase_option}"


class Ask(msgspec.Struct, frozen=True, kw_only=True):
    """What a workload needs of an instance: the constraints of ranking and placement."""

    vcpus: float = 2.0
    memory_gib: float = 8.0
    gpus: float = 0.0
    arch: str = "x86_64"
    clouds: tuple[str, ...] = ()
    """Empty = any."""
    regions: tuple[str, ...] = ()
    instance_types: tuple[str, ...] = ()
    purchase_options: tuple[PurchaseOption, ...] = (PurchaseOption.SPOT,)
    max_usd_hour: float | None = None
    near: str = ""
    """A city: closer regions rank higher."""
    min_notice_s: float = 0.0
    avoid_clouds: tuple[str, ...] = ()
    avoid_regions: tuple[str, ...] = ()
    avoid_pools: tuple[str, ...] = ()
    """Offer keys that refused or interrupted lately."""
    allocation: Allocation = Allocation.PRICE_CAPACITY


class Image(msgspec.Struct, frozen=True, kw_only=True):
    """What an instance starts from: a Python version and a recorded set of packages."""

    name: str
    python: str
    """Minor version, e.g. ``3.11``."""
    requirements: tuple[str, ...] = ()
    """Pinned requirement lines."""
    imports: tuple[str, ...] = ()
    """Modules a standby kernel imports in advance."""


class NoticeKind(StrEnum):
    """Why an instance is going away."""

    INTERRUPTION = "interruption"
    REBALANCE = "rebalance"
    DRAIN = "drain"


class Notice(msgspec.Struct, frozen=True, kw_only=True):
    """This instance goes away at ``deadline_s`` (None for a rebalance recommendation)."""

    kind: NoticeKind
    seen_s: float
    """When it was first seen, UTC seconds."""
    deadline_s: float | None = None
    source: str = ""
    """``aws-imds``, ``azure-scheduled-events``, ``gcp-metadata``, ``person`` ..."""
    detail: str = ""


class TaskReport(msgspec.Struct, frozen=True, kw_only=True):
    """One task (a kernel, a standby kernel, a run of a job) as its host sees it."""

    task_id: str
    kind: str
    """``kernel``, ``standby`` or ``job``."""
    session_id: str = ""
    """Also the id of a job."""
    epoch: int = 0
    state: str = "starting"
    """``starting``, ``ready``, ``busy``, ``fenced``, ``dead``; of a job ``starting``, ``busy``, ``dead``."""
    cpu_percent: float = 0.0
    memory_mib: float = 0.0
    exit_code: int | None = None
    checkpoint: Checkpoint | None = None
    """The last capture of this task that is durable off the host: truth that survives a lost event."""
    imports: tuple[str, ...] = ()
    """Modules a standby kernel has imported."""
    job: JobReport | None = None


class HostReport(msgspec.Struct, frozen=True, kw_only=True):
    """A host's state, once a second."""

    host_id: str
    at_s: float
    ready: bool = False
    """The package environment is in place; kernels may start."""
    detail: str = ""
    """What it is doing while not ready, or what it could not do."""
    cpu_percent: float = 0.0
    memory_used_mib: float = 0.0
    memory_total_mib: float = 0.0
    tasks: tuple[TaskReport, ...] = ()
    notice: Notice | None = None
    isolation: tuple[str, ...] = ()
    """What holds this instance together: ``pid-namespace``, ``mark``, ``cgroup-v1`` ..."""
    replicas: tuple[ReplicaReport, ...] = ()
    """Every replica it has, ready or not."""
    services: tuple[ServiceReport, ...] = ()
    """Every service of which it has or had a replica since the agent began."""
    replicas_generation: int = 0
    """Of the newest ``HostReplicas`` it has taken; 0 = none yet."""
    network_bytes: float = 0.0
    """Received and sent by the host's own network (loopback left out) since it booted; 0 = not measured."""
