"""HTTP as sources need it: typed errors, ETags, whole bodies or none, big files on disk. It never repeats.

A body that ends early, is too big, or is not what its vendor documents is refused; nothing of it is used.
"""

import email.utils
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, TypeVar

import httpx
import msgspec

from roost.ports.errors import Denied, Gone, Never, Retry

T = TypeVar("T")

LARGEST_BODY = 128 << 20
"""Bytes of a body held in memory; the largest page known is under 10 MB."""
LARGEST_FILE = 4 << 30
"""Bytes of a file on disk; the largest price list known (all regions at once) is 3 GB."""
AGENT = "roost-market/1"
THROTTLED_S = 30.0
UNREACHABLE_S = 5.0


class Reply(msgspec.Struct, frozen=True, kw_only=True):
    """A whole answer. ``unchanged``: the ETag sent is still current, and the body is empty."""

    body: bytes = b""
    headers: Mapping[str, str] = {}
    etag: str = ""
    modified_s: float | None = None
    """``Last-Modified``, UTC seconds."""
    unchanged: bool = False
    path: Path | None = None
    """Where the body lies when it was spooled."""


class Web:
    """A client of one vendor; ``of`` names it in errors."""

    def __init__(self, of: str, *, timeout_s: float = 60.0, credentials: str = "") -> None:
        """``credentials``: what to do when the vendor refuses them."""
        self._of = of
        self._credentials = credentials
        self._client = httpx.AsyncClient(
            timeout=timeout_s, headers={"User-Agent": AGENT}, follow_redirects=True
        )

    async def close(self) -> None:
        """Close connections."""
        await self._client.aclose()

    async def get(self, url: str, *, etag: str = "", **more: Any) -> Reply:
        """GET a body of moderate size."""
        return await self.call("GET", url, etag=etag, **more)

    async def call(
        self,
        method: str,
        url: str,
        *,
        etag: str = "",
        headers: Mapping[str, str] | None = None,
        params: Mapping[str, str] | None = None,
        body: Any = None,
    ) -> Reply:
        """One request; ``body`` is sent as JSON. Raises ``Retry``, ``Denied``, ``Gone``, ``Never``."""
        sent = {"If-None-Match": etag} if etag else {}
        with self._transport(url):
            async with self._client.stream(
                method, url, headers={**sent, **(headers or {})}, params=params, json=body
            ) as answer:
                content = bytearray()
                async for chunk in answer.aiter_bytes():
                    content += chunk
                    if len(content) > LARGEST_BODY:
                        raise Never(f"{self._of}: the answer of {_bare(url)} is over 128 MiB")
        self._check(answer, bytes(content))
        return _reply(answer, bytes(content))

    @asynccontextmanager
    async def spool(self, url: str, *, etag: str = "") -> AsyncIterator[Reply]:
        """GET a file of any size onto disk; it is removed at the end of the block."""
        sent = {"If-None-Match": etag} if etag else {}
        with tempfile.NamedTemporaryFile(prefix="roost-source-") as file:
            with self._transport(url):
                async with self._client.stream("GET", url, headers=sent) as answer:
                    if answer.status_code != 200:
                        self._check(answer, (await answer.aread())[:2000])
                    size = 0
                    async for chunk in answer.aiter_bytes():
                        size += len(chunk)
                        if size > LARGEST_FILE:
                            raise Never(f"{self._of}: {_bare(url)} is over 4 GiB")
                        try:
                            file.write(chunk)
                        except OSError as error:
                            raise Retry(
                                f"{self._of}: no room to hold {_bare(url)}: {error.strerror}",
                                after_s=300.0,
                                hint=f"free space in {tempfile.gettempdir()} or set TMPDIR",
                            ) from error
                    file.flush()
            made = _reply(answer, b"")
            yield msgspec.structs.replace(made, path=Path(file.name))

    def json(self, reply: Reply, shape: type[T], what: str) -> T:
        """Decode a body into the shape its vendor documents. Raises ``Retry`` (cut off) or ``Never``."""
        return decode(reply.body, shape, f"{self._of}: {what}")

    def _transport(self, url: str) -> "_Transport":
        return _Transport(self._of, _bare(url))

    def _check(self, answer: httpx.Response, content: bytes) -> None:
        status = answer.status_code
        if status in (200, 304):
            return
        said = f"{self._of}: HTTP {status} from {_bare(str(answer.url))}"
        detail = content[:300].decode("utf-8", "replace").strip()
        if detail:
            said += f": {' '.join(detail.split())}"
        if status in (401, 403):
            raise Denied(said, hint=self._credentials)
        if status in (404, 410):
            raise Gone(said)
        if status in (408, 425, 429) or status >= 500:
            default = THROTTLED_S if status == 429 else UNREACHABLE_S
            raise Retry(said, after_s=retry_after(answer.headers, default))
        raise Never(said)


class _Transport:
    """Turns errors of the connection into typed ones."""

    def __init__(self, of: str, url: str) -> None:
        self._of = of
        self._url = url

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, httpx.RemoteProtocolError | httpx.ReadError | httpx.DecodingError):
            raise Retry(
                f"{self._of}: the answer of {self._url} was cut off ({error or type(error).__name__})",
                after_s=UNREACHABLE_S,
                hint="nothing of it was stored",
            ) from error
        if isinstance(error, httpx.HTTPError):
            raise Retry(
                f"{self._of}: {self._url} is out of reach ({error or type(error).__name__})",
                after_s=UNREACHABLE_S,
                hint="check the network and proxies (HTTPS_PROXY)",
            ) from error


def decode(body: bytes, shape: type[T], what: str) -> T:
    """JSON of a documented shape; ``what`` names it in errors."""
    try:
        return msgspec.json.decode(body, type=shape)
    except msgspec.ValidationError as error:
        raise Never(
            f"{what} is not what its vendor documents: {error}",
            hint="nothing was stored; the vendor may have changed it, please report this",
        ) from error
    except msgspec.DecodeError as error:
        cut = "truncated" in str(error) or not body
        if cut:
            raise Retry(f"{what} ends early", after_s=UNREACHABLE_S) from error
        raise Never(f"{what} is not JSON: {error}", hint="nothing was stored") from error


def retry_after(
    headers: Mapping[str, str], default_s: float, now: Callable[[], float] = time.time
) -> float:
    """Seconds to wait: ``Retry-After`` (seconds or a date) or Azure's quota header."""
    text = headers.get("retry-after", "").strip()
    if text.isdigit():
        return float(text)
    if text:
        try:
            return max(0.0, email.utils.parsedate_to_datetime(text).timestamp() - now())
        except (ValueError, TypeError):
            return default_s
    quota = headers.get("x-ms-user-quota-resets-after", "").split(":")
    if len(quota) == 3 and all(part.replace(".", "", 1).isdigit() for part in quota):
        hours, minutes, seconds = (float(part) for part in quota)
        return hours * 3600 + minutes * 60 + seconds
    return default_s


def _reply(answer: httpx.Response, content: bytes) -> Reply:
    modified = None
    text = answer.headers.get("last-modified", "")
    if text:
        try:
            modified = email.utils.parsedate_to_datetime(text).timestamp()
        except (ValueError, TypeError):
            modified = None
    return Reply(
        body=content,
        headers=dict(answer.headers),
        etag=answer.headers.get("etag", ""),
        modified_s=modified,
        unchanged=answer.status_code == 304,
    )


def _bare(url: str) -> str:
    """Without the query: it may hold a key."""
    return url.split("?", 1)[0]
