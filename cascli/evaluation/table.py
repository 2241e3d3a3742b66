"""What an evaluation found, as plain data. No torch, and nothing of lm-evaluation-harness."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from cascli.sweeps.table import SweepRow
from cascli.trace import Data, Document


class Score(Data):
    """One number that lm-evaluation-harness gives to a strategy's answers, or to the target's likelihoods."""

    strategy: str
    """`target` where no answer was written: likelihoods are the target's, whatever the strategy."""
    metric: str
    """Which number it is, such as `exact_match`."""
    filter: str
    """What was taken out of the answer before it was judged."""
    value: float | None
    """None where it is no number."""
    stderr: float | None
    """As lm-evaluation-harness estimates it, over documents; None where it does not."""


class EvaluatedTask(Data):
    """A task, or a group of them."""

    name: str
    written: bool
    """Whether strategies wrote answers; else the target's likelihoods were judged."""
    samples: int | None
    """Documents of the task that were asked; None of a group."""
    metric: str | None = None
    """Which score `quality` is in the rows; None where no score of single answers is between 0 and 1."""
    scores: list[Score]
    """All of its numbers, by strategy."""
    rows: list[SweepRow] = Field(default_factory=list)
    """Where answers were written one a strategy, with its costs; `quality` and its intervals are over documents."""


class Evaluation(Document):
    """What tasks of lm-evaluation-harness gave for each strategy, and what its answers cost."""

    kind: ClassVar[str] = "evaluation"

    schema_name: Literal["cascli.eval/1", "cascli.eval/1.1"] = Field("cascli.eval/1.1", alias="schema")
    date: str
    """When it began, in UTC as ISO 8601 has it."""
    command: str | None = None
    """The command line, quoted for a shell; None from Python."""
    harness: str
    """Version of lm-evaluation-harness."""
    pair: str
    """The pair's name."""
    environment: dict[str, str]
    """Machine, versions and threads, as those of a run; of each model its source and precision."""
    strategies: list[str]
    """Those that are done."""
    limit: int | None
    """Documents a task at most."""
    num_fewshot: int | None
    """Examples in a prompt; None for the task's own number."""
    chat_template: bool
    """Whether prompts went through the pair's chat template, examples as earlier turns."""
    system: str | None
    """System text of every prompt."""
    given: dict[str, float | int | list[str]]
    """What flags put in the place of the tasks' own settings of generation."""
    batch_size: int
    """How many answers were under way at once; from 2 on times are shares of the batch's."""
    not_honoured: list[str]
    """Settings of generation that tasks ask for and that strategies do not have."""
    shortened: int
    """Prompts whose beginning was left out, since the pair's context has no room for it."""
    tasks: list[EvaluatedTask]
    """In the order of lm-evaluation-harness; a group before its members."""
