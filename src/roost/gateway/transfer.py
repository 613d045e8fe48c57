"""Serves agents' chunk transfers against the blob store. Never keeps a chunk."""

import logging

from roost.ports import wire
from roost.ports.blobs import Blobs
from roost.ports.errors import Invalid, Retry, RoostError, to_wire

log = logging.getLogger(__name__)


class BlobTransfer:
    """One request in, one answer out; errors cross the wire as their type."""

    def __init__(self, blobs: Blobs) -> None:
        self._blobs = blobs

    async def answer(self, message: wire.DataToEdge) -> wire.DataToAgent:
        """BlobsMissing, BlobPut (answered when durable) or BlobGet."""
        try:
            return await self._serve(message)
        except RoostError as error:
            return wire.Failed(error=to_wire(error))
        except Exception as error:  # the agent must learn that this one failed, whatever it was
            log.exception("blob transfer failed")
            return wire.Failed(error=to_wire(Retry(f"the blob store failed: {error}")))

    async def _serve(self, message: wire.DataToEdge) -> wire.DataToAgent:
        if isinstance(message, wire.BlobsMissing):
            return wire.BlobsAnswer(digests=tuple(await self._blobs.missing(message.digests)))
        if isinstance(message, wire.BlobPut):
            await self._blobs.put(message.digest, message.content)
            return wire.BlobsAnswer()
        if isinstance(message, wire.BlobGet):
            return wire.BlobBytes(content=await self._blobs.get(message.digest))
        raise Invalid(f"{type(message).__name__} on a blobs connection")
