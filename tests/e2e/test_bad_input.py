"""Bad input: a clear error each, and nothing lost."""

import contextlib
import os
import shutil
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

import httpx
import psutil
import pytest

from roost.client.model import StartNotebook
from tests.support.cluster import Cluster, eventually

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]


def roost(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """The command with its own environment."""
    argv = [str(Path(sys.executable).with_name("roost")), *arguments]
    env = {**os.environ, **environment}
    return subprocess.run(argv, capture_output=True, text=True, timeout=60, env=env, check=False)


def flat(text: str) -> str:
    return " ".join(text.split())


def test_unknown_instance_type(cluster: Cluster) -> None:
    done = cluster.roost("notebook", "start", "--type", "m5.xxlarge", "--no-wait", check=False)
    assert done.returncode == 2
    assert "m5.xxlarge" in done.stderr
    assert "m5.xlarge" in done.stderr, "close names are offered"


def test_impossible_constraints_name_the_one_that_leaves_nothing(cluster: Cluster) -> None:
    done = cluster.roost("notebook", "start", "--max-price", "0.0001", "--no-wait", check=False)
    assert done.returncode == 2
    assert "0.0001" in done.stderr
    assert (
        cluster.roost("notebook", "start", "--vcpus", "0", "--no-wait", check=False).returncode == 2
    )


def test_unknown_notebook_and_host(cluster: Cluster) -> None:
    for arguments in (("notebook", "show", "nobody"), ("host", "kill", "i-nobody")):
        done = cluster.roost(*arguments, check=False)
        assert done.returncode == 2
        assert "list" in done.stderr, "the error says what to do next"


def test_requests_without_a_token_or_with_a_wrong_body(cluster: Cluster) -> None:
    found = cluster.state.endpoints()
    for url in (found["control_url"], found["public_url"]):
        assert httpx.get(f"{url}/api/v1/status", trust_env=False).status_code == 401
    token = cluster.state.read_secret("owner.token")
    headers = {"Authorization": f"Bearer {token}"}
    url = f"{found['public_url']}/api/v1/notebooks"
    for body in (b"{", b'{"vcpus": "many"}', b'{"unknown": 1}', b"[]", b"\xff" * 100):
        answer = httpx.post(url, content=body, headers=headers, trust_env=False)
        assert answer.status_code == 400, body
        assert answer.json()["code"] == "invalid"
    big = httpx.post(url, content=b" " * (2 << 20), headers=headers, trust_env=False)
    assert big.status_code == 400


def test_port_taken(cluster: Cluster) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        folder = tempfile.mkdtemp(prefix="rt-", dir="/var/tmp")
        try:
            done = roost("--state", f"{folder}/s", "up", ROOST_PORT=port)
        finally:
            shutil.rmtree(folder)
    assert done.returncode == 2
    assert port in done.stderr
    assert "ROOST_PORT" in done.stderr


def test_no_listener_beyond_loopback_without_tls() -> None:
    folder = tempfile.mkdtemp(prefix="rt-", dir="/var/tmp")
    try:
        done = roost("--state", f"{folder}/s", "up", ROOST_HOST="0.0.0.0", ROOST_PORT="0")
    finally:
        shutil.rmtree(folder)
    assert done.returncode == 2
    assert "without encryption" in flat(done.stderr)


def test_state_directory_not_usable(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("in the way")
    done = roost("--state", str(file / "s"), "up")
    assert done.returncode == 2
    assert "ROOST_STATE_DIR" in flat(done.stderr)


def test_state_directory_of_a_newer_version_is_left_alone() -> None:
    folder = Path(tempfile.mkdtemp(prefix="rt-", dir="/var/tmp"))
    try:
        (folder / "VERSION").write_text("99\n")
        done = roost("--state", str(folder), "up")
        assert done.returncode == 2
        assert "99" in done.stderr
        assert sorted(p.name for p in folder.iterdir() if p.is_file()) == ["VERSION"]
    finally:
        shutil.rmtree(folder)


def test_state_directory_with_a_long_path(tmp_path: Path) -> None:
    done = roost("--state", str(tmp_path / ("x" * 80)), "up")
    assert done.returncode == 2
    assert "shorter" in flat(done.stderr)


def test_commands_before_the_first_start(tmp_path: Path) -> None:
    folder = tempfile.mkdtemp(prefix="rt-", dir="/var/tmp")
    try:
        done = roost("--state", f"{folder}/s", "status")
    finally:
        shutil.rmtree(folder)
    assert done.returncode == 2
    assert "roost up" in done.stderr


def test_garbage_on_the_agent_ports_harms_nobody(cluster: Cluster) -> None:
    view = cluster.start(
        StartNotebook(name="g", vcpus=2, memory_gib=4, image="minimal", standby=False)
    )
    page = cluster.page(view)
    page.run("x = 1")
    found = cluster.state.endpoints()
    for address in (found["link_address"], *found["data_addresses"]):
        host, port = address.rsplit(":", 1)
        for content in (b"\xff" * 64, b"GET / HTTP/1.1\r\n\r\n", b"\0\0\0\x05hello", b"\0"):
            with socket.create_connection((host, int(port)), timeout=5) as link:
                link.sendall(content)
                link.shutdown(socket.SHUT_WR)
                while link.recv(4096):
                    pass
    assert page.run("x").text.strip() == "1"
    assert cluster.client.notebook(view.id).state == "running"
    cluster.client.stop_notebook(view.id)


def test_an_endless_header_costs_bounded_memory(cluster: Cluster) -> None:
    host, port = cluster.state.endpoints()["public_url"].removeprefix("http://").rsplit(":", 1)
    edge = psutil.Process(cluster.pid("edge-0"))
    before = edge.memory_info().rss
    sent = 0
    answer = b""
    with socket.create_connection((host, int(port)), timeout=10) as client:
        client.sendall(b"GET / HTTP/1.1\r\nHost: x\r\nX-Long: ")
        piece = b"a" * (1 << 20)
        try:
            while sent < 1 << 30:
                sent += client.send(piece)
        except OSError:
            pass
        with contextlib.suppress(OSError):
            answer = client.recv(4096)
    assert edge.memory_info().rss - before < 32 << 20
    assert b" 431 " in answer, "the client is told what is wrong"


def test_disk_full_while_checkpointing_tells_and_goes_on(cluster: Cluster) -> None:
    if os.geteuid() != 0:
        pytest.skip("mounting a small file system needs root")
    view = cluster.start(
        StartNotebook(name="d", vcpus=2, memory_gib=4, image="minimal", standby=False)
    )
    page = cluster.page(view)
    cluster.saved(view.id, page.run("small = 1"))
    blobs = cluster.state.blobs
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(blobs)], check=False
    )
    if mounted.returncode != 0:
        pytest.skip("this machine does not let us mount")
    try:
        # The edge has its own mount namespace only if it was made so; here it shares ours.
        result = page.run("import os; big = os.urandom(8 << 20); len(big)")
        assert result.text.strip() == str(8 << 20), "the session goes on"

        def told() -> bool:
            return "full" in cluster.client.notebook(view.id).message.lower()

        eventually(told, "the user is told that the disk is full")
    finally:
        subprocess.run(["umount", str(blobs)], check=True)
    cluster.saved(view.id, page.run("after = 2"))
    eventually(lambda: cluster.client.notebook(view.id).message == "", "the trouble is over")
    assert page.run("small, len(big), after").text.strip() == f"(1, {8 << 20}, 2)"
    cluster.client.stop_notebook(view.id)
