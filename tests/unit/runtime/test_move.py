# ruff: noqa: E501
"""Capture, kill -9, restore in a new kernel: what comes back, and how it is connected."""

import pytest

pytestmark = pytest.mark.e2e


def test_values_and_aliases(bench) -> None:
    kernel = bench.session()
    kernel.run("a = [1, 2]; b = a; c = {'x': a, 'y': (a, 'z')}; n = 41; s = 'words'; f = 1.5")
    kernel.run("loop = [1]; loop.append(loop)")
    kernel.run("import collections as co\nd = co.defaultdict(list, k=[1])")
    target, report = bench.move(kernel)
    assert target.run("a.append(3); print(b, c['x'] is a, c['y'][0] is b, n + 1, s, f)") == (
        "[1, 2, 3] True True 42 words 1.5\n"
    )
    assert target.run("print(loop[1] is loop, dict(d), co.__name__)") == (
        "True {'k': [1]} collections\n"
    )
    assert report["refused"] == {}
    assert {"a", "b", "c", "n", "s", "f", "loop", "d", "co"} <= set(report["kept"])


def test_arrays_share_memory(bench) -> None:
    kernel = bench.session()
    kernel.run(
        "import numpy as np\n"
        "base = np.arange(400_000, dtype='f8').reshape(1000, 400)\n"
        "view = base[10:20, ::2]; back = base[::-1]; t = base.T\n"
        "fixed = base[0]; fixed.flags.writeable = False\n"
        "big = np.arange(50); first, second = big[:25], big[20:]; del big\n"
        "kept = {'m': base, 'n': [base[1]]}\n"
        "flow = np.frombuffer(bytearray(b'12345678'), dtype='u1')\n"
        "zero = np.broadcast_to(np.float64(3), (4, 5)); f = np.asfortranarray(np.ones((3, 4)))\n"
        "words = np.array(['a', 'bc']); when = np.array(['2020-01-01'], dtype='M8[D]')\n"
        "objects = np.array([{}, [1]], dtype=object); none = np.empty((0, 3))\n"
        "rec = np.zeros(3, dtype=[('a', 'i4'), ('b', 'f8')])\n"
    )
    kernel.run("base[0, 0] = 7")
    target, report = bench.move(kernel)
    assert report["refused"] == {}
    shown = target.run(
        "base[10, 0] = -1; base[1, 0] = -2; first[22] = 99\n"
        "print(view[0, 0], back[989, 0], t[0, 10], kept['m'] is base, kept['n'][0][0], second[2])\n"
        "print(fixed.flags.writeable, fixed[0], base.flags.writeable, flow.tolist()[0], flow.flags.writeable)\n"
        "print(zero.strides, zero.sum(), f.flags.f_contiguous, words.tolist(), when[0], objects[1])\n"
        "print(none.shape, rec.dtype.names, base.sum() > 0, np.shares_memory(base, view))"
    )
    assert shown == (
        "-1.0 -1.0 -1.0 True -2.0 99\nFalse 7.0 True 49 True\n"
        "(0, 0) 60.0 True ['a', 'bc'] 2020-01-01 [1]\n(0, 3) ('a', 'b') True True\n"
    )


def test_frames_and_models(bench) -> None:
    kernel = bench.session()
    kernel.run(
        "import numpy as np, pandas as pd\n"
        "from sklearn.linear_model import LogisticRegression\n"
        "from sklearn.datasets import load_iris\n"
        "rng = np.random.default_rng(3)\n"
        "df = pd.DataFrame({'x': rng.random(200_000), 'k': ['a', 'b'] * 100_000})\n"
        "df['when'] = pd.date_range('2020', periods=len(df), freq='min')\n"
        "col = df['x']; means = df.groupby('k')['x'].mean()\n"
        "data, target = load_iris(return_X_y=True)\n"
        "model = LogisticRegression(max_iter=500).fit(data, target)\n"
        "want = (float(df['x'].sum()), model.score(data, target), means.to_dict())\n"
        "after = float(np.random.default_rng(3).random(200_001)[-1])"
    )
    target, report = bench.move(kernel)
    assert report["refused"] == {}
    assert target.run(
        "print(want == (float(df['x'].sum()), model.score(data, target), means.to_dict()))\n"
        "print(rng.random() == after, col.sum() == want[0], type(df).__name__)\n"
        "df['y'] = df['x'] * 2; print(len(df[df['when'] > '2020-02-01']) > 0)"
    ) == ("True\nTrue True DataFrame\nTrue\n")


