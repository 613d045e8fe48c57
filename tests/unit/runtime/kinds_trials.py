"""Run as a program by ``test_kinds``, with any Python: ``dump FOLDER`` stores what ``TRIALS`` make, ``load
FOLDER`` opens it in another process and looks whether it works."""

import collections
import contextlib
import csv
import ctypes
import functools
import gzip
import io
import mmap
import os
import pickle
import queue
import socket
import sqlite3
import subprocess
import sys
import tarfile
import tempfile
import threading
import time
import traceback
import types
import unittest.mock
import weakref
import zipfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from roost.runtime.kernel import rebuild
from roost.runtime.kernel.kinds import Refusal
from roost.runtime.kernel.naming import Singletons
from roost.runtime.kernel.pickling import Surroundings, dump

TRIALS: dict[str, tuple[Callable[[], Any], Callable[[Any], Any]]] = {}
REFUSED: dict[str, Callable[[], Any]] = {}


def trial(make: Callable[[], Any]) -> Callable[[Callable[[Any], Any]], None]:
    def check(function: Callable[[Any], Any]) -> None:
        TRIALS[make.__name__.strip("_")] = (make, function)

    return check


def refused(make: Callable[[], Any]) -> Callable[[], Any]:
    REFUSED[make.__name__] = make
    return make


# --- files ---------------------------------------------------------------------------------------


def own_builtins() -> Any:
    space: dict[str, Any] = {"k": 3, "__builtins__": {"len": len}}
    exec("def f(x): return len(x) + k\ndef bad(): return open\nboth = [f, bad]", space)
    file = io.BytesIO(b"abc")
    return space, functools.cmp_to_key(lambda x, y: y - x), file, file.getbuffer()


@trial(own_builtins)
def _(made: Any) -> None:
    space, key, file, lent = made
    assert list(space)[:2] == ["k", "__builtins__"] and space["both"][0]("ab") == 5
    with contextlib.suppress(NameError):
        raise AssertionError(space["bad"]())
    assert sorted([1, 3, 2], key=key) == [3, 2, 1] and key(5) < key(3)
    lent[0] = 90
    assert file.getvalue() == b"Zbc"


def half_iterated() -> Any:
    Path("t.txt").write_text("".join(f"line {n} é\n" for n in range(2000)), encoding="utf-8")
    Path("crlf.txt").write_bytes(b"one\r\ntwo\r\nthree\r\n")
    f = open("t.txt", encoding="utf-8")
    g = open("crlf.txt")
    return f, next(f), next(f), g, next(g)


@trial(half_iterated)
def _(made: Any) -> None:
    f, _, _, g, _ = made
    assert next(f) == "line 2 é\n" and len(list(f)) == 1997
    assert list(g) == ["two\n", "three\n"]


def written() -> Any:
    f = open("w.txt", "w", newline="\r\n", encoding="latin-1", buffering=1)
    f.write("é\n")
    g = open("a.txt", "a")
    g.write("a\n")
    u = open("u.txt", "w", newline="")
    u.write("x\n")
    return f, g, u


@trial(written)
def _(made: Any) -> None:
    f, g, u = made
    f.write("ü\n")
    assert Path("w.txt").read_bytes() == b"\xe9\r\n\xfc\r\n"  # line buffered
    for one, name, text in ((g, "a.txt", b"a\nb\n"), (u, "u.txt", b"x\nb\n")):
        one.write("b\n")
        one.close()
        assert Path(name).read_bytes() == text


def binary() -> Any:
    f = open("b.bin", "wb+")
    f.write(b"12345")
    f.seek(2)
    closed = open("c.bin", "wb")
    closed.close()
    return f, closed, io.BytesIO(b"abc"), io.TextIOWrapper(io.BytesIO(b"x\ny\n"))


@trial(binary)
def _(made: Any) -> None:
    f, closed, raw, text = made
    assert f.read() == b"345" and closed.closed and closed.name == "c.bin"
    assert raw.read() == b"abc" and text.readline() == "x\n"


