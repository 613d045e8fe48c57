"""A kernel becomes its session's: key, folder, environment, where captures go, and which language it speaks.

Never restores anything, and lets nothing through to the session before the kernel is the session's.
"""

import asyncio

from roost.agent.keeper.life import Life
from roost.ports.errors import Never
from roost.ports.jupyter import BadMessage, Parts, Signer, read
from roost.ports.keeper import Adopt

GREET_S = 1.0
"""A kernel of another language that does not answer is greeted again after so long."""
GREETINGS = 120


class Adoption:
    """Of the kernel of one keeper."""

    def __init__(self, life: Life) -> None:
        self._life = life
        self._asked = ""
        self._answered = asyncio.Event()

    async def run(self, order: Adopt) -> None:
        """The kernel is the session's, and heard. Raises ``Never``: there is no such kernel here."""
        answer = await self._life.demand(
            "adopt",
            key=order.key,
            session_id=order.session_id,
            cwd=order.cwd,
            env=order.env,
            captures=order.captures_dir,
            kernel=order.kernel,
        )
        if answer.get("becomes"):
            await self._life.reach_again()
            await self._greet(Signer(order.key))

    async def _greet(self, signer: Signer) -> None:
        """Other kernels do not greet those who listen: what they say before we do is lost."""
        for _ in range(GREETINGS):
            parts = signer.build("kernel_info_request", {})
            self._asked = read(parts).header.msg_id
            self._answered.clear()
            await self._life.send("shell", parts)
            try:
                async with asyncio.timeout(GREET_S):
                    await self._answered.wait()
            except TimeoutError:
                continue
            if self._life.heard:
                return
        raise Never("the kernel does not answer")

    def take(self, channel: str, parts: Parts) -> None:
        """A message of a kernel that is not the session's yet."""
        if channel == "shell" and self._asked:
            try:
                if read(parts).parent.msg_id == self._asked:
                    self._answered.set()
            except BadMessage:
                return
