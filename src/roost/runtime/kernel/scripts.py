"""``roost.checkpoint()`` and ``roost.resume()``: named state of a plain Python script, by the engine's parts.

    state = roost.resume() or {"epoch": 0, "model": Model()}
    while state["epoch"] < 100:
        train(state["model"])
        state["epoch"] += 1
        roost.checkpoint(state)

The directory is ``$ROOST_CHECKPOINTS``, else ``./.roost``. Nothing runs but while one of the two is called.
Classes and functions of the script itself are stored by name, since the script defines them again before it
resumes; those made inside functions by value.
"""

import gc
import io
import os
import pickle
import random
import sys
import threading
import time
import types
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from roost.runtime.kernel import pickling, rebuild, tensors
from roost.runtime.kernel.chunks import Reader
from roost.runtime.kernel.format import Manifest, manifest_numbers, manifest_path
from roost.runtime.kernel.memory import Range, joined
from roost.runtime.kernel.naming import CLASS, Singletons, flags_of, globals_of
from roost.runtime.kernel.reach import Walker
from roost.runtime.kernel.recorder import Facts, Recorder, Seal
from roost.runtime.kernel.restore import CannotRestore, checked
from roost.runtime.kernel.snapshot import Fresh, Snapshot

WHERE = "ROOST_CHECKPOINTS"
KEEP = 2
"""Checkpoints kept."""
_RANDOM = "script random"
_lock = threading.Lock()
_recorders: dict[Path, Recorder] = {}
_singletons = Singletons()


class NotCheckpointed(Exception):
    """Nothing was stored; the last checkpoint stands. ``reasons``: variable -> why."""

    def __init__(self, reasons: dict[str, str]) -> None:
        told = "; ".join(f"{name}: {why}" for name, why in reasons.items())
        super().__init__(f"not checkpointed: {told}")
        self.reasons = reasons


class _ScriptPickler(pickling.GroupPickler):
    """Takes what the script defines at its top level by name."""

    def reducer_override(self, obj: Any) -> Any:
        """See ``GroupPickler``."""
        if flags_of(type(obj)) & CLASS or type(obj) is types.FunctionType:
            name = _name_in_script(obj)
            if name:
                return name
        return super().reducer_override(obj)


def _name_in_script(obj: Any) -> str:
    """Its dotted name in ``__main__``, empty when that is not this very object."""
    kind = type if flags_of(type(obj)) & CLASS else types.FunctionType
    if kind.__getattribute__(obj, "__module__") != "__main__":
        return ""
    name = str(kind.__getattribute__(obj, "__qualname__"))
    found: Any = None
    inside: Any = globals_of(sys.modules["__main__"])
    for part in name.split("."):
        found = inside.get(part)
        inside = type.__getattribute__(found, "__dict__") if flags_of(type(found)) & CLASS else {}
    return name if found is obj else ""


def checkpoint(state: Mapping[str, Any] | None = None, /, **named: Any) -> int:
    """Store these variables; returns the checkpoint's number when it is durable (the newest two are kept).

    Objects that several of them share stay shared. The states of ``random``, ``numpy.random`` and torch are
    stored with them. Raises ``NotCheckpointed`` naming what cannot be stored, ``OSError`` when the disk is
    full; the last checkpoint stands then.
    """
    variables = {**(state or {}), **named}
    directory = _directory()
    with _lock:
        around = _around()
        snapshot = Snapshot()
        names = tuple(variables)
        snapshot.fresh.append(Fresh(names, _stored(variables, around), ()))
        snapshot.state[_RANDOM] = pickle.dumps(_random_states(), protocol=5)
        facts = Facts("", str(Path.cwd()), (), frozenset())
        recorder = _recorders.get(directory)
        if recorder is None:
            directory.mkdir(parents=True, exist_ok=True, mode=0o700)
            recorder = _recorders[directory] = Recorder(directory, None, KEEP)
        return recorder.write(snapshot, facts, Seal()).manifest.number


