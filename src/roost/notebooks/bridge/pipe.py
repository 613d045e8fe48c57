"""What front and worker say to each other over their socket pair. Local to one machine."""

import msgspec

from roost.ports.frames import STREAM_LIMIT, Frames


class _Message(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Base: the msgpack map carries the class name as its tag."""


class Welcome(_Message, frozen=True, kw_only=True):
    """Front to a fresh worker: how far the client has been served (0, 0: nothing yet)."""

    epoch: int
    seq: int


class FromClient(_Message, frozen=True, kw_only=True):
    """The client sent a message; told again to the next worker until ``Kept``."""

    number: int
    channel: str
    frames: tuple[bytes, ...]


class Subscribed(_Message, frozen=True, kw_only=True):
    """Somebody listens to iopub now; told again until ``Kept``."""

    number: int
    topic: bytes


class Delivered(_Message, frozen=True, kw_only=True):
    """Everything up to here is in the client's sockets."""

    epoch: int
    seq: int


class Interrupted(_Message, frozen=True, kw_only=True):
    """The front got SIGINT: interrupt the kernel."""


class Ending(_Message, frozen=True, kw_only=True):
    """The front ends: finish what is in hand and leave."""


class Deliver(_Message, frozen=True, kw_only=True):
    """Worker to front: give this to the client. Epoch 0: a message without a number."""

    channel: str
    frames: tuple[bytes, ...]
    epoch: int = 0
    seq: int = 0


class Kept(_Message, frozen=True, kw_only=True):
    """The worker has journaled everything up to this number."""

    number: int


class Leave(_Message, frozen=True, kw_only=True):
    """End the bridge with this exit code."""

    code: int


ToWorker = Welcome | FromClient | Subscribed | Delivered | Interrupted | Ending
ToFront = Deliver | Kept | Leave


def to_worker() -> Frames[ToWorker]:
    """Codec of what the front sends."""
    return Frames(ToWorker, limit=STREAM_LIMIT)


def to_front() -> Frames[ToFront]:
    """Codec of what the worker sends."""
    return Frames(ToFront, limit=STREAM_LIMIT)
