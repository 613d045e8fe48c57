"""The AWS sources against a real third-party endpoint: moto's server (getmoto/moto, Apache-2.0)."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from roost.adapters.sources.aws_api import AwsPlacementScores, AwsSpotPrices, Budget, clients
from roost.market.history import History
from roost.ports.errors import Retry
from roost.ports.sources import Fact, OfferPrice

moto_server = pytest.importorskip(
    "moto.server", reason="moto is not installed: the AWS sources are NOT tried against its server"
)


@pytest.fixture
def endpoint(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    server = moto_server.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    yield f"http://127.0.0.1:{server.get_host_and_port()[1]}"
    server.stop()


async def test_spot_prices_of_the_regions_that_moto_opens(endpoint: str, tmp_path: Path) -> None:
    wanted = ("us-east-1", "eu-west-1")
    source = AwsSpotPrices(clients(endpoint), types=("m5.large", "c5.large"))
    regions = source._open_regions()
    assert set(wanted) <= set(regions), "describe_regions"
    source = AwsSpotPrices(clients(endpoint), regions=wanted, types=("m5.large", "c5.large"))
    facts: list[Fact] = []
    cursor, pages = "", 0
    while pages < 10:
        page = await source.fetch(cursor)
        facts += page.records
        cursor, pages = page.cursor, pages + 1
        if page.done:
            break
    kinds = {(f.region, f.instance_type) for f in facts if isinstance(f, OfferPrice)}
    assert kinds == {(r, t) for r in wanted for t in ("m5.large", "c5.large")}
    assert all("1-az" in f.zone for f in facts if isinstance(f, OfferPrice)), "zones by their ids"
    history = History(tmp_path)
    assert history.append(facts).new == len(facts)
    assert history.append(facts).known == len(facts)


async def test_what_moto_does_not_know_is_an_error_not_a_zero(
    endpoint: str, tmp_path: Path
) -> None:
    # moto 5 has no GetSpotPlacementScores: it answers 500 with a page of HTML.
    source = AwsPlacementScores(clients(endpoint), Budget(tmp_path / "b"), types=("m5.large",))
    with pytest.raises(Retry):
        await source.fetch("")
