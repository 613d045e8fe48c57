"""Penalised logistic regression for small designs (Newton's method). Pure, numpy only."""

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


def fit_logistic(design: Floats, y: Floats, penalty: Floats, steps: int = 25) -> Floats:
    """Coefficients [F] of a logistic model of ``y`` (0 or 1) with a ridge ``penalty`` [F] on each."""
    found = np.zeros(design.shape[1])
    for _ in range(steps):
        p = logistic(design @ found)
        slope = design.T @ (y - p) - penalty * found
        curve = (design * (p * (1.0 - p))[:, None]).T @ design + np.diag(penalty + 1e-9)
        step = np.linalg.solve(curve, slope)
        found = found + np.clip(step, -2.0, 2.0)
        if float(np.abs(step).max()) < 1e-6:
            break
    return found


def logistic(odds: Floats) -> Floats:
    """Probabilities of log odds."""
    return np.asarray(1.0 / (1.0 + np.exp(-np.clip(odds, -30.0, 30.0))))
