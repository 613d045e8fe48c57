"""What a host remembers over a restart of its agent: which epochs are over, what became durable.

One small file per session beside the captures; it lives and dies with the host.
"""

from pathlib import Path

import msgspec

from roost.agent.model import SessionMemory
from roost.ports.kernels import Checkpoint

_encoder = msgspec.json.Encoder()
_decoder = msgspec.json.Decoder(SessionMemory)


class Memory:
    """Per session; every change is on disk before it returns."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._sessions: dict[str, SessionMemory] = {}
        folder.mkdir(parents=True, exist_ok=True)
        for path in sorted(folder.glob("*.json")):
            try:
                kept = _decoder.decode(path.read_bytes())
            except (OSError, msgspec.DecodeError, msgspec.ValidationError):
                continue  # a torn write at the end of the host's former life
            self._sessions[kept.session_id] = kept

    def over(self, session_id: str) -> int:
        """The highest epoch that was fenced or stopped here (0: none)."""
        kept = self._sessions.get(session_id)
        return kept.over if kept else 0

    def set_over(self, session_id: str, epoch: int) -> None:
        """No kernel of an epoch up to this one starts here again."""
        kept = self._sessions.get(session_id, SessionMemory(session_id=session_id))
        if epoch > kept.over:
            self._keep(msgspec.structs.replace(kept, over=epoch))

    def checkpoint(self, session_id: str) -> Checkpoint | None:
        """The last durable capture made here."""
        kept = self._sessions.get(session_id)
        return kept.checkpoint if kept else None

    def set_checkpoint(self, checkpoint: Checkpoint) -> None:
        """A capture is durable off the host (an older one than known changes nothing)."""
        sid = checkpoint.session_id
        kept = self._sessions.get(sid, SessionMemory(session_id=sid))
        known = kept.checkpoint
        if known is None or (known.epoch, known.number) < (checkpoint.epoch, checkpoint.number):
            self._keep(msgspec.structs.replace(kept, checkpoint=checkpoint))

    def _keep(self, kept: SessionMemory) -> None:
        self._sessions[kept.session_id] = kept
        path = self._folder / f"{kept.session_id}.json"
        part = path.with_suffix(".part")
        part.write_bytes(_encoder.encode(kept))
        part.replace(path)
