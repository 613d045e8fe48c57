"""JupyterLab's file browser and editor on a session's workspace.

Translates between the contents API and ``Workspace``; rules about durability and moves live there. It
touches no file of the workspace itself and runs no code of a notebook.
"""

import base64
import hashlib
import mimetypes
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import nbformat
from jupyter_server.services.contents.manager import AsyncContentsManager
from tornado.web import HTTPError
from traitlets import Instance

from roost.doors.jupyter.checkpoints import WorkspaceCheckpoints
from roost.notebooks.workspace import Workspace
from roost.ports.errors import Conflict, Denied, Gone, Invalid, Retry, RoostError
from roost.ports.files import Entry

Model = dict[str, Any]

_STATUS: dict[type[RoostError], int] = {
    Gone: 404,
    Denied: 403,
    Conflict: 409,
    Invalid: 400,
    Retry: 503,
}


@contextmanager
def http_errors() -> Iterator[None]:
    """Typed errors as the HTTP errors JupyterLab shows."""
    try:
        yield
    except RoostError as error:
        raise HTTPError(_STATUS.get(type(error), 500), str(error)) from error


def moment(mtime_ns: int) -> datetime:
    """A modification time as the API's aware datetime (microseconds, exact)."""
    seconds, rest = divmod(mtime_ns, 1_000_000_000)
    return datetime.fromtimestamp(seconds, UTC).replace(microsecond=rest // 1000)


class WorkspaceContents(AsyncContentsManager):
    """Contents manager over a ``Workspace``; created by the server app, which has one."""

    workspace = Instance(Workspace)

    def _workspace_default(self) -> Workspace:
        workspace: Workspace = self.parent.workspace
        return workspace

    def _checkpoints_class_default(self) -> type:
        return WorkspaceCheckpoints

    def _files_handler_params_default(self) -> dict[str, str]:
        return {"path": ""}  # the handler asks this manager, but inherits an argument it never uses

    # --- questions ---------------------------------------------------------------------------------

    async def _entry(self, path: str, *, hash: bool = False) -> Entry | None:
        with http_errors():
            return await self.workspace.stat(path.strip("/"), hash=hash)

    async def file_exists(self, path: str = "") -> bool:
        """Whether there is a file at ``path``; a save during a move does not wait to know."""
        if not self.workspace.connected and not self.workspace.remembers(path.strip("/")):
            return False
        entry = await self._entry(path)
        return entry is not None and entry.kind == "file"

    async def dir_exists(self, path: str) -> bool:
        """Whether there is a folder at ``path``."""
        if not path.strip("/"):
            return True  # also while the session moves: the page asks this first
        entry = await self._entry(path)
        return entry is not None and entry.kind == "dir"

    async def exists(self, path: str) -> bool:
        """Whether there is anything at ``path``."""
        return not path.strip("/") or await self._entry(path) is not None

    async def is_hidden(self, path: str) -> bool:
        """Whether a part of ``path`` begins with a dot."""
        return any(part.startswith(".") for part in path.strip("/").split("/"))

    async def get_kernel_path(self, path: str, model: Model | None = None) -> str:
        """Kernels start in the workspace itself, on the host."""
        return ""

    def info_string(self) -> str:
        """For the log."""
        return "Serving the workspace of a Roost session"

    # --- get ---------------------------------------------------------------------------------------

    async def get(
        self,
        path: str,
        content: bool = True,
        type: str | None = None,
        format: str | None = None,
        require_hash: bool = False,
    ) -> Model:
        """The model of a file, notebook or folder, with or without content and SHA-256."""
        path = path.strip("/")
        if not self.allow_hidden and await self.is_hidden(path):
            raise HTTPError(404, f"{path} does not exist")
        entry = await self._entry(path, hash=bool(require_hash) and not content)
        if entry is None or entry.kind == "other":
            raise HTTPError(404, f"{path} does not exist")
        if entry.kind == "dir":
            if type not in (None, "directory"):
                raise HTTPError(400, f"{path} is a folder, not a {type}")
            return await self._folder(path, entry, content)
        if type == "directory":
            raise HTTPError(400, f"{path} is not a folder")
        model = _model(path, entry)
        model["type"] = "notebook" if type != "file" and path.endswith(".ipynb") else "file"
        if type == "notebook":
            model["type"] = "notebook"
        if content:
            await self._fill(model, path, format)
        if require_hash:
            model["hash_algorithm"] = "sha256"
            model["hash"] = model["hash"] or entry.hash
        else:
            model["hash"] = model["hash_algorithm"] = None
        self.emit(data={"action": "get", "path": path})
        return model

    async def _folder(self, path: str, entry: Entry, content: bool) -> Model:
        model = _model(path, entry)
        model.update(type="directory", size=None, hash=None, hash_algorithm=None)
        if content:
            with http_errors():
                found = await self.workspace.list(path)
            model["format"] = "json"
            model["content"] = [
                self._listed(one)
                for one in found
                if one.kind != "other" and self._shown(one.path.rsplit("/", 1)[-1])
            ]
        return model

    def _shown(self, name: str) -> bool:
        return self.should_list(name) and (self.allow_hidden or not name.startswith("."))

    def _listed(self, entry: Entry) -> Model:
        if entry.kind == "dir":
            model = _model(entry.path, entry)
            model.update(type="directory", size=None)
        else:
            model = _model(entry.path, entry)
            model["type"] = "notebook" if entry.path.endswith(".ipynb") else "file"
        model.update(hash=None, hash_algorithm=None)
        return model

    async def _fill(self, model: Model, path: str, format: str | None) -> None:
        with http_errors():
            content, entry = await self.workspace.read(path)
        model.update(_model(path, entry), type=model["type"])
        model["hash"] = hashlib.sha256(content).hexdigest()
        if model["type"] == "notebook":
            self._fill_notebook(model, path, content)
            return
        model["mimetype"] = mimetypes.guess_type(path)[0]
        if format != "base64":
            try:
                model["content"], model["format"] = content.decode(), "text"
                model["mimetype"] = model["mimetype"] or "text/plain"
                return
            except UnicodeDecodeError as error:
                if format == "text":
                    raise HTTPError(
                        400, f"{path} is not UTF-8 encoded", reason="bad format"
                    ) from error
        model["content"], model["format"] = base64.b64encode(content).decode(), "base64"
        model["mimetype"] = model["mimetype"] or "application/octet-stream"

    def _fill_notebook(self, model: Model, path: str, content: bytes) -> None:
        try:
            notebook = nbformat.reads(content.decode(), as_version=4)
        except Exception as error:
            raise HTTPError(400, f"{path} is not a notebook: {error!r}") from error
        self.mark_trusted_cells(notebook, path)
        model["content"], model["format"], model["mimetype"] = notebook, "json", None
        self.validate_notebook_model(model)

    # --- save --------------------------------------------------------------------------------------

    async def save(self, model: Model, path: str = "") -> Model:
        """Save a file, notebook, folder or one chunk of an upload; answered when it is durable."""
        path = path.strip("/")
        kind = model.get("type")
        if kind is None:
            raise HTTPError(400, "no file type provided")
        if kind != "directory" and "content" not in model:
            raise HTTPError(400, "no file content provided")
        if not self.allow_hidden and await self.is_hidden(path):
            raise HTTPError(400, f"hidden files are not allowed: {path}")
        chunk = model.get("chunk")
        if chunk in (None, 1):
            self.run_pre_save_hooks(model=model, path=path)
        if kind == "directory":
            saved = await self._save_folder(path)
        elif kind == "notebook":
            saved = await self._save_notebook(model, path)
        elif kind != "file":
            raise HTTPError(400, f"unknown file type {kind}")
        elif chunk is None:
            saved = await self._write(path, _decoded(model, path), "file")
        else:
            saved = await self._save_chunk(model, path, chunk)
        self.emit(data={"action": "save", "path": path})
        return saved

    async def _write(self, path: str, content: bytes | Path, kind: str) -> Model:
        with http_errors():
            entry = await self.workspace.write(path, content)
        model = _model(path, entry)
        model.update(type=kind, hash=None, hash_algorithm=None)
        return model

    async def _save_folder(self, path: str) -> Model:
        with http_errors():
            await self.workspace.make_dir(path)
        return await self.get(path, content=False)

    async def _save_notebook(self, model: Model, path: str) -> Model:
        try:
            notebook = nbformat.from_dict(model["content"])
            self.check_and_sign(notebook, path)
            text = nbformat.writes(notebook, version=nbformat.NO_CONVERT)
        except Exception as error:
            raise HTTPError(400, f"{path} cannot be saved as a notebook: {error!r}") from error
        saved = await self._write(path, text.encode(), "notebook")
        checked: Model = {"content": notebook}
        self.validate_notebook_model(checked)
        if message := checked.get("message"):
            saved["message"] = message
        return saved

    async def _save_chunk(self, model: Model, path: str, chunk: int) -> Model:
        """JupyterLab sends large files in pieces: 1, 2, 3, ... and -1 for the last."""
        part = self._upload_part(path)
        content = _decoded(model, path)
        if chunk != 1 and not part.exists():
            raise HTTPError(400, f"the first part of {path} is missing: upload it again")
        with part.open("wb" if chunk == 1 else "ab") as file:
            file.write(content)
        if chunk == -1:
            return await self._write(path, part, "file")
        now_ns = part.stat().st_mtime_ns
        entry = Entry(path=path, kind="file", size=part.stat().st_size, mtime_ns=now_ns)
        saved = _model(path, entry)
        saved.update(type="file", hash=None, hash_algorithm=None)
        return saved

    def _upload_part(self, path: str) -> Path:
        folder = self.workspace.directory / "uploads"
        folder.mkdir(exist_ok=True)
        return folder / hashlib.sha256(path.encode()).hexdigest()

    async def read_bytes(self, path: str) -> bytes:
        """A file's content as it is."""
        with http_errors():
            return (await self.workspace.read(path.strip("/")))[0]

    async def write_bytes(self, path: str, content: bytes) -> None:
        """Replace a file's content."""
        with http_errors():
            await self.workspace.write(path.strip("/"), content)

    # --- changes -----------------------------------------------------------------------------------

    async def delete_file(self, path: str) -> None:
        """Remove a file, or a folder and what is in it."""
        path = path.strip("/")
        if not self.allow_hidden and await self.is_hidden(path):
            raise HTTPError(400, f"{path} is hidden and cannot be deleted")
        with http_errors():
            await self.workspace.delete(path)

    async def rename_file(self, old_path: str, new_path: str) -> None:
        """Move within the workspace; 409 when something is there."""
        old_path, new_path = old_path.strip("/"), new_path.strip("/")
        if new_path == old_path:
            return
        for path in (old_path, new_path):
            if not self.allow_hidden and await self.is_hidden(path):
                raise HTTPError(400, f"hidden files are not allowed: {path}")
        with http_errors():
            await self.workspace.rename(old_path, new_path)


def _model(path: str, entry: Entry) -> Model:
    at = moment(entry.mtime_ns)
    return {
        "name": path.rsplit("/", 1)[-1],
        "path": path,
        "last_modified": at,
        "created": at,
        "content": None,
        "format": None,
        "mimetype": None,
        "size": entry.size,
        "writable": entry.writable,
        "hash": None,
        "hash_algorithm": None,
    }


def _decoded(model: Model, path: str) -> bytes:
    try:
        if model.get("format") == "text":
            text: str = model["content"]
            return text.encode()
        if model.get("format") == "base64":
            return base64.b64decode(model["content"])
    except (ValueError, AttributeError) as error:
        raise HTTPError(400, f"the content of {path} cannot be decoded: {error}") from error
    raise HTTPError(400, "the format of the content must be 'text' or 'base64'")
