"""What a vendor's connection, status and body become: typed errors, and nothing of a broken page."""

from collections.abc import Callable
from pathlib import Path

import pytest

from roost.adapters.sources.aws_public import AwsSpotAdvisor
from roost.adapters.sources.http import Web, retry_after
from roost.adapters.sources.tokens import Tokens
from roost.ports.errors import Denied, Gone, Never, Retry, RoostError
from roost.ports.sources import PriceSource

from . import shapes
from .conftest import Answer, Vendor
from .opened import OPENED

AWS_API = ("spot_prices", "placement_scores", "savings_plans")
HTTP_SOURCES = [o for o in OPENED if o.__name__ not in AWS_API]


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (401, Denied),
        (403, Denied),
        (404, Gone),
        (429, Retry),
        (400, Never),
        (500, Retry),
        (503, Retry),
    ],
)
async def test_status_is_a_typed_error(vendor: Vendor, status: int, kind: type[RoostError]) -> None:
    vendor.on("/x", Answer(b'{"error": "told"}', status, {"Retry-After": "7"}))
    web = Web("someone", credentials="sign in")
    with pytest.raises(kind, match=f"someone: HTTP {status}.*told") as caught:
        await web.get(f"{vendor.url}/x?key=secret")
    assert "secret" not in str(caught.value)
    if isinstance(caught.value, Retry):
        assert caught.value.after_s == 7.0
    if isinstance(caught.value, Denied):
        assert caught.value.hint == "sign in"
    await web.close()


def test_retry_after_as_vendors_write_it() -> None:
    # RFC 9110 10.2.3 (seconds, or a date); Azure Resource Graph "Guidance for throttled requests".
    at = 784_111_700.0
    assert retry_after({"retry-after": "120"}, 5.0) == 120.0
    date = "Sun, 06 Nov 1994 08:49:37 GMT"
    assert retry_after({"retry-after": date}, 5.0, lambda: at) == 784_111_777.0 - at
    assert retry_after({"retry-after": date}, 5.0, lambda: at + 1e6) == 0.0
    assert retry_after({"x-ms-user-quota-resets-after": "00:00:05"}, 9.0) == 5.0
    assert retry_after({"retry-after": "soon"}, 9.0) == 9.0
    assert retry_after({}, 9.0) == 9.0


@pytest.mark.parametrize("opened", HTTP_SOURCES, ids=lambda opened: opened.__name__)
async def test_every_source_refuses_broken_answers(
    opened: Callable[[Vendor, Path], PriceSource], vendor: Vendor, tmp_path: Path
) -> None:
    source = opened(vendor, tmp_path)
    whole = {path: answers[0] for path, answers in vendor.answers.items()}
    told: list[str] = []
    for path, good in whole.items():
        for broken, kinds in (
            (Answer(good.body, cut=len(good.body) // 2), (Retry,)),
            (Answer(good.body[: len(good.body) * 2 // 3]), (Retry, Never)),
            (Answer(b"<html>a page of a proxy</html>"), (Never, Retry)),
            (Answer(b'{"unexpected": [1, 2]}'), (Never, Retry)),
            (Answer(b"", 429, {"Retry-After": "11"}), (Retry,)),
            (Answer(b"", 503), (Retry,)),
        ):
            for other, said in whole.items():
                vendor.on(other, said)
            # Azure asks another region where one throttles: all of them are broken.
            for other in [p for p in whole if "placementScores" in p] or [path]:
                vendor.on(other, broken)
            told += await _refused(source, kinds)
    await source.close()
    assert len(told) >= 6 and all(told)


async def _refused(source: PriceSource, kinds: tuple[type[RoostError], ...]) -> list[str]:
    """Read until the broken page: it must be told as an error or as a failed part, with no fact of it."""
    cursor = ""
    for _ in range(20):
        try:
            page = await source.fetch(cursor)
        except kinds as error:
            return [error.message]
        if page.failed:
            assert not page.records
            return list(page.failed)
        cursor = page.cursor
        assert not page.done, "a broken answer went through"
    raise AssertionError("the pages do not end")


async def test_out_of_reach_is_said_with_what_to_do() -> None:
    source = AwsSpotAdvisor(url="http://127.0.0.1:9/nothing")
    with pytest.raises(Retry, match="out of reach") as caught:
        await source.fetch("")
    assert "HTTPS_PROXY" in caught.value.hint
    await source.close()


async def test_unchanged_files_are_not_read_again(vendor: Vendor) -> None:
    vendor.on("/a.json", Answer(shapes.dumps(shapes.ADVISOR), etag='"v1"'))
    source = AwsSpotAdvisor(url=f"{vendor.url}/a.json")
    first = await source.fetch("")
    second = await source.fetch(first.cursor)
    assert first.records and not second.records and second.done
    assert second.progress == "unchanged"
    assert vendor.asked[1].headers["if-none-match"] == '"v1"'
    vendor.on("/a.json", Answer(shapes.dumps(shapes.ADVISOR), etag='"v2"'))
    assert len((await source.fetch(second.cursor)).records) == len(first.records)
    await source.close()


async def test_tokens_of_a_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    az = tmp_path / "az"
    az.write_text("#!/bin/sh\necho x >> " + str(tmp_path / "ran") + "\necho abc\n")
    az.chmod(0o755)
    at = [0.0]
    tokens = Tokens("", ("az", "account"), "AZURE_ACCESS_TOKEN", lambda: at[0])
    assert await tokens.headers() == {"Authorization": "Bearer abc"}
    assert await tokens.headers() == {"Authorization": "Bearer abc"}
    assert (tmp_path / "ran").read_text() == "x\n", "a fresh token is kept"
    az.write_text("#!/bin/sh\necho 'Please run az login' >&2\nexit 1\n")
    at[0] = 4000.0
    with pytest.raises(Denied, match="Please run az login") as caught:
        await tokens.headers()
    assert "AZURE_ACCESS_TOKEN" in caught.value.hint
    missing = Tokens("", ("no-such-command-here",), "SOME_TOKEN")
    with pytest.raises(Denied, match="not installed"):
        await missing.headers()
    assert await Tokens("given", (), "X").headers() == {"Authorization": "Bearer given"}
