"""What others do with a session: the whole namespace into one file, and back in a new kernel."""

from pathlib import Path

from bench.sessions.cases import Case
from bench.sessions.kernels import Kernel, fresh

WHOLE = {
    "dill": ("import dill", "dill.dump_module({0!r})", "dill.load_module({0!r})"),
    "cloudpickle": (
        "import cloudpickle, types",
        "with open({0!r}, 'wb') as _f: cloudpickle.dump({{k: v for k, v in globals().items() "
        "if k[0] != '_' and k not in ('In', 'Out', 'get_ipython', 'exit', 'quit') "
        "and not isinstance(v, types.ModuleType)}}, _f)",
        "import cloudpickle\nwith open({0!r}, 'rb') as _f: globals().update(cloudpickle.load(_f))",
    ),
}
"""Import, save and load, by name: cells, ``{0!r}`` is the file."""
SAVED = "stdout:saved\n"


def moved(
    case: Case, folder: Path, name: str, python: str, within_s: float
) -> tuple[list[list[str]], str]:
    """The outputs of a case's checks after such a move, and why there was none.

    The file is written between cells: behind a running cell within the time of a notice, if that ends in it.
    """
    bring, save, load = WHOLE[name]
    path = folder / "session.pkl"
    first = Kernel(fresh(folder / "work"), python)
    try:
        for code in (bring, "pass", *case.setup):
            first.run(code)
        for code in (*case.running, *case.queued):
            first.send(code)
        asked = first.send(save.format(str(path)) + "\nprint('saved')")
        try:
            told = first.outputs(asked, 2.0 if case.kind == "death" else within_s)
        except TimeoutError:
            return [], "not saved in time"
        if SAVED not in told:
            return [], " ".join(told)[-300:]
    finally:
        first.kill()
    second = Kernel(folder / "work", python)
    try:
        second.run(bring)
        told = second.run(load.format(str(path)))
        if any(line.startswith("error:") for line in told):
            return [], " ".join(told)[-300:]
        return [second.run(code, 90) for code in case.check], ""
    finally:
        second.kill()
