"""The process itself: folder, paths, environment, limits, clocks, the collector, warnings."""

import decimal
import gc
import locale
import os
import resource
import signal
import socket
import sys
import time
import warnings
from typing import Any

from roost.runtime.kernel.process.base import Baseline, here, relative, resolved

_TIMERS = (signal.ITIMER_REAL, signal.ITIMER_VIRTUAL, signal.ITIMER_PROF)
_LIMITS = (
    "RLIMIT_NOFILE",
    "RLIMIT_CORE",
    "RLIMIT_FSIZE",
    "RLIMIT_STACK",
    "RLIMIT_AS",
    "RLIMIT_CPU",
)


def note(_shell: Any) -> dict[str, Any]:
    """The values before the user's first cell."""
    return {
        "umask": _umask(0o022),
        "zone": time.tzname,
        "locale": _locale(),
        "collector": _collector(),
        "switch": sys.getswitchinterval(),
        "digits": sys.get_int_max_str_digits(),
        "timeout": socket.getdefaulttimeout(),
        "resources": _resources(),
        "decimals": _decimals(),
    }


# --- folder, paths, environment ------------------------------------------------------------------


def folder(base: Baseline, _shell: Any) -> Any:
    """Working directory."""
    return relative(here(), base.root)


def set_folder(value: str, base: Baseline, _shell: Any) -> None:
    """Back into the working directory."""
    os.chdir(resolved(value, base.root))


def paths(base: Baseline, _shell: Any) -> Any:
    """Additions to and removals from ``sys.path``."""
    known = set(base.sys_path)
    current = [p for p in sys.path if isinstance(p, str)]
    front: list[str] = []
    back: list[str] = []
    met = False
    for path in current:
        if path in known:
            met = True
        else:
            (back if met else front).append(relative(path, base.root))
    removed = [relative(p, base.root) for p in base.sys_path if p not in current]
    return {"front": front, "back": back, "removed": removed} if front or back or removed else None


def set_paths(value: dict[str, list[str]], base: Baseline, _shell: Any) -> None:
    """Repeat the changes on this machine's own ``sys.path``."""
    removed = {resolved(p, base.root) for p in value["removed"]}
    sys.path[:] = [
        *(resolved(p, base.root) for p in value["front"]),
        *(p for p in sys.path if p not in removed),
        *(resolved(p, base.root) for p in value["back"]),
    ]


def environment(base: Baseline, _shell: Any) -> Any:
    """Changes to the environment."""
    now = dict(os.environ)
    changed = {k: v for k, v in now.items() if base.env.get(k) != v}
    gone = [k for k in base.env if k not in now]
    return {"set": changed, "unset": gone} if changed or gone else None


def set_environment(value: dict[str, Any], _base: Baseline, _shell: Any) -> None:
    """Repeat the changes."""
    os.environ.update(value["set"])
    for name in value["unset"]:
        os.environ.pop(name, None)


# --- settings of the process ---------------------------------------------------------------------


def limits(_base: Baseline, _shell: Any) -> Any:
    """Recursion limit."""
    return sys.getrecursionlimit()


def set_limits(value: int, _base: Baseline, _shell: Any) -> None:
    """Put it back."""
    sys.setrecursionlimit(value)


def _umask(guess: int) -> int:
    # It can only be read by writing it: with the right guess no other thread ever sees another one.
    found = os.umask(guess)
    if found != guess:
        os.umask(found)
    return found


def umask(base: Baseline, _shell: Any) -> Any:
    """The mask of new files, when it was changed."""
    last = base.noted["system"].get("last umask", base.noted["system"]["umask"])
    found = base.noted["system"]["last umask"] = _umask(last)
    return found if found != base.noted["system"]["umask"] else None


def set_umask(value: int, _base: Baseline, _shell: Any) -> None:
    """Put it back."""
    os.umask(value)


def zone(base: Baseline, _shell: Any) -> Any:
    """Whether ``tzset`` made the changed ``TZ`` count."""
    return time.tzname if time.tzname != base.noted["system"]["zone"] else None


