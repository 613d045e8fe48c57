"""A provider of instances: a cloud, or this machine. Contract test: ``roost.testing.provider``."""

from enum import StrEnum
from typing import Protocol

import msgspec

from roost.ports.values import Image, Notice, Offer


class Capabilities(msgspec.Struct, frozen=True, kw_only=True):
    """What the core needs to know of a provider; its name decides nothing."""

    can_stop: bool = True
    billing_step_s: int = 1
    minimum_s: int = 0


class InstanceState(StrEnum):
    """An instance as the provider sees it."""

    PENDING = "pending"
    RUNNING = "running"
    STOPPED = "stopped"
    TERMINATED = "terminated"


class Order(msgspec.Struct, frozen=True, kw_only=True):
    """A launch. ``token`` makes it safe to repeat: the same token is the same instance."""

    token: str
    host_id: str
    offer: Offer
    image: Image
    join_token: str
    link_address: str
    """Where the agent dials: ``host:port``."""


class ProviderInstance(msgspec.Struct, frozen=True, kw_only=True):
    """An instance of the provider's list."""

    provider_id: str
    token: str
    host_id: str
    state: InstanceState
    address: str = ""
    launched_s: float = 0.0
    ended_s: float | None = None
    reason: str = ""
    """Why it ended: ``interrupted``, ``terminated``, ``lost``."""


class LedgerLine(msgspec.Struct, frozen=True, kw_only=True):
    """What the provider charges for: one running interval of one instance."""

    provider_id: str
    host_id: str
    started_s: float
    ended_s: float | None
    price_usd_hour: float


class Conditions(Protocol):
    """A market that a provider on this machine plays: which pools are up, and until when."""

    def refuses(self, offer: Offer, now_s: float) -> bool:
        """Whether the offer's pool gives no instance now."""

    def taken_at_s(self, offer: Offer, launched_s: float) -> float | None:
        """When an instance launched then is taken (UTC seconds); None = not foreseen."""


class Provider(Protocol):
    """Instances by order. Every call may be repeated."""

    @property
    def capabilities(self) -> Capabilities:
        """Fixed facts about this provider."""

    async def launch(self, order: Order) -> ProviderInstance:
        """Start an instance, or return the one this token started. ``NoCapacity``, ``Denied``, ``Retry``."""

    async def terminate(self, provider_id: str) -> None:
        """End it; ending twice is fine. ``Gone`` for an id never seen."""

    async def stop(self, provider_id: str) -> None:
        """Stop without losing its disk; nothing is billed then. ``Gone``, ``Never`` if it cannot stop."""

    async def start(self, provider_id: str) -> None:
        """Start a stopped instance. ``Gone``, ``NoCapacity``."""

    async def instances(self) -> list[ProviderInstance]:
        """All instances, ended ones for at least an hour, ordered by id. The truth about what exists."""

    async def ledger(self) -> list[LedgerLine]:
        """All charged intervals so far."""

    async def interrupt(self, provider_id: str, notice: Notice) -> None:
        """Deliver ``notice`` through the cloud's own dialect, then take the machine at its deadline.

        ``Never`` where a provider cannot be asked to.
        """

    async def kill(self, provider_id: str) -> None:
        """Take the machine at once, without notice (``Never`` where a provider cannot)."""
