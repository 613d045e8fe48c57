"""Domain values to the views clients see. Reads only."""

from collections.abc import Awaitable, Callable, Sequence

from roost.client.model import (
    CostView,
    HostView,
    MoveView,
    OfferView,
    PartView,
    SessionView,
    StatusView,
    StoryView,
)
from roost.fleet.model import ClaimView, Instance
from roost.fleet.service import FleetService, live
from roost.jobs.service import JobService
from roost.notebooks.model import MoveRecord, Session
from roost.notebooks.service import NotebookService
from roost.ports.errors import Gone
from roost.ports.kernels import VariableReport
from roost.ports.link import Links
from roost.ports.store import Store, StoryLine
from roost.ports.values import HostReport, Offer

STORIES = ("i-", "c-", "svc-", "g-")
"""Beginnings of ids of objects that have a story of their own: hosts, claims, services, groups."""


class Views:
    """Builds views from the services."""

    def __init__(
        self,
        *,
        notebooks: NotebookService,
        jobs: JobService,
        fleet: FleetService,
        links: Links,
        store: Store,
        bill: Callable[[], Awaitable[CostView]],
        public_url: str,
        state_dir: str,
        edges: int,
        version: str,
    ) -> None:
        self._notebooks = notebooks
        self._jobs = jobs
        self._fleet = fleet
        self._links = links
        self._store = store
        self._bill = bill
        self._public_url = public_url
        self._state_dir = state_dir
        self._edges = edges
        self._version = version

    async def session(self, session: Session) -> SessionView:
        """A session with its standby host."""
        active = await self._fleet.view(session.claim_id) if session.claim_id else None
        standby = None
        if session.standby_claim_id:
            standby = await self._fleet.view(session.standby_claim_id)
        instance = active.instance if active else None
        checkpoint = session.checkpoint
        return SessionView(
            id=session.id,
            name=session.name,
            state=str(session.state),
            desired=session.desired,
            epoch=session.epoch,
            url=self._page(session),
            token=session.token,
            key=session.key,
            host_id=session.host_id,
            offer=offer_view(instance.offer) if instance else None,
            standby=self._of_claim(standby),
            standby_warm=_standby_warm(standby, session),
            checkpoint_number=checkpoint.number if checkpoint else 0,
            checkpoint_epoch=checkpoint.epoch if checkpoint else 0,
            checkpoint_at_s=checkpoint.at_s if checkpoint else None,
            checkpoint_cells=checkpoint.cells if checkpoint else 0,
            phase=str(session.move.phase) if session.move else "",
            moves=tuple(move_view(m) for m in session.moves),
            created_s=session.created_s,
            message=session.message or (active.claim.message if active else ""),
        )

    def _page(self, session: Session) -> str:
        if not session.page:
            return ""
        return f"{self._public_url}/n/{session.id}/lab?token={session.token}"

    async def hosts(self, *, ended: bool) -> list[HostView]:
        """All hosts, newest last."""
        instances = sorted(await self._fleet.instances(), key=lambda i: (i.created_s, i.id))
        return [self._host(i) for i in instances if ended or not i.ended]

    async def host(self, host_id: str) -> HostView:
        """One host. ``Gone`` when unknown."""
        return self._host(await self._fleet.instance(host_id))

    async def story(self, object_id: str, after: int) -> list[StoryView]:
        """An object's story; a session's, job's or group's includes those of its hosts, by time."""
        ids = {object_id}
        instances = await self._fleet.instances()
        if object_id.startswith(("j-", "g-")):
            ids |= {i.id for i in instances if i.owner == object_id}
        elif object_id.startswith("s-") or not object_id.startswith(STORIES):
            session = await self._notebooks.get(object_id)
            ids = {session.id, *(i.id for i in instances if i.owner == session.id)}
        lines: list[StoryLine] = []
        for one in sorted(ids):
            lines += await self._store.story(one, after=after)
        if not lines and after == 0:
            raise Gone(f"no story of {object_id}", hint="`roost status` shows what there is")
        return [story_view(line) for line in sorted(lines, key=lambda line: line.seq)]

    async def cost(self) -> CostView:
        """The bill so far."""
        return await self._bill()

    async def status(self, uptime_s: float) -> StatusView:
        """Counts by state."""
        sessions: dict[str, int] = {}
        for session in await self._notebooks.list_all():
            sessions[str(session.state)] = sessions.get(str(session.state), 0) + 1
        hosts: dict[str, int] = {}
        jobs: dict[str, int] = {}
        for job in await self._jobs.list_all():
            jobs[str(job.state)] = jobs.get(str(job.state), 0) + 1
        usd_hour = 0.0
        for instance in await self._fleet.instances():
            hosts[str(instance.state)] = hosts.get(str(instance.state), 0) + 1
            if live(instance) and instance.spans and instance.spans[-1].ended_s is None:
                usd_hour += instance.offer.price_usd_hour
        return StatusView(
            version=self._version,
            state_dir=self._state_dir,
            public_url=self._public_url,
            sessions=sessions,
            jobs=jobs,
            hosts=hosts,
            edges=self._edges,
            uptime_s=uptime_s,
            usd_hour=usd_hour,
        )

    def _of_claim(self, view: ClaimView | None) -> HostView | None:
        return self._host(view.instance) if view is not None and view.instance is not None else None

    def _host(self, instance: Instance) -> HostView:
        report: HostReport | None = self._links.reports().get(instance.id)
        notice = instance.notice
        return HostView(
            id=instance.id,
            state=str(instance.state),
            role=instance.role,
            session_id=instance.owner,
            offer=offer_view(instance.offer),
            connected=self._links.connected(instance.id),
            ready=report.ready if report else False,
            created_s=instance.created_s,
            ended_s=instance.ended_s,
            ended_reason=instance.ended_reason,
            notice=str(notice.kind) if notice else "",
            notice_deadline_s=notice.deadline_s if notice else None,
            cpu_percent=report.cpu_percent if report else 0.0,
            memory_used_mib=report.memory_used_mib if report else 0.0,
            memory_total_mib=report.memory_total_mib if report else 0.0,
            tasks=_tasks(report),
            detail=report.detail if report else "",
            isolation=report.isolation if report else (),
            reason=instance.reason,
        )


