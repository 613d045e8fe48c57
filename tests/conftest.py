"""Fixtures shared by all tests."""

import os
from collections.abc import Iterator

import pytest
from hypothesis import settings

from tests.support.cluster import Cluster

# The same examples in every run: a failure is the change's. `HYPOTHESIS_PROFILE=default` explores.
settings.register_profile("repeatable", derandomize=True, deadline=None)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "repeatable"))


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
