"""What the engine is asked to create for an order, and what a container's cgroup says."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from roost.adapters.drivers.docker.config import container_config
from roost.adapters.drivers.docker.usage import from_cgroup, from_engine
from roost.ports.driver import TaskLimits, TaskOrder, TaskUsage
from roost.ports.errors import Invalid


def config(order: TaskOrder) -> dict[str, object]:
    return container_config(
        order,
        owner="h1",
        marks={"ROOST_INSTANCE": "h1"},
        cpus=2.0,
        true_path={"/i/self": "/i/h1"},
    )


def order(**more: object) -> TaskOrder:
    return TaskOrder(**{"task_id": "a", "argv": (), "image": "x", **more})  # type: ignore[arg-type]


def test_the_images_own_command_is_left_alone() -> None:
    made = config(order())
    assert "Entrypoint" not in made and "Cmd" not in made
    assert made["Labels"] == {"roost.host": "h1", "roost.task": "a"}
    assert made["Env"] == ["ROOST_INSTANCE=h1"]


def test_a_command_takes_the_place_of_the_images_entry_point() -> None:
    made = config(order(argv=("python3", "-c", "pass")))
    assert (made["Entrypoint"], made["Cmd"]) == (["python3"], ["-c", "pass"])


def test_it_listens_on_the_hosts_own_network_where_it_is_told() -> None:
    made = config(order(address="127.77.1.2", port=81, env={"A": "b", "PORT": "82"}))
    host = made["HostConfig"]
    assert isinstance(host, dict) and host["NetworkMode"] == "host" and "PortBindings" not in host
    # What a person sets wins; the mark does not yield.
    assert made["Env"] == ["A=b", "HOST=127.77.1.2", "PORT=82", "ROOST_INSTANCE=h1"]


def test_an_image_with_a_port_of_its_own_is_published() -> None:
    made = config(order(address="127.77.1.2", port=8123, listens=80))
    host = made["HostConfig"]
    assert isinstance(host, dict) and host["NetworkMode"] == "bridge"
    assert host["PortBindings"] == {"80/tcp": [{"HostIp": "127.77.1.2", "HostPort": "8123"}]}
    assert made["ExposedPorts"] == {"80/tcp": {}}


def test_a_folder_is_mounted_by_the_name_the_engine_has_for_it() -> None:
    made = config(order(cwd="/i/self/tree/sub", mounts=("/i/self/tree", "/i/selfish")))
    host = made["HostConfig"]
    assert isinstance(host, dict) and host["Binds"] == [
        "/i/h1/tree:/i/self/tree",
        "/i/selfish:/i/selfish",
    ]
    assert made["WorkingDir"] == "/i/self/tree/sub"


@given(vcpus=st.floats(0, 1e3), memory_mib=st.floats(0, 1e6), gpus=st.floats(0, 16))
def test_limits_are_what_an_engine_takes(vcpus: float, memory_mib: float, gpus: float) -> None:
    limits = TaskLimits(vcpus=vcpus, memory_mib=memory_mib, gpus=gpus)
    host = config(order(limits=limits))["HostConfig"]
    assert isinstance(host, dict)
    assert ("NanoCpus" in host) == (vcpus > 0) and ("Memory" in host) == (memory_mib > 0)
    if vcpus > 0:
        assert 1e7 <= host["NanoCpus"] <= 2e9
    if memory_mib > 0:
        assert host["Memory"] == host["MemorySwap"] >= 6 << 20
    assert ("DeviceRequests" in host) == (gpus >= 1)


def test_an_order_without_an_image_is_refused() -> None:
    with pytest.raises(Invalid, match="no image"):
        config(TaskOrder(task_id="a", argv=("true",)))


def test_usage_from_either_version_of_cgroups(tmp_path: Path) -> None:
    assert from_cgroup("abc", tmp_path) == TaskUsage()
    two = tmp_path / "system.slice" / "docker-abc.scope"
    two.mkdir(parents=True)
    (two / "memory.current").write_text(f"{9 << 20}\n")
    (two / "memory.stat").write_text(f"anon 1\ninactive_file {1 << 20}\n")
    (two / "cpu.stat").write_text("usage_usec 2500000\nuser_usec 1\n")
    assert from_cgroup("abc", tmp_path) == TaskUsage(cpu_s=2.5, memory_mib=8.0)
    for tree in ("cpuacct", "memory"):
        (tmp_path / tree / "docker" / "abc").mkdir(parents=True)
    (tmp_path / "cpuacct/docker/abc/cpuacct.usage").write_text("1500000000\n")
    (tmp_path / "memory/docker/abc/memory.usage_in_bytes").write_text(f"{5 << 20}\n")
    (tmp_path / "memory/docker/abc/memory.stat").write_text(f"total_inactive_file {2 << 20}\n")
    assert from_cgroup("abc", tmp_path) == TaskUsage(cpu_s=1.5, memory_mib=3.0)


def test_usage_from_the_engines_sample() -> None:
    assert from_engine({"memory_stats": {}}) == TaskUsage()
    sample = {
        "cpu_stats": {"cpu_usage": {"total_usage": 2_000_000_000}},
        "memory_stats": {"usage": 4 << 20, "stats": {"inactive_file": 1 << 20}},
    }
    assert from_engine(sample) == TaskUsage(cpu_s=2.0, memory_mib=3.0)
