"""The hourly rates of machines under AWS Compute Savings Plans, through boto3 (the extra ``aws``).

Shape: botocore's own service model of Savings Plans (2019-06-28), ``DescribeSavingsPlansOfferingRates``.
It never buys a plan.
"""

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import msgspec

from roost.adapters.sources.aws_api import HOME, NEEDS, Aws, Clients
from roost.adapters.sources.base import dump_cursor, load_cursor, number
from roost.ports.errors import Never
from roost.ports.sources import Page, SavingsRate

PAGE = 1000
YEAR_S = 365 * 86_400


class _At(msgspec.Struct):
    token: str = ""
    started: float = 0.0
    pages: int = 0


class AwsSavingsPlans:
    """What an hour costs under a Compute Savings Plan, by region, type, term and payment."""

    name = "aws-savings-plans"
    licence = "AWS account data; use under the AWS customer agreement"
    consent = False
    needs = NEEDS + ", savingsplans:DescribeSavingsPlansOfferingRates"
    cadence_s = 7 * 86_400.0

    def __init__(
        self,
        plans: Clients,
        *,
        regions: Iterable[str] = (),
        types: Iterable[str] = (),
        now: Callable[[], float] = time.time,
    ) -> None:
        """``plans`` makes clients of the service ``savingsplans``; empty ``regions``, ``types``: all."""
        self._plans = plans
        self._now = now
        narrowed = {
            "productDescription": ["Linux/UNIX"],
            "tenancy": ["shared"],
            "region": list(regions),
            "instanceType": list(types),
        }
        self._filters = [{"name": name, "values": v} for name, v in narrowed.items() if v]

    async def close(self) -> None:
        """See ``PriceSource``."""

    async def fetch(self, cursor: str) -> Page:
        """See ``PriceSource``: 1,000 rates."""
        at = load_cursor(cursor, _At)
        started = at.started or self._now()
        answer = await asyncio.to_thread(self._ask, at.token)
        skipped: Counter[str] = Counter()
        rows = answer.get("searchResults")
        if not isinstance(rows, list) or not (rows or at.pages):
            raise Never(
                f"{self.name}: no rate at all", hint="check the regions and types asked for"
            )
        facts = tuple(f for row in rows if (f := self._rate(row, started, skipped)) is not None)
        token = answer.get("nextToken") or ""
        step = _At(token=token, started=started, pages=at.pages + 1) if token else _At()
        return Page(
            records=facts,
            cursor=dump_cursor(step),
            done=not token,
            progress=f"page {at.pages + 1}",
            skipped=dict(skipped),
        )

    def _ask(self, token: str) -> dict[str, Any]:
        more = {"nextToken": token} if token else {}
        with Aws(self.name):
            found: dict[str, Any] = self._plans(HOME).describe_savings_plans_offering_rates(
                savingsPlanTypes=["Compute"],
                products=["EC2"],
                filters=self._filters,
                maxResults=PAGE,
                **more,
            )
        return found

    def _rate(self, row: Mapping[str, Any], at: float, skipped: Counter[str]) -> SavingsRate | None:
        plan = row.get("savingsPlanOffering") or {}
        told = {p.get("name"): p.get("value") for p in row.get("properties") or ()}
        region, kind = told.get("region"), told.get("instanceType")
        years, rest = divmod(int(plan.get("durationSeconds") or 0), YEAR_S)
        if row.get("unit") != "Hrs" or plan.get("currency") != "USD":
            skipped["not in USD an hour"] += 1
        elif "BoxUsage" not in str(row.get("usageType")):
            skipped["another use than a running machine"] += 1
        elif not region or not kind or not years or rest:
            raise Never(f"{self.name}: a rate lacks its region, type or term: {str(row)[:200]}")
        else:
            return SavingsRate(
                source=self.name,
                observed_at=at,
                provider="aws",
                region=region,
                instance_type=kind,
                plan="savings_plan",
                term_years=years,
                payment=str(plan.get("paymentOption")).lower().replace(" ", "_"),
                usd_hour=number(str(row.get("rate")), self.name),
            )
        return None
