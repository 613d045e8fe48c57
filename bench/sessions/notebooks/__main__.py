"""See ``run``."""

import sys

from bench.sessions.notebooks.run import main

if __name__ == "__main__":
    sys.exit(main())
