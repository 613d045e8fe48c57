"""Interruption notices in the dialects of AWS, Azure and GCP: the polling and the serving half of each."""

from roost.adapters.notices.aws import AwsMetadata, AwsNotices
from roost.adapters.notices.azure import AzureMetadata, AzureNotices
from roost.adapters.notices.gcp import GcpMetadata, GcpNotices
from roost.adapters.notices.model import Dialect, Facts
from roost.adapters.notices.server import MetadataServer
from roost.ports.clock import Clock
from roost.ports.errors import Invalid
from roost.ports.notices import NoticeSource

__all__ = [
    "AwsMetadata",
    "AwsNotices",
    "AzureMetadata",
    "AzureNotices",
    "Dialect",
    "Facts",
    "GcpMetadata",
    "GcpNotices",
    "MetadataServer",
    "dialect",
    "notice_source",
]


def notice_source(provider: str, base_url: str, *, clock: Clock) -> NoticeSource:
    """The polling half for ``aws``, ``azure`` or ``gcp``. ``Invalid`` for another name."""
    if provider == "aws":
        return AwsNotices(base_url, clock=clock)
    if provider == "azure":
        return AzureNotices(base_url, clock=clock)
    if provider == "gcp":
        return GcpNotices(base_url, clock=clock)
    raise _unknown(provider)


def dialect(provider: str, facts: Facts, *, clock: Clock) -> Dialect:
    """The serving half for ``aws``, ``azure`` or ``gcp``. ``Invalid`` for another name."""
    if provider == "aws":
        return AwsMetadata(facts, clock=clock)
    if provider == "azure":
        return AzureMetadata(facts)
    if provider == "gcp":
        return GcpMetadata(facts)
    raise _unknown(provider)


def _unknown(provider: str) -> Invalid:
    return Invalid(f"{provider!r} has no dialect of notices", hint="known: aws, azure, gcp")
