"""Options of numpy, pandas and matplotlib, and the global random states."""

import importlib
import random
import sys
import warnings
from typing import Any

from roost.runtime.kernel.naming import globals_of
from roost.runtime.kernel.process.base import Baseline


def randomness(_base: Baseline, _shell: Any) -> Any:
    """Global random generators."""
    states: dict[str, Any] = {"random": random.getstate()}
    numpy = sys.modules.get("numpy.random")
    if numpy is not None and "get_state" in globals_of(numpy):
        states["numpy"] = _flat(numpy.get_state(legacy=False))
    torch: Any = sys.modules.get("torch")
    if torch is not None and "get_rng_state" in globals_of(torch):
        states["torch"] = torch.get_rng_state().numpy().tobytes()
        if torch.cuda.is_initialized():
            devices = range(torch.cuda.device_count())
            states["cuda"] = [torch.cuda.get_rng_state(n).numpy().tobytes() for n in devices]
    return states


_ARRAY = "array of"


def _flat(state: Any) -> Any:
    """With arrays as bytes, so that two states can be compared."""
    if type(state) is dict:
        return {key: _flat(value) for key, value in state.items()}
    return (_ARRAY, state.dtype.str, state.tobytes()) if hasattr(state, "tobytes") else state


def _full(state: Any, numpy: Any) -> Any:
    if type(state) is dict:
        return {key: _full(value, numpy) for key, value in state.items()}
    if type(state) is tuple and state[0] == _ARRAY:
        return numpy.frombuffer(state[2], dtype=state[1]).copy()
    # Before there were others the key was all bytes.
    return numpy.frombuffer(state, dtype="uint32") if type(state) is bytes else state


def _set_numpy(state: dict[str, Any]) -> None:
    numpy = importlib.import_module("numpy")
    state = _full(state, numpy)
    kind = state["bit_generator"]
    if kind != "MT19937":  # a cell gave the global functions another generator
        numpy.random.set_bit_generator(getattr(numpy.random, kind)())
        numpy.random.get_bit_generator().state = state
        return
    numpy.random.set_state(state)


def set_randomness(value: dict[str, Any], _base: Baseline, _shell: Any) -> None:
    """Go on with the same sequence."""
    random.setstate(value["random"])
    if "numpy" in value:
        _set_numpy(value["numpy"])
    if "torch" in value:
        torch = importlib.import_module("torch")
        torch.set_rng_state(torch.frombuffer(bytearray(value["torch"]), dtype=torch.uint8))
        for number, state in enumerate(value.get("cuda", ())[: torch.cuda.device_count()]):
            torch.cuda.set_rng_state(torch.frombuffer(bytearray(state), dtype=torch.uint8), number)


def numpy_options(_base: Baseline, _shell: Any) -> Any:
    """Print options and the treatment of floating point errors."""
    numpy: Any = sys.modules.get("numpy")
    if numpy is None or "geterr" not in globals_of(numpy):
        return None
    options = {k: v for k, v in numpy.get_printoptions().items() if k != "override_repr"}
    return {"print": options, "errors": numpy.geterr(), "buffer": numpy.getbufsize()}


def set_numpy_options(value: dict[str, Any], _base: Baseline, _shell: Any) -> None:
    """Put them back."""
    numpy: Any = importlib.import_module("numpy")
    numpy.set_printoptions(**value["print"])
    numpy.seterr(**value["errors"])
    if "buffer" in value:
        numpy.setbufsize(value["buffer"])


def call() -> Any:
    """What numpy calls at a floating point error."""
    numpy: Any = sys.modules.get("numpy")
    if numpy is None or "geterrcall" not in globals_of(numpy):
        return None
    return numpy.geterrcall()


def set_call(value: Any, _base: Baseline, _shell: Any) -> None:
    """Have it call this."""
    importlib.import_module("numpy").seterrcall(value)


def pandas_options(base: Baseline, _shell: Any) -> Any:
    """Options that are not at their default."""
    config: Any = sys.modules.get("pandas._config.config")
    if config is None or "_registered_options" not in globals_of(config):
        return None
    known = base.noted.setdefault("pandas", {})
    if len(known) != len(config._registered_options):
        for key, option in list(config._registered_options.items()):
            known[key] = (*config._get_root(key), option.defval)
    changed = {}
    for key, (holder, leaf, default) in known.items():
        value = holder.get(leaf, default)
        if value is not default and value != default:
            changed[key] = value
    return changed or None


