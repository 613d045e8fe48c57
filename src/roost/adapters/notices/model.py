"""What the three dialects share: facts of an instance, a request, a reply. Does no I/O."""

from collections.abc import Callable, Mapping
from typing import Protocol

import msgspec

from roost.ports.values import Notice, NoticeKind


class Facts(msgspec.Struct, frozen=True, kw_only=True):
    """What a metadata service says about its instance."""

    instance_id: str
    instance_type: str
    region: str
    zone: str
    spot: bool = True


class Request(msgspec.Struct, frozen=True, kw_only=True):
    """A request as a dialect sees it; header names are lower case."""

    method: str
    path: str
    query: Mapping[str, str]
    headers: Mapping[str, str]
    body: bytes = b""
    final: bool = False
    """The time of a long poll is over: answer now."""


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """A reply of a metadata service."""

    status: int = 200
    body: str = ""
    content_type: str = "text/plain"
    headers: Mapping[str, str] = {}


class Wait(msgspec.Struct, frozen=True, kw_only=True):
    """Ask the dialect again when something changed, at the latest after ``seconds``."""

    seconds: float


ReadNotices = Callable[[], tuple[Notice, ...]]


class Dialect(Protocol):
    """The serving half of a cloud's metadata service."""

    def answer(self, request: Request, notices: tuple[Notice, ...]) -> Answer | Wait:
        """The reply to one request, given the notices delivered so far."""


def interruption(notices: tuple[Notice, ...]) -> Notice | None:
    """The notice that ends the instance first (a drain ends it as well)."""
    ending = [n for n in notices if n.kind is not NoticeKind.REBALANCE]
    return min(ending, key=lambda n: n.deadline_s or n.seen_s, default=None)


def rebalance(notices: tuple[Notice, ...]) -> Notice | None:
    """The latest rebalance recommendation."""
    return next((n for n in reversed(notices) if n.kind is NoticeKind.REBALANCE), None)
