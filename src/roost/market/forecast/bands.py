"""The interruption band of a pool in a region that publishes none. numpy only.

What is known: the bands of the same type, family and size in other regions (weighed by how alike the regions'
offers are), what the region offers, its savings, and facts of the type. The model says how likely the worst
band (above 20 % a month) is. Bands of the region itself are never read.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import msgspec
import numpy as np
import polars as pl
from numpy.typing import NDArray

from roost.market.forecast.metrics import Measure, band_measures
from roost.market.forecast.ridge import fit_logistic, logistic

WORST = 4
UNKNOWN = "-"
RIDGE = 20.0
ALIKE = 6.0
"""Regions with like offers count more: weights grow by e^6 from nothing alike to the same."""
SHRINK = 1.5
FOLDS = 5

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


class BandModel(msgspec.Struct, frozen=True, kw_only=True):
    """Coefficients, and the bands and savings they were fitted to (alexei-led/spotinfo, Apache-2.0)."""

    coefficients: list[float]
    intercept: float
    mean: list[float]
    scale: list[float]
    regions: list[str]
    types: list[str]
    bands: list[str]
    """A line a region, a character a type: the band 0 to 4, ``-`` where it is not offered."""
    savings: list[float]
    """Mean percentage of each type over regions."""
    savings_level: list[float]
    """Mean percentage of each type over regions, relative to the region's mean."""
    snapshot: str


@dataclass(frozen=True, slots=True, eq=False)
class Known:
    """Bands by region and type [R, T], NaN where not offered, and mean savings by type."""

    regions: list[str]
    types: list[str]
    bands: Floats
    savings: Floats
    savings_level: Floats


def latest(frame: pl.DataFrame) -> pl.DataFrame:
    """Linux pools of the newest snapshot."""
    linux = frame.filter(pl.col("os") == "Linux")
    return linux.filter(pl.col("snapshot") == linux["snapshot"].max())


def known_of(frame: pl.DataFrame) -> Known:
    """What pools tell about types."""
    regions = sorted(frame["region"].unique().to_list())
    types = sorted(frame["instance_type"].unique().to_list())
    bands = np.full((len(regions), len(types)), np.nan)
    savings = np.full_like(bands, np.nan)
    row = np.array([regions.index(name) for name in frame["region"]])
    place = {name: i for i, name in enumerate(types)}
    column = np.array([place[name] for name in frame["instance_type"]])
    bands[row, column] = frame["interruption_bucket"].to_numpy()
    savings[row, column] = frame["savings_pct"].to_numpy()
    level = savings - np.nanmean(savings, axis=1, keepdims=True)
    return Known(regions, types, bands, np.nanmean(savings, axis=0), np.nanmean(level, axis=0))


def without(known: Known, region: str) -> Known:
    """The same without one region's bands."""
    keep = [i for i, name in enumerate(known.regions) if name != region]
    names_ = [known.regions[i] for i in keep]
    return Known(names_, known.types, known.bands[keep], known.savings, known.savings_level)


def _parts(kind: str) -> tuple[str, str, str]:
    """(family, size, class letter) of a type name."""
    family, _, size = kind.partition(".")
    return family, size, family[:1]


def _group(codes: Ints, values: Floats, counts: Floats) -> Floats:
    """Mean of each type's group, shrunk to 0."""
    total = np.bincount(codes, weights=values)
    return np.asarray((total / (np.bincount(codes, weights=counts) + 3.0))[codes])


def _codes(names_: Sequence[str]) -> Ints:
    return np.unique(np.array(names_), return_inverse=True)[1].astype(np.int64)