def temporary() -> Any:
    outside = tempfile.NamedTemporaryFile("w+", suffix=".x")
    outside.write("abc")
    gone = tempfile.TemporaryFile("w+")
    gone.write("gone")
    folder = tempfile.TemporaryDirectory()
    (Path(folder.name) / "d").mkdir()
    (Path(folder.name) / "d" / "f").write_text("in it")
    spooled = tempfile.SpooledTemporaryFile()
    spooled.write(b"sp")
    plain = open(Path(tempfile.mkdtemp()) / "p", "w+")
    plain.write("plain")
    unlinked = open("u", "w+")
    unlinked.write("unlinked")
    os.unlink("u")
    return outside, gone, folder, spooled, plain, unlinked


@trial(temporary)
def _(made: Any) -> None:
    outside, gone, folder, spooled, plain, unlinked = made
    for one, text in ((outside, "abc"), (gone, "gone"), (plain, "plain"), (unlinked, "unlinked")):
        assert one.tell() == len(text)
        one.seek(0)
        assert one.read() == text, text
    spooled.seek(0)
    assert spooled.read() == b"sp"
    inside = Path(folder.name) / "d" / "f"
    assert inside.read_text() == "in it"
    folder.cleanup()
    assert not inside.exists()
    outside.close()
    assert not Path(outside.name).exists()


def compressed() -> Any:
    g = gzip.open("a.gz", "wt")
    g.write("one\n")
    with gzip.open("r.gz", "wb") as file:
        file.write(b"0123456789")
    r = gzip.open("r.gz")
    r.read(4)
    z = zipfile.ZipFile("a.zip", "w")
    z.writestr("x", "1")
    with zipfile.ZipFile("r.zip", "w") as file2:
        file2.writestr("m", "member")
    zr = zipfile.ZipFile("r.zip")
    member = zr.open("m")
    member.read(2)
    t = tarfile.open("a.tar", "w")
    t.addfile(tarfile.TarInfo("q"))
    return g, r, z, member, t, gzip.GzipFile("b.gz", "wb")


@trial(compressed)
def _(made: Any) -> None:
    g, r, z, member, t, b = made
    g.write("two\n")
    g.close()
    assert gzip.open("a.gz", "rt").read() == "one\ntwo\n"
    assert r.read() == b"456789" and member.read() == b"mber"
    z.writestr("y", "2")
    z.close()
    assert zipfile.ZipFile("a.zip").namelist() == ["x", "y"]
    t.addfile(tarfile.TarInfo("s"))
    t.close()
    assert tarfile.open("a.tar").getnames() == ["q", "s"]
    b.write(b"b")
    b.close()
    assert gzip.open("b.gz").read() == b"b"


def separated() -> Any:
    Path("r.csv").write_text("a;b\n1;2\n3;4\n")
    f = open("r.csv", newline="")
    r = csv.reader(f, delimiter=";")
    next(r)
    d = csv.DictReader(open("r.csv", newline=""), delimiter=";")
    next(d)
    o = open("o.csv", "w", newline="")
    w = csv.writer(o, quoting=csv.QUOTE_ALL)
    w.writerow([1])
    dw = csv.DictWriter(o, ["x"])
    dw.writeheader()
    return f, r, d, o, w, dw


@trial(separated)
def _(made: Any) -> None:
    f, r, d, o, w, dw = made
    assert r.line_num == 1 and next(r) == ["1", "2"] and r.line_num == 2
    assert d.line_num == 2 and next(d) == {"a": "3", "b": "4"}
    w.writerow([2])
    dw.writerow({"x": 3})
    o.close()
    assert Path("o.csv").read_text().split() == ['"1"', "x", '"2"', "3"]


def mapped() -> Any:
    Path("m.bin").write_bytes(b"hello world")
    with open("m.bin", "r+b") as file:
        m = mmap.mmap(file.fileno(), 0)
        r = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    m.seek(3)
    n = mmap.mmap(-1, 100)
    n[:3] = b"abc"
    buffer = bytearray(range(10))
    whole = memoryview(buffer)
    return m, r, n, buffer, whole[2:5], whole[::2], whole[1:9].cast("h"), memoryview(b"x"), m


