"""How well every early exit of a target predicts its text, as a table on the terminal."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from cascli.analysis.early_exit import ExitCurve, ExitPoint
from cascli.render.console import number_tables, stacked
from cascli.render.numbers import number

MOST_ROWS = 32
"""For a deeper model, only every second exit is shown, or fewer."""


def print_exits(curve: ExitCurve, out: Console) -> None:
    """Print the table and what follows from it."""
    out.print(Text(f"\n{title(curve)}", style="bold"))
    out.print(stacked(_tables(curve, out)))
    for line in lines(curve):
        out.print(Text(line))


def title(curve: ExitCurve) -> str:
    """The heading: what these numbers are."""
    kind = "untrained exits" if curve.trained is None else f"trained exits ({curve.trained})"
    texts = f"{curve.answers} answers" if curve.answers > 1 else "one answer"
    text = f"{curve.tokens} tokens of {texts} by the target, temperature {curve.temperature:g}"
    return f"early exit after n of {curve.depth} layers ({kind}): along {text}"


def _tables(curve: ExitCurve, out: Console) -> list[Table]:
    exits = shown(curve)
    columns = [
        ("acceptance", [number(each.acceptance) for each in exits]),
        ("draft step\nc", [number(each.c) for each in exits]),
        ("best\nk", [str(each.best_k) for each in exits]),
        ("tokens\nper\nround", [number(each.tokens_per_round) for each in exits]),
        ("predicted\nspeed-up", [number(each.speed_up, 2, "x") for each in exits]),
    ]
    return number_tables("layers", [str(each.layers) for each in exits], columns, out)


def shown(curve: ExitCurve) -> Sequence[ExitPoint]:
    """The exits to show: of many, the best one and those at equal distances."""
    step = -(-len(curve.exits) // MOST_ROWS)
    return [each for i, each in enumerate(curve.exits) if (i + 1) % step == 0 or each is curve.best]


def lines(curve: ExitCurve) -> Iterator[str]:
    """What follows from the table."""
    best = curve.best
    spec = f"speculative:draft=early-exit,layers={best.layers},k={best.best_k}"
    if best.speed_up > 1:
        yield f"best: -s {spec}, predicted {number(best.speed_up, 2, 'x')} the target's speed."
    else:
        yield f"no exit pays here: the best, {spec}, is predicted {number(best.speed_up, 2, 'x')} the target's speed."
    if curve.trained is None:
        yield "untrained exit: nothing indicates that this checkpoint was trained for early exit, as LayerSkip's are."
    if not curve.measured:
        yield "c is estimated from the bytes read, as if these passes were captured graphs, which they are not yet."
