"""The engine's door and its captures in the background: requests, events, failures."""

import json
import sys
import time
from pathlib import Path

import pytest
from jupyter_client.manager import start_new_kernel

from roost.runtime.kernel.chunks import COLLECT_EVERY, Writer
from roost.runtime.kernel.format import (
    Extent,
    Manifest,
    chunk_digests,
    chunk_path,
    manifest_numbers,
    manifest_path,
    read,
)

pytestmark = pytest.mark.e2e


def settle(kernel) -> dict:
    """Wait until a background capture contains the last cell."""
    want = kernel.last_id
    while True:
        event = kernel.door.event("captured")
        if want in event["finished"]:
            return event


def test_captures_come_after_cells(bench) -> None:
    kernel = bench.session()
    kernel.run("x = 1")
    event = settle(kernel)
    manifest = read(Path(event["manifest"]))
    assert manifest.finished == (kernel.last_id,)
    assert manifest.session_id == "s-1"
    assert manifest.execution_count == 2
    assert event["refused"] == []
    kernel.run("import asyncio\nx = 2; y = asyncio.new_event_loop()")
    event = settle(kernel)
    assert [entry["name"] for entry in event["refused"]] == ["y"]
    kernel.kill()
    target = bench.session()
    answer = bench.restore(target, event["manifest"])
    assert answer["execution_count"] == 3
    assert answer["finished"][-1] == kernel.last_id
    assert target.run("print(x)") == "2\n"


def test_an_unchanged_kernel_writes_nothing(bench) -> None:
    kernel = bench.session()
    kernel.run("x = [1]")
    first = kernel.door.demand("capture", budget_s=30)
    again = kernel.door.demand("capture", budget_s=30)
    assert (again["number"], again["bytes_new"]) == (first["number"], 0)


def test_only_what_changed_is_written(bench) -> None:
    kernel = bench.session()
    kernel.run("import numpy as np\nbig = np.random.default_rng(0).random(2_000_000); n = 1")
    first = kernel.door.demand("capture", budget_s=30)
    settle(kernel)
    kernel.run("n = 2")
    second = kernel.door.demand("capture", budget_s=30)
    assert first["bytes_total"] > 16_000_000
    assert second["bytes_new"] < 100_000
    kernel.run("big[5] = 0")
    third = kernel.door.demand("capture", budget_s=30)
    assert 65_536 < third["bytes_new"] + settle(kernel)["bytes_new"] < 1_000_000
    numbers = manifest_numbers(bench.captures)
    needed = {
        digest
        for number in numbers
        for digest in chunk_digests(read(bench.captures / f"manifest-{number}.json"))
    }
    assert {path.name for path in (bench.captures / "chunks").iterdir()} == needed


def test_older_captures_are_thinned_held_ones_stay(tmp_path) -> None:
    writer = Writer(tmp_path)
    for number in range(1, 131):
        writer.begin()
        extent = Extent(writer.put(b"%d" % number), 0, len(str(number)))
        writer.commit(Manifest(number, "3.11", "x86_64", cells=(extent,)), sync=False)
        writer.collect(frozenset({3}))
    numbers = manifest_numbers(tmp_path)
    assert numbers == [3, *range(10, 81, 10), *range(81, 131)]
    stored = {path.name for path in (tmp_path / "chunks").iterdir()}
    assert stored == {
        digest for n in numbers for digest in chunk_digests(read(manifest_path(tmp_path, n)))
    }
    for _ in range(COLLECT_EVERY):
        writer.collect(frozenset())
    assert 3 not in manifest_numbers(tmp_path)


@pytest.mark.parametrize(
    "code", ["import time; time.sleep(1.5)", "import asyncio; await asyncio.sleep(1.5)"]
)
def test_a_running_cell_is_busy(bench, code: str) -> None:
    kernel = bench.session()
    kernel.run("before = 1")
    begun = kernel.client.execute(f"{code}\nafter = 2")
    while not kernel.door.demand("status")["busy"]:
        time.sleep(0.01)
    assert kernel.door.ask("capture", budget_s=0.2)["error"] == "busy"
    done = kernel.door.demand("capture", budget_s=30)
    assert begun in done["finished"]
    kernel.kill()
    target = bench.session()
    bench.restore(target, done["manifest"])
    assert target.run("print(before, after)") == "1 2\n"