@trial(mapped)
def _(made: Any) -> None:
    m, r, n, buffer, part, steps, shorts, fixed, same = made
    m[0:5] = b"HELLO"
    m.flush()
    assert Path("m.bin").read_bytes() == b"HELLO world" and m.tell() == 3 and same is m
    assert r[:5] == b"HELLO" and n[:4] == b"abc\0"
    buffer[4] = 99
    assert bytes(part) == b"\x02\x03c" and bytes(steps) == bytes([0, 2, 99, 6, 8])
    assert shorts.format == "h" and len(shorts) == 4 and fixed.readonly


@refused
def pipe() -> Any:
    read, _ = os.pipe()
    return os.fdopen(read)


# --- databases -----------------------------------------------------------------------------------


def lite() -> Any:
    db = sqlite3.connect(":memory:", detect_types=sqlite3.PARSE_DECLTYPES)
    db.execute("create table t(a, b)")
    cur = db.execute("insert into t values (1, 'x')")
    cur.execute("insert into t values (2, 'y')")
    db.commit()
    db.row_factory = sqlite3.Row
    db.execute("pragma foreign_keys = on")
    row = db.execute("select a, b from t").fetchone()
    file = sqlite3.connect("f.db", isolation_level=None)
    file.execute("create table u(a)")
    shut = sqlite3.connect(":memory:")
    shut.close()
    return db, cur, row, file, shut


@trial(lite)
def _(made: Any) -> None:
    db, cur, row, file, shut = made
    assert cur.lastrowid == 2 and cur.rowcount == 1 and row["b"] == "x"
    assert [tuple(r) for r in db.execute("select * from t")] == [(1, "x"), (2, "y")]
    assert db.execute("pragma foreign_keys").fetchone()[0] == 1 and not db.in_transaction
    cur.execute("insert into t values (3, 'z')")
    db.commit()
    file.execute("insert into u values (1)")
    assert file.isolation_level is None
    assert sqlite3.connect("f.db").execute("select * from u").fetchall() == [(1,)]
    with contextlib.suppress(sqlite3.ProgrammingError):
        shut.execute("select 1")
        raise AssertionError


@refused
def transaction() -> Any:
    db = sqlite3.connect(":memory:")
    db.execute("create table t(a)")
    db.execute("insert into t values (1)")
    return db


@refused
def functions() -> Any:
    db = sqlite3.connect(":memory:")
    db.create_function("twice", 1, lambda x: x * 2)
    return db


@refused
def unfetched() -> Any:
    db = sqlite3.connect(":memory:")
    cur = db.execute("select 1 union select 2")
    cur.fetchone()
    return cur


# --- threads -------------------------------------------------------------------------------------


class Worker(threading.Thread):
    def run(self) -> None:
        self._result = 42


def primitives() -> Any:
    lock = threading.Lock()
    lock.acquire()
    held = threading.RLock()
    held.acquire()
    held.acquire()
    event = threading.Event()
    event.set()
    semaphore = threading.Semaphore(3)
    semaphore.acquire()
    queues = [queue.Queue(), queue.LifoQueue(), queue.PriorityQueue(), queue.SimpleQueue()]
    for one in queues:
        for item in (3, 1, 2):
            one.put(item)
    return lock, held, event, semaphore, threading.Condition(), threading.Barrier(2), queues


@trial(primitives)
def _(made: Any) -> None:
    lock, held, event, semaphore, condition, barrier, queues = made
    assert lock.locked() and event.is_set() and semaphore._value == 2 and barrier.parties == 2
    held.release()
    held.release()
    with condition:
        condition.notify()
    assert [[q.get() for _ in range(3)] for q in queues] == [
        [3, 1, 2], [2, 1, 3], [1, 2, 3], [3, 1, 2],
    ]  # fmt: skip


