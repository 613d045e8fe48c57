"""Rules over the tree that no linter has: banned calls, sizes, late and heavy imports, machine paths."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "src" / "roost"
FILES = sorted(SOURCE.rglob("*.py"))

FUNCTION_LINES = 60
FILE_LINES = 600

BANNED_CALLS = {
    ("time", "time"),
    ("time", "monotonic"),
    ("time", "time_ns"),
    ("random", "random"),
    ("random", "choice"),
    ("random", "randint"),
    ("random", "uniform"),
    ("uuid", "uuid4"),
    ("uuid", "uuid1"),
    ("datetime", "now"),
    ("datetime", "utcnow"),
}
MAY_CALL = ("adapters", "runtime", "main", "kit/ids.py", "testing", "agent", "doors/cli")
"""Where the clock or the random source may be read directly: outside the simulated code."""

PURE = (
    "model.py",
    "machine.py",
    "plan.py",
    "advisor.py",
    "survival.py",
    "group_model.py",
    "group_machine.py",
    "group_snapshot.py",
    "group_plan.py",
    "group_size.py",
    "group_refresh.py",
    "group_budget.py",
    "group_allocation.py",
    "group_checks.py",
    "group_risk.py",
)
IMPURE_MODULES = {
    "asyncio",
    "time",
    "random",
    "uuid",
    "os",
    "socket",
    "subprocess",
    "threading",
    "sqlite3",
    "logging",
}
DOMAIN = ("fleet", "notebooks", "jobs", "services", "gateway", "metering", "market")


def _tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


def _name(path: Path) -> str:
    return path.relative_to(SOURCE).as_posix()


def _functions(tree: ast.AST) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node


def test_the_clock_and_the_random_source_are_arguments() -> None:
    found = []
    for path in FILES:
        if _name(path).startswith(MAY_CALL):
            continue
        for node in ast.walk(_tree(path)):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
                base = node.func.value
                if isinstance(base, ast.Name) and (base.id, node.func.attr) in BANNED_CALLS:
                    found.append(f"{_name(path)}:{node.lineno} {base.id}.{node.func.attr}()")
    assert not found


def test_only_main_reads_the_environment() -> None:
    found = []
    for path in FILES:
        if _name(path).startswith(("main", "runtime", "adapters", "agent")):
            continue
        for node in ast.walk(_tree(path)):
            if (
                isinstance(node, ast.Attribute)
                and node.attr in ("environ", "getenv")
                and isinstance(node.value, ast.Name)
                and node.value.id == "os"
            ):
                found.append(f"{_name(path)}:{node.lineno}")
    assert not found


def test_pure_modules_import_nothing_that_acts() -> None:
    found = []
    for path in FILES:
        parts = _name(path).split("/")
        if parts[0] not in DOMAIN or len(parts) != 2 or parts[1] not in PURE:
            continue
        for node in ast.walk(_tree(path)):
            names = []
            if isinstance(node, ast.Import):
                names = [a.name for a in node.names]
            elif isinstance(node, ast.ImportFrom):
                names = [node.module or ""]
            found += [f"{_name(path)} imports {n}" for n in names if n in IMPURE_MODULES]
    assert not found


def test_functions_and_files_stay_small() -> None:
    found = []
    for path in FILES:
        text = path.read_text()
        if text.count("\n") > FILE_LINES:
            found.append(f"{_name(path)}: {text.count(chr(10))} lines")
        for function in _functions(ast.parse(text)):
            size = (function.end_lineno or function.lineno) - function.lineno + 1
            if size > FUNCTION_LINES:
                found.append(f"{_name(path)}:{function.name}: {size} lines")
    assert not found


def test_every_module_says_what_it_is() -> None:
    assert not [_name(p) for p in FILES if not ast.get_docstring(_tree(p))]


def test_no_late_imports_of_our_own_code() -> None:
    found = []
    for path in FILES:
        if _name(path) == "__init__.py":
            continue
        for function in _functions(_tree(path)):
            for node in ast.walk(function):
                if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("roost"):
                    found.append(f"{_name(path)}:{node.lineno}")
    assert not found


HEAVY = (
    "pandas",
    "sklearn",
    "polars",
    "numpy",
    "jupyter_server",
    "jupyterlab",
    "botocore",
    "IPython",
    "scipy",
    "matplotlib",
)
STARTS = {
    "roost.main.cli": HEAVY,
    "roost.main.supervisor": (*HEAVY, "sqlalchemy", "starlette", "zmq"),
    "roost.main.edge": (*HEAVY, "sqlalchemy", "starlette", "zmq"),
    "roost.main.agent": (*HEAVY, "sqlalchemy", "starlette"),
    "roost.main.host": (*HEAVY, "sqlalchemy", "starlette", "zmq"),
    "roost.main.keeper": (*HEAVY, "sqlalchemy", "starlette"),
    "roost.main.bridge": (*HEAVY, "sqlalchemy", "starlette"),
}


@pytest.mark.parametrize("module", STARTS)
def test_no_heavy_import_at_start(module: str) -> None:
    code = f"import sys, {module}; print(*[m for m in {STARTS[module]!r} if m in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout.strip() == ""


def test_no_address_or_path_of_a_machine_is_in_the_repo() -> None:
    listed = subprocess.run(
        ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    if listed.returncode != 0:
        pytest.skip("not a git checkout")
    found = []
    words = ("pypi" + ".org", "files.python" + "hosted", "registry.npm" + "js", "/root" + "/")
    for name in listed.stdout.splitlines():
        path = ROOT / name
        if path.suffix in (".png", ".parquet") or not path.is_file():
            continue
        text = path.read_text(errors="replace")
        found += [f"{name}: {word}" for word in words if word in text]
    assert not found


@pytest.mark.parametrize("room", [p.name for p in sorted(SOURCE.iterdir()) if p.is_dir()])
def test_every_domain_room_has_a_readme(room: str) -> None:
    if room not in DOMAIN:
        pytest.skip("not a domain room")
    readme = SOURCE / room / "README.md"
    assert readme.exists()
    assert len(readme.read_text().splitlines()) <= 60


def test_the_reference_is_current() -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "tools" / "reference.py"), "--check"],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
