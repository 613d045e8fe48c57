"""Options that several commands share, declared once: a command takes them as one parameter."""

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any

Command = Callable[..., None]
Options = Mapping[str, tuple[Any, Any]]
"""By the name of the parameter: annotation and default."""
Given = dict[str, Any]
"""Values of options, by the same names."""


def optional(**kinds: Any) -> Options:
    """Options of these annotations that may be left out: None then."""
    return {name: (kind, None) for name, kind in kinds.items()}


def takes(place: str, options: Options) -> Callable[[Command], Command]:
    """The command's parameter ``place`` (a ``Given``) stands for these options."""

    def decorate(command: Command) -> Command:
        signature = inspect.signature(command)
        own = list(signature.parameters.values())
        at = [parameter.name for parameter in own].index(place)
        made = [
            inspect.Parameter(
                name, inspect.Parameter.POSITIONAL_OR_KEYWORD, default=default, annotation=kind
            )
            for name, (kind, default) in options.items()
        ]

        @functools.wraps(command)
        def run(**given: Any) -> None:
            values = {name: given.pop(name) for name in options}
            command(**{place: values}, **given)

        shown = own[:at] + made + own[at + 1 :]
        run.__signature__ = signature.replace(parameters=shown)  # type: ignore[attr-defined]
        run.__annotations__ = {each.name: each.annotation for each in shown}
        return run

    return decorate
