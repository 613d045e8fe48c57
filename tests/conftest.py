"""Fixtures shared by all tests."""

from collections.abc import Iterator

import pytest

from tests.support.cluster import Cluster


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """A running installation of its own, shared by the tests of a module."""
    found = Cluster()
    try:
        yield found.up()
    finally:
        found.close()