def threads() -> Any:
    done = Worker(name="w")
    done.start()
    done.join()
    fired: list[int] = []
    fresh = threading.Thread(target=fired.append, args=(7,), name="fresh", daemon=True)
    timer = threading.Timer(1.5, fired.append, [8])
    timer.start()
    late = threading.Timer(3600, fired.append, [9])
    late.daemon = True
    late.start()
    return done, fresh, timer, late, fired


@trial(threads)
def _(made: Any) -> None:
    done, fresh, timer, late, fired = made
    assert done._result == 42 and not done.is_alive() and done.name == "w"
    done.join()
    fresh.start()
    fresh.join()
    assert fired == [7] and fresh.daemon
    timer.join(5)
    assert fired == [7, 8] and timer.interval == 1.5
    assert late.is_alive() and late.interval == 3600
    late.cancel()


@refused
def live() -> Any:
    made = threading.Thread(target=time.sleep, args=(3,), daemon=True)
    made.start()
    return made


@refused
def waited() -> Any:
    event = threading.Event()
    threading.Thread(target=event.wait, args=(3,), daemon=True).start()
    time.sleep(0.1)
    return event


def initialise(text: str) -> None:
    threading.current_thread().mark = text  # type: ignore[attr-defined]


def pools() -> Any:
    pool = ThreadPoolExecutor(3, "pre", initialise, ("m",))
    future = pool.submit(pow, 2, 5)
    future.result()
    shut = ThreadPoolExecutor(1)
    shut.shutdown()
    return pool, future, shut


@trial(pools)
def _(made: Any) -> None:
    pool, future, shut = made
    assert future.result() == 32 and pool._max_workers == 3
    assert pool.submit(lambda: threading.current_thread().mark).result() == "m"  # type: ignore[attr-defined]
    with contextlib.suppress(RuntimeError):
        shut.submit(pow, 1, 1)
        raise AssertionError


@refused
def working() -> Any:
    pool = ThreadPoolExecutor(1)
    pool.submit(time.sleep, 2)
    return pool


def outside() -> Any:
    s = socket.socket()
    s.bind(("127.0.0.1", 0))
    s.listen()
    u = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    u.settimeout(3)
    p = subprocess.Popen(["true"])
    p.wait()
    c = subprocess.run(["echo", "hi"], capture_output=True, text=True)
    shut = socket.socket()
    shut.close()
    return s, s.getsockname(), u, p, c, shut


@trial(outside)
def _(made: Any) -> None:
    s, name, u, p, c, shut = made
    client = socket.create_connection(name, 2)
    client.close()
    assert s.getsockname() == name and u.gettimeout() == 3 and shut.fileno() == -1
    assert p.poll() == 0 and p.returncode == 0 and p.args == ["true"] and c.stdout == "hi\n"


@refused
def connected() -> Any:
    return socket.socketpair()[0]


@refused
def running() -> Any:
    return subprocess.Popen(["sleep", "2"])


# --- values --------------------------------------------------------------------------------------


def caches() -> Any:
    calls: list[Any] = []
    offset = 10

    @functools.lru_cache(maxsize=3)
    def bounded(x: int, y: int = 2, *, k: int = 1) -> tuple[int, ...]:
        calls.append(x)
        return (x + offset, y, k)

    @functools.cache
    def plain(x: Any) -> list[Any]:
        calls.append(x)
        return [x]

    @functools.lru_cache(typed=True)
    def typed(x: Any, k: Any = 0) -> Any:
        calls.append(x)
        return x

    for n in range(5):
        bounded(n, k=3)
    bounded(3, k=3)
    first = plain(1)
    plain((1, 2))
    typed(1, k=2.0)
    typed(1.0, k=2)
    calls.clear()
    return bounded, plain, typed, calls, first


@trial(caches)
def _(made: Any) -> None:
    bounded, plain, typed, calls, first = made
    assert bounded.cache_info()[:4] == (1, 5, 3, 3), bounded.cache_info()
    assert bounded(3, k=3) == (13, 2, 3) and plain(1) is first and plain((1, 2)) == [(1, 2)]
    assert typed(1, k=2.0) == 1 and not calls
    assert bounded(9) == (19, 2, 1) and bounded(2, k=3) == (12, 2, 3) and calls == [9, 2]


