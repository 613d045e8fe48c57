"""Fixtures shared by all tests."""

from collections.abc import Iterator

import pytest

from tests.support.cluster import Cluster


@pytest.fixture(scope="session")
def whole_cluster() -> Iterator[Cluster]:
    """One running installation for all tests of a run: starting and deleting one takes a minute."""
    found = Cluster()
    try:
        yield found.up()
    finally:
        found.close()


@pytest.fixture(scope="module")
def cluster(whole_cluster: Cluster) -> Iterator[Cluster]:
    """The installation, without sessions of other modules."""
    whole_cluster.up()
    yield whole_cluster
    whole_cluster.end_sessions()
