"""Options that several commands share, declared once: a command takes them as one parameter."""

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any

Command = Callable[..., None]


def takes(place: str, options: Mapping[str, tuple[Any, Any]]) -> Callable[[Command], Command]:
    """The command's parameter ``place`` stands for these options (name: annotation and default); it gets
    a dict of their values."""

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
