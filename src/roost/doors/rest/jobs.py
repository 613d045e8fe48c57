"""The endpoints of jobs, and of the blobs that carry their files. Holds no rules and keeps no state."""

from collections.abc import Awaitable, Callable
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from roost.client.model import DeadlineView, JobView, MissingBlobs, RunView, StartJob
from roost.doors.rest.plumbing import answer, ask_of, one_of, read, read_bytes
from roost.doors.rest.views import offer_view
from roost.fleet.model import Spread
from roost.jobs.deadline import Where
from roost.jobs.model import Job, JobState
from roost.jobs.plan import hurried, standing
from roost.jobs.service import JobService
from roost.ports.clock import Clock
from roost.ports.errors import Invalid
from roost.ports.files import CHUNK
from roost.ports.values import Ask, Image

LARGEST_JOB = 16 << 20
"""A job's body names every file of its workspace."""
MOST_ARGUMENTS = 10_000


class JobDoor:
    """The endpoints of ``/api/v1/jobs`` and ``/api/v1/blobs``."""

    def __init__(
        self,
        *,
        jobs: JobService,
        clock: Clock,
        load_image: Callable[[str], Image],
        check_ask: Callable[[Ask], Awaitable[None]],
    ) -> None:
        self._jobs = jobs
        self._clock = clock
        self._load_image = load_image
        self._check_ask = check_ask

    @classmethod
    def table(cls) -> list[tuple[str, str, Any]]:
        """Method, path and endpoint of every call."""
        return [
            ("POST", "/api/v1/jobs", cls.start),
            ("GET", "/api/v1/jobs", cls.list_jobs),
            ("GET", "/api/v1/jobs/{id}", cls.show),
            ("DELETE", "/api/v1/jobs/{id}", cls.stop),
            ("GET", "/api/v1/jobs/{id}/output", cls.output),
            ("GET", "/api/v1/jobs/{id}/files", cls.files),
            ("POST", "/api/v1/blobs/missing", cls.missing),
            ("PUT", "/api/v1/blobs/{digest}", cls.put),
            ("GET", "/api/v1/blobs/{digest}", cls.blob),
        ]

    async def start(self, request: Request) -> Response:
        """Record a job whose files are stored; it is run to its end."""
        body = await read(request, StartJob, LARGEST_JOB)
        if len(body.argv) > MOST_ARGUMENTS:
            raise Invalid(f"more than {MOST_ARGUMENTS} arguments")
        ask = ask_of(body)
        await self._check_ask(ask)
        job = await self._jobs.submit(
            name=body.name or "job",
            argv=body.argv,
            workspace=body.workspace,
            ask=ask,
            image=self._load_image(body.image),
            spread=one_of(Spread, body.spread, "spread"),
            retries=body.retries,
            deadline_s=body.deadline_s,
            work_s=body.work_s,
            token=body.token,
        )
        return answer(self._view(job), status=201)

    async def list_jobs(self, _request: Request) -> Response:
        """All jobs."""
        return answer([self._view(job) for job in await self._jobs.list_all()])

    async def show(self, request: Request) -> Response:
        """One job by id or name."""
        return answer(self._view(await self._job(request)))

    async def stop(self, request: Request) -> Response:
        """End a job; its files and output stay."""
        job = await self._job(request)
        return answer(self._view(await self._jobs.stop(job.id)))

    async def output(self, request: Request) -> Response:
        """What it has printed, from byte ``?offset=`` on."""
        offset = request.query_params.get("offset", "0")
        if not offset.isdigit():
            raise Invalid("offset must be a whole number")
        content = await self._jobs.output(await self._job(request), int(offset))
        return Response(content, media_type="application/octet-stream")

    async def files(self, request: Request) -> Response:
        """Its newest durable files, by content."""
        files = await self._jobs.files(await self._job(request))
        return answer(files.workspace)

    async def missing(self, request: Request) -> Response:
        """Those of the digests that are not stored."""
        body = await read(request, MissingBlobs)
        absent = await self._jobs.blobs.missing(body.digests)
        return answer(MissingBlobs(digests=tuple(absent)))

    async def put(self, request: Request) -> Response:
        """Store a blob of up to 4 MiB under the BLAKE3 digest of its content."""
        content = await read_bytes(request, CHUNK)
        await self._jobs.blobs.put(request.path_params["digest"], content)
        return Response(status_code=204)

    async def blob(self, request: Request) -> Response:
        """The content of a blob."""
        content = await self._jobs.blobs.get(request.path_params["digest"])
        return Response(content, media_type="application/octet-stream")

    async def _job(self, request: Request) -> Job:
        return await self._jobs.get(request.path_params["id"])

    def _view(self, job: Job) -> JobView:
        return job_view(job, self._clock.now_s())


def job_view(job: Job, now_s: float) -> JobView:
    """A job as clients see it."""
    return JobView(
        id=job.id,
        name=job.name,
        state=str(job.state),
        desired=job.desired,
        epoch=job.epoch,
        argv=job.argv,
        host_id=job.host_id,
        offer=offer_view(job.offer) if job.offer else None,
        retries=job.retries,
        failures=job.failures,
        exit_code=job.exit_code,
        runs=tuple(
            RunView(
                epoch=run.epoch,
                host_id=run.host_id,
                offer=run.offer,
                started_s=run.started_s,
                ended_s=run.ended_s,
                reason=run.reason,
                exit_code=run.exit_code,
            )
            for run in job.runs
        ),
        saved_at_s=job.saved.at_s if job.saved else None,
        output_bytes=job.output.size if job.output else 0,
        created_s=job.created_s,
        ended_s=job.ended_s,
        message=job.message,
        deadline=deadline_view(job, now_s),
    )


def deadline_view(job: Job, now_s: float) -> DeadlineView | None:
    """How a job stands, or stood when it ended, to its deadline."""
    if job.deadline_s is None:
        return None
    stands = standing(job, job.ended_s or now_s)
    waits = job.state is JobState.ACCEPTED and hurried(job) and job.where != Where.ON_DEMAND
    return DeadlineView(
        at_s=job.deadline_s,
        left_s=stands.left_s,
        spare_s=stands.slack_s,
        where=job.where,
        why=job.why,
        on_demand_at_s=now_s + max(0.0, stands.spare_s) if waits else None,
    )
