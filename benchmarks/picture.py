"""Draw docs/answers.svg from a saved comparison: `python -m benchmarks.picture` (`--check` only looks).

The page that `cascli compare` prints, of four strategies; no model is loaded.
"""

from __future__ import annotations

import sys
from pathlib import Path

from cascli.analysis.comparison import Comparison, Row
from cascli.render.picture import svg
from cascli.trace import Run

HERE = Path(__file__).parent
SAVED = HERE / "results" / "compare-default.json"
PICTURE = HERE.parent / "docs" / "answers.svg"
SHOWN = ("target", "draft", "speculative:k=4", "speculative-cascade:rule=opt,alpha=0.3,k=4")


def drawn() -> str:
    """The picture as SVG."""
    saved = Comparison.from_json(SAVED.read_text(encoding="utf-8"))
    runs, rows = ([each for each in part if _shown(each)] for part in (saved.runs, saved.summary))
    return svg(saved.model_copy(update={"runs": runs, "summary": rows}), 'cascli compare "Who is Buzz Aldrin?"')


def _shown(each: Run | Row) -> bool:
    return (each.spec if isinstance(each, Run) else each.strategy) in SHOWN


def main() -> None:
    """Write the picture, or with `--check` fail if it is not what the saved comparison gives."""
    if "--check" in sys.argv[1:]:
        if PICTURE.read_text(encoding="utf-8") != drawn():
            sys.exit("docs/answers.svg: is not what benchmarks/results/compare-default.json gives; run make docs")
    else:
        PICTURE.write_text(drawn(), encoding="utf-8")


if __name__ == "__main__":
    main()
