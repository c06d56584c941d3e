"""The command line. One module a verb; see :mod:`runtime.cli.app` for how they are found.

Nothing here may be slow to import: ``runtime --help`` answers in under 0.3 s.
"""

from __future__ import annotations

import sys

from runtime.errors import RuntimeFault


def main() -> None:
    """Run ``runtime``: the entry point of the command.

    A fault is told in a line for each of its problems, and exits with 1; a bug shows its traceback.
    """
    try:
        from runtime.cli.app import app

        app()
    except RuntimeFault as fault:
        for line in str(fault).splitlines():
            print(f"error: {line}", file=sys.stderr)
        raise SystemExit(1) from None
    except KeyboardInterrupt:
        raise SystemExit(130) from None
