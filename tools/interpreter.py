"""Imported by every tool before anything else: a Python without fdtrain ends with one line, not with a trace."""

import sys
from importlib.util import find_spec

if missing := [name for name in ("fdtrain", "torch") if find_spec(name) is None]:
    print(
        f"fdtrain: error: {sys.executable} has no {' and no '.join(missing)}. Run the tools with .venv/bin/python, "
        "which `make environment` (or `make demo`) makes, or install fdtrain into this Python.",
        file=sys.stderr,
    )
    sys.exit(2)
