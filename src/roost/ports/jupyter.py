"""A Jupyter message as its ZMQ parts: read what routing needs, sign, build. Never reads user content.

Parts on the wire: identities ..., ``<IDS|MSG>``, signature, header, parent header, metadata, content,
buffers ... (https://jupyter-client.readthedocs.io/en/stable/messaging.html).
"""

import hmac
from typing import Any

import msgspec
from jupyter_client.session import DELIM, Session

Parts = tuple[bytes, ...]
BODY = 5
"""Signature, header, parent header, metadata, content."""


class Header(msgspec.Struct, frozen=True):
    """The fields of a header that routing needs."""

    msg_id: str = ""
    msg_type: str = ""
    subshell_id: str | None = None


class ExecuteOptions(msgspec.Struct, frozen=True):
    """The fields of an execute_request's content that decide about aborting."""

    silent: bool = False
    stop_on_error: bool = True


class Status(msgspec.Struct, frozen=True):
    """``status`` of a reply, ``execution_state`` of a status message, ``restart`` of a shutdown."""

    status: str = ""
    execution_state: str = ""
    restart: bool = False


_header = msgspec.json.Decoder(Header)
_execute = msgspec.json.Decoder(ExecuteOptions)
_status = msgspec.json.Decoder(Status)


class BadMessage(Exception):
    """These parts are not a Jupyter message."""


class Message(msgspec.Struct, frozen=True):
    """One message: ``parts`` untouched, and what was read from them."""

    parts: Parts
    at: int
    """Index of the signature."""
    header: Header
    parent: Header

    @property
    def identities(self) -> Parts:
        """The routing identities (or the topic) in front of the delimiter."""
        return self.parts[: self.at - 1]

    @property
    def content(self) -> bytes:
        """The JSON of the content."""
        return self.parts[self.at + 4]

    def options(self) -> ExecuteOptions:
        """Of an execute_request; defaults where the content is odd (the kernel will complain)."""
        try:
            return _execute.decode(self.content)
        except msgspec.MsgspecError:
            return ExecuteOptions()

    def status(self) -> Status:
        """Of a reply, a status message or a shutdown request."""
        try:
            return _status.decode(self.content)
        except msgspec.MsgspecError:
            return Status()


def read(parts: Parts | list[bytes]) -> Message:
    """Parse ``parts``; raises ``BadMessage``."""
    try:
        at = parts.index(DELIM) + 1
        if len(parts) < at + BODY:
            raise BadMessage(f"{len(parts) - at} parts after the delimiter, {BODY} are needed")
        header = _header.decode(parts[at + 1])
        return Message(tuple(parts), at, header, _header.decode(parts[at + 2]))
    except (ValueError, msgspec.MsgspecError) as error:
        raise BadMessage(str(error)) from error


class Signer:
    """Builds and checks messages with a session's key."""

    def __init__(self, key: str) -> None:
        self._session = Session(key=key.encode(), username="roost")
        # DigestHistory is the receiver's business; here every check stands alone.
        self._signed = bool(key)

    def genuine(self, message: Message) -> bool:
        """Whether the signature is the one of this key."""
        if not self._signed:
            return True
        body = list(message.parts[message.at + 1 : message.at + BODY])
        expected: bytes = self._session.sign(body)
        return hmac.compare_digest(expected, message.parts[message.at])

    def build(
        self,
        msg_type: str,
        content: dict[str, Any],
        *,
        parent: Message | None = None,
        identities: Parts = (),
        metadata: dict[str, Any] | None = None,
    ) -> Parts:
        """A signed message of ours, as a reply to (or caused by) ``parent``."""
        message = self._session.msg(msg_type, content, metadata=metadata)
        if parent is not None:
            message["parent_header"] = msgspec.json.decode(parent.parts[parent.at + 1])
        return tuple(self._session.serialize(message, ident=list(identities)))

    def status(self, state: str, parent: Message | None = None) -> Parts:
        """An iopub status message."""
        return self.build(
            "status",
            {"execution_state": state},
            parent=parent,
            identities=(b"kernel.roost.status",),
        )

    def reply(self, request: Message, content: dict[str, Any]) -> Parts:
        """The reply to ``request``, addressed to its sender."""
        msg_type = request.header.msg_type.rsplit("_", 1)[0] + "_reply"
        metadata = {"status": content["status"]} if content.get("status") == "aborted" else None
        return self.build(
            msg_type, content, parent=request, identities=request.identities, metadata=metadata
        )