def test_functions_have_live_globals(bench) -> None:
    kernel = bench.session()
    kernel.run(
        "rate = 2\ndef price(n, extra=[]):\n    extra.append(n)\n    return n * rate, len(extra)"
    )
    kernel.run(
        "def counter():\n    n = 0\n    def up():\n        nonlocal n\n        n += 1\n        return n\n"
        "    def get():\n        return n\n    return up, get\nup, get = counter(); up()\n"
        "square = lambda x: x * x * rate\n"
        "def fact(n):\n    return 1 if n < 2 else n * fact(n - 1)\n"
        "def outer():\n    def inner(n):\n        return 1 if n < 1 else n * inner(n - 1)\n    return inner\n"
        "inner = outer(); table = {'f': square, 'g': [price]}\n"
        "import functools\n@functools.lru_cache(maxsize=10)\ndef slow(n):\n    return n + rate\nslow(1)\n"
        "half = functools.partial(price, 5)"
    )
    kernel.run("price(1)")
    target, report = bench.move(kernel)
    assert (report["refused"], report["rebuilt"]) == ({}, {})
    assert target.run("print(slow.cache_info().currsize)") == "1\n"
    assert target.run("rate = 10; print(price(2), square(3), up(), get(), fact(5), inner(4))") == (
        "(20, 2) 90 2 2 120 24\n"
    )
    assert target.run("print(table['f'] is square, table['g'][0] is price, slow(1), half())") == (
        "True True 3 (50, 3)\n"
    )
    assert "rate" in target.run("import inspect; print(inspect.getsource(price))")


def test_classes_and_instances(bench) -> None:
    kernel = bench.session()
    kernel.run(
        "import abc, dataclasses, enum, typing\n"
        "seen = []\n"
        "class Base(abc.ABC):\n"
        "    def __init_subclass__(cls, **k):\n        seen.append(cls.__name__)\n"
        "    @abc.abstractmethod\n    def f(self): ...\n"
        "class Point(Base):\n    kind = 'p'\n    def __init__(self, x):\n        super().__init__(); self.x = x\n"
        "    def f(self):\n        return self.x * scale\n    @property\n    def double(self):\n        return 2 * self.x\n"
        "    @classmethod\n    def make(cls):\n        return cls(9)\n"
        "scale = 2; p = Point(3); points = [p, Point(4)]\n"
        "@dataclasses.dataclass(order=True)\nclass Row:\n    a: int\n    b: list = dataclasses.field(default_factory=list)\n"
        "@dataclasses.dataclass(slots=True, frozen=True)\nclass Slim:\n    a: int = 1\n"
        "class Colour(enum.Enum):\n    RED = 1\n    BLUE = 2\n    def low(self):\n        return self.name.lower()\n"
        "class Pair(typing.NamedTuple):\n    a: int\n    b: int = 2\n"
        "T = typing.TypeVar('T')\nclass Box(typing.Generic[T]):\n    pass\n"
        "row = Row(1, [p]); slim = Slim(5); red = Colour.RED; pair = Pair(1)\n"
        "class Meta(type):\n    def __new__(m, n, b, d, **k):\n        seen.append('meta ' + n)\n"
        "        return super().__new__(m, n, b, d)\n"
        "class Made(metaclass=Meta):\n    pass\n"
        "made = Made(); class_of = Point"
    )
    kernel.run("old = p\nclass Point(Base):\n    def f(self):\n        return 'new'\nq = Point()")
    target, report = bench.move(kernel)
    assert report["refused"] == {}
    shown = target.run(
        "scale = 10\n"
        "print(seen, p.f(), old is p, points[0] is p, isinstance(p, Point), isinstance(p, class_of), q.f())\n"
        "print(p.double, class_of.make().x, isinstance(q, Point), isinstance(q, Base), row.b[0] is p)\n"
        "print(Row(1) < Row(2), Row(3).b, slim.a, hasattr(slim, '__dict__'), red is Colour.RED, Colour(2).low())\n"
        "print(pair.b, Pair(5), type(made) is Made, type(Made) is Meta, Box[int], dataclasses.fields(Row)[0].name)\n"
        "class Third(Base):\n    pass\nprint(seen[-1], dataclasses.replace(slim, a=6))"
    )
    assert shown == (
        "['Point', 'meta Made', 'Point'] 30 True True False True new\n"
        "6 9 True True True\nTrue [] 5 False True blue\n"
        "2 Pair(a=5, b=2) True True __main__.Box[int] a\nThird Slim(a=6)\n"
    )


