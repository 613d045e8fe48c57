"""Images that ship with Roost: a recorded set of pinned packages and the modules imported in advance."""

import sys
from importlib import resources

from roost.ports.errors import Invalid
from roost.ports.values import Image

_IMPORTS = "# imports:"


def names() -> list[str]:
    """Names of the shipped images, in order."""
    folder = resources.files(__package__) / "images"
    return sorted(p.name.removesuffix(".txt") for p in folder.iterdir() if p.name.endswith(".txt"))


def load_image(name: str) -> Image:
    """The shipped image ``name`` for this Python version. ``Invalid`` when there is none."""
    if name not in names():
        raise Invalid(f"no image is called {name!r}", hint=f"choose one of: {', '.join(names())}")
    text = (resources.files(__package__) / "images" / f"{name}.txt").read_text()
    lines = [line.strip() for line in text.splitlines()]
    imports = [line.removeprefix(_IMPORTS).split() for line in lines if line.startswith(_IMPORTS)]
    return Image(
        name=name,
        python=f"{sys.version_info.major}.{sys.version_info.minor}",
        requirements=tuple(line for line in lines if line and not line.startswith("#")),
        imports=tuple(module for group in imports for module in group),
    )
