"""The connection to a Docker engine, and what its answers mean for a caller. Never decides what runs."""

import asyncio
import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from roost.ports.errors import Invalid, Never, Retry

if TYPE_CHECKING:
    import aiodocker

SOCKETS = (Path("/run/docker.sock"), Path("/var/run/docker.sock"))
CALL_S = 30.0
"""An answer that takes longer is none. Pulls have a limit of their own."""
UNREACHABLE = 900
"""aiodocker's status for an engine that cannot be connected to."""
NOT_FOUND, BAD_REQUEST, CONFLICT = 404, 400, 409
HINT = "install docker and start its engine on this host, or set DOCKER_HOST"
_NO_PROGRAM = ("executable file not found", "no such file or directory", "permission denied")
_TAKEN = ("port is already allocated", "address already in use")


class Engine:
    """One engine, connected at the first call. ``url`` empty = ``DOCKER_HOST``, else the usual sockets."""

    def __init__(self, url: str = "", *, pull_s: float = 600.0) -> None:
        self._url = url
        self._pull_s = pull_s
        self._client: aiodocker.Docker | None = None
        self._pulls: dict[str, asyncio.Lock] = {}
        self.cpus = 0.0
        self.held: tuple[str, ...] = ()

    async def connect(self) -> "aiodocker.Docker":
        """The client. ``Retry`` while there is no engine, ``Invalid`` without the library."""
        if self._client is None:
            self._client = await self._connected()
        return self._client

    async def close(self) -> None:
        """End the connection; containers run on."""
        client, self._client = self._client, None
        if client is not None:
            await client.close()

    async def need_image(self, image: str) -> None:
        """Have the image on this host: pull it once if it is not there. ``Never`` when that fails."""
        client = await self.connect()
        async with self._pulls.setdefault(image, asyncio.Lock()):
            if await self._has(client, image):
                return
            try:
                async with asyncio.timeout(self._pull_s):
                    await client.images.pull(_tagged(image))
            except Exception as error:
                with told(f"pull of {image}"):
                    _need_engine(error)
                raise Never(
                    f"image {image} is not on this host and cannot be pulled: {_text(error)}",
                    hint="check the name, or load the image on the hosts",
                ) from error

    async def _has(self, client: "aiodocker.Docker", image: str) -> bool:
        try:
            with told(f"look for {image}"):
                async with asyncio.timeout(CALL_S):
                    await client.images.inspect(image)
        except Never:
            return False
        return True

    async def _connected(self) -> "aiodocker.Docker":
        # Half a second of imports that only hosts with containers need, and not on the event loop.
        try:
            library = await asyncio.to_thread(_library)
        except ImportError as error:
            raise Invalid(
                "aiodocker is not installed on this host", hint="pip install 'roost[docker]'"
            ) from error
        if not self._url and not os.environ.get("DOCKER_HOST") and not any(map(_socket, SOCKETS)):
            raise Retry("this host has no container engine", after_s=5.0, hint=HINT)
        client: aiodocker.Docker = library.Docker(url=self._url or None)
        try:
            with told("first question to the engine"):
                async with asyncio.timeout(CALL_S):
                    info = await client.system.info()
        except BaseException:
            await client.close()
            raise
        self.cpus = float(info["NCPU"])
        quota, memory = info.get("CPUCfsQuota") or info.get("CpuCfsQuota"), info.get("MemoryLimit")
        gpus = "nvidia" in info.get("Runtimes", {})
        held = (("vcpus", quota), ("memory_mib", memory), ("gpus", gpus))
        self.held = tuple(name for name, yes in held if yes)
        return client


@contextlib.contextmanager
def told(what: str) -> Iterator[None]:
    """An engine's refusals as errors that carry the decision of the caller."""
    try:
        yield
    except (TimeoutError, OSError) as error:
        raise Retry(
            f"{what}: the container engine does not answer", after_s=2.0, hint=HINT
        ) from error
    except Exception as error:
        status, text = getattr(error, "status", None), _text(error)
        if not isinstance(status, int):
            raise
        if status == UNREACHABLE:
            raise Retry(f"{what}: no container engine: {text}", after_s=2.0, hint=HINT) from error
        if status == NOT_FOUND or any(words in text for words in _NO_PROGRAM):
            raise Never(f"{what}: {text}") from error
        if any(words in text for words in _TAKEN):
            raise Retry(f"{what}: {text}", hint="another port will do") from error
        if status == BAD_REQUEST:
            raise Invalid(f"{what}: {text}") from error
        raise Retry(f"{what}: {text}") from error


def _need_engine(error: BaseException) -> None:
    """Raise it again if it says that the engine is away, not that the image is."""
    if isinstance(error, OSError) or getattr(error, "status", None) == UNREACHABLE:
        raise error


def _library() -> Any:
    import aiodocker

    return aiodocker


def _socket(path: Path) -> bool:
    with contextlib.suppress(OSError):
        return path.is_socket()
    return False


def _tagged(image: str) -> str:
    """The engine pulls every tag of a name that has none."""
    named = image.rpartition("/")[2]
    return image if ":" in named or "@" in named else f"{image}:latest"


def _text(error: BaseException) -> str:
    if isinstance(error, TimeoutError):
        return "it took too long"
    return str(getattr(error, "message", "") or error).strip()