def resume() -> dict[str, Any] | None:
    """The variables of the newest checkpoint, with the random states of its moment; None: there is none.

    A damaged checkpoint is told as a warning, and the one before it is taken. Raises ``CannotRestore`` when
    none can be read here (another Python minor version, another architecture, all damaged).
    """
    directory = _directory()
    failure: CannotRestore | None = None
    with _lock:
        rebuild.set_root(str(Path.cwd()))
        for number in reversed(manifest_numbers(directory) if directory.is_dir() else ()):
            try:
                manifest = checked(manifest_path(directory, number))
                found = _open(directory, manifest)
            except CannotRestore as error:
                failure = failure or error
                warnings.warn(f"checkpoint {number} is not used: {error}", stacklevel=2)
                continue
            _recorders[directory] = Recorder(directory, manifest, KEEP)
            return found
    if failure is not None:
        raise failure
    return None


def _directory() -> Path:
    return Path(os.environ.get(WHERE) or ".roost").absolute()


def _around() -> pickling.Surroundings:
    root = str(Path.cwd())
    space = globals_of(sys.modules["__main__"])
    _singletons.update(root, space)
    streams = {id(sys.stdout): "stdout", id(sys.stderr): "stderr"}
    return pickling.Surroundings(root, space, _singletons, None, streams)


def _stored(variables: dict[str, Any], around: pickling.Surroundings) -> pickling.Dump:
    """All in one pickle, so that shared objects stay shared; who is to blame is asked one by one."""
    try:
        return _dump(tuple(variables.values()), around)
    except Exception as error:
        reasons = {}
        for name, value in variables.items():
            try:
                _dump(value, around)
            except Exception as one:
                reasons[name] = _words(one)
        raise NotCheckpointed(reasons or {"all of them together": _words(error)}) from error


def _dump(value: Any, around: pickling.Surroundings) -> pickling.Dump:
    begun = time.perf_counter()
    collecting = gc.isenabled()
    gc.disable()  # otherwise a big pickle walks the whole heap again and again
    try:
        with io.BytesIO() as file:
            pickler = _ScriptPickler(file, around, pickling.IN_BAND_BYTES, _shared(value, around))
            pickler.dump(value)
            content = file.getvalue()
    finally:
        if collecting:
            gc.enable()
    seconds = time.perf_counter() - begun
    return pickling.Dump(content, pickler.buffers, list(pickler.notes), seconds, pickler.alive)


def _shared(value: Any, around: pickling.Surroundings) -> list[Range]:
    """Memory that its tensors share with others; there is none without them."""
    if tensors.loaded() is None:
        return []
    return joined(Walker(around.namespace, around.singletons, ()).reach(value).memory)


def _words(error: Exception) -> str:
    told = str(error)[:300]
    return told if isinstance(error, pickle.PicklingError) else f"{type(error).__name__}: {told}"


def _open(directory: Path, manifest: Manifest) -> dict[str, Any]:
    reader = Reader(directory)
    try:
        found: dict[str, Any] = {}
        for group in manifest.groups:
            buffers = [reader.buffer(buffer) for buffer in group.buffers]
            values = pickle.loads(reader.content(group.extents), buffers=buffers)
            found.update(zip(group.names, values, strict=True))
        _set_random(pickle.loads(reader.content(manifest.state[_RANDOM])))
    except Exception as error:
        raise CannotRestore("damaged", f"{type(error).__name__}: {error}"[:300]) from error
    return found


def _random_states() -> dict[str, Any]:
    found: dict[str, Any] = {"random": random.getstate()}
    numpy = sys.modules.get("numpy")
    if numpy is not None:
        found["numpy"] = numpy.random.get_state()
    torch: Any = tensors.loaded()
    if torch is not None:
        found["torch"] = torch.get_rng_state()
        if torch.cuda.is_initialized():
            found["cuda"] = torch.cuda.get_rng_state_all()
    return found


def _set_random(states: dict[str, Any]) -> None:
    random.setstate(states["random"])
    if "numpy" in states:
        # Unpickling the state has imported it.
        sys.modules["numpy"].random.set_state(states["numpy"])
    if "torch" in states:
        torch: Any = sys.modules["torch"]
        torch.set_rng_state(states["torch"])
        for number, state in enumerate(states.get("cuda", ())[: torch.cuda.device_count()]):
            torch.cuda.set_rng_state(state, number)
