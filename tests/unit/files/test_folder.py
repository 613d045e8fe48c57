"""A notebook's folder on the person's machine and the workspace: up, down, both, limits."""

from pathlib import Path

import pytest

from roost.notebooks.folder import FolderSync
from roost.notebooks.workspace import Workspace
from roost.ports.files import Limits
from tests.unit.files.conftest import Hosts


@pytest.fixture
def mine(short: Path) -> Path:
    folder = short / "project"
    folder.mkdir()
    return folder


@pytest.fixture
async def root(hosts: Hosts) -> Path:
    made = await hosts.add("a")
    hosts.point("a")
    return made


async def test_up_then_down(mine: Path, root: Path, workspace: Workspace) -> None:
    (mine / "data").mkdir()
    (mine / "data/x.csv").write_text("1")
    (mine / ".env").write_text("secret")
    (mine / "link").symlink_to(mine / "data/x.csv")
    sync = FolderSync(mine, workspace)
    up = await sync.up()
    assert up.sent == ["data/x.csv"]
    assert sorted(p.name for p in root.rglob("*")) == ["data", "x.csv"]
    (root / "out").mkdir()
    (root / "out/result.txt").write_text("done")
    (root / "data/x.csv").write_text("22")
    down = await sync.down()
    assert down.received == ["data/x.csv", "out/result.txt"]
    assert (mine / "out/result.txt").read_text() == "done"
    assert (mine / "data/x.csv").read_text() == "22"
    assert (mine / "out/result.txt").stat().st_mtime_ns == (
        root / "out/result.txt"
    ).stat().st_mtime_ns
    again = await sync.down()
    assert (again.received, again.sent, again.lines()) == ([], [], [])


async def test_both_changed_keeps_both_and_says_so(
    mine: Path, root: Path, workspace: Workspace
) -> None:
    (mine / "a.txt").write_text("first")
    sync = FolderSync(mine, workspace)
    await sync.up()
    (mine / "a.txt").write_text("mine")
    (root / "a.txt").write_text("theirs")
    assert (await sync.up()).sent == []  # nothing is overwritten on the way up either
    report = await sync.down()
    assert report.kept_both == ["a (from roost).txt"]
    assert report.lines() == [
        "both sides changed it: the session's version is 'a (from roost).txt'"
    ]
    assert (mine / "a.txt").read_text() == "mine"
    assert (mine / "a (from roost).txt").read_text() == "theirs"
    assert (await sync.down()).lines() == []
    (root / "a.txt").write_text("theirs again")
    assert (await sync.down()).received == ["a.txt"]  # only one side changed since
    assert not (root / "a (from roost).txt").exists()


async def test_what_came_into_being_on_both_sides_is_kept_twice(
    mine: Path, root: Path, workspace: Workspace
) -> None:
    (mine / "n").write_text("mine")
    (mine / "same").write_text("x")
    (root / "n").write_text("theirs")
    (root / "same").write_text("x")
    sync = FolderSync(mine, workspace)
    await sync.up()
    report = await sync.down()
    assert report.kept_both == ["n (from roost)"]
    assert (root / "n").read_text() == "theirs"


async def test_nothing_is_deleted(mine: Path, root: Path, workspace: Workspace) -> None:
    for name in ("a", "b"):
        (mine / name).write_text(name)
    sync = FolderSync(mine, workspace)
    await sync.up()
    (mine / "a").unlink()
    (root / "b").unlink()
    for _ in range(2):
        report = await sync.down()
        assert (report.sent, report.received) == ([], [])
    assert (root / "a").exists()
    assert (mine / "b").exists()


async def test_a_bridge_started_again_goes_on(mine: Path, root: Path, workspace: Workspace) -> None:
    (mine / "a").write_text("1")
    await FolderSync(mine, workspace).up()
    (root / "a").write_text("2")
    again = FolderSync(mine, workspace)
    assert (await again.up()).sent == []
    assert (await again.down()).received == ["a"]


async def test_limits_are_said_once(mine: Path, root: Path, workspace: Workspace) -> None:
    (mine / "big").write_bytes(b"x" * 100)
    (mine / "small").write_bytes(b"x")
    (root / "huge").write_bytes(b"x" * 200)
    sync = FolderSync(mine, workspace, Limits(file_bytes=50))
    report = await sync.up()
    assert report.sent == ["small"]
    assert report.lines() == [
        "'big' was not copied: larger than 50 bytes",
        "'huge' was not copied: larger than 50 bytes",
    ]
    assert (await sync.down()).lines() == []


async def test_a_link_here_does_not_lead_a_download_out(
    mine: Path, root: Path, workspace: Workspace, short: Path
) -> None:
    (short / "elsewhere").mkdir()
    (mine / "sub").symlink_to(short / "elsewhere")
    (root / "sub").mkdir()
    (root / "sub/x").write_text("no")
    report = await FolderSync(mine, workspace).down()
    assert report.received == []
    assert not (short / "elsewhere/x").exists()
    assert "leads out" in report.lines()[0]


async def test_a_home_folder_is_refused(root: Path, workspace: Workspace) -> None:
    report = await FolderSync(Path.home(), workspace).up()
    assert report.sent == []
    assert "is not copied" in report.lines()[0]
