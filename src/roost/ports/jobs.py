"""Jobs on hosts, as the room ``jobs`` sees them: an order, what a host reports, what is kept as blobs.

A job's files and its output are blobs, named by digest. ``JobFiles`` is the state a run begins with
(workspace and checkpoints); ``JobOutput`` is what the script has printed, over all runs.
"""

from typing import Protocol, TypeVar

import msgspec

from roost.ports.errors import Never
from roost.ports.files import LeftOut, TreeEntry

FORMAT = 1


class JobOrder(msgspec.Struct, frozen=True, kw_only=True):
    """Run a job at an epoch. The same order again changes nothing."""

    job_id: str
    epoch: int
    argv: tuple[str, ...]
    """``python train.py …``, in the workspace, with the host's environment first on the path."""
    files: str
    """Digest of the ``JobFiles`` to begin with."""
    output: str = ""
    """Digest of the ``JobOutput`` to go on from; empty = nothing was printed yet."""
    notice_s: float = 0.0
    """How long before it is taken the host's cloud tells so (the offer's)."""


class SavedFiles(msgspec.Struct, frozen=True, kw_only=True):
    """Files of a job that are durable off its host."""

    digest: str
    number: int
    """Rises within an epoch."""
    at_s: float
    bytes_moved: int = 0


class SavedOutput(msgspec.Struct, frozen=True, kw_only=True):
    """Output of a job that is durable off its host."""

    digest: str
    size: int


class JobReport(msgspec.Struct, frozen=True, kw_only=True):
    """A run as its host sees it. Its state and exit code are those of the task."""

    told: bool = False
    """The script was sent SIGTERM before it ended: what it ended with says nothing of its work."""
    files: SavedFiles | None = None
    output: SavedOutput | None = None
    trouble: str = ""
    """What a person should know: files that could not be saved, ..."""


class JobFiles(msgspec.Struct, frozen=True, kw_only=True):
    """Workspace and checkpoints of a job at one moment (a blob)."""

    format: int = FORMAT
    workspace: dict[str, TreeEntry] = {}
    checkpoints: dict[str, TreeEntry] = {}
    left_out: tuple[LeftOut, ...] = ()

    def digests(self) -> tuple[str, ...]:
        """Every chunk it needs, each once, in order."""
        trees = (*self.checkpoints.values(), *self.workspace.values())
        return tuple(dict.fromkeys(digest for entry in trees for digest in entry.digests))


class JobOutput(msgspec.Struct, frozen=True, kw_only=True):
    """What a job has printed: its pieces in order (a blob)."""

    format: int = FORMAT
    pieces: tuple[tuple[str, int], ...] = ()
    """(digest, bytes) of each piece."""
    left_out: int = 0
    """Bytes after the largest output that is kept."""

    @property
    def size(self) -> int:
        """Bytes that are kept."""
        return sum(size for _, size in self.pieces)


Content = JobFiles | JobOutput
C = TypeVar("C", JobFiles, JobOutput)
_encoder = msgspec.msgpack.Encoder()
_files = msgspec.msgpack.Decoder(JobFiles)
_output = msgspec.msgpack.Decoder(JobOutput)


def encode(content: Content) -> bytes:
    """The bytes to store."""
    return _encoder.encode(content)


def decode_files(content: bytes) -> JobFiles:
    """``Never`` when the bytes are no ``JobFiles`` or of a newer format."""
    try:
        return _known(_files.decode(content))
    except (msgspec.DecodeError, msgspec.ValidationError) as error:
        raise Never(f"the files of the job cannot be read: {error}") from error


def decode_output(content: bytes) -> JobOutput:
    """``Never`` when the bytes are no ``JobOutput`` or of a newer format."""
    try:
        return _known(_output.decode(content))
    except (msgspec.DecodeError, msgspec.ValidationError) as error:
        raise Never(f"the output of the job cannot be read: {error}") from error


def _known(content: C) -> C:
    if content.format > FORMAT:
        raise Never(
            f"the job's data has format {content.format}, {FORMAT} is known here",
            hint="install the newer Roost",
        )
    return content


class Jobs(Protocol):
    """Commands to the jobs of one host. Each may be repeated; an older epoch gets ``StaleEpoch``.

    How a run goes on is in the host's reports (``TaskReport.job``). ``Retry`` while not connected.
    """

    async def start(self, host_id: str, order: JobOrder) -> None:
        """Accept the run; fetching its files and starting it go on from there."""

    async def stop(self, host_id: str, job_id: str, epoch: int, grace_s: float) -> None:
        """Send SIGTERM, after the grace SIGKILL; the report says when it has ended and is saved."""
