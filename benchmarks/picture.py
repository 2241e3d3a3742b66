"""Draw docs/answers.svg from a saved comparison: `python -m benchmarks.picture` (`--check` only looks).

The answers as `cascli generate -v` streams them, several strategies below each other; no model is loaded.
"""

from __future__ import annotations

import io
import sys
from pathlib import Path

from rich.console import Console
from rich.text import Text

from cascli.analysis.comparison import Comparison
from cascli.render.marks import LOOKS, legend, token_text
from cascli.trace import Run

HERE = Path(__file__).parent
SAVED = HERE / "results" / "compare-default.json"
PICTURE = HERE.parent / "docs" / "answers.svg"
SHOWN = ("target", "draft", "speculative", "speculative-cascade:rule=opt,alpha=0.3,k=4")
WIDTH = 110


def answer(run: Run) -> Text:
    """The text, each token in the colour of its origin, rejected drafts struck through before what replaced them."""
    found = Text()
    for round_ in run.rounds:
        for place, token in enumerate(round_.emitted):
            if token.event == "residual" and place < len(round_.drafted):
                _add(found, token_text(round_.drafted[place], "rejected", colored=True).plain, "rejected")
            _add(found, token.text, token.event)
    return found


def _add(text: Text, piece: str, event: str) -> None:
    """Spaces apart from the words: some programs that draw SVG move those at the edge of a coloured piece."""
    word = piece.lstrip(" ")
    text.append(" " * (len(piece) - len(word)))
    text.append(word, style=LOOKS[event].style)


def caption(run: Run) -> Text:
    """The strategy, and what its answer cost."""
    m = run.metrics
    calls = f"{m.target_calls} target calls for {len(run.token_ids)} tokens"
    tv = "" if m.mean_tv_to_target is None else f" · mean TV to the target {m.mean_tv_to_target:.3f}"
    return Text.assemble((run.spec, "bold"), "   ", (f"{calls}{tv}", "dim"))


def drawn() -> str:
    """The picture as SVG."""
    runs = Comparison.from_json(SAVED.read_text(encoding="utf-8")).runs
    console = Console(record=True, width=WIDTH, file=io.StringIO(), force_terminal=True, color_system="truecolor")
    console.print(Text.assemble(("$ ", "dim"), 'cascli compare "Who is Buzz Aldrin?" --temperature 0'))
    seen: set[str] = set()
    for run in runs:
        if run.spec.startswith(SHOWN) and (run.spec.partition(":")[0] in SHOWN or run.spec in SHOWN):
            console.print()
            console.print(caption(run))
            console.print(answer(run))
            seen |= {token.event for token in run.emitted} | ({"rejected"} if run.metrics.num_draft_tokens else set())
    console.print()
    console.print(legend(seen, colored=True))
    return console.export_svg(title="cascli", unique_id="cascli")


def main() -> None:
    """Write the picture, or with `--check` fail if it is not what the saved comparison gives."""
    if "--check" in sys.argv[1:]:
        if PICTURE.read_text(encoding="utf-8") != drawn():
            sys.exit("docs/answers.svg: is not what benchmarks/results/compare-default.json gives; run make docs")
    else:
        PICTURE.write_text(drawn(), encoding="utf-8")


if __name__ == "__main__":
    main()