def test_the_process_goes_on(bench) -> None:
    kernel = bench.session()
    kernel.run(
        "import os, random, sys, warnings, decimal\nimport numpy as np\n"
        "os.makedirs('sub', exist_ok=True); os.chdir('sub'); os.environ['WORD'] = 'here'\n"
        "sys.path.insert(0, os.path.abspath('.')); sys.path.append('/elsewhere')\n"
        "random.seed(5); np.random.seed(6); random.random(); np.random.rand()\n"
        "sys.setrecursionlimit(4321); np.set_printoptions(precision=3)\n"
        "warnings.filterwarnings('ignore', message='roost'); decimal.getcontext().prec = 7\n"
        "open('mine.py', 'w').write('value = 12\\n')"
    )
    kernel.run("import mine; mine.value")
    kernel.run("state = random.getstate(), np.random.get_state()[1].tolist()")
    target, report = bench.move(kernel)
    assert report["refused"] == {}
    shown = target.run(
        "r = random.Random(); r.setstate(state[0]); g = np.random.RandomState(); s = g.get_state()\n"
        "print(random.getstate() == state[0], np.random.get_state()[1].tolist() == state[1])\n"
        "print(os.path.basename(os.getcwd()), os.environ['WORD'], mine.value, sys.path[-1])\n"
        "print(sys.path[0] == os.getcwd(), sys.getrecursionlimit(), np.array([1.23456]), decimal.getcontext().prec)\n"
        "warnings.warn('roost is told to be quiet')\n"
        "print(In[2], '|', Out[2], _2, _, len(In), _i2)"
    )
    assert shown == (
        "True True\nsub here 12 /elsewhere\nTrue 4321 [1.235] 7\nimport mine; mine.value | 12 12 12 5 "
        "import mine; mine.value\n"
    )
    reply, _ = target.execute("1")
    assert reply["content"]["execution_count"] == 5


def test_results_are_the_variables_they_show(bench) -> None:
    kernel = bench.session()
    kernel.run("a = [1]")
    kernel.run("a")
    target, report = bench.move(kernel)
    assert target.run("print(Out[2] is a, _2 is a, _ is a)") == "True True True\n"
    assert "Out[2]" in report["kept"]


def test_awkward_kinds(bench) -> None:
    kernel = bench.session()
    kernel.run(
        "import threading, queue, io, itertools, dataclasses\n"
        "open('notes.txt', 'w').write('one\\ntwo\\nthree\\n')\n"
        "f = open('notes.txt'); f.readline()\n"
        "with open('notes.txt') as shut: pass\n"
        "out = open('out.txt', 'w'); out.write('begun '); raw = open('notes.txt', 'rb'); raw.read(4)\n"
        "lock = threading.Lock(); lock.acquire(); event = threading.Event(); event.set()\n"
        "q = queue.Queue(); q.put(1); buffer = io.StringIO('abc'); buffer.read(1)\n"
        "counting = itertools.count(5); next(counting)\n"
        "table = {1: 'a', 2: 'b', 3: 'c'}; keys = iter(table); next(keys)\n"
        "done = threading.Thread(target=print); done.start(); done.join()\n"
        "data = bytearray(b'abcd'); seen = memoryview(data)\n"
        "try:\n    int('x')\nexcept ValueError as error:\n    caught = error\n"
        "class Odd(Exception):\n    def __init__(self, a, b):\n        super().__init__(a); self.b = b\n"
        "odd = Odd(1, 2); lost = FileNotFoundError(2, 'No such', 'x.txt')\n"
        "space = globals(); me = get_ipython(); big = 'w' * 5000; gone = dataclasses.MISSING\n"
        "import random; shared = random._inst"
    )
    target, report = bench.move(kernel)
    assert report["refused"] == {}
    shown = target.run(
        "print(f.readline(), f.name, shut.closed, shut.name, raw.read(3), lock.locked(), event.is_set())\n"
        "out.write('ended'); out.close(); print(open('out.txt').read(), q.get(), buffer.read(), next(counting))\n"
        "table[3] = 'z'; print(list(keys), table, done.is_alive(), done.name[:6])\n"
        "data[0] = 65; print(bytes(seen), repr(caught), odd.b, odd.args, lost.errno, lost.filename, str(lost))\n"
        "print(space is globals(), me is get_ipython(), len(big), gone is dataclasses.MISSING)\n"
        "print(shared is random._inst)"
    )
    assert shown == (
        "two\n notes.txt True notes.txt b'two' True True\nbegun ended 1 bc 6\n"
        "[2, 3] {1: 'a', 2: 'b', 3: 'z'} False Thread\n"
        "b'Abcd' ValueError(\"invalid literal for int() with base 10: 'x'\") 2 (1,) 2 x.txt "
        "[Errno 2] No such: 'x.txt'\nTrue True 5000 True\nTrue\n"
    )


