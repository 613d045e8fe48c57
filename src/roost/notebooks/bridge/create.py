"""A bridge without a session asks the REST door for one, and gives it back at a clean shutdown.

Used by clients that start the bridge themselves (a person's own JupyterLab, VS Code, nbclient).
"""

import httpx
import msgspec

from roost.ports.errors import Denied, Never, Retry, RoostError

TIMEOUT_S = 30.0


class Session(msgspec.Struct, frozen=True):
    """What the bridge needs of a session."""

    id: str
    token: str = ""
    """For the session's stream; empty = the owner's token serves."""


async def create_session(control_url: str, owner_token: str, *, name: str, key: str) -> Session:
    """Ask for a session whose kernel signs with ``key``. Raises ``Denied``, ``Retry``, ``Never``."""
    body = msgspec.json.encode({"name": name, "key": key, "page": False})
    content = await _call("POST", control_url, "/api/v1/notebooks", owner_token, body)
    try:
        return msgspec.json.decode(content, type=Session)
    except msgspec.MsgspecError as error:
        raise Never(f"the control plane answered something else than a session: {error}") from error


async def delete_session(control_url: str, owner_token: str, session_id: str) -> None:
    """End the session; ending twice is fine."""
    await _call("DELETE", control_url, f"/api/v1/notebooks/{session_id}", owner_token, b"")


async def _call(method: str, url: str, path: str, token: str, body: bytes) -> bytes:
    headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
    try:
        async with httpx.AsyncClient(timeout=TIMEOUT_S, trust_env=False) as client:
            answer = await client.request(
                method, url.rstrip("/") + path, headers=headers, content=body
            )
    except httpx.HTTPError as error:
        raise Retry(f"the control plane at {url} cannot be reached: {error}") from error
    if answer.status_code == 404 and method == "DELETE":
        return b""
    if answer.is_success:
        return answer.content
    raise _error(answer)


def _error(answer: httpx.Response) -> RoostError:
    text = answer.text[:500]
    if answer.status_code in (401, 403):
        return Denied(text, hint="`roost env` prints the owner's token")
    if answer.status_code == 429 or answer.status_code >= 500:
        return Retry(text)
    return Never(text)