def set_zone(_value: Any, _base: Baseline, _shell: Any) -> None:
    """The environment is back already."""
    time.tzset()


def _locale() -> str:
    return locale.setlocale(locale.LC_ALL)


def locales(base: Baseline, _shell: Any) -> Any:
    """The locale, when it was changed."""
    found = _locale()
    return found if found != base.noted["system"]["locale"] else None


def set_locales(value: str, _base: Baseline, _shell: Any) -> None:
    """Put it back; raises where this machine does not have it."""
    locale.setlocale(locale.LC_ALL, value)


def _collector() -> tuple[tuple[int, ...], bool, int]:
    return gc.get_threshold(), gc.isenabled(), gc.get_debug()


def collector(base: Baseline, _shell: Any) -> Any:
    """Thresholds of the garbage collector and whether it is on."""
    found = _collector()
    return found if found != base.noted["system"]["collector"] else None


def set_collector(value: tuple[Any, bool, int], _base: Baseline, _shell: Any) -> None:
    """Put them back."""
    threshold, enabled, debug = value
    gc.set_threshold(*threshold)
    gc.set_debug(debug)
    (gc.enable if enabled else gc.disable)()


def switching(base: Baseline, _shell: Any) -> Any:
    """Switch interval, digits of integers, time limit of sockets."""
    now = {
        "switch": sys.getswitchinterval(),
        "digits": sys.get_int_max_str_digits(),
        "timeout": socket.getdefaulttimeout(),
    }
    return {k: v for k, v in now.items() if v != base.noted["system"][k]} or None


def set_switching(value: dict[str, Any], _base: Baseline, _shell: Any) -> None:
    """Put them back."""
    if "switch" in value:
        sys.setswitchinterval(value["switch"])
    if "digits" in value:
        sys.set_int_max_str_digits(value["digits"])
    if "timeout" in value:
        socket.setdefaulttimeout(value["timeout"])


def _resources() -> dict[str, int]:
    return {name: resource.getrlimit(getattr(resource, name))[0] for name in _LIMITS}


def resources(base: Baseline, _shell: Any) -> Any:
    """Soft limits that were changed."""
    known = base.noted["system"]["resources"]
    return {k: v for k, v in _resources().items() if v != known[k]} or None


def set_resources(value: dict[str, int], _base: Baseline, _shell: Any) -> None:
    """Put them back under the hard limits of this machine."""
    for name, soft in value.items():
        kind = getattr(resource, name)
        resource.setrlimit(kind, (soft, resource.getrlimit(kind)[1]))


def timers(_base: Baseline, _shell: Any) -> Any:
    """Alarms that have not gone off."""
    found = {int(kind): signal.getitimer(kind) for kind in _TIMERS}
    return {kind: value for kind, value in found.items() if value[0]} or None


def set_timers(value: dict[int, tuple[float, float]], _base: Baseline, _shell: Any) -> None:
    """Set them for the time that was left."""
    for kind, (left, interval) in value.items():
        signal.setitimer(
            signal.ItimerKind(kind) if hasattr(signal, "ItimerKind") else kind, left, interval
        )


def decimals(base: Baseline) -> Any:
    """The decimal context, when it was changed or something of the notebook may hold it."""
    known, holders = base.noted["system"]["decimals"]
    now = decimal.getcontext()
    return now if sys.getrefcount(now) > holders or repr(now) != known else None


def _decimals() -> tuple[str, int]:
    now = decimal.getcontext()
    return repr(now), sys.getrefcount(now)


def set_decimals(value: decimal.Context, _base: Baseline, _shell: Any) -> None:
    """Put it back."""
    decimal.setcontext(value)


def filters(base: Baseline, _shell: Any) -> Any:
    """Warnings filters."""
    return list(warnings.filters) if list(warnings.filters) != base.filters else None


def set_filters(value: list[Any], _base: Baseline, _shell: Any) -> None:
    """Put the list back as a whole."""
    warnings.filters[:] = value  # type: ignore[index]
    refresh = getattr(warnings, "_filters_mutated", None) or getattr(
        warnings, "_filters_mutated_lock_held", None
    )
    if refresh is not None:
        refresh()
