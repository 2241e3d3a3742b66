"""Make docs/{answers.svg,trace.html}, fill README and docs/strategies.md: `python -m benchmarks.picture [--check]`.

The page is what `cascli compare` prints for a saved comparison; the picture shows four strategies. No model is loaded.
"""

from __future__ import annotations

import io
import sys
from pathlib import Path

from rich.console import Console

from cascli.analysis.comparison import Comparison, Row
from cascli.render import html_trace
from cascli.render.comparison import print_comparison
from cascli.render.console import WIDEST, Screen
from cascli.render.picture import svg
from cascli.trace import Run

HERE = Path(__file__).parent
SAVED = HERE / "results" / "compare-default.json"
PICTURE = HERE.parent / "docs" / "answers.svg"
TRACE = HERE.parent / "docs" / "trace.html"
README, STRATEGIES = HERE.parent / "README.md", HERE.parent / "docs" / "strategies.md"
SHOWN = ("target", "draft", "speculative:k=4", "speculative-cascade:rule=opt,alpha=0.3,k=4")


def drawn(saved: Comparison) -> str:
    """Return the picture as SVG."""
    runs, rows = ([each for each in part if _shown(each)] for part in (saved.runs, saved.summary))
    return svg(saved.model_copy(update={"runs": runs, "summary": rows}), 'cascli compare "Who is Buzz Aldrin?"')


def _shown(each: Run | Row) -> bool:
    return (each.spec if isinstance(each, Run) else each.strategy) in SHOWN


def printed(saved: Comparison) -> str:
    """Return the whole page as it is printed to a pipe."""
    text = io.StringIO()
    print_comparison(saved, Screen(Console(width=WIDEST, file=text, color_system=None), Console(file=io.StringIO())))
    return "\n".join(line.rstrip() for line in text.getvalue().splitlines())


def pages() -> dict[Path, str]:
    """Return all files that this script writes, with their text."""
    saved = Comparison.from_json(SAVED.read_text(encoding="utf-8"))
    whole = printed(saved)
    verdict_and_table = whole[: whole.index(f"{saved.runs[0].pair.name}: ")].rstrip()
    return {
        PICTURE: drawn(saved),
        TRACE: html_trace.of_comparison(
            saved, "cascli show benchmarks/results/compare-default.json -o docs/trace.html"
        ),
        README: _filled(README, verdict_and_table),
        STRATEGIES: _filled(STRATEGIES, whole),
    }


def _filled(page: Path, text: str) -> str:
    """Return the page with this text between its markers."""
    begin, end = "<!-- compare -->\n```text\n", "\n```\n<!-- /compare -->"
    before, _, rest = page.read_text(encoding="utf-8").partition(begin)
    return f"{before}{begin}{text}{end}{rest.partition(end)[2]}"


def main() -> None:
    """Write the picture and the pages; with `--check` fail if they do not match the saved comparison."""
    for path, text in pages().items():
        if "--check" not in sys.argv[1:]:
            path.write_text(text, encoding="utf-8")
        elif path.read_text(encoding="utf-8") != text:
            sys.exit(f"{path.name}: is not what benchmarks/results/compare-default.json gives; run make docs")


if __name__ == "__main__":
    main()
