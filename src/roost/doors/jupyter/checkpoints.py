"""JupyterLab's checkpoints ("revert to checkpoint"): the last saved copy of a file, beside the journal.

Not to be confused with a session's checkpoints, which hold its variables.
"""

import hashlib
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from jupyter_server.services.contents.checkpoints import AsyncCheckpoints
from tornado.web import HTTPError

_ID = "checkpoint"


class WorkspaceCheckpoints(AsyncCheckpoints):
    """One checkpoint per file, as JupyterLab expects."""

    def _place(self, path: str) -> Path:
        folder: Path = self.parent.workspace.directory / "checkpoints"
        folder.mkdir(exist_ok=True)
        return folder / hashlib.sha256(path.strip("/").encode()).hexdigest()

    def _model(self, place: Path) -> dict[str, Any]:
        at = datetime.fromtimestamp(round(place.stat().st_mtime, 3), UTC)
        return {"id": _ID, "last_modified": at}

    def _known(self, checkpoint_id: str, path: str) -> Path:
        place = self._place(path)
        if checkpoint_id != _ID or not place.exists():
            raise HTTPError(404, f"{path} has no checkpoint {checkpoint_id}")
        return place

    async def create_checkpoint(self, contents_mgr: Any, path: str) -> dict[str, Any]:
        """Keep a copy of the file as it is."""
        content = await contents_mgr.read_bytes(path)
        place = self._place(path)
        part = place.with_suffix(".part")
        part.write_bytes(content)
        part.replace(place)
        return self._model(place)

    async def restore_checkpoint(self, contents_mgr: Any, checkpoint_id: str, path: str) -> None:
        """Write the copy back."""
        await contents_mgr.write_bytes(path, self._known(checkpoint_id, path).read_bytes())

    async def list_checkpoints(self, path: str) -> list[dict[str, Any]]:
        """At most one."""
        place = self._place(path)
        return [self._model(place)] if place.exists() else []

    async def rename_checkpoint(self, checkpoint_id: str, old_path: str, new_path: str) -> None:
        """Follow the file."""
        self._known(checkpoint_id, old_path).replace(self._place(new_path))

    async def delete_checkpoint(self, checkpoint_id: str, path: str) -> None:
        """Forget the copy."""
        self._known(checkpoint_id, path).unlink()
