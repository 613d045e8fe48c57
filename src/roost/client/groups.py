"""Groups of hosts over the REST door: what it takes and says, and the calls. Synchronous, like ``api``."""

from typing import Any
from urllib.parse import quote

import msgspec
from msgspec import UNSET, UnsetType

from roost.client.api import RoostClient
from roost.client.model import OfferView

PATH = "/api/v1/groups"


class GroupBody(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A group as a person wishes it; what is left out has its default, or stays as it is."""

    min: int | UnsetType = UNSET
    max: int | UnsetType = UNSET
    slots: int | UnsetType = UNSET
    """Containers a host takes at most."""
    vcpus: float | UnsetType = UNSET
    memory_gib: float | UnsetType = UNSET
    gpus: float | UnsetType = UNSET
    clouds: tuple[str, ...] | UnsetType = UNSET
    regions: tuple[str, ...] | UnsetType = UNSET
    instance_types: tuple[str, ...] | UnsetType = UNSET
    max_usd_hour: float | UnsetType | None = UNSET
    near: str | UnsetType = UNSET
    image: str | UnsetType = UNSET
    allocation: str | UnsetType = UNSET
    """``price-capacity-optimized``, ``lowest-price``, ``capacity-optimized`` or ``prioritized``."""
    tiers: tuple[dict[str, Any], ...] | UnsetType = UNSET
    """``{"clouds": ["own"], "most": 4}`` …: tried in order."""
    on_demand_base: int | UnsetType = UNSET
    on_demand_percent: float | UnsetType = UNSET
    fallback_s: float | UnsetType = UNSET
    """After this long without spot an on-demand host stands in; 0 = never."""
    pool_share: float | UnsetType = UNSET
    region_share: float | UnsetType = UNSET
    spares: int | UnsetType = UNSET
    rebalance: bool | UnsetType = UNSET
    drain_s: float | UnsetType = UNSET
    protect_new: bool | UnsetType = UNSET
    warm: dict[str, Any] | UnsetType = UNSET
    """``{"size": 2, "state": "stopped", "reuse": true}``"""
    hooks: tuple[dict[str, Any], ...] | UnsetType = UNSET
    """``{"name": "bake", "on": "launch", "timeout_s": 300, "default": "abandon"}`` …"""
    budgets: tuple[dict[str, Any], ...] | UnsetType = UNSET
    """``{"most": "10%", "reasons": ["refresh"], "days": [0, 1], "from_hour": 9, "to_hour": 17}`` …"""


class CreateGroup(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The body of ``POST /api/v1/groups``."""

    name: str
    body: GroupBody = GroupBody()


class DesiredGroup(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A person's number of hosts; None gives it back to the scaler."""

    desired: int | None = None


class RefreshGroup(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How all hosts of older revisions are replaced."""

    min_healthy: float = 0.9
    max_healthy: float = 1.1
    warm_up_s: float = 0.0
    boot_limit_s: float = 300.0
    most_failures: int = 1
    limit_s: float = 3600.0
    auto_rollback: bool = True
    all_hosts: bool = False


class ProtectHost(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """``none``, ``scale-in`` or ``disruption``."""

    protection: str = "scale-in"


class DrainHost(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Take a host out; ``smaller``: the group does not replace it."""

    smaller: bool = False


class HookAnswer(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """``continue``, ``abandon``, or ``extend``: its time begins anew."""

    result: str = "continue"


class GroupHostView(msgspec.Struct, frozen=True, kw_only=True):
    """A host of a group, warm ones too."""

    host_id: str
    member_id: str
    state: str
    """``launching``, ``entering``, ``warm``, ``serving``, ``draining``, ``leaving``, or ``noticed``."""
    offer: OfferView | None
    option: str
    slots: int
    slots_used: int
    idle_s: float
    connected: bool
    survival: float
    """Probability that it lasts the next hour."""
    risk: float
    """Probability that it is taken within ten minutes."""
    protection: str
    revision: int
    stand_in: bool
    hooks: tuple[str, ...]
    """Hooks it waits for."""
    keep: str
    reason: str
    created_s: float


class RefreshView(msgspec.Struct, frozen=True, kw_only=True):
    """The newest refresh of a group."""

    state: str
    done: int
    of: int
    failures: int
    reason: str
    started_s: float
    ended_s: float | None


class GroupView(msgspec.Struct, frozen=True, kw_only=True):
    """A group."""

    id: str
    name: str
    state: str
    min: int
    max: int
    desired: int
    """Within the bounds."""
    pinned: int | None
    """A person's number."""
    reason: str
    spares: int
    slots: int
    slots_used: int
    image: str
    allocation: str
    revision: int
    refresh: RefreshView | None
    usd_hour: float
    idle_usd_hour: float
    """What unused slots and running warm hosts cost."""
    message: str
    created_s: float
    hosts: tuple[GroupHostView, ...]
    spec: dict[str, Any]


class GroupCalls:
    """The calls of groups at one installation."""

    def __init__(self, client: RoostClient) -> None:
        self._client = client

    def create(self, name: str, body: GroupBody) -> GroupView:
        """A new group."""
        return self._client.call("POST", PATH, GroupView, CreateGroup(name=name, body=body))

    def list_all(self) -> list[GroupView]:
        """All groups, by name."""
        return self._client.call("GET", PATH, list[GroupView])

    def show(self, name: str) -> GroupView:
        """One group. ``Gone`` when unknown."""
        return self._client.call("GET", _path(name), GroupView)

    def change(self, name: str, body: GroupBody) -> GroupView:
        """Change what the body says."""
        return self._client.call("PATCH", _path(name), GroupView, body)

    def desired(self, name: str, desired: int | None) -> GroupView:
        """A person's number of hosts; None gives it back to the scaler."""
        body = DesiredGroup(desired=desired)
        return self._client.call("POST", f"{_path(name)}/desired", GroupView, body)

    def refresh(self, name: str, body: RefreshGroup) -> GroupView:
        """Replace the hosts of older revisions."""
        return self._client.call("POST", f"{_path(name)}/refresh", GroupView, body)

    def end_refresh(self, name: str, *, roll_back: bool) -> GroupView:
        """Stop a refresh where it is, or turn it back."""
        path = f"{_path(name)}/refresh?rollback={int(roll_back)}"
        return self._client.call("DELETE", path, GroupView)

    def delete(self, name: str, *, force: bool = False) -> GroupView:
        """End a group with all its hosts; ``Conflict`` while containers stand there, unless forced."""
        return self._client.call("DELETE", f"{_path(name)}?force={int(force)}", GroupView)

    def protect(self, host_id: str, protection: str) -> GroupView:
        """Protect a host from scale-in, from any disruption, or from nothing."""
        body = ProtectHost(protection=protection)
        return self._client.call("POST", f"{_host(host_id)}/protect", GroupView, body)

    def drain(self, host_id: str, *, smaller: bool) -> GroupView:
        """Take a host out of its group."""
        body = DrainHost(smaller=smaller)
        return self._client.call("POST", f"{_host(host_id)}/drain", GroupView, body)

    def answer(self, host_id: str, hook: str, result: str) -> GroupView:
        """Answer a lifecycle hook."""
        path = f"{_host(host_id)}/hooks/{quote(hook, safe='')}"
        return self._client.call("POST", path, GroupView, HookAnswer(result=result))


def _path(name: str) -> str:
    return f"{PATH}/{quote(name, safe='')}"


def _host(host_id: str) -> str:
    return f"/api/v1/group-hosts/{quote(host_id, safe='')}"
