"""What EC2 tells an account: spot price history and spot placement scores, through boto3 (the extra ``aws``).

Shapes: botocore's own service model of EC2 (2016-11-15). Credentials are those boto3 finds (environment,
profile, instance role). It never starts an instance, and never asks for more placement configurations than
AWS allows.
"""

import asyncio
import hashlib
import json
import os
import time
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec

from roost.adapters.sources.base import dump_cursor, load_cursor, number
from roost.ports.errors import Denied, Invalid, Never, Retry, RoostError
from roost.ports.sources import Fact, OfferPrice, Page, PlacementScore

try:
    import boto3
    from botocore.config import Config
    from botocore.exceptions import (
        BotoCoreError,
        ClientError,
        EndpointConnectionError,
        HTTPClientError,
        NoCredentialsError,
        NoRegionError,
        PartialCredentialsError,
        ProfileNotFound,
    )
    from botocore.parsers import ResponseParserError
except ImportError:
    boto3 = None

Client = Any
Clients = Callable[[str], Client]
"""Makes the client of a region."""

NEEDS = "AWS credentials as boto3 finds them (environment, profile or role)"
HOW = "set AWS_PROFILE, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY; ec2:Describe* is enough"
HOME = "us-east-1"
PAGE = 1000
LONGEST_DAYS = 90
THROTTLING = {
    "RequestLimitExceeded",
    "Throttling",
    "ThrottlingException",
    "RequestThrottled",
    "ServiceUnavailable",
    "InternalError",
    "Unavailable",
}
CREDENTIALS = {
    "UnauthorizedOperation",
    "ExpiredToken",
    "RequestExpired",
    "InvalidClientTokenId",
    "UnrecognizedClientException",
    "MissingAuthenticationToken",
    "SignatureDoesNotMatch",
}
REGION_CLOSED = {"AuthFailure", "OptInRequired"}
STALE_TOKEN = {"InvalidNextToken", "InvalidPaginationToken", "InvalidParameterValue"}
BUDGET = 50
"""Configurations of placement scores an account may ask for in 24 hours; repeats of one are free."""
DAY_S = 86_400.0


def clients(endpoint: str | None = None, service: str = "ec2") -> Clients:
    """Clients that never repeat a call by themselves. Raises ``Invalid`` without boto3."""
    if boto3 is None:
        raise Invalid("boto3 is not installed", hint="pip install 'roost[aws]'")

    made: dict[str, Client] = {}

    def make(region: str) -> Client:
        if region in made:
            return made[region]
        config = Config(retries={"total_max_attempts": 1}, connect_timeout=10.0, read_timeout=60.0)
        with Aws("a client"):
            made[region] = boto3.client(
                service, region_name=region, endpoint_url=endpoint, config=config
            )
            return made[region]

    return make


class Aws:
    """Turns errors of botocore into typed ones."""

    def __init__(self, what: str) -> None:
        self._what = what

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if error is None or isinstance(error, RoostError):
            return
        if isinstance(error, ClientError):
            raise self._of_code(error) from error
        missing = NoCredentialsError | PartialCredentialsError | ProfileNotFound
        if isinstance(error, missing | NoRegionError):
            raise Denied(f"{self._what}: {error}", hint=HOW) from error
        if isinstance(error, ResponseParserError):
            said = " ".join(str(error).split())[:300]
            raise Retry(f"{self._what}: the answer cannot be read: {said}", after_s=5.0) from error
        if isinstance(error, EndpointConnectionError | HTTPClientError):
            raise Retry(f"{self._what}: AWS is out of reach: {error}", after_s=15.0) from error
        if isinstance(error, BotoCoreError):
            raise Never(f"{self._what}: {error}") from error

    def _of_code(self, error: "ClientError") -> RoostError:
        told = error.response.get("Error", {})
        code, message = str(told.get("Code", "")), str(told.get("Message", ""))
        said = f"{self._what}: {code}: {message}"
        status = int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
        if code == "MaxConfigLimitExceeded":
            return _NoBudget(said)
        if code in THROTTLING or status in (429, 500, 502, 503, 504):
            return Retry(said, after_s=10.0)
        if code in REGION_CLOSED:
            return _RegionClosed(said, hint=HOW)
        if code in CREDENTIALS:
            return Denied(said, hint=HOW)
        if code in STALE_TOKEN and "token" in f"{code}{message}".lower():
            return _StaleToken(said)
        return Never(said)


