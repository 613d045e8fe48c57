"""The tree of loggers: levels, handlers, filters; what ``logging`` itself was told."""

import logging
from collections.abc import Iterator
from typing import Any

from roost.runtime.kernel.process.base import Baseline, same_items

_DEFAULT = (0, False, True)


def note(_shell: Any) -> dict[str, Any]:
    """The loggers and settings before the user's first cell."""
    return {
        "loggers": {name: _row(logger) for name, logger in _loggers()},
        "names": dict(logging._levelToName),
        "settings": settings_now(),
    }


def _loggers() -> Iterator[tuple[str, logging.Logger]]:
    yield "", logging.root
    for name, logger in list(logging.root.manager.loggerDict.items()):
        if isinstance(logger, logging.Logger):
            yield name, logger


def _row(logger: logging.Logger) -> tuple[Any, ...]:
    return (
        logger.level, logger.disabled, logger.propagate, tuple(logger.handlers), tuple(logger.filters),
    )  # fmt: skip


def objects(base: Baseline) -> Iterator[tuple[str, Any]]:
    """Every logger that is set up differently than before."""
    known = base.noted["logs"]["loggers"]
    for name, logger in _loggers():
        bare = not logger.handlers and not logger.filters and name not in known
        plain = bare and type(logger) is logging.Logger
        if plain and (logger.level, logger.disabled, logger.propagate) == _DEFAULT:
            continue
        row = _row(logger)
        before = known.get(name)
        if before is None or not same_items(row, before):
            kind = type(logger)
            own = None if kind in (logging.Logger, logging.RootLogger) else kind
            parts = [logger.level, logger.disabled, logger.propagate, row[3], row[4], own]
            yield f"logger {name or 'root'}", base.steady(f"logger {name}", parts)


def place(name: str, value: Any, _base: Baseline, _shell: Any) -> None:
    """Set a logger up."""
    word = name.partition(" ")[2]
    logger = logging.root if word == "root" else logging.getLogger(word)
    level, disabled, propagate, handlers, filters, own = value
    if own is not None and type(logger) is not own:
        logger.__class__ = own
    logger.setLevel(level)
    logger.disabled = disabled
    logger.propagate = propagate
    logger.handlers[:] = handlers
    logger.filters[:] = filters


def settings_now() -> tuple[Any, ...]:
    """What ``logging`` was told as a whole."""
    last = logging.lastResort
    return (
        logging.root.manager.disable,
        logging.raiseExceptions,
        last.level if last is not None else None,
        getattr(logging, "_warnings_showwarning", None) is not None,
    )


def settings(base: Baseline, _shell: Any) -> Any:
    """Names of levels, ``disable``, ``lastResort``, ``captureWarnings``."""
    known = base.noted["logs"]
    names = {k: v for k, v in logging._levelToName.items() if known["names"].get(k) != v}
    now = settings_now()
    return (names, now) if names or now != known["settings"] else None


def set_settings(
    value: tuple[dict[int, str], tuple[Any, ...]], _base: Baseline, _shell: Any
) -> None:
    """Tell it again."""
    names, (disable, raising, last, warnings) = value
    for level, name in names.items():
        logging.addLevelName(level, name)
    logging.disable(disable)
    logging.raiseExceptions = raising
    if last is None:
        logging.lastResort = None
    elif logging.lastResort is not None:
        logging.lastResort.setLevel(last)
    logging.captureWarnings(warnings)
