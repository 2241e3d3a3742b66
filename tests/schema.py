"""Write, or with --check compare, the JSON Schema of the pair files: `python -m tests.schema`."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from cascli.config import PairConfig

FILE = Path(__file__).parent.parent / "configs" / "pair.schema.json"


def schema() -> str:
    found = PairConfig.model_json_schema(by_alias=True)
    found["title"] = "cascli pair"
    return json.dumps(found, indent=2) + "\n"


def main() -> int:
    if "--check" in sys.argv:
        if FILE.read_text(encoding="utf-8") == schema():
            return 0
        print(f"{FILE.name} is out of date: run make schema", file=sys.stderr)
        return 1
    FILE.write_text(schema(), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