class _RegionClosed(Denied):
    """The account may not use this region; others may be open."""


class _StaleToken(Retry):
    """The page's token has expired: the region is read from its start again."""


class _NoBudget(Retry):
    """AWS says that the configurations of the day are used up."""


class _At(msgspec.Struct):
    """Cursor: regions still to read, the page inside the first, and what is known of each."""

    queue: list[str] = []
    total: int = 0
    token: str = ""
    since: dict[str, float] = {}
    started: float = 0.0
    read: int = 0


class AwsSpotPrices:
    """Spot price changes of Linux pools, newest of every pool first, a page of one region a call.

    AWS keeps 90 days. The first read takes ``days`` of them (0: what holds now); later reads go on from the
    last.
    """

    name = "aws-spot-prices"
    licence = "AWS account data; use under the AWS customer agreement"
    consent = False
    needs = NEEDS
    cadence_s = 300.0

    def __init__(
        self,
        ec2: Clients,
        *,
        regions: Iterable[str] = (),
        types: Iterable[str] = (),
        days: float = 0.0,
        now: Callable[[], float] = time.time,
    ) -> None:
        """``regions``: empty = all that the account may use. ``types``: empty = all."""
        if not 0.0 <= days <= LONGEST_DAYS:
            raise Invalid(f"AWS keeps {LONGEST_DAYS} days of spot prices, not {days:g}")
        self._ec2 = ec2
        self._regions = tuple(regions)
        self._types = list(types)
        self._days = days
        self._now = now
        self._zones: dict[str, dict[str, str]] = {}

    async def close(self) -> None:
        """See ``PriceSource``."""

    async def fetch(self, cursor: str) -> Page:
        """See ``PriceSource``: one page of at most 1,000 changes."""
        at = load_cursor(cursor, _At)
        if not at.queue:
            queue = list(self._regions) or await asyncio.to_thread(self._open_regions)
            since = at.since
            at = _At(queue=queue, total=len(queue), since=since, started=self._now())
        region = at.queue[0]
        first = at.since.get(region, at.started - self._days * DAY_S)
        try:
            answer = await asyncio.to_thread(self._page, region, first, at.token)
        except _StaleToken:
            return self._next(at, (), token="", again=True)
        except _RegionClosed as error:
            if at.read == 0 and len(at.queue) == 1:
                raise
            return self._next(at, (), failed=f"{region}: {error.message}")
        zones = await asyncio.to_thread(self._zone_ids, region, answer)
        facts, skipped = read_price_history(answer, region, self.name, zones)
        token = answer.get("NextToken") or ""
        return self._next(at, facts, token=token, skipped=skipped)

    def _next(
        self,
        at: _At,
        facts: Iterable[Fact],
        *,
        token: str = "",
        again: bool = False,
        failed: str = "",
        skipped: Mapping[str, int] | None = None,
    ) -> Page:
        region = at.queue[0]
        stays = bool(token) or again
        since = at.since if stays or failed else {**at.since, region: at.started}
        queue = at.queue if stays else at.queue[1:]
        step = _At(
            queue=queue,
            total=at.total,
            token=token,
            since=since,
            started=at.started,
            read=at.read + (0 if failed or stays else 1),
        )
        return Page(
            records=tuple(facts),
            cursor=dump_cursor(step),
            done=not queue,
            progress=f"{region}, {at.total - len(queue)} of {at.total} regions",
            skipped=dict(skipped or {}),
            failed=(failed,) if failed else (),
        )

    def _open_regions(self) -> list[str]:
        with Aws(f"{self.name}: the account's regions"):
            answer = self._ec2(HOME).describe_regions()
            return sorted(str(region["RegionName"]) for region in answer["Regions"])

    def _page(self, region: str, since: float, token: str) -> dict[str, Any]:
        more: dict[str, Any] = {"InstanceTypes": self._types} if self._types else {}
        if token:
            more["NextToken"] = token
        with Aws(f"{self.name}: {region}"):
            found: dict[str, Any] = self._ec2(region).describe_spot_price_history(
                StartTime=datetime.fromtimestamp(since, UTC),
                ProductDescriptions=["Linux/UNIX"],
                MaxResults=PAGE,
                **more,
            )
        return found

    def _zone_ids(self, region: str, answer: Mapping[str, Any]) -> Mapping[str, str]:
        """Zone ids by the account's names, asked for once where the prices tell names only."""
        rows = answer.get("SpotPriceHistory") or []
        if region not in self._zones and any(not row.get("AvailabilityZoneId") for row in rows):
            with Aws(f"{self.name}: zones of {region}"):
                told = self._ec2(region).describe_availability_zones()["AvailabilityZones"]
            self._zones[region] = {z["ZoneName"]: z["ZoneId"] for z in told if z.get("ZoneId")}
        return self._zones.get(region, {})


