"""Fit a line by stochastic gradient descent, slowly; goes on at its last checkpoint wherever it runs."""

import random
import sys
import time
from pathlib import Path

import roost

EPOCHS = int(sys.argv[1]) if len(sys.argv) > 1 else 100

state = roost.resume() or {"epoch": 0, "slope": 0.0, "offset": 0.0}
print(f"begins at epoch {state['epoch']}")
while state["epoch"] < EPOCHS:
    for _ in range(1000):
        x = random.uniform(-1, 1)
        error = state["slope"] * x + state["offset"] - (3 * x + 1 + random.gauss(0, 0.1))
        state["slope"] -= 0.001 * error * x
        state["offset"] -= 0.001 * error
    state["epoch"] += 1
    with Path("losses.csv").open("a") as file:
        file.write(f"{state['epoch']},{error * error:.6f}\n")
    roost.checkpoint(state)  # after what it counts as done
    print(f"epoch {state['epoch']}: y = {state['slope']:.3f} x + {state['offset']:.3f}")
    time.sleep(0.2)
