"""Certificates from an ACME server, obtained before they are needed and renewed before they end.

The supervisor runs ``Acme``; workers answer the challenges with ``Challenges``. What is held is used until
something better is here: a failure costs nothing but a later attempt. Never blocks the loop.
"""

import asyncio
import logging
import threading
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from random import Random

from roost.gateway.acme_store import Attempt, Held, Store, check_name
from roost.ports.clock import Clock
from roost.ports.errors import Invalid, Retry, RoostError
from roost.proxy import policy
from roost.proxy.answers import Answer

log = logging.getLogger(__name__)

PREFIX = b"/.well-known/acme-challenge/"
DAY_S = 86_400.0
FIRST_RETRY_S = 60.0
LAST_RETRY_S = 6 * 3600.0
"""Failures double the wait up to this."""
LONGEST_SLEEP_S = 3600.0
"""The wall clock may be set: look again at least this often."""
PUBLISH_S = 10.0

Issue = Callable[[policy.Acme, Store, str, Callable[[dict[str, str]], None]], tuple[bytes, bytes]]


@dataclass
class Challenges:
    """The answers to an ACME server's questions: in workers, as the supervisor's snapshot has them."""

    tokens: dict[str, str] = field(default_factory=dict)

    def answer(self, path: bytes) -> Answer | None:
        """The answer to a request for ``path``, to be asked before the routes; None: not for us."""
        if not self.tokens or not path.startswith(PREFIX):
            return None
        known = self.tokens.get(path[len(PREFIX) :].decode("latin-1"))
        if known is None:  # perhaps somebody's behind the gateway
            return None
        return Answer(200, body=known.encode(), content_type="application/octet-stream")


def client() -> Issue:
    """The conversation with the server. Raises ``Invalid`` where the library is not installed."""
    try:
        # By name: what needs an extra is imported where it is used.
        issue: Issue = import_module("roost.gateway.acme_client").issue
    except ImportError as error:
        raise Invalid(
            f"certificates from an ACME server need the extra 'acme' ({error.name} is missing)",
            hint="pip install 'roost[acme]'",
        ) from error
    return issue


class Acme:
    """Obtains and renews. ``changed`` is told of the certificates in use whenever they change.

    ``publish`` makes ``tokens`` known to all workers before it returns. Raises ``Invalid`` for names that
    cannot be served and where the library is missing.
    """

    def __init__(
        self,
        settings: policy.Acme,
        names: Iterable[str],
        base: Path,
        *,
        clock: Clock,
        random: Random,
        changed: Callable[[tuple[policy.Certificate, ...]], None],
        publish: Callable[[dict[str, str]], Awaitable[None]],
        issue: Issue | None = None,
    ) -> None:
        self._settings = settings
        self._names = tuple(dict.fromkeys(check_name(name) for name in names))
        self.store = Store(base / settings.state)
        self._clock = clock
        self._random = random
        self._changed = changed
        self._publish = publish
        self._issue = issue or client()
        self._renewals: dict[Path, float] = {}
        self._attempts = self.store.attempts()

    @property
    def certificates(self) -> tuple[policy.Certificate, ...]:
        """What is held now: also what an earlier run obtained."""
        held = (self.store.newest(name) for name in self._names)
        return tuple(one.policy() for one in held if one is not None)

    async def run(self) -> None:
        """For ever; cancel it to end."""
        while self._names:
            wait_s = max(0.0, min(map(self._due_s, self._names)) - self._clock.now_s())
            if wait_s:
                await asyncio.sleep(min(wait_s, LONGEST_SLEEP_S))
                continue
            for name in self._names:
                if self._due_s(name) <= self._clock.now_s():
                    await self._obtain(name)

    def _due_s(self, name: str) -> float:
        """When to ask for a certificate, of the wall clock."""
        attempt = self._attempts.get(name)
        held = self.store.newest(name)
        due_s = 0.0 if held is None else self._renew_s(held)
        return due_s if attempt is None else max(due_s, attempt.not_before_s)

    def _renew_s(self, held: Held) -> float:
        """Earlier by a share of chance, so that many gateways do not come at once."""
        known = self._renewals.get(held.path)
        if known is None:
            lifetime_s = held.not_after_s - held.not_before_s
            ahead_s = min(self._settings.renew_before_days * DAY_S, lifetime_s / 3)
            known = held.not_after_s - ahead_s * (1 + self._random.random() / 10)
            self._renewals[held.path] = known
        return known

    async def _obtain(self, name: str) -> None:
        try:
            chain, key = await self._in_thread(name)
            held = self.store.save(name, chain, key)
        except (RoostError, OSError) as error:
            self._failed(name, error)
            return
        if self._attempts.pop(name, None) is not None:
            self._save_attempts()
        days = (held.not_after_s - self._clock.now_s()) / DAY_S
        log.info("certificate for %s obtained, valid for %.1f days", name, days)
        self._changed(self.certificates)

    def _failed(self, name: str, error: Exception) -> None:
        before = self._attempts.get(name)
        failures = 1 if before is None else before.failures + 1
        wait_s = min(FIRST_RETRY_S * 2 ** min(failures - 1, 20), LAST_RETRY_S)
        wait_s *= 0.8 + self._random.random() * 0.4
        if isinstance(error, Retry):
            wait_s = max(wait_s, error.after_s)
        self._attempts[name] = Attempt(failures, self._clock.now_s() + wait_s, str(error))
        self._save_attempts()
        log.warning("no certificate for %s: %s; next attempt in %.0f s", name, error, wait_s)

    def _save_attempts(self) -> None:
        try:
            self.store.save_attempts(self._attempts)
        except OSError as error:  # a full disk costs the memory of a restart, no more
            log.warning("%s", error)

    async def _in_thread(self, name: str) -> tuple[bytes, bytes]:
        """In a thread that the program's end does not wait for: the library sleeps and blocks."""
        loop = asyncio.get_running_loop()
        done: asyncio.Future[tuple[bytes, bytes]] = loop.create_future()

        async def publish(tokens: dict[str, str]) -> None:
            await self._publish(tokens)

        def tell(tokens: dict[str, str]) -> None:
            asyncio.run_coroutine_threadsafe(publish(tokens), loop).result(PUBLISH_S)

        def end(result: tuple[bytes, bytes] | None, error: Exception | None) -> None:
            if done.done():
                return
            if result is not None:
                done.set_result(result)
            elif error is not None:
                done.set_exception(error)

        def work() -> None:
            result: tuple[bytes, bytes] | None = None
            failure: Exception | None = None
            try:
                result = self._issue(self._settings, self.store, name, tell)
            except TimeoutError:
                failure = Retry(f"{name}: the workers do not take the challenge")
            except (RoostError, OSError) as error:
                failure = error
            except Exception as error:
                log.exception("obtaining a certificate for %s failed", name)
                failure = Retry(f"{name}: {error!r}")
            if not loop.is_closed():
                loop.call_soon_threadsafe(end, result, failure)

        threading.Thread(target=work, name=f"acme {name}", daemon=True).start()
        return await done