def _tasks(report: HostReport | None) -> tuple[str, ...]:
    if report is None:
        return ()
    return tuple(f"{t.kind} {t.session_id or t.task_id} {t.state}" for t in report.tasks)


def _standby_warm(view: ClaimView | None, session: Session) -> bool:
    """Whether a kernel waits there that has imported what the session's image says."""
    if view is None or view.report is None or not view.usable:
        return False
    wanted = set(session.image.imports).intersection(session.imports)
    return any(
        t.kind == "standby" and t.state == "ready" and wanted <= set(t.imports)
        for t in view.report.tasks
    )


def offer_view(offer: Offer) -> OfferView:
    """An offer as a person reads it."""
    return OfferView(
        key=offer.key,
        provider=offer.provider,
        region=offer.region,
        zone=offer.zone,
        instance_type=offer.instance_type,
        purchase_option=str(offer.purchase_option),
        price_usd_hour=offer.price_usd_hour,
        on_demand_usd_hour=offer.on_demand_usd_hour,
        vcpus=offer.resources.vcpus,
        memory_gib=offer.resources.memory_gib,
        interruption_bucket=offer.interruption_bucket,
    )


def move_view(record: MoveRecord) -> MoveView:
    """A finished move."""
    return MoveView(
        cause=str(record.cause),
        reason=record.reason,
        epoch=record.epoch,
        at_s=record.started_s,
        frozen_s=record.frozen_s,
        from_host=record.from_host,
        to_host=record.to_host,
        from_offer=record.from_offer,
        to_offer=record.to_offer,
        bytes_moved=record.bytes_moved,
        kept=record.kept,
        rebuilt=_parts(record.rebuilt),
        refused=_parts(record.refused),
        warm=record.warm,
        rerun=record.rerun,
    )


def _parts(variables: Sequence[VariableReport]) -> tuple[PartView, ...]:
    return tuple(PartView(name=v.name, reason=v.reason) for v in variables)


def story_view(line: StoryLine) -> StoryView:
    """A line of a story."""
    return StoryView(
        seq=line.seq,
        at_s=line.at_s,
        object_id=line.object_id,
        event=line.event,
        reason=line.reason,
    )
