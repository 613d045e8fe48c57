"""Commands and queries of jobs. Writes intent and wakes the controller; never runs anything."""

from collections.abc import Callable, Mapping

import msgspec
from blake3 import blake3

from roost.fleet.model import Spread
from roost.jobs.model import Job, JobState
from roost.kit.ids import Ids
from roost.ports import jobs as formats
from roost.ports.blobs import Blobs
from roost.ports.clock import Clock
from roost.ports.errors import Conflict, Gone, Invalid
from roost.ports.files import TreeEntry, clean
from roost.ports.jobs import JobFiles
from roost.ports.store import Store, StoryLine, Table
from roost.ports.values import Ask, Image

WRITE_ATTEMPTS = 10
MOST_RETRIES = 1000
LARGEST_READ = 1 << 20
"""Output given in one answer, in bytes."""


class JobService:
    """What doors call."""

    def __init__(
        self, store: Store, clock: Clock, ids: Ids, blobs: Blobs, wake: Callable[[str], None]
    ) -> None:
        self._store = store
        self._clock = clock
        self._ids = ids
        self._wake = wake
        self.blobs = blobs
        self.jobs = Table(store, "job", Job)

    async def submit(
        self,
        *,
        name: str,
        argv: tuple[str, ...],
        workspace: Mapping[str, TreeEntry],
        ask: Ask,
        image: Image,
        spread: Spread = Spread.POOL,
        retries: int = 0,
        token: str = "",
        deadline_s: float | None = None,
        work_s: float = 0.0,
    ) -> Job:
        """Record a job whose files are stored; from here it is run to its end. ``Invalid``,
        ``Conflict``.

        The same ``token`` again returns the job that was made with it. With ``deadline_s`` (UTC)
        ``work_s`` says how long it takes undisturbed: it runs on demand when spot would be too late.
        """
        if not argv or not 0 <= retries <= MOST_RETRIES:
            raise Invalid(f"a job needs a command and 0 to {MOST_RETRIES} retries")
        self._check_deadline(deadline_s, work_s)
        token = token or self._ids.secret()
        for known in await self.list_all():
            if known.token == token:
                return known
        files = await self._store_files(workspace)
        job = Job(
            id=self._ids.new("j"),
            name=name,
            state=JobState.ACCEPTED,
            epoch=0,
            token=token,
            argv=argv,
            ask=ask,
            image=image,
            files=files,
            spread=spread,
            retries=retries,
            deadline_s=deadline_s,
            work_s=work_s,
            created_s=self._clock.now_s(),
        )
        reason = f"{' '.join(argv)[:200]}: {ask.vcpus:g} vCPU, {ask.memory_gib:g} GiB"
        await self._store.commit([self.jobs.row(job)], [self._line(job.id, "Accepted", reason)])
        self._wake(job.id)
        return job

    def _check_deadline(self, deadline_s: float | None, work_s: float) -> None:
        if deadline_s is None:
            return
        if work_s <= 0:
            raise Invalid(
                "a job with a deadline must say how long it takes", hint="for example --takes 4h"
            )
        spare_s = deadline_s - self._clock.now_s() - work_s
        if spare_s < 0:
            raise Invalid(
                f"the deadline is {-spare_s / 3600:.1f} h too early for {work_s / 3600:.1f} h of work",
                hint="a later deadline, or hosts with more vCPUs and a smaller --takes",
            )

    async def _store_files(self, workspace: Mapping[str, TreeEntry]) -> str:
        for path in workspace:
            if clean(path) != path:
                raise Invalid(f"{path!r} is not a path inside the workspace")
        files = JobFiles(workspace=dict(workspace))
        missing = await self.blobs.missing(files.digests())
        if missing:
            raise Conflict(f"{len(missing)} parts of files are not stored", hint="send them first")
        content = formats.encode(files)
        digest = blake3(content).hexdigest()
        await self.blobs.put(digest, content)
        return digest

    async def get(self, name_or_id: str) -> Job:
        """A job by id, or the newest one of a name. ``Gone`` if there is none."""
        stored = await self.jobs.get(name_or_id)
        if stored is not None:
            return stored.value
        named = [j for j in await self.list_all() if j.name == name_or_id]
        if not named:
            raise Gone(f"no job {name_or_id}", hint="`roost job list` shows them")
        return named[-1]

    async def list_all(self) -> list[Job]:
        """All jobs, oldest first."""
        found = [j.value for j in await self.jobs.find()]
        return sorted(found, key=lambda j: (j.created_s, j.id))

    async def stop(self, job_id: str) -> Job:
        """It shall end; returns the job as recorded. One that has ended stays as it is."""
        for _ in range(WRITE_ATTEMPTS):
            stored = await self.jobs.get(job_id)
            if stored is None:
                raise Gone(f"no job {job_id}", hint="`roost job list` shows them")
            job = stored.value
            if job.ended or job.desired == "stopped":
                return job
            changed = msgspec.structs.replace(job, desired="stopped")
            line = self._line(job_id, "StopAsked", "asked to stop")
            try:
                await self._store.commit([self.jobs.row(changed, stored)], [line])
            except Conflict:
                continue
            self._wake(job_id)
            return changed
        raise Conflict(f"{job_id} changes too quickly", hint="try again")

    async def output(self, job: Job, offset: int, most: int = LARGEST_READ) -> bytes:
        """What the job has printed from byte ``offset`` on, as far as it is durable, up to ``most``."""
        if job.output is None or offset >= job.output.size or offset < 0:
            return b""
        index = formats.decode_output(await self.blobs.get(job.output.digest))
        found, start = bytearray(), 0
        for digest, size in index.pieces:
            if start + size > offset and len(found) < most:
                piece = await self.blobs.get(digest)
                found += piece[max(0, offset - start) :]
            start += size
        return bytes(found[:most])

    async def files(self, job: Job) -> JobFiles:
        """The newest durable files of the job."""
        return formats.decode_files(await self.blobs.get(job.files))

    def _line(self, object_id: str, event: str, reason: str) -> StoryLine:
        return StoryLine(object_id=object_id, at_s=self._clock.now_s(), event=event, reason=reason)
