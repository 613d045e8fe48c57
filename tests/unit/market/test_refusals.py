"""The memory of refusals: each cloud's error codes and how long a pool is left alone."""

import pytest

from roost.market.refusals import Refusal, avoid_s, classify
from roost.ports.errors import NoCapacity, from_wire, to_wire


@pytest.mark.parametrize(
    ("provider", "code", "message", "spot", "refusal", "seconds"),
    [
        ("aws", "InsufficientInstanceCapacity", "", True, Refusal.CAPACITY, 180),
        ("aws", "VcpuLimitExceeded", "", True, Refusal.QUOTA_ZERO, 3600),
        ("aws", "SpotMaxPriceTooLow", "", True, Refusal.PRICE, 600),
        ("aws", "Unsupported", "", False, Refusal.NOT_OFFERED, 82_800),
        ("azure", "SkuNotAvailable", "", True, Refusal.CAPACITY, 3600),
        ("azure", "SkuNotAvailable", "", False, Refusal.NOT_OFFERED, 82_800),
        ("azure", "AllocationFailed", "", False, Refusal.CAPACITY, 3600),
        (
            "azure",
            "OperationNotAllowed",
            "exceeding approved LowPriorityCores quota. Current Limit: 10, Current Usage: 8",
            True,
            Refusal.QUOTA_LOW,
            600,
        ),
        (
            "azure",
            "OperationNotAllowed",
            "exceeding approved standardDSv5Family Cores quota. Current Limit: 0",
            True,
            Refusal.QUOTA_ZERO,
            3600,
        ),
        ("azure", "OperationNotAllowed", "the max price is too low", True, Refusal.PRICE, 600),
        ("gcp", "ZONE_RESOURCE_POOL_EXHAUSTED", "", True, Refusal.CAPACITY, 300),
        ("gcp", "QUOTA_EXCEEDED", "", True, Refusal.QUOTA_ZERO, 3600),
        ("gcp", "rateLimitExceeded", "", True, Refusal.THROTTLED, 0),
        ("elsewhere", "", "", True, Refusal.CAPACITY, 300),
    ],
)
def test_a_code_is_one_class_and_has_one_time(provider, code, message, spot, refusal, seconds):
    assert classify(provider, code, message, spot=spot) is refusal
    assert avoid_s(provider, refusal) == seconds


def test_every_class_has_a_time_on_every_cloud():
    for provider in ("aws", "azure", "gcp", "local"):
        assert all(0 <= avoid_s(provider, refusal) <= 86_400 for refusal in Refusal)


def test_the_code_crosses_the_wire():
    error = NoCapacity("no", offer="aws/x/y/spot", reason_code="UnfulfillableCapacity")
    again = from_wire(to_wire(error))
    assert isinstance(again, NoCapacity)
    assert again.reason_code == "UnfulfillableCapacity"
