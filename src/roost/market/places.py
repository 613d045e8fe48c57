"""Where regions and large cities are, and how far apart. Reads its table once; never asks a network."""

import csv
import difflib
import unicodedata
from collections.abc import Iterable
from importlib import resources
from math import asin, cos, radians, sin, sqrt

import msgspec

from roost.ports.errors import Invalid

EARTH_RADIUS_KM = 6371.0


class Point(msgspec.Struct, frozen=True):
    """Degrees north and east."""

    latitude: float
    longitude: float


def distance_km(a: Point, b: Point) -> float:
    """Great-circle distance (haversine) in kilometres."""
    lat_a, lat_b = radians(a.latitude), radians(b.latitude)
    half = (
        sin((lat_b - lat_a) / 2) ** 2
        + cos(lat_a) * cos(lat_b) * sin(radians(b.longitude - a.longitude) / 2) ** 2
    )
    return 2 * EARTH_RADIUS_KM * asin(sqrt(min(1.0, half)))


def close(name: str, known: Iterable[str], n: int = 3) -> list[str]:
    """Known names that ``name`` may have been meant to be, best first."""
    folded = {k.casefold(): k for k in known}
    return [folded[m] for m in difflib.get_close_matches(name.casefold(), folded, n=n, cutoff=0.5)]


def plain(name: str) -> str:
    """Lower case without accents, spaces or punctuation, so that ``São Paulo`` is ``sao-paulo``."""
    letters = unicodedata.normalize("NFKD", name).casefold()
    return "".join(c for c in letters if c.isalnum())


class Places:
    """The table of regions and cities."""

    def __init__(self, rows: Iterable[dict[str, str]]) -> None:
        self._regions: dict[tuple[str, str], Point] = {}
        self._named: dict[str, Point] = {}
        self._names: list[str] = []
        for row in rows:
            point = Point(float(row["latitude"]), float(row["longitude"]))
            if row["kind"] == "region":
                self._regions[row["within"], row["name"]] = point
            self._named[plain(row["name"])] = point
            self._names.append(row["name"])

    @classmethod
    def load(cls) -> "Places":
        """The table of the package."""
        text = (
            resources.files("roost.market").joinpath("data/places.csv").read_text(encoding="utf-8")
        )
        return cls(csv.DictReader(text.splitlines()))

    def find(self, name: str) -> Point:
        """The place of a city or region name. Raises ``Invalid`` with close matches."""
        point = self._named.get(plain(name))
        if point is None:
            matches = close(name, self._names)
            hint = (
                f"did you mean {', '.join(matches)}?"
                if matches
                else "name a large city or a region"
            )
            raise Invalid(f"near={name}: no such city or region in the table", hint=hint)
        return point

    def regions_from(self, point: Point) -> dict[tuple[str, str], float]:
        """Kilometres from ``point`` to every region, by (provider, region)."""
        return {key: distance_km(point, place) for key, place in self._regions.items()}
