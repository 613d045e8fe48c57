"""Entry point of the simulator: ``python -m roost.main.simulate --seeds N [--seed S] [--hours H]``."""

import sys
from collections.abc import Sequence

from roost.adapters.clock import SystemClock
from roost.sim.cli import simulate


def main(argv: Sequence[str] | None = None) -> int:
    """Run the seeds of ``argv``; the exit code."""
    return simulate(argv, SystemClock())


if __name__ == "__main__":
    sys.exit(main())
