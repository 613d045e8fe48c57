"""State of the process that is no variable: each family moved once, and its cost."""

import pytest

from .conftest import Bench

FAMILIES = {
    "loggers": (
        "import logging, io\n"
        "out = io.StringIO(); h = logging.StreamHandler(out); log = logging.getLogger('a.b')\n"
        "log.addHandler(h); log.setLevel(10); log.propagate = False; log.info('one')",
        "log.info('two'); print(out.getvalue().split(), log.handlers[0] is h, log.propagate)",
        "['one', 'two'] True False",
    ),
    "signals": (
        "import signal\nhits = []\n_ = signal.signal(signal.SIGUSR1, lambda s, f: hits.append(s))",
        "signal.raise_signal(signal.SIGUSR1); print(len(hits))",
        "1",
    ),
    "patches": (
        "import math, collections, builtins\nmath.tau2 = 9\n"
        "collections.Counter.twice = lambda self: 2 * sum(self.values())\n"
        "builtins.shout = str.upper",
        "import collections, math; print(math.tau2, collections.Counter('ab').twice(), shout('a'))",
        "9 4 A",
    ),
    "undone patch": (
        "import textwrap\nkeep = textwrap.dedent; textwrap.dedent = len; textwrap.dedent = keep",
        "print(textwrap.dedent is keep, keep(' a'))",
        "True a",
    ),
    "module of the folder, its file gone": (
        "from pathlib import Path\n"
        "Path('gone.py').write_text('DATA = [1]\\ndef f():\\n    DATA.append(2)\\n    return DATA\\n')\n"
        "import gone; f = gone.f; f(); Path('gone.py').unlink()",
        "import gone as again; print(f(), again is gone, gone.DATA is f())",
        "[1, 2, 2, 2] True True",
    ),
    "module made at run time": (
        "import types\nm = types.ModuleType('scratch')\n"
        "exec('x = 1\\ndef f(): return x\\nclass C: pass', m.__dict__)\nf = m.f; c = m.C()",
        "m.x = 5; print(f(), type(c) is m.C)",
        "5 True",
    ),
    "shell": (
        "from IPython.core.magic import register_line_magic\n"
        "@register_line_magic\ndef hello(line): return 'hi ' + line\n"
        "get_ipython().ast_node_interactivity = 'all'\n"
        "get_ipython().input_transformers_cleanup.append("
        "lambda lines: [l.replace('PLUS', '+') for l in lines])",
        "print(get_ipython().run_line_magic('hello', 'x'), get_ipython().ast_node_interactivity, 1 PLUS 2)",
        "hi x all 3",
    ),
    "settings": (
        "import os, gc, sys, warnings\n_ = os.umask(0o77); gc.set_threshold(500, 5, 5)\n"
        "sys.setswitchinterval(0.01); rows = []\n"
        "warnings.showwarning = lambda m, *a, **k: rows.append(str(m))",
        "u = os.umask(0); os.umask(u); warnings.warn('w')\n"
        "print(oct(u), gc.get_threshold(), sys.getswitchinterval(), rows)",
        "0o77 (500, 5, 5) 0.01 ['w']",
    ),
    "thread's and context's values": (
        "import threading, contextvars\nl = threading.local(); l.x = 5\n"
        "v = contextvars.ContextVar('v'); v.set(7); v.set(8); done = None",
        "print(l.x, v.get())",
        "5 8",
    ),
    "traceback": (
        "def boom(): raise ValueError('x')\ntry: boom()\nexcept ValueError as e: saved = e",
        "import traceback; print([f.name for f in traceback.extract_tb(saved.__traceback__)])",
        "['<module>', 'boom']",
    ),
    "traps": (
        "class P:\n    def __init__(self): self.__dict__['log'] = []\n"
        "    def __getattr__(self, n): self.log.append(n); return n\np = P(); _ = p.foo",
        "print(p.log, p.bar)",
        "['foo', 'bar'] bar",
    ),
}


@pytest.mark.parametrize("family", FAMILIES)
def test_it_is_there_after_a_move(bench: Bench, family: str) -> None:
    before, after, expected = FAMILIES[family]
    kernel = bench.session()
    kernel.run(before)
    moved, report = bench.move(kernel)
    assert not report["refused"]
    assert moved.run(after).strip() == expected


def test_what_cannot_be_read_back_is_refused_by_name(bench: Bench) -> None:
    kernel = bench.session()
    kernel.run("import atexit\natexit.register(print, 'bye')\nother = 1")
    moved, report = bench.move(kernel)
    assert list(report["refused"]) == ["process: what cannot be read back"]
    assert moved.run("print(other)") == "1\n"


COST = """
import statistics, sys, time
from roost.runtime.kernel import process
base = process.Baseline(get_ipython())
cells = []
process.prepare(base, get_ipython(), cells, None)
def once():
    begun = time.thread_time()
    process.prepare(base, get_ipython(), cells, set())
    list(process.objects(base, get_ipython()))
    for name, value, error in process.pieces(base, get_ipython()):
        process.stored(base, name, value, lambda v: b"")
    return time.thread_time() - begun
took = sorted(once() for _ in range(60))
print(took[20])
"""


def test_unchanged_state_costs_little(bench: Bench) -> None:
    kernel = bench.session()
    # Generous: the machine may be busy; measured alone it is a fifth of a millisecond to a half.
    assert float(kernel.run(COST)) < 2e-3
