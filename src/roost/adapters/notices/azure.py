"""Interruption notices as Azure gives them: Scheduled Events of the Instance Metadata Service.

Source: "Azure Metadata Service: Scheduled Events for Linux VMs". ``Preempt`` announces the eviction of
a spot VM at least 30 s ahead; a scheduled ``Terminate`` ends it as well. The polling half never
acknowledges: that would start the event early.
"""

import json
from datetime import UTC, datetime
from email.utils import format_datetime, parsedate_to_datetime

from roost.adapters.notices.http import ask
from roost.adapters.notices.model import Answer, Facts, Request, interruption
from roost.ports.clock import Clock
from roost.ports.values import Notice, NoticeKind

_EVENTS = "/metadata/scheduledevents"
_VERSION = "2020-07-01"
_ENDING = ("Preempt", "Terminate")
_SOURCE = "azure-scheduled-events"


class AzureNotices:
    """The polling half. ``base_url`` is ``http://169.254.169.254`` on a real instance."""

    def __init__(self, base_url: str, *, clock: Clock) -> None:
        self._base_url = base_url
        self._clock = clock
        self._seen: dict[str, Notice] = {}

    async def poll(self) -> Notice | None:
        """The first event that ends this machine, or None."""
        target = f"{_EVENTS}?api-version={_VERSION}"
        reply = await ask(self._base_url, target, headers={"Metadata": "true"})
        if reply is None or reply.status != 200:
            return None
        try:
            events = list(json.loads(reply.body)["Events"])
        except (ValueError, KeyError, TypeError):
            return None
        found = [notice for notice in map(self._notice, events) if notice is not None]
        return min(found, key=lambda notice: notice.deadline_s or 0.0, default=None)

    def _notice(self, event: object) -> Notice | None:
        """None for an event that does not end the machine or cannot be read."""
        if not isinstance(event, dict) or event.get("EventType") not in _ENDING:
            return None
        now, name = self._clock.now_s(), str(event.get("EventId", ""))
        try:
            # A started event has no date any more: the machine goes now.
            text = str(event.get("NotBefore") or "")
            deadline_s = parsedate_to_datetime(text).timestamp() if text else now
        except (ValueError, TypeError):
            return None
        key = f"{name}:{text}"
        if key not in self._seen:
            self._seen = {
                key: Notice(
                    kind=NoticeKind.INTERRUPTION,
                    seen_s=now,
                    deadline_s=deadline_s,
                    source=_SOURCE,
                    detail=str(event["EventType"]),
                )
            }
        return self._seen[key]


class AzureMetadata:
    """The serving half."""

    def __init__(self, facts: Facts) -> None:
        self._facts = facts

    def answer(self, request: Request, notices: tuple[Notice, ...]) -> Answer:
        """The reply to one request."""
        if request.headers.get("metadata", "").lower() != "true":
            return _error("Bad request. Required metadata header not specified")
        if not request.query.get("api-version"):
            return _error("Bad request. api-version was not specified in the request")
        if request.method != "GET":
            return Answer(status=405)
        if request.path == _EVENTS:
            return self._events(interruption(notices))
        if request.path == "/metadata/instance":
            return _json({"compute": self._compute()})
        return Answer(status=404, body="Not Found")

    def _compute(self) -> dict[str, str]:
        facts = self._facts
        return {
            "name": facts.instance_id,
            "vmId": facts.instance_id,
            "vmSize": facts.instance_type,
            "location": facts.region,
            "zone": facts.zone,
            "priority": "Spot" if facts.spot else "Regular",
        }

    def _events(self, ending: Notice | None) -> Answer:
        if ending is None:
            return _json({"DocumentIncarnation": 1, "Events": []})
        moment = datetime.fromtimestamp(int(ending.deadline_s or ending.seen_s), UTC)
        event = {
            "EventId": f"{self._facts.instance_id}-{int(ending.seen_s)}".upper(),
            "EventStatus": "Scheduled",
            "EventType": "Preempt" if ending.kind is NoticeKind.INTERRUPTION else "Terminate",
            "ResourceType": "VirtualMachine",
            "Resources": [self._facts.instance_id],
            "NotBefore": format_datetime(moment, usegmt=True),
            "Description": ending.detail,
            "EventSource": "Platform" if ending.kind is NoticeKind.INTERRUPTION else "User",
            "DurationInSeconds": -1,
        }
        return _json({"DocumentIncarnation": 2, "Events": [event]})


def _json(value: object) -> Answer:
    return Answer(body=json.dumps(value), content_type="application/json")


def _error(text: str) -> Answer:
    return Answer(status=400, body=json.dumps({"error": text}), content_type="application/json")
