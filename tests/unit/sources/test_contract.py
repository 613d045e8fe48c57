"""Every source keeps the contract of the port."""

from collections.abc import Callable
from pathlib import Path

import pytest

from roost.ports.sources import PriceSource
from roost.testing.sources import CHECKS, Check

from .conftest import Vendor
from .opened import OPENED


@pytest.fixture(autouse=True)
def _account(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize("opened", OPENED, ids=lambda opened: opened.__name__)
async def test_contract(
    opened: Callable[[Vendor, Path], PriceSource], check: Check, vendor: Vendor, tmp_path: Path
) -> None:
    await check(lambda: opened(vendor, tmp_path))
