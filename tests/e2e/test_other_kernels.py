"""A kernel of another language: its files move, the kernel begins anew, and the report says so."""

from pathlib import Path

import msgspec
import pytest

from roost.ports.errors import RoostError
from tests.support.cluster import ASK, Cluster

R = Path("/usr/share/jupyter/kernels/ir")
pytestmark = [pytest.mark.e2e, pytest.mark.timeout(400)]


def test_bash_moves_with_its_files_and_says_what_it_lost(cluster: Cluster) -> None:
    view = cluster.start(msgspec.structs.replace(ASK, kernel="bash", image="data-science"))
    page = cluster.page(view)
    assert page.run("x=5; echo one > kept.txt; echo $x").text.strip() == "5"
    before = cluster.saved(view.id, page.run("echo two >> kept.txt"))
    cluster.warm(view.id)
    cluster.client.interrupt_host(before.host_id, 25, "with notice")
    after = cluster.moved(before)
    (lost,) = after.moves[-1].refused
    assert "bash" in lost.name and "begins anew" in lost.reason and after.moves[-1].kept == ()
    assert page.run('cat kept.txt; echo "[$x]"').text.split() == ["one", "two", "[]"]
    assert page.run("exit_code() { return 3; }; exit_code").status == "error"
    before = cluster.saved(view.id, page.run("echo three >> kept.txt"))
    cluster.warm(view.id)
    cluster.client.kill_host(before.host_id)
    cluster.moved(before)
    assert page.run("tail -1 kept.txt").text.strip() == "three"
    assert "hello" in page.run("read -t 1 line; echo hello").text


@pytest.mark.skipif(not R.exists(), reason="R's kernel is not installed (r-cran-irkernel)")
def test_r_moves_with_its_files(cluster: Cluster) -> None:
    view = cluster.start(msgspec.structs.replace(ASK, kernel="ir"))
    page = cluster.page(view)
    assert page.run("x <- 5; print(x)").text == "[1] 5\n"
    before = cluster.saved(view.id, page.run("writeLines('one', 'kept.txt')"))
    cluster.warm(view.id)
    cluster.client.interrupt_host(before.host_id, 25, "with notice")
    cluster.moved(before)
    told = page.run("print(readLines('kept.txt')); exists('x')").text
    assert told == '[1] "one"\n[1] FALSE\n'


def test_a_kernel_that_is_not_there_is_named(cluster: Cluster) -> None:
    asked = msgspec.structs.replace(ASK, kernel="klingon", standby=False)
    view = cluster.client.start_notebook(asked)
    message = cluster.until(view.id, lambda v: bool(v.message), "it says why", 120).message
    assert "klingon" in message and "python3" in message
    with pytest.raises(RoostError, match="cannot be the name"):
        cluster.client.start_notebook(msgspec.structs.replace(asked, kernel="../x"))
