"""The checkpoint blob: everything a session needs to go on elsewhere, by content.

It names its chunks and holds none of them; it is stored under its own BLAKE3 digest, which is
``Checkpoint.digest``. Written and restored by agents; read by whoever collects unused blobs.
"""

import msgspec

from roost.ports.errors import Never
from roost.ports.files import LeftOut, TreeEntry
from roost.ports.keeper import RunningCell
from roost.ports.wire import Output

FORMAT = 2
PLAIN = 1
"""The format of a checkpoint made between two cells: hosts that know no running cell can take it."""


class CheckpointBlob(msgspec.Struct, frozen=True, kw_only=True):
    """A session at one moment."""

    format: int = PLAIN
    session_id: str
    epoch: int
    number: int
    engine: bytes
    """The engine's manifest, as the engine wrote it; empty when the kernel has no state yet."""
    chunks: tuple[str, ...] = ()
    """Digests of the engine's chunks. The workspace's are in ``workspace``."""
    spool: tuple[Output, ...] = ()
    """Outputs the bridge had not acknowledged."""
    finished: tuple[str, ...] = ()
    """msg_ids whose effects are contained."""
    workspace: dict[str, TreeEntry] = {}
    left_out: tuple[LeftOut, ...] = ()
    files_seq: int = 0
    environment: tuple[str, ...] = ()
    """Installed packages, pinned (``name==version``)."""
    running: RunningCell | None = None
    """The cell it was made in (``format`` is 2 then): the next kernel goes on with it."""

    def digests(self) -> tuple[str, ...]:
        """Every chunk this checkpoint needs, each once, in order."""
        files = (digest for entry in self.workspace.values() for digest in entry.digests)
        return tuple(dict.fromkeys((*self.chunks, *files)))


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(CheckpointBlob)


def encode(blob: CheckpointBlob) -> bytes:
    """The bytes to store."""
    return _encoder.encode(blob)


def decode(content: bytes) -> CheckpointBlob:
    """The checkpoint in ``content``. ``Never`` when it is damaged or of a newer format."""
    try:
        blob = _decoder.decode(content)
    except (msgspec.DecodeError, msgspec.ValidationError) as error:
        raise Never(f"the checkpoint cannot be read: {error}") from error
    if blob.format > FORMAT:
        raise Never(
            f"the checkpoint has format {blob.format}, this host knows {FORMAT}",
            hint="install the newer Roost on the host",
        )
    return blob
