"""Interruption notices as Google Compute Engine gives them: ``instance/preempted`` of the metadata server.

Source: "Handle preemption with a shutdown script", "Query VM metadata" (``wait_for_change``, ``ETag``).
The service says that the machine goes, never when: the polling half adds the notice that was bought
(30 s, or 120 s with ``preemptionNoticeDuration``) to the moment it first saw it.
"""

from roost.adapters.notices.http import Reply, ask
from roost.adapters.notices.model import Answer, Facts, Request, Wait, interruption
from roost.ports.clock import Clock
from roost.ports.values import Notice, NoticeKind

NOTICE_S = 30.0
_ROOT = "/computeMetadata/v1/instance/"
_FLAVOR = {"Metadata-Flavor": "Google"}
_SOURCE = "gcp-metadata"
_LONGEST_WAIT_S = 50.0
"""A long poll without ``timeout_sec`` is answered after this (the real service may wait for ever)."""


class GcpNotices:
    """The polling half. ``base_url`` is ``http://metadata.google.internal`` on a real instance."""

    def __init__(self, base_url: str, *, clock: Clock, notice_s: float = NOTICE_S) -> None:
        self._base_url = base_url
        self._clock = clock
        self._notice_s = notice_s
        self._seen: Notice | None = None

    async def poll(self) -> Notice | None:
        """The preemption, from the moment it is known."""
        preempted = await ask(self._base_url, f"{_ROOT}preempted", headers=_FLAVOR)
        if _says(preempted, "TRUE"):
            return self._going("preempted")
        event = await ask(self._base_url, f"{_ROOT}maintenance-event", headers=_FLAVOR)
        if _says(event, "TERMINATE_ON_HOST_MAINTENANCE"):
            return self._going("host maintenance")
        if preempted is not None:
            self._seen = None
        return None

    def _going(self, detail: str) -> Notice:
        if self._seen is None:
            now = self._clock.now_s()
            self._seen = Notice(
                kind=NoticeKind.INTERRUPTION,
                seen_s=now,
                deadline_s=now + self._notice_s,
                source=_SOURCE,
                detail=detail,
            )
        return self._seen


class GcpMetadata:
    """The serving half, with long polls."""

    def __init__(self, facts: Facts) -> None:
        self._fixed = {
            "id": facts.instance_id,
            "name": facts.instance_id,
            "machine-type": f"projects/0/machineTypes/{facts.instance_type}",
            "zone": f"projects/0/zones/{facts.zone or facts.region}",
            "scheduling/preemptible": "TRUE" if facts.spot else "FALSE",
            "maintenance-event": "NONE",
        }

    def answer(self, request: Request, notices: tuple[Notice, ...]) -> Answer | Wait:
        """The reply to one request, or how long to wait for a change."""
        if (
            request.headers.get("metadata-flavor") != "Google"
            or "x-forwarded-for" in request.headers
        ):
            return Answer(status=403, body="Missing Metadata-Flavor:Google header.")
        if request.method != "GET":
            return Answer(status=405)
        value = self._value(request.path.removeprefix(_ROOT), interruption(notices))
        if value is None or not request.path.startswith(_ROOT):
            return Answer(status=404, body="Not Found", headers=_FLAVOR)
        etag = f"{sum(value.encode()):016x}"
        waits = request.query.get("wait_for_change", "").lower() == "true"
        last = request.query.get("last_etag", "")
        # Without an ETag the caller waits for the next change; the only one is that it becomes TRUE.
        unchanged = last == etag or (not last and value != "TRUE")
        if waits and unchanged and not request.final:
            return Wait(seconds=_wait_s(request.query.get("timeout_sec", "")))
        return Answer(body=value, headers={**_FLAVOR, "ETag": etag})

    def _value(self, name: str, ending: Notice | None) -> str | None:
        if name == "preempted":
            return "FALSE" if ending is None else "TRUE"
        return self._fixed.get(name)


def _wait_s(text: str) -> float:
    return (
        min(_LONGEST_WAIT_S, float(text)) if text.isascii() and text.isdigit() else _LONGEST_WAIT_S
    )


def _says(reply: Reply | None, text: str) -> bool:
    return reply is not None and reply.status == 200 and reply.body.strip() == text.encode()
