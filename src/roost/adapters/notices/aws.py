"""Interruption notices as AWS EC2 gives them: IMDSv2, ``spot/instance-action`` and the rebalance advice.

Source: EC2 User Guide, "Spot Instance interruption notices", "EC2 instance rebalance recommendations",
"Use IMDSv2". The old ``spot/termination-time`` is served and never asked for.
"""

import json
import math
from datetime import UTC, datetime

from roost.adapters.notices.http import ask
from roost.adapters.notices.model import Answer, Facts, Request, interruption, rebalance
from roost.kit.ids import Ids, SystemIds
from roost.ports.clock import Clock
from roost.ports.values import Notice, NoticeKind

TOKEN_TTL_S = 21600
_ACTION = "/latest/meta-data/spot/instance-action"
_REBALANCE = "/latest/meta-data/events/recommendations/rebalance"
_MOST_TOKENS = 1024
_SOURCE = "aws-imds"


class AwsNotices:
    """The polling half. ``base_url`` is ``http://169.254.169.254`` on a real instance."""

    def __init__(self, base_url: str, *, clock: Clock) -> None:
        self._base_url = base_url
        self._clock = clock
        self._token = ""
        self._token_until = 0.0
        self._seen: Notice | None = None

    async def poll(self) -> Notice | None:
        """The interruption if there is one, else a rebalance recommendation, else None."""
        action = await self._get(_ACTION)
        found = None if action is None else self._interruption(action)
        if found is None:
            advice = await self._get(_REBALANCE)
            found = None if advice is None else self._rebalance(advice)
        if found is not None and self._seen is not None:
            known = self._seen
            if (known.kind, known.deadline_s, known.detail) == (
                found.kind,
                found.deadline_s,
                found.detail,
            ):
                return known
        self._seen = found
        return found

    async def _get(self, path: str) -> bytes | None:
        for _ in range(2):
            if not await self._have_token():
                return None
            reply = await ask(
                self._base_url, path, headers={"X-aws-ec2-metadata-token": self._token}
            )
            if reply is not None and reply.status == 401:
                self._token = ""
                continue
            return reply.body if reply is not None and reply.status == 200 else None
        return None

    async def _have_token(self) -> bool:
        if self._token and self._clock.monotonic_s() < self._token_until:
            return True
        headers = {"X-aws-ec2-metadata-token-ttl-seconds": str(TOKEN_TTL_S)}
        reply = await ask(self._base_url, "/latest/api/token", method="PUT", headers=headers)
        if reply is None or reply.status != 200:
            return False
        self._token = reply.body.decode("ascii", errors="ignore")
        self._token_until = self._clock.monotonic_s() + TOKEN_TTL_S - 60
        return bool(self._token)

    def _interruption(self, body: bytes) -> Notice | None:
        try:
            said = json.loads(body)
            action, deadline_s = str(said["action"]), _seconds(said["time"])
        except (ValueError, KeyError, TypeError):
            return None
        return Notice(
            kind=NoticeKind.INTERRUPTION,
            seen_s=self._clock.now_s(),
            deadline_s=deadline_s,
            source=_SOURCE,
            detail=action,
        )

    def _rebalance(self, body: bytes) -> Notice | None:
        try:
            noticed = _seconds(json.loads(body)["noticeTime"])
        except (ValueError, KeyError, TypeError):
            return None
        return Notice(
            kind=NoticeKind.REBALANCE,
            seen_s=self._clock.now_s(),
            source=_SOURCE,
            detail=f"noticed at {_text(noticed)}",
        )


class AwsMetadata:
    """The serving half: version 2 only, as new images are configured."""

    def __init__(self, facts: Facts, *, clock: Clock, ids: Ids | None = None) -> None:
        self._clock = clock
        self._ids = ids or SystemIds()
        self._tokens: dict[str, float] = {}
        self._fixed = {
            "/latest/meta-data/instance-id": facts.instance_id,
            "/latest/meta-data/instance-type": facts.instance_type,
            "/latest/meta-data/instance-life-cycle": "spot" if facts.spot else "on-demand",
            "/latest/meta-data/placement/region": facts.region,
            "/latest/meta-data/placement/availability-zone": facts.zone or facts.region,
            "/latest/meta-data/placement/availability-zone-id": facts.zone or facts.region,
        }

    def answer(self, request: Request, notices: tuple[Notice, ...]) -> Answer:
        """The reply to one request."""
        if request.path == "/latest/api/token":
            return self._give_token(request)
        if request.method != "GET":
            return Answer(status=405)
        token = request.headers.get("x-aws-ec2-metadata-token", "")
        if self._tokens.get(token, -math.inf) < self._clock.monotonic_s():
            return Answer(status=401, body="Unauthorized")
        if request.path in self._fixed:
            return Answer(body=self._fixed[request.path])
        return self._notices(request.path, notices)

    def _give_token(self, request: Request) -> Answer:
        if request.method != "PUT":
            return Answer(status=405)
        if "x-forwarded-for" in request.headers:
            return Answer(status=403)
        ttl = request.headers.get("x-aws-ec2-metadata-token-ttl-seconds", "")
        if not (ttl.isascii() and ttl.isdigit() and 1 <= int(ttl) <= TOKEN_TTL_S):
            return Answer(status=400, body="Bad Request")
        now = self._clock.monotonic_s()
        if len(self._tokens) >= _MOST_TOKENS:
            oldest = min(self._tokens, key=lambda token: self._tokens[token])
            self._tokens.pop(oldest, None)
        token = self._ids.secret()
        self._tokens[token] = now + int(ttl)
        return Answer(body=token, headers={"X-Aws-Ec2-Metadata-Token-Ttl-Seconds": ttl})

    def _notices(self, path: str, notices: tuple[Notice, ...]) -> Answer:
        ending, advice = interruption(notices), rebalance(notices)
        if path == _ACTION and ending is not None:
            said = {"action": "terminate", "time": _text(ending.deadline_s or ending.seen_s)}
            return Answer(body=json.dumps(said), content_type="application/json")
        if path == "/latest/meta-data/spot/termination-time" and ending is not None:
            return Answer(body=_text(ending.deadline_s or ending.seen_s))
        if path == _REBALANCE and advice is not None:
            said = {"noticeTime": _text(advice.seen_s)}
            return Answer(body=json.dumps(said), content_type="application/json")
        return Answer(status=404, body="Not Found")


def _text(seconds: float) -> str:
    """``2026-01-01T00:02:00Z``: whole seconds, rounded down, so that nobody hopes too long."""
    return datetime.fromtimestamp(int(seconds), UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _seconds(text: str) -> float:
    return datetime.strptime(text, "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=UTC).timestamp()
