"""Bearer tokens of a cloud: one given, or printed by the cloud's own command line. Never written anywhere."""

import asyncio
import contextlib
import shutil
import time
from collections.abc import Callable, Sequence

from roost.ports.errors import Denied

FRESH_S = 1800.0
"""Azure's and Google's tokens last about an hour; half of it is asked anew."""
PATIENCE_S = 60.0
AZURE = (
    "az",
    "account",
    "get-access-token",
    "--resource",
    "https://management.azure.com",
    "--query",
    "accessToken",
    "--output",
    "tsv",
)
GOOGLE = ("gcloud", "auth", "print-access-token")


class Tokens:
    """The token of one cloud, kept while fresh."""

    def __init__(
        self,
        given: str,
        command: Sequence[str],
        variable: str,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        """``given``: a token, or empty to run ``command``; ``variable`` names where a person may set it."""
        self._given = given
        self._command = tuple(command)
        self._variable = variable
        self._now = now
        self._kept = ""
        self._until = 0.0

    @property
    def advice(self) -> str:
        """What a person does to give one."""
        return (
            f"set {self._variable}, or sign in so that `{' '.join(self._command[:3])}` prints one"
        )

    async def headers(self) -> dict[str, str]:
        """The ``Authorization`` header. Raises ``Denied`` with what to do."""
        if self._given:
            return {"Authorization": f"Bearer {self._given}"}
        if not self._kept or self._now() >= self._until:
            self._kept = await self._run()
            self._until = self._now() + FRESH_S
        return {"Authorization": f"Bearer {self._kept}"}

    async def _run(self) -> str:
        name = self._command[0]
        if shutil.which(name) is None:
            raise Denied(f"no token, and `{name}` is not installed", hint=self.advice)
        process = await asyncio.create_subprocess_exec(
            *self._command,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        try:
            out, err = await asyncio.wait_for(process.communicate(), PATIENCE_S)
        except TimeoutError as error:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()
            raise Denied(f"`{name}` printed no token in 60 s", hint=self.advice) from error
        token = out.decode("utf-8", "replace").strip()
        if process.returncode or not token or any(c.isspace() for c in token):
            said = err.decode("utf-8", "replace").strip().splitlines()
            why = said[-1] if said else f"it ended with {process.returncode}"
            raise Denied(f"`{name}` printed no token: {why}", hint=self.advice)
        return token
