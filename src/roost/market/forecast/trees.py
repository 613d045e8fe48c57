"""Boosted trees as arrays, so that serving needs numpy only. Pure."""

import msgspec
import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


class Trees(msgspec.Struct, frozen=True, kw_only=True):
    """Every node of every tree, one after the other; a leaf points at itself."""

    roots: list[int]
    feature: list[int]
    threshold: list[float]
    """Values up to and including it go left."""
    left: list[int]
    right: list[int]
    value: list[float]
    base: float
    depth: int


class Forest:
    """Trees ready to be asked."""

    def __init__(self, trees: Trees) -> None:
        self._roots = np.array(trees.roots)
        self._feature = np.array(trees.feature)
        self._threshold = np.array(trees.threshold)
        self._children = np.array([trees.left, trees.right])
        self._value = np.array(trees.value)
        self._base = trees.base
        self._depth = trees.depth

    def odds(self, features: Floats) -> Floats:
        """Log odds [N] of features [N, F]."""
        total = np.full(len(features), self._base)
        rows = np.arange(len(features))
        if len(features) > len(self._roots):
            for root in self._roots:
                total += self._value[self._walk(features, rows, np.full(len(rows), root))]
            return total
        node = self._walk(features, rows[:, None], np.tile(self._roots, (len(rows), 1)))
        return np.asarray(total + self._value[node].sum(axis=1))

    def _walk(
        self, features: Floats, rows: NDArray[np.intp], node: NDArray[np.intp]
    ) -> NDArray[np.intp]:
        for _ in range(self._depth):
            right = features[rows, self._feature[node]] > self._threshold[node]
            node = self._children[right.astype(np.intp), node]
        return node
