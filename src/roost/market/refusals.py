"""How long a pool is left alone after a refusal: by cloud and class of error. A pure table.

Codes and classes: the error tables of Karpenter (AWS, Azure), of the cluster autoscaler's GCE client and of
the vendors' API references. Times: Karpenter AWS remembers a pool without capacity 3 minutes; Karpenter Azure
a failed allocation and a spot size not available 1 hour, the same on demand 23 hours, a low quota 10 minutes,
a quota of zero 1 hour. GCP: the cluster autoscaler's first back-off of a node group, 5 minutes.
"""

from collections.abc import Mapping
from enum import StrEnum


class Refusal(StrEnum):
    """Why a cloud did not give, or took back, an instance."""

    CAPACITY = "no capacity"
    NOT_OFFERED = "not offered here"
    QUOTA_LOW = "quota used up"
    QUOTA_ZERO = "no quota"
    PRICE = "price limit"
    NETWORK = "no free addresses"
    DENIED = "not permitted"
    THROTTLED = "asked too often"
    INTERRUPTED = "interrupted"


_MINUTE_S, _HOUR_S = 60.0, 3600.0

_ANY_CLOUD: Mapping[Refusal, float] = {
    Refusal.CAPACITY: 5 * _MINUTE_S,
    Refusal.NOT_OFFERED: 23 * _HOUR_S,
    Refusal.QUOTA_LOW: 10 * _MINUTE_S,
    Refusal.QUOTA_ZERO: _HOUR_S,
    Refusal.PRICE: 10 * _MINUTE_S,
    Refusal.NETWORK: 10 * _MINUTE_S,
    Refusal.DENIED: _HOUR_S,
    Refusal.THROTTLED: 0.0,
    Refusal.INTERRUPTED: _HOUR_S,
}
_CLOUD: Mapping[tuple[str, Refusal], float] = {
    ("aws", Refusal.CAPACITY): 3 * _MINUTE_S,
    ("azure", Refusal.CAPACITY): _HOUR_S,
}

_CODES: Mapping[str, Mapping[str, Refusal]] = {
    "aws": {
        **dict.fromkeys(
            (
                "InsufficientInstanceCapacity",
                "UnfulfillableCapacity",
                "InsufficientCapacity",
                "InsufficientHostCapacity",
                "InsufficientReservedInstanceCapacity",
                "ReservationCapacityExceeded",
                "Server.InsufficientInstanceCapacity",
            ),
            Refusal.CAPACITY,
        ),
        "Unsupported": Refusal.NOT_OFFERED,
        "OptInRequired": Refusal.NOT_OFFERED,
        "SpotMaxPriceTooLow": Refusal.PRICE,
        **dict.fromkeys(
            (
                "MaxSpotInstanceCountExceeded",
                "VcpuLimitExceeded",
                "InstanceLimitExceeded",
                "MaxFleetCountExceeded",
            ),
            Refusal.QUOTA_ZERO,
        ),
        "InsufficientFreeAddressesInSubnet": Refusal.NETWORK,
        "UnauthorizedOperation": Refusal.DENIED,
        "AuthFailure.ServiceLinkedRoleCreationNotPermitted": Refusal.DENIED,
        "RequestLimitExceeded": Refusal.THROTTLED,
        "Server.SpotInstanceTermination": Refusal.INTERRUPTED,
        "Server.SpotInstanceShutdown": Refusal.INTERRUPTED,
    },
    "azure": {
        **dict.fromkeys(
            (
                "AllocationFailed",
                "ZonalAllocationFailed",
                "OverconstrainedAllocationRequest",
                "OverconstrainedZonalAllocationRequest",
            ),
            Refusal.CAPACITY,
        ),
        "SkuNotAvailable": Refusal.NOT_OFFERED,
        "VMSizeNotSupported": Refusal.NOT_OFFERED,
        "QuotaExceeded": Refusal.QUOTA_LOW,
        "SubnetIsFull": Refusal.NETWORK,
        "AuthorizationFailed": Refusal.DENIED,
        "TooManyRequests": Refusal.THROTTLED,
    },
    "gcp": {
        **dict.fromkeys(
            (
                "ZONE_RESOURCE_POOL_EXHAUSTED",
                "ZONE_RESOURCE_POOL_EXHAUSTED_WITH_DETAILS",
                "RESOURCE_POOL_EXHAUSTED",
                "INSUFFICIENT_CAPACITY",
            ),
            Refusal.CAPACITY,
        ),
        "UNSUPPORTED_OPERATION": Refusal.NOT_OFFERED,
        "IP_SPACE_EXHAUSTED": Refusal.NETWORK,
        "IP_SPACE_EXHAUSTED_WITH_DETAILS": Refusal.NETWORK,
        "PERMISSIONS_ERROR": Refusal.DENIED,
        "rateLimitExceeded": Refusal.THROTTLED,
        "RESOURCE_OPERATION_RATE_EXCEEDED": Refusal.THROTTLED,
    },
}


def classify(provider: str, code: str, message: str, *, spot: bool) -> Refusal:
    """The class of a cloud's error code; an unknown one counts as no capacity (the shortest wait)."""
    if provider == "azure" and code == "OperationNotAllowed":
        return _azure_quota(message)
    if provider == "azure" and code == "QuotaExceeded":
        return _azure_quota(message, otherwise=Refusal.QUOTA_LOW)
    if provider == "azure" and code == "SkuNotAvailable" and spot:
        return (
            Refusal.CAPACITY
        )  # of a spot size it says that there is none now, not that there never is
    known = _CODES.get(provider, {}).get(code)
    if known is None and provider == "gcp" and "QUOTA" in code.upper():
        return Refusal.QUOTA_ZERO
    return Refusal.CAPACITY if known is None else known


def _azure_quota(message: str, otherwise: Refusal = Refusal.PRICE) -> Refusal:
    """Azure says ``OperationNotAllowed`` of quotas and of prices; only the message tells which."""
    if "quota" not in message.lower():
        return otherwise
    never = "current limit: 0" in message.lower()
    return Refusal.QUOTA_ZERO if never else Refusal.QUOTA_LOW


def avoid_s(provider: str, refusal: Refusal) -> float:
    """Seconds for which the pool is not asked again."""
    return _CLOUD.get((provider, refusal), _ANY_CLOUD[refusal])
