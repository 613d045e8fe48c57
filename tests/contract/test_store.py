"""Every store runs the same contract."""

from pathlib import Path

import pytest

from roost.adapters.store.sqlite.store import open_store
from roost.testing.store import CHECKS, Check


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
async def test_sqlite(check: Check, tmp_path: Path) -> None:
    await check(lambda: open_store(tmp_path / "control.sqlite"))
