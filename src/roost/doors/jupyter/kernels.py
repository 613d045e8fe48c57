"""One session, one kernel: every notebook of a session's JupyterLab uses it, under ids that never change.

    start, or server restarted ──> bridge adopted or started, same kernel id
    interrupt  ──> message to the kernel          restart  ──> message; a fresh kernel, same ids and ports
    shutdown   ──> as restart (memory is freed), then the bridge ends; opening a notebook starts it again
    server ends ──> nothing: bridge and kernel go on, the next server adopts them

The session itself ends with ``roost notebook stop``, never from here.
"""

import asyncio
from typing import Any

from jupyter_client.kernelspec import KernelSpec, KernelSpecManager
from jupyter_server.services.kernels.kernelmanager import (
    AsyncMappingKernelManager,
    ServerKernelManager,
)
from jupyter_server.services.sessions.sessionmanager import SessionManager
from tornado.web import HTTPError

from roost.doors.jupyter.kernelspec import RESOURCES, spec_fields
from roost.doors.jupyter.provisioner import Bridge, BridgeProvisioner, connection_info

KERNEL_NAME = "python3"
"""The name most notebooks ask for, so that none asks which kernel to use."""
_REPLY_S = 150.0
"""A restart asked for during a move waits for it."""


class RoostKernelSpecs(KernelSpecManager):
    """Offers "Python 3 (Roost)" and nothing else, whatever kernels this machine has."""

    def find_kernel_specs(self) -> dict[str, str]:
        """The one spec."""
        return {KERNEL_NAME: str(RESOURCES)}

    def get_kernel_spec(self, kernel_name: str) -> KernelSpec:
        """The one spec, also for notebooks that name another kernel."""
        return KernelSpec(resource_dir=str(RESOURCES), **spec_fields(["roost"]))

    def get_all_specs(self) -> dict[str, Any]:
        """For the kernelspecs API."""
        spec = self.get_kernel_spec(KERNEL_NAME).to_dict()
        return {KERNEL_NAME: {"resource_dir": str(RESOURCES), "spec": spec}}


class RoostKernel(ServerKernelManager):
    """The session's kernel behind its bridge."""

    async def _async_pre_start_kernel(self, **kwargs: Any) -> tuple[list[str], dict[str, Any]]:
        setup = self.parent.parent.setup
        self.shutting_down = False
        self.kernel_id = setup.kernel_id
        self._launch_args = {}
        self.connection_file = str(setup.connection_file)
        info = connection_info(setup.connection_file, setup.session_id, setup.key)
        self.load_connection_info(info)
        self._connection_file_written = True
        if self.provisioner is None:
            self.provisioner = BridgeProvisioner(
                parent=self,
                kernel_id=self.kernel_id,
                kernel_spec=self.kernel_spec,
                bridge=Bridge(setup.directory, setup.bridge_command),
            )
        self.provisioner.connection_info = self.get_connection_info()
        prepared = await self.provisioner.pre_launch(**kwargs)
        return prepared.pop("cmd"), prepared

    def cleanup_connection_file(self) -> None:
        """Never: ports and key are the session's for good, whatever becomes of this object."""

    async def _ask_fresh(self) -> None:
        """Have the kernel replaced by a fresh one; returns when that is done."""
        stream = self.connect_control()
        replied: asyncio.Future[None] = asyncio.get_running_loop().create_future()

        def on_reply(_parts: Any) -> None:
            if not replied.done():
                replied.set_result(None)

        stream.on_recv(on_reply)
        try:
            self.session.send(stream, "shutdown_request", content={"restart": True})
            async with asyncio.timeout(_REPLY_S):
                await replied
        except TimeoutError as error:
            raise HTTPError(503, "the session's kernel did not answer; is it moving?") from error
        finally:
            stream.close()

    async def restart_kernel(self, now: bool = False, newports: bool = False, **kw: Any) -> None:
        """A fresh kernel under the same ids and ports (a bridge ends with its reply to this)."""
        await self._ask_fresh()
        await self.provisioner.renew()

    async def shutdown_kernel(self, now: bool = False, restart: bool = False) -> None:
        """Drop the kernel's memory and end the bridge."""
        self.shutting_down = True
        self.stop_restarter()
        try:
            if not now:
                await self._ask_fresh()
        finally:
            await self.detach()
            if self.provisioner is not None:
                await self.provisioner.terminate()

    async def detach(self) -> None:
        """Let go of the kernel without ending anything."""
        self.stop_restarter()
        self._close_control_socket()


class RoostKernels(AsyncMappingKernelManager):
    """The map of kernels, with one place in it."""

    def _kernel_manager_class_default(self) -> str:
        return f"{RoostKernel.__module__}.{RoostKernel.__name__}"

    async def start_kernel(self, *, kernel_id: str | None = None, **kwargs: Any) -> str:
        """The session's kernel, started if it is not; notebook and kernel name make no difference."""
        known: str = self.parent.setup.kernel_id
        async with self._starting:
            if known not in self:
                # Without kernel_id and path: both would mean a new kernel of its own.
                kwargs = {"kernel_name": KERNEL_NAME}
                await super().start_kernel(kernel_id=known, **kwargs)
        return known

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._starting = asyncio.Lock()

    async def shutdown_all(self, now: bool = False) -> None:
        """The server ends: kernels and bridges go on."""
        for kernel_id in self.list_kernel_ids():
            self.stop_watching_activity(kernel_id)
            await self.get_kernel(kernel_id).detach()


class RoostSessions(SessionManager):
    """Notebook-to-kernel connections, kept in a file; the last one closed shuts the kernel down."""

    async def delete_session(self, session_id: str) -> None:
        """Forget one; other notebooks may still use the kernel."""
        session = await self.get_session(session_id=session_id)
        kernel_id = session["kernel"]["id"]
        self.cursor.execute("DELETE FROM session WHERE session_id=?", (session_id,))
        self.cursor.execute("SELECT count(*) FROM session WHERE kernel_id=?", (kernel_id,))
        if self.cursor.fetchone()[0] == 0:
            await self.kernel_manager.shutdown_kernel(kernel_id)