class Thing:
    def hi(self) -> str:
        return "hi"


def weak() -> Any:
    thing, log = Thing(), []
    ref = weakref.ref(thing, lambda r: log.append("dead"))
    final = weakref.finalize(thing, log.append, "final")
    return (
        thing, log, ref, final, weakref.proxy(thing), weakref.WeakSet([thing]),
        weakref.WeakMethod(thing.hi), weakref.WeakValueDictionary(a=thing),
        weakref.WeakKeyDictionary({thing: 1}),
    )  # fmt: skip


@trial(weak)
def _(made: Any) -> None:
    parts = list(made)
    made.clear() if isinstance(made, list) else None
    thing, log, ref, final, proxy, group, method, by_name, by_thing = parts
    assert ref() is thing and proxy.hi() == "hi" and thing in group and method()() == "hi"
    assert final.alive and by_name["a"] is thing and by_thing[thing] == 1
    final()
    assert log == ["final"]


class Odd(Exception):
    def __init__(self, one: int, two: int) -> None:
        super().__init__(f"{one}-{two}")
        self.one = one


def errors() -> Any:
    try:
        try:
            raise ValueError("first")
        except ValueError as first:
            raise Odd(1, 2) from first
    except Odd as error:
        error.add_note("note")
        caught = error
    return caught, ExceptionGroup("g", [caught, KeyError("k")])


@trial(errors)
def _(made: Any) -> None:
    caught, group = made
    assert str(caught) == "1-2" and caught.one == 1 and caught.__notes__ == ["note"]
    assert type(caught.__cause__) is ValueError and group.exceptions[0] is caught
    assert caught.__traceback__.tb_frame.f_code.co_name == "errors"


def mocks() -> Any:
    m = unittest.mock.MagicMock(name="m")
    m.go.return_value = 5
    m.go(1, k=2)
    m.__len__.return_value = 3
    n = unittest.mock.Mock(side_effect=[1, 2])
    n()
    shown = {"a": 1}
    return m, n, types.MappingProxyType(shown), shown


@trial(mocks)
def _(made: Any) -> None:
    m, n, proxy, shown = made
    m.go.assert_called_once_with(1, k=2)
    assert m.go() == 5 and len(m) == 3 and n() == 2 and m.other() is not None
    shown["b"] = 2
    assert proxy["b"] == 2


class Point(ctypes.Structure):
    _fields_ = [("x", ctypes.c_int), ("y", ctypes.c_int)]


class Linked(ctypes.Structure):
    pass


Linked._fields_ = [("next", ctypes.POINTER(Linked)), ("v", ctypes.c_int)]


def foreign() -> Any:
    array = (Point * 3)()
    array[1].x = 5
    number = ctypes.c_int(7)
    buffer = bytearray(8)
    return (
        array, array[1], number, ctypes.pointer(number), Point.from_buffer(buffer), buffer,
        ctypes.CDLL(None).getpid, Linked(), ctypes.create_string_buffer(b"ab", 5),
    )  # fmt: skip


@trial(foreign)
def _(made: Any) -> None:
    array, one, number, pointer, over, buffer, getpid, linked, text = made
    assert one.x == 5
    array[1].x = 6
    assert one.x == 6 and number.value == 7
    pointer.contents.value = 8
    assert number.value == 8
    over.y = 1
    assert buffer[4] == 1 and getpid() == os.getpid() and linked.v == 0 and text.value == b"ab"


# --- classes that say how they are copied --------------------------------------------------------


class Lossy:
    def __init__(self) -> None:
        self.a, self.b = 1, threading.Lock()

    def __getstate__(self) -> dict[str, Any]:
        return {"a": self.a}


class Raising:
    __slots__ = ("__p", "q")

    def __init__(self, q: int) -> None:
        self.__p, self.q = 1, q

    def both(self) -> tuple[int, int]:
        return self.__p, self.q

    def __reduce__(self) -> Any:
        raise RuntimeError("no")


