"""Results of an evaluation, as plain data. Imports neither torch nor lm-evaluation-harness."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from cascli.sweeps.table import SweepRow
from cascli.trace import Data, Document


class Score(Data):
    """A score that lm-evaluation-harness gives to a strategy's answers, or to the target's likelihoods."""

    strategy: str
    """The strategy; `target` if likelihoods alone were scored, since these are the target's for any strategy."""
    metric: str
    """Name of the metric, such as `exact_match`."""
    filter: str
    """Filter that extracted the scored part from the answer."""
    value: float | None
    """The score; None if it is not a number."""
    stderr: float | None
    """Standard error over documents, as lm-evaluation-harness estimates it; None if it does not."""
    likelihoods: bool | None = None
    """Whether likelihoods were scored, for a group in any of its tasks; None in documents before `cascli.eval/1.3`."""


class EvaluatedTask(Data):
    """A task, or a group of them."""

    name: str
    written: bool
    """Whether strategies generated answers, for a group in any of its tasks; otherwise likelihoods were scored."""
    samples: int | None
    """Number of documents of the task that were evaluated; None for a group."""
    metric: str | None = None
    """The metric used as `quality` in the rows; None if no metric scores single answers between 0 and 1."""
    scores: list[Score]
    """All scores of the task, by strategy."""
    rows: list[SweepRow] = Field(default_factory=list)
    """One row per strategy with its costs, if it generated answers; `quality` and its intervals are over documents."""


class Evaluation(Document):
    """Results of lm-evaluation-harness tasks for each strategy, and what its answers cost."""

    kind: ClassVar[str] = "evaluation"

    schema_name: Literal["cascli.eval/1", "cascli.eval/1.1", "cascli.eval/1.2", "cascli.eval/1.3"] = Field(
        "cascli.eval/1.3", alias="schema"
    )
    date: str
    """Start time in UTC (ISO 8601)."""
    command: str | None = None
    """The command line, quoted for a shell; None if called from Python."""
    harness: str
    """Version of lm-evaluation-harness."""
    pair: str
    """The pair's name."""
    environment: dict[str, str]
    """Machine, versions and threads, as in a run, and each model's source and precision."""
    strategies: list[str]
    """Strategies whose evaluation is done."""
    limit: int | None
    """Maximum number of documents per task; None for no limit."""
    num_fewshot: int | None
    """Examples in a prompt; None for the task's own number."""
    chat_template: bool
    """Whether prompts went through the pair's chat template, with examples as earlier turns."""
    system: str | None
    """System prompt of every prompt."""
    given: dict[str, float | int | list[str]]
    """Generation settings from flags, which take precedence over those of tasks."""
    batch_size: int
    """Number of answers decoded concurrently; with 2 or more, times are shares of the batch's."""
    not_honoured: list[str]
    """Generation settings that tasks request but strategies do not support."""
    shortened: int
    """Number of prompts whose beginning was cut off because the pair's context has no room for it."""
    tasks: list[EvaluatedTask]
    """Tasks and groups in the order of lm-evaluation-harness."""
