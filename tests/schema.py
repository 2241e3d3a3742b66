"""Write, or with --check compare, the JSON Schemas of pair and sweep files: `python -m tests.schema`."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from pydantic import BaseModel

from cascli.config import PairConfig
from cascli.sweep.plan import SweepPlan

FOLDER = Path(__file__).parent.parent / "configs"
KINDS: dict[str, type[BaseModel]] = {"pair": PairConfig, "sweep": SweepPlan}


def schema(name: str) -> str:
    found = KINDS[name].model_json_schema(by_alias=True)
    found["title"] = f"cascli {name}"
    return json.dumps(found, indent=2) + "\n"


def main() -> int:
    files = {FOLDER / f"{name}.schema.json": schema(name) for name in KINDS}
    if "--check" in sys.argv:
        outdated = [path.name for path, text in files.items() if path.read_text(encoding="utf-8") != text]
        for name in outdated:
            print(f"{name} is out of date: run make schema", file=sys.stderr)
        return bool(outdated)
    for path, text in files.items():
        path.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
