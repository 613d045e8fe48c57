"""A session's JupyterLab: Jupyter server and JupyterLab's pages without what could run user code.

No terminals, no other server extensions, no configuration of the user or the machine, no news and no
update checks. JupyterLab's own server package is not imported: its pages need only its static files,
and its package manager and build tools are most of its start-up time.
"""

import sys
from collections.abc import Callable
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any

import msgspec
from jupyter_server.serverapp import ServerApp
from jupyterlab_server import LabServerApp
from jupyterlab_server.config import get_static_page_config
from traitlets import Instance, default
from traitlets.config import Config

from roost.doors.jupyter.contents import WorkspaceContents
from roost.doors.jupyter.kernels import KERNEL_NAME, RoostKernels, RoostKernelSpecs, RoostSessions
from roost.notebooks.workspace import Workspace
from roost.ports.errors import Never

_DISABLED = (
    "@jupyterlab/apputils-extension:announcements",
    "@jupyterlab/debugger-extension",
    "@jupyterlab/extensionmanager-extension",
    "@jupyterlab/fileeditor-extension:language-server",
    "@jupyterlab/lsp-extension",
    "@jupyterlab/notebook-extension:language-server",
    "@jupyterlab/pluginmanager-extension",
    "@jupyterlab/terminal-extension",
)


class ServerFile(msgspec.Struct, frozen=True, kw_only=True):
    """``server.json`` in a session's directory, written by control."""

    session_id: str
    token: str
    """Of the page and the API (Jupyter's own token authentication)."""
    key: str
    """Message signing key of the kernel."""
    base_url: str
    edge_url: str
    stream_token: str
    """Bearer token for the session's streams at the edge."""
    socket: str
    """Path of the unix socket to listen on."""


class Setup(msgspec.Struct, frozen=True, kw_only=True):
    """Everything the server app needs to know."""

    directory: Path
    session_id: str
    kernel_id: str
    key: str
    token: str
    base_url: str
    socket: Path
    bridge_command: list[str]

    @property
    def connection_file(self) -> Path:
        """Of the bridge's five local ports."""
        return self.directory / "kernel.json"


class RoostServerApp(ServerApp):
    """The Jupyter server of one session."""

    setup = Instance(Setup)
    workspace = Instance(Workspace)
    no_browser_open_file = True

    def find_server_extensions(self) -> None:
        """Only the one given by ``config``: extensions installed on this machine stay out."""

    async def begin(self) -> None:
        """Before the first request: adopt or start the kernel, connect the workspace."""
        await self.workspace.start()
        await self.kernel_manager.start_kernel()

    async def _cleanup(self) -> None:
        await super()._cleanup()
        await self.workspace.stop()


class RoostLab(LabServerApp):
    """JupyterLab's pages, settings, themes and translations."""

    name = "lab"
    app_name = "JupyterLab"
    app_url = "/lab"
    load_other_extensions = False

    def initialize_settings(self) -> None:
        """Page configuration: what JupyterLab's own server package would say, minus what is off."""
        super().initialize_settings()
        page: dict[str, Any] = self.serverapp.web_app.settings.setdefault("page_config_data", {})
        page.update(get_static_page_config(logger=self.log, level="all"))
        page.update(
            buildAvailable=False,
            buildCheck=False,
            devMode=False,
            token=self.serverapp.identity_provider.token,
            exposeAppInBrowser=False,
            quitButton=False,
            terminalsAvailable=False,
            allow_hidden_files=False,
            delete_to_trash=False,
            news={"disabled": True},
            notebookVersion="[2, 0, 0]",
        )

    @default("app_version")
    def _default_app_version(self) -> str:
        return version("jupyterlab")


def _jupyter_server_extension_points() -> list[dict[str, Any]]:
    return [{"module": __name__, "app": RoostLab}]


def lab_assets() -> Path:
    """JupyterLab's application directory (static files, schemas, themes)."""
    folder = Path(sys.prefix) / "share" / "jupyter" / "lab"
    if not (folder / "static" / "index.html").exists():
        raise Never(f"JupyterLab's files are not in {folder}", hint="pip install jupyterlab")
    return folder


def config(setup: Setup) -> Config:
    """The whole configuration of the server; nothing is read from files."""
    lab = lab_assets()
    root = setup.directory / "root"
    private = setup.directory / "jupyter"
    for folder in (root, private):
        folder.mkdir(parents=True, exist_ok=True)
    page = {"disabledExtensions": {name: True for name in _DISABLED}}
    (private / "settings").mkdir(exist_ok=True)
    (private / "settings" / "page_config.json").write_bytes(msgspec.json.encode(page))
    made = Config()
    made.ServerApp.update(
        {
            "sock": str(setup.socket),
            "sock_mode": "0600",
            "base_url": setup.base_url,
            "default_url": "/lab",
            "root_dir": str(root),
            "open_browser": False,
            "allow_root": True,
            "allow_remote_access": True,
            "trust_xheaders": True,
            "quit_button": False,
            "terminals_enabled": False,
            "websocket_ping_interval": 10,
            "websocket_ping_timeout": 10,
            "jpserver_extensions": {__name__: True},
            "contents_manager_class": WorkspaceContents,
            "kernel_manager_class": RoostKernels,
            "kernel_spec_manager_class": RoostKernelSpecs,
            "session_manager_class": RoostSessions,
        }
    )
    made.IdentityProvider.token = setup.token
    made.RoostKernels.default_kernel_name = KERNEL_NAME
    made.RoostKernels.kernel_info_timeout = 180.0
    made.RoostSessions.database_filepath = str(setup.directory / "sessions.sqlite")
    made.RoostLab.update(
        {
            "app_settings_dir": str(private / "settings"),
            "user_settings_dir": str(private / "user-settings"),
            "workspaces_dir": str(private / "workspaces"),
            "schemas_dir": str(lab / "schemas"),
            "static_dir": str(lab / "static"),
            "templates_dir": str(lab / "static"),
            "themes_dir": str(lab / "themes"),
            "labextensions_path": [str(lab.parent / "labextensions")],
            "extra_labextensions_path": [],
        }
    )
    return made


def serve(setup: Setup, make_workspace: Callable[[], Workspace]) -> None:
    """Run the server until it is told to stop. Blocks.

    The environment must already point Jupyter to the session's own directories (``main/server.py``).
    """
    with suppress(FileNotFoundError):
        setup.socket.unlink()  # of a server that was killed; a running one holds the directory's lock
    app = RoostServerApp.instance(config=config(setup), setup=setup, workspace=make_workspace())
    app.initialize(argv=[], find_extensions=False, starter_extension="lab", new_httpserver=False)
    # No request before the kernel is in its place: a page asking for its sessions would have them
    # forgotten, because their kernel is not known.
    app.io_loop.run_sync(app.begin)
    app.init_httpserver()
    app.start()
