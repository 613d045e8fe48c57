"""The text that Prometheus scrapes: families with their help and type, samples with labels. Pure."""

from collections.abc import Iterable

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


def _label(value: str) -> str:
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


def line(name: str, value: float, **labels: str) -> str:
    """One sample."""
    inner = ",".join(f'{key}="{_label(text)}"' for key, text in labels.items())
    shown = repr(value) if isinstance(value, float) else str(int(value))
    return f"{name}{{{inner}}} {shown}" if inner else f"{name} {shown}"


class Page:
    """Each family once, with its help and type; a family without samples is left out."""

    def __init__(self) -> None:
        self._lines: list[str] = []

    def family(self, name: str, kind: str, text: str, samples: Iterable[str]) -> None:
        """Add a family of samples made by ``line``."""
        lines = list(samples)
        if lines:
            self._lines += [f"# HELP {name} {text}", f"# TYPE {name} {kind}", *lines]

    def text(self) -> str:
        """The whole page."""
        return "\n".join(self._lines) + "\n"