def test_a_new_key_counts_at_once(bench) -> None:
    kernel = bench.kernel()
    kernel.run("x = 1")
    kernel.door.demand("adopt", key="another-key", cwd=str(bench.work), env={"NEW": "here"})
    kernel.rekey("another-key")
    assert kernel.run("import os; print(x, os.environ['NEW'], os.path.basename(os.getcwd()))") == (
        "1 here w\n"
    )


def test_warming_reports_what_is_missing(bench) -> None:
    kernel = bench.kernel()
    answer = kernel.door.demand("warm", imports=["fractions", "no_such_module", "json.tool"])
    assert answer["imported"] == ["fractions", "json.tool"]
    assert answer["failed"] == ["no_such_module"]
    assert "No module" in answer["missing"]["no_such_module"]
    assert "fractions" in kernel.door.demand("status")["imports"]


def test_a_full_disk_is_told_and_survived(bench) -> None:
    kernel = bench.session()
    kernel.run("x = 1; import os, resource; hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]")
    good = settle(kernel)
    kernel.run(
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, hard)); b = os.urandom(3 << 20)"
    )
    failed = kernel.door.event("capture_failed")
    assert failed["reason"].startswith("disk full")
    assert kernel.door.ask("capture", budget_s=30)["error"] == "disk"
    assert read(Path(good["manifest"])).number == good["number"]
    assert not list((bench.captures / "chunks").glob("*.part"))
    assert kernel.run("print(x, len(b))") == "1 3145728\n"
    kernel.run("resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard)); x = 2")
    target, report = bench.move(kernel)
    assert report["refused"] == {}
    assert target.run("print(x, len(b))") == "2 3145728\n"


def test_a_capture_is_never_torn(bench) -> None:
    kernel = bench.session()
    kernel.run("import numpy as np\na = np.zeros(3_000_000); n = 0")
    settle(kernel)
    for _ in range(25):
        kernel.run("n += 1; a[:] = n")
    kernel.kill()
    newest = manifest_numbers(bench.captures)[-1]
    target = bench.session()
    answer = bench.restore(target, str(bench.captures / f"manifest-{newest}.json"))
    assert target.run("print(set(a.tolist()) == {n})") == "True\n"
    assert target.run("print(n)") == f"{len(answer['finished']) - 1}\n"


def test_damage_is_found(bench) -> None:
    kernel = bench.session()
    kernel.run("import numpy as np\nbig = np.arange(1_000_000); small = [1]")
    done = kernel.door.demand("capture", budget_s=30)
    kernel.kill()
    manifest = read(Path(done["manifest"]))
    group = next(g for g in manifest.groups if "big" in g.names)
    path = chunk_path(bench.captures, group.buffers[0].extents[0].chunk)
    content = bytearray(path.read_bytes())
    content[1000] ^= 1
    path.write_bytes(content)
    target = bench.session()
    report = {e["name"]: e for e in bench.restore(target, done["manifest"])["report"]}
    assert report["big"]["outcome"] == "refused"
    assert "damaged" in report["big"]["reason"]
    assert report["small"]["outcome"] == "kept"


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"format": 99}, "newer_format"),
        ({"python": "3.9"}, "python_version"),
        ({"machine": "riscv"}, "machine"),
        ({"groups": "x"}, "damaged"),
    ],
)
def test_what_cannot_be_restored_changes_nothing(bench, change, code) -> None:
    kernel = bench.session()
    kernel.run("x = 1")
    path = Path(kernel.door.demand("capture", budget_s=30)["manifest"])
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    answer = kernel.door.ask("restore", dir=str(bench.captures), manifest=str(path))
    assert (answer["ok"], answer["error"]) == (False, code)
    assert kernel.run("print(x)") == "1\n"


def test_bad_requests_get_answers(bench) -> None:
    kernel = bench.kernel()
    assert kernel.door.ask("dance")["error"] == "unknown_op"
    assert kernel.door.ask("warm")["error"] == "bad_request"
    assert kernel.door.ask("capture", budget_s=5)["error"] == "no_directory"
    kernel.door._socket.sendall(b"not json\n")
    assert json.loads(kernel.door._lines.readline())["error"] == "bad_request"
    assert kernel.door.demand("status")["pid"] == kernel.process.pid