def set_pandas_options(value: dict[str, Any], _base: Baseline, _shell: Any) -> None:
    """Set them."""
    pandas = importlib.import_module("pandas")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that one is deprecated was said when the notebook set it
        for key, option in value.items():
            pandas.set_option(key, option)


def plot_options(_base: Baseline, _shell: Any) -> Any:
    """matplotlib's ``rcParams`` that are not at their default."""
    library: Any = sys.modules.get("matplotlib")
    if library is None or "rcParamsDefault" not in globals_of(library):
        return None
    default = dict(dict.items(library.rcParamsDefault))
    changed = {
        key: value
        for key, value in dict.items(library.rcParams)
        if value is not default.get(key)
        and not key.startswith("backend")
        and value != default.get(key)
    }
    return changed or None


def set_plot_options(value: dict[str, Any], _base: Baseline, _shell: Any) -> None:
    """Set them."""
    importlib.import_module("matplotlib").rcParams.update(value)


def backend(_base: Baseline, _shell: Any) -> Any:
    """The way matplotlib draws, once pyplot has settled on one."""
    library: Any = sys.modules.get("matplotlib")
    pyplot: Any = sys.modules.get("matplotlib.pyplot")
    if library is None or pyplot is None or globals_of(pyplot).get("_backend_mod") is None:
        return None
    found = dict.get(library.rcParams, "backend")
    return found if type(found) is str else None


def set_backend(value: str, _base: Baseline, _shell: Any) -> None:
    """Choose it before a figure is made."""
    importlib.import_module("matplotlib").use(value)


def colormaps(base: Baseline, _shell: Any) -> Any:
    """Colormaps that the notebook registered."""
    library: Any = sys.modules.get("matplotlib")
    registry = globals_of(library).get("colormaps") if library is not None else None
    if registry is None:
        return None
    others: Any = sys.modules.get("seaborn.cm")
    known = {name.removesuffix("_r") for name in globals_of(others)} if others is not None else ()
    builtin = base.noted.setdefault("colormaps", frozenset(registry._builtin_cmaps))
    added = {
        name: colours
        for name, colours in registry._cmaps.items()
        if name not in builtin and name.removesuffix("_r") not in known
    }
    return added or None


def set_colormaps(value: dict[str, Any], _base: Baseline, _shell: Any) -> None:
    """Register them."""
    registry = importlib.import_module("matplotlib").colormaps
    for name, colours in value.items():
        registry.register(colours, name=name, force=name in registry)


def styles(base: Baseline, _shell: Any) -> Any:
    """Plot styles that the notebook added to the library."""
    style: Any = sys.modules.get("matplotlib.style.core") or sys.modules.get("matplotlib.style")
    found = globals_of(style).get("library") if style is not None else None
    if found is None:
        return None
    known = base.noted.setdefault("styles", frozenset(globals_of(style).get("_base_library", ())))
    added = {name: dict(dict.items(found[name])) for name in found if name not in known}
    return added or None


def set_styles(value: dict[str, Any], _base: Baseline, _shell: Any) -> None:
    """Add them."""
    library = importlib.import_module("matplotlib")
    style = importlib.import_module("matplotlib.style")
    for name, settings in value.items():
        made = library.RcParams()
        dict.update(made, settings)
        style.library[name] = made
    style.available[:] = sorted(style.library)


def figures(_base: Baseline, _shell: Any) -> Any:
    """The open figures in their order; the last is the current one."""
    helpers: Any = sys.modules.get("matplotlib._pylab_helpers")
    return list(helpers.Gcf.figs) or None if helpers is not None else None


def set_figures(value: list[int], _base: Baseline, _shell: Any) -> None:
    """Put the numbered figures (see ``place_figure``) into that order."""
    figs = importlib.import_module("matplotlib._pylab_helpers").Gcf.figs
    for number in value:
        if number in figs:
            figs.move_to_end(number)


def place_figures(found: dict[int, Any]) -> None:
    """Give restored figures the numbers they had."""
    helpers: Any = sys.modules.get("matplotlib._pylab_helpers")
    if helpers is None:
        return
    figs = helpers.Gcf.figs
    moved = {}
    for number, figure in found.items():
        for key, manager in list(figs.items()):
            if manager.canvas.figure is figure:
                moved[number] = figs.pop(key)
    for number, manager in moved.items():
        other = figs.pop(number, None)
        if other is not None:
            spare = max([*figs, *moved]) + 1
            other.num = spare
            figs[spare] = other
        manager.num = number
        manager.canvas.figure.number = number
        figs[number] = manager