class Hanging:
    def __reduce__(self) -> Any:
        time.sleep(1000)


class Wanting:
    def __new__(cls, x: int) -> Any:
        made = object.__new__(cls)
        made.x = x  # type: ignore[attr-defined]
        return made


class Liar:
    @property
    def __class__(self) -> Any:
        return int

    @__class__.setter
    def __class__(self, kind: Any) -> None:
        pass


class Table(dict[str, int]):
    def __setitem__(self, key: str, value: int) -> None:
        super().__setitem__(key, value * 2)

    def __reduce__(self) -> Any:
        raise RuntimeError("no")


class Ring(collections.deque[int]):
    def __new__(cls, *a: Any) -> Any:
        return collections.deque.__new__(cls)


class Word(str):
    def __new__(cls, text: str, mark: int) -> Any:
        made = str.__new__(cls, text)
        made.mark = mark  # type: ignore[attr-defined]
        return made


class Asked:
    """Something of it cannot be stored: its own way is taken."""

    def __init__(self) -> None:
        self.a, self.pipe = 1, os.fdopen(os.pipe()[0])

    def __getstate__(self) -> dict[str, Any]:
        return {"a": self.a}


def hooked() -> Any:
    table = Table()
    table["a"] = 1
    ring = Ring([1, 2], 5)
    ring.extend([3])
    return Lossy(), Raising(2), Hanging(), Wanting(3), Liar(), table, ring, Word("w", 4)


@trial(hooked)
def _(made: Any) -> None:
    lossy, raising, hanging, wanting, liar, table, ring, word = made
    assert not lossy.b.locked() and raising.both() == (1, 2) and type(hanging).__name__ == "Hanging"
    assert wanting.x == 3 and type(liar).__name__ == "Liar" and table == {"a": 2}
    assert list(ring) == [1, 2, 3] and ring.maxlen == 5 and word == "w" and word.mark == 4


@trial(Asked)
def _(made: Any) -> None:
    assert made.a == 1 and not hasattr(made, "pipe")


def deep() -> Any:
    made: Any = ()
    for _ in range(20_000):
        made = (made,)
    rows: Any = None
    for n in range(20_000):
        rows = {"n": n, "rest": [rows]}
    return made, rows


@trial(deep)
def _(made: Any) -> None:
    value, rows = made
    depth = 0
    while value:
        value, depth = value[0], depth + 1
    assert depth == 20_000
    while rows is not None:
        rows, depth = rows["rest"][0], depth - 1
    assert depth == 0


def main(action: str, only: str) -> int:
    rebuild.set_root(os.getcwd())
    around = Surroundings(os.getcwd(), sys.modules["__main__"].__dict__, Singletons(), object(), {})
    bad = 0
    for name, (make, check) in TRIALS.items():
        if only not in name:
            continue
        try:
            if action == "dump":
                value = make()
                done = dump(value, around, in_band=True)
                KEPT.append(value)
                Path(f"{name}.pkl").write_bytes(done.content)
            elif Path(f"{name}.pkl").exists():
                check(pickle.loads(Path(f"{name}.pkl").read_bytes()))
        except BaseException as error:
            bad += 1
            print(f"{action} {name}:")
            traceback.print_exception(error, limit=-4, file=sys.stdout)
    for name, refusal in REFUSED.items() if action == "dump" else ():
        if only not in name:
            continue
        try:
            dump(refusal(), around, in_band=True)
        except Refusal:
            continue
        except BaseException as error:
            print(f"{name}: {type(error).__name__} {error}")
        else:
            print(f"{name} was not refused")
        bad += 1
    sys.stdout.flush()
    return bad


KEPT: list[Any] = []


def leave(bad: int) -> None:
    """At once: threads still run."""
    sys.stdout.flush()
    os._exit(min(bad, 100))


if __name__ == "__main__":
    leave(main(sys.argv[1], sys.argv[2] if len(sys.argv) > 2 else ""))