def read_price_history(
    answer: Mapping[str, Any], region: str, source: str, zones: Mapping[str, str]
) -> tuple[list[OfferPrice], dict[str, int]]:
    """The facts of one answer of ``DescribeSpotPriceHistory`` as boto3 gives it. Raises ``Never``.

    ``zones``: the ids of the account's zone names (a name means another place in another account).
    """
    facts = []
    skipped: dict[str, int] = {}
    rows = answer.get("SpotPriceHistory")
    if not isinstance(rows, list):
        raise Never(f"{source}: {region}: the answer has no SpotPriceHistory")
    for row in rows:
        if row.get("ProductDescription") not in ("Linux/UNIX", "Linux/UNIX (Amazon VPC)"):
            skipped["not Linux"] = skipped.get("not Linux", 0) + 1
            continue
        name = row.get("AvailabilityZone") or ""
        zone = row.get("AvailabilityZoneId") or zones.get(name, name)
        when = row.get("Timestamp")
        if not zone or not row.get("InstanceType") or not isinstance(when, datetime):
            raise Never(f"{source}: {region}: a price lacks its zone, type or time")
        facts.append(
            OfferPrice(
                source=source,
                observed_at=when.timestamp(),
                provider="aws",
                region=region,
                zone=zone,
                instance_type=row["InstanceType"],
                option="spot",
                usd_hour=number(str(row.get("SpotPrice")), f"{source}: {region}"),
            )
        )
    return facts, skipped


class Budget:
    """Which placement configurations were asked for in the last 24 hours; durable before each new one."""

    def __init__(self, path: Path, now: Callable[[], float] = time.time) -> None:
        self._path = path
        self._now = now

    def take(self, configuration: str) -> float:
        """0 when the configuration may be asked for, else the seconds until one may. Raises ``Invalid``."""
        now = self._now()
        name = hashlib.sha256(configuration.encode()).hexdigest()[:32]
        used = {key: at for key, at in self._read().items() if now - at < DAY_S}
        if name in used:
            return 0.0
        if len(used) >= BUDGET:
            return DAY_S - (now - min(used.values()))
        used[name] = now
        self._write(used)
        return 0.0

    def left(self) -> int:
        """New configurations that may be asked for now."""
        now = self._now()
        return max(0, BUDGET - sum(now - at < DAY_S for at in self._read().values()))

    def _read(self) -> dict[str, float]:
        try:
            return msgspec.json.decode(self._path.read_bytes(), type=dict[str, float])
        except FileNotFoundError:
            return {}
        except (OSError, msgspec.MsgspecError) as error:
            raise Invalid(
                f"the record of placement configurations {self._path} cannot be read: {error}",
                hint="remove it once 24 hours have passed since the last placement scores",
            ) from error

    def _write(self, used: Mapping[str, float]) -> None:
        part = self._path.with_suffix(f".{os.getpid()}.part")
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with part.open("wb") as file:
                file.write(msgspec.json.encode(used))
                file.flush()
                os.fsync(file.fileno())
            part.replace(self._path)
        except OSError as error:
            part.unlink(missing_ok=True)
            raise Invalid(f"{self._path} cannot be written: {error.strerror}") from error