def features_of(pools: pl.DataFrame, known: Known) -> Floats:
    """[N, F] of the pools of one region, from the bands of other regions in ``known``."""
    kinds = pools["instance_type"].to_list()
    types = sorted({*known.types, *kinds})
    place = {name: i for i, name in enumerate(types)}
    bands = np.full((len(known.regions), len(types)), np.nan)
    bands[:, [place[name] for name in known.types]] = known.bands
    offered = np.isfinite(bands)
    levels = bands - np.nanmean(bands, axis=1, keepdims=True)
    split = [_parts(name) for name in types]
    family, size, letter = (_codes([part[i] for part in split]) for i in range(3))
    count = offered.sum(axis=0).astype(float)
    total = np.nansum(levels, axis=0)
    by_family = _group(family, total, count)
    here = np.array([place[name] for name in kinds])
    own = np.zeros(len(types), dtype=bool)
    own[here] = True
    shared = (offered & own).sum(axis=1)
    alike = np.exp(ALIKE * shared / np.maximum((offered | own).sum(axis=1), 1))[:, None]
    weight = (offered * alike).sum(axis=0)
    prior = SHRINK * float(alike.mean())
    weighed = (np.nansum(levels * alike, axis=0) + prior * by_family) / (weight + prior)
    worst = np.nansum(bands == WORST, axis=0)
    worst_family = np.bincount(family, worst) / np.maximum(np.bincount(family, count), 1.0)
    mean = total / np.maximum(count, 1.0)
    about = [
        (total + SHRINK * by_family) / (count + SHRINK),
        weighed,
        (worst + worst_family[family]) / (count + 1.0),
        (np.nansum(bands == 0, axis=0) + 0.3) / (count + 1.0),
        np.sqrt(np.nansum((levels - mean) ** 2, axis=0) / np.maximum(count, 1.0)),
        count,
        by_family,
        _group(letter, total, count),
        _group(size, total, count),
    ]
    offers = np.bincount(family, own) / np.bincount(family)
    columns = [values[here] for values in about]
    columns += _savings(pools, known, place, here)
    columns += _type_facts(pools, kinds)
    columns += [np.full(len(kinds), float(len(kinds))), offers[family][here]]
    return np.stack(columns, axis=1)


def _savings(pools: pl.DataFrame, known: Known, place: dict[str, int], here: Ints) -> list[Floats]:
    mean, level = np.full(len(place), np.nan), np.full(len(place), np.nan)
    at = [place[name] for name in known.types]
    mean[at], level[at] = known.savings, known.savings_level
    own = pools["savings_pct"].to_numpy().astype(float)
    relative = own - own.mean()
    elsewhere = np.where(np.isnan(mean[here]), own.mean(), mean[here])
    region = np.full(len(own), float((own - elsewhere).mean()))
    lift = relative - np.nan_to_num(level[here])
    return [own, relative, own - elsewhere, lift, elsewhere, region]


def _type_facts(pools: pl.DataFrame, kinds: Sequence[str]) -> list[Floats]:
    cores = np.maximum(pools["cores"].to_numpy().astype(float), 1.0)
    memory = np.maximum(pools["ram_gb"].to_numpy().astype(float), 0.1)
    families = [_parts(kind)[0] for kind in kinds]
    marks = [re.sub(r"^[a-z]+\d+", "", family) for family in families]
    generation = [float(m[0]) if (m := re.search(r"\d+", family)) else 0.0 for family in families]
    return [
        np.log2(cores),
        np.log2(memory / cores),
        pools["emr"].to_numpy().astype(float),
        np.array(generation),
        *(np.array([float(letter in mark) for mark in marks]) for letter in "gad"),
        np.array([float("metal" in kind) for kind in kinds]),
    ]


def fit_bands(frame: pl.DataFrame) -> BandModel:
    """Fit to the newest snapshot: each region is told from the others."""
    pools = latest(frame)
    known = known_of(pools)
    parts, worst = [], []
    for region in known.regions:
        own = pools.filter(pl.col("region") == region)
        parts.append(features_of(own, without(known, region)))
        worst.append((own["interruption_bucket"] == WORST).to_numpy().astype(float))
    x, y = np.concatenate(parts), np.concatenate(worst)
    mean, scale = x.mean(axis=0), x.std(axis=0) + 1e-6
    design = np.concatenate([(x - mean) / scale, np.ones((len(x), 1))], axis=1)
    found = fit_logistic(design, y, np.r_[np.full(x.shape[1], RIDGE), 1e-3])
    lines = [
        "".join(UNKNOWN if np.isnan(band) else str(int(band)) for band in line)
        for line in known.bands
    ]
    return BandModel(
        coefficients=_short(found[:-1]),
        intercept=round(float(found[-1]), 6),
        mean=_short(mean),
        scale=_short(scale),
        regions=known.regions,
        types=known.types,
        bands=lines,
        savings=[round(float(s), 2) for s in known.savings],
        savings_level=[round(float(s), 2) for s in known.savings_level],
        snapshot=str(pools["snapshot"][0]),
    )


