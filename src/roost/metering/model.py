"""The words of metering: lines, bills, differences. Pure values; money is integers of a nano-dollar."""

import msgspec

from roost.ports.values import PurchaseOption


class Line(msgspec.Struct, frozen=True, kw_only=True):
    """Whole seconds of one instance at one price. What is charged is exact to the nano-dollar."""

    instance_id: str
    session_id: str
    """Who claimed the instance."""
    role: str
    """``active`` or ``standby``: what it was launched as."""
    provider: str
    offer_key: str
    purchase_option: PurchaseOption
    started_s: float
    """UTC seconds at which the first charged second began."""
    seconds: int
    price_usd_hour: float
    on_demand_usd_hour: float
    charge_nano_usd: int
    on_demand_nano_usd: int
    """The same seconds at the on-demand price."""
    open: bool = False
    """It still runs: charged up to now."""


class Total(msgspec.Struct, frozen=True, kw_only=True):
    """A sum of lines."""

    seconds: int = 0
    charge_nano_usd: int = 0
    on_demand_nano_usd: int = 0

    @property
    def saved_nano_usd(self) -> int:
        """What on-demand would have cost more (negative when it would have been cheaper)."""
        return self.on_demand_nano_usd - self.charge_nano_usd


class Bill(msgspec.Struct, frozen=True, kw_only=True):
    """What was used until ``now_s``, summed in the ways a person asks for."""

    now_s: float
    total: Total
    per_instance: dict[str, Total]
    per_session: dict[str, Total]
    per_role: dict[str, Total]
    per_purchase_option: dict[str, Total]
    lines: tuple[Line, ...]


class Difference(msgspec.Struct, frozen=True, kw_only=True):
    """An instance for which our rows and the provider's ledger disagree."""

    instance_id: str
    metered_nano_usd: int
    ledger_nano_usd: int
    metered_s: int
    ledger_s: int
    reason: str
    """``not metered``, ``not in the ledger``, ``seconds differ`` or ``price differs``."""
