"""Typed errors: the type carries the decision of the caller.

    RoostError
    ├── Retry(after_s)      the same call may succeed later
    ├── NoCapacity(offer)   this pool has nothing now: take the next in rank
    ├── Gone                the thing does not exist (any more): stop asking
    ├── Conflict            somebody else wrote first: read again, then decide again
    ├── StaleEpoch          an older epoch spoke: it must stop
    ├── Denied              not allowed
    ├── Invalid             the request is wrong; ``hint`` says what to do
    └── Never               it will not work, whatever is tried

An error crosses a wire as ``WireError`` (code, message, hint) and is raised again as its type.
"""

import msgspec


class RoostError(Exception):
    """Base of all errors Roost raises on purpose. ``hint`` tells a person what to do next."""

    code = "error"

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message} ({self.hint})" if self.hint else self.message


class Retry(RoostError):
    """Temporary: try again after ``after_s`` seconds."""

    code = "retry"

    def __init__(self, message: str, *, after_s: float = 1.0, hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.after_s = after_s


class NoCapacity(RoostError):
    """The pool of ``offer`` (an offer key) cannot give an instance now.

    ``reason_code`` is the cloud's own error code: it decides for how long the pool is left alone.
    """

    code = "no_capacity"

    def __init__(
        self, message: str, *, offer: str = "", reason_code: str = "", hint: str = ""
    ) -> None:
        super().__init__(message, hint=hint)
        self.offer = offer
        self.reason_code = reason_code


class Gone(RoostError):
    """The object is unknown or has ended."""

    code = "gone"


class Conflict(RoostError):
    """A compare-and-set lost, or two requests contradict each other."""

    code = "conflict"


class StaleEpoch(RoostError):
    """A writer of an older epoch was refused."""

    code = "stale_epoch"


class Denied(RoostError):
    """The caller may not do this."""

    code = "denied"


class Invalid(RoostError):
    """The request cannot be understood or satisfied as stated."""

    code = "invalid"


class Never(RoostError):
    """It failed and repeating will not help."""

    code = "never"


BY_CODE: dict[str, type[RoostError]] = {
    kind.code: kind
    for kind in (RoostError, Retry, NoCapacity, Gone, Conflict, StaleEpoch, Denied, Invalid, Never)
}


class WireError(msgspec.Struct, frozen=True, kw_only=True):
    """An error as it crosses a wire."""

    code: str
    message: str
    hint: str = ""
    after_s: float = 1.0
    offer: str = ""
    reason_code: str = ""


def to_wire(error: RoostError) -> WireError:
    """Encode ``error``; the receiving side gets the same type back from ``from_wire``."""
    return WireError(
        code=error.code,
        message=error.message,
        hint=error.hint,
        after_s=getattr(error, "after_s", 1.0),
        offer=getattr(error, "offer", ""),
        reason_code=getattr(error, "reason_code", ""),
    )


def from_wire(wire: WireError) -> RoostError:
    """The typed error of ``wire`` (an unknown code becomes ``RoostError``)."""
    if wire.code == Retry.code:
        return Retry(wire.message, after_s=wire.after_s, hint=wire.hint)
    if wire.code == NoCapacity.code:
        return NoCapacity(
            wire.message, offer=wire.offer, reason_code=wire.reason_code, hint=wire.hint
        )
    return BY_CODE.get(wire.code, RoostError)(wire.message, hint=wire.hint)
