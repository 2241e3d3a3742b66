"""Convert the results of lm-evaluation-harness to scores and rows. No torch."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from numbers import Real
from statistics import fmean
from typing import Any

from cascli.evaluation.table import EvaluatedTask, Score
from cascli.settings import TARGET
from cascli.sweeps.records import Record
from cascli.sweeps.table import rows

EvalResults = Mapping[str, Any]
"""What `lm_eval.simple_evaluate` returned for one strategy."""
MainMetric = tuple[str, str] | None
"""The metric and filter by which single answers are scored; None if no metric of a task can do that."""
WRITTEN = "generate_until"
"""Output type of tasks for which answers are generated."""


def with_quality(records: Iterable[Record], results: EvalResults, mains: Mapping[str, MainMetric]) -> list[Record]:
    """Return the records with each answer's score by these metrics, for every task that has one."""
    qualities = {task: _qualities(results, task, mains[task]) for task in results["samples"]}
    return [record.model_copy(update={"quality": qualities[record.category].get(record.problem)}) for record in records]


def without_samples(results: EvalResults, mains: Mapping[str, MainMetric]) -> dict[str, Any]:
    """Return everything except the samples, and of each task the metric that scores them and how many documents."""
    kept = {key: value for key, value in results.items() if key != "samples"}
    # Not n-samples, which counts values of the metric that has most: each may be missing for some documents.
    documents = {task: len({each["doc_id"] for each in samples}) for task, samples in results["samples"].items()}
    return kept | {"main_metrics": dict(mains), "documents": documents}


def main_metric(results: EvalResults, task: str) -> MainMetric:
    """Return the first metric of a task whose scores of single documents are between 0 and 1, and the first filter."""
    for sample in results["samples"].get(task, ())[:1]:
        for metric in sample.get("metrics", ()):
            scored = [each for each in results["samples"][task] if each["filter"] == sample["filter"]]
            values = [_number(each.get(metric)) for each in scored]
            if all(value is not None and 0 <= value <= 1 for value in values):
                return metric, sample["filter"]
    return None


def _qualities(results: EvalResults, task: str, main: MainMetric) -> dict[str, float]:
    """Return each document's score, averaged over its repeats; empty if one is missing or outside of 0 to 1."""
    scores: dict[str, list[float]] = defaultdict(list)
    for sample in results["samples"][task] if main is not None else ():
        if main is not None and sample["filter"] == main[1]:
            value = _number(sample.get(main[0]))
            if value is None:
                return {}
            scores[str(sample["doc_id"])].append(value)
    means = {document: fmean(values) for document, values in scores.items()}
    return means if all(0 <= value <= 1 for value in means.values()) else {}


def evaluated_tasks(results: Mapping[str, EvalResults], records: Sequence[Record]) -> list[EvaluatedTask]:
    """Return all tasks and groups, in the order of lm-evaluation-harness; `results` is by strategy, without samples."""
    if not results:
        return []
    first = next(iter(results.values()))
    tasks = []
    for name in first["results"]:
        main = first["main_metrics"].get(name)
        own = [record for record in records if record.category == name]
        tasks.append(
            EvaluatedTask(
                name=name,
                written=any(_written(first, name)),
                samples=first["documents"].get(name),
                metric=None if main is None else main[0],
                scores=list(_scores(results, name)),
                rows=rows(own),
            )
        )
    return tasks


def _written(results: EvalResults, name: str, key: str | None = None) -> set[bool]:
    """Return whether answers were generated for a task, or for each task of a group, of those that have a score."""
    tasks = _members(results, name)
    scored = [task for task in tasks if key in results["results"].get(task, ())]
    return {results["configs"][task]["output_type"] == WRITTEN for task in scored or tasks}


def _members(results: EvalResults, name: str) -> list[str]:
    """Return the tasks of a group at any depth; for a task, the task itself."""
    if name in results["configs"]:
        return [name]
    return [task for each in results.get("group_subtasks", {}).get(name, ()) for task in _members(results, each)]


def _scores(found: Mapping[str, EvalResults], name: str) -> Iterator[Score]:
    """Yield each strategy's scores, from keys named `metric,filter` and `metric_stderr,filter`.

    Likelihoods are the target's, and the same for every strategy: a score of nothing else is yielded once.
    """
    for place, (spec, results) in enumerate(found.items()):
        own = results["results"][name]
        for key, value in own.items():
            metric, comma, filter_ = key.partition(",")
            if not comma or metric.endswith("_stderr"):
                continue
            written = _written(results, name, key)
            if place == 0 or any(written):
                yield Score(
                    strategy=spec if any(written) else TARGET,
                    metric=metric,
                    filter=filter_,
                    value=_number(value),
                    stderr=_number(own.get(f"{metric}_stderr,{filter_}")),
                    likelihoods=not all(written),
                )


def _number(value: object) -> float | None:
    """Return a number of Python, NumPy or torch, or None: lm-evaluation-harness may have N/A, and some metrics NaN."""
    with suppress(AttributeError, ValueError, RuntimeError):  # torch's and NumPy's, also arrays of one, are not Real
        value = value.item()  # type: ignore[attr-defined]
    try:
        return float(value) if isinstance(value, Real) and not math.isnan(value) else None
    except OverflowError:  # an integer of more than 308 digits
        return None
