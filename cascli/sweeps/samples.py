"""Prompts whose answers depend on the strategy: examples of what a table of means summarises."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from cascli.settings import TARGET
from cascli.sweeps.records import Record

MAX_SAMPLES = 4
MAX_ANSWERS = 4
"""Most different answers shown per prompt."""


class Answer(NamedTuple):
    """One text and the strategies that wrote it."""

    strategies: list[str]
    text: str
    quality: float | None
    shared: int
    """Number of leading characters shared with the target's answer: all of them if it is the same."""


class Sample(NamedTuple):
    """One prompt at one temperature, seed and repeat: the target's answer, then those that differ most from it."""

    problem: str
    temperature: float
    seed: int
    answers: list[Answer]
    left_out: int
    """Number of further texts that are not shown."""


def samples(records: Iterable[Record]) -> list[Sample]:
    """Return a few prompts to which strategies gave different answers, one sample per prompt.

    Prompts whose answers' scores differ most come first; then low temperatures, since at high ones even two samples
    from the same law differ; then short answers.
    """
    groups: dict[tuple[str, float, tuple[int, int]], list[Record]] = defaultdict(list)
    for record in records:
        if record.error is None:
            groups[record.problem, record.cell.temperature, record.cell.draw].append(record)
    best: dict[str, tuple[tuple[float, float, int], Sample]] = {}
    for (problem, temperature, (seed, _)), group in groups.items():
        answers = _answers(group)
        if len(answers) < 2:
            continue
        shown = answers[:MAX_ANSWERS]
        known = [each.quality for each in shown if each.quality is not None]
        spread = round(max(known) - min(known), 1) if known else 0.0
        rank = (-spread, temperature, sum(len(each.text) for each in shown))
        if problem not in best or rank < best[problem][0]:
            best[problem] = rank, Sample(problem, temperature, seed, shown, len(answers) - len(shown))
    return [sample for _, sample in sorted(best.values(), key=lambda each: each[0])[:MAX_SAMPLES]]


def _answers(group: Sequence[Record]) -> list[Answer]:
    """The different texts, the target's first; empty without an answer of the target."""
    target = next((record for record in group if record.cell.strategy == TARGET), None)
    if target is None:
        return []
    texts: dict[str, list[Record]] = {target.text: []}
    for record in group:
        texts.setdefault(record.text, []).append(record)
    answers = [
        Answer([each.cell.strategy for each in wrote], text, wrote[0].quality, _shared(text, target.text))
        for text, wrote in texts.items()
    ]
    first, others = answers[0], answers[1:]
    return [first, *sorted(others, key=lambda each: _likeness(each, first))]


def _shared(text: str, other: str) -> int:
    differences = (i for i, (ours, theirs) in enumerate(zip(text, other, strict=False)) if ours != theirs)
    return next(differences, min(len(text), len(other)))


def _likeness(answer: Answer, target: Answer) -> tuple[float, int]:
    """Sort key: lowest for the answer whose score differs most from the target's, then that diverges earliest."""
    judged = abs((answer.quality or 0.0) - (target.quality or 0.0))
    return -judged, answer.shared
