"""Fixtures shared by all tests."""

import os
from collections.abc import Iterator
from types import TracebackType

import pytest
from hypothesis import settings

from tests.support.cluster import Cluster

# The same examples in every run: a failure is the change's. `HYPOTHESIS_PROFILE=default` explores.
settings.register_profile("repeatable", derandomize=True, deadline=None)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "repeatable"))


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_makereport(call: pytest.CallInfo[None]) -> None:
    """A test that is out of time may be stopped between two lines, where CPython 3.11 knows no line number
    and pytest ends the whole run with an internal error instead of naming the test: it gets one here."""
    if call.excinfo is not None:
        error = call.excinfo.value
        error.__traceback__ = _numbered(error.__traceback__)
        call.excinfo = pytest.ExceptionInfo.from_exception(error)


def _numbered(trace: TracebackType | None) -> TracebackType | None:
    entries = []
    while trace is not None:
        entries.append(trace)
        trace = trace.tb_next
    made = None
    for entry in reversed(entries):
        line: int | None = entry.tb_lineno
        frame = entry.tb_frame
        made = TracebackType(made, frame, entry.tb_lasti, line or frame.f_code.co_firstlineno)
    return made


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