def _short(values: Floats) -> list[float]:
    return [float(f"{value:.6g}") for value in values]


def knowledge(model: BandModel) -> Known:
    """The bands a model carries."""
    lines = [[np.nan if c == UNKNOWN else float(c) for c in line] for line in model.bands]
    savings, level = np.array(model.savings), np.array(model.savings_level)
    return Known(model.regions, model.types, np.array(lines), savings, level)


def worst_band(model: BandModel, pools: pl.DataFrame, known: Known | None = None) -> Floats:
    """[N] probability of the worst band for the pools of one region (its own bands are not read)."""
    region = str(pools["region"][0])
    told = features_of(pools, without(known or knowledge(model), region))
    scaled = (told - np.array(model.mean)) / np.array(model.scale)
    return logistic(scaled @ np.array(model.coefficients) + model.intercept)


def judge_bands(
    frame: pl.DataFrame, shipped: BandModel | None, say: Callable[[str], None]
) -> dict[str, dict[str, dict[str, Measure]]]:
    """The shipped model on regions it has never seen, and models fitted again with regions left out.

    The baseline is the mean band of the type in other regions. Blocks of the bootstrap are regions.
    """
    pools = latest(frame)
    every = sorted(pools["region"].unique().to_list())
    found: dict[str, dict[str, dict[str, Measure]]] = {}
    if shipped is not None:
        known = knowledge(shipped)
        new = [region for region in every if region not in shipped.regions]
        if new:
            found["shipped_on_new_regions"] = _judge(pools, new, shipped, known)
    if len(every) >= FOLDS:
        parts = []
        for number in range(FOLDS):
            say(f"bands: leaving every fifth region out, {number + 1} of {FOLDS}")
            away = every[number::FOLDS]
            rest = pools.filter(~pl.col("region").is_in(away))
            parts.append(_told(pools, away, fit_bands(rest), known_of(rest)))
        found["regions_left_out"] = _scored(parts)
    return found


Told = tuple[Floats, Floats, NDArray[np.bool_], Ints]


def _told(pools: pl.DataFrame, regions: Sequence[str], model: BandModel, known: Known) -> Told:
    """(by the model, by the type's mean, whether it is the worst band, region) of the regions' pools."""
    by_model, by_type, worst, block = [], [], [], []
    for region in regions:
        own = pools.filter(pl.col("region") == region)
        by_model.append(worst_band(model, own, known))
        others = without(known, region)
        overall = float(np.nanmean(others.bands))
        count = np.isfinite(others.bands).sum(axis=0)
        mean = (np.nansum(others.bands, axis=0) + overall) / (count + 1.0)
        means = dict(zip(others.types, mean, strict=True))
        by_type.append(
            np.array([means.get(kind, overall) for kind in own["instance_type"]]) / WORST
        )
        worst.append((own["interruption_bucket"] == WORST).to_numpy())
        block.append(np.full(own.height, hash_of(region)))
    columns = (by_model, by_type, worst, block)
    made = [np.concatenate(column) for column in columns]
    return made[0], made[1], made[2], made[3]


def hash_of(name: str) -> int:
    """A number for a name, the same in every process."""
    return int.from_bytes(name.encode()[:7].ljust(7, b"\0")) ^ sum(name.encode())


def _judge(
    pools: pl.DataFrame, regions: Sequence[str], model: BandModel, known: Known
) -> dict[str, dict[str, Measure]]:
    return _scored([_told(pools, regions, model, known)])


def _scored(parts: Sequence[Told]) -> dict[str, dict[str, Measure]]:
    model, by_type, worst, block = (np.concatenate([p[i] for p in parts]) for i in range(4))
    made = {"model": model, "type_mean_elsewhere": by_type}
    return {
        who: band_measures(p.astype(float), worst.astype(bool), block.astype(np.int64))
        for who, p in made.items()
    }