def test_no_engine_names_in_the_namespace(bench) -> None:
    kernel = bench.session()
    kernel.run("import sys; before = 1")
    settle(kernel)
    shown = kernel.run(
        "print([n for n in globals() if 'roost' in n.lower()], sys.stdout is not None)"
    )
    assert shown == "[] True\n"
    assert kernel.run("%who_ls") == "['before', 'sys']"


def test_user_objects_are_not_asked(bench) -> None:
    kernel = bench.session()
    kernel.run(
        "log = []\n"
        "class Trap:\n"
        "    def __eq__(self, other): log.append('eq'); return True\n"
        "    def __bool__(self): log.append('bool'); return True\n"
        "    def __hash__(self): log.append('hash'); return 1\n"
        "    def __len__(self): log.append('len'); return 1\n"
        "    def __repr__(self): log.append('repr'); return 'x'\n"
        "    def __getattr__(self, name): log.append(name); raise AttributeError(name)\n"
        "    def __del__(self): log.append('del')\n"
        "    @property\n    def __class__(self): log.append('class'); return int\n"
        "trap = Trap(); nested = [Trap()]"
    )
    settle(kernel)
    # Pickle itself looks for __reduce_ex__ and __getstate__ on the type; copyreg asks no more.
    assert kernel.run("print(sorted(set(log) - {'class'}))") == "[]\n"


def test_the_extension_alone(bench) -> None:
    kernel = bench.kernel()
    where = bench.folder / "by hand"
    kernel.run(f"import os; os.chdir({str(bench.work)!r}); data = [1]; same = data")
    kernel.run("import asyncio; g = asyncio.new_event_loop()")
    shown = kernel.run(f"%roost save {where}")
    assert "captured as number 1" in shown
    assert "g: refused: it holds an event loop" in shown
    kernel.kill()
    target = bench.kernel()
    assert target.run("%load_ext roost") == ""
    shown = target.run(f"%roost restore {where}")
    assert "restored number 1" in shown
    assert "g: refused" in shown
    reply, text = target.execute("data.append(2); print(same)")
    assert (reply["content"]["execution_count"], text) == (3, "[1, 2]\n")
    assert "kept" in target.run("%roost report")
    assert "busy: True" in target.run("%roost status")


def test_a_plain_ipykernel_loads_it(bench) -> None:
    if bench.python != sys.executable:
        pytest.skip("the kernelspec python3 is this interpreter's")
    manager, client = start_new_kernel(kernel_name="python3", cwd=str(bench.work))
    try:
        where = bench.folder / "plain"
        reply = client.execute_interactive(
            f"%load_ext roost\nx = [1]\n%roost save {where}",
            timeout=60,
            output_hook=lambda _: None,
        )
        assert reply["content"]["status"] == "ok", reply["content"]
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)
    target = bench.session()
    answer = target.door.demand("restore", dir=str(where), manifest=str(where / "manifest-1.json"))
    assert {e["name"]: e["outcome"] for e in answer["report"]}["x"] == "kept"


def test_an_interrupt_before_the_code_reaches_the_cell(bench) -> None:
    kernel = bench.session()
    kernel.run(
        "import asyncio, os, signal, time\narmed = False\n"
        "def hit():\n"
        "    global armed\n"
        "    if armed: armed = False; os.kill(os.getpid(), signal.SIGINT); time.sleep(0.1)\n"
        "get_ipython().events.register('pre_execute', hit)"
    )
    handler = kernel.run("print(signal.getsignal(signal.SIGINT))")
    for code in ("time.sleep(30)", "await asyncio.sleep(30)", "1 +"):
        kernel.run("armed = True")
        begun = time.monotonic()
        reply, _ = kernel.execute(code)
        named = reply["content"]["ename"]
        assert named in ("KeyboardInterrupt", "CancelledError", "SyntaxError"), named
        assert time.monotonic() - begun < 20
        assert kernel.run("print(signal.getsignal(signal.SIGINT))") == handler
