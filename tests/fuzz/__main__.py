"""`python -m tests.fuzz [--seconds 60] [--seed 0] [--only TARGET] [--save FOLDER]`; exit 1 if anything failed."""

from __future__ import annotations

import argparse
import importlib
import os
import sys
import tempfile
import traceback
from pathlib import Path
from typing import NoReturn

from tests import warm

# Before anything imports torch: a process with torch's threads cannot be forked.
os.environ |= {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}


def main() -> int:
    """Fuzz, and print one line per target."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only")
    parser.add_argument("--save", type=Path, help="keep what fails here, a folder a target")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        os.environ |= {"CASCLI_HOME": str(home / "cache"), "HF_HOME": str(home / "hub"), "NO_COLOR": "1"}
        for name in warm.IMPORTED:  # before the first fork
            importlib.import_module(name)
        from cascli.cli.common import quiet_libraries
        from tests.fuzz.run import fuzz

        quiet_libraries()
        _seeds(home)
        found = fuzz(home, asked.seconds, asked.seed, asked.only, asked.save)
    for name, tally in found.items():
        wrong = ", ".join(f"{count} {what}" for what, count in tally.failures.items()) or "none failed"
        print(f"{name:32} {tally.tried:6} tried, {tally.accepted:6} accepted, slowest {tally.slowest:4.1f} s: {wrong}")
    return 1 if any(tally.failures for tally in found.values()) else 0


def _seeds(home: Path) -> None:
    """Make the good files in forks: this process must not decode, since that starts threads."""
    from tests.fuzz.run import attempt

    if (child := os.fork()) == 0:
        _make(home)
    if os.waitpid(child, 0)[1]:
        raise SystemExit("the good files could not be made")
    seeds = home / "seeds"
    plan = seeds / "small.yaml"
    plan.write_text("pair: tiny-random\nstrategies: [draft]\nlimit: 1\nmax_new_tokens: 4\n")
    to = ["-c", "tiny-random", "-q", "--max-new-tokens", "6", "-o"]
    for arguments, printed in (
        (["generate", "hi", *to, str(seeds / "run.json")], os.devnull),
        (["compare", "hi", "-s", "speculative:k=2", "-s", "target", *to, str(seeds / "compare.json")], os.devnull),
        (["bench", *to, str(seeds / "bench.json")], os.devnull),
        (["sweep", str(plan), "-o", str(home / "swept"), "--json", "-q"], str(seeds / "table.json")),
        (
            ["verify", "-c", "tiny-random", "--quick", "-s", "speculative:k=2", "--json", "-q"],
            str(seeds / "audit.json"),
        ),
    ):
        code, said, _ = attempt(arguments, home, printed)
        if code != 0:
            raise SystemExit(f"cascli {' '.join(arguments)}: exit {code}\n{said}")


def _make(home: Path) -> NoReturn:
    from tests.fuzz.seeds import make

    try:
        make(home)
    except BaseException:
        traceback.print_exc()
        os._exit(1)
    os._exit(0)


if __name__ == "__main__":
    sys.exit(main())