def test_weak_references(bench) -> None:
    kernel = bench.session()
    kernel.run(
        "import functools, weakref\nclass Thing: pass\n"
        "thing = Thing(); ref = weakref.ref(thing); things = weakref.WeakSet([thing])\n"
        "named = weakref.WeakValueDictionary(a=thing); notes = weakref.WeakKeyDictionary({thing: [1]})\n"
        "gone = weakref.ref(Thing())\n"
        "@functools.singledispatch\ndef show(x):\n    return 'any'\n@show.register\ndef _(x: int):\n    return 'int'\n"
        "called = weakref.ref(thing, print)"
    )
    target, report = bench.move(kernel)
    assert report["refused"] == {}
    assert target.run("print(called() is thing, called.__callback__ is print)") == "True True\n"
    assert target.run(
        "print(ref() is thing, list(things) == [thing], named['a'] is thing, notes[thing], gone(), show(1), show(''))"
    ) == ("True True True [1] None int any\n")


def test_hard_state(bench) -> None:
    kernel = bench.session()
    kernel.run(
        "deep = []\nfor _ in range(100_000): deep = [deep]\n"
        "rows = [{'a': n, 'b': str(n)} for n in range(20_000)]; beside = [rows[3]]"
    )
    target, report = bench.move(kernel)
    assert report["refused"] == {}
    assert target.run("print(len(rows), rows[3] is beside[0])") == "20000 True\n"
    depth = "n, at = 0, globals().get('deep')\nwhile at: n, at = n + 1, at[0]\nprint(n)"
    assert target.run(depth) == "100000\n"


def test_one_refusal_costs_no_bystander(bench) -> None:
    kernel = bench.session()
    kernel.run(
        "import socket, sqlite3, threading, types\n"
        "shared = [1]; link, other = socket.socketpair(); mixed = [shared, link]; friend = {'s': shared}\n"
        "db = sqlite3.connect(':memory:'); made = types.ModuleType('made')\n"
        "class Bad:\n    def __reduce__(self):\n        print('noise'); raise SystemExit('no')\n"
        "bad = Bad(); fine = 5"
    )
    kernel.run(
        "g = (n * n for n in shared); used = iter([1]); moved = (n for n in [1, 2]); next(moved)"
    )
    target, report = bench.move(kernel)
    assert set(report["refused"]) == {"link", "other", "mixed"}, report["refused"]
    assert "socket" in report["refused"]["mixed"]
    assert target.run("friend['s'].append(2); print(shared, fine, list(used))") == "[1, 2] 5 [1]\n"
    assert target.run("print(list(g), list(moved), type(bad) is Bad)") == "[1, 4] [2] True\n"
    assert target.run("print('link' in globals(), made.__name__)") == "False made\n"


def test_generators_come_back_with_what_they_hold(bench) -> None:
    kernel = bench.session()
    kernel.run("data = [1, 2, 3]; factor = 2")
    kernel.run("def squares(items):\n    for n in items:\n        yield n * factor")
    kernel.run("g = squares(data); h = (n + 1 for n in data)")
    kernel.run("factor = 3")
    kernel.run("rebound = (n for n in range(factor)); lines = open('x', 'w')")
    target, report = bench.move(kernel)
    assert (report["refused"], report["rebuilt"]) == ({}, {})
    assert target.run("print(list(g), list(h), list(rebound), lines.name)") == (
        "[3, 6, 9] [2, 3, 4] [0, 1, 2] x\n"
    )
