"""Entry point of `cascli` and `python -m cascli`."""

from __future__ import annotations

import sys


def main() -> None:
    """Load the command line and run it; Ctrl-C prints one line instead of a traceback, even while loading."""
    try:
        from cascli.cli.app import main as run

        run()
    except KeyboardInterrupt:
        if sys.stderr is not None:  # closed by the parent process
            print("cascli: interrupted", file=sys.stderr)
        sys.exit(130)
    finally:
        # If Ctrl-C comes while a library is imported that executes text, Python remembers this until the next such
        # text, and `python -m cascli` would end by SIGINT instead of with a code.
        exec("")


if __name__ == "__main__":
    main()
