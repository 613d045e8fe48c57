"""Entry point of a job's parent: ``python -m roost.main.runner --folder DIR``."""

import argparse
import sys
from pathlib import Path

from roost.agent.jobs.runner import Runner


def main() -> int:
    """Run the script of the folder; returns its exit code."""
    parser = argparse.ArgumentParser(prog="roost.main.runner", description=__doc__)
    parser.add_argument("--folder", required=True, type=Path, help="of the run; holds run.json")
    return Runner(parser.parse_args().folder).run() & 0xFF


if __name__ == "__main__":
    sys.exit(main())
