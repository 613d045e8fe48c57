"""Commands and queries of services. Writes intent and wakes the controller; never runs anything."""

from collections.abc import Callable, Mapping

import msgspec
from blake3 import blake3

from roost.kit.ids import Ids
from roost.ports import jobs as formats
from roost.ports.blobs import Blobs
from roost.ports.clock import Clock
from roost.ports.errors import Conflict, Gone, Invalid
from roost.ports.files import TreeEntry, clean
from roost.ports.jobs import JobFiles
from roost.ports.store import Store, Stored, StoryLine, Table
from roost.services import machine
from roost.services.checks import check, check_fits, check_hosts
from roost.services.model import Outcome, Pools, Revision, Service, ServiceState, Wish

WRITE_ATTEMPTS = 10
NOT_FOUND = "`roost service list` shows the services"


class ServiceService:
    """What doors call."""

    def __init__(
        self,
        store: Store,
        clock: Clock,
        ids: Ids,
        blobs: Blobs,
        pools: Pools,
        wake: Callable[[str], None],
    ) -> None:
        self._store = store
        self._clock = clock
        self._ids = ids
        self._blobs = blobs
        self._pools = pools
        self._wake = wake
        self.table = Table(store, "service", Service)

    async def create(self, name: str, wish: Wish, token: str = "") -> Service:
        """Record a service; from here it is kept running. ``Invalid``, ``Conflict``, ``Gone`` (group).

        The same ``token`` again returns the service that was made with it.
        """
        check(name, wish)
        check_fits(wish, await self._pools.pool(wish.group))
        for known in await self.list_all():
            if token and known.token == token:
                return known
            if known.name == name:
                raise Conflict(
                    f"there is a service {name} already",
                    hint="`roost service update` changes it, `roost apply` does either",
                )
        check_hosts("", wish, await self.list_all())
        now_s = self._clock.now_s()
        least = max(1, wish.min)
        service = Service(
            id=self._ids.new("svc"),
            name=name,
            state=ServiceState.STARTING,
            token=token or self._ids.secret(),
            revision=1,
            revisions=(Revision(number=1, spec=wish.spec, created_s=now_s),),
            wish=wish,
            planned=least,
            needed=least,
            reason="at first",
            created_s=now_s,
            changed_s=now_s,
        )
        line = self._line(service.id, "Created", f"{name}: {_said(wish)}")
        await self._store.commit([self.table.row(service)], [line])
        self._wake(service.id)
        return service

    async def update(self, name_or_id: str, wish: Wish) -> tuple[Service, bool]:
        """Another wish: a new revision where what runs differs. Returns whether anything did."""

        def change(service: Service) -> tuple[Service, str, str] | None:
            check(service.name, wish)
            if wish == service.wish:
                return None
            if wish.spec == service.wish.spec:
                changed = msgspec.structs.replace(service, wish=wish)
                return changed, "Changed", _said(wish)
            changed = machine.update(service, wish.spec, self._clock.now_s())
            changed = msgspec.structs.replace(changed, wish=wish)
            return changed, "Updating", f"revision {changed.revision}: {_said(wish)}"

        check_fits(wish, await self._pools.pool(wish.group))
        check_hosts((await self.get(name_or_id)).id, wish, await self.list_all())
        return await self._change(name_or_id, change)

    async def apply(self, name: str, wish: Wish) -> tuple[Service, str]:
        """Make or change it, as needed; says ``created``, ``updated`` or ``unchanged``."""
        if any(service.name == name for service in await self.list_all()):
            service, different = await self.update(name, wish)
            return service, "updated" if different else "unchanged"
        return await self.create(name, wish), "created"

    async def scale(self, name_or_id: str, replicas: int | None) -> Service:
        """A person's number of replicas, within min and max; None = the policies decide again."""

        def change(service: Service) -> tuple[Service, str, str] | None:
            least, most = service.wish.min, service.wish.max
            if replicas is not None and not least <= replicas <= most:
                raise Invalid(
                    f"{service.name} has between {least} and {most} replicas, not {replicas}",
                    hint="`roost service update --min --max` changes the limits",
                )
            if service.person == replicas:
                return None
            why = "the policies decide" if replicas is None else f"a person wants {replicas}"
            return msgspec.structs.replace(service, person=replicas), "Scaled", why

        return (await self._change(name_or_id, change))[0]

    async def rollback(self, name_or_id: str, number: int | None = None) -> Service:
        """Run an earlier revision again, as a new one: ``number``, or the last good one before this."""

        def change(service: Service) -> tuple[Service, str, str] | None:
            back = _earlier(service, number)
            changed = machine.update(service, back.spec, self._clock.now_s())
            wish = msgspec.structs.replace(service.wish, spec=back.spec)
            changed = msgspec.structs.replace(changed, wish=wish)
            reason = f"revision {changed.revision} is revision {back.number} again"
            return changed, "Updating", reason

        return (await self._change(name_or_id, change))[0]

    async def delete(self, name_or_id: str) -> Service:
        """Drain and end all its replicas, then forget its addresses."""

        def change(service: Service) -> tuple[Service, str, str] | None:
            if service.state is ServiceState.DELETING:
                return None
            return machine.deleting(service), "Deleting", "asked to"

        return (await self._change(name_or_id, change))[0]

    async def planned(self, service_id: str, planned: int, needed: int, reason: str) -> bool:
        """Scaling's number: its one writer calls this. Whether it is another than before."""

        def change(service: Service) -> tuple[Service, str, str] | None:
            if (service.planned, service.needed) == (planned, needed) or service.deleted:
                return None
            changed = msgspec.structs.replace(
                service, planned=planned, needed=needed, reason=reason
            )
            if service.planned == planned:  # what of them is needed changes all the time
                return changed, "", ""
            why = f"{service.planned} -> {planned} replicas ({needed} needed): {reason}"
            return changed, "Planned", why

        return (await self._change(service_id, change))[1]

    async def get(self, name_or_id: str) -> Service:
        """A service by id or name. ``Gone`` if there is none."""
        return (await self._find(name_or_id)).value

    async def list_all(self) -> list[Service]:
        """All services that are not deleted, by name."""
        found = [s.value for s in await self.table.find() if not s.value.deleted]
        return sorted(found, key=lambda s: s.name)

    async def store_files(self, files: Mapping[str, TreeEntry]) -> str:
        """Record the files a revision runs in; returns their digest. ``Conflict`` while parts miss."""
        for path in files:
            if clean(path) != path:
                raise Invalid(f"{path!r} is not a path inside the folder")
        tree = JobFiles(workspace=dict(files))
        missing = await self._blobs.missing(tree.digests())
        if missing:
            raise Conflict(f"{len(missing)} parts of files are not stored", hint="send them first")
        content = formats.encode(tree)
        digest = blake3(content).hexdigest()
        await self._blobs.put(digest, content)
        return digest

    async def _find(self, name_or_id: str) -> Stored[Service]:
        stored = await self.table.get(name_or_id)
        if stored is not None:
            return stored
        for named in await self.table.find():
            if named.value.name == name_or_id and not named.value.deleted:
                return named
        raise Gone(f"no service {name_or_id}", hint=NOT_FOUND)

    async def _change(
        self, name_or_id: str, change: Callable[[Service], tuple[Service, str, str] | None]
    ) -> tuple[Service, bool]:
        for _ in range(WRITE_ATTEMPTS):
            stored = await self._find(name_or_id)
            service = stored.value
            if service.deleted:
                raise Gone(f"service {service.name} is deleted", hint=NOT_FOUND)
            try:
                changed = change(service)
            except machine.InvalidTransition:
                raise Conflict(
                    f"service {service.name} is {service.state}", hint="wait until it is gone"
                ) from None
            if changed is None:
                return service, False
            new, event, reason = changed
            try:
                lines = [self._line(service.id, event, reason)] if event else []
                await self._store.commit([self.table.row(new, stored)], lines)
            except Conflict:
                continue
            self._wake(service.id)
            return new, True
        raise Conflict(f"{name_or_id} changes too quickly", hint="try again")

    def _line(self, object_id: str, event: str, reason: str) -> StoryLine:
        return StoryLine(object_id=object_id, at_s=self._clock.now_s(), event=event, reason=reason)


def _earlier(service: Service, number: int | None) -> Revision:
    if number is not None:
        found = service.numbered(number)
        if found is None or found.number == service.revision:
            known = ", ".join(str(r.number) for r in service.revisions)
            raise Invalid(f"there is no other revision {number}", hint=f"known are {known}")
        return found
    good = [
        r for r in service.revisions if r.outcome is Outcome.GOOD and r.number != service.revision
    ]
    if not good:
        raise Invalid(
            f"service {service.name} has no earlier good revision",
            hint="`roost service show` lists the revisions",
        )
    return max(good, key=lambda r: r.number)


def _said(wish: Wish) -> str:
    spec = wish.spec
    what = spec.image or " ".join(spec.command)
    if spec.image and spec.command:
        what = f"{spec.image} {' '.join(spec.command)}"
    return (
        f"{what[:200]}: {spec.vcpus:g} vCPU, {spec.memory_mib:g} MiB, "
        f"{wish.min} to {wish.max} replicas on {wish.group}"
    )
