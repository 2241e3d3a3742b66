"""`python -m tests.fuzz [--seconds 60] [--seed 0] [--only TARGET] [--save FOLDER]`; exit 1 if anything failed."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

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
        _seeds(home)
        import cascli.models.load  # noqa: F401 - warm, before the first fork
        from cascli.cli.common import quiet_libraries
        from tests.fuzz.run import fuzz

        quiet_libraries()
        found = fuzz(home, asked.seconds, asked.seed, asked.only, asked.save)
    for name, tally in found.items():
        wrong = ", ".join(f"{count} {what}" for what, count in tally.failures.items()) or "none failed"
        print(f"{name:32} {tally.tried:6} tried, {tally.accepted:6} accepted, slowest {tally.slowest:4.1f} s: {wrong}")
    return 1 if any(tally.failures for tally in found.values()) else 0


def _seeds(home: Path) -> None:
    run = [sys.executable, "-m"]
    subprocess.run([*run, "tests.fuzz.seeds", str(home)], check=True, stdout=subprocess.DEVNULL)
    cascli = [*run, "cascli"]
    to = ["-c", "tiny-random", "-q", "--max-new-tokens", "6", "-o"]
    for arguments in (
        ["generate", "hi", *to, str(home / "seeds" / "run.json")],
        ["compare", "hi", "-s", "speculative:k=2", "-s", "target", *to, str(home / "seeds" / "compare.json")],
        ["bench", *to, str(home / "seeds" / "bench.json")],
    ):
        subprocess.run([*cascli, *arguments], check=True, stdout=subprocess.DEVNULL)
    plan = home / "seeds" / "small.yaml"
    plan.write_text("pair: tiny-random\nstrategies: [draft]\nlimit: 1\nmax_new_tokens: 4\n")
    printed = {
        "table.json": ["sweep", str(plan), "-o", str(home / "swept"), "--json", "-q"],
        "audit.json": ["verify", "-c", "tiny-random", "--quick", "-s", "speculative:k=2", "--json", "-q"],
    }
    for name, arguments in printed.items():
        with (home / "seeds" / name).open("w") as file:
            subprocess.run([*cascli, *arguments], check=True, stdout=file)


if __name__ == "__main__":
    sys.exit(main())