class _Step(msgspec.Struct):
    number: int = 0


class AwsPlacementScores:
    """Spot placement scores of chosen types, one configuration (types x ten regions) a page."""

    name = "aws-placement-scores"
    licence = "AWS account data; use under the AWS customer agreement"
    consent = False
    needs = NEEDS + ", ec2:GetSpotPlacementScores"
    cadence_s = 3600.0

    def __init__(
        self,
        ec2: Clients,
        budget: Budget,
        *,
        types: Iterable[str],
        regions: Iterable[str] = (HOME,),
        capacity: int = 1,
        now: Callable[[], float] = time.time,
    ) -> None:
        """Fewer than three ``types`` always score low (AWS documents it)."""
        self._types = sorted(set(types))
        if not 1 <= len(self._types) <= PAGE:
            raise Invalid(
                "placement scores need instance types", hint="--type m5.large,m6i.large,m7i.large"
            )
        if capacity < 1:
            raise Invalid(f"a capacity of {capacity} has no score")
        names = sorted(set(regions)) or [HOME]
        self._groups = [names[i : i + 10] for i in range(0, len(names), 10)]
        self._ec2 = ec2
        self._budget = budget
        self._capacity = capacity
        self._now = now

    async def close(self) -> None:
        """See ``PriceSource``."""

    async def fetch(self, cursor: str) -> Page:
        """See ``PriceSource``. A configuration over the day's budget is told in ``failed``, not asked for."""
        step = load_cursor(cursor, _Step).number % len(self._groups)
        regions = self._groups[step]
        last = step + 1 == len(self._groups)
        asked = {
            "InstanceTypes": self._types,
            "TargetCapacity": self._capacity,
            "TargetCapacityUnitType": "units",
            "SingleAvailabilityZone": True,
            "RegionNames": regions,
        }
        wait = self._budget.take(json.dumps(asked, sort_keys=True))
        failed: tuple[str, ...] = ()
        facts: tuple[PlacementScore, ...] = ()
        where = f"{regions[0]} and {len(regions) - 1} more regions"
        if wait > 0:
            failed = (
                f"{where}: {BUDGET} configurations were asked for in 24 hours; "
                f"the next may be in {wait / 60:.0f} min",
            )
        else:
            try:
                facts = await asyncio.to_thread(self._ask, asked)
            except _NoBudget as error:
                failed = (f"{where}: {error.message}",)
        return Page(
            records=facts,
            cursor=dump_cursor(_Step(number=0 if last else step + 1)),
            done=last,
            progress=f"{where}; {self._budget.left()} new configurations left today",
            failed=failed,
        )

    def _ask(self, asked: Mapping[str, Any]) -> tuple[PlacementScore, ...]:
        facts = []
        token = ""
        at = self._now()
        while True:
            more = {"NextToken": token} if token else {}
            with Aws(self.name):
                answer = self._ec2(HOME).get_spot_placement_scores(**asked, MaxResults=30, **more)
            for row in answer.get("SpotPlacementScores", []):
                facts.append(
                    PlacementScore(
                        source=self.name,
                        observed_at=at,
                        provider="aws",
                        region=row["Region"],
                        zone=row.get("AvailabilityZoneId", ""),
                        instance_type=",".join(self._types),
                        scale="aws_1_10",
                        score=float(row["Score"]),
                        capacity=self._capacity,
                    )
                )
            token = answer.get("NextToken") or ""
            if not token:
                return tuple(facts)
