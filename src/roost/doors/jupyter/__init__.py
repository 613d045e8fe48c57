"""The Jupyter door: a session's JupyterLab, its files and its one kernel. See README.md."""

import sys

# jsonschema imports this only to check international resource identifiers, which nothing here uses, and
# building its grammar takes two of the five seconds a Jupyter server needs to start.
sys.modules.setdefault("rfc3987_syntax", None)  # type: ignore[arg-type]
