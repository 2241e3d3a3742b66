"""Entry point of `cascli` and `python -m cascli`."""

from __future__ import annotations

import sys


def main() -> None:
    """Load the command line and run it; Ctrl-C prints one line instead of a traceback, even while loading."""
    try:
        from cascli.cli.app import main as run
    except KeyboardInterrupt:
        print("cascli: interrupted", file=sys.stderr)
        sys.exit(130)
    run()


if __name__ == "__main__":
    main()
