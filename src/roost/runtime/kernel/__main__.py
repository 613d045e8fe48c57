"""``python -m roost.runtime.kernel -f CONNECTION_FILE --engine SOCKET [--state-dir DIR]``: a kernel with the
engine in it; ``python -m roost.runtime.kernel capture DIR --within SECONDS``: a notice for a kernel.
"""

import importlib
import sys

from roost.runtime.kernel import tell

if __name__ == "__main__":
    if sys.argv[1:2] == ["capture"]:
        sys.exit(tell.main(sys.argv[2:]))
    # By name: a notice must not wait for the imports of a kernel.
    importlib.import_module("roost.runtime.kernel.launch").main(sys.argv[1:])
