"""How far apart draft and target are on tasks that need no network: the scores of their greedy answers.

`python -m benchmarks.task_gap -o FOLDER --limit 100 [--tasks chain-sum letters]`. Each task is a separate sweep in the
folder, with the strategies `draft` and `target`; started again, it resumes. A task is useful for a study if the target
can do it, the draft model is much worse, and most answers end before the limit.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.machine import facts
from cascli import load_pair
from cascli.errors import UsageError
from cascli.sweeps.run import sweep
from cascli.sweeps.table import SweepRows


def _gym(dataset: str, answer: str, **options: Any) -> dict[str, Any]:
    return {"kind": "reasoning-gym", "dataset": dataset, "answer": answer, "options": options}


SHORT = "{question} Give the calculation in short, one line a step and no other words, and then the answer."
"""The prompt of the study for word problems."""


TASKS: dict[str, dict[str, Any]] = {
    "word-problems": _gym("gsm_symbolic", "last-number"),
    "word-problems-short": _gym("gsm_symbolic", "last-number") | {"prompt": SHORT},
    "word-problems-boxed": _gym("gsm_symbolic", "boxed"),
    "legs": _gym("leg_counting", "last-number", max_animals=5, max_instances=9),
    "chain-sum": _gym("chain_sum", "last-number", max_terms=4, max_digits=3),
    "chain-sum-short": _gym("chain_sum", "last-number", min_terms=4, max_terms=6, min_digits=2, max_digits=3)
    | {"prompt": SHORT},
    "products-short": _gym("products", "last-number", min_digits=2, max_digits=2) | {"prompt": SHORT},
    "equations-short": _gym("simple_equations", "last-number", max_terms=3) | {"prompt": SHORT},
    "gcd-short": _gym("gcd", "last-number", max_value=200) | {"prompt": SHORT},
    "products": _gym("products", "last-number", max_digits=2),
    "equations": _gym("simple_equations", "last-number", max_terms=3),
    "gcd": _gym("gcd", "last-number", max_value=200),
    "base-conversion": _gym("base_conversion", "tag", max_base=10, max_value=200),
    "calendar": _gym("calendar_arithmetic", "tag"),
    "times": _gym("time_intervals", "tag", task_types=["time", "date"]),
    "letters": _gym("letter_counting", "last-number", max_words=8),
    "number-sorting": _gym("number_sorting", "tag", max_numbers=6),
    "number-filtering": _gym("number_filtering", "tag", max_numbers=6),
    "word-sorting": _gym("word_sorting", "tag", max_words=6),
    "reversed-words": _gym("word_sequence_reversal", "tag"),
    "sentences": _gym("sentence_reordering", "whole", max_words_in_sentence=8),
    "jumbled-letters": _gym("letter_jumble", "whole", max_words=4),
    "number-filtering-at-once": _gym("number_filtering", "whole", max_numbers=6),
    "number-sorting-at-once": _gym("number_sorting", "whole", max_numbers=6) | {"shots": 2},
    "word-sorting-at-once": _gym("word_sorting", "whole", max_words=6),
    "products-at-once": _gym("products", "whole", max_digits=2),
    "times-at-once": _gym("time_intervals", "whole", task_types=["time", "date"]),
    "spell-backward": _gym("spell_backward", "tag", max_word_len=6),
    "sequences": _gym("number_sequence", "last-number"),
    "family": _gym("family_relationships", "tag"),
    "syllogisms": _gym("syllogism", "tag"),
    "humaneval": {"kind": "humaneval"},
}
"""Sweep tasks by name; the options keep problems within reach of models of a billion parameters."""
COLUMNS = ("task", "problems", "draft", "target", "gap", "low", "high", "cut draft", "cut target")


def arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-c", "--config", default="qwen2.5-coder", help="pair name or YAML file")
    parser.add_argument("--dtype", default="int8")
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS), metavar="TASK", help=", ".join(TASKS))
    parser.add_argument("--limit", type=int, default=100, help="problems of each task")
    parser.add_argument("--shots", type=int, default=0, help="examples before each problem of reasoning-gym")
    parser.add_argument("--max-new-tokens", type=int, default=400)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--threads", type=int)
    parser.add_argument("-o", "--output", type=Path, required=True, help="folder of the answers and of gaps.json")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    """Answer all tasks, and print one line per task as soon as it is done."""
    options = arguments(argv)
    if options.threads:
        import torch

        torch.set_num_threads(options.threads)
    pair = load_pair(options.config, dtype=options.dtype)
    print(_line(dict.fromkeys(COLUMNS), names=True), flush=True)
    found = []
    for name in options.tasks:
        try:
            found.append(gap(name, answered(name, pair, options)))
        except UsageError as error:
            print(f"{name}: {error}", file=sys.stderr)
            continue
        print(_line(found[-1]), flush=True)
        document = {"schema": "cascli.task-gap/1", **facts(("torch", "reasoning-gym")), "pair": options.config}
        document |= {"dtypes": pair.info.dtypes, "max_new_tokens": options.max_new_tokens, "tasks": found}
        path = options.output / "gaps.json"
        path.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


def answered(name: str, pair: Any, options: argparse.Namespace) -> SweepRows:
    """Answer one task, keeping existing answers, and return its table.

    Raises:
        UsageError: a package is not installed, or the existing answers were made with other flags.
    """
    task = TASKS[name]
    shots = {"shots": options.shots} if task["kind"] == "reasoning-gym" else {}
    plan = {
        "strategies": ["draft", "target"],
        "task": shots | task,
        "limit": options.limit,
        "max_new_tokens": options.max_new_tokens,
        "batch_size": options.batch_size,
        "dtype": options.dtype,
    }
    return sweep(plan, pair, output=options.output / name, resume=True, allow_code_execution=True)


def gap(name: str, rows: SweepRows) -> dict[str, Any]:
    """Return how much worse the draft model's answers are, with the paired interval, and the shares of cut answers."""
    draft, target = (next(row for row in rows if row.strategy == role) for role in ("draft", "target"))
    low, high = draft.quality_vs_target_interval or (None, None)
    return {
        "task": name,
        "problems": draft.num_prompts,
        "draft": draft.quality,
        "target": target.quality,
        "gap": _negative(draft.quality_vs_target),
        "low": _negative(high),
        "high": _negative(low),
        "kind": draft.quality_vs_target_interval_kind,
        "cut draft": draft.share_cut,
        "cut target": target.share_cut,
        "tokens draft": draft.mean_answer_tokens,
        "tokens target": target.mean_answer_tokens,
        "errors": draft.errors + target.errors,
    }


def _negative(value: float | None) -> float | None:
    return None if value is None else 0.0 - value


def _line(values: Mapping[str, Any], *, names: bool = False) -> str:
    cells = [column if names else _shown(values[column]) for column in COLUMNS]
    return "  ".join([f"{cells[0]:20}", *(f"{cell:>10}" for cell in cells[1:])])


def _shown(value: Any) -> str:
    return "-" if value is None else f"{value:.3f}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    main()
